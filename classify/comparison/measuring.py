"""Predictions of all arms and seeds, checked against the cohort, and what each of them scores.

The cohort says which images, patients and labels there are; a folder of predictions that differs from it anywhere is
refused, so that two arms can never be measured on different images. Images are sorted by id at the door: no result
depends on the order of a table's rows.

Not promised: that predictions are good, or were made by the weights that they name (the stamps say that).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from classify.comparison.intervals import Array, bootstrap, mean_over_classes
from classify.comparison.metrics import (
    METRICS,
    ClassMetrics,
    choose_threshold,
    fit_temperature,
    reliability,
    support,
    undefined_reason,
)
from cohort.config import Run
from cohort.errors import TailfillError
from cohort.stage import verify
from cohort.tables import Cohort, predictions_schema, read_table
from cohort.vocabulary.labels import CONTROL

SPLITS = ("val", "test")
CHOSEN = {"F1": "threshold", "ECE_T": "temperature"}
"""Metric to what it takes from the validation split."""
UNDER_200 = "under_200"
FEW_POSITIVES = 200
"""Positive train images below which a finding is in ``under_200``, whatever its prevalence: a large cohort's tail can
have thousands, and a small one's head fewer than these. Chosen by hand."""
Key = tuple[str, int, str]
"""Arm, seed, weights."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One split, its images sorted by id, with the logits of every arm, seed and set of weights."""

    labels: Array
    """float64 (n_images, n_labels): 1, 0, or NaN for unknown."""
    patients: NDArray[np.intp]
    """(n_images,): 0 to n_patients - 1, in the order of the sorted patient ids."""
    logits: Mapping[Key, Array]
    """float64 (n_images, n_labels) each."""

    @property
    def n_patients(self) -> int:
        """Distinct patients."""
        return int(self.patients.max()) + 1 if len(self.patients) else 0


def groups_of(cohort: Cohort) -> dict[str, list[int]]:
    """Columns of the labels in each group; ``all`` holds every finding, and ``control`` is there if the cohort has any.

    ``under_200`` cuts across head, medium and tail: findings with fewer positive train images than 200.
    """
    groups = {group: [cohort.labels.index(label) for label in cohort.in_group(group)]
              for group in ("head", "medium", "tail", CONTROL)}
    controls = groups.pop(CONTROL)
    findings = [at for at in range(len(cohort.labels)) if at not in controls]
    train = cohort.split("train")
    few = [at for at in findings if int((train[cohort.labels[at]] == 1).sum()) < FEW_POSITIVES]
    return groups | {UNDER_200: few, "all": findings} | ({CONTROL: controls} if controls else {})


def read_scored(folders: Mapping[tuple[str, int], Path], cohort: Cohort, *, weights: str) -> dict[str, Scored]:
    """Read the predictions of every arm and seed: one ``Scored`` for ``val`` and one for ``test``.

    Raises ``TailfillError`` naming the folder and the first image at fault when images, patients or labels are not
    the cohort's, when an image is missing or predicted twice, or when ``weights`` were not predicted.
    """
    images = {split: cohort.split(split).sort_values("image_id", ignore_index=True) for split in SPLITS}
    if images["test"].empty:
        raise TailfillError(f"{cohort.folder}: holds no image of the split test; nothing can be compared")
    logits: dict[str, dict[Key, Array]] = {split: {} for split in SPLITS}
    for (arm, seed), folder in folders.items():
        table = read_table(verify(folder, "predict", "predictions.parquet"), predictions_schema(cohort.labels))
        if set(table["arm"]) != {arm} or set(table["seed"]) != {seed}:
            raise TailfillError(f"{folder}: holds predictions of arm {sorted(set(table['arm']))} and seed "
                                f"{sorted(set(table['seed']))}; wanted: '{arm}' and {seed}")
        if weights not in set(table["weights"]):
            raise TailfillError(f"{folder}: holds no predictions by '{weights}' weights (compare.endpoint.weights)")
        for kind, by_weights in table.groupby("weights"):
            for split in SPLITS:
                part = by_weights[by_weights["split"] == split].sort_values("image_id", ignore_index=True)
                _check_images(part, images[split], cohort.labels, where=f"{folder}: {kind} weights, split {split}")
                logits[split][arm, seed, str(kind)] = part[[f"logit_{label}" for label in cohort.labels]].to_numpy(
                    dtype=np.float64)
    return {split: Scored(labels=_labels(images[split], cohort.labels), logits=logits[split],
                          patients=np.unique(images[split]["patient_id"].to_numpy(dtype=str), return_inverse=True)[1])
            for split in SPLITS}


def choose_thresholds(val: Scored, labels: Sequence[str]) -> pd.DataFrame:
    """F1's threshold (a logit) per arm, seed, weights and label, from the validation split; null without a positive.

    ``temperature`` is one per arm, seed and weights; null as in ``metrics.fit_temperature``.
    """
    rows = []
    for (arm, seed, weights), logits in val.logits.items():
        temperature = fit_temperature(labels=val.labels, logits=logits)
        for at, label in enumerate(labels):
            found = choose_threshold(labels=val.labels[:, at], logits=logits[:, at])
            rows.append({
                "arm": arm, "seed": seed, "weights": weights, "label": label,
                "threshold": np.nan if found is None else found[0], "f1_val": np.nan if found is None else found[1],
                "temperature": np.nan if temperature is None else temperature,
                "n_positive_images": int((val.labels[:, at] == 1).sum()),
                "reason": "no positives in val" if found is None else None,
            })
    return pd.DataFrame(rows)


