"""NIH ChestX-ray14 in the layout of its own release, with its 14 labels or NIH-CXR-LT's 20.

::

    ROOT/Data_Entry_2017.csv or Data_Entry_2017_v2020.csv
    ROOT/images/*.png or ROOT/images_001/images/*.png ... images_012/images/*.png
    ROOT/train_val_list.txt, ROOT/test_list.txt      (both or none)
    LABELS/*nih-cxr-lt_labels_{train,val,test}.csv   (for label_space nih_cxr_lt, with its own splits)

Population: 112,120 frontal images of 30,805 patients of one American research hospital, 1992 to 2015, so with many
follow-ups of the same ill people. Labels: mined from reports; the NIH states over 90 % accuracy; NIH-CXR-LT mined five
more findings and made splits of its own. Licence: the NIH states unrestricted use, with acknowledgement. Citation:
Wang et al., CVPR 2017; for the 20 labels Holste et al., DALI at MICCAI 2022 (arXiv 2208.13365).

With ``check: none`` no image need be there: one that is in none of the folders is taken to belong into images/. Images
have no study id: NIH's ``Follow-up #`` counts a patient's images. In the header two names contain an unquoted
comma and fall apart; they stand behind the columns that are read. 2017's ages may read ``058Y``.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from cohort.errors import TailfillError
from cohort.preparing.people import check_paths, check_relative, describe_person, parse_id, patient_ids
from cohort.preparing.settings import PrepareConfig
from cohort.sources.rows import BadRow, Rows, SourceTable, assemble, by_line, find_one, flag, read_rows
from cohort.vocabulary.labels import LABEL_SPACES, NIH_14, LabelSpace

LABEL_FILES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
SPLIT_FILES = {"train": "train_val_list.txt", "test": "test_list.txt"}
COLUMNS = ("Image Index", "Finding Labels", "Patient ID", "Patient Age", "Patient Gender", "View Position")
LONG_TAIL = "*nih-cxr-lt_labels_{}.csv"
"""NIH-CXR-LT's table of a split."""


def find_files(config: PrepareConfig, root: Path) -> dict[str, Path]:
    """The label files, and both split lists where they exist and count; ``TailfillError`` names what is missing."""
    if not root.is_dir() and config.check != "none":
        raise TailfillError(f"{root}: is no folder; wanted: the folder of the NIH release")
    present = [Path(config.csv)] if config.csv else [root / name for name in LABEL_FILES if (root / name).is_file()]
    if len(present) != 1 or not present[0].is_file():
        found = "both" if len(present) == 2 else "none" if not present else f"no file {present[0]}"
        raise TailfillError(f"{root}: label file: {found} found; wanted one of {', '.join(LABEL_FILES)}, or --csv FILE")
    if config.space != NIH_14.name:
        folder = Path(config.labels or root)
        return {"labels": present[0]} | {f"{split}_labels": find_one(folder, LONG_TAIL.format(split))
                                         for split in ("train", "val", "test")}
    lists = {split: root / name for split, name in SPLIT_FILES.items() if (root / name).is_file()}
    if len(lists) == 1:
        missing = next(name for split, name in SPLIT_FILES.items() if split not in lists)
        raise TailfillError(f"{root / missing}: is missing; wanted: both split lists, or none to draw a split")
    return {"labels": present[0], **{f"{split}_list": file for split, file in lists.items()}}


def find_images(root: Path, *, wanted: bool = True) -> dict[str, list[str]]:
    """File name to its paths below ``root``, for every file of ``images/`` and ``images_*/images/``.

    Raises ``TailfillError`` when none of these folders is there and the images are ``wanted``.
    """
    folders = [folder for folder in (root / "images", *sorted(root.glob("images_*/images"))) if folder.is_dir()]
    if not folders and wanted:
        raise TailfillError(f"{root}: has neither images/ nor images_0*/images/")
    found: dict[str, list[str]] = {}
    for folder in folders:
        for file in sorted(folder.iterdir()):
            found.setdefault(file.name, []).append(file.relative_to(root).as_posix())
    return found


def read_splits(files: Mapping[str, Path]) -> tuple[dict[str, str], dict[str, tuple[Path, int]], list[BadRow]]:
    """Image to split, image to (list, line), and the lines that name an image a second time."""
    splits: dict[str, str] = {}
    places: dict[str, tuple[Path, int]] = {}
    bad = []
    for split in SPLIT_FILES:
        file = files.get(f"{split}_list")
        lines = file.read_text(encoding="utf-8-sig").splitlines() if file else []
        for row, name in enumerate((line.strip() for line in lines), start=1):
            if name in splits and file:
                other, line = places[name]
                bad.append(BadRow(file=file, row=row, image_id=name, reason=f"already in {other.name}, row {line}"))
            elif name and file:
                splits[name], places[name] = split, (file, row)
    return splits, places, bad


