"""Sex and age of MIMIC's patients, joined from MIMIC-IV by the patient's id.

MIMIC-IV shifts all dates of a patient by one secret amount and gives ``anchor_age`` in ``anchor_year``. The age at a
study is therefore anchor_age + (year of the study - anchor_year), exact to a year, where MIMIC-CXR-JPG's metadata table
dates the study. Without it the anchor age is taken, which may be years off, and the stamp says so. Ages above 89 are
all written as 91 by MIMIC-IV.
"""

import logging
from pathlib import Path

import pandas as pd

from cohort.errors import TailfillError
from cohort.preparing.people import OLDEST, parse_age, parse_sex, patient_ids
from cohort.sources.rows import read_rows

log = logging.getLogger(__name__)


def join_people(frame: pd.DataFrame, patients: Path, metadata: Path | None) -> tuple[pd.DataFrame, dict[str, object]]:
    """``frame`` with sex and age, and what the stamp is to say; raises ``TailfillError`` when no patient is found."""
    people = read_people(patients)
    found = people.reindex(frame["patient_id"].to_numpy()).set_axis(frame.index)
    if found["sex"].isna().all():
        raise TailfillError(f"{patients}: knows none of the {frame['patient_id'].nunique():,} patients")
    age, meaning = found["anchor_age"], "of the patient's anchor year, not of the study"
    if metadata is not None:
        years = read_years(metadata).reindex(frame["image_id"].to_numpy()).set_axis(frame.index)
        age, meaning = age + years - found["anchor_year"], "of the year of the study"
    lost = age.notna() & ~age.between(0, OLDEST)
    about = {"age": meaning, "without_people": int(found["sex"].isna().sum()), "implausible_ages": int(lost.sum())}
    log.info("prepare: %s knows %d of %d images' patients; age is that %s", patients.name, found["sex"].notna().sum(),
             len(frame), meaning)
    return frame.assign(sex=found["sex"].astype("str"), age=age.mask(lost).astype("float64")), about


def read_people(file: Path) -> pd.DataFrame:
    """Sex, anchor age and anchor year by patient; raises ``TailfillError`` for a patient who stands there twice."""
    rows = read_rows(file, ["subject_id", "gender", "anchor_age", "anchor_year"])
    people = pd.DataFrame({"sex": rows.strings("gender", parse_sex),
                           **{key: _numbers(rows.translate(key, parse_age if key == "anchor_age" else _year))
                              for key in ("anchor_age", "anchor_year")}}, index=rows.lines)
    names = patient_ids(rows, "subject_id")
    rows.require_all(unique=names)
    return people.set_axis(pd.Index(names))


def read_years(file: Path) -> pd.Series:
    """Year of the study by image, from MIMIC-CXR-JPG's metadata table."""
    rows = read_rows(file, ["dicom_id", "StudyDate"])
    years = pd.Series(_numbers(rows.translate("StudyDate", lambda text: _year(text[:4]))))
    names = rows.text("dicom_id")
    rows.require_all(unique=names)
    return years.set_axis(pd.Index(names))


def _numbers(translated: tuple) -> pd.api.extensions.ExtensionArray:
    codes, answers = translated
    return pd.array([float("nan") if answer is None else answer for answer in answers], dtype="float64").take(codes)


def _year(text: str) -> float:
    if len(text) != 4 or not text.isdigit():
        raise TailfillError(f"year is '{text}'; wanted: four digits")
    return float(text)
