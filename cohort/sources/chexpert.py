"""CheXpert: 14 observations with an uncertain one between present and absent.

::

    ROOT/CheXpert-v1.0[-small]/train/patient00001/study1/view1_frontal.jpg      (or ROOT is that inner folder)
    LABELS/train.csv, valid.csv, test.csv      (default: where the images are; test.csv may be missing)

Population: 224,316 images, frontal and lateral, of 65,240 patients of one American hospital, in- and outpatients, 2002
to 2017. Labels of train: a rule-based labeller on the reports, 1, 0, -1 (uncertain) or blank (not mentioned); F1
against radiologists .95 for mentions, .85 for uncertainty (Irvin et al.). Labels of valid and test: consensus of three
and of five radiologists. Licence: Stanford's research use agreement, no redistribution. Citation: Irvin et al., AAAI
2019 (arXiv 1901.07031).

What -1 becomes is a policy by name, ``UNCERTAIN``; u-ignore keeps it unknown. A blank is read as absent, as the
authors do, or kept unknown (``unmentioned``). Valid becomes the validation split; without a test.csv, test is drawn by
patient from train. Not promised: that a policy suits every finding; the authors found it does not.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pandas as pd

from cohort.errors import TailfillError
from cohort.preparing.people import check_paths, describe_person, parse_view
from cohort.preparing.settings import PrepareConfig
from cohort.sources.rows import Rows, SourceTable, assemble, flag, read_rows
from cohort.vocabulary.labels import CHEXPERT

FILES = {"train": "train.csv", "val": "valid.csv", "test": "test.csv"}
PEOPLE = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA")
PATH_PATTERN = r"(?P<patient>patient\d+)/(?P<study>study\d+)/[^/]+$"


def u_ignore() -> int | None:
    """Uncertain stays unknown: masked in the loss, counted nowhere."""
    return None


def u_ones() -> int | None:
    """Uncertain counts as present."""
    return 1


def u_zeros() -> int | None:
    """Uncertain counts as absent."""
    return 0


UNCERTAIN: dict[str, Callable[[], int | None]] = {"u-ignore": u_ignore, "u-ones": u_ones, "u-zeros": u_zeros}
"""The policies of Irvin et al. 2019 for -1; their u-multiclass and u-selftrained are no label policies."""


def read_mention(text: str, *, uncertain: Callable[[], int | None], unmentioned: int | None) -> int | None:
    """A cell of the labeller: 1, 0, -1 or empty, ints or floats; raises ``TailfillError`` for anything else."""
    known = {"1": 1, "1.0": 1, "0": 0, "0.0": 0, "": unmentioned}
    if text in ("-1", "-1.0"):
        return uncertain()
    if text not in known:
        raise TailfillError(f"'{text}'; wanted: 1, 0, -1 or empty")
    return known[text]


def mention_reader(config: PrepareConfig) -> Callable[[str], int | None]:
    """What reads a cell under the configuration's policies."""
    return partial(read_mention, uncertain=UNCERTAIN[config.uncertain],
                   unmentioned=0 if config.unmentioned == "absent" else None)


def find_inner(root: Path) -> Path:
    """The folder that holds train/: root, or the one CheXpert-v1.0* below it; raises ``TailfillError`` otherwise."""
    inner = [root] if (root / "train").is_dir() or (root / FILES["train"]).is_file() else sorted(
        folder for folder in root.glob("CheXpert-v1.0*") if folder.is_dir())
    if len(inner) != 1:
        raise TailfillError(f"{root}: {len(inner)} folders CheXpert-v1.0* found; wanted: one, or train/ itself")
    return inner[0]


def find_files(config: PrepareConfig, root: Path) -> dict[str, Path]:
    """The label files; raises ``TailfillError`` when train.csv or valid.csv is missing."""
    folder = Path(config.labels) if config.labels else find_inner(root)
    missing = [name for split, name in FILES.items() if split != "test" and not (folder / name).is_file()]
    if missing:
        raise TailfillError(f"{folder}: has no {missing[0]}; wanted: CheXpert's train.csv and valid.csv")
    return {split: folder / name for split, name in FILES.items() if (folder / name).is_file()}


def read(config: PrepareConfig, root: Path, files: Mapping[str, Path]) -> SourceTable:
    """Every row of the label files as the cohort's columns; raises ``TailfillError`` for columns that are not there."""
    table = SourceTable(files=list(files.values()), space=CHEXPERT, frame=pd.DataFrame(), n_read=0,
                        patient_ids="given", about={"uncertain": config.uncertain, "unmentioned": config.unmentioned})
    inner = find_inner(root).name if config.check != "none" else None
    frames = []
    for number, split in enumerate(files):
        rows = read_rows(files[split], [*PEOPLE, *CHEXPERT.labels], number=number)
        cells = describe(rows, table, inner=None if inner == root.name else inner)
        if split != "train" or "test" in files:
            cells |= {"split": split}
        labels = rows.labels(CHEXPERT, {label: label for label in CHEXPERT.labels}, mention_reader(config))
        frames.append(assemble(rows, cells, labels))
        table.bad += rows.bad_rows(rows.text("Path"))
        table.n_read += rows.n_read
    table.frame = pd.concat(frames)
    return table


def describe(rows: Rows, table: SourceTable, *, inner: str | None) -> dict[str, object]:
    """Ids, path and person of each row; ``inner``: the release's folder below root, None where root is it."""
    written = rows.text("Path")
    parts = written.str.extract(PATH_PATTERN)
    flag(rows, parts["patient"].isna(), "path holds no patient and study; wanted: .../patient00001/study1/view1_*.jpg")
    below = written.str.replace(r"^CheXpert-v1\.0[^/]*/", "", regex=True)
    path = below if inner is None else inner + "/" + below
    cells: dict[str, object] = {
        "image_id": below, "root": "chexpert", "path": check_paths(rows, path), "patient_id": parts["patient"],
        "study_id": parts["patient"] + "/" + parts["study"],
    }
    person = describe_person(rows, table.nulled, view="AP/PA", age="Age", sex="Sex")
    lateral = rows.strings("Frontal/Lateral", lambda text: parse_view(text) if text.lower() == "lateral" else None)
    return cells | person | {"view": lateral.fillna(person["view"])}
