"""Features of a frozen backbone: the full model's logits through the head, and a cache that never meets a stale one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from classify.learning import features
from classify.learning.features import BLOCK, hash_backbone, load_features, logits_of_features
from classify.learning.losses import LOSSES, best_constant
from classify.learning.models import Card, build_classifier, head_of, predict_logits, reset_head
from cohort.errors import TailfillError

CARD = Card(model="test_convnext", labels=("Effusion", "Hernia", "Mass"), image_size=32, mean=0.5, std=0.25)
IMAGES = np.random.default_rng(0).integers(0, 256, (BLOCK + 9, 32, 32), dtype=np.uint8)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_classifier(CARD.model, 3)


@pytest.mark.parametrize("name", ["test_convnext", "test_vit", "test_resnet"])
def test_head_of_features_is_the_model(name, tmp_path):
    torch.manual_seed(0)
    model, images = build_classifier(name, 3, image_size=32).eval(), IMAGES[:21]
    card = replace(CARD, model=name)
    found = logits_of_features(model, load_features(model, images, card, cache=tmp_path))
    np.testing.assert_allclose(found, predict_logits(model, images, card), atol=1e-5)


def test_computed_once_whatever_the_head_and_from_then_on_read(model, tmp_path, monkeypatch):
    first = load_features(model, IMAGES, CARD, cache=tmp_path)
    assert first.dtype == np.float32
    assert len(list(tmp_path.iterdir())) == 2  # blocks, and nothing half written
    monkeypatch.setattr(features, "compute_features", None)
    reset_head(model, torch.tensor([0.5, 0.1, 0.0]))
    np.testing.assert_array_equal(load_features(model, IMAGES, replace(CARD, labels=("Edema",)), cache=tmp_path), first)


def test_other_weights_normalisation_or_pixels_are_other_features(model, tmp_path):
    first = load_features(model, IMAGES[:5], CARD, cache=tmp_path)
    changed = [load_features(model, IMAGES[:5], replace(CARD, mean=0.4), cache=tmp_path),
               load_features(model, 255 - IMAGES[:5], CARD, cache=tmp_path)]
    before = hash_backbone(model, CARD)
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    assert hash_backbone(model, CARD) != before
    changed.append(load_features(model, IMAGES[:5], CARD, cache=tmp_path))
    for other in changed:
        assert not np.allclose(other, first)


def test_a_kill_loses_one_block(model, tmp_path, monkeypatch):
    compute, done = features.compute_features, []

    def dies_at_the_second_block(*args, **kwargs):
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(1)
        return compute(*args, **kwargs)

    monkeypatch.setattr(features, "compute_features", dies_at_the_second_block)
    with pytest.raises(KeyboardInterrupt):
        load_features(model, IMAGES, CARD, cache=tmp_path / "cut")
    sizes = []
    monkeypatch.setattr(features, "compute_features",
                        lambda *args, **kwargs: (sizes.append(len(args[1])), compute(*args, **kwargs))[1])
    resumed = load_features(model, IMAGES, CARD, cache=tmp_path / "cut")
    assert sizes == [9]
    np.testing.assert_array_equal(resumed, load_features(model, IMAGES, CARD, cache=tmp_path / "whole"))


def test_no_images_other_sizes_and_models_without_a_linear_head(model, tmp_path):
    assert load_features(model, IMAGES[:0], CARD, cache=tmp_path).shape == (0, head_of(model)[1].in_features)
    with pytest.raises(TailfillError, match="32, 32"):
        load_features(model, np.zeros((1, 16, 16), np.uint8), CARD, cache=tmp_path)
    with pytest.raises(TailfillError, match="one linear layer"):
        head_of(build_classifier(CARD.model, 0))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_new_head_starts_every_image_where_no_other_constant_is_better(model, loss):
    prevalence = torch.tensor([0.5, 0.01, 0.1])
    reset_head(model, best_constant(LOSSES[loss](prevalence), prevalence))
    logits = torch.from_numpy(predict_logits(model, IMAGES[:100], CARD))
    assert (logits == logits[0]).all()
    targets = (torch.arange(len(logits)).unsqueeze(1) < prevalence * len(logits)).float()
    found = LOSSES[loss](prevalence)(logits, targets)
    for shift in (-0.3, 0.3):
        assert LOSSES[loss](prevalence)(logits + shift, targets) > found
    if loss == "bce":
        torch.testing.assert_close(logits[0], torch.logit(prevalence), atol=0.006, rtol=0)
