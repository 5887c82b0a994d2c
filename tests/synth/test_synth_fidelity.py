"""FID against torchmetrics, KID against a double loop and torch-fidelity, and what the table promises."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_kid import kernel_mmd
from torchmetrics.image.fid import FrechetInceptionDistance

from synth.measuring import fidelity
from synth.measuring.fidelity import (
    FLOOR,
    MIN_KID,
    Comparison,
    frechet_distance,
    halve_patients,
    kernel_distance,
    kernel_spread,
    measure,
)


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


@given(sizes=st.lists(st.integers(1, 7), min_size=2, max_size=40), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_halves_share_no_patient(sizes: list[int], seed: int) -> None:
    patients = pd.Series([f"p{i}" for i, size in enumerate(sizes) for _ in range(size)])
    half = halve_patients(patients, rng=np.random.default_rng(seed))
    assert not set(patients[half]) & set(patients[~half])
    assert abs(int(half.sum()) - len(patients) / 2) <= max(sizes)


def table(n_real: int, made: int, kept: int, monkeypatch: pytest.MonkeyPatch, min_fid: int = 40) -> pd.DataFrame:
    monkeypatch.setattr(fidelity, "MIN_FID", min_fid)
    rng = np.random.default_rng(0)
    keep = np.arange(made) < kept
    comparison = Comparison(name="all", real=np.ones(n_real, bool), sets={"made": np.ones(made, bool), "kept": keep})
    return measure(
        real=rng.normal(size=(n_real, 5)), fake=rng.normal(size=(made, 5)) + 1, comparisons=[comparison],
        patients=pd.Series([f"p{i // 2}" for i in range(n_real)]), max_n=100, kid_subset=30, rng=rng,
    ).set_index(["metric", "set"])


def test_table_at_one_n(monkeypatch: pytest.MonkeyPatch) -> None:
    """FID of both sets and of the floor at the same N; the sets lie above the floor."""
    frame = table(300, 120, 60, monkeypatch)
    fid = frame.loc["FID"]
    assert set(fid["n_real"]) == set(fid["n_synthetic"]) == {60}
    assert fid["reason"].isna().all()
    for metric in ("FID", "KID"):
        values = frame.loc[metric]["value"]
        assert min(values["made"], values["kept"]) > values[FLOOR]
    assert set(frame.loc["KID"]["subset"]) == {30}


def test_small_sets_are_null_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = table(300, 120, MIN_KID - 1, monkeypatch)
    for metric in ("FID", "KID"):
        assert pd.isna(frame.loc[(metric, "kept"), "value"])
        assert str(MIN_KID - 1) in frame.loc[(metric, "kept"), "reason"]
        assert frame.loc[(metric, "made"), "value"] > 0
    assert frame.loc[("FID", "made"), "n_synthetic"] == 100  # the kept ones are too few to have a say in N


def test_few_real_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Halves too small for a floor: null, never a floor at another N."""
    frame = table(12, 120, 60, monkeypatch)
    assert frame.loc["FID"]["value"].isna().all()
    assert frame.loc[("KID", "made"), "value"] > 0
    assert pd.isna(frame.loc[("KID", FLOOR), "value"])


def test_no_images_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = table(300, 120, 0, monkeypatch)
    assert frame.loc[("KID", "kept"), "n_synthetic"] == 0
    assert pd.notna(frame.loc[("KID", "kept"), "reason"])
