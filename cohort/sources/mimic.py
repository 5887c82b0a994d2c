"""MIMIC-CXR-JPG with its own labels: the CheXpert labeller's table.

::

    ROOT/files/p10/p10000032/s50414267/<dicom_id>.jpg
    LABELS/mimic-cxr-2.0.0-chexpert.csv[.gz], ...-metadata.csv[.gz], ...-split.csv[.gz]      (default: ROOT)
    --patients patients.csv[.gz] of MIMIC-IV      (sex and age; optional)

Population: 377,110 images, frontal and lateral, of 65,379 emergency and ward patients of one American hospital, 2011 to
2016. Labels: CheXpert's rule-based labeller on the reports, per study, 1, 0, -1 or blank; agreement with radiologists
differs much between findings (Johnson et al. 2019 give F1 per label). Licence: PhysioNet Credentialed Health Data
License, no redistribution. Citation: Johnson et al. 2019 (arXiv 1901.07042); Irvin et al. 2019 for the labeller.

The official train, validate and test splits are kept. Images of the few studies that the labeller's table lacks are
set aside. Policies for -1 and blank as in ``chexpert``. Not promised: the negbio table, which is a labeller of its own.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from cohort.errors import TailfillError
from cohort.preparing.mimic_people import join_people
from cohort.preparing.people import describe_person, patient_ids
from cohort.preparing.settings import PrepareConfig
from cohort.sources.chexpert import mention_reader
from cohort.sources.csv_folder import read_split
from cohort.sources.cxr_lt import CODED_VIEW, fill_view, read_study
from cohort.sources.rows import BadRow, SourceTable, assemble, by_line, find_one, read_rows
from cohort.vocabulary.labels import CHEXPERT

TABLES = {"metadata": "mimic-cxr-*-metadata.csv", "labels": "mimic-cxr-*-chexpert.csv",
          "split": "mimic-cxr-*-split.csv"}
UNLABELLED = "its study is not in the labeller's table"


def find_files(config: PrepareConfig, root: Path) -> dict[str, Path]:
    """The three tables, and the patients' where given; raises ``TailfillError`` naming what is missing."""
    folder = Path(config.labels or root)
    if config.patients is not None and not Path(config.patients).is_file():
        raise TailfillError(f"prepare.patients is {config.patients!r}; wanted: a file")
    return {key: find_one(folder, pattern) for key, pattern in TABLES.items()} | (
        {"patients": Path(config.patients)} if config.patients else {})


def read(config: PrepareConfig, root: Path, files: Mapping[str, Path]) -> SourceTable:
    """Every image of the metadata table as the cohort's columns; ``TailfillError`` for columns that are not there."""
    rows = read_rows(files["metadata"], ["dicom_id", "subject_id", "study_id", "ViewPosition"], optional=[CODED_VIEW])
    table = SourceTable(files=[rows.file], space=CHEXPERT, frame=pd.DataFrame(), n_read=rows.n_read,
                        patient_ids="given", about={"uncertain": config.uncertain, "unmentioned": config.unmentioned})
    image, patient = rows.text("dicom_id"), patient_ids(rows, "subject_id")
    study = rows.strings("study_id", read_study)
    person = fill_view(rows, describe_person(rows, table.nulled, view="ViewPosition", age=None, sex=None))
    split = read_splits(files["split"]).reindex(image.to_numpy()).set_axis(rows.lines)
    rows.reject(split.isna().to_numpy(), lambda position: f"stands not in {files['split'].name}")
    path = "files/p" + patient.str[:2] + "/p" + patient + "/" + study + "/" + image + ".jpg"
    by_study = read_labels(config, files["labels"])
    labels = by_study.reindex(study.to_numpy()).set_axis(rows.lines)
    cells = {"image_id": image, "root": "mimic", "path": path, "patient_id": patient, "study_id": study, "split": split}
    frame = assemble(rows, cells | person, labels)
    table.bad = rows.bad_rows(image)
    unlabelled = ~frame["study_id"].isin(by_study.index)
    table.set_aside = [BadRow(file=rows.file, row=line, image_id=name, reason=UNLABELLED)
                       for line, name in by_line(frame["image_id"][unlabelled])]
    table.frame = frame[~unlabelled]
    if "patients" in files:
        table.frame, people = join_people(table.frame, files["patients"], files["metadata"])
        table.about = dict(table.about) | people
    return table


def read_splits(file: Path) -> pd.Series:
    """Split by image; raises ``TailfillError`` for the first row that cannot be used."""
    rows = read_rows(file, ["dicom_id", "split"])
    split = rows.strings("split", read_split)
    rows.require_all()
    return split.set_axis(pd.Index(rows.text("dicom_id")))


def read_labels(config: PrepareConfig, file: Path) -> pd.DataFrame:
    """Labels by study; raises ``TailfillError`` for the first row that cannot be used, or a study that stands twice."""
    rows = read_rows(file, ["study_id", *CHEXPERT.labels])
    labels = rows.labels(CHEXPERT, {label: label for label in CHEXPERT.labels}, mention_reader(config))
    studies = rows.strings("study_id", read_study)
    rows.require_all(unique=studies)
    return labels.set_axis(pd.Index(studies))
