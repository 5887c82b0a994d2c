"""Any folder of radiographs with a CSV: one row per image.

Columns are found under their standard names (``image_id, path, findings, patient_id, study_id, view, age, sex,
split``) or under the names given in ``columns``. Labels stand either one per column (1, 0, or empty for unknown) or in
one column of names joined by ``|``. Other columns are ignored.

Not promised: a guess. A label of -1, an empty patient or a split called ``fold3`` makes the row a bad one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from cohort.errors import TailfillError
from cohort.labels import LABEL_SPACES, LabelSpace
from cohort.sources.rows import BadRow, SourceTable, check_relative, person, positions, read_lines, to_frame

OWN = "own"
"""Name of the label space that consists of ``columns.labels``."""
VALUES: dict[str, int | None] = {"1": 1, "1.0": 1, "0": 0, "0.0": 0, "": None}
"""How a label column may be written, the floats that pandas makes of integers with gaps included."""
SPLITS = {"train": "train", "training": "train", "train_val": "train", "trainval": "train", "val": "val",
          "valid": "val", "validation": "val", "dev": "val", "test": "test"}
"""Spellings of the splits (lower case)."""


@dataclass(frozen=True, kw_only=True)
class CsvColumns:
    """Names of the columns; null takes the standard name where the file has it."""

    image_id: str | None = None
    """The image's id, unique; standard ``image_id``, else the path stands for it."""
    path: str | None = None
    """The image's path below root; standard ``path``, else the id stands for it."""
    findings: str | None = None
    """Labels joined by ``|``; standard ``findings``, else one column per label."""
    labels: tuple[str, ...] | None = None
    """The labels, for label_space ``own``; default: those of the label space."""
    patient_id: str | None = None
    """Standard ``patient_id``; without one each image stands for its own patient, and the stamp says so."""
    study_id: str | None = None
    """Standard ``study_id``."""
    view: str | None = None
    """PA, AP or lateral, in usual spellings; standard ``view``."""
    age: str | None = None
    """Years, or DICOM's 058Y; standard ``age``."""
    sex: str | None = None
    """M or F, in usual spellings; standard ``sex``."""
    split: str | None = None
    """train, val or test; standard ``split``. What the file leaves out is drawn by patient."""


def find_files(file: Path | None) -> dict[str, Path]:
    """The label file; raises ``TailfillError`` when it is not given or does not exist."""
    if file is None or not file.is_file():
        raise TailfillError(f"prepare.csv is {str(file) if file else None!r}; wanted: the CSV of the images")
    return {"labels": file}


def choose_space(name: str, columns: CsvColumns) -> LabelSpace:
    """The label space: one of ours by name, or ``own`` with the labels in ``columns``."""
    if name != OWN:
        if columns.labels is not None:
            raise TailfillError(f"columns.labels is given beside label_space '{name}'; wanted: label_space {OWN}")
        return LABEL_SPACES[name]
    if not columns.labels:
        raise TailfillError(f"label_space is '{OWN}' without columns.labels; wanted: the labels in their order")
    return LabelSpace(name=OWN, labels=tuple(columns.labels))


def read(file: Path, *, root: Path, space: LabelSpace, columns: CsvColumns) -> SourceTable:
    """Every row of ``file`` as the cohort's columns; raises ``TailfillError`` for columns that are not there."""
    if not root.is_dir():
        raise TailfillError(f"{root}: is no folder; wanted: the folder of the images")
    header, lines = read_lines(file)
    at = _person_columns(header, columns, file=file)
    label_at = {} if "findings" in at else _label_columns(header, space, file=file)
    table = SourceTable(file=file, space=space, frame=to_frame({}, space), n_read=len(lines), bad=[],
                        patient_ids="given" if "patient_id" in at else "image")
    records = {}
    for line, values in lines:
        name = values[at["image_id"]] if len(values) > at["image_id"] else ""
        try:
            if len(values) != len(header):
                raise TailfillError(f"has {len(values)} fields; wanted: {len(header)}, as in the header")
            labels = (space.vector(values[at["findings"]]) if "findings" in at else
                      {label: _value(values[position], label) for label, position in label_at.items()})
            records[line] = _record({key: values[position] for key, position in at.items()}, table, line) | labels
        except TailfillError as error:
            table.bad.append(BadRow(file=file, row=line, image_id=name or None, reason=str(error)))
    table.frame = to_frame(records, space)
    return table


def _person_columns(header: list[str], columns: CsvColumns, *, file: Path) -> dict[str, int]:
    """Position per role; a column that was named must exist, a standard one may be absent."""
    roles = [f.name for f in fields(columns) if f.name != "labels"]
    names = {role: getattr(columns, role) or role for role in roles if getattr(columns, role) or role in header}
    if "image_id" not in names and "path" not in names:
        raise TailfillError(f"{file}: has neither a column 'image_id' nor 'path'; name one with --columns.image_id")
    names["image_id"] = names.get("image_id", names.get("path", ""))
    names["path"] = names.get("path", names["image_id"])
    at = positions(header, sorted(set(names.values())), file=file)
    return {role: at[name] for role, name in names.items()}


def _label_columns(header: list[str], space: LabelSpace, *, file: Path) -> dict[str, int]:
    """Position per label, under its canonical or another known spelling."""
    spelt = {label: [name for name in header if space.spellings.get(name, name) == label] for label in space.labels}
    missing = [label for label, names in spelt.items() if not names]
    if missing:
        names = ", ".join(repr(label) for label in missing)
        raise TailfillError(f"{file}: has no column for label {names} of label space '{space.name}'; add it, or give "
                            f"--label_space {OWN} --columns.labels, or --columns.findings")
    twice = next((names for names in spelt.values() if len(names) > 1), None)
    if twice:
        raise TailfillError(f"{file}: columns {' and '.join(repr(name) for name in twice)} are the same label")
    return {label: header.index(names[0]) for label, names in spelt.items()}


def _value(text: str, label: str) -> int | None:
    if text not in VALUES:
        raise TailfillError(f"label '{label}' is '{text}'; wanted: 1, 0 or empty")
    return VALUES[text]


def _record(row: Mapping[str, str], table: SourceTable, line: int) -> dict[str, object]:
    """One row in the cohort's columns, its labels left out; raises ``TailfillError`` with the reason it cannot be."""
    image_id, split = row["image_id"], None
    if not image_id:
        raise TailfillError("no image id given")
    if "patient_id" in row and not row["patient_id"]:
        raise TailfillError("no patient id given")
    if "split" in row:
        split = SPLITS.get(row["split"].lower())
        if split is None:
            raise TailfillError(f"split is '{row['split']}'; wanted: train, val or test")
    path = check_relative(row["path"])
    about = person(view=row.get("view", ""), age=row.get("age", ""), sex=row.get("sex", ""), nulled=table.nulled,
                   line=line)
    return {"image_id": image_id, "root": "csv", "path": path, "patient_id": row.get("patient_id", image_id),
            "study_id": row.get("study_id") or None, "split": split, **about}
