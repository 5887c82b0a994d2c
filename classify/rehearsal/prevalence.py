"""Average precision as it would be at another prevalence, for a rehearsal's test set is richer than its tail.

In a rehearsal the finding stays plentiful in test (narrow intervals), while in the tail that it stands for it is rare,
and AP depends on that: one ROC curve reads .46 at 10 %, .10 at 1 %. Bayes' rule with the same score distributions gives
the precision at a prevalence pi (Siblini et al. 2020, "Master your metrics with calibration", arXiv 1909.02827, section
3: calibrated precision; Elkan 2001 for the weights)::

    precision(pi) = pi TPR / (pi TPR + (1 - pi) FPR)

which is the ordinary AP when every positive image weighs ``pi N / ((1 - pi) P)``, with P and N the summed weights of
positives and negatives. Recall does not change, nor does AUROC. Under a resample of patients P and N are those of the
draw, so that every draw is at the prevalence asked for.

Not promised: that the scores of rare and of common cases are alike; a rarer finding may also be a milder one.
"""

from collections.abc import Callable

import numpy as np

from classify.comparison.intervals import Array
from classify.comparison.metrics import METRICS, ClassMetrics
from cohort.errors import TailfillError

AT_PREVALENCE = "AP at prevalence"
"""The metric's name in a rehearsal's tables."""
REHEARSED = ("AP", "AUROC", AT_PREVALENCE)
"""The metrics of a rehearsal, in the order of ``rehearsed_metrics``."""


def reweighted(weights: Array, *, positive: Array, negative: Array, prevalence: float) -> Array:
    """Image weights under which the class has ``prevalence``: float64 (n_images, n_draws), as ``weights``.

    ``positive`` and ``negative``: bool (n_images,), an unknown label being neither. ``prevalence``: above 0, below 1. A
    draw without a positive stays as it is. Raises ``TailfillError`` for a prevalence out of range.
    """
    if not 0 < prevalence < 1:
        raise TailfillError(f"prevalence is {prevalence}; wanted: above 0, below 1")
    own, other = weights[positive].sum(axis=0), weights[negative].sum(axis=0)
    factor = np.divide(prevalence * other, (1 - prevalence) * own, out=np.ones_like(own), where=own > 0)
    return np.where(positive[:, None], weights * factor, weights)


def rehearsed_metrics(*, labels: Array, logits: Array, prevalence: float) -> Callable[[Array], Array]:
    """An evaluator of one class: image weights, float64 (n_images, n_draws), to ``REHEARSED``, float64 (3, n_draws).

    ``labels``: float (n_images,), 1, 0 or NaN; ``logits``: float (n_images,). NaN where undefined. ``prevalence``: that
    of the third metric.
    """
    plain = ClassMetrics(labels=labels, logits=logits)
    positive, negative = labels == 1, labels == 0
    ap, auroc = METRICS.index("AP"), METRICS.index("AUROC")

    def evaluate(weights: Array) -> Array:
        rare = reweighted(weights, positive=positive, negative=negative, prevalence=prevalence)
        return np.stack([*plain(weights)[[ap, auroc]], plain(rare)[ap]])

    return evaluate
