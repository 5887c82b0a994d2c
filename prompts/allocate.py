"""One image pays into several classes: how many images of each combination of findings to ask for.

Candidates are the distinct label vectors that real train images with a scarce finding carry. The problem is an integer
programme, solved with HiGHS, lexicographic in this order:

1. **shortfall**: as little as the limits on the combinations allow. As no limit couples two combinations, every class
   reaches min(target, sum of the limits of the combinations that carry it) at the same time.
2. **images**: as few as possible.
3. **padding**: as few positives as possible that nobody asked for: findings that are not scarce, and scarce ones beyond
   their target. There is no hard bound on the latter, as it could only turn into another class's shortfall.

Combinations with the same scarce findings and the same number of others are interchangeable to all three, so the
programme has one variable per such type, and its images are dealt to the type's combinations in the proportions of
reality.

Fewest images alone would fill the plan with one comorbid vector, and least padding alone would leave comorbid ones out.
So a combination's share among the images of a class stays within a factor ``spread`` of its share among the real ones,
up and down (1: as in reality), and optionally no real image lends its vector more than ``max_repeat`` times. It does
not promise that an unseen combination is anatomically likely.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from prompts.scarcity import share_out


@dataclass(frozen=True, kw_only=True)
class Combinations:
    """Candidate label vectors.

    ``vectors``: bool (K, L), distinct, each with a scarce finding. ``members``: for each, the rows of the images that
    carry it; empty for an unseen one. ``weight``: float (K,) how often reality has it: the number of members, or what
    is expected of an unseen one.
    """

    vectors: np.ndarray
    members: list[np.ndarray]
    weight: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """``counts`` int64 (K,): images per combination; ``carried``, ``reachable`` int64 (S,) per scarce class.

    ``reachable`` is what the limits allow a class at most, so its shortfall is ``max(0, target - reachable)``.
    """

    counts: np.ndarray
    carried: np.ndarray
    reachable: np.ndarray


def find_combinations(matrix: np.ndarray, scarce: Sequence[int]) -> Combinations:
    """The distinct vectors with a scarce finding in ``matrix``, bool (N, L), rows being images, in sorted order."""
    rows = np.flatnonzero(matrix[:, list(scarce)].any(axis=1))
    if not len(rows):
        return Combinations(vectors=np.zeros((0, matrix.shape[1]), bool), members=[], weight=np.zeros(0))
    vectors, which = np.unique(matrix[rows], axis=0, return_inverse=True)
    order = np.argsort(which.ravel(), kind="stable")
    edges = np.cumsum(np.bincount(which.ravel()))[:-1]
    members = np.split(rows[order], edges)
    return Combinations(vectors=vectors, members=members, weight=np.array([len(m) for m in members], float))


def add_unseen(seen: Combinations, matrix: np.ndarray, scarce: Sequence[int]) -> Combinations:
    """Add each scarce finding alone and each pair of scarce findings, where no real image carries just that.

    An unseen pair weighs as many images as independence would give it, n_a n_b / N (often a fraction); a single one 1.
    """
    known = {row.tobytes() for row in seen.vectors}
    n = matrix.sum(axis=0)
    vectors, weights = [], []
    for i, a in enumerate(scarce):
        for b in [a, *scarce[i + 1:]]:
            vector = np.zeros(matrix.shape[1], bool)
            vector[[a, b]] = True
            if vector.tobytes() not in known:
                vectors.append(vector)
                weights.append(1.0 if a == b else float(n[a]) * float(n[b]) / len(matrix))
    if not vectors:
        return seen
    return Combinations(
        vectors=np.vstack([seen.vectors, *vectors]), members=seen.members + [np.zeros(0, np.int64)] * len(vectors),
        weight=np.concatenate([seen.weight, weights]),
    )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Fewest and most images of each combination, int64 (K,), ``0 <= low <= high``."""

    low: np.ndarray
    high: np.ndarray


