"""PadChest: 174 findings in lists, 16-bit images, reports in Spanish.

::

    ROOT/<ImageDir>/<ImageID>, or all images in ROOT
    ROOT/PADCHEST_chest_x_ray_images_labels_160K_*.csv[.gz], or --csv FILE

Population: 160,861 images, six projections, of 67,625 patients of one Spanish hospital, 2009 to 2017. Labels: 27 % of
the reports labelled by physicians, the rest by a recurrent network that reached a micro F1 of .93 on their labels
(Bustos et al.); ``physicians_only`` sets the others aside. Licence: PadChest dataset research use agreement, no
redistribution. Citation: Bustos et al., Medical Image Analysis 66:101797, 2020.

``Labels`` is a Python list as text, some words with a space before them. The vocabulary says which of its words mean
which finding; words that mean none are counted in the stamp. A list with ``exclude`` or ``suboptimal study``, with
nothing but ``unchanged`` (from a film that is not here), or none at all, says nothing of the image: it is set aside.
The year of birth gives the age and is not kept. 16 bits are scaled by their full range.
"""

import ast
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from cohort.errors import TailfillError
from cohort.preparing.people import OLDEST, check_paths, describe_person, patient_ids
from cohort.preparing.settings import PrepareConfig
from cohort.sources.rows import LINES, BadRow, Rows, SourceTable, assemble, by_line, find_one, int8, read_rows
from cohort.vocabulary.findings import names_of
from cohort.vocabulary.labels import PADCHEST

TABLE = "PADCHEST_chest_x_ray_images_labels_160K*.csv"
COLUMNS = ("ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM",
           "Projection", "MethodLabel", "Labels")
UNUSABLE = frozenset(("exclude", "suboptimal study"))
UNCHANGED = "unchanged"


def find_files(config: PrepareConfig, root: Path) -> dict[str, Path]:
    """The label file; raises ``TailfillError`` when there is none."""
    if config.csv is not None and not Path(config.csv).is_file():
        raise TailfillError(f"prepare.csv is {config.csv!r}; wanted: PadChest's label file")
    return {"labels": Path(config.csv) if config.csv else find_one(root, TABLE)}


def read(config: PrepareConfig, root: Path, files: Mapping[str, Path]) -> SourceTable:
    """Every row of the label file as the cohort's columns; raises ``TailfillError`` for columns that are not there."""
    rows = read_rows(files["labels"], COLUMNS)
    table = SourceTable(files=[rows.file], space=PADCHEST, frame=pd.DataFrame(), n_read=rows.n_read,
                        patient_ids="given")
    image, folder = rows.text("ImageID"), rows.text("ImageDir").str.replace(r"\.0$", "", regex=True)
    in_folders = config.check == "none" or not any((root / name).is_file() for name in image.iloc[:10])
    cells: dict[str, object] = {
        "image_id": image, "root": "padchest", "path": check_paths(rows, folder + "/" + image if in_folders else image),
        "patient_id": patient_ids(rows, "PatientID"), "study_id": rows.text("StudyID").replace("", None),
    }
    cells |= describe_person(rows, table.nulled, view="Projection", age=None, sex="PatientSex_DICOM")
    cells["age"], table.nulled["age"] = ages(rows)
    codes, lists = rows.translate("Labels", read_list)
    meanings = {name: set(words) for name, words in names_of("padchest").items()}
    labels = pd.DataFrame({name: int8([None if words is None else int(bool(words & meaning)) for words in lists], codes)
                           for name, meaning in meanings.items()}, index=rows.lines)
    frame = assemble(rows, cells, labels)
    table.bad = rows.bad_rows(image)
    table.about = {"words_without_finding": count_unknown(codes, lists, meanings)}
    reasons = np.array([why_unusable(words or set()) for words in lists], dtype=object)[codes]
    if config.physicians_only:
        by_hand = (rows.text("MethodLabel") == "Physician").to_numpy()
        reasons[~by_hand & (reasons == "")] = "labelled by the network (physicians_only)"
    aside = pd.Series(reasons, index=rows.lines).loc[frame.index]
    names = frame["image_id"].to_dict()
    table.set_aside = [BadRow(file=rows.file, row=line, image_id=str(names[line]), reason=reason)
                       for line, reason in by_line(aside[aside != ""])]
    table.frame = frame[(aside == "").to_numpy()]
    return table


def read_list(text: str) -> set[str]:
    """The words of a list as text, none for the release's ``nan``; raises ``TailfillError`` for anything else."""
    if text in ("", "nan"):
        return set()
    try:
        words = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        words = None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise TailfillError(f"labels are '{text[:60]}'; wanted: a list of words, as in ['normal']")
    return {word.strip() for word in words} - {""}


def why_unusable(words: set[str]) -> str:
    """Why an image with these words has no labels, or nothing."""
    if found := sorted(words & UNUSABLE):
        return f"the report says '{found[0]}'"
    return "the report only says 'unchanged'" if words == {UNCHANGED} else "" if words else "the report names nothing"


def count_unknown(codes: np.ndarray, lists: list[set[str] | None], meanings: Mapping[str, set[str]]) -> dict[str, int]:
    """Rows per word that means no finding of the vocabulary, most frequent first."""
    known = set().union(*meanings.values()) | UNUSABLE | {UNCHANGED}
    rows = np.bincount(codes, minlength=len(lists))
    counted: Counter[str] = Counter()
    for words, n in zip(lists, rows, strict=True):
        counted.update(dict.fromkeys((words or set()) - known, int(n)))
    return dict(counted.most_common())


def ages(rows: Rows) -> tuple[pd.Series, pd.Index]:
    """Years between the year of birth and the study, by line, and the places where they are implausible."""
    year, born = (pd.to_numeric(rows.text(column).str.slice(0, 4), errors="coerce").astype("float64")
                  for column in ("StudyDate_DICOM", "PatientBirth"))
    age = year - born
    lost = age.notna() & ~age.between(0, OLDEST)
    return age.mask(lost), pd.Index(rows.lines[lost.to_numpy()] + rows.number * LINES)
