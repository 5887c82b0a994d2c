"""Reports read from a CSV or a folder of text files, and the images that they describe.

A place in a report counts characters of its text without outer white space. Everything is checked before any report is
labelled: a row without an id, an id that stands twice, a file that is no UTF-8, an image whose report is not there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cohort.errors import TailfillError
from cohort.labelling.settings import ReportsConfig
from cohort.sources.rows import PERSONAL, read_header, read_rows
from cohort.stage import hash_folder


@dataclass(frozen=True, kw_only=True)
class Reports:
    """What was read."""

    texts: dict[str, str]
    """Id to text, in the order of the file."""
    images: pd.DataFrame
    """Text columns; the first, ``report_id``, names the report. One row per image, or per report without images."""
    inputs: dict[str, Path]
    """The files that were read, for the stamp."""
    settings: Mapping[str, str]
    """What else identifies them: the hash of a folder."""


def read_reports(config: ReportsConfig) -> Reports:
    """The reports and images of a configuration; raises ``TailfillError`` naming file and row of what is wrong."""
    place = Path(config.reports)
    if not place.exists():
        raise TailfillError(f"reports is '{place}', which does not exist; wanted: a CSV, or a folder of .txt files")
    texts, carried = read_folder(place) if place.is_dir() else read_table_of_reports(
        place, id_column=config.id_column, text_column=config.text_column)
    inputs = {} if place.is_dir() else {"reports": place}
    images = carried
    if config.images is not None:
        images = read_images(Path(config.images), texts, id_column=config.id_column,
                             text_column=config.text_column, labels=config.labels)
        inputs["images"] = Path(config.images)
    return Reports(texts=texts, images=images, inputs=inputs,
                   settings={"reports_folder": hash_folder(place)} if place.is_dir() else {})


def read_folder(folder: Path) -> tuple[dict[str, str], pd.DataFrame]:
    """Every ``.txt`` file below a folder; its name without the ending is the id (MIMIC-CXR's ``s50414267``)."""
    files = sorted(folder.rglob("*.txt"))
    if not files:
        raise TailfillError(f"{folder}: holds no .txt file; wanted: one per report, or give a CSV")
    texts: dict[str, str] = {}
    places: dict[str, Path] = {}
    for file in files:
        if file.stem in texts:
            raise TailfillError(f"{file}: has the name of {places[file.stem]}; wanted: names, hence ids, that "
                                "differ")
        try:
            texts[file.stem] = file.read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise TailfillError(f"{file}: cannot be read as UTF-8 text: {error}") from error
        places[file.stem] = file
    return texts, pd.DataFrame({"report_id": list(texts)}, dtype="str")


def read_table_of_reports(file: Path, *, id_column: str, text_column: str) -> tuple[dict[str, str], pd.DataFrame]:
    """A CSV's reports, and those of its columns that ``cohort.prepare csv`` knows by their names."""
    header = read_header(file)
    carried = [name for name in PERSONAL if name in header and name not in (id_column, text_column)]
    rows = read_rows(file, [id_column, text_column, *carried])
    ids, texts = rows.text(id_column), rows.text(text_column)
    rows.reject((ids == "").to_numpy(dtype=bool), lambda position: f"no {id_column} given")
    rows.require_all(unique=ids)
    frame = pd.DataFrame({"report_id": ids} | {name: rows.text(name) for name in carried})
    return dict(zip(ids.tolist(), texts.tolist(), strict=True)), frame.reset_index(drop=True)


def read_images(
    file: Path, texts: Mapping[str, str], *, id_column: str, text_column: str, labels: Sequence[str]
) -> pd.DataFrame:
    """A CSV's images with all its columns, none of them ``text_column``, which would be written out again.

    Raises ``TailfillError`` for an image whose report is not there.
    """
    header = read_header(file)
    if id_column not in header:
        raise TailfillError(f"{file}: has no column '{id_column}'; wanted: the id of each image's report (id_column)")
    taken = [name for name in header if name in (*labels, "findings") or (name == "report_id" != id_column)]
    if taken:
        raise TailfillError(f"{file}: has a column '{taken[0]}', which the labels need; wanted: the images alone")
    if text_column in header:
        raise TailfillError(f"{file}: has the reports' text ('{text_column}'), which goes into no table; wanted: the "
                            "images alone")
    rows = read_rows(file, [id_column, *(name for name in header if name and name != id_column)])
    ids = rows.text(id_column)
    rows.reject((~ids.isin(list(texts))).to_numpy(dtype=bool),
                lambda position: f"{id_column} '{ids.iloc[position]}' is none of the reports")
    rows.require_all()
    frame = pd.DataFrame({"report_id": ids} | {name: rows.text(name) for name in header if name and name != id_column})
    return frame.reset_index(drop=True)
