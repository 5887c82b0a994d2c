"""The perceptual loss against its formula, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch

from classify.learning.models import Card, build_classifier, normalise, save_card, save_weights
from classify.learning.start import WEIGHTS_FILE
from cohort.errors import TailfillError
from synth.learning.perceptual import FeatureDistance, PerceptualConfig
from synth.learning.reconstruction import to_signed

CARD = Card(model="test_convnext", labels=("Edema",), image_size=32, mean=0.4, std=0.3)


def save_backbone(folder: Path) -> Path:
    """A backbone of random weights, and its folder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_classifier(CARD.model, 1)
    folder.mkdir(parents=True, exist_ok=True)
    save_card(CARD, folder)
    save_weights(model.state_dict(), folder / WEIGHTS_FILE)
    return folder


@pytest.fixture
def images() -> np.ndarray:
    """Twelve noisy 32-px images."""
    return np.random.default_rng(0).integers(0, 256, (12, 32, 32), dtype=np.uint8)


def test_distance_follows_its_formula(tmp_path: Path, images: np.ndarray) -> None:
    distance = FeatureDistance(save_backbone(tmp_path), images)
    target = to_signed(images)
    other = target.roll(3, dims=-1)
    network = distance.model

    def features(x: torch.Tensor) -> list[torch.Tensor]:
        x = network.stem(normalise((x + 1) / 2, CARD))
        maps = []
        for stage in network.stages:
            x = stage(x)
            maps.append(x)
        return [*maps, network.forward_head(network.norm_pre(x), pre_logits=True)]

    expected = 0.0
    with torch.no_grad():
        for a, b in zip(features(other), features(target), strict=True):
            spread = b.transpose(0, 1).flatten(1).std(1).view(1, -1, *[1] * (b.ndim - 2))
            expected += ((a - b) / spread).square().mean().item()
    assert len(network.stages) > 1
    assert distance(other, target).item() == pytest.approx(expected, rel=1e-4)
    assert distance(target, target).item() == 0


def test_gradients_reach_the_reconstruction_and_not_the_backbone(tmp_path: Path, images: np.ndarray) -> None:
    distance = FeatureDistance(save_backbone(tmp_path), images)
    target = to_signed(images)
    output = target.roll(1, dims=-1).requires_grad_()
    distance(output, target).backward()
    assert output.grad is not None
    assert output.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in distance.parameters())


def test_a_feature_that_never_changes_does_not_blow_up(tmp_path: Path) -> None:
    distance = FeatureDistance(save_backbone(tmp_path), np.full((3, 32, 32), 7, dtype=np.uint8))
    assert np.isfinite(distance(torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 32, 32)).item())


def test_what_does_not_fit_is_named(tmp_path: Path, images: np.ndarray) -> None:
    with pytest.raises(TailfillError, match=r"autoencoder\.perceptual\.weight is 0"):
        PerceptualConfig(weight=0)
    with pytest.raises(TailfillError, match=r"perceptual\.backbone is .*, which holds no ema\.safetensors"):
        FeatureDistance(tmp_path, images)
    with pytest.raises(TailfillError, match=r"autoencoder\.perceptual\.backbone: .* image_size 32; wanted: 16"):
        FeatureDistance(save_backbone(tmp_path), images[:, :16, :16])