def combination_limits(
    combinations: Combinations, scarce: Sequence[int], targets: np.ndarray, *, spread: float, max_repeat: int | None
) -> Limits:
    """How far each combination may depart from reality.

    ``targets``: int (S,) of the columns ``scarce``. A class asks each of its real images for target / n images. A
    combination gives at most ``spread`` times the highest such rate among its classes per unit of weight (rounded up),
    never more than ``max_repeat`` per unit, and at least the lowest such rate / ``spread`` (rounded down). Hence the
    lower limits alone never overshoot a target, and without ``max_repeat`` the upper ones never prevent it. An unseen
    combination has no lower limit.
    """
    carries, weight = combinations.vectors[:, list(scarce)], combinations.weight
    rate = targets / np.maximum(carries.T.astype(float) @ weight, 1.0)
    most = np.where(carries, rate, 0.0).max(axis=1, initial=0.0)
    least = np.where(carries, rate, np.inf).min(axis=1, initial=np.inf)
    seen = np.array([len(members) > 0 for members in combinations.members], bool)
    high = np.ceil(spread * weight * most - 1e-9)
    if max_repeat is not None:
        high = np.minimum(high, np.floor(max_repeat * weight))
    low = np.where(seen, np.floor(weight * least / spread + 1e-9), 0.0)
    return Limits(low=np.minimum(low, high).astype(np.int64), high=high.astype(np.int64))


def allocate(
    vectors: np.ndarray, *, scarce: Sequence[int], targets: np.ndarray, limits: Limits, weight: np.ndarray
) -> Allocation:
    """How many images of each combination to ask for; see the module's text for what is optimal.

    ``vectors``: bool (K, L); ``scarce``: the S columns with a target; ``targets``: int (S,); ``weight``: float (K,),
    in whose proportions images are dealt where the programme does not care.
    """
    carries = vectors[:, list(scarce)]
    reachable = carries.T.astype(np.int64) @ limits.high
    types, which = np.unique(np.column_stack([carries, vectors.sum(axis=1)]), axis=0, return_inverse=True)
    which = which.ravel()
    low, high = (np.bincount(which, bound, minlength=len(types)) for bound in (limits.low, limits.high))
    per_type = _solve(types[:, :-1], findings=types[:, -1], wanted=np.minimum(targets, reachable), low=low, high=high)
    counts = limits.low.copy()
    for t in np.flatnonzero(per_type > low):
        of_type = np.flatnonzero(which == t)
        room = (limits.high - limits.low)[of_type].astype(float)
        counts[of_type] += share_out(int(per_type[t] - low[t]), weights=weight[of_type], caps=room)
    return Allocation(counts=counts, carried=carries.T.astype(np.int64) @ counts, reachable=reachable)


def _solve(
    carries: np.ndarray, *, findings: np.ndarray, wanted: np.ndarray, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """Images per type, int64 (T,): the fewest that pay ``wanted`` (S,), and of those the ones with least padding.

    With the number of images fixed, the sum of all findings differs from the padding by a constant.
    """
    if not wanted.any():
        return low.astype(np.int64)
    pays = LinearConstraint(carries.T.astype(float), lb=wanted)
    fewest = _minimise(np.ones(len(carries)), [pays], low=low, high=high)
    as_few = LinearConstraint(np.ones((1, len(carries))), ub=fewest.sum())
    return _minimise(findings.astype(float), [pays, as_few], low=low, high=high)


def _minimise(
    cost: np.ndarray, constraints: list[LinearConstraint], *, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """One call of HiGHS over whole numbers between ``low`` and ``high``."""
    solved = milp(cost, constraints=constraints, integrality=np.ones(len(cost)), bounds=Bounds(low, high),
                  options={"mip_rel_gap": 0.0})
    if solved.x is None:
        raise RuntimeError(f"the allocation's integer programme was not solved: {solved.message}")
    return np.round(solved.x).astype(np.int64)


def charge(carries: np.ndarray, counts: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The scarce class that each image pays for, int64 (sum of counts,), images in the order of their combinations.

    ``carries``: bool (K, S). An image with one scarce finding pays for that; one with several for the class that then
    still needs most, ties to the earlier column. So every image is charged exactly once.
    """
    n_scarce = carries.sum(axis=1)
    first = carries.argmax(axis=1)
    remaining = targets.astype(np.int64) - np.bincount(
        first, weights=np.where(n_scarce == 1, counts, 0), minlength=carries.shape[1]
    ).astype(np.int64)
    charged = np.repeat(first, counts)
    combination = np.repeat(np.arange(len(counts)), counts)
    for row in np.flatnonzero(n_scarce[combination] > 1):
        own = np.flatnonzero(carries[combination[row]])
        charged[row] = own[np.argmax(remaining[own])]
        remaining[charged[row]] -= 1
    return charged
