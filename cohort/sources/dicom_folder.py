"""Any folder of DICOM radiographs with a label file.

::

    ROOT/**/*      (files are known by suffix, or by DICOM's mark where they have another one)
    --csv FILE      a row per image: ``image_id`` (SOPInstanceUID) or ``path`` below ROOT, and labels as source csv

Population, labels and licence are whatever the owner of the folder says. Ids, view, age and sex come from the headers;
a column of the label file wins where it has one. A patient is the hash of the header's PatientID, or of the label
file's: no name, no birth date and no hospital number is ever written to a table. An image without one is its own
patient. A file that admits text burned into its image is kept and warned about; look at it, for a generator may learn
the text. Images without a row in the label file are set aside.

Not promised: that a header is right, or that an image of modality OT is a chest.
"""

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from cohort.dicom.header import Header, hash_patient, is_dicom, read_header
from cohort.errors import TailfillError
from cohort.preparing.people import check_paths, describe_person, parse_age, parse_sex, parse_view, patient_ids
from cohort.preparing.settings import PrepareConfig
from cohort.sources.csv_folder import choose_space, label_columns, person_columns, read_value
from cohort.sources.csv_folder import find_files as find_files
from cohort.sources.rows import BadRow, Rows, SourceTable, assemble, flag, read_rows
from cohort.sources.rows import read_header as read_names

log = logging.getLogger(__name__)

THREADS = 4
"""Headers are read from the disk far more than they are computed with."""


def read(config: PrepareConfig, root: Path, files: Mapping[str, Path]) -> SourceTable:
    """Every row of the label file, joined with the header of its image."""
    space = choose_space(config.space, config.columns)
    if not root.is_dir():
        raise TailfillError(f"{root}: is no folder; wanted: the folder of the images")
    headers, problems = read_headers(root)
    file = files["labels"]
    names = read_names(file)
    at = person_columns(names, config.columns, file=file)
    label_at = {} if "findings" in at else label_columns(names, space, file=file)
    by = "path" if config.columns.path or "path" in names else "image_id"
    rows = read_rows(file, list(dict.fromkeys([at[by], *at.values(), *label_at.values()])))
    table = SourceTable(files=[file], space=space, frame=pd.DataFrame(), n_read=rows.n_read, patient_ids="given")
    cells, found = join_headers(rows, at, by, headers, problems, table)
    labels = (rows.vectors(at["findings"], space.vector, space) if "findings" in at else
              rows.labels(space, label_at, read_value))
    table.frame, table.bad = assemble(rows, cells, labels), rows.bad_rows(rows.text(at[by]))
    unlabelled = headers[~headers["path"].isin(found["path"])]
    table.set_aside = [BadRow(file=root / path, row=0, image_id=name, reason="has no row in the label file")
                       for path, name in zip(unlabelled["path"], unlabelled["image_id"], strict=True)]
    table.n_read += len(table.set_aside)
    burned = int(headers["burned_in"].sum())
    if burned:
        log.warning("prepare: %d images say that text is burned into them; look before anything learns it", burned)
    alone = table.frame["patient_id"] == table.frame["image_id"]
    if alone.any():
        table.patient_ids = "image" if alone.all() else "some"
    table.about = {"burned_in_annotation": burned}
    return table


def read_headers(root: Path) -> tuple[pd.DataFrame, dict[str, str]]:
    """A row per readable DICOM file below ``root``, its path relative to it; and path to reason for the others."""
    paths = sorted(path for path in root.rglob("*") if path.is_file() and is_dicom(path))

    def read_one(path: Path) -> Header | str:
        try:
            return read_header(path)
        except TailfillError as error:
            return str(error)

    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(tqdm(pool.map(read_one, paths), total=len(paths), desc="headers", unit="file", mininterval=1.0))
    named = [(path.relative_to(root).as_posix(), answer) for path, answer in zip(paths, answers, strict=True)]
    problems = {path: answer for path, answer in named if isinstance(answer, str)}
    headers = pd.DataFrame([{"path": path, **asdict(answer)} for path, answer in named if isinstance(answer, Header)],
                           columns=["path", *Header.__annotations__])
    return headers, problems


def join_headers(
    rows: Rows, at: Mapping[str, str], by: str, headers: pd.DataFrame, problems: Mapping[str, str], table: SourceTable
) -> tuple[dict[str, object], pd.DataFrame]:
    """The cohort's columns but the labels, and the headers in the order of the rows; rows without an image are bad."""
    keys = check_paths(rows, rows.text(at["path"])) if by == "path" else rows.text(at["image_id"])
    rows.reject(keys.isin(list(problems)).to_numpy(), lambda position: problems[keys.iloc[position]])
    found = headers.drop_duplicates(by).set_index(by, drop=False).reindex(keys.to_numpy()).set_axis(rows.lines)
    flag(rows, found["image_id"].isna(), f"no DICOM image below the root has this {by}")
    patient = found["patient_id"].where(found["patient_id"] != "", found["image_id"])
    if "patient_id" in at:
        patient = patient_ids(rows, at["patient_id"]).map(hash_patient, na_action="ignore")
    person: dict[str, pd.Series] = {
        "view": found["view"].map(parse_view, na_action="ignore").astype("str"),
        "sex": found["sex"].map(parse_sex, na_action="ignore").astype("str"),
        "age": found["age"].map(parse_age, na_action="ignore").astype("float64")}
    given = describe_person(rows, table.nulled, view=at.get("view"), age=at.get("age"), sex=at.get("sex"))
    study = found["study_id"].where(found["study_id"] != "")
    cells: dict[str, object] = {"image_id": found["image_id"], "root": "dicom", "path": found["path"],
                                "patient_id": patient, "study_id": study}
    filled = {key: given[key].fillna(values) if key in given else values for key, values in person.items()}
    return cells | filled, found
