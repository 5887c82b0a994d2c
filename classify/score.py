"""Predictions of CXR-LT's test set in the challenge's form: a submission file, and its score.

::

    python -m classify.score --task 1 --cohort RUN/cohort --predictions RUN/predictions/ARM/seed_0/predictions.parquet
    python -m classify.score --task 1 --cohort RUN/cohort --predictions submission.csv
    ... --out DIR      writes DIR/submission.csv and DIR/scores.parquet

The cohort is one that ``cohort.prepare cxr-lt`` made with the same task: its test split has the official labels. The
predictions are a stage's table (logits) or a submission: ``dicom_id`` and one column of probabilities per label, in any
order, for columns are found by name. Every test image must be there once.

Per label and as the mean over labels: AP (mAP ranks the challenge), AUROC, F1 at probability .5 and calibration error,
as ``classify.comparison.metrics`` computes them; the means also per group of the cohort. A label without positives has
no AP: null with its reason, and not in the mean. ``--by study`` gives every image the mean of its study's first (see
``classify.ensembling.studies``), as entrants do; the score stays the challenge's, by image.

Not promised: intervals (``classify.compare`` has them), or that the server rounds as we do.
"""

import argparse
import io
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from classify.comparison.metrics import ClassMetrics, undefined_reason
from classify.ensembling.averaging import mix
from classify.ensembling.studies import UNITS, study_numbers, study_shares
from cohort.errors import TailfillError, nearest, run_command
from cohort.sources.rows import read_rows
from cohort.stage import require, write_atomically
from cohort.tables import Cohort, load_cohort, read_table, write_table
from cohort.vocabulary.labels import GROUPS, UNSEEN

log = logging.getLogger(__name__)

METRICS = ("AP", "AUROC", "F1", "ECE")
ID = "dicom_id"
EPSILON = 1e-7
"""Probabilities are kept this far from 0 and 1 before they become logits; float32 knows no finer."""


def load_task(folder: Path, task: int) -> tuple[Cohort, list[str]]:
    """The prepared cohort, and the labels that the task is scored on; raises ``TailfillError`` for another cohort."""
    config = require(folder, "cohort")["config"]
    if config.get("source") != "cxr-lt" or config.get("task", 1) != task:
        raise TailfillError(f"{folder}: was prepared from {config.get('source')}, task {config.get('task', 'none')}; "
                            f"wanted: python -m cohort.prepare cxr-lt --task {task}")
    cohort = load_cohort(folder)
    return cohort, [label for label in cohort.labels if task != 3 or label in UNSEEN]


def read_predictions(file: Path, images: Sequence[str], labels: Sequence[str], *, weights: str) -> np.ndarray:
    """Logits, float64 (n_images, n_labels), in these orders, from a stage's table or a submission.

    Raises ``TailfillError`` naming what is missing, doubled, or no probability.
    """
    table = read_stage(file, labels, weights=weights) if file.suffix == ".parquet" else read_submission(file, labels)
    if table.index.has_duplicates:
        raise TailfillError(f"{file}: image '{table.index[table.index.duplicated()][0]}' is predicted more than once; "
                            "wanted: once, by one model")
    missing = pd.Index(images).difference(table.index)
    if len(missing):
        raise TailfillError(f"{file}: {len(missing):,} of {len(images):,} test images are missing, '{missing[0]}' "
                            "first")
    return table.loc[list(images)].to_numpy(np.float64)


def read_stage(file: Path, labels: Sequence[str], *, weights: str) -> pd.DataFrame:
    """Logits by image from a stage's ``predictions.parquet``; ``TailfillError`` without a column, or ``weights``."""
    table = read_table(file)
    columns = [f"logit_{label}" for label in labels]
    lacking = [name for name in ["image_id", "weights", *columns] if name not in table]
    if lacking:
        raise TailfillError(f"{file}: has no column '{lacking[0]}'{nearest(lacking[0], list(table.columns))}")
    own = table[table["weights"] == weights]
    if own.empty:
        raise TailfillError(f"{file}: holds no predictions by '{weights}' weights (--weights)")
    return own.set_index("image_id")[columns]


