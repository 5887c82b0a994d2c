"""AP, AUROC, F1 and calibration error of one class, for one set of image weights or for thousands.

A bootstrap needs each metric under thousands of image weights, and no library offers that: so a class is sorted once
into two sparse matrices (``ClassMetrics``), whose products with a matrix of weights, one column per draw, are all the
sums that the metrics need (``scripts/bench/bootstrap.py``). Ones as weights give the plain value,
so that an estimate and its interval come from the same lines. Ties are treated as scikit-learn treats them: equal
logits share one threshold. Weights that are counts are summed exactly in float64, whatever the order of the images.

- **AP**: scikit-learn's ``average_precision_score`` (a step function, no interpolation).
- **AUROC**: scikit-learn's ``roc_auc_score``; a tied pair counts one half.
- **F1**: at a threshold chosen on the validation split, applied as it stands to the test split.
- **ECE**: adaptive calibration error of the positive probability: ``N_BINS`` bins of equally many images by rank of
  the logit (equal logits never part), sum over bins of |sum of (label - sigmoid(logit))| / number of images. The bins
  are fixed by the images, not by the weights. It is biased upward in small sets, and asymmetric loss trains for
  ranking, not for calibration: read it as a warning about the probabilities, never as a ranking of arms.
- **ECE_T**: the same after the logits are divided by one temperature for all classes, fitted on the validation split
  (Guo et al. 2017). What is left is the part that no single number mends; no ranking metric changes.

Undefined is not zero: the value is NaN here, null in a table, and ``undefined_reason`` says why. AP of a class without
negatives is undefined too (it is 1 whatever the model says). Unknown labels are left out, class by class.

Not promised: anything about a metric's uncertainty (``intervals``), or one number over several label sets.
"""

from typing import Any

import numpy as np
import pandera.pandas as pa
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import minimize_scalar
from scipy.special import expit
from sklearn.metrics import precision_recall_curve

Array = NDArray[np.float64]

METRICS = ("AP", "AUROC", "F1", "ECE", "ECE_T")
HIGHER_IS_BETTER = ("AP", "AUROC", "F1")
CALIBRATION = ("ECE", "ECE_T")
"""Defined by every known label, not by the positive ones alone."""
N_BINS = 15
"""Bins of the calibration error; 15 as in Guo et al. 2017, of equal mass as in Nixon et al. 2019 (adaptive ECE)."""
TEMPERATURES = (0.05, 20.0)
"""Temperatures that a fit may return; a fit at an end says that the logits do not rank, or rank without an error."""


