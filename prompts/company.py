"""Whose company a scarce finding is asked for in: other findings, view, sex and age, lent by any real train image.

Ten images of a finding are five patients. A plan that repeats their other findings, a hundred times over, teaches that
kyphosis goes with a hernia because one of the five has one; that is true of those five and of nobody else. So each row
is lent the company of a real train image, with the finding or without, drawn with the weight

    w_i  =  p(company of image i | finding) / p(company of image i)

as naive Bayes has it (a product over findings, view and sex; a normal density of equal variance for age). What is known
of the finding leans on all of train as if ``prior`` of its patients had shown what is usual there:

    p(d | finding)  =  (patients with both + prior p(d)) / (patients with the finding + prior)

People count, not images: each patient lends as much as any other, however often he was imaged. The company itself is
always somebody's: which findings go together is as in reality, and only how often each company is asked for follows
from the weights.

Kept from the finding's own images: a condition on whoever lends is a label that all of its patients carry, against all
chance, and one that it implies by definition (``phrases.yaml``: a clavicle's fracture is a Fracture), if most carry it;
and "Normal" stays beside a finding only where that is usual.

Not promised: exact shares. Companions that go together are counted once each, so where a finding has many patients its
own company is overdrawn; what depends on two companions at once is not seen; and nothing says that a company never seen
with the finding is likely.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import binom

from cohort.errors import TailfillError
from cohort.vocabulary.phrases import wordings_of_reports
from prompts.phrases import fits
from prompts.rows import NOTHING_LABELS

CHANCE = 0.01
"""A label that goes with a finding is implied by it where chance alone would do that less often, whatever the label."""
MOST = 0.5
"""Share of those with a finding from which a label beside it is usual."""


def keep_scarce(matrix: np.ndarray, scarce: Sequence[int]) -> np.ndarray:
    """``matrix``, bool (N, L), with every label false that is not scarce."""
    kept = np.zeros_like(matrix)
    kept[:, scarce] = matrix[:, scarce]
    return kept


def borrow(
    train: pd.DataFrame, matrix: np.ndarray, vectors: np.ndarray, charged: np.ndarray, *, labels: list[str],
    scarce: list[int], prior: float, rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """The row of the train image that lends each positive its company, int64 (P,), and what is asked for, bool (P, L).

    Args:
        train: the train images, N rows with ``patient_id``, ``view``, ``sex`` and ``age``.
        matrix: bool (N, L), their labels, unknown as false.
        vectors: bool (P, L), the scarce findings that each positive is asked for.
        charged: int (P,), the column that it is charged to.
        labels: the L names.
        scarce: columns of the scarce labels.
        prior: patients, above 0.
        rng: dealt from combination by combination; in each an image lends as often as its weight says, to within one.

    Raises ``TailfillError`` when no company fits into a prompt beside the findings.
    """
    implied = {j: _carry_implied(train, matrix, labels[j], labels, scarce) for j in scarce}
    clashes = find_clashes(matrix, labels, scarce)
    weights: dict[tuple[int, bytes], np.ndarray] = {}
    lender, asked = np.empty(len(charged), np.int64), vectors.copy()
    combinations, which = np.unique(np.column_stack([charged, vectors]), axis=0, return_inverse=True)
    for number, (column, *findings) in enumerate(combinations.tolist()):
        rows, vector = np.flatnonzero(which.ravel() == number), np.array(findings, bool)
        own, pool = _who_may_lend(train, matrix[:, column], [implied[j] for j in np.flatnonzero(vector).tolist()])
        key = column, pool.tobytes()
        if key not in weights:
            weights[key] = company_weights(train, matrix, own, pool=pool, labels=labels, scarce=scarce, prior=prior)
        weight = np.where(pool, weights[key], 0.0)
        lender[rows] = deal_by_weight(weight, len(rows), rng)
        asked[rows] = lend(matrix, vectors[rows], lender[rows], scarce=scarce, clashes=clashes)
        if not _speakable(asked[rows], labels).all():
            said = lend(matrix, np.tile(vector, (len(train), 1)), np.arange(len(train)), scarce=scarce, clashes=clashes)
            weight[~_speakable(said, labels)] = 0.0
            if not weight.any():
                raise TailfillError("plan.company_prior: no company of a real image fits into a prompt beside "
                                    f"{', '.join(labels[j] for j in np.flatnonzero(vector))}; wanted: null")
            lender[rows] = deal_by_weight(weight, len(rows), rng)
            asked[rows] = said[lender[rows]]
    return lender, asked


def find_clashes(matrix: np.ndarray, labels: list[str], scarce: list[int]) -> dict[int, np.ndarray]:
    """The column of each "Normal" to the scarce findings, bool (S,), beside which it is not usual.

    Usual is what most images say that have the finding and no other, scarce ones apart.
    """
    nothing = [labels.index(name) for name in NOTHING_LABELS if name in labels]
    alone = matrix[~np.delete(matrix, [*scarce, *nothing], axis=1).any(axis=1)]
    carry = alone[:, scarce]
    return {column: ~carry.any(axis=0) | ((carry & alone[:, [column]]).sum(axis=0) < MOST * carry.sum(axis=0))
            for column in nothing}


def lend(
    matrix: np.ndarray, vectors: np.ndarray, lender: np.ndarray, *, scarce: list[int], clashes: Mapping[int, np.ndarray]
) -> np.ndarray:
    """``vectors``, bool (P, L), of scarce findings, each with the company of its lender, a row of ``matrix``.

    A lender whose only findings were scarce ones lends as one who has nothing. ``clashes``: as ``find_clashes`` says.
    """
    company = matrix[lender]
    had_scarce = company[:, scarce].any(axis=1)
    company[:, scarce] = False
    empty = ~np.delete(company, [*clashes], axis=1).any(axis=1)
    for column, clash in clashes.items():
        company[:, column] |= empty & had_scarce
        company[:, column] &= ~vectors[:, scarce][:, clash].any(axis=1)
    return np.asarray(vectors | company)


def company_weights(
    train: pd.DataFrame, matrix: np.ndarray, own: np.ndarray, *, pool: np.ndarray, labels: Sequence[str],
    scarce: Sequence[int], prior: float,
) -> np.ndarray:
    """The weight of each train image as a lender, float64 (N,); see the module's text. In ``pool`` the largest is 1.

    ``own``: bool (N,), the images with the finding; ``pool``: bool (N,), those that may lend, which say what is usual.
    An unknown view, sex or age weighs nothing.
    """
    others = [j for j, label in enumerate(labels) if j not in set(scarce) and label not in NOTHING_LABELS]
    said = np.column_stack([matrix[:, others].astype(np.float64), *(
        np.where(train[key].isna(), np.nan, train[key].eq(value).fillna(False).to_numpy(np.float64))
        for key, value in (("view", "AP"), ("sex", "M")))])
    person, patient = _share_of_patient(train, pool), _share_of_patient(train, own)
    usual = _mean(said, person, prior=1.0, usual=np.full(said.shape[1], 0.5))
    theirs = _mean(said, patient, prior=prior, usual=usual)
    log_weight = np.nansum(np.where(np.isnan(said), np.nan, np.where(
        said == 1, np.log(theirs / usual), np.log((1 - theirs) / (1 - usual)))), axis=1)
    age = train["age"].to_numpy(np.float64)
    if np.isfinite(age[pool]).any() and np.nanstd(age[pool]) > 0:
        middle, spread = _mean(age[:, None], person, prior=0.0, usual=np.zeros(1)), np.nanstd(age[pool])
        shifted = _mean(age[:, None], patient, prior=prior, usual=middle)
        log_weight += np.nan_to_num((shifted - middle) / spread**2 * (age - (shifted + middle) / 2))
    weight = np.exp(log_weight - log_weight[pool].max()) * np.where(pool, person, 1.0)
    return np.asarray(weight / weight[pool].max())


def deal_by_weight(weight: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """``n`` row numbers, each as often as its share of ``weight``, float (N,), says to within one, in random order."""
    order = rng.permutation(np.flatnonzero(weight))
    edges = np.cumsum(weight[order])
    at = np.searchsorted(edges, (np.arange(n) + rng.random()) / n * edges[-1], side="right")
    return rng.permutation(order[np.minimum(at, len(order) - 1)])


def _who_may_lend(
    train: pd.DataFrame, own: np.ndarray, conditions: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """A finding's images and those that may lend to it, bool (N,) each; ``own`` and ``conditions``: bool (N,).

    Laterals are left out, unless the finding has nothing else; a condition that nobody meets is none.
    """
    frontal = train["view"].ne("LATERAL").fillna(True).to_numpy(bool)
    kind = frontal if (own & frontal).any() or not own.any() else ~frontal
    pool = np.ones(len(train), bool)
    for condition in (kind, *conditions):
        pool = pool & condition if (pool & condition).any() else pool
    return own & kind, pool


def _share_of_patient(train: pd.DataFrame, rows: np.ndarray) -> np.ndarray:
    """1 / images of the same patient among ``rows``, bool (N,); 0 elsewhere: float64 (N,)."""
    share = np.zeros(len(rows))
    patients = train["patient_id"].to_numpy(object)[rows]
    share[rows] = 1 / pd.Series(patients).groupby(patients).transform("size").to_numpy(np.float64)
    return share


def _mean(values: np.ndarray, weight: np.ndarray, *, prior: float, usual: np.ndarray) -> np.ndarray:
    """Means of ``values`` (N, D) by ``weight`` (N,), unknown ones left out, leaning by ``prior`` on ``usual`` (D,)."""
    counted = np.where(np.isnan(values), 0.0, weight[:, None])
    return np.asarray((np.nansum(values * counted, axis=0) + prior * usual) / (counted.sum(axis=0) + prior))


def _carry_implied(
    train: pd.DataFrame, matrix: np.ndarray, finding: str, labels: Sequence[str], scarce: Sequence[int]
) -> np.ndarray:
    """Which images, bool (N,), carry every label that always goes with a finding."""
    own = matrix[:, labels.index(finding)]
    n = train.loc[own, "patient_id"].nunique()
    if not n:
        return np.ones(len(train), bool)
    carriers = np.floor(_share_of_patient(train, own) @ matrix + 1e-9)
    everybody = _share_of_patient(train, np.ones(len(train), bool))
    chance = binom.sf(carriers - 1, n, everybody @ matrix / everybody.sum())
    parents = wordings_of_reports()[finding].implies if finding in wordings_of_reports() else ()
    implied = (carriers >= n) & (chance < CHANCE / len(labels))
    implied |= np.isin(labels, parents) & (carriers >= MOST * n)
    implied[[*scarce, *(labels.index(name) for name in NOTHING_LABELS if name in labels)]] = False
    return np.asarray(matrix[:, implied].all(axis=1))


def _speakable(vectors: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """Which of some label vectors, bool (n, L), a prompt can say: bool (n,)."""
    distinct, which = np.unique(vectors, axis=0, return_inverse=True)
    said = [fits([labels[j] for j in np.flatnonzero(vector).tolist()]) for vector in distinct]
    return np.asarray(np.array(said, dtype=bool)[which.ravel()])
