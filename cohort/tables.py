"""The tables that stages speak through: one pandera schema each, validated on every write and every read.

Label columns are Int8 with 1, 0 or null for unknown; they stand in every table under the label's own name, so no label
may be called like a reserved column, nor like a group. Parquet keeps the order of the rows; readers never depend on it.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pandera.pandas as pa

from cohort.errors import TailfillError
from cohort.stage import require, verify, write_atomically

VIEWS, SEXES, SPLITS = ("PA", "AP", "LATERAL"), ("M", "F"), ("train", "val", "test")
RESERVED = frozenset(
    (
        "image_id", "root", "path", "patient_id", "study_id", "view", "age", "sex", "split", "sample_id",
        "prompt", "negative_prompt", "charged_to", "label_source_id", "company_id", "init_image_id", "strength", "seed",
        "batch", "round", "keep", "reason", "status", "error", "sha256", "height", "width", "seconds", "rank",
        "micro_batch", "slot_id", "repeat", "labels_from", "loss_weight", "phase", "fold", "arm", "weights",
        # groups, which stand beside labels in the tables of a comparison
        "head", "medium", "tail", "under_200", "control", "all",
        "negative",  # what a matched negative is charged to, in place of a label
    )
)
"""What no label may be called."""
RECONSTRUCTED = "reconstructed:"
"""What stands before the image_id of a real image that the generator's autoencoder has encoded and decoded again."""


def _text(
    *, nullable: bool = False, unique: bool = False, isin: Sequence[str] | None = None, required: bool = True
) -> pa.Column:
    return pa.Column(str, pa.Check.isin(list(isin)) if isin else None, nullable=nullable, unique=unique, coerce=True,
                     required=required)


def _number(kind: str, check: pa.Check | None = None, *, nullable: bool = False, required: bool = True) -> pa.Column:
    return pa.Column(kind, check, nullable=nullable, required=required, coerce=True)


def _labels(labels: Sequence[str]) -> dict[str, pa.Column]:
    return {label: pa.Column("Int8", pa.Check.isin([0, 1]), nullable=True, coerce=True) for label in labels}


def _person() -> dict[str, pa.Column]:
    return {
        "view": _text(nullable=True, isin=VIEWS),
        "age": _number("float64", pa.Check.in_range(0, 120), nullable=True),
        "sex": _text(nullable=True, isin=SEXES),
    }


def _image(labels: Sequence[str], splits: Sequence[str]) -> dict[str, pa.Column]:
    return {
        "image_id": _text(unique=True), "root": _text(), "path": _text(), "patient_id": _text(),
        "study_id": _text(nullable=True), **_person(), "split": _text(isin=splits), **_labels(labels),
    }


def cohort_schema(labels: Sequence[str]) -> pa.DataFrameSchema:
    """One row per real image."""
    return pa.DataFrameSchema(_image(labels, SPLITS), strict=True, name="cohort")


def plan_schema(labels: Sequence[str]) -> pa.DataFrameSchema:
    """One row per image to make; a finding that is not asked for is 0."""
    return pa.DataFrameSchema(
        {
            "sample_id": _text(unique=True), "prompt": _text(), "negative_prompt": _text(), **_labels(labels),
            **_person(), "charged_to": _text(isin=[*labels, "negative"]), "label_source_id": _text(nullable=True),
            "company_id": _text(nullable=True, required=False), "init_image_id": _text(nullable=True),
            "strength": _number("float64", pa.Check.in_range(0, 1), nullable=True),
            "seed": _number("int64", pa.Check.ge(0)), "batch": _number("int64", pa.Check.ge(0)),
            "round": _number("int64", pa.Check.ge(0)),
        },
        strict=True, name="plan",
    )


def images_schema() -> pa.DataFrameSchema:
    """One row per image made, or per error. Columns of other names (older runs have some) are left out, not refused."""
    return pa.DataFrameSchema(
        {
            "sample_id": _text(unique=True), "status": _text(isin=("ok", "error")), "error": _text(nullable=True),
            "path": _text(nullable=True), "sha256": _text(nullable=True), "height": _number("Int64", nullable=True),
            "width": _number("Int64", nullable=True), "micro_batch": _number("int64", pa.Check.ge(1)),
        },
        strict="filter", name="images",
    )


