"""Realism: distances against references, thresholds that hold what they promise, and images that must fail."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from constructed_evidence import evidence_of, images_of
from scipy.spatial.distance import cdist
from sklearn.covariance import LedoitWolf

from synth.judging.evidence import NEGATIVE, Images
from synth.judging.realism import (
    BLOCK,
    Gaussian,
    held_back_quantile,
    kinds,
    neighbour_distances,
    neighbourhood,
    realism,
    thinned,
)
from synth.judging.rules import Rule, worst_margin

DIMENSIONS = 12
SCALES = np.linspace(0.3, 3, DIMENSIONS)


def space(n: int, *, seed: int, carriers: int = 0) -> np.ndarray:
    """Features of real images; the first ``carriers`` lie elsewhere along the last axis, as those of a finding do."""
    features = np.random.default_rng(seed).normal(size=(n, DIMENSIONS)) * SCALES
    features[:carriers, -1] += 12
    return features


def real(n: int, *, seed: int, carriers: int, images_per_patient: int = 1) -> Images:
    patients = np.array([f"{seed}:{i // images_per_patient}" for i in range(n)])
    return images_of(space(n, seed=seed, carriers=carriers), positive={"Edema": np.arange(carriers)}, patients=patients)


def test_gaussian_is_ledoit_and_wolf() -> None:
    """Distances and log-likelihoods as scikit-learn's, up to the constant; batches of any size give the same."""
    train, samples = space(300, seed=0), space(50, seed=1) * 2
    reference = LedoitWolf().fit(train)
    gaussian = Gaussian.fit(train)
    np.testing.assert_allclose(gaussian.distance(samples), reference.mahalanobis(samples) / DIMENSIONS, rtol=1e-4)
    np.testing.assert_allclose(gaussian.distance(samples[7:9]), gaussian.distance(samples)[7:9], rtol=1e-12)
    assert gaussian.distance(samples[:0]).shape == (0,)


def test_distances_of_images_on_disk_hold_a_block_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synth.judging.realism.CHUNK", 1 << 14)
    samples = np.random.default_rng(0).normal(size=(20_000, 64)).astype(np.float32)
    gaussian = Gaussian(mean=np.full(64, 0.25), root=np.diag(np.linspace(0.5, 2, 64)))
    tracemalloc.start()
    found = gaussian.distance(samples)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < samples.nbytes / 4
    np.testing.assert_allclose(found, (((samples - 0.25) / np.linspace(0.5, 2, 64)) ** 2).mean(axis=1), rtol=1e-5)


def test_gaussian_bears_features_that_never_vary() -> None:
    train = np.pad(space(40, seed=0), ((0, 0), (0, 3)), constant_values=5.0)
    assert np.isfinite(Gaussian.fit(train).distance(train)).all()
    assert np.isfinite(Gaussian.fit(np.ones((6, 3))).distance(np.ones((2, 3)))).all()


def test_neighbours_are_those_of_brute_force() -> None:
    """Against scipy, patients of one's own left out."""
    references, queries = space(90, seed=0), space(40, seed=1)
    owners, patients = np.arange(90) % 30, np.arange(40) % 30
    expected = cdist(queries, references)
    expected[patients[:, None] == owners] = np.inf
    found = neighbour_distances(queries, references, k=4, patients=patients, reference_patients=owners)
    np.testing.assert_allclose(found, np.sort(expected, axis=1)[:, :4], rtol=1e-6)


@pytest.mark.parametrize(("kind", "tolerance"), [(np.float64, 1e-9), (np.float32, 1e-4)])
def test_neighbours_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch, kind: type, tolerance: float) -> None:
    references, queries, who = space(90, seed=0).astype(kind), space(40, seed=1).astype(kind), np.arange(130)
    whole = neighbour_distances(queries, references, k=2, patients=who[:40], reference_patients=who[40:])
    monkeypatch.setattr("synth.judging.realism.BLOCK", 7)
    assert BLOCK > 90
    parts = neighbour_distances(queries, references, k=2, patients=who[:40], reference_patients=who[40:])
    np.testing.assert_allclose(parts, whole, rtol=tolerance)


def test_neighbours_need_no_more_memory_for_more_references(tmp_path: Path) -> None:
    queries, peaks = np.zeros((10, 256), np.float32), []
    for n in (2 * BLOCK, 8 * BLOCK):
        references = np.memmap(tmp_path / f"{n}", dtype=np.float32, mode="w+", shape=(n, 256))
        tracemalloc.start()
        neighbour_distances(queries, references, k=1, patients=-np.ones(10, int), reference_patients=np.arange(n))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 6 * BLOCK * 256 * 4 / 4  # a quarter of what the further references hold


def test_too_few_neighbours_are_infinitely_far() -> None:
    one = np.zeros((1, 3))
    found = neighbour_distances(one, np.ones((2, 3)), k=3, patients=np.array(["a"]),
                                reference_patients=np.array(["a", "b"]))
    assert found[0, 0] == pytest.approx(3**0.5)
    assert np.isinf(found[0, 1:]).all()
    nobody = neighbour_distances(one, one[:0], k=1, patients=np.array(["a"]), reference_patients=one[:0, 0])
    assert np.isinf(nobody).all()


@pytest.mark.parametrize(("passing", "least"), [(0.95, 19), (0.98, 49), (0.5, 1), (0.995, 199)])
def test_held_back_quantile_exists_from_the_number_that_can_promise_it(passing: float, least: int) -> None:
    scores = np.random.default_rng(0).normal(size=least)
    assert held_back_quantile(scores, passing) == scores.max()
    assert held_back_quantile(scores[1:], passing) is None


