"""Each kind of bad row and bad input: one line that names the culprit, exit code 2, nothing written; or skipped."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from cohort_toys import label_file, run_as_command, toy_rows, write_release

from cohort.prepare import main
from cohort.stage import read_stamp
from cohort.tables import load_cohort

ROWS = toy_rows(30)
Change = Callable[[Path], None]


def edit(line: int, old: str, new: str) -> Change:
    """Replace text in a line of the label file, the header being line 1."""
    def change(root: Path) -> None:
        lines = label_file(root).read_text().splitlines()
        assert old in lines[line - 1]
        lines[line - 1] = lines[line - 1].replace(old, new)
        label_file(root).write_text("\n".join(lines) + "\n")
    return change


def append(name: str, text: str) -> Change:
    def change(root: Path) -> None:
        with (root / name).open("a") as stream:
            stream.write(text)
    return change


def move_to_test(root: Path) -> None:
    """The second image of patient 1 goes to the test list."""
    train, test = root / "train_val_list.txt", root / "test_list.txt"
    train.write_text(train.read_text().replace("00000001_001.png\n", ""))
    append("test_list.txt", "00000001_001.png\n")(root)
    assert "00000001_001.png" in test.read_text()


def truncate(root: Path) -> None:
    file = root / "images" / ROWS[3]["name"]
    file.write_bytes(file.read_bytes()[:80])


BAD_ROWS: dict[str, tuple[Change, str, int]] = {
    "missing file": (lambda root: (root / "images" / ROWS[2]["name"]).unlink(), "row 4: no file '00000002_000.png'", 1),
    "truncated image": (truncate, "row 5: 'images/00000002_001.png': cannot be read as an image", 1),
    "duplicate id": (append("Data_Entry_2017_v2020.csv", "00000001_000.png,Mass,0,1,30,M,PA,1,1,1,1\n"),
                     "row 62: image id '00000001_000.png' is already in row 2", 1),
    "unknown label": (edit(6, ROWS[4]["findings"], "Mas|Nodule"), "row 6: unknown label 'Mas'; did you mean 'Mass'", 1),
    "no label": (edit(6, ROWS[4]["findings"], ""), "row 6: no findings given", 1),
    "contradiction": (edit(6, ROWS[4]["findings"], "No Finding|Mass"), "row 6: 'No Finding|Mass' holds both", 1),
    "patient in two splits": (move_to_test, "row 2: patient '1' is in two splits: test and train", 2),
    "climbing path": (edit(7, ROWS[5]["name"], "../images/" + ROWS[5]["name"]), "stands in neither", 2),
    "short row": (edit(8, f"{ROWS[6]['sex']},{ROWS[6]['view']},12,10,.1,.1", ""), "row 8: has 6 fields", 1),
    "no patient": (edit(8, f",0,{ROWS[6]['patient']},", ",0,,"), "row 8: no patient id given", 1),
    "in both lists": (append("test_list.txt", "00000001_000.png\n"), "already in train_val_list.txt, row 1", 2),
    "stray in a list": (append("test_list.txt", "stray.png\n"), "row 13: stands in no row of the label file", 1),
    "in no list": (append("Data_Entry_2017_v2020.csv", "new.png,Mass,0,99,30,M,PA,1,1,1,1\n"),
                   "row 62: stands in neither", 1),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_row_is_refused_with_its_place_or_skipped_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    change, told, n_bad = BAD_ROWS[kind]
    root, out = write_release(tmp_path / "release", ROWS), tmp_path / "cohort"
    change(root)
    command = ("nih", "--root", root, "--out", out)
    assert run_as_command(main, *command) == 2
    error = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert told in error
    assert f"{n_bad} bad row" in error
    assert not out.exists()

    assert run_as_command(main, *command, "--on-bad", "skip") == 0
    rejected = pd.read_parquet(out / "rejected.parquet")
    counts = (read_stamp(out) or {})["counts"]
    assert len(rejected) == counts["rejected"] == n_bad
    assert counts["read"] == counts["kept"] + counts["rejected"]
    assert counts["kept"] == len(load_cohort(out).frame)
    assert list(rejected.columns) == ["file", "row", "image_id", "reason"]
    assert not rejected.duplicated(["file", "row"]).any()


CSV_ROWS = ["image_id,path,patient_id,split,A,B"] + [
    f"i{n},{n}.png,p{n},{('train', 'val', 'test')[n % 3]},{n % 2},{n // 2 % 2}" for n in range(30)
]


@pytest.mark.parametrize(("new", "told"), [
    ("i3,../3.png,p3,train,1,0", "row 5: path '../3.png' leaves the root"),
    ("i3,/etc/3.png,p3,train,1,0", "row 5: path '/etc/3.png' leaves the root"),
    ("i3,sub/../../3.png,p3,train,1,0", "leaves the root"),
    ("i3,,p3,train,1,0", "row 5: no image path given"),
    (",3.png,p3,train,1,0", "row 5: no image id given"),
    ("i3,3.png,,train,1,0", "row 5: no patient id given"),
    ("i3,3.png,p3,fold3,1,0", "row 5: split is 'fold3'; wanted: train, val or test"),
    ("i3,3.png,p3,train,-1,0", "row 5: label 'A' is '-1'; wanted: 1, 0 or empty"),
    ("i3,3.png,p3,train,1", "row 5: has 5 fields; wanted: 6"),
    ("i3,nowhere.png,p3,train,1,0", "row 5: 'nowhere.png': no such image file"),
    ("i3,2.png,p3,train,1,0", "row 5: path '2.png' is already in row 4"),
    ("i2,3.png,p3,train,1,0", "row 5: image id 'i2' is already in row 4"),
    ("i3,3.png,p4,train,1,0", "patient 'p4' is in two splits: train and val"),
])
def test_bad_rows_of_a_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str], new: str, told: str) -> None:
    write_release(tmp_path, [{**ROWS[0], "name": f"../{n}.png"} for n in range(30)])
    file = tmp_path / "labels.csv"
    file.write_text("\n".join([*CSV_ROWS[:4], new, *CSV_ROWS[5:]]) + "\n")
    command = ("csv", "--csv", file, "--root", tmp_path, "--out", tmp_path / "cohort", "--label-space", "own",
               "--columns.labels", '["A","B"]')
    assert run_as_command(main, *command) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "cohort").exists()
    assert run_as_command(main, *command, "--on-bad", "skip") == 0


BAD_INPUT: dict[str, tuple[Change, tuple[str, ...], str]] = {
    "empty label file": (lambda root: label_file(root).write_text("") and None, (), "is empty"),
    "header only": (lambda root: label_file(root).write_text("Image Index,Finding Labels\n") and None, (), "is empty"),
    "missing column": (edit(1, "Patient ID", "Patient"), (), "has no column 'Patient ID'; did you mean 'Patient'"),
    "binary label file": (lambda root: label_file(root).write_bytes(b"\xff\xfe\x00") and None, (),
                          "cannot be read as a CSV"),
    "no label file": (lambda root: label_file(root).unlink(), (), "label file: none found"),
    "two label files": (append("Data_Entry_2017.csv", "x"), (), "label file: both found"),
    "one list": (lambda root: (root / "test_list.txt").unlink(), (), "test_list.txt: is missing"),
    "no images": (lambda root: (root / "images").rename(root / "pictures") and None, (), "neither images/"),
    "wrong fraction": (lambda root: None, ("--val-fraction", "0.9"), "prepare.val_fraction is 0.9"),
    "wrong type": (lambda root: None, ("--seed", "one"), '"seed"'),
    "wrong choice": (lambda root: None, ("--on-bad", "ignore"), "on_bad"),
    "unknown flag": (lambda root: None, ("--split", "x"), "--split"),
    "unknown space": (lambda root: None, ("--label-space", "nih14"), "did you mean 'nih_14'"),
    "no threads": (lambda root: None, ("--threads", "0"), "threads is 0"),
}


@pytest.mark.parametrize("kind", BAD_INPUT)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    change, flags, told = BAD_INPUT[kind]
    root = write_release(tmp_path / "release", ROWS)
    change(root)
    assert run_as_command(main, "nih", "--root", root, "--out", tmp_path / "cohort", *flags) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert told in error
    assert not (tmp_path / "cohort").exists()


@pytest.mark.parametrize(("flags", "told"), [
    ((), "has no column for label 'Atelectasis'"),
    (("--label-space", "own"), "without columns.labels"),
    (("--columns.labels", '["A"]'), "columns.labels is given beside label_space 'nih_14'"),
    (("--label-space", "own", "--columns.labels", '["C"]'), "has no column for label 'C'"),
    (("--label-space", "own", "--columns.labels", '["view"]'), "reserved column name"),
    (("--label-space", "own", "--columns.labels", '["A"]', "--columns.age", "agee"), "has no column 'agee'"),
])
def test_bad_columns_of_a_csv(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], told: str
) -> None:
    (tmp_path / "labels.csv").write_text("\n".join(CSV_ROWS) + "\n")
    out = tmp_path / "cohort"
    assert run_as_command(main, "csv", "--csv", tmp_path / "labels.csv", "--root", tmp_path, "--out", out, *flags) == 2
    error = capsys.readouterr().err.strip()
    assert told in error
    assert len(error.splitlines()) == 1
    assert not out.exists()
