"""Splits by patient, stratified by label.

No patient is ever in two splits. scikit-learn's StratifiedGroupKFold deals patients into folds so that each image's
rarest finding is spread evenly; then those folds are joined whose label shares lie nearest to the wanted share, because
with eight Hernias the luck of one draw would decide whether validation sees any. The result depends on the seed and on
the rows as a set, not on their order.

Not promised: the exact share (folds are whole patients), or a positive in every split when a label has few patients.
"""

import warnings
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import combinations

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from cohort.errors import TailfillError

CLOSE = (1e-5, 1e-8)
"""numpy.isclose's relative and absolute tolerance, with which scikit-learn calls two folds equally good."""
MAX_FOLDS = 20
"""Most folds to deal into: a share is met to within 1/20 before rounding, and C(20, 10) joins can still be tried."""


class Dealer(StratifiedGroupKFold):
    """scikit-learn's dealer with all folds weighed at once: the same folds, ten times as fast with 28,000 patients.

    Should a scikit-learn have no such inner method, this one is never called, and dealing is only slow.
    """

    def _find_best_fold(
        self, y_counts_per_fold: np.ndarray, y_cnt: np.ndarray, group_y_counts: np.ndarray
    ) -> int:
        """The fold that the next patient joins, as scikit-learn chooses it; counts float64 (n_folds, n_classes)."""
        n_folds = len(y_counts_per_fold)
        trials = np.repeat(y_counts_per_fold[None], n_folds, axis=0)
        trials[np.arange(n_folds), np.arange(n_folds)] += group_y_counts
        uneven = (trials / y_cnt).std(axis=1).mean(axis=1).tolist()
        sizes = y_counts_per_fold.sum(axis=1).tolist()
        best = 0
        for fold in range(1, n_folds):
            close = abs(uneven[fold] - uneven[best]) <= CLOSE[1] + CLOSE[0] * uneven[best]
            if uneven[fold] < uneven[best] or (close and sizes[fold] < sizes[best]):
                best = fold
        return best


def split_patients(
    frame: pd.DataFrame, labels: Sequence[str], *, fractions: Mapping[str, float], seed: int
) -> pd.Series:
    """A split name per row of ``frame``, aligned to its index; rows not drawn are ``train``.

    ``fractions`` maps a split's name to its share of all images, each in (0, 1) with a sum below 1. ``frame`` has
    ``patient_id`` and the label columns (1, 0, null). Raises ``TailfillError`` when there are too few patients.
    """
    if not 0 < sum(fractions.values()) < 1 or min(fractions.values()) <= 0:
        raise TailfillError(f"split fractions are {dict(fractions)}; wanted: each above 0, with a sum below 1")
    split = pd.Series("train", index=frame.index, dtype=object)
    left = 1.0
    for name, share in fractions.items():
        rest = frame[(split == "train").to_numpy()]
        drawn = _draw(rest, labels, share=share / left, seed=seed)
        split.loc[rest.index[drawn]] = name
        left -= share
    return split.astype(str)


def rarest_label(frame: pd.DataFrame, labels: Sequence[str]) -> np.ndarray:
    """(n,) int: position in ``labels`` of each row's positive label with the fewest patients, -1 when it has none."""
    n_patients = [frame.loc[frame[label] == 1, "patient_id"].nunique() for label in labels]
    rarest = np.full(len(frame), -1)
    for position in np.argsort(n_patients, kind="stable")[::-1]:
        rarest[(frame[labels[position]] == 1).to_numpy(dtype=bool, na_value=False)] = position
    return rarest


def deal_folds(frame: pd.DataFrame, labels: Sequence[str], *, n_folds: int, seed: int) -> np.ndarray:
    """(n,) int from 0 on: the fold of each row of ``frame``, as in ``split_patients``; folds hold whole patients.

    Raises ``TailfillError`` when there are fewer patients than folds.
    """
    patients = frame["patient_id"].to_numpy(dtype=str)
    if len(set(patients)) < n_folds:
        raise TailfillError(f"{len(set(patients))} patients cannot be dealt into {n_folds} folds")
    return _deal(rarest_label(frame, labels), patients, n_folds=n_folds, seed=seed)


def _draw(frame: pd.DataFrame, labels: Sequence[str], *, share: float, seed: int) -> np.ndarray:
    """(n,) bool: whole patients that hold about ``share`` of the images, and of each label's positives."""
    strata, patients = rarest_label(frame, labels), frame["patient_id"].to_numpy(dtype=str)
    most = min(MAX_FOLDS, len(set(patients)), int(np.unique(strata, return_counts=True)[1].max(initial=0)))
    if most < 2:
        raise TailfillError(f"{len(set(patients))} patients with {len(frame)} images cannot be split by patient")
    wanted = Fraction(share).limit_denominator(most)
    wanted = min(max(wanted, Fraction(1, most)), Fraction(most - 1, most))
    folds = _deal(strata, patients, n_folds=wanted.denominator, seed=seed)
    return np.isin(folds, _join(folds, frame, labels, n_joined=wanted.numerator, share=share))


def _deal(strata: np.ndarray, patients: np.ndarray, *, n_folds: int, seed: int) -> np.ndarray:
    """(n,) int: the fold of each row."""
    dealer = Dealer(n_splits=n_folds, shuffle=True, random_state=seed)
    folds = np.zeros(len(strata), dtype=int)
    with warnings.catch_warnings():  # a finding with fewer images than folds is what we are here for
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        for number, (_, members) in enumerate(dealer.split(strata, strata, patients)):
            folds[members] = number
    return folds


def _join(
    folds: np.ndarray, frame: pd.DataFrame, labels: Sequence[str], *, n_joined: int, share: float
) -> np.ndarray:
    """The ``n_joined`` folds whose share of the images and of each label's positives is nearest to ``share``."""
    positives = [np.ones(len(frame)), *((frame[label] == 1).to_numpy(dtype=float, na_value=0.0) for label in labels)]
    per_fold = np.stack([np.bincount(folds, weights=column, minlength=folds.max() + 1) for column in positives], axis=1)
    total = per_fold.sum(axis=0)
    shares = per_fold[:, total > 0] / total[total > 0]
    choices = np.array(list(combinations(range(len(shares)), n_joined)))
    reached = sum(shares[choices[:, column]] for column in range(n_joined))
    return choices[np.argmin(((reached - share) ** 2).sum(axis=1))]