def batches_schema() -> pa.DataFrameSchema:
    """One row per logical batch: who drew it, on what, and the seconds of its drawing; differs between equal runs."""
    return pa.DataFrameSchema(
        {
            "batch": _number("int64", pa.Check.ge(0)), "images": _number("int64", pa.Check.ge(1)),
            "failed": _number("int64", pa.Check.ge(0)), "micro_batch": _number("int64", pa.Check.ge(1)),
            "rank": _number("int64", pa.Check.ge(0)), "world_size": _number("int64", pa.Check.ge(1)),
            "device": _text(), "attention": _text(), "seconds": _number("float64", pa.Check.ge(0)),
        },
        strict=True, unique=["batch"], name="batches",
    )


def synthetic_schema(labels: Sequence[str], rules: Sequence[str]) -> pa.DataFrameSchema:
    """One row per image made: the cohort's columns, where it came from, a score per rule, and the decision.

    ``seed`` is the noise that it was drawn from, shared by a positive and its matched negative; older tables lack it.
    """
    return pa.DataFrameSchema(
        {
            **_image(labels, ("train",)), "sample_id": _text(unique=True),
            "charged_to": _text(isin=[*labels, "negative"]), "label_source_id": _text(nullable=True),
            "round": _number("int64", pa.Check.ge(0)), "seed": _number("int64", pa.Check.ge(0), required=False),
            **{rule: _number("float64", nullable=True) for rule in rules},
            "keep": pa.Column(bool), "reason": _text(nullable=True),
        },
        strict=True, name="synthetic",
    )


def fill_schema(labels: Sequence[str]) -> pa.DataFrameSchema:
    """One row per class and round: what was wanted, asked in it, made of that, and accepted of all rounds so far.

    ``budget`` and ``accepted`` count images that carry the label, each image for every label that it carries; for the
    label ``negative``, accepted positives that were asked with a negative, and those with an accepted one.
    ``acceptance``: of all images asked so far, ``upper_bound`` its one-sided upper confidence bound, both 0 to 1.
    ``status``: met, open (asked again), given up, or short; ``reason`` says why of the last two.
    """
    count, share = pa.Check.ge(0), pa.Check.in_range(0, 1)
    return pa.DataFrameSchema(
        {
            "label": _text(isin=[*labels, "negative"]), "round": _number("int64", count),
            **{key: _number("int64", count) for key in ("budget", "asked", "made", "accepted")},
            "acceptance": _number("float64", share, nullable=True), "upper_bound": _number("float64", share),
            "status": _text(isin=("met", "open", "short", "given up")), "reason": _text(nullable=True),
        },
        strict=True, unique=["label", "round"], name="fill",
    )


def arm_schema() -> pa.DataFrameSchema:
    """One row per training slot; duplicates, oversampling and schedules are all expressed here.

    ``labels_from``: the image whose labels the slot has; null, or no such column: those of its own image. ``added``:
    whether the slot was added for the balance of labels, beside each real image once.
    """
    return pa.DataFrameSchema(
        {
            "slot_id": _number("int64", pa.Check.ge(0)), "image_id": _text(), "sample_id": _text(nullable=True),
            "labels_from": _text(nullable=True),
            "repeat": _number("int64", pa.Check.ge(0)), "loss_weight": _number("float64", pa.Check.gt(0)),
            "phase": _number("int64", pa.Check.isin([1, 2])), "added": pa.Column("bool"),
        },
        strict=True, unique=["slot_id"], add_missing_columns=True, name="arm",
    )


def predictions_schema(labels: Sequence[str]) -> pa.DataFrameSchema:
    """One row per image and set of weights: labels and logits, never probabilities."""
    return pa.DataFrameSchema(
        {
            "image_id": _text(), "split": _text(isin=SPLITS), "patient_id": _text(), "study_id": _text(nullable=True),
            "view": _text(nullable=True, isin=VIEWS), "sex": _text(nullable=True, isin=SEXES),
            "fold": _number("int64", pa.Check.ge(0)), "arm": _text(), "seed": _number("int64", pa.Check.ge(0)),
            "weights": _text(isin=("raw", "ema")), **_labels(labels),
            **{f"logit_{label}": pa.Column("float32", nullable=False) for label in labels},
        },
        strict=True, unique=["image_id", "arm", "seed", "weights", "fold"], name="predictions",
    )


def comparison_schema() -> pa.DataFrameSchema:
    """One row per class or group, metric and pair of arms; ``reason`` says why a null is null."""
    optional = {key: _number("float64", nullable=True) for key in
                ("value", "rival_value", "delta", "ci_low", "ci_high", "p")}
    return pa.DataFrameSchema(
        {
            "arm": _text(), "rival": _text(nullable=True), "label": _text(), "metric": _text(), **optional,
            "n_positive_images": _number("int64"), "n_positive_patients": _number("int64"),
            "n_seeds": _number("int64", pa.Check.ge(1)), "reason": _text(nullable=True),
        },
        strict=True, name="comparison",
    )


