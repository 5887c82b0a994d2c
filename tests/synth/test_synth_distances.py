"""FID against torchmetrics, KID against a double loop and torch-fidelity, and moments that merge exactly."""

import tracemalloc
from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_kid import kernel_mmd
from torchmetrics.image.fid import FrechetInceptionDistance

from synth.measuring import distances
from synth.measuring.distances import Moments, frechet_distance, kernel_distance, kernel_spread


def two_sets(n: int, m: int, d: int, shift: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n + 10 * m + 100 * d)
    mix = rng.normal(size=(d, d)) / np.sqrt(d)
    return rng.normal(size=(n, d)) @ mix, rng.normal(size=(m, d)) + shift


class Identity(torch.nn.Module):
    """Takes features for images; torchmetrics asks for ``num_features``."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.num_features = d

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize(("n", "m", "d"), [(200, 150, 16), (50, 300, 16), (400, 400, 48)])
def test_fid_is_torchmetrics(n: int, m: int, d: int) -> None:
    real, fake = two_sets(n, m, d)
    metric = FrechetInceptionDistance(feature=Identity(d)).set_dtype(torch.float64)
    metric.update(torch.from_numpy(real), real=True)
    metric.update(torch.from_numpy(fake), real=False)
    assert frechet_distance(real=real, fake=fake) == pytest.approx(float(metric.compute()), rel=1e-8)


def test_fid_of_fewer_images_than_features() -> None:
    """Rank-deficient covariances: against the definition, with the square root of S1 S2 by its eigenvalues."""
    real, fake = two_sets(12, 9, 30)
    s1, s2 = np.cov(real.T), np.cov(fake.T)
    root = np.sqrt(np.linalg.eigvals(s1 @ s2).astype(complex)).real.sum()
    expected = ((real.mean(0) - fake.mean(0)) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * root
    assert frechet_distance(real=real, fake=fake) == pytest.approx(expected, rel=1e-5)


def test_fid_of_known_gaussians() -> None:
    """A shift by v costs |v|^2; a scaling by c costs (c - 1)^2 of the variance."""
    real, _ = two_sets(300, 2, 10)
    assert frechet_distance(real=real, fake=real) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(real=real, fake=real + 2.0) == pytest.approx(40)
    spread = real.var(axis=0, ddof=1).sum()
    centred = real - real.mean(axis=0)
    assert frechet_distance(real=centred, fake=3 * centred) == pytest.approx(4 * spread)


@given(n=st.integers(2, 9), m=st.integers(2, 9), d=st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_kid_is_the_double_loop(n: int, m: int, d: int) -> None:
    real, fake = two_sets(n, m, d)

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / d + 1) ** 3)

    within = sum(k(real[i], real[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within += sum(k(fake[i], fake[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    across = sum(k(x, y) for x in real for y in fake) / (n * m)
    assert kernel_distance(real=real, fake=fake) == pytest.approx(within - 2 * across, rel=1e-9, abs=1e-9)


def test_kid_is_torch_fidelity() -> None:
    real, fake = two_sets(60, 60, 12)
    expected = kernel_mmd(
        real, fake, kid_kernel="poly", kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1.0)
    assert kernel_distance(real=real, fake=fake) == pytest.approx(float(expected), rel=1e-9)


def test_kid_is_unbiased_where_fid_is_not() -> None:
    """Equal distributions, small N: KID's mean is within 4 standard errors of 0, FID is far above it."""
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(size=(20, 8)), rng.normal(size=(20, 8))) for _ in range(200)]
    kid = [kernel_distance(real=a, fake=b) for a, b in pairs]
    assert abs(np.mean(kid)) < 4 * np.std(kid) / np.sqrt(len(kid))
    assert np.mean([frechet_distance(real=a, fake=b) for a, b in pairs]) > 0.5


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_distances(distance: object) -> None:
    """Symmetric, blind to the order of the rows, larger for a larger shift, keyword-only."""
    real, fake = two_sets(80, 70, 9)
    value = distance(real=real, fake=fake)  # type: ignore[operator]
    assert distance(real=fake, fake=real) == pytest.approx(value)  # type: ignore[operator]
    assert distance(real=real[::-1], fake=np.roll(fake, 7, axis=0)) == pytest.approx(value)  # type: ignore[operator]
    assert distance(real=real, fake=fake + 1) > value  # type: ignore[operator]
    with pytest.raises(TypeError):
        distance(real, fake)  # type: ignore[operator]
    with pytest.raises(ValueError, match="wanted"):
        distance(real=real[:1], fake=fake)  # type: ignore[operator]


