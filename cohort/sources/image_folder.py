"""An image folder as Hugging Face's ``datasets`` library reads and writes it.

::

    ROOT/metadata.{csv,jsonl,parquet}, or ROOT/{train,validation,test}/metadata.*      with a column ``file_name``
    ROOT/{train,validation,test}/<label>/*.png      without metadata: one label an image, the folder's name

Population, labels and licence are whatever the dataset's card says. ``file_name`` is relative to its metadata file; the
split is the name of the folder where the image lies. Other columns are found as in source ``csv`` (``columns``), a list
of findings as well as names joined by ``|``. In folders named by a label, every other label is absent.

Not promised: datasets in the library's Arrow format, several images a row, integers that stand for class names.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from cohort.errors import TailfillError
from cohort.preparing.settings import PrepareConfig
from cohort.sources.csv_folder import SPLITS, choose_space, label_columns, person_columns, read_columns
from cohort.sources.rows import LINES, Rows, SourceTable, read_header, read_rows
from cohort.vocabulary.labels import OWN, LabelSpace

NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_NAME = "file_name"
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".dcm", ".dicom")


def find_files(config: PrepareConfig, root: Path) -> dict[str, Path]:
    """The metadata files by the folder that they lie in; none for folders named by their label."""
    if not root.is_dir():
        raise TailfillError(f"{root}: is no folder; wanted: the folder of the images")
    folders = [root, *sorted(folder for folder in root.iterdir() if folder.is_dir())]
    found = {folder.name if folder != root else "root": folder / name
             for folder in folders for name in NAMES if (folder / name).is_file()}
    twice = [folder for folder in folders if sum((folder / name).is_file() for name in NAMES) > 1]
    if twice or ("root" in found and len(found) > 1):
        raise TailfillError(f"{twice[0] if twice else root}: several metadata files; wanted: one, in the root or in "
                            "each split's folder")
    return found


def read(config: PrepareConfig, root: Path, files: Mapping[str, Path]) -> SourceTable:
    """Every image as the cohort's columns; raises ``TailfillError`` for columns that are not there."""
    if not files:
        return read_class_folders(config, root)
    space = choose_space(config.space, config.columns)
    parts = []
    for number, file in enumerate(files.values()):
        rows = as_rows(file, number=number)
        rows = with_paths(rows, file.parent.relative_to(root))
        at = person_columns(rows.header, config.columns, file=file)
        label_at = {} if "findings" in at else label_columns(rows.header, space, file=file)
        parts.append(read_columns(rows, space, at, label_at, root_name="images"))
    return SourceTable(
        files=list(files.values()), space=space, frame=pd.concat([part.frame for part in parts]),
        n_read=sum(part.n_read for part in parts), bad=[row for part in parts for row in part.bad],
        patient_ids=parts[0].patient_ids if len({part.patient_ids for part in parts}) == 1 else "some",
        nulled={key: parts[0].nulled[key].append([part.nulled[key] for part in parts[1:]]) for key in parts[0].nulled})


def as_rows(file: Path, *, number: int) -> Rows:
    """A metadata file of any of the three kinds as rows of text; a row's number in the last two counts from 1."""
    if file.suffix == ".csv":
        return read_rows(file, [FILE_NAME, *(name for name in read_header(file) if name != FILE_NAME)], number=number)
    try:
        frame = pd.read_parquet(file) if file.suffix == ".parquet" else pd.DataFrame(
            json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, ValueError, TypeError) as error:
        raise TailfillError(f"{file}: cannot be read: {error}") from error
    if FILE_NAME not in frame or frame.empty:
        raise TailfillError(f"{file}: has no column '{FILE_NAME}', or no rows; wanted: a row per image")
    table = pa.table({str(name): pa.array([as_text(value) for value in frame[name]], pa.string()) for name in frame})
    return Rows(file=file, number=number, header=list(map(str, frame)), table=table, lines=np.arange(1, len(frame) + 1))


def as_text(value: object) -> str:
    """A cell as a CSV would hold it: a list joined by ``|``, truth as 1 and 0, nothing as nothing."""
    if isinstance(value, list | tuple | np.ndarray):
        return "|".join(str(word) for word in value) or "No Finding"
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return ""
    return str(int(value)) if isinstance(value, bool | np.bool_) else str(value).strip()


def with_paths(rows: Rows, folder: Path) -> Rows:
    """The same rows with ``path`` below the root, and ``split`` where the image's first folder is one."""
    names = [(folder / name).as_posix() if name else "" for name in rows.text(FILE_NAME)]
    splits = [SPLITS.get(name.split("/")[0].lower(), "") for name in names]
    added = {"path": names} | ({"split": splits} if all(splits) else {})
    table, header = rows.table, [name for name in rows.header if name != FILE_NAME]
    for name, values in added.items():
        if name not in header:
            table, header = table.append_column(name, pa.array(values, pa.string())), [*header, name]
    rows.table, rows.header = table, header
    return rows


def read_class_folders(config: PrepareConfig, root: Path) -> SourceTable:
    """``ROOT[/split]/<label>/image``: one label an image; raises ``TailfillError`` when there is no such folder."""
    paths = sorted(path.relative_to(root) for path in root.rglob("*") if path.suffix.lower() in PICTURES)
    named = [(path, path.parent.name) for path in paths if len(path.parts) > 1]
    labels = tuple(sorted({label for _, label in named}))
    if not labels or any(SPLITS.get(label.lower()) for label in labels):
        raise TailfillError(f"{root}: has no {', '.join(NAMES)}, and its images lie in no folders named by a label")
    if config.space != OWN or config.columns.labels:
        raise TailfillError(f"{root}: its labels are the folders' names {', '.join(labels[:5])}; wanted: label_space "
                            f"{OWN} without columns.labels")
    space = LabelSpace(name=OWN, labels=labels, negative=())
    split = [SPLITS.get(path.parts[0].lower()) for path, _ in named]
    ids = [path.as_posix() for path, _ in named]
    frame = pd.DataFrame({"image_id": ids, "root": "images", "path": ids, "patient_id": ids,
                          **dict.fromkeys(("study_id", "view"), None), "age": np.nan, "sex": None,
                          "split": split if all(split) else None})
    own = np.array([label for _, label in named])
    frame = frame.astype({name: "float64" if name == "age" else "str" for name in frame})
    frame = frame.assign(**{label: pd.array((own == label).astype(np.int8), dtype="Int8") for label in labels})
    return SourceTable(files=[root], space=space, frame=frame.set_axis(np.arange(1, len(frame) + 1) % LINES),
                       n_read=len(frame), patient_ids="image")
