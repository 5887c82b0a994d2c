"""The allocation against brute force, its limits against their definition, and every image charged once."""

import itertools

import numpy as np
import pytest

from prompts.allocate import (
    Allocation,
    Combinations,
    Limits,
    add_unseen,
    allocate,
    charge,
    combination_limits,
    find_combinations,
)


def brute_force(
    vectors: np.ndarray, scarce: list[int], targets: np.ndarray, limits: Limits
) -> tuple[int, int, int]:
    """The best (shortfall, images, padding) over every allocation there is."""
    best = None
    carries, others = vectors[:, scarce].astype(int), np.delete(vectors, scarce, axis=1).sum(axis=1)
    for counts in itertools.product(*(range(a, b + 1) for a, b in zip(limits.low, limits.high, strict=True))):
        carried = carries.T @ np.array(counts)
        score = (int(np.maximum(targets - carried, 0).sum()), sum(counts),
                 int(others @ np.array(counts) + np.maximum(carried - targets, 0).sum()))
        best = score if best is None or score < best else best
    assert best is not None
    return best


def score_of(
    allocation: Allocation, vectors: np.ndarray, scarce: list[int], targets: np.ndarray
) -> tuple[int, int, int]:
    others = np.delete(vectors, scarce, axis=1).sum(axis=1)
    surplus = np.maximum(allocation.carried - targets, 0).sum()
    return (int(np.maximum(targets - allocation.carried, 0).sum()), int(allocation.counts.sum()),
            int(others @ allocation.counts + surplus))


def random_case(rng: np.random.Generator) -> tuple[np.ndarray, list[int], np.ndarray, Limits]:
    scarce = [0, 2, 3]
    pool = np.array(list(itertools.product([False, True], repeat=5)))
    pool = pool[pool[:, scarce].any(axis=1)]
    vectors = pool[rng.choice(len(pool), 5, replace=False)]
    high = rng.integers(0, 5, 5)
    return vectors, scarce, rng.integers(0, 8, 3), Limits(low=np.minimum(rng.integers(0, 2, 5), high), high=high)


@pytest.mark.parametrize("seed", range(25))
def test_allocation_is_as_good_as_the_best_of_all(seed: int) -> None:
    vectors, scarce, targets, limits = random_case(np.random.default_rng(seed))
    found = allocate(vectors, scarce=scarce, targets=targets, limits=limits, weight=np.maximum(limits.high, 1.0))
    assert (found.counts >= limits.low).all()
    assert (found.counts <= limits.high).all()
    np.testing.assert_array_equal(found.carried, vectors[:, scarce].T.astype(int) @ found.counts)
    assert score_of(found, vectors, scarce, targets) == brute_force(vectors, scarce, targets, limits)


@pytest.mark.parametrize("seed", range(5))
def test_shortfall_is_what_the_limits_leave(seed: int) -> None:
    vectors, scarce, targets, limits = random_case(np.random.default_rng(seed))
    found = allocate(vectors, scarce=scarce, targets=targets + 20, limits=limits, weight=np.ones(5))
    np.testing.assert_array_equal(found.reachable, vectors[:, scarce].T.astype(int) @ limits.high)
    np.testing.assert_array_equal(found.carried, found.reachable)


def test_one_image_pays_into_several_classes_and_head_findings_are_avoided() -> None:
    #                    scarce a, scarce b, head
    vectors = np.array([[1, 0, 0], [1, 0, 1], [0, 1, 0], [1, 1, 0], [1, 1, 1]], bool)
    wide = Limits(low=np.zeros(5, int), high=np.full(5, 100))
    found = allocate(vectors, scarce=[0, 1], targets=np.array([10, 7]), limits=wide, weight=np.ones(5))
    assert found.counts.tolist() == [3, 0, 0, 7, 0]


def test_interchangeable_combinations_share_as_in_reality() -> None:
    vectors = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]], bool)
    wide = Limits(low=np.zeros(3, int), high=np.full(3, 100))
    found = allocate(vectors, scarce=[0], targets=np.array([60]), limits=wide, weight=np.array([1.0, 2.0, 3.0]))
    assert found.counts.tolist() == [10, 20, 30]


