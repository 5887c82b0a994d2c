"""What all sources share: label files read line by line, and what people write in them made uniform.

A row's number is its line in the file, the header being line 1, so that an editor finds it. Rows that cannot be used
are collected with their reason, never dropped in silence.
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from cohort.errors import TailfillError, nearest
from cohort.labels import LabelSpace

OLDEST = 120.0
"""Ages above this many years are typing errors (NIH's 2017 file has 148 and 411); they become null and are counted."""
AGE_UNITS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
"""The suffixes of DICOM's age string, in years."""
VIEWS = {"PA": "PA", "AP": "AP", "LATERAL": "LATERAL", "LL": "LATERAL", "L": "LATERAL", "LAT": "LATERAL",
         "POSTEROANTERIOR": "PA", "POSTERO-ANTERIOR": "PA", "ANTEROPOSTERIOR": "AP", "ANTERO-POSTERIOR": "AP",
         "AP SUPINE": "AP", "AP ERECT": "AP", "FRONTAL PA": "PA", "FRONTAL AP": "AP"}
"""Spellings of the view (upper case), as NIH, MIMIC, CheXpert and DICOM write them."""
SEXES = {"M": "M", "MALE": "M", "F": "F", "FEMALE": "F", "W": "F"}
"""Spellings of the sex (upper case)."""


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that cannot be used: where it stands and why."""

    file: Path
    row: int
    image_id: str | None
    reason: str


@dataclass(kw_only=True)
class SourceTable:
    """What a source read: the cohort's columns, indexed by the line in ``file``; ``split`` is null where not given."""

    file: Path
    space: LabelSpace
    frame: pd.DataFrame
    n_read: int
    patient_ids: str
    """``given``, or ``image`` when the source has no patients and each image stands for its own."""
    bad: list[BadRow]
    nulled: dict[str, set[int]] = field(default_factory=lambda: {"view": set(), "age": set(), "sex": set()})
    """Lines whose view, age or sex was implausible or not understood, and became null."""
    groups: Mapping[str, str] = field(default_factory=dict)
    """Groups that the source knows, by label; those of other labels follow from the train images."""
    about: Mapping[str, object] = field(default_factory=dict)
    """What else the stamp is to say of the source."""
    write_images: Callable[..., None] | None = None
    """For a source that makes its images, called with ``processes=``; its rows need no check, and have their splits."""


def read_lines(file: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header, and (line, fields) of every row of a CSV; raises ``TailfillError`` when it has none or is no text."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream)
            header = [name.strip() for name in next(reader, [])]
            rows, line = [], reader.line_num + 1
            for fields in reader:
                if any(value.strip() for value in fields):
                    rows.append((line, [value.strip() for value in fields]))
                line = reader.line_num + 1
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TailfillError(f"{file}: cannot be read as a CSV: {error}") from error
    if not header or not rows:
        raise TailfillError(f"{file}: is empty; wanted: a header and at least one row")
    return header, rows


def positions(header: Sequence[str], wanted: Sequence[str], *, file: Path) -> dict[str, int]:
    """Where each wanted column stands; raises ``TailfillError`` naming the missing ones."""
    repeated = [name for name in wanted if header.count(name) > 1]
    if repeated:
        raise TailfillError(f"{file}: column '{repeated[0]}' stands more than once in its header")
    missing = [name for name in wanted if name not in header]
    if missing:
        raise TailfillError(f"{file}: has no column {', '.join(repr(name) for name in missing)}"
                            f"{nearest(missing[0], list(header))}")
    return {name: header.index(name) for name in wanted}


def parse_age(text: str) -> float | None:
    """Years from ``58``, ``058Y``, ``011M`` or ``005D``; None when empty, not understood or outside 0 to 120."""
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "Y")
    try:
        years = float(number) * AGE_UNITS[unit]
    except (ValueError, KeyError):
        return None
    return years if 0 <= years <= OLDEST else None


def parse_view(text: str) -> str | None:
    """``PA``, ``AP``, ``LATERAL``, or None when empty or not understood."""
    return VIEWS.get(text.upper())


def parse_sex(text: str) -> str | None:
    """``M``, ``F``, or None when empty or not understood."""
    return SEXES.get(text.upper())


def person(*, view: str, age: str, sex: str, nulled: dict[str, set[int]], line: int) -> dict[str, str | float | None]:
    """The uniform view, age and sex of a row; ``nulled`` notes its line where one was written but could not be used."""
    found: dict[str, str | float | None] = {"view": parse_view(view), "age": parse_age(age), "sex": parse_sex(sex)}
    for key, text in (("view", view), ("age", age), ("sex", sex)):
        if text and found[key] is None:
            nulled[key].add(line)
    return found


def check_relative(path: str) -> str:
    """``path`` itself; raises ``TailfillError`` when it is empty, absolute or climbs out of the root."""
    if not path:
        raise TailfillError("no image path given")
    parts = path.replace("\\", "/").split("/")
    if Path(path).is_absolute() or ".." in parts or parts[0] == "" or ":" in parts[0]:
        raise TailfillError(f"path '{path}' leaves the root; wanted: a path below it")
    return path


def to_frame(records: dict[int, dict[str, object]], space: LabelSpace) -> pd.DataFrame:
    """Records by line as a frame with the cohort's columns and types."""
    columns = ["image_id", "root", "path", "patient_id", "study_id", "view", "age", "sex", "split", *space.labels]
    frame = pd.DataFrame.from_dict(records, orient="index", columns=columns)
    kinds = {"age": "float64"} | dict.fromkeys(space.labels, "Int8")
    return frame.astype({column: kinds.get(column, "str") for column in columns})