def test_subset_smaller_than_both_sets() -> None:
    real, fake = two_sets(30, 20, 4)
    rng = np.random.default_rng(0)
    assert kernel_spread(real=real, fake=fake, subset=19, rng=rng) > 0
    with pytest.raises(ValueError, match="wanted: 2 to 19"):
        kernel_spread(real=real, fake=fake, subset=20, rng=rng)


def test_spread_shrinks_with_the_subset() -> None:
    real, fake = two_sets(400, 400, 6)
    small, large = (kernel_spread(real=real, fake=fake, subset=n, rng=np.random.default_rng(0)) for n in (20, 100))
    assert large < 0.7 * small


@given(cuts=st.lists(st.integers(1, 119), max_size=6), order=st.integers(0, 99), d=st.sampled_from([5, 40, 200]))
@settings(max_examples=25, deadline=None)
def test_merged_is_pooled(cuts: list[int], order: int, d: int) -> None:
    """Any shards, merged in any order, single images and more features than images among them."""
    features = two_sets(120, 2, d)[0] * 3 + 50
    shards = [Moments.of(part) for part in np.split(features, sorted(set(cuts)))]
    merged = reduce(Moments.merge, (shards[i] for i in np.random.default_rng(order).permutation(len(shards))))
    assert merged.n == 120
    np.testing.assert_allclose(merged.mean, features.mean(axis=0), rtol=1e-12)
    scatter = np.cov(features.T, ddof=1) * 119
    np.testing.assert_allclose(merged.root.T @ merged.root, scatter, atol=1e-9 * scatter.max())


def test_fid_of_merged_shards_is_that_of_the_pool_and_not_their_mean() -> None:
    real, fake = two_sets(600, 600, 12)
    pooled = frechet_distance(real=real, fake=fake)
    shards = [(Moments.of(r), Moments.of(f)) for r, f in zip(np.split(real, 8), np.split(fake, 8), strict=True)]
    merged = [reduce(Moments.merge, (shard[side] for shard in shards)) for side in (0, 1)]
    assert frechet_distance(real=merged[0], fake=merged[1]) == pytest.approx(pooled, rel=1e-9)
    averaged = np.mean([frechet_distance(real=r, fake=f) for r, f in shards])
    assert averaged > pooled * 1.05


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = two_sets(90, 70, 20)
    before = [distance(real=real, fake=fake) for distance in (frechet_distance, kernel_distance)]
    monkeypatch.setattr(distances, "CHUNK", 7)
    monkeypatch.setattr(distances, "TILE", 7 * 80)
    after = [distance(real=real, fake=fake) for distance in (frechet_distance, kernel_distance)]
    np.testing.assert_allclose(after, before, rtol=1e-9)


def test_memory_does_not_grow_with_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = two_sets(1200, 1200, 4)
    monkeypatch.setattr(distances, "TILE", 40_000)
    tracemalloc.start()
    kernel_distance(real=real, fake=fake)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1200 * 1200 * 8 / 4


def test_a_large_mean_costs_no_digits() -> None:
    """The sums of squares would lose them: float32 features around 1,000, spread by 0.01."""
    features = (1000 + 0.01 * np.random.default_rng(0).normal(size=(500, 6))).astype(np.float32)
    root = Moments.of(features).root
    exact = features.astype(np.float64) - features.astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(root.T @ root, exact.T @ exact, rtol=1e-9, atol=1e-12)


def test_other_moments_are_refused() -> None:
    real, fake = two_sets(9, 9, 4)
    with pytest.raises(ValueError, match="wanted: the same"):
        Moments.of(real).merge(Moments.of(fake[:, :3]))
    with pytest.raises(ValueError, match="n >= 1"):
        Moments.of(real[:0])
