"""Any folder of radiographs with a CSV: one row per image.

Columns are found under their standard names (``image_id, path, findings, patient_id, study_id, view, age, sex,
split``) or under the names given in ``columns``. Labels stand either one per column (1, 0, or empty for unknown) or in
one column of names joined by ``|``. Other columns are ignored. Population, labels and licence are whatever the owner of
the folder says.

Not promised: a guess. A label of -1, an empty patient or a split called ``fold3`` makes the row a bad one.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import pandas as pd

from cohort.errors import TailfillError
from cohort.preparing.people import check_paths, describe_person, patient_ids
from cohort.preparing.settings import CsvColumns, PrepareConfig
from cohort.sources.rows import Rows, SourceTable, assemble, flag, positions, read_header, read_rows
from cohort.vocabulary.labels import LABEL_SPACES, OWN, LabelSpace

VALUES: dict[str, int | None] = {"1": 1, "1.0": 1, "0": 0, "0.0": 0, "": None}
"""How a label column may be written, the floats that pandas makes of integers with gaps included."""
SPLITS = {"train": "train", "training": "train", "train_val": "train", "trainval": "train", "val": "val",
          "valid": "val", "validate": "val", "validation": "val", "dev": "val", "test": "test"}
"""Spellings of the splits (lower case)."""


def find_files(config: PrepareConfig, root: Path) -> dict[str, Path]:
    """The label file; raises ``TailfillError`` when it is not given or does not exist."""
    if config.csv is None or not Path(config.csv).is_file():
        raise TailfillError(f"prepare.csv is {config.csv!r}; wanted: the CSV of the images")
    return {"labels": Path(config.csv)}


def choose_space(name: str, columns: CsvColumns) -> LabelSpace:
    """The label space: one of ours by name, or ``own`` with the labels in ``columns``."""
    if name != OWN:
        if columns.labels is not None:
            raise TailfillError(f"columns.labels is given beside label_space '{name}'; wanted: label_space {OWN}")
        return LABEL_SPACES[name]
    if not columns.labels:
        raise TailfillError(f"label_space is '{OWN}' without columns.labels; wanted: the labels in their order")
    return LabelSpace(name=OWN, labels=tuple(columns.labels))


def read(config: PrepareConfig, root: Path, files: Mapping[str, Path]) -> SourceTable:
    """Every row of the file as the cohort's columns; raises ``TailfillError`` for columns that are not there."""
    space = choose_space(config.space, config.columns)
    if not root.is_dir():
        raise TailfillError(f"{root}: is no folder; wanted: the folder of the images")
    file = files["labels"]
    header = read_header(file)
    at = person_columns(header, config.columns, file=file)
    label_at = {} if "findings" in at else label_columns(header, space, file=file)
    rows = read_rows(file, list(dict.fromkeys([at["image_id"], *at.values(), *label_at.values()])))
    return read_columns(rows, space, at, label_at, root_name="csv")


def read_columns(
    rows: Rows, space: LabelSpace, at: Mapping[str, str], label_at: Mapping[str, str], *, root_name: str
) -> SourceTable:
    """A table from rows whose columns are known: ``at`` names the column per role, ``label_at`` per label."""
    table = SourceTable(files=[rows.file], space=space, frame=pd.DataFrame(), n_read=rows.n_read,
                        patient_ids="given" if "patient_id" in at else "image")
    names = rows.text(at["image_id"])
    flag(rows, names == "", "no image id given")
    cells: dict[str, object] = {"image_id": names, "root": root_name, "path": check_paths(rows, rows.text(at["path"]))}
    cells["patient_id"] = patient_ids(rows, at["patient_id"]) if "patient_id" in at else names
    if "split" in at:
        cells["split"] = rows.strings(at["split"], read_split)
    if "study_id" in at:
        cells["study_id"] = rows.strings(at["study_id"], lambda text: text or None)
    labels = (rows.vectors(at["findings"], space.vector, space) if "findings" in at else
              rows.labels(space, label_at, read_value))
    cells |= describe_person(rows, table.nulled, view=at.get("view"), age=at.get("age"), sex=at.get("sex"))
    table.frame, table.bad = assemble(rows, cells, labels), rows.bad_rows(names)
    return table


def person_columns(header: list[str], columns: CsvColumns, *, file: Path) -> dict[str, str]:
    """Column per role; one that was named must exist, a standard one may be absent."""
    roles = [f.name for f in fields(columns) if f.name != "labels"]
    names = {role: getattr(columns, role) or role for role in roles if getattr(columns, role) or role in header}
    if "image_id" not in names and "path" not in names:
        raise TailfillError(f"{file}: has neither a column 'image_id' nor 'path'; name one with --columns.image_id")
    names["image_id"] = names.get("image_id", names.get("path", ""))
    names["path"] = names.get("path", names["image_id"])
    positions(header, sorted(set(names.values())), file=file)
    return names


def label_columns(header: list[str], space: LabelSpace, *, file: Path) -> dict[str, str]:
    """Column per label, under its canonical or another known spelling."""
    spelt = {label: [name for name in header if space.spellings.get(name, name) == label] for label in space.labels}
    missing = [label for label, names in spelt.items() if not names]
    if missing:
        names = ", ".join(repr(label) for label in missing)
        raise TailfillError(f"{file}: has no column for label {names} of label space '{space.name}'; add it, or give "
                            f"--label_space {OWN} --columns.labels, or --columns.findings")
    twice = next((names for names in spelt.values() if len(names) > 1), None)
    if twice:
        raise TailfillError(f"{file}: columns {' and '.join(repr(name) for name in twice)} are the same label")
    return {label: names[0] for label, names in spelt.items()}


def read_value(text: str) -> int | None:
    """A label cell; raises ``TailfillError`` for anything but 1, 0 and empty."""
    if text not in VALUES:
        raise TailfillError(f"'{text}'; wanted: 1, 0 or empty")
    return VALUES[text]


def read_split(text: str) -> str:
    """A split's name; raises ``TailfillError`` for one that is not understood."""
    split = SPLITS.get(text.lower())
    if split is None:
        raise TailfillError(f"split is '{text}'; wanted: train, val or test")
    return split
