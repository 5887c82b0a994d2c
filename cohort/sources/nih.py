"""NIH ChestX-ray14 (Wang et al., CVPR 2017) in the layout of its own release.

::

    ROOT/Data_Entry_2017.csv or Data_Entry_2017_v2020.csv
    ROOT/images/*.png or ROOT/images_001/images/*.png ... images_012/images/*.png
    ROOT/train_val_list.txt, ROOT/test_list.txt      (both or none)

Images have no study id: NIH's ``Follow-up #`` counts a patient's images. In the header two names contain an unquoted
comma and fall apart; they stand behind the columns that are read. 2017's ages may read ``058Y``.
"""

from pathlib import Path

from cohort.errors import TailfillError
from cohort.labels import LabelSpace
from cohort.sources.rows import BadRow, SourceTable, check_relative, person, positions, read_lines, to_frame

LABEL_FILES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
SPLIT_FILES = {"train": "train_val_list.txt", "test": "test_list.txt"}
COLUMNS = ("Image Index", "Finding Labels", "Patient ID", "Patient Age", "Patient Gender", "View Position")


def find_files(root: Path, label_file: Path | None) -> dict[str, Path]:
    """The label file and, where they exist, both split lists; raises ``TailfillError`` naming what is missing."""
    if not root.is_dir():
        raise TailfillError(f"{root}: is no folder; wanted: the folder of the NIH release")
    present = [label_file] if label_file else [root / name for name in LABEL_FILES if (root / name).is_file()]
    if len(present) != 1 or not present[0].is_file():
        found = "both" if len(present) == 2 else "none" if not present else f"no file {present[0]}"
        raise TailfillError(f"{root}: label file: {found} found; wanted one of {', '.join(LABEL_FILES)}, or --csv FILE")
    lists = {split: root / name for split, name in SPLIT_FILES.items() if (root / name).is_file()}
    if len(lists) == 1:
        missing = next(name for split, name in SPLIT_FILES.items() if split not in lists)
        raise TailfillError(f"{root / missing}: is missing; wanted: both split lists, or none to draw a split")
    return {"labels": present[0], **{f"{split}_list": file for split, file in lists.items()}}


def find_images(root: Path) -> dict[str, list[str]]:
    """File name to its paths below ``root``, for every file of ``images/`` and ``images_*/images/``."""
    folders = [folder for folder in (root / "images", *sorted(root.glob("images_*/images"))) if folder.is_dir()]
    if not folders:
        raise TailfillError(f"{root}: has neither images/ nor images_0*/images/")
    found: dict[str, list[str]] = {}
    for folder in folders:
        for file in sorted(folder.iterdir()):
            found.setdefault(file.name, []).append(file.relative_to(root).as_posix())
    return found


def read_splits(files: dict[str, Path]) -> tuple[dict[str, str], dict[str, tuple[Path, int]], list[BadRow]]:
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


def read(files: dict[str, Path], *, root: Path, space: LabelSpace) -> SourceTable:
    """Every row of the label file as the cohort's columns (``split``: train, test, or null without lists)."""
    header, lines = read_lines(files["labels"])
    at = positions(header, COLUMNS, file=files["labels"])
    images = find_images(root)
    splits, places, bad = read_splits(files)
    table = SourceTable(file=files["labels"], space=space, frame=to_frame({}, space), n_read=len(lines) + len(bad),
                        patient_ids="given", bad=bad)
    in_both = {row.image_id for row in bad if splits[str(row.image_id)] != _split_of(row.file)}
    records = {}
    for line, fields in lines:
        name = fields[0] if fields else ""
        try:
            if len(fields) <= max(at.values()):
                raise TailfillError(f"has {len(fields)} fields; wanted: at least {max(at.values()) + 1}")
            row = {column: fields[position] for column, position in at.items()}
            name = row["Image Index"]
            if places and name not in splits:
                raise TailfillError(f"stands in neither {' nor '.join(SPLIT_FILES.values())}")
            if name in in_both:
                raise TailfillError(f"stands in both {' and '.join(SPLIT_FILES.values())}")
            records[line] = _record(row, images, table, line) | {"split": splits.get(name)}
        except TailfillError as error:
            bad.append(BadRow(file=files["labels"], row=line, image_id=name or None, reason=str(error)))
    known = {fields[at["Image Index"]] for _, fields in lines if len(fields) > at["Image Index"]}
    strays = [BadRow(file=file, row=row, image_id=name, reason="stands in no row of the label file")
              for name, (file, row) in places.items() if name not in known]
    table.bad, table.n_read, table.frame = bad + strays, table.n_read + len(strays), to_frame(records, space)
    return table


def _record(row: dict[str, str], images: dict[str, list[str]], table: SourceTable, line: int) -> dict[str, object]:
    """One row in the cohort's columns, its split left out; raises ``TailfillError`` with the reason it cannot be."""
    name = check_relative(row["Image Index"])
    labels = table.space.vector(row["Finding Labels"])
    if not row["Patient ID"]:
        raise TailfillError("no patient id given")
    paths = images.get(name, [])
    if len(paths) != 1:
        raise TailfillError(f"'{name}' is in {len(paths)} places: {', '.join(paths)}" if paths else
                            f"no file '{name}' in images/ or images_0*/images/")
    about = person(view=row["View Position"], age=row["Patient Age"], sex=row["Patient Gender"],
                   nulled=table.nulled, line=line)
    return {"image_id": name, "root": "nih", "path": paths[0], "patient_id": row["Patient ID"], "study_id": None,
            **about, **labels}


def _split_of(file: Path) -> str:
    return next(split for split, name in SPLIT_FILES.items() if name == file.name)