def read(config: PrepareConfig, root: Path, files: Mapping[str, Path]) -> SourceTable:
    """Every row of the label file as the cohort's columns (``split``: train, test, or null without lists)."""
    space = LABEL_SPACES[config.space]
    rows, wanted = read_rows(files["labels"], COLUMNS), config.check != "none"
    if space is not NIH_14:
        return read_long_tail(rows, root, files, space, wanted=wanted)
    splits, places, twice = read_splits(files)
    table = SourceTable(files=[rows.file], space=space, frame=pd.DataFrame(), n_read=0, patient_ids="given")
    names = rows.text("Image Index")
    if places:
        in_both = {row.image_id for row in twice if splits[str(row.image_id)] != _split_of(row.file)}
        flag(rows, ~names.isin(list(splits)), f"stands in neither {' nor '.join(SPLIT_FILES.values())}")
        flag(rows, names.isin(list(in_both)), f"stands in both {' and '.join(SPLIT_FILES.values())}")
    cells = describe_images(rows, table, root, wanted=wanted) | {"split": names.map(splits).astype("str")}
    labels = rows.vectors("Finding Labels", space.vector, space)
    known = {*names, *rows.torn.values()}
    strays = [BadRow(file=file, row=row, image_id=name, reason="stands in no row of the label file")
              for name, (file, row) in places.items() if name not in known]
    table.frame = assemble(rows, cells, labels)
    table.bad = twice + rows.bad_rows(names) + strays
    table.n_read = rows.n_read + len(twice) + len(strays)
    return table


def describe_images(rows: Rows, table: SourceTable, root: Path, *, wanted: bool) -> dict[str, pd.Series]:
    """The cohort's columns that stand in NIH's own label file, splits and labels left out.

    ``wanted``: whether an image that is in no folder makes its row a bad one, or is taken to belong into ``images/``.
    """
    images, names = find_images(root, wanted=wanted), rows.text("Image Index")
    paths = names.map({name: found[0] for name, found in images.items()})
    if not wanted:
        paths = paths.fillna("images/" + check_paths(rows, names))
        flag(rows, names == "", "no image path given")
    for position in paths.isna().to_numpy().nonzero()[0]:
        try:
            reason = f"no file '{check_relative(names.iloc[position])}' in images/ or images_0*/images/"
        except TailfillError as error:
            reason = str(error)
        rows.bad.setdefault(int(rows.lines[position]), reason)
    several = {name: found for name, found in images.items() if len(found) > 1}
    for line, name in by_line(names[names.isin(list(several))]):
        rows.bad.setdefault(line, f"'{name}' is in {len(several[name])} places: {', '.join(several[name])}")
    person = describe_person(rows, table.nulled, view="View Position", age="Patient Age", sex="Patient Gender")
    root_name = pd.Series("nih", index=rows.lines)
    return {"image_id": names, "root": root_name, "path": paths, "patient_id": patient_ids(rows, "Patient ID")} | person


def read_long_tail(
    rows: Rows, root: Path, files: Mapping[str, Path], space: LabelSpace, *, wanted: bool
) -> SourceTable:
    """NIH-CXR-LT's three tables, joined by the image's name with NIH's own for view, age and sex."""
    tables = [files[f"{split}_labels"] for split in ("train", "val", "test")]
    table = SourceTable(files=tables, space=space, frame=pd.DataFrame(), n_read=0, patient_ids="given")
    about = pd.DataFrame(describe_images(rows, table, root, wanted=wanted))
    about = about.drop_duplicates("image_id").set_index("image_id")
    table.nulled = {}  # of rows of another file, which the long tail's tables may not name
    frames = []
    for number, split in enumerate(("train", "val", "test")):
        part = read_rows(tables[number], ["id", "subj_id", *space.labels], number=number)
        names = part.text("id")
        flag(part, ~names.isin(about.index), f"stands in no usable row of {rows.file.name}")
        patients = part.strings("subj_id", lambda text: parse_id(text, "patient id").lstrip("0") or "0")
        cells: dict[str, pd.Series] = {str(column): pd.Series(about[column].reindex(names).to_numpy(), index=part.lines)
                                       for column in about}
        flag(part, (cells["patient_id"] != patients) & cells["patient_id"].notna(),
             f"subj_id is another patient than in {rows.file.name}")
        labels = part.labels(space, {label: label for label in space.labels}, zero_or_one)
        frames.append(assemble(part, {**cells, "image_id": names, "split": split}, labels))
        table.bad += part.bad_rows(names)
        table.n_read += part.n_read
    table.frame = pd.concat(frames)
    return table


def zero_or_one(text: str) -> int:
    """A label cell that knows no unknown; raises ``TailfillError`` for anything but 0 and 1."""
    if text not in ("0", "1", "0.0", "1.0"):
        raise TailfillError(f"'{text}'; wanted: 1 or 0")
    return int(text[0])


def _split_of(file: Path) -> str:
    return next(split for split, name in SPLIT_FILES.items() if name == file.name)
