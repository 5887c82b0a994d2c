"""What people write of a person and of an image's place, made uniform: view, age, sex, ids, paths.

A view, age or sex that is not understood becomes null and is counted; an id or a path that is not understood makes the
row a bad one, for a patient who is taken for another, or an image outside the root, spoils everything after it.

Ids that a spreadsheet or pandas has turned into floats: ``10000032.0`` still names its patient and is read as
``10000032``; ``1.0000032e+07`` may have lost digits and is refused.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from cohort.errors import TailfillError
from cohort.sources.rows import LINES, Rows

OLDEST = 120.0
"""Ages above this many years are typing errors (NIH's 2017 file has 148 and 411); they become null and are counted."""
AGE_UNITS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
"""The suffixes of DICOM's age string, in years."""
VIEWS = {
    **dict.fromkeys(("PA", "POSTEROANTERIOR", "POSTERO-ANTERIOR", "FRONTAL PA", "PA LLD", "PA RLD"), "PA"),
    **dict.fromkeys(("AP", "ANTEROPOSTERIOR", "ANTERO-POSTERIOR", "AP SUPINE", "AP ERECT", "FRONTAL AP", "AP LLD",
                     "AP RLD", "AP_HORIZONTAL"), "AP"),
    **dict.fromkeys(("LATERAL", "LL", "RL", "L", "LAT", "LEFT LATERAL", "RIGHT LATERAL", "XTABLE LATERAL",
                     "LATERO-LATERAL"), "LATERAL"),
}
"""Spellings of the view (upper case), as NIH, MIMIC, CheXpert, PadChest and DICOM write them; decubitus counts as its
projection, oblique and axial views are none of the three."""
SEXES = {"M": "M", "MALE": "M", "F": "F", "FEMALE": "F", "W": "F"}
"""Spellings of the sex (upper case)."""
SUSPICIOUS_PATH = r"^$|\.\.|\\|^/|^[^/]*:"
"""What a path must match before it is looked at closely; the rest lie below the root."""
_FLOAT_ID, _EXPONENT = re.compile(r"\d+\.0+"), re.compile(r"\d+(\.\d+)?[eE][+-]?\d+")


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


def parse_id(text: str, what: str) -> str:
    """An id as text, a float's ``.0`` removed; raises ``TailfillError`` when it is empty or has an exponent."""
    if not text or text.lower() == "nan":
        raise TailfillError(f"no {what} given")
    if _EXPONENT.fullmatch(text):
        raise TailfillError(f"{what} is '{text}', a number that may have lost digits; wanted: the id as text")
    return text.partition(".")[0] if _FLOAT_ID.fullmatch(text) else text


def patient_ids(rows: Rows, column: str) -> pd.Series:
    """The patients of a column, by line; rows without one are bad."""
    return rows.strings(column, lambda text: parse_id(text, "patient id"))


def check_relative(path: str) -> str:
    """``path`` itself; raises ``TailfillError`` when it is empty, absolute or climbs out of the root."""
    if not path:
        raise TailfillError("no image path given")
    parts = path.replace("\\", "/").split("/")
    if Path(path).is_absolute() or ".." in parts or parts[0] == "" or ":" in parts[0]:
        raise TailfillError(f"path '{path}' leaves the root; wanted: a path below it")
    return path


def check_paths(rows: Rows, paths: pd.Series) -> pd.Series:
    """``paths``, by line, as they are; rows whose path is null, or leaves the root, are bad."""
    for position in np.flatnonzero(paths.fillna("").str.contains(SUSPICIOUS_PATH, regex=True).to_numpy(dtype=bool)):
        try:
            check_relative(paths.iloc[position] if isinstance(paths.iloc[position], str) else "")
        except TailfillError as error:
            rows.bad.setdefault(int(rows.lines[position]), str(error))
    return paths


def describe_person(
    rows: Rows, nulled: dict[str, pd.Index], *, view: str | None, age: str | None, sex: str | None
) -> dict[str, pd.Series]:
    """Uniform view, age and sex from the columns of these names (None: not in the file), by line.

    ``nulled`` notes the rows where one was written but could not be used.
    """
    parsers = {"view": (view, parse_view), "age": (age, parse_age), "sex": (sex, parse_sex)}
    found: dict[str, pd.Series] = {}
    for key, (column, parser) in parsers.items():
        if column is None:
            continue
        codes, answers = rows.translate(column, parser)
        empty, unknown = rows.translate(column, str)[1], np.array([answer is None for answer in answers])
        written = np.array([bool(word) for word in empty])
        lost = rows.lines[(unknown & written)[codes]]
        nulled[key] = nulled.get(key, pd.Index([], dtype="int64")).append(pd.Index(lost + rows.number * LINES))
        kind = "float64" if key == "age" else "str"
        values = pd.Series(answers, dtype=kind)
        found[key] = pd.Series(values.array.take(codes), index=rows.lines)
    return found