def reliability_rows(test: Scored, labels: Sequence[str]) -> pd.DataFrame:
    """The calibration bins on the test split, most confident first: images, mean probability, share of positives."""
    rows = [
        {"arm": arm, "seed": seed, "weights": weights, "label": label, "bin": place, "n_images": n,
         "mean_probability": mean, "positive_share": share}
        for (arm, seed, weights), logits in test.logits.items() for at, label in enumerate(labels)
        for place, (n, mean, share) in enumerate(reliability(labels=test.labels[:, at], logits=logits[:, at]))
    ]
    return pd.DataFrame(rows)


def resample(scored: Mapping[str, Scored], cohort: Cohort, run: Run, *, weights: str,
             draws: NDArray[np.uint16]) -> tuple[Array, Array]:
    """Values on the test split as it is, and under each draw of patients.

    Returns float64 (n_arms, n_seeds, n_labels, n_metrics) and the same with a last axis of n_draws; NaN = undefined.
    ``draws``: uint16 (n_patients, n_draws), shared by everything (``classify.comparison.intervals.patient_draws``).
    """
    test, values, resampled = scored["test"], [], []
    ones = np.ones((len(test.patients), 1))
    for key in ((arm, seed, weights) for arm in run.arms for seed in range(run.n_seeds)):  # one in memory at a time
        prepared = _prepare(scored, key, "test")
        values.append([evaluate(ones)[:, 0] for evaluate in prepared])
        resampled.append(bootstrap(prepared, patients=test.patients, draws=draws, threads=run.threads))
    shape = (len(run.arms), run.n_seeds, len(cohort.labels), len(METRICS))
    return np.array(values).reshape(shape), np.stack(resampled).reshape(*shape, draws.shape[1])


def metric_rows(scored: Mapping[str, Scored], cohort: Cohort) -> pd.DataFrame:
    """The table ``metrics``: every arm, seed, weights, split, class and group, and metric.

    F1 and ECE_T on ``val`` are null: thresholds and temperature were chosen there.
    """
    rows = []
    members = {label: [at] for at, label in enumerate(cohort.labels)} | groups_of(cohort)
    for split, part in scored.items():
        counts = {name: support(part.labels[:, at], part.patients) for name, at in members.items()}
        for key in part.logits:
            ones = np.ones((len(part.patients), 1))
            values = np.stack([one(ones)[:, 0] for one in _prepare(scored, key, split)])
            for name, at in members.items():
                means = mean_over_classes(values[at], axis=0)
                rows += [
                    {"arm": key[0], "seed": key[1], "weights": key[2], "split": split, "label": name, "metric": metric,
                     "value": means[m], "n_positive_images": counts[name][0], "n_positive_patients": counts[name][1],
                     "reason": null_reason(metric, part.labels[:, at], split=split) if np.isnan(means[m]) else None}
                    for m, metric in enumerate(METRICS)
                ]
    return pd.DataFrame(rows)


def null_reason(metric: str, labels: Array, *, split: str) -> str:
    """Why a metric of a class or group has no value; ``labels``: float64 (n_images, n_classes of the group)."""
    if labels.shape[1] == 0:
        return "no class in this group"
    if metric in CHOSEN and split == "val":
        return f"its {CHOSEN[metric]} was chosen on this split"
    reasons = [undefined_reason(metric, labels=column, fitted=False, split=split) for column in labels.T]
    return "; ".join(dict.fromkeys(reason for reason in reasons if reason is not None))


def _prepare(scored: Mapping[str, Scored], key: Key, split: str) -> list[ClassMetrics]:
    """One evaluator per label; thresholds and temperature come from validation and are used on the test split only."""
    part, val = scored[split], scored["val"]
    temperature = fit_temperature(labels=val.labels, logits=val.logits[key]) if split == "test" else None
    found = []
    for at in range(part.labels.shape[1]):
        chosen = choose_threshold(labels=val.labels[:, at], logits=val.logits[key][:, at]) if split == "test" else None
        found.append(ClassMetrics(labels=part.labels[:, at], logits=part.logits[key][:, at],
                                  threshold=None if chosen is None else chosen[0], temperature=temperature))
    return found


def _check_images(part: pd.DataFrame, wanted: pd.DataFrame, labels: list[str], *, where: str) -> None:
    """Refuse predictions that are not one per image of the cohort, with the cohort's patients and labels."""
    twice = part.loc[part["image_id"].duplicated(), "image_id"]
    if len(twice):
        raise TailfillError(f"{where}: image '{twice.iloc[0]}' is predicted more than once ({len(twice)} such rows)")
    for differing, what in ((set(wanted["image_id"]) - set(part["image_id"]), "lacks"),
                            (set(part["image_id"]) - set(wanted["image_id"]), "holds, unlike the cohort,")):
        if differing:
            raise TailfillError(f"{where}: {what} {len(differing)} images, such as '{min(differing)}'")
    other = part["patient_id"].to_numpy(dtype=str) != wanted["patient_id"].to_numpy(dtype=str)
    if other.any():
        raise TailfillError(f"{where}: image '{part['image_id'][other].iloc[0]}' has another patient than the cohort's")
    then, now = _labels(wanted, labels), _labels(part, labels)
    wrong = (then != now) & ~(np.isnan(then) & np.isnan(now))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise TailfillError(f"{where}: image '{part['image_id'].iloc[row]}', label '{labels[column]}' differs from the "
                            "cohort's")


def _labels(frame: pd.DataFrame, labels: list[str]) -> Array:
    """float64 (n_images, n_labels), NaN where unknown."""
    return frame[labels].to_numpy(dtype=np.float64, na_value=np.nan)