def check_table(frame: pd.DataFrame, schema: pa.DataFrameSchema, *, where: str) -> pd.DataFrame:
    """Validate and coerce; raises ``TailfillError`` naming table, column, row and value of the first failure."""
    try:
        return schema.validate(frame, lazy=True)
    except pa.errors.SchemaErrors as errors:
        cases = errors.failure_cases
        first = cases.iloc[0]
        more = f" (and {len(cases) - 1} more)" if len(cases) > 1 else ""
        row = "" if pd.isna(first["index"]) else f", row {first['index']}"
        column = f"column '{first['column']}'" if isinstance(first["column"], str) else "table"
        raise TailfillError(
            f"{where}: {column}{row}: {first['failure_case']!r} fails {first['check']}{more}"
        ) from errors


def write_table(frame: pd.DataFrame, file: Path, schema: pa.DataFrameSchema | None = None) -> None:
    """Validate and write a Parquet file under a temporary name, then rename it."""
    checked = frame if schema is None else check_table(frame, schema, where=str(file))
    buffer = io.BytesIO()
    checked.to_parquet(buffer, index=False)
    write_atomically(file, buffer.getvalue())


def read_table(file: Path, schema: pa.DataFrameSchema | None = None) -> pd.DataFrame:
    """Read and validate a Parquet file; raises ``TailfillError`` naming the file when it is none."""
    if not file.is_file():
        raise TailfillError(f"{file}: no such table")
    try:
        frame = pd.read_parquet(file)
    except (OSError, ValueError) as error:
        raise TailfillError(f"{file}: is no readable Parquet table: {error}") from error
    return frame if schema is None else check_table(frame, schema, where=str(file))


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """A prepared cohort: its table and what its stamp says of it."""

    frame: pd.DataFrame
    labels: list[str]
    groups: dict[str, str]
    """Label to ``head``, ``medium``, ``tail`` or ``control``; fixed when the cohort was prepared."""
    roots: dict[str, Path]
    salt: str
    folder: Path

    def split(self, *names: str) -> pd.DataFrame:
        """The rows of the named splits, with a fresh index."""
        return self.frame[self.frame["split"].isin(names)].reset_index(drop=True)

    def in_group(self, group: str) -> list[str]:
        """The labels of a group, in column order."""
        return [label for label in self.labels if self.groups[label] == group]

    @property
    def scarce(self) -> list[str]:
        """The labels that a plan may fill and arms add slots for: the tail, and controls without a visible sign."""
        return [label for label in self.labels if self.groups[label] in ("tail", "control")]

    def image_paths(self, frame: pd.DataFrame) -> list[Path]:
        """The absolute path of each row's image file."""
        return [self.roots[root] / path for root, path in zip(frame["root"], frame["path"], strict=True)]


def load_cohort(folder: Path) -> Cohort:
    """Read a prepared cohort; raises ``TailfillError`` when it is missing, changed or invalid."""
    stamp = require(folder, "cohort")
    extra: dict[str, Any] = stamp["extra"]
    if not {"labels", "groups", "roots", "salt"} <= extra.keys():
        raise TailfillError(f"{folder}: holds a stage '{stamp['stage']}'; wanted: a prepared cohort")
    frame = read_table(verify(folder, "cohort", "cohort.parquet"), cohort_schema(extra["labels"]))
    return Cohort(
        frame=frame, labels=extra["labels"], groups=extra["groups"], salt=extra["salt"], folder=folder,
        roots={name: Path(path) for name, path in extra["roots"].items()},
    )


def load_further(folder: Path, cohort: Cohort) -> Cohort:
    """Read and check a further cohort, whose images an experiment on ``cohort`` may add to its own.

    Raises ``TailfillError`` as ``load_cohort`` does, for other labels, and for patients or images that both have.
    """
    further = load_cohort(folder)
    if further.labels != cohort.labels:
        differing = sorted(set(further.labels) ^ set(cohort.labels)) or ["their order"]
        raise TailfillError(f"{folder}: has other labels than {cohort.folder}: {', '.join(differing[:3])}")
    for key in ("patient_id", "image_id"):
        shared = sorted(set(further.frame[key]) & set(cohort.frame[key]))
        if shared:
            raise TailfillError(f"{folder}: shares {len(shared)} values of {key} with {cohort.folder}, '{shared[0]}' "
                                "for one; wanted: other patients, with ids of their own")
    return further