class ClassMetrics:
    """The metrics of one class under any number of image weights; sorts once.

    ``labels``: float (n_images,), 1, 0 or NaN for unknown. ``logits``: float (n_images,), any real number.
    ``threshold``: the logit from which on F1 predicts the finding, or None. ``temperature``: what ECE_T divides the
    logits by, above 0, or None.
    """

    def __init__(self, *, labels: Array, logits: Array, threshold: float | None = None,
                 temperature: float | None = None) -> None:
        known = np.flatnonzero(~np.isnan(labels))
        order = known[np.argsort(-logits[known], kind="stable")]
        y, z = labels[order], np.asarray(logits, dtype=np.float64)[order]
        tie_starts, tie_of = _runs(z)
        positives = np.flatnonzero(y == 1)
        self.positives = order[positives]
        self.level_starts, _ = _runs(tie_of[positives])
        levels = tie_of[positives][self.level_starts]
        starts, ends = tie_starts[levels], np.append(tie_starts[1:], len(z))[levels]
        n_predicted = 0 if threshold is None else int(np.searchsorted(-z, -threshold, side="right"))
        bounds = np.unique(np.concatenate([[0], starts, ends, [n_predicted]]))
        bounds = bounds[bounds < len(z)]
        self.above, self.upto, self.predicted = (np.searchsorted(bounds, at) for at in (starts, ends, n_predicted))
        self.n_found = None if threshold is None else int((positives < n_predicted).sum())
        self.segments = _sums(np.ones((1, len(z))), bounds, order, len(labels))
        scales = (1.0,) if temperature is None else (1.0, temperature)
        residuals = np.stack([y - expit(z / scale) for scale in scales])
        self.n_scales = len(scales)
        self.residuals = _sums(residuals, _bin_starts(tie_starts, tie_of), order, len(labels))

    def __call__(self, weights: Array) -> Array:
        """The metrics in the order of ``METRICS`` as float64 (5, n_draws); NaN where undefined.

        ``weights``: float64 (n_images, n_draws), 0 or more; one column is one draw.
        """
        values = np.full((len(METRICS), weights.shape[1]), np.nan)
        if self.segments.nnz == 0:
            return values
        cumulative = np.zeros((self.segments.shape[0] + 1, weights.shape[1]))
        np.cumsum(self.segments @ weights, axis=0, out=cumulative[1:])
        gaps = np.abs(self.residuals @ weights).reshape(self.n_scales, -1, weights.shape[1]).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            values[3 : 3 + self.n_scales] = gaps / cumulative[-1]
            if len(self.positives):
                positive = np.take(weights, self.positives, axis=0)
                values[0], values[1] = self._ranking(cumulative, positive)
                if self.n_found is not None:
                    found, total = positive[: self.n_found].sum(axis=0), positive.sum(axis=0)
                    values[2] = 2 * found / (cumulative[self.predicted] + total)
                    values[2, total == 0] = np.nan
        return values

    def _ranking(self, cumulative: Array, positive: Array) -> tuple[Array, Array]:
        """AP and AUROC, each (n_draws,), from the weights above each threshold at which a positive lies."""
        above, upto = cumulative[self.above], cumulative[self.upto]
        gained = np.add.reduceat(positive, self.level_starts, axis=0)
        true = np.cumsum(gained, axis=0)
        n_positive = true[-1].copy()
        n_negative = cumulative[-1] - n_positive
        defined = np.where((n_positive > 0) & (n_negative > 0), 1.0, np.nan)
        lost = above  # negatives that a positive does not beat, a tie for one half; in place: these arrays are large
        lost += upto
        lost += gained
        lost /= 2
        lost -= true
        precision = np.divide(true, upto, out=upto, where=upto > 0)
        return (
            defined * np.einsum("ld,ld->d", gained, precision) / n_positive,
            defined * (1 - np.einsum("ld,ld->d", gained, lost) / (n_positive * n_negative)),
        )


def choose_threshold(*, labels: Array, logits: Array) -> tuple[float, float] | None:
    """The logit with the highest F1 on the validation split (the highest such logit) and that F1.

    None without a positive. ``labels`` and ``logits``: float (n_images,) of the validation split. The F1 belongs to the
    images that the threshold was chosen on, so it is optimistic.
    """
    known = ~np.isnan(labels)
    y, z = labels[known], logits[known]
    if not (y == 1).any():
        return None
    precision, recall, thresholds = precision_recall_curve(y, z)
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    best = int(np.flatnonzero(f1[:-1] == f1[:-1].max())[-1])
    return float(thresholds[best]), float(f1[best])


def fit_temperature(*, labels: Array, logits: Array) -> float | None:
    """The temperature with the lowest cross-entropy on the validation split, one for all its classes.

    ``labels`` (1, 0 or NaN) and ``logits``: float (n_images, n_classes). None where no known label is positive or none
    is negative. The loss is convex in the inverse temperature; the answer stays within ``TEMPERATURES``.
    """
    known = ~np.isnan(labels)
    y, z = labels[known], np.asarray(logits, dtype=np.float64)[known]
    if not (y == 1).any() or not (y == 0).any():
        return None
    found = minimize_scalar(lambda inverse: float((np.logaddexp(0, inverse * z) - y * inverse * z).mean()),
                            bounds=(1 / TEMPERATURES[1], 1 / TEMPERATURES[0]), method="bounded")
    return float(1 / found.x)


