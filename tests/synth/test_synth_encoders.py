"""The fidelity encoder: the pinned weights in the network that they were trained in, and one answer per image."""

from pathlib import Path

import numpy as np
import pytest
import sklearn
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from cohort.errors import TailfillError
from synth.measuring import encoders
from synth.measuring.encoders import CENTRE, HALF_RANGE, SIDE, encode, load_lite0, make_encoder


@pytest.fixture(scope="module")
def encoder() -> encoders.Encoder:
    torch.set_num_threads(1)
    return make_encoder("efficientnet_lite0")


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 40, 40), dtype=np.uint8)


def photograph(name: str) -> torch.Tensor:
    """A photograph that scikit-learn ships, cropped to its middle square: float (1, 3, 224, 224) in [-1, 1]."""
    with Image.open(Path(sklearn.__file__).parent / "datasets" / "images" / name) as image:
        width, height = image.size
        k = min(width, height)
        box = ((width - k) // 2, (height - k) // 2, (width + k) // 2, (height + k) // 2)
        pixels = np.asarray(image.convert("RGB").crop(box).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return (torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255 - CENTRE) / HALF_RANGE


def test_recognises_photographs() -> None:
    """Weights, their order, padding and scaling are right together, or ImageNet's classes would not come out."""
    model = load_lite0()
    with torch.inference_mode():
        flower, china = (model(photograph(name)).argmax().item() for name in ("flower.jpg", "china.jpg"))
    assert flower == 985  # daisy
    assert china in (442, 698)  # bell cote, palace


def test_batch_statistics_agree_with_the_stored_ones() -> None:
    """ImageNet's mean and std in place of [-1, 1] shift the layers away from the statistics they were trained with."""
    model, pixels = load_lite0(), torch.cat([photograph("flower.jpg"), photograph("china.jpg")])
    grey = pixels * HALF_RANGE + CENTRE
    means, stds = torch.tensor(IMAGENET_DEFAULT_MEAN), torch.tensor(IMAGENET_DEFAULT_STD)
    deviations: list[float] = []

    def compare(norm: torch.nn.Module, inputs: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        variance = inputs[0].var((0, 2, 3))
        deviations.append(float(((variance + norm.eps) / (norm.running_var + norm.eps)).log().abs().mean()))

    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(compare)
    with torch.inference_mode():
        model(pixels)
        ours = np.mean(deviations)
        deviations.clear()
        model((grey - means[:, None, None]) / stds[:, None, None])
    assert len(deviations) == 49
    assert ours < 0.8 * np.mean(deviations)


def test_features(encoder: encoders.Encoder, images: np.ndarray) -> None:
    """Shape, type, sense, and independence of the batch and of the order."""
    features = encode(encoder, images)
    assert features.shape == (5, encoder.width)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    assert features.std(axis=0).mean() > 0
    np.testing.assert_allclose(encode(encoder, images, batch_size=2), features, atol=1e-4)
    np.testing.assert_allclose(encode(encoder, images[::-1], batch_size=3)[::-1], features, atol=1e-4)


def test_no_images(encoder: encoders.Encoder) -> None:
    assert encode(encoder, np.empty((0, 8, 8), np.uint8)).shape == (0, 1280)


@pytest.mark.parametrize("bad", [np.zeros((2, 8, 8), np.float32), np.zeros((2, 8, 8, 3), np.uint8)])
def test_other_arrays_are_refused(encoder: encoders.Encoder, bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="wanted: uint8"):
        encode(encoder, bad)


def test_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(TailfillError, match="did you mean 'efficientnet_lite0'"):
        make_encoder("eficientnet_lite0")


def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "SHA256", "0" * 64)
    with pytest.raises(TailfillError, match="sha256 is 579344248a93; wanted: 000000000000"):
        load_lite0()


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "PACKAGE", "no-such-package-here")
    with pytest.raises(TailfillError, match="no-such-package-here"):
        load_lite0()
