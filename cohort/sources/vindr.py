"""VinDr-CXR: DICOM images that radiologists labelled by looking at them.

::

    ROOT/train/<image_id>.dicom, ROOT/test/<image_id>.dicom
    LABELS/image_labels_train.csv, image_labels_test.csv      (default: ROOT/annotations, else ROOT)

Population: 18,000 frontal PA images of adults of two Vietnamese hospitals, 2018 to 2020. Labels: 28 global labels; each
train image by three of seventeen radiologists, each test image by the consensus of five. So they are as good as
reading a film is: agreement of the train readers is stated nowhere as one number. Licence: PhysioNet Credentialed
Health Data License 1.5.0. Citation: Nguyen et al., Scientific Data 9:429, 2022.

Three readers become one label by ``READERS``: the majority's, or what any of them says. There are no patients: each
image stands for its own, and every report says so. Nodule and Mass are one label here. Not promised: boxes, which are
not read, and sex and age, which are in some of the DICOM headers only.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from cohort.errors import TailfillError
from cohort.preparing.people import check_paths
from cohort.preparing.settings import PrepareConfig
from cohort.sources.csv_folder import label_columns, read_value
from cohort.sources.rows import SourceTable, assemble, flag, read_header, read_rows
from cohort.vocabulary.labels import VINDR

FILES = {"train": "image_labels_train.csv", "test": "image_labels_test.csv"}


def majority(share: pd.DataFrame) -> pd.DataFrame:
    """Present where more than half of the readers say so; ``share``: of them, 0 to 1, per image and label."""
    return share > 0.5


def any_reader(share: pd.DataFrame) -> pd.DataFrame:
    """Present where any reader says so."""
    return share > 0


READERS: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {"majority": majority, "any": any_reader}


def find_files(config: PrepareConfig, root: Path) -> dict[str, Path]:
    """Both label files; raises ``TailfillError`` when one is missing."""
    inner = root / "annotations"
    folder = Path(config.labels) if config.labels else inner if inner.is_dir() else root
    missing = [name for name in FILES.values() if not (folder / name).is_file()]
    if missing:
        raise TailfillError(f"{folder}: has no {missing[0]}; wanted: {' and '.join(FILES.values())}")
    return {split: folder / name for split, name in FILES.items()}


def read(config: PrepareConfig, root: Path, files: Mapping[str, Path]) -> SourceTable:
    """Every image as the cohort's columns; the validation split is drawn. ``TailfillError`` for missing columns."""
    table = SourceTable(files=list(files.values()), space=VINDR, frame=pd.DataFrame(), n_read=0, patient_ids="image",
                        about={"readers": config.readers})
    frames = [read_part(table, split, READERS[config.readers], number=number) for number, split in enumerate(files)]
    table.frame = pd.concat(frames)
    return table


def read_part(
    table: SourceTable, split: str, join: Callable[[pd.DataFrame], pd.DataFrame], *, number: int
) -> pd.DataFrame:
    """One file's images; the readers of an image are joined at its first line, the others do not count as rows."""
    file = table.files[number]
    header = [name.replace("Other disease", "Other diseases") if name == "Other disease" else name
              for name in read_header(file)]
    columns = label_columns(header, VINDR, file=file)
    own = dict(zip(header, read_header(file), strict=True))
    rows = read_rows(file, ["image_id", *(own[column] for column in columns.values())], number=number,
                     optional=["rad_id"])
    image = rows.text("image_id")
    flag(rows, image == "", "no image id given")
    labels = rows.labels(VINDR, {label: own[column] for label, column in columns.items()}, read_value)
    if "rad_id" in rows.table.column_names:
        flag(rows, pd.DataFrame({"image": image, "reader": rows.text("rad_id")}).duplicated(),
             "this reader has already read this image")
    flag(rows, labels.isna().any(axis=1), "a label is empty; wanted: 1 or 0")
    table.bad += rows.bad_rows(image)
    good = ~np.isin(rows.lines, list(rows.bad))
    share = labels[good].astype("float64").groupby(image[good].to_numpy()).mean()
    first = image[good].drop_duplicates()
    table.n_read += len(first) + len(rows.bad)
    joined = join(share).astype("Int8").reindex(first.to_numpy()).set_axis(first.index)
    kept = rows.only(first.index)
    path = check_paths(kept, split + "/" + first + ".dicom")
    cells: dict[str, object] = {"image_id": first, "root": "vindr", "path": path, "patient_id": first}
    return assemble(kept, cells | ({"split": "test"} if split == "test" else {}), joined)