def test_held_back_quantile_promises_its_share() -> None:
    """Of a fresh score, over 2,000 draws of 30 scores: at least 90 %, and no more than one rank above (93.5 %)."""
    draws = np.random.default_rng(1).normal(size=(2000, 31))
    passed = [draw[30] <= held_back_quantile(draw[:30], 0.9) for draw in draws]
    assert 0.88 <= np.mean(passed) <= 0.955


@pytest.mark.parametrize(("rule", "passing"), [(realism, 0.9), (neighbourhood, 0.9)])
@pytest.mark.parametrize("n_val", [60, 3], ids=["validation", "train without own patient"])
def test_real_images_of_the_kind_pass_at_the_stated_share(rule: Rule, passing: float, n_val: int) -> None:
    """Fresh real carriers, mean over ten draws of the real sets; train holds three images of each patient."""
    shares = []
    for draw in range(10):
        train = real(400, seed=10 * draw, carriers=60, images_per_patient=3)
        val = real(200, seed=10 * draw + 1, carriers=n_val)
        fresh = space(300, seed=10 * draw + 2, carriers=300)
        (criterion,) = rule(evidence_of(fresh, train, val), passing=passing)
        assert ("and train images" in criterion.source) == (n_val == 3)
        shares.append((worst_margin([criterion], 300) >= 0).mean())
    assert np.mean(shares) == pytest.approx(passing, abs=0.04)


def test_each_rule_sees_what_it_is_for() -> None:
    """Off all real images: both. A fair image without the finding: the neighbourhood alone. A right one: neither."""
    train, val = real(600, seed=0, carriers=80), real(300, seed=1, carriers=60)
    made = np.concatenate([space(20, seed=2, carriers=20), space(20, seed=3, carriers=20) + 30 * SCALES[::-1],
                           space(20, seed=4)])
    case = evidence_of(made, train, val)
    by_realism, by_neighbours = (worst_margin(rule(case), 60) < 0 for rule in (realism, neighbourhood))
    assert by_realism[:20].mean() <= 0.15
    assert by_neighbours[:20].mean() <= 0.15
    assert by_realism[20:40].all()
    assert by_neighbours[20:].mean() >= 0.9
    assert by_realism[40:].mean() <= 0.1


def test_repeated_patients_do_not_tighten_the_threshold() -> None:
    """Train images that are the same patient's copies: judged without their patient they are as far as anybody's."""
    once = real(40, seed=0, carriers=40)
    copies = images_of(np.repeat(space(40, seed=0, carriers=40), 3, axis=0), positive={"Edema": np.arange(120)},
                       patients=np.repeat(once.patients, 3))
    val = real(50, seed=1, carriers=0)
    case_once, case_copies = (evidence_of(space(5, seed=2, carriers=5), train, val) for train in (once, copies))
    (alone,), (tripled,) = neighbourhood(case_once, k=1, passing=0.9), neighbourhood(case_copies, k=1, passing=0.9)
    assert tripled.threshold is not None
    assert tripled.threshold == pytest.approx(alone.threshold, rel=0.05)
    assert tripled.threshold > 1


def test_a_kind_with_few_real_images_is_not_judged() -> None:
    train, val = real(200, seed=0, carriers=5), real(100, seed=1, carriers=1)
    for rule in (realism, neighbourhood):
        (criterion,) = rule(evidence_of(space(4, seed=2), train, val))
        assert criterion.threshold is None
        assert "6 real images of the kind are too few" in str(criterion.reason)
        assert np.isnan(worst_margin([criterion], 4)).all()


def test_negatives_are_compared_with_images_without_the_finding() -> None:
    train, val = real(300, seed=0, carriers=60), real(300, seed=1, carriers=60)
    charged = np.array(["Edema", NEGATIVE] * 10, dtype=object)
    carrying = np.concatenate([space(10, seed=2, carriers=10), space(10, seed=2)])
    made = np.empty_like(carrying)
    made[::2], made[1::2] = carrying[:10], carrying[10:]
    case = evidence_of(made, train, val, charged=charged)
    assert (worst_margin(neighbourhood(case), 20) >= 0).mean() >= 0.8
    swapped = evidence_of(made, train, val, charged=charged[::-1].copy())
    assert (worst_margin(neighbourhood(swapped), 20)[::2] < 0).all()
    assert [kind.label for kind in kinds(case)] == ["Edema", NEGATIVE]
    assert (np.sum([kind.made for kind in kinds(case)], axis=0) == 1).all()


def test_margins_do_not_depend_on_the_other_images() -> None:
    train, val = real(300, seed=0, carriers=60), real(300, seed=1, carriers=60)
    made = space(8, seed=2, carriers=8)
    for rule in (realism, neighbourhood):
        together = worst_margin(rule(evidence_of(made, train, val)), 8)
        alone = [worst_margin(rule(evidence_of(made[i: i + 1], train, val)), 1)[0] for i in range(8)]
        np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-5)


def test_thinning_keeps_order_and_number() -> None:
    assert thinned(np.arange(7), at_most=10).tolist() == list(range(7))
    assert thinned(np.arange(100), at_most=3).tolist() == [0, 49, 99]
    assert len(thinned(np.arange(0), at_most=3)) == 0
