"""Precision and recall against torch-fidelity, density and coverage against prdc, and what they say of known sets."""

import tracemalloc

import numpy as np
import pytest
import torch
from prdc import compute_prdc
from torch_fidelity.metric_prc import prc_features_to_metric

from synth.measuring import manifold as module
from synth.measuring.manifold import manifold, radii


def gaussians(n: int, m: int, d: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n + m + d)
    return rng.normal(size=(n, d)).astype(np.float32), (rng.normal(size=(m, d)) + shift).astype(np.float32)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(("n", "m", "d", "shift"), [(120, 90, 6, 0.5), (60, 200, 64, 0.1), (150, 150, 2, 2.0)])
def test_is_torch_fidelity_and_prdc(
    n: int, m: int, d: int, shift: float, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, fake = gaussians(n, m, d, shift)
    monkeypatch.setattr(module, "TILE", 7 * m)
    found = manifold(real=real, fake=fake, k=k)
    peer = prc_features_to_metric(torch.from_numpy(fake).double(), torch.from_numpy(real).double(),
                                  prc_neighborhood=k, prc_batch_size=50, save_cpu_ram=False, verbose=False)
    assert (found["precision"], found["recall"]) == pytest.approx((peer["precision"], peer["recall"]), abs=1e-6)
    assert found == pytest.approx(compute_prdc(real.astype(float), fake.astype(float), nearest_k=k), abs=1e-9)


def test_dropped_modes_keep_precision_and_lose_recall() -> None:
    """The convention: two real modes, fakes of one of them. And the other way round for fakes of a mode too many."""
    rng = np.random.default_rng(0)
    one, two, fake = (rng.normal(size=(200, 8)) + shift for shift in (0, 20, 0))
    both = np.concatenate([one, two])
    dropped = manifold(real=both, fake=np.concatenate([fake, rng.normal(size=(200, 8))]))
    assert dropped["precision"] > 0.8
    assert dropped["recall"] < 0.6
    assert dropped["coverage"] < 0.6
    added = manifold(real=np.concatenate([one, rng.normal(size=(200, 8))]), fake=both)
    assert added["precision"] < 0.6
    assert added["recall"] > 0.8
    assert added["density"] < 0.8 * dropped["density"]


def test_equal_distributions_have_the_expected_coverage_and_density() -> None:
    """Naeem 2020, lemmas 1 and 2: density 1; coverage 1 - [(n - 1) ... (n - k)] / [(2n - 1) ... (2n - k)]."""
    n, k = 400, 5
    values = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        values.append(manifold(real=rng.normal(size=(n, 16)), fake=rng.normal(size=(n, 16)), k=k))
    expected = 1 - np.prod([(n - i) / (2 * n - i) for i in range(1, k + 1)])
    assert np.mean([v["coverage"] for v in values]) == pytest.approx(expected, abs=0.02)
    assert np.mean([v["density"] for v in values]) == pytest.approx(1, abs=0.06)


def test_one_outlier_does_not_fool_density_and_coverage() -> None:
    """Naeem 2020, figure 3: a real outlier's wide ball holds fakes that lie far from all other real images."""
    rng = np.random.default_rng(1)
    real = np.concatenate([rng.normal(size=(300, 4)), np.full((1, 4), 8.0)])
    fake = rng.normal(size=(300, 4)) + 6.0
    found = manifold(real=real, fake=fake)
    assert found["precision"] > 0.9
    assert found["density"] < 0.4
    assert found["coverage"] < 0.1


def test_far_apart_is_zero_and_copies_are_one() -> None:
    real, fake = gaussians(60, 70, 5)
    assert set(manifold(real=real, fake=fake + 100).values()) == {0.0}
    copies = manifold(real=real, fake=real)
    assert (copies["precision"], copies["recall"], copies["coverage"]) == (1, 1, 1)


def test_roles_swap_and_rows_and_place_do_not_matter() -> None:
    """Recall is precision with the roles swapped; neither the order of rows nor a common shift of all changes it."""
    real, fake = gaussians(80, 110, 6, 0.7)
    found, swapped = manifold(real=real, fake=fake), manifold(real=fake, fake=real)
    assert (found["precision"], found["recall"]) == pytest.approx((swapped["recall"], swapped["precision"]))
    moved = manifold(real=real[::-1].astype(float) + 1e4, fake=np.roll(fake, 9, axis=0).astype(float) + 1e4)
    assert moved == pytest.approx(found)


def test_radii_do_not_count_the_image_itself() -> None:
    line = np.array([[0.0], [1.0], [3.0], [7.0]])
    np.testing.assert_allclose(radii(line, 1), [1, 1, 4, 16])
    np.testing.assert_allclose(radii(line, 2), [9, 4, 9, 36])
    np.testing.assert_allclose(radii(np.repeat(line, 2, axis=0), 1), 0)


def test_memory_does_not_grow_with_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = gaussians(1200, 1200, 4)
    monkeypatch.setattr(module, "TILE", 40_000)
    tracemalloc.start()
    manifold(real=real, fake=fake)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1200 * 1200 * 8 / 4


@pytest.mark.parametrize(("n", "m", "k"), [(5, 9, 5), (9, 5, 5), (9, 9, 0)])
def test_too_few_images_are_refused(n: int, m: int, k: int) -> None:
    real, fake = gaussians(n, m, 3)
    with pytest.raises(ValueError, match="wanted"):
        manifold(real=real, fake=fake, k=k)
    with pytest.raises(TypeError):
        manifold(real, fake)  # type: ignore[misc]
