"""Crossed intervals for every class, group, metric and pair of arms, out of one array of resampled values.

A group's value is the mean over its classes that are defined, which are the same in every arm and seed, because labels
alone decide it. Where a resample leaves one of them without positives, that class is dropped from that draw for both
arms alike; ``n_draws_reduced`` counts such draws. A class or group with fewer than 10 positive patients gets its value
and its delta, but no interval and no p.

Not promised: intervals adjusted for multiplicity (only p is, by Holm over the classes of one pair and metric).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from classify.comparison.intervals import (
    Array,
    Interval,
    crossed_interval,
    holm,
    mean_over_classes,
    patient_df,
)
from classify.comparison.measuring import Scored, null_reason
from classify.comparison.metrics import CALIBRATION, METRICS, support
from cohort.vocabulary.labels import MIN_POSITIVE_PATIENTS


@dataclass(frozen=True, kw_only=True)
class Gain:
    """A paired delta: on the test set as it is, and under the shared draws."""

    estimates: Array
    """float64 (n_seeds,), the mean over classes."""
    classes: Array
    """float64 (n_seeds, n_classes, n_draws), NaN where a draw leaves a class without positives."""
    patients: Sequence[int]
    """Per class, the patients that its variance rests on: the positive ones, or for calibration all known ones."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All intervals, and the arrays that further ones can be taken from."""

    rows: pd.DataFrame
    """One row per arm, rival (null: the arm's own value), class or group, and metric."""
    seeds: pd.DataFrame
    """The paired delta of each seed: arm, rival, label, metric, seed, delta."""
    support: Mapping[str, tuple[int, int]]
    """Positive test images and patients of each class and group."""
    source: "Source"

    def interval(self, *, arm: str, rival: str | None, label: str, metric: str) -> Interval:
        """The interval of one delta, or of the arm's own value where ``rival`` is None."""
        return self.source.interval(arm, rival, self.source.members[label], METRICS.index(metric))

    def over(self, labels: Sequence[str], *, arm: str, rival: str, metric: str) -> Interval:
        """The interval of the delta of the mean over any labels."""
        at = [self.source.members[label][0] for label in labels]
        return self.source.interval(arm, rival, at, METRICS.index(metric))

    def gain(self, *, arm: str, rival: str, label: str, metric: str) -> Gain:
        """What the interval of one delta is made of."""
        return self.source.gain(arm, rival, self.source.members[label], METRICS.index(metric))


@dataclass(frozen=True, kw_only=True)
class Source:
    """Values and resampled values, as ``classify.comparison.measuring.resample`` returns them."""

    values: Array
    """float64 (n_arms, n_seeds, n_labels, n_metrics)."""
    resampled: Array
    """float64 (n_arms, n_seeds, n_labels, n_metrics, n_draws)."""
    scored: Scored
    arms: Sequence[str]
    members: Mapping[str, list[int]]
    """Columns of each class and group."""
    metrics: Sequence[str] = METRICS
    """What the axis of metrics holds."""

    def per_seed(self, arm: str, rival: str | None, members: list[int], metric: int) -> Array:
        """Value, or paired delta, of each seed: float64 (n_seeds,), NaN where undefined."""
        mean = mean_over_classes(self.values[:, :, members, metric], axis=2)
        own = mean[self.arms.index(arm)]
        return own if rival is None else own - mean[self.arms.index(rival)]

    def interval(self, arm: str, rival: str | None, members: list[int], metric: int) -> Interval:
        """The crossed interval of the mean over ``members``, of a value (``rival`` None) or of a delta."""
        estimates = self.per_seed(arm, rival, members, metric)
        if np.isnan(estimates).any():
            return Interval(estimate=None, reason=null_reason(self.metrics[metric],
                                                              self.scored.labels[:, members], split="test"))
        defined = self.defined(members, metric)
        if support(self.scored.labels[:, defined], self.scored.patients)[1] < MIN_POSITIVE_PATIENTS:
            return Interval(estimate=float(estimates.mean()),
                            reason=f"fewer than {MIN_POSITIVE_PATIENTS} positive patients")
        gain = self.gain(arm, rival, members, metric)
        df = patient_df(_variances(gain.classes), gain.patients)
        return crossed_interval(estimates, mean_over_classes(gain.classes, axis=1), df_patients=df)

    def gain(self, arm: str, rival: str | None, members: list[int], metric: int) -> Gain:
        """A value (``rival`` None) or a paired delta, of each seed and of each defined class under each draw."""
        defined = self.defined(members, metric)
        classes = self.resampled[self.arms.index(arm)][:, defined, metric]
        if rival is not None:
            classes = classes - self.resampled[self.arms.index(rival)][:, defined, metric]
        return Gain(estimates=self.per_seed(arm, rival, members, metric), classes=classes,
                    patients=[self._patients(at, metric) for at in defined])

    def defined(self, members: list[int], metric: int) -> list[int]:
        """The columns that have a value on the test set; the same ones in every arm and seed."""
        return [at for at in members if not np.isnan(self.values[:, :, at, metric]).any()]

    def n_reduced(self, members: list[int], metric: int) -> int:
        """Draws in which a class that is defined on the test set is not."""
        return int(np.isnan(self.resampled[0, 0, self.defined(members, metric), metric]).any(axis=0).sum())

    def _patients(self, at: int, metric: int) -> int:
        """Patients that a class's variance rests on: positive ones, or for calibration all with a known label."""
        column = self.scored.labels[:, at]
        chosen = ~np.isnan(column) if self.metrics[metric] in CALIBRATION else column == 1
        return len(np.unique(self.scored.patients[chosen]))


