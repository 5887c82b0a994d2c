"""Diversity: one of each pair of near-duplicates goes, the worse one, and nothing that is no duplicate."""

import numpy as np
import pytest
from constructed_evidence import evidence_of, images_of

from synth.judging.diversity import DECIDED, distance_to_better, diversity
from synth.judging.evidence import NEGATIVE, Evidence
from synth.judging.rules import worst_margin

DIMENSIONS = 8


def space(n: int, *, seed: int, spread: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, DIMENSIONS)) * spread


TRAIN = images_of(space(400, seed=0))


def case_of(made: np.ndarray, *, charged: np.ndarray | None = None, standing: np.ndarray | None = None) -> Evidence:
    return evidence_of(made, TRAIN, TRAIN, charged="Edema" if charged is None else charged, standing=standing)


def dropped(case: Evidence) -> np.ndarray:
    return np.asarray(worst_margin(diversity(case), len(case.made)) < 0)


def naive(ranked: np.ndarray, threshold: float) -> list[int]:
    """Which images stay, one by one, by definition."""
    staying: list[int] = []
    for row in range(len(ranked)):
        if all(np.linalg.norm(ranked[row] - ranked[other]) >= threshold for other in staying):
            staying.append(row)
    return staying


def test_the_better_one_of_a_pair_stays() -> None:
    """20 images, and a copy of each a little further out: all copies go, whichever comes first in the table."""
    first = space(20, seed=1, spread=2.0)
    copies = first * 1.01
    for made, gone in ((np.concatenate([first, copies]), slice(20, 40)), (np.concatenate([copies, first]), slice(20))):
        expected = np.zeros(40, dtype=bool)
        expected[gone] = True
        np.testing.assert_array_equal(dropped(case_of(made)), expected)


def test_what_stays_does_not_depend_on_the_order_of_the_rows() -> None:
    made = np.round(space(300, seed=2, spread=0.4), 1)
    order = np.random.default_rng(3).permutation(300)
    whole = dropped(case_of(made))
    assert 20 < whole.sum() < 290
    np.testing.assert_array_equal(dropped(case_of(made[order])), whole[order])


def test_greedy_over_blocks_is_greedy_one_by_one() -> None:
    """More than two blocks; the distance given is that to the nearest better image that stays."""
    ranked = space(2 * DECIDED + 60, seed=4)
    nearest = distance_to_better(ranked, np.arange(len(ranked)), threshold=1.5)
    staying = naive(ranked, 1.5)
    np.testing.assert_array_equal(np.flatnonzero(nearest >= 1.5), staying)
    assert np.isinf(nearest[0])
    for row in (5, DECIDED + 3, 2 * DECIDED + 59):
        better = [other for other in staying if other < row]
        assert nearest[row] == pytest.approx(np.linalg.norm(ranked[better] - ranked[row], axis=1).min(), rel=1e-5)


def test_those_that_stay_are_no_near_duplicates_and_those_that_go_are() -> None:
    made = space(200, seed=5, spread=0.5)
    (criterion,) = diversity(case_of(made))
    assert criterion.threshold is not None
    gone = worst_margin([criterion], 200) < 0
    stay = made[~gone]
    gaps = np.linalg.norm(stay[:, None] - stay, axis=2) + np.eye(len(stay)) * 99
    assert gaps.min() >= criterion.threshold * (1 - 1e-5)
    assert all(np.linalg.norm(stay - image, axis=1).min() < criterion.threshold * (1 + 1e-5) for image in made[gone])


def test_threshold_is_the_real_quantile_over_different_patients() -> None:
    """Images as far from each other as real ones are: about 1 % go. Copies of one patient's image do not count."""
    assert dropped(case_of(space(400, seed=6))).mean() <= 0.03
    once = images_of(space(200, seed=0))
    twice = images_of(np.repeat(space(200, seed=0), 2, axis=0), patients=np.repeat(once.patients, 2))
    (with_copies,), (alone,) = (diversity(evidence_of(space(4, seed=1), real, real)) for real in (twice, once))
    assert with_copies.threshold == pytest.approx(alone.threshold, rel=0.05)


def test_a_negative_may_resemble_its_positive() -> None:
    """Pairs that are alike stay; two alike negatives do not, nor do two alike positives."""
    made = np.repeat(space(30, seed=7, spread=2.0), 2, axis=0)
    assert not dropped(case_of(made, charged=np.array(["Edema", NEGATIVE] * 30, dtype=object))).any()
    for alone in ("Edema", NEGATIVE):
        assert dropped(case_of(made, charged=np.array([alone] * 60, dtype=object))).sum() == 30


def test_an_image_that_fell_before_takes_nobody_with_it() -> None:
    """The better one of each pair was dropped by an earlier rule: the other one stays, and it is not judged again."""
    first = space(20, seed=1, spread=2.0)
    standing = np.repeat([False, True], 20)
    case = case_of(np.concatenate([first, first * 1.01]), standing=standing)
    margins = worst_margin(diversity(case), 40)
    assert not (margins < 0).any()
    assert np.isnan(margins[:20]).all()


def test_too_few_real_images_judge_nothing() -> None:
    few = images_of(space(50, seed=0))
    (criterion,) = diversity(evidence_of(np.zeros((5, DIMENSIONS)), few, few))
    assert criterion.threshold is None
    assert "50 real train images" in str(criterion.reason)
