"""The critic's skill with its interval, and how images come to its size."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from synth.judging.critic import auroc_interval, resize_square


def naive_delong(logits: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """AUROC and its DeLong variance by the definition, pair by pair."""
    x, y = logits[targets == 1], logits[targets == 0]
    wins = np.array([[float(a > b) + 0.5 * float(a == b) for b in y] for a in x])
    return wins.mean(), wins.mean(1).var(ddof=1) / len(x) + wins.mean(0).var(ddof=1) / len(y)


def test_auroc_interval_is_delong_for_single_images() -> None:
    """Value as scikit-learn's, ties included; variance as DeLong's, up to the cross term of the clustered form."""
    rng = np.random.default_rng(4)
    targets = (np.arange(300) < 60).astype(int)
    logits = np.round(rng.normal(size=300) + targets, 1)
    auroc, low, high = auroc_interval(logits=logits, targets=targets, patients=np.arange(300))
    expected, variance = naive_delong(logits, targets)
    assert auroc == pytest.approx(expected) == pytest.approx(roc_auc_score(targets, logits))
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, 59) * np.sqrt(variance), rel=1e-9)


def test_auroc_interval_of_repeated_images() -> None:
    """Ten copies of each image add no information: clustered by patient the interval stays, unclustered it shrinks."""
    rng = np.random.default_rng(5)
    targets = (np.arange(200) < 40).astype(int)
    logits = rng.normal(size=200) + targets
    once = auroc_interval(logits=logits, targets=targets, patients=np.arange(200))
    copies = {"logits": np.repeat(logits, 10), "targets": np.repeat(targets, 10)}
    clustered = auroc_interval(**copies, patients=np.repeat(np.arange(200), 10))
    naive = auroc_interval(**copies, patients=np.arange(2000))
    np.testing.assert_allclose(clustered, once, rtol=1e-9)
    assert naive[2] - naive[1] < 0.5 * (once[2] - once[1])


def test_auroc_interval_covers() -> None:
    """95 % intervals hold the true AUROC of a shift by 1, Phi(1 / sqrt 2) = .760, in 88 to 100 % of 120 draws."""
    rng, targets = np.random.default_rng(6), np.arange(120) < 12
    held = 0
    for _ in range(120):
        logits = rng.normal(size=120) + targets
        _, low, high = auroc_interval(logits=logits, targets=targets.astype(int), patients=np.arange(120))
        held += low <= 0.7602 <= high
    assert held / 120 >= 0.88


def test_auroc_interval_at_the_edges() -> None:
    logits, targets = np.arange(10.0), (np.arange(10) > 6).astype(int)
    assert auroc_interval(logits=logits, targets=targets, patients=np.arange(10)) == (1, 1, 1)
    one_patient = np.array([0, 1, 2, 3, 4, 5, 6, 9, 9, 9])
    assert auroc_interval(logits=logits, targets=targets, patients=one_patient) == (1, 0, 1)
    with pytest.raises(ValueError, match="at least one of each"):
        auroc_interval(logits=logits, targets=np.zeros(10, int), patients=np.arange(10))


def test_resize_keeps_what_needs_no_resize_and_a_constant() -> None:
    images = np.random.default_rng(7).integers(0, 256, (3, 16, 16), dtype=np.uint8)
    assert resize_square(images, 16) is images
    assert (resize_square(np.full((2, 16, 16), 77, np.uint8), 24) == 77).all()
    assert resize_square(images, 24).shape == (3, 24, 24)