def combinations_of(vectors: list[list[int]], weight: list[int]) -> Combinations:
    edges = np.cumsum([0, *weight])
    members = [np.arange(a, b) for a, b in itertools.pairwise(edges)]
    return Combinations(vectors=np.array(vectors, bool), members=members, weight=np.array(weight, float))


@pytest.mark.parametrize("spread", [1.0, 1.5, 3.0])
def test_shares_stay_within_the_spread_and_targets_stay_in_reach(spread: float) -> None:
    real = combinations_of([[1, 0, 0], [1, 0, 1], [1, 1, 0], [0, 1, 0], [0, 1, 1]], [4, 2, 1, 30, 10])
    targets = np.array([70, 82])
    limits = combination_limits(real, [0, 1], targets, spread=spread, max_repeat=None)
    found = allocate(real.vectors, scarce=[0, 1], targets=targets, limits=limits, weight=real.weight)
    assert (found.carried >= targets).all()
    rate = targets / (real.vectors[:, :2].T @ real.weight)
    for k, n in enumerate(found.counts):
        own = rate[real.vectors[k, :2]]
        assert np.floor(real.weight[k] * own.min() / spread) <= n <= np.ceil(real.weight[k] * own.max() * spread)
    assert (real.vectors[:, :2].T @ limits.low <= targets).all()


def test_max_repeat_bounds_the_images_per_real_image() -> None:
    real = combinations_of([[1, 0], [1, 1]], [3, 2])
    limits = combination_limits(real, [0], np.array([100]), spread=2.0, max_repeat=4)
    assert limits.high.tolist() == [12, 8]
    found = allocate(real.vectors, scarce=[0], targets=np.array([100]), limits=limits, weight=real.weight)
    assert found.reachable.tolist() == found.carried.tolist() == [20]


def test_combinations_are_the_distinct_vectors_of_scarce_images() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.random((300, 5)) < 0.3
    found = find_combinations(matrix, [1, 4])
    assert len(np.unique(found.vectors, axis=0)) == len(found.vectors)
    for vector, members in zip(found.vectors, found.members, strict=True):
        assert (matrix[members] == vector).all()
    assert sorted(np.concatenate(found.members)) == np.flatnonzero(matrix[:, [1, 4]].any(axis=1)).tolist()
    assert found.weight.sum() == matrix[:, [1, 4]].any(axis=1).sum()
    assert len(find_combinations(matrix & False, [1]).vectors) == 0


def test_unseen_combinations_are_unseen_have_no_member_and_no_lower_limit() -> None:
    matrix = np.array([[1, 0, 0, 1]] * 6 + [[0, 1, 0, 0]] * 4 + [[0, 0, 0, 1]] * 2, bool)
    seen = find_combinations(matrix, [0, 1, 2])
    both = add_unseen(seen, matrix, [0, 1, 2])
    new = both.vectors[len(seen.vectors):].astype(int).tolist()
    assert new == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0]]
    assert all(len(members) == 0 for members in both.members[len(seen.vectors):])
    assert both.weight[len(seen.vectors) + 1] == pytest.approx(6 * 4 / 12)
    limits = combination_limits(both, [0, 1, 2], np.array([12, 8, 5]), spread=2.0, max_repeat=None)
    assert (limits.low[len(seen.vectors):] == 0).all()
    assert both.vectors[:, 2] @ limits.high >= 5


def test_every_image_is_charged_once_to_a_finding_that_it_carries_and_needs_are_balanced() -> None:
    carries = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1], [1, 1, 1]], bool)
    counts, targets = np.array([5, 6, 7, 8]), np.array([19, 21, 15])
    charged = charge(carries, counts, targets)
    assert len(charged) == counts.sum()
    assert carries[np.repeat(np.arange(4), counts), charged].all()
    assert (np.bincount(charged, minlength=3) <= targets).all()
    remaining = targets - np.bincount(charged, minlength=3)
    assert np.ptp(remaining) <= 5
