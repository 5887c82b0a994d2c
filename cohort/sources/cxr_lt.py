"""CXR-LT 2024 and 2023: long-tailed labels for MIMIC-CXR-JPG's images, with the challenge's own splits.

::

    LABELS[/cxr-lt-2024]/train_labeled.csv, development_labeled_task{1,2,3}.csv, test_labeled_task{1,2,3}.csv
    LABELS[/cxr-lt-2023]/train.csv, development.csv, test.csv
    IMAGES/files/p10/p10000032/s50414267/<dicom_id>.jpg      (MIMIC-CXR-JPG)
    --patients patients.csv[.gz] of MIMIC-IV, --metadata mimic-cxr-2.0.0-metadata.csv[.gz]      (sex and age; optional)

Population: 377,110 images, frontal and lateral, of 65,379 emergency and ward patients of one American hospital, 2011 to
2016. Labels: mined from the reports, one set per study, so a lateral carries what only the frontal may show; those of
task 2's test set (406 images) were set by hand. Accuracy of the mined ones: not stated. Licence: PhysioNet Credentialed
Health Data License, with training and a data use agreement; no image or label may be passed on. Citation: Lin et al.
2025 (arXiv 2506.07984); Holste et al., Medical Image Analysis 2024 (2023); Johnson et al. 2019 (MIMIC-CXR-JPG).

Columns are selected by name: Nodule and Normal change places between the tasks' files. ``Normal`` (the report says so)
is not 2023's ``No Finding`` (none of the other labels). Task 3's five labels are unknown in train, whatever the files
hold, and count as tail; its other 40 are unknown outside train. Not promised: the gold labels for anything but task 2.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from cohort.errors import TailfillError, nearest
from cohort.preparing.mimic_people import join_people
from cohort.preparing.people import check_paths, describe_person, parse_id, parse_view, patient_ids
from cohort.preparing.settings import PrepareConfig
from cohort.sources.nih import zero_or_one
from cohort.sources.rows import Rows, SourceTable, assemble, find_one, flag, read_header, read_rows
from cohort.vocabulary.labels import CXR_LT_2023, CXR_LT_2024, CXR_LT_2024_GOLD, CXR_LT_2024_UNSEEN, UNSEEN, LabelSpace

SPACES: dict[tuple[int, int], LabelSpace] = {
    (2023, 1): CXR_LT_2023, (2024, 1): CXR_LT_2024, (2024, 2): CXR_LT_2024_GOLD, (2024, 3): CXR_LT_2024_UNSEEN,
}
"""Year and task to label space."""
FILES = {
    2023: {"train": "train.csv", "val": "development.csv", "test": "test.csv"},
    2024: {"train": "train_labeled.csv", "val": "development_labeled_task{}.csv", "test": "test_labeled_task{}.csv"},
}
IDS = ("dicom_id", "subject_id", "study_id", "ViewPosition")
CODED_VIEW = "ViewCodeSequence_CodeMeaning"
PATHS = ("fpath", "path")
"""Names of the column with an image's path."""


def find_files(config: PrepareConfig, root: Path) -> dict[str, Path]:
    """The three label files, and those of the people where given; raises ``TailfillError`` naming what is missing."""
    if not root.is_dir() and config.check != "none":
        raise TailfillError(f"{root}: is no folder; wanted: MIMIC-CXR-JPG's, which holds files/")
    folder = Path(config.labels or root)
    inner = folder / f"cxr-lt-{config.year}"
    folder = inner if inner.is_dir() else folder
    files = {split: find_one(folder, name.format(config.task)) for split, name in FILES[config.year].items()}
    for key in ("patients", "metadata"):
        given = getattr(config, key)
        if given is not None and not Path(given).is_file():
            raise TailfillError(f"prepare.{key} is {given!r}; wanted: a file")
        files |= {key: Path(given)} if given else {}
    if "metadata" in files and "patients" not in files:
        raise TailfillError("prepare.metadata is given without prepare.patients, for whom it dates the studies")
    return files


def read(config: PrepareConfig, root: Path, files: Mapping[str, Path]) -> SourceTable:
    """Every row of the three files as the cohort's columns; raises ``TailfillError`` for columns that are not there."""
    space = SPACES[config.year, config.task]
    if config.label_space not in (None, space.name):
        raise TailfillError(f"prepare.label_space is '{config.label_space}' with year {config.year} and task "
                            f"{config.task}; wanted: {space.name}, or nothing")
    table = SourceTable(files=[files[split] for split in FILES[config.year]], space=space, frame=pd.DataFrame(),
                        n_read=0, patient_ids="given")
    frames = []
    for number, split in enumerate(FILES[config.year]):
        known = space.labels if config.task != 3 else CXR_LT_2024.labels if split == "train" else UNSEEN
        frames.append(read_split(table, split, known, number=number))
    table.frame = pd.concat(frames)
    table.groups = {label: "tail" for label in UNSEEN if label in space.labels}
    if "patients" in files:
        table.frame, table.about = join_people(table.frame, files["patients"], files.get("metadata"))
    return table


def read_split(table: SourceTable, split: str, known: tuple[str, ...], *, number: int) -> pd.DataFrame:
    """The usable rows of one file, of whose labels those in ``known`` are read; the others go to ``table.bad``."""
    file = table.files[number]
    header = read_header(file)
    missing = [label for label in known if label not in header]
    if missing:
        raise TailfillError(f"{file}: has no column for label {', '.join(map(repr, missing))}"
                            f"{nearest(missing[0], header)}")
    path = next((name for name in PATHS if name in header), PATHS[0])
    rows = read_rows(file, [*IDS, path, *known], number=number, optional=[CODED_VIEW])
    names = rows.text("dicom_id")
    flag(rows, names == "", "no dicom_id given")
    ids = {"image_id": names, "path": check_paths(rows, rows.text(path)),
           "patient_id": patient_ids(rows, "subject_id"), "study_id": rows.strings("study_id", read_study)}
    check_against_path(rows, ids)
    person = fill_view(rows, describe_person(rows, table.nulled, view="ViewPosition", age=None, sex=None))
    labels = rows.labels(table.space, {label: label for label in known}, zero_or_one)
    table.bad += rows.bad_rows(names)
    table.n_read += rows.n_read
    return assemble(rows, {**ids, **person, "root": "mimic", "split": split}, labels)


def fill_view(rows: Rows, person: dict[str, pd.Series]) -> dict[str, pd.Series]:
    """``person`` with the view's code where the view itself is unknown, for files that have the code."""
    if CODED_VIEW not in rows.table.column_names:
        return person
    return person | {"view": person["view"].fillna(rows.strings(CODED_VIEW, parse_view))}


def read_study(text: str) -> str:
    """``s50414267`` from itself or from ``50414267``; raises ``TailfillError`` for anything else."""
    digits = parse_id(text.removeprefix("s"), "study id")
    if not digits.isdigit():
        raise TailfillError(f"study id is '{text}'; wanted: s and digits, as in s50414267")
    return f"s{digits}"


def check_against_path(rows: Rows, ids: Mapping[str, pd.Series]) -> None:
    """Rows whose path does not follow from their patient, study and image are bad: one of them is wrong."""
    patient = ids["patient_id"]
    wanted = "files/p" + patient.str[:2] + "/p" + patient + "/" + ids["study_id"] + "/" + ids["image_id"] + ".jpg"
    flag(rows, (ids["path"] != wanted).fillna(True),
         "path names another patient, study or image than its row; wanted: "
         "files/p10/p<subject_id>/s<study_id>/<dicom_id>.jpg")