def compare_arms(*, values: Array, resampled: Array, scored: Scored, arms: Sequence[str],
                 pairs: Sequence[tuple[str, str]], labels: Sequence[str],
                 groups: Mapping[str, list[int]]) -> Comparison:
    """Intervals of every arm's values and of every pair's deltas; arrays as in ``Source``.

    ``groups``: columns of each group; ``all`` holds the findings, whatever is not in it is a negative control and a
    family of its own for Holm.
    """
    families = [groups["all"], [at for at in range(len(labels)) if at not in groups["all"]]]
    members = {label: [at] for at, label in enumerate(labels)} | dict(groups)
    source = Source(values=values, resampled=resampled, scored=scored, arms=list(arms), members=members)
    counts = {name: support(scored.labels[:, at], scored.patients) for name, at in members.items()}
    rows: list[dict[str, Any]] = []
    seeds: list[dict[str, Any]] = []
    for arm, rival in [*((arm, None) for arm in arms), *pairs]:
        for metric in METRICS:
            for columns in families:
                family = [_row(source, arm, rival, labels[at], metric) for at in columns]
                for row, p in zip(family, holm([row["p_plain"] for row in family]), strict=True):
                    row["p"] = p
                rows += family
            rows += [_row(source, arm, rival, group, metric) for group in groups]
            seeds += [] if rival is None else _seed_rows(source, arm, rival, metric)
    frame = pd.DataFrame(rows)
    for name, count in (("n_positive_images", 0), ("n_positive_patients", 1)):
        frame[name] = [counts[label][count] for label in frame["label"]]
    return Comparison(rows=frame, seeds=pd.DataFrame(seeds), support=counts, source=source)


def _row(source: Source, arm: str, rival: str | None, label: str, metric: str) -> dict[str, Any]:
    """One row of ``intervals``; an arm's own value has an interval clipped to the metric's range and no p."""
    at, m = source.members[label], METRICS.index(metric)
    interval = source.interval(arm, rival, at, m)
    own = source.per_seed(arm, None, at, m).mean()
    numbers = {key: np.nan if value is None else value for key, value in asdict(interval).items()}
    low, high = np.clip([numbers["low"], numbers["high"]], *((0, 1) if rival is None else (-np.inf, np.inf)))
    p = None if rival is None else interval.p
    return {
        "arm": arm, "rival": rival, "label": label, "metric": metric, "value": own,
        "rival_value": np.nan if rival is None else source.per_seed(rival, None, at, m).mean(),
        "delta": np.nan if rival is None else numbers["estimate"],
        "ci_low": low, "ci_high": high, "n_classes": len(source.defined(at, m)),
        "p": p, "p_plain": p, "n_seeds": source.values.shape[1], "reason": interval.reason,
        **{key: numbers[key] for key in ("standard_error", "df", "variance_patients", "variance_seeds",
                                         "variance_interaction", "n_draws")},
        "n_draws_reduced": source.n_reduced(at, m),
    }


def _seed_rows(source: Source, arm: str, rival: str, metric: str) -> list[dict[str, Any]]:
    """The paired deltas behind the rows of one pair and metric."""
    return [{"arm": arm, "rival": rival, "label": label, "metric": metric, "seed": seed, "delta": delta}
            for label, at in source.members.items()
            for seed, delta in enumerate(source.per_seed(arm, rival, at, METRICS.index(metric)))]


def _variances(classes: Array) -> list[float]:
    """Variance over draws of each class's mean over seeds; ``classes``: float64 (n_seeds, n_classes, n_draws)."""
    means = classes.mean(axis=0)
    return [float(row[~np.isnan(row)].var(ddof=1)) if (~np.isnan(row)).sum() > 1 else 0.0 for row in means]
