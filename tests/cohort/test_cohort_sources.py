"""Every source on a tiny release of its own: what arrives, and what ten defects from real life do to it."""

import gzip
import json
from pathlib import Path

import pandas as pd
import pytest
from cohort_toys import run_as_command, write_image
from source_toys import WRITERS, N, write_chexpert, write_images, write_mimic, write_padchest, write_vindr

from cohort.prepare import main
from cohort.preparing.decoding import find_unreadable
from cohort.preparing.settings import USES
from cohort.stage import read_stamp
from cohort.tables import Cohort, load_cohort
from cohort.vocabulary.findings import names_of
from cohort.vocabulary.labels import CHEXPERT, NIH_CXR_LT


def prepared(command: list[object], out: Path, *flags: object) -> Cohort:
    assert run_as_command(main, *command, "--out", out, *flags) == 0
    return load_cohort(out)


@pytest.mark.parametrize(("policy", "value"), [("u-ignore", None), ("u-ones", 1), ("u-zeros", 0)])
def test_chexperts_uncertain_labels_follow_the_policy(tmp_path: Path, policy: str, value: int | None) -> None:
    command, file = write_chexpert(tmp_path / "release")
    cohort = prepared(command, tmp_path / "out", "--uncertain", policy)
    source = pd.read_csv(file, dtype=str, keep_default_na=False)
    source.index = source["Path"].str.removeprefix("CheXpert-v1.0-small/")
    found = cohort.frame.set_index("image_id").loc[source.index]
    for label in CHEXPERT.labels:
        wanted = source[label].map({"1.0": 1, "0.0": 0, "": 0, "-1.0": value})
        assert [None if v is pd.NA else v for v in found[label]] == [None if pd.isna(v) else v for v in wanted]
    assert found["view"].tolist() == ["AP", "LATERAL"] * (N // 2)
    assert set(cohort.split("val")["patient_id"]) == {f"patient{900 + i:05d}" for i in range(6)}
    assert cohort.frame.groupby("patient_id")["split"].nunique().max() == 1


def test_chexperts_blanks_may_stay_unknown(tmp_path: Path) -> None:
    command, _ = write_chexpert(tmp_path / "release")
    cohort = prepared(command, tmp_path / "out", "--unmentioned", "unknown")
    blanks = sum((pd.read_csv(tmp_path / "release" / name, dtype=str, keep_default_na=False)[[*CHEXPERT.labels]]
                  .isin(["", "-1.0"])).to_numpy().sum() for name in ("train.csv", "valid.csv"))
    assert cohort.frame[cohort.labels].isna().to_numpy().sum() == blanks


def test_mimics_labels_reach_every_image_of_the_study(tmp_path: Path) -> None:
    command, _ = write_mimic(tmp_path / "release")
    cohort = prepared(command, tmp_path / "out")
    counts = (read_stamp(tmp_path / "out") or {})["counts"]
    assert (counts["read"], counts["kept"], counts["set_aside"]) == (N, N - 2, 2)
    assert (cohort.frame.groupby("study_id")[cohort.labels].nunique(dropna=False) == 1).all(axis=None)
    text = gzip.decompress((tmp_path / "release" / "mimic-cxr-2.0.0-chexpert.csv.gz").read_bytes()).decode()
    source = pd.DataFrame([line.split(",") for line in text.splitlines()[1:]], columns=text.splitlines()[0].split(","))
    first = cohort.frame.drop_duplicates("study_id").set_index("study_id")
    for row in source.to_dict("records"):
        for label in CHEXPERT.labels:
            found = first.at[f"s{row['study_id']}", label]
            assert (None if found is pd.NA else found) == {"1.0": 1, "0.0": 0, "": 0, "-1.0": None}[row[label]]


def test_padchests_lists_mean_what_the_vocabulary_says(tmp_path: Path) -> None:
    command, file = write_padchest(tmp_path / "release")
    cohort = prepared(command, tmp_path / "out")
    source = pd.read_csv(file, dtype=str).set_index("ImageID")["Labels"].map(
        lambda text: {word.strip() for word in json.loads(text.replace("'", '"'))})
    for row in cohort.frame.to_dict("records"):
        for name, words in names_of("padchest").items():
            assert row[name] == int(bool(source[row["image_id"]] & set(words)))
    assert set(cohort.frame["age"]) == {64.0}
    extra = (read_stamp(tmp_path / "out") or {})["extra"]
    assert extra["words_without_finding"] == {"sternotomy": 1}
    aside = pd.read_parquet(tmp_path / "out" / "set_aside.parquet").set_index("image_id")["reason"]
    assert dict(aside) == {"0000_x.png": "the report says 'exclude'", "0001_x.png": "the report only says 'unchanged'"}
    by_hand = prepared(command, tmp_path / "hand", "--physicians-only", "true")
    assert len(by_hand.frame) == N // 2 - 1


@pytest.mark.parametrize(("readers", "needed"), [("majority", 2), ("any", 1)])
def test_vindrs_readers_become_one_label(tmp_path: Path, readers: str, needed: int) -> None:
    command, file = write_vindr(tmp_path / "release")
    cohort = prepared(command, tmp_path / "out", "--readers", readers)
    votes = pd.read_csv(file).groupby("image_id")[["Nodule/Mass", "Pleural effusion"]].sum()
    found = cohort.frame.set_index("image_id").loc[votes.index]
    assert found["Nodule/Mass"].tolist() == (votes["Nodule/Mass"] >= needed).astype(int).tolist()
    assert found["Pleural Effusion"].tolist() == (votes["Pleural effusion"] >= needed).astype(int).tolist()
    assert (read_stamp(tmp_path / "out") or {})["extra"]["patient_ids"] == "image"
    assert len(cohort.split("test")) == 10


def test_an_image_folder_with_metadata_per_split(tmp_path: Path) -> None:
    command, file = write_images(tmp_path / "release")
    cohort = prepared(command, tmp_path / "out")
    assert cohort.frame["split"].value_counts().to_dict() == {"train": 40, "val": 10, "test": 10}
    found = cohort.frame.set_index("path")
    for row in pd.read_csv(file).to_dict("records"):
        assert found.at[f"train/{row['file_name']}", "Mass"] == row["Mass"]
    for line in (tmp_path / "release" / "test" / "metadata.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert found.at[f"test/{row['file_name']}", "Nodule"] == row["Nodule"]


def test_an_image_folder_of_class_folders(tmp_path: Path) -> None:
    for number in range(24):
        write_image(tmp_path / "r" / ("train", "validation", "test")[number % 3] / ("Mass", "Nodule")[number // 3 % 2]
                    / f"{number}.PNG", seed=number)
    cohort = prepared(["images", "--root", tmp_path / "r"], tmp_path / "out")
    assert cohort.labels == ["Mass", "Nodule"]
    assert (cohort.frame["Mass"] + cohort.frame["Nodule"] == 1).all()
    assert all(("/Mass/" in path) == (mass == 1) for path, mass in zip(cohort.frame["path"], cohort.frame["Mass"],
                                                                       strict=True))


def test_nihs_long_tail_has_its_own_labels_and_splits(tmp_path: Path) -> None:
    command, file = WRITERS["nih_cxr_lt"](tmp_path / "release")
    cohort = prepared(command, tmp_path / "out")
    assert cohort.labels == list(NIH_CXR_LT.labels)
    source, found = pd.read_csv(file).set_index("id"), cohort.split("train").set_index("image_id")
    pd.testing.assert_frame_equal(source[cohort.labels].sort_index(), found[cohort.labels].astype("int64"),
                                  check_names=False)
    assert cohort.frame.loc[0, "patient_id"] == "1"  # as NIH's own table has it, without zeros


def rewrite(file: Path, change: object) -> None:
    """The label file through ``change``, a function of its lines; a gzip file stays one."""
    file.write_text("\n".join(change(file.read_text().splitlines())) + "\n")  # type: ignore[operator]


IDS = {"chexpert": "Path", "mimic": "subject_id", "padchest": "PatientID", "vindr": "image_id", "images": "file_name",
       "nih_cxr_lt": "subj_id"}
"""A column that each source cannot do without; the patient's where it has one."""


@pytest.mark.parametrize("name", WRITERS)
def test_a_mark_crlf_blank_lines_and_order_change_nothing(tmp_path: Path, name: str) -> None:
    plain = prepared(WRITERS[name](tmp_path / "a")[0], tmp_path / "out_a")
    command, file = WRITERS[name](tmp_path / "b")
    for other, source in ((file, (tmp_path / "a") / file.relative_to(tmp_path / "b")),):
        other.write_bytes(b"\xef\xbb\xbf" + b"\r\n\r\n".join(source.read_bytes().splitlines()) + b"\r\n")
    for extra in (tmp_path / "a").rglob("*"):  # invented content is drawn anew: take the same
        if extra.is_file() and (target := tmp_path / "b" / extra.relative_to(tmp_path / "a")) != file:
            target.write_bytes(extra.read_bytes())
    pd.testing.assert_frame_equal(prepared(command, tmp_path / "out_b").frame, plain.frame)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("defect", ["missing column", "label typo", "torn row", "no id", "duplicate", "absolute",
                                    "climbs", "exponent", "not text"])
def test_each_defect_has_its_error_or_its_recorded_skip(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, defect: str
) -> None:
    command, file = WRITERS[name](tmp_path / "release")
    header, *_ = file.read_text().splitlines()
    columns = header.split(",")
    at, last = columns.index(IDS[name]), len(columns) - 1
    labels = {"chexpert": "Fracture", "vindr": "Edema", "images": "Mass", "nih_cxr_lt": "Edema"}

    def cell(line: str, value: str, position: int = at) -> str:
        cells = line.split(",")
        cells[position] = value
        return ",".join(cells)

    paths = {"chexpert": "Path", "images": "file_name", "padchest": "ImageDir"}
    changes = {
        "missing column": lambda lines: [cell(lines[0], "nonsense"), *lines[1:]],
        "label typo": lambda lines: [lines[0].replace(labels[name], labels[name] + "s", 1), *lines[1:]],
        "torn row": lambda lines: [*lines[:4], lines[4].partition(",")[2], *lines[5:]],
        "no id": lambda lines: [*lines[:4], cell(lines[4], ""), *lines[5:]],
        "duplicate": lambda lines: [*lines, lines[4]],
        "absolute": lambda lines: [*lines[:4], cell(lines[4], "/etc/patient00001/study1/a", columns.index(paths[name])),
                                   *lines[5:]],
        "climbs": lambda lines: [*lines[:4], cell(lines[4], "../../patient00001/study1/a", columns.index(paths[name])),
                                 *lines[5:]],
        "exponent": lambda lines: [*lines[:4], cell(lines[4], "1.0e+07"), *lines[5:]],
        "not text": lambda lines: [*lines[:4], lines[4] + "\udcff", *lines[5:]],
    }
    if (defect == "label typo" and name not in labels) or (defect in ("absolute", "climbs") and name not in paths) or (
            defect == "exponent" and name in ("chexpert", "vindr", "images")):
        pytest.skip("this source has no such cell")
    lines = changes[defect](file.read_text().splitlines())
    file.write_bytes(("\n".join(lines) + "\n").encode("utf-8", "surrogateescape"))
    told = {"missing column": "has no column", "label typo": labels.get(name, ""), "torn row": f"has {last} fields",
            "no id": "row 5", "duplicate": "row", "absolute": "leaves the root", "climbs": "leaves the root",
            "exponent": "lost digits", "not text": "cannot be read as a CSV"}[defect]
    assert run_as_command(main, *command, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert told in error
    assert not (tmp_path / "out").exists()
    whole = defect in ("missing column", "label typo", "not text")  # nothing of such a file can be used
    assert run_as_command(main, *command, "--out", tmp_path / "out", "--on-bad", "skip") == (2 if whole else 0)
    if not whole:
        counts = (read_stamp(tmp_path / "out") or {})["counts"]
        assert counts["rejected"] == len(pd.read_parquet(tmp_path / "out" / "rejected.parquet")) >= 1
        assert counts["read"] == counts["kept"] + counts["rejected"] + counts.get("set_aside", 0)


def test_missing_truncated_huge_and_differently_spelt_images_are_all_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("good.png", "cut.png", "spelt.PNG", "huge.png"):
        write_image(tmp_path / name)
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:70])
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 50)  # the images have 120 pixels: over twice as many
    found = find_unreadable([tmp_path / "cut.png", tmp_path / "spelt.png", tmp_path / "huge.png"], threads=2)
    monkeypatch.undo()
    assert "cannot be read as an image" in found[0]
    assert found[1] == "no such image file; 'spelt.PNG' is there"
    assert "decompression bomb" in found[2]
    assert find_unreadable([tmp_path / "good.png"], threads=2) == {}


def test_what_was_decoded_before_a_kill_is_not_decoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cohort.preparing.decoding.CHUNK", 4)
    paths = [tmp_path / f"{number}.png" for number in range(10)]
    for number, path in enumerate(paths):
        write_image(path, seed=number)
    paths[1].write_bytes(b"no image")
    opened: list[Path] = []
    monkeypatch.setattr("cohort.preparing.decoding.open_grey", lambda path: opened.append(path))
    assert find_unreadable(paths[:8], threads=1, journal=tmp_path / "j.partial") == {}
    assert opened == paths[:8]
    write_image(paths[0], seed=77)  # changed since
    with (tmp_path / "j.partial").open("a") as stream:
        stream.write(f"{paths[9]},1 2")  # a line that a kill has cut
    find_unreadable(paths, threads=1, journal=tmp_path / "j.partial")
    assert sorted(opened[8:]) == sorted([paths[0], paths[8], paths[9]])


def test_a_key_that_a_source_does_not_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("run: run\nprepare: {source: nih, root: x, year: 2023}\n")
    assert run_as_command(main, "--config", config) == 2
    assert "prepare.year is 2023; source 'nih' does not use it" in capsys.readouterr().err
    assert all("root" in keys or source in ("phantom", "merge") for source, keys in USES.items())
