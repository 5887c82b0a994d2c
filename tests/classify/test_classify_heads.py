"""Heads: references by hand, one map whatever its layout, cached features, and a start that unlearns nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from timm.layers.ml_decoder import MLDecoder

from classify.learning.features import hash_backbone, load_features, logits_of_features
from classify.learning.heads import HEADS, MlDecoderHead, places
from classify.learning.models import (
    Card,
    build_classifier,
    head_of,
    load_backbone,
    load_card,
    load_classifier,
    predict_logits,
    reset_head,
    save_card,
    save_weights,
)
from cohort.errors import TailfillError

CARD = Card(model="test_convnext", labels=("Effusion", "Hernia", "Mass"), image_size=64, mean=0.5, std=0.25)
IMAGES = np.random.default_rng(0).integers(0, 256, (9, 64, 64), dtype=np.uint8)
MODELS = ("test_convnext", "test_resnet", "test_vit", "test_efficientnet")


def build(head, name=CARD.model, *, n_labels=3, seed=0):
    torch.manual_seed(seed)
    return build_classifier(name, n_labels, head=head, image_size=64).eval()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("head", HEADS)
def test_head_of_cached_features_is_the_model(tmp_path, head, name):
    model, card = build(head, name), replace(CARD, model=name, head=head)
    assert type(head_of(model)[1]) is HEADS[head]
    found = logits_of_features(model, load_features(model, IMAGES, card, cache=tmp_path))
    assert found.shape == (9, 3)
    np.testing.assert_allclose(found, predict_logits(model, IMAGES, card), atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_round_trip_with_its_card(tmp_path, head):
    model, card = build(head), replace(CARD, head=head)
    save_weights(model.state_dict(), tmp_path / "ema.safetensors")
    save_card(card, tmp_path)
    loaded, found = load_classifier(tmp_path)
    assert found == card
    np.testing.assert_array_equal(predict_logits(loaded, IMAGES, card), predict_logits(model, IMAGES, card))


def test_a_card_without_a_head_is_of_a_linear_one(tmp_path):
    (tmp_path / "card.json").write_text('{"model": "m", "labels": ["A"], "image_size": 32, "mean": 0.5, "std": 0.2}')
    assert load_card(tmp_path).head == "linear"


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("before", HEADS)
def test_a_backbone_serves_every_head_whatever_it_was_trained_with(tmp_path, before, head):
    trained, model = build(before, n_labels=5), build(head, seed=1)
    save_weights(trained.state_dict(), tmp_path / "ema.safetensors")
    own = {key: value.clone() for key, value in head_of(model)[1].state_dict().items()}
    load_backbone(model, tmp_path / "ema.safetensors")
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in trained.state_dict().items()
               if not key.startswith(head_of(trained)[0]))
    assert all(torch.equal(own[key], value) for key, value in head_of(model)[1].state_dict().items())


@pytest.mark.parametrize("head", HEADS)
def test_a_new_head_gives_every_image_its_bias_and_the_backbone_no_gradient(head):
    model, bias = build(head), torch.tensor([0.5, -2.0, 0.1])
    reset_head(model, bias)
    np.testing.assert_allclose(predict_logits(model, IMAGES, CARD), bias.expand(9, 3), atol=1e-6)
    images = torch.from_numpy(IMAGES).unsqueeze(1).float() / 255
    (model(images) * torch.randn(9, 3)).sum().backward()
    name, module = head_of(model)
    assert all(not parameter.grad.any() for key, parameter in model.named_parameters()
               if parameter.grad is not None and not key.startswith(f"{name}."))
    assert module.weight.grad.abs().max() > 0
    assert module.bias.grad.abs().max() > 0


def test_ml_decoder_is_timms():
    """By timm's own module, whose wrapper around the layer current torch no longer runs."""
    head, theirs = MlDecoderHead(64, 3).eval(), MLDecoder(3, decoder_embedding=64, initial_num_features=64).eval()
    state = {key.replace("decoder.", "decoder.layers.0.", 1): value for key, value in head.state_dict().items()}
    theirs.load_state_dict(state)
    theirs.decoder = theirs.decoder.layers[0]
    maps = torch.randn(2, 64, 3, 3)
    torch.testing.assert_close(head(maps), theirs(maps))
    assert head(maps).shape == (2, 3)
    assert MlDecoderHead(12, 120)(torch.randn(2, 12, 2, 2)).shape == (2, 120)  # more labels than queries


def test_layouts_of_a_map_are_one():
    module, maps = MlDecoderHead(16, 3).eval(), torch.randn(2, 16, 3, 4)
    for other in (maps.permute(0, 2, 3, 1), maps.flatten(2).transpose(1, 2)):
        torch.testing.assert_close(module(other), module(maps))


def test_features_without_places_are_refused():
    for shape in ((2, 16), (2, 3, 4, 5)):
        with pytest.raises(TailfillError, match="wanted: head 'linear'"):
            places(torch.zeros(shape), 16)


def test_pooled_features_and_maps_are_not_confused(tmp_path):
    linear, decoder = build("linear"), build("ml_decoder")
    load_features(linear, IMAGES, CARD, cache=tmp_path)
    assert load_features(decoder, IMAGES, CARD, cache=tmp_path).ndim == 4
    assert hash_backbone(decoder, CARD) != hash_backbone(linear, CARD)
