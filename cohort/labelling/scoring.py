"""Labels against a hand-labelled table: per finding precision, recall, F1 and Cohen's kappa, by scikit-learn.

Precision and recall are proportions, so their 95 % intervals are exact (Clopper and Pearson 1934). F1 and kappa get
percentile intervals of ``DRAWS`` bootstrap samples of the reports; the four counts of a finding hold all that a sample
of reports can say, so they are drawn (a multinomial), not the rows. Below ``MIN_POSITIVE`` positives by hand F1 and
kappa get no interval.

Only reports count whose label is known on both sides; how many are not is in the table (``n_unknown``: uncertain or
failed by the labeller, ``n_unlabelled``: open by hand). Leaving the uncertain ones out flatters a labeller that doubts
whenever it is hard: compare the policies.

Not promised: independence. Several reports of one patient make the intervals too narrow.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score, f1_score, precision_score, recall_score

from cohort.errors import TailfillError
from cohort.sources.csv_folder import read_value
from cohort.sources.rows import read_header, read_rows
from cohort.vocabulary.findings import canonical_names
from cohort.vocabulary.labels import MIN_POSITIVE_PATIENTS, LabelSpace

METRICS = ("precision", "recall", "F1", "kappa")
DRAWS = 2000
"""Bootstrap samples; chosen because the ends of a 95 % interval are then steady to about a hundredth."""
CONFIDENCE = 0.95
MIN_POSITIVE = MIN_POSITIVE_PATIENTS


def read_truth(file: Path, labels: Sequence[str], *, id_column: str, split: str | None) -> pd.DataFrame:
    """Labels by hand, Int8 by report id, of those ``labels`` that the file has under one of their names.

    ``split``: only the rows whose column ``split`` says so. Raises ``TailfillError`` for a cell that is not 1, 0 or
    empty, an id that stands twice, and when nothing is left to compare.
    """
    canonical = canonical_names()
    columns: dict[str, str] = {}
    for name in read_header(file):
        for label in labels:
            if name != id_column and canonical.get(name, name) == canonical.get(label, label):
                if label in columns:
                    raise TailfillError(f"{file}: columns '{columns[label]}' and '{name}' are the same label")
                columns[label] = name
    if not columns:
        raise TailfillError(f"{file}: has no column of the labels {', '.join(labels[:5])}, ...; wanted: one or more")
    rows = read_rows(file, [id_column, *columns.values(), *(["split"] if split else [])])
    ids = rows.text(id_column)
    table = rows.labels(LabelSpace(name="truth", labels=tuple(columns)), columns, read_value)
    rows.reject((ids == "").to_numpy(dtype=bool), lambda position: f"no {id_column} given")
    rows.require_all(unique=ids)
    table = table.set_axis(ids.to_numpy(), axis=0)
    chosen = table if split is None else table[(rows.text("split") == split).to_numpy(dtype=bool)]
    if chosen.empty:
        raise TailfillError(f"{file}: has no row with split '{split}'")
    return chosen


def score_labels(found: pd.DataFrame, truth: pd.DataFrame, labels: Sequence[str], *, seed: int) -> pd.DataFrame:
    """One row per label and metric, then the mean over the labels that have a value (label ``all``).

    ``found`` and ``truth``: Int8 label columns, null for unknown, one row per report in the same order. Columns of the
    result: ``label, metric, value, ci_low, ci_high, n_reports, n_positive, n_found, n_unknown, n_unlabelled, reason``.
    """
    rng, rows = np.random.default_rng(seed), []
    for label in labels:
        is_open, is_unknown = truth[label].isna().to_numpy(), found[label].isna().to_numpy()
        both = ~is_open & ~is_unknown
        hand, machine = (frame[label][both].to_numpy(dtype=np.int64) for frame in (truth, found))
        support = {"n_reports": int(both.sum()), "n_positive": int(hand.sum()), "n_found": int(machine.sum()),
                   "n_unknown": int((is_unknown & ~is_open).sum()), "n_unlabelled": int(is_open.sum())}
        for metric in METRICS:
            rows.append({"label": label, "metric": metric, **score_one(metric, hand=hand, machine=machine, rng=rng),
                         **support})
    table = pd.DataFrame(rows)
    for metric in METRICS:
        part = table[(table["metric"] == metric)]
        values = part["value"].dropna()
        none = f"mean over {len(values)} of {len(part)} labels" if len(values) else "no label has a value"
        rows.append({"label": "all", "metric": metric, "value": values.mean(), "ci_low": np.nan, "ci_high": np.nan,
                     "reason": none, **{key: int(part[key].sum()) for key in support}})
    order = ["label", "metric", "value", "ci_low", "ci_high", *support, "reason"]
    return pd.DataFrame(rows)[order].astype({"reason": "str"})


def score_one(metric: str, *, hand: np.ndarray, machine: np.ndarray, rng: np.random.Generator) -> dict[str, object]:
    """``value, ci_low, ci_high, reason`` of one metric; ``hand``, ``machine``: int (n,), 0 or 1."""
    undefined = undefined_reason(metric, hand=hand, machine=machine)
    if undefined:
        return {"value": np.nan, "ci_low": np.nan, "ci_high": np.nan, "reason": undefined}
    both = int((hand & machine).sum())
    if metric in ("precision", "recall"):
        measure, n = (precision_score, machine.sum()) if metric == "precision" else (recall_score, hand.sum())
        interval = binomtest(both, int(n)).proportion_ci(CONFIDENCE, method="exact")
        value = float(measure(hand, machine))
        return {"value": value, "ci_low": interval.low, "ci_high": interval.high, "reason": None}
    value = float(f1_score(hand, machine) if metric == "F1" else cohen_kappa_score(hand, machine))
    if hand.sum() < MIN_POSITIVE:
        return {"value": value, "ci_low": np.nan, "ci_high": np.nan,
                "reason": f"no interval: {hand.sum()} positive by hand, wanted {MIN_POSITIVE}"}
    counts = np.array([both, machine.sum() - both, hand.sum() - both, (1 - (hand | machine)).sum()], dtype=np.int64)
    draws = rng.multinomial(len(hand), counts / len(hand), size=DRAWS)
    drawn = (f1_of if metric == "F1" else kappa_of)(draws)
    edge = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(drawn, [edge, 1 - edge])
    return {"value": value, "ci_low": float(low), "ci_high": float(high), "reason": None}


def undefined_reason(metric: str, *, hand: np.ndarray, machine: np.ndarray) -> str | None:
    """Why a metric has no value for these labels, int (n,); None where it has one."""
    if not len(hand):
        return "no report has a label on both sides"
    if metric == "precision" and not machine.any():
        return "the labeller found none"
    if metric == "recall" and not hand.any():
        return "none is positive by hand"
    if metric == "F1" and not (hand.any() or machine.any()):
        return "none is positive on either side"
    if metric == "kappa" and np.array_equal(hand, machine) and len(np.unique(hand)) == 1:
        return "all reports have the same label on both sides"
    return None


def f1_of(counts: np.ndarray) -> np.ndarray:
    """F1, float (n,), of true and false positives, false and true negatives, int (n, 4); NaN where none is positive."""
    tp, fp, fn, _ = counts.T
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(2 * tp / (2 * tp + fp + fn))


def kappa_of(counts: np.ndarray) -> np.ndarray:
    """Cohen's kappa, float (n,), of the same counts; NaN where chance alone agrees wholly."""
    tp, fp, fn, tn = counts.T / counts.sum(axis=1)
    chance = (tp + fp) * (tp + fn) + (fn + tn) * (fp + tn)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((tp + tn - chance) / (1 - chance))
