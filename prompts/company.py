"""Whose company a scarce finding is asked for in: other findings, view, sex and age, lent by any real train image.

Ten images of a finding are five patients. A plan that repeats their other findings, a hundred times over, teaches that
kyphosis goes with a hernia because one of the five has one; that is true of those five and of nobody else. So each row
is lent the company of a real train image, with the finding or without, drawn with the weight

    w_i  =  p(company of image i | finding) / p(company of image i)

as naive Bayes has it (a product over findings, view and sex; a normal density of equal variance for age). What is known
of the finding leans on all of train as if ``prior`` of its patients had shown what is usual there:

    p(d | finding)  =  (patients with both + prior p(d)) / (patients with the finding + prior)

so two patients say little and two hundred say what they say. The company itself is always somebody's: which findings go
together is as in reality, and only how often each company is asked for follows from the weights.

Kept from the finding's own images: a label that all of them carry, against all chance (a parent, as CXR-LT's Fracture),
is a condition on whoever lends; and "Normal" stays beside a finding only where a real image has the two.

Not promised: what depends on two companions at once, or that a company never seen with the finding is likely.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cohort.errors import TailfillError
from prompts.phrases import fits
from prompts.rows import NOTHING_LABELS, remove_scarce

CHANCE = 0.01
"""A label that all patients with a finding carry is implied by it where chance alone would do that less often."""


def keep_scarce(matrix: np.ndarray, scarce: Sequence[int]) -> np.ndarray:
    """``matrix``, bool (N, L), with every label false that is not scarce."""
    kept = np.zeros_like(matrix)
    kept[:, scarce] = matrix[:, scarce]
    return kept


def choose_lenders(
    train: pd.DataFrame, matrix: np.ndarray, vectors: np.ndarray, charged: np.ndarray, *, labels: list[str],
    scarce: list[int], prior: float, rng: np.random.Generator,
) -> np.ndarray:
    """The row of the train image that lends each positive its company, int64 (P,).

    Args:
        train: the train images, N rows with ``patient_id``, ``view``, ``sex`` and ``age``.
        matrix: bool (N, L), their labels, unknown as false.
        vectors: bool (P, L), the scarce findings that each positive is asked for.
        charged: int (P,), the column that it is charged to.
        labels: the L names.
        scarce: columns of the scarce labels.
        prior: patients, above 0.
        rng: dealt from class by class; an image lends as often as its weight says, to within one.

    Raises ``TailfillError`` when no company of a finding fits into a prompt beside it.
    """
    frontal = train["view"].ne("LATERAL").fillna(True).to_numpy(bool)
    companies = remove_scarce(matrix, scarce, labels)
    lender = np.empty(len(charged), np.int64)
    for column in np.unique(charged):
        own = matrix[:, column]
        pool = frontal if (own & frontal).any() or not own.any() else ~frontal
        pool = pool & _carries_implied(train, matrix, own & pool, scarce)
        weight = np.where(pool, company_weights(train, matrix, own & pool, pool=pool, labels=labels, scarce=scarce,
                                                prior=prior), 0.0)
        rows = np.flatnonzero(charged == column)
        while len(rows):
            if not weight.any():
                raise TailfillError(f"plan.company_prior: no company of a real image fits into a prompt beside "
                                    f"{labels[column]}; wanted: null")
            lender[rows] = deal_by_weight(weight, len(rows), rng)
            said = vectors[rows] | companies[lender[rows]]
            rows = rows[[not fits([labels[j] for j in np.flatnonzero(vector)]) for vector in said]]
            weight[lender[rows]] = 0.0
    return lender


def lend(
    matrix: np.ndarray, vectors: np.ndarray, lender: np.ndarray, *, labels: list[str], scarce: list[int]
) -> np.ndarray:
    """``vectors``, bool (P, L), of scarce findings, each with the company of its lender, a row of ``matrix``."""
    company = remove_scarce(matrix[lender], scarce, labels)
    for name in NOTHING_LABELS:
        if name in labels:
            nothing = labels.index(name)
            clashes = ~(matrix & matrix[:, [nothing]]).any(axis=0)
            company[:, nothing] &= ~(vectors & clashes).any(axis=1)
    return np.asarray(vectors | company)


def company_weights(
    train: pd.DataFrame, matrix: np.ndarray, own: np.ndarray, *, pool: np.ndarray, labels: Sequence[str],
    scarce: Sequence[int], prior: float,
) -> np.ndarray:
    """The weight of each train image as a lender, float64 (N,), the largest 1; see the module's text.

    ``own``: bool (N,), the images with the finding; ``pool``: bool (N,), those that may lend, which say what is usual.
    An unknown view, sex or age weighs nothing.
    """
    patients = 1 / train.loc[own].groupby("patient_id")["patient_id"].transform("size").to_numpy(np.float64)
    others = [j for j, label in enumerate(labels) if j not in set(scarce) and label not in NOTHING_LABELS]
    known = [train[key].where(train[key].notna()) for key in ("view", "sex")]
    said = np.column_stack([matrix[:, others].astype(np.float64), *(
        np.where(values.isna(), np.nan, values.eq(value).fillna(False).to_numpy(np.float64))
        for values, value in zip(known, ("AP", "M"), strict=True))])
    usual = (np.nansum(said[pool], axis=0) + 0.5) / ((~np.isnan(said[pool])).sum(axis=0) + 1)
    theirs = _lean(said[own], patients, usual, prior)
    log_weight = np.nansum(np.where(np.isnan(said), np.nan, np.where(
        said == 1, np.log(theirs / usual), np.log((1 - theirs) / (1 - usual)))), axis=1)
    age = train["age"].to_numpy(np.float64)
    if np.isfinite(age[pool]).any() and np.nanstd(age[pool]) > 0:
        middle, spread = np.nanmean(age[pool]), np.nanstd(age[pool])
        shifted = float(_lean(age[own][:, None], patients, np.array([middle]), prior)[0])
        log_weight += np.nan_to_num((shifted - middle) / spread**2 * (age - (shifted + middle) / 2))
    return np.asarray(np.exp(log_weight - log_weight[pool].max(initial=-np.inf)))


def deal_by_weight(weight: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """``n`` row numbers, each as often as its share of ``weight``, float (N,), says to within one, in random order."""
    order = rng.permutation(np.flatnonzero(weight))
    edges = np.cumsum(weight[order])
    at = np.searchsorted(edges, (np.arange(n) + rng.random()) / n * edges[-1], side="right")
    return rng.permutation(order[np.minimum(at, len(order) - 1)])


def _lean(values: np.ndarray, patients: np.ndarray, usual: np.ndarray, prior: float) -> np.ndarray:
    """Means of ``values`` (n, D) with weights (n,), unknown ones left out, that lean on the ``usual`` ones (D,)."""
    counted = np.where(np.isnan(values), 0.0, patients[:, None])
    return np.asarray((np.nansum(values * counted, axis=0) + prior * usual) / (counted.sum(axis=0) + prior))


def _carries_implied(train: pd.DataFrame, matrix: np.ndarray, own: np.ndarray, scarce: Sequence[int]) -> np.ndarray:
    """Which images, bool (N,), carry every label that the images ``own``, bool (N,), all carry against all chance."""
    n = train.loc[own, "patient_id"].nunique()
    implied = matrix[own].all(axis=0) & (matrix.mean(axis=0) ** n < CHANCE) if n else np.zeros(matrix.shape[1], bool)
    implied[list(scarce)] = False
    return np.asarray(matrix[:, implied].all(axis=1))
