"""The classifier on disk: round trips, batch independence, refusals; and the state of one that learns."""

import numpy as np
import pytest
import timm
import torch

from classify.learning.fitting import new_learner
from classify.learning.models import (
    Card,
    build_classifier,
    load_backbone,
    load_classifier,
    load_weights,
    predict_logits,
    save_card,
    save_weights,
)
from classify.learning.training import load_checkpoint
from cohort.errors import TailfillError

NAME = "test_convnext"
CARD = Card(model=NAME, labels=("Effusion", "Hernia"), image_size=32, mean=0.5, std=0.25)
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 32, 32), dtype=np.uint8)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_classifier(NAME, 2)


def test_shape_of_logits_and_convnext_by_default_name():
    assert build_classifier("convnext_femto", 5)(torch.zeros(2, 1, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize("name", ["test_convnext", "test_vit", "test_resnet"])
def test_any_timm_model_of_any_size(name):
    assert build_classifier(name, 3, in_chans=1, image_size=64)(torch.zeros(2, 1, 64, 64)).shape == (2, 3)


def test_nothing_is_fetched_unless_asked(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("timm.models._builder.load_pretrained", refuse)
    build_classifier(NAME, 2)
    with pytest.raises(TailfillError, match=r"train\.pretrained: gives no weights of this model: the hub was asked"):
        build_classifier(NAME, 2, pretrained=True)


def test_unknown_model_names_the_nearest():
    with pytest.raises(TailfillError, match="convnext_femto"):
        build_classifier("convnext_femtoo", 2)


def test_round_trip(tmp_path, model):
    save_weights(model.state_dict(), tmp_path / "ema.safetensors")
    save_card(CARD, tmp_path)
    loaded, card = load_classifier(tmp_path)
    assert card == CARD
    assert not loaded.training
    np.testing.assert_array_equal(predict_logits(loaded, IMAGES, card), predict_logits(model, IMAGES, CARD))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_logits_do_not_depend_on_the_batch(model, batch_size):
    whole = predict_logits(model, IMAGES, CARD, batch_size=7)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(predict_logits(model, IMAGES, CARD, batch_size=batch_size), whole, atol=1e-5)


def test_no_images_give_no_logits(model):
    assert predict_logits(model, IMAGES[:0], CARD).shape == (0, 2)


def test_wrong_size_labels_and_weights_are_refused(tmp_path, model):
    with pytest.raises(TailfillError, match="32, 32"):
        predict_logits(model, np.zeros((1, 16, 16), np.uint8), CARD)
    with pytest.raises(TailfillError, match="Hernia, Effusion"):
        CARD.require_labels(["Hernia", "Effusion"], where=tmp_path)
    with pytest.raises(TailfillError, match=r"card\.json"):
        load_classifier(tmp_path)
    save_card(CARD, tmp_path)
    save_weights(build_classifier(NAME, 3).state_dict(), tmp_path / "ema.safetensors")
    with pytest.raises(TailfillError, match=r"ema\.safetensors"):
        load_classifier(tmp_path)


@pytest.mark.parametrize("load", [load_weights, load_backbone])
@pytest.mark.parametrize("spoil", [lambda content: content[:-100], lambda content: b"version https://git-lfs", None])
def test_a_damaged_file_of_weights_is_named(tmp_path, model, load, spoil):
    file = tmp_path / "ema.safetensors"
    if spoil is not None:
        save_weights(model.state_dict(), file)
        file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(TailfillError, match=r"ema\.safetensors: "):
        load(model, file)


def test_average_starts_as_a_copy_and_then_lags(model):
    learner = new_learner(model, weight_decay=0.05, ema_decay=0.9)

    def shifted(step):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
        learner.ema.update(model, step=step)
        first = next(iter(model.parameters())), next(iter(learner.ema.module.parameters()))
        return float((first[0] - first[1]).detach().abs().max())

    assert shifted(1) == 0
    lags = [shifted(step) for step in range(2, 200)]
    assert 0 < lags[0] < 1
    assert lags[-1] == pytest.approx(9.0, abs=0.3)  # a ramp of slope 1 is followed at distance d / (1 - d)


def test_biases_and_norms_do_not_decay(model):
    groups = new_learner(model, weight_decay=0.05, ema_decay=0.9).optimizer.param_groups
    assert {group["weight_decay"] for group in groups} == {0.0, 0.05}
    assert all(parameter.ndim > 1 for group in groups if group["weight_decay"] for parameter in group["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_damaged_checkpoint_is_named(tmp_path, model):
    learner = new_learner(model, weight_decay=0.0, ema_decay=0.9)
    learner.save(tmp_path / "checkpoint.pt")
    content = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(TailfillError, match=r"checkpoint\.pt"):
        load_checkpoint(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("head", ["linear", "ml_decoder"])
@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_weights_for_three_channels_and_other_labels_from_a_file(tmp_path, kind, head):
    """timm's own conversion: grey stands in all three channels, and the head is new."""
    torch.manual_seed(3)
    trained = timm.create_model(NAME, num_classes=7, in_chans=3).eval()
    file = tmp_path / f"trained.{kind}"
    if kind == "pth":
        torch.save({"state_dict": trained.state_dict()}, file)
    else:
        save_weights(trained.state_dict(), file)
    model, grey = build_classifier(NAME, 2, head=head, pretrained=str(file)).eval(), torch.rand(4, 1, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(model.forward_features(grey), trained.forward_features(grey.expand(-1, 3, -1, -1)),
                                   atol=1e-5, rtol=1e-4)
    assert model(grey).shape == (4, 2)


def test_a_file_that_lacks_a_part_of_the_model_is_refused_rather_than_filled_at_random(tmp_path):
    state = build_classifier(NAME, 2, in_chans=3).state_dict()
    lost = next(key for key, value in state.items() if "stages" in key and value.ndim == 4)
    save_weights({key: value for key, value in state.items() if key != lost}, tmp_path / "holes.safetensors")
    with pytest.raises(TailfillError, match=f"lacks 1 tensors of this model, '{lost}'"):
        build_classifier(NAME, 2, pretrained=str(tmp_path / "holes.safetensors"))


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs", "other"])
@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_a_file_that_is_none_of_this_model_is_named(tmp_path, content, kind):
    file = tmp_path / f"weights.{kind}"
    if content == "other":
        save_weights(build_classifier("test_resnet", 2, in_chans=3).state_dict(), file)
    else:
        file.write_bytes(content)
    with pytest.raises(TailfillError, match=f"weights.{kind}: "):
        build_classifier(NAME, 2, pretrained=str(file))