def undefined_reason(metric: str, *, labels: Array, fitted: bool, split: str) -> str | None:
    """Why ``metric`` of a class has no value on a split, or None where it has one. ``labels``: float (n_images,).

    ``fitted``: whether validation gave what the metric takes from there, F1's threshold or ECE_T's temperature.
    """
    if np.isnan(labels).all():
        return f"no known labels in {split}"
    if metric == "ECE":
        return None
    if metric == "ECE_T":
        return None if fitted else "no positives or no negatives in val, so no temperature"
    if not (labels == 1).any():
        return f"no positives in {split}"
    if metric not in ("AP", "AUROC"):
        return None if fitted else "no positives in val, so no threshold"
    return None if (labels == 0).any() else f"no negatives in {split}"


def support(labels: Array, patients: NDArray[Any]) -> tuple[int, int]:
    """Images and patients with at least one positive among the classes (columns) of ``labels``.

    ``labels``: float (n_images, n_classes); ``patients``: (n_images,) any hashable id.
    """
    positive = (labels == 1).any(axis=1)
    return int(positive.sum()), len(np.unique(patients[positive]))


def reliability(*, labels: Array, logits: Array) -> list[tuple[int, float, float]]:
    """The bins behind ECE, most confident first: number of images, mean probability, share of positives."""
    known = ~np.isnan(labels)
    order = np.argsort(-logits[known], kind="stable")
    y, z = labels[known][order], logits[known][order]
    starts = _bin_starts(*_runs(z))
    return [(len(part), float(expit(z[at : at + len(part)]).mean()), float(part.mean()))
            for at, part in zip(starts, np.split(y, starts[1:]), strict=True) if len(part)]


def metrics_schema() -> pa.DataFrameSchema:
    """One row per arm, seed, weights, split, class or group, and metric; ``reason`` says why a value is null."""
    text, number = pa.Column(str, coerce=True), pa.Column("int64", pa.Check.ge(0), coerce=True)
    return pa.DataFrameSchema(
        {
            "arm": text, "seed": number, "weights": text, "split": text, "label": text,
            "metric": pa.Column(str, pa.Check.isin(METRICS), coerce=True),
            "value": pa.Column("float64", pa.Check.in_range(0, 1), nullable=True, coerce=True),
            "n_positive_images": number, "n_positive_patients": number,
            "reason": pa.Column(str, nullable=True, coerce=True),
        },
        strict=True, unique=["arm", "seed", "weights", "split", "label", "metric"], name="metrics",
    )


def _runs(values: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where each run of equal values starts, and the run that each position belongs to."""
    new = np.ones(len(values), dtype=bool)
    new[1:] = values[1:] != values[:-1]
    return np.flatnonzero(new), np.cumsum(new) - 1


def _sums(coefficients: Array, starts: NDArray[np.intp], order: NDArray[np.intp], n_images: int) -> sparse.csr_array:
    """A matrix whose product with image weights sums ``coefficients`` (n, n_known) over runs of the sorted images.

    A row per coefficient and run, runs beginning at ``starts``; columns are the images in the caller's order.
    """
    n, n_known = coefficients.shape
    first = np.append((starts + n_known * np.arange(n)[:, None]).ravel(), n * n_known)
    return sparse.csr_array((coefficients.ravel(), np.tile(order, n), first), shape=(len(first) - 1, n_images))


def _bin_starts(tie_starts: NDArray[np.intp], tie_of: NDArray[np.intp]) -> NDArray[np.intp]:
    """First position of each calibration bin; a bin that would cut a tie starts where the tie starts."""
    if len(tie_of) == 0:
        return np.zeros(0, dtype=np.intp)
    nominal = np.round(np.linspace(0, len(tie_of), min(N_BINS, len(tie_of)) + 1)[:-1]).astype(np.intp)
    return np.unique(tie_starts[tie_of[nominal]])
