"""What a run knows of one of its classifiers: temperature and thresholds from validation, metrics from test.

The model's own predictions are read as the comparison reads them, checked against the cohort row for row. Intervals
are 95 % percentiles over resampled test patients (Efron & Tibshirani 1993, ch. 13), with all their images: they hold
the training fixed, so another seed of it may lie outside. A class with fewer than ``MIN_POSITIVE_PATIENTS`` positive
test patients has no interval, and one without positives no metric: null, with the reason.

Not promised: the numbers of the comparison, which are differences over seeds.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from classify.comparison.intervals import bootstrap, mean_over_classes, patient_draws
from classify.comparison.measuring import Scored, choose_thresholds, groups_of, null_reason, read_scored
from classify.comparison.metrics import METRICS, ClassMetrics, support
from classify.exporting.bundle import Bundle, Decisions
from classify.learning.models import load_card
from cohort.errors import TailfillError
from cohort.pipeline import is_stale, read_stamp
from cohort.stage import require
from cohort.tables import Cohort, load_cohort
from cohort.vocabulary.labels import MIN_POSITIVE_PATIENTS

DRAWS = 1000
"""Resamples of the test patients; the 25th from either end is the interval's."""


def predictions_folder(trained: Path) -> Path:
    """Where the predictions of the training run in ``RUN/train/ARM/seed_N`` stand."""
    arm, run = trained.absolute().parent, trained.absolute().parents[2]
    return run / "predictions" / arm.name / trained.absolute().name


def cohort_of(trained: Path) -> Cohort:
    """The cohort that a training run's stamp names; raises ``TailfillError`` when it has changed or gone since."""
    stamp = require(trained, "train")
    if stamp["stage"] != "train" or "cohort" not in stamp["inputs"]:
        raise TailfillError(f"{trained}: holds a stage '{stamp['stage']}'; wanted: a training run, "
                            "RUN/train/ARM/seed_N")
    entry = stamp["inputs"]["cohort"]
    cohort = load_cohort(Path(entry["path"]))
    if require(cohort.folder, "cohort")["output_hash"] != entry["hash"]:
        raise TailfillError(f"{cohort.folder}: has changed since {trained} was trained on it")
    return cohort


def read_own(trained: Path, cohort: Cohort, *, weights: str) -> dict[str, Scored]:
    """The run's predictions, by these weights alone, of the validation and test split.

    Raises ``TailfillError`` with the command to type where there are none, and for predictions of other weights.
    """
    folder = predictions_folder(trained)
    stamp = require(folder, "predict")
    if is_stale(stamp):
        raise TailfillError(f"{folder}: an input has changed since; wanted: the predictions of {trained}")
    arm, seed = str(stamp["config"].get("arm")), int(stamp["config"].get("arm_seed", -1))
    scored = read_scored({(arm, seed): folder}, cohort, weights=weights)
    return {split: replace(part, logits={key: values for key, values in part.logits.items() if key[2] == weights})
            for split, part in scored.items()}


def decisions_of(val: Scored, labels: list[str], *, weights: str) -> Decisions:
    """Temperature and thresholds as ``comparison/thresholds.parquet`` has them, null where validation has none."""
    table = choose_thresholds(val, labels)
    own = table[table["weights"] == weights].set_index("label")
    temperature = own["temperature"].iloc[0]
    return Decisions(temperature=None if pd.isna(temperature) else float(temperature), thresholds={
        label: None if pd.isna(own.loc[label, "threshold"]) else float(own.loc[label, "threshold"])  # type: ignore[arg-type]
        for label in labels})


def trained_bundle(trained: Path, *, weights: str) -> tuple[Bundle, dict[str, Scored] | None]:
    """A training run as a bundle, and its predictions; without predictions nothing is calibrated or decided.

    Raises ``TailfillError`` for a folder that is no finished training run.
    """
    cohort, card = cohort_of(trained), load_card(trained)
    card.require_labels(cohort.labels, where=trained)
    scored = None
    decisions = Decisions(temperature=None, thresholds=dict.fromkeys(card.labels))
    if read_stamp(predictions_folder(trained)) is not None:
        scored = read_own(trained, cohort, weights=weights)
        decisions = decisions_of(scored["val"], cohort.labels, weights=weights)
    return Bundle(card=card, decisions=decisions, views=views_of(cohort)), scored


def views_of(cohort: Cohort) -> dict[str, int]:
    """View to images of the training split; ``unknown`` for those without one."""
    counts = cohort.split("train")["view"].fillna("unknown").value_counts()
    return {str(view): int(n) for view, n in sorted(counts.items())}


def metric_table(scored: dict[str, Scored], cohort: Cohort, decisions: Decisions, *, seed: int) -> pd.DataFrame:
    """One row per label or group and metric on the test split.

    Columns: ``label, metric, value, ci_low, ci_high, n_positive_images, n_positive_patients, reason`` (why a null is
    null). ``seed``: of the resamples. A group's value is the mean over its classes that have one.
    """
    test = scored["test"]
    logits = next(iter(test.logits.values()))
    evaluators = [ClassMetrics(labels=test.labels[:, at], logits=logits[:, at], threshold=decisions.thresholds[label],
                               temperature=decisions.temperature) for at, label in enumerate(cohort.labels)]
    values = np.stack([evaluate(np.ones((len(logits), 1)))[:, 0] for evaluate in evaluators])
    draws = patient_draws(test.n_patients, DRAWS, np.random.default_rng(seed))
    resampled = bootstrap(evaluators, patients=test.patients, draws=draws)
    members = {label: [at] for at, label in enumerate(cohort.labels)} | groups_of(cohort)
    rows: list[dict[str, Any]] = []
    for name, at in members.items():
        images, patients = support(test.labels[:, at], test.patients)
        means, drawn = mean_over_classes(values[at], axis=0), mean_over_classes(resampled[at], axis=0)
        for m, metric in enumerate(METRICS):
            row = {"label": name, "metric": metric, "value": means[m], "ci_low": np.nan, "ci_high": np.nan,
                   "n_positive_images": images, "n_positive_patients": patients, "reason": None}
            if np.isnan(means[m]):
                row["reason"] = null_reason(metric, test.labels[:, at], split="test")
            elif patients < MIN_POSITIVE_PATIENTS:
                row["reason"] = f"no interval: {patients} positive patients, fewer than {MIN_POSITIVE_PATIENTS}"
            else:
                low, high = np.nanquantile(drawn[m], [0.025, 0.975])
                row |= {"ci_low": low, "ci_high": high} if low < high else {
                    "reason": "no interval: it is the same in every resample"}
            rows.append(row)
    return pd.DataFrame(rows).astype({"reason": "str"})