def read_submission(file: Path, labels: Sequence[str]) -> pd.DataFrame:
    """Logits by image from a submission's probabilities; raises ``TailfillError`` for what is no such file."""
    rows = read_rows(file, [ID, *labels])
    if rows.bad:
        line = min(rows.bad)
        raise TailfillError(f"{file}, line {line}: {rows.bad[line]}")
    table = pd.DataFrame({name: rows.text(name) for name in [ID, *labels]}).set_index(ID)
    values = table.apply(pd.to_numeric, errors="coerce")
    wrong = ~((values >= 0) & (values <= 1))
    if wrong.any(axis=None):
        row, column = np.argwhere(wrong.to_numpy())[0]
        raise TailfillError(f"{file}: '{labels[column]}' of image '{table.index[row]}' is "
                            f"{table.iat[row, column]!r}; wanted: a probability, 0 to 1")
    return values.clip(EPSILON, 1 - EPSILON).apply(logit)


def by_study(logits: np.ndarray, images: pd.DataFrame) -> np.ndarray:
    """Each image's logits replaced by its study's, float64 (n_images, n_labels)."""
    return np.asarray(mix(logits, study_shares(images)))[study_numbers(images)]


def score(logits: np.ndarray, images: pd.DataFrame, labels: Sequence[str], groups: dict[str, str]) -> pd.DataFrame:
    """One row per label and metric, then per group and over all: ``label, metric, value, n_positive, reason``.

    ``logits``: float (n_images, n_labels) of the images in ``images``, which have the label columns. A mean is over the
    labels that have a value; ``reason`` says why a null is null.
    """
    rows = []
    for at, label in enumerate(labels):
        truth = images[label].to_numpy(np.float64, na_value=np.nan)
        values = ClassMetrics(labels=truth, logits=logits[:, at], threshold=0.0)(np.ones((len(images), 1)))[:, 0]
        for metric, value in zip(METRICS, values, strict=False):
            reason = undefined_reason(metric, labels=truth, fitted=True, split="test")
            rows.append({"label": label, "metric": metric, "value": np.nan if reason else value,
                         "n_positive": int((truth == 1).sum()), "reason": reason})
    table = pd.DataFrame(rows)
    members = {group: [label for label in labels if groups[label] == group] for group in GROUPS} | {"all": [*labels]}
    means = [{"label": group, "metric": metric, "value": part["value"].mean(),
              "n_positive": int(part["n_positive"].sum()),
              "reason": None if part["value"].notna().any() else "no label has a value"}
             for group, names in members.items() if names for metric in METRICS
             for part in [table[table["label"].isin(names) & (table["metric"] == metric)]]]
    return pd.concat([table, pd.DataFrame(means)], ignore_index=True).astype({"reason": "str"})


def submission(logits: np.ndarray, images: Sequence[str], labels: Sequence[str]) -> pd.DataFrame:
    """The challenge's file: ``dicom_id``, then a probability per label."""
    return pd.concat([pd.Series(list(images), name=ID), pd.DataFrame(expit(logits), columns=list(labels))], axis=1)


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; argparse leaves with code 2 on a mistake."""
    parser = argparse.ArgumentParser(prog="python -m classify.score", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", type=int, choices=(1, 2, 3), required=True, help="the challenge's task")
    parser.add_argument("--cohort", type=Path, required=True, help="folder that cohort.prepare cxr-lt wrote")
    parser.add_argument("--predictions", type=Path, required=True, help="predictions.parquet, or a submission's CSV")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="which weights of a stage's table")
    parser.add_argument("--by", choices=UNITS, default="image", help="whose opinion an image has")
    parser.add_argument("--out", type=Path, help="folder for submission.csv and scores.parquet")
    return parser.parse_args(argv)


def main() -> None:
    """Score, print the means, and write what was asked for."""
    options = read_arguments(sys.argv[1:])
    cohort, labels = load_task(options.cohort, options.task)
    images = cohort.split("test").sort_values("image_id", ignore_index=True)
    logits = read_predictions(options.predictions, list(images["image_id"]), labels, weights=options.weights)
    if options.by == "study":
        logits = by_study(logits, images)
    table = score(logits, images, labels, cohort.groups)
    means = table[table["label"].isin([*GROUPS, "all"])].pivot(index="label", columns="metric", values="value")
    sys.stdout.write(f"task {options.task}: {len(images):,} images, {len(labels)} labels, by {options.by}\n"
                     f"{means[list(METRICS)].to_string(float_format='%.4f', na_rep='-')}\n")
    if options.out:
        buffer = io.StringIO()
        submission(logits, list(images["image_id"]), labels).to_csv(buffer, index=False)
        write_atomically(options.out / "submission.csv", buffer.getvalue().encode())
        write_table(table, options.out / "scores.parquet")
        log.info("score: wrote %s and scores.parquet", options.out / "submission.csv")


if __name__ == "__main__":
    run_command(main)
