"""The NIH release in its layouts and years, end to end through the command."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cohort_toys import label_file, run_as_command, toy_rows, write_release

from cohort.prepare import main
from cohort.stage import hash_file
from cohort.tables import Cohort, load_cohort

NIH128 = Path(__file__).parents[3] / "shared" / "data" / "nih128"


def prepared(root: Path, out: Path, *flags: object) -> Cohort:
    assert run_as_command(main, "nih", "--root", root, "--out", out, *flags) == 0
    return load_cohort(out)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("release"), toy_rows())


@pytest.fixture(scope="module")
def cohort(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return prepared(release, tmp_path_factory.mktemp("out") / "cohort")


def test_each_row_of_the_release_is_in_the_table(cohort: Cohort) -> None:
    frame = cohort.frame.set_index("image_id")
    assert set(frame.index) == {row["name"] for row in toy_rows()}
    for row in toy_rows():
        found = frame.loc[row["name"]]
        present = {label for label in cohort.labels if found[label] == 1}
        wanted = set() if row["findings"] == "No Finding" else set(row["findings"].replace("_", " ").split("|"))
        assert present == wanted
        assert (found["patient_id"], found["view"], found["sex"]) == (row["patient"], row["view"], row["sex"])
        assert found["age"] == float(row["age"])
    assert all(path.is_file() for path in cohort.image_paths(cohort.frame))


def test_the_lists_are_honoured_and_validation_is_drawn_by_patient(cohort: Cohort) -> None:
    given = {row["name"]: row["split"] for row in toy_rows()}
    frame = cohort.frame
    assert ((frame["split"] == "test") == frame["image_id"].map(given).eq("test")).all()
    assert set(frame["split"]) == {"train", "val", "test"}
    assert frame.groupby("patient_id")["split"].nunique().max() == 1
    rest = frame[frame["split"] != "test"]
    assert (rest["split"] == "val").mean() == pytest.approx(0.15, abs=0.06)


def test_the_stamp_accounts_for_the_rows_and_names_the_groups(cohort: Cohort) -> None:
    stamp = json.loads((cohort.folder / "_stage.json").read_text())
    counts = stamp["counts"]
    assert counts["read"] == counts["kept"] + counts["rejected"] == len(toy_rows())
    assert sum(counts[f"{split}_images"] for split in ("train", "val", "test")) == counts["kept"]
    assert set(stamp["inputs"]) == {"labels", "train_list", "test_list"}
    assert stamp["extra"]["patient_ids"] == "given"
    assert set(cohort.groups) == set(cohort.labels)
    table = pd.read_parquet(cohort.folder / "counts.parquet")
    for row in table.itertuples():
        part = cohort.split(row.split)
        assert row.n_images == (part[row.label] == 1).sum()
        assert row.group == cohort.groups[row.label]


@pytest.mark.parametrize(("year", "parts"), [(2017, 1), (2020, 3), (2017, 3)])
def test_the_other_layouts_and_years_give_the_same_cohort(
    tmp_path: Path, cohort: Cohort, year: int, parts: int
) -> None:
    other = prepared(write_release(tmp_path / "release", toy_rows(), year=year, parts=parts), tmp_path / "cohort")
    pd.testing.assert_frame_equal(other.frame.drop(columns="path"), cohort.frame.drop(columns="path"))
    assert other.groups == cohort.groups
    assert all(path.is_file() for path in other.image_paths(other.frame))


def test_the_order_of_the_rows_does_not_matter(tmp_path: Path, cohort: Cohort) -> None:
    rows = toy_rows()
    root = write_release(tmp_path / "release", [rows[n] for n in np.random.default_rng(0).permutation(len(rows))])
    other = prepared(root, tmp_path / "cohort")
    assert hash_file(other.folder / "cohort.parquet") == hash_file(cohort.folder / "cohort.parquet")
    assert other.salt == cohort.salt  # equal cohorts hash their patients alike


def test_without_lists_test_is_drawn_too(tmp_path: Path) -> None:
    root = write_release(tmp_path / "release", toy_rows(80), lists=False)
    frame = prepared(root, tmp_path / "cohort", "--test-fraction", "0.25", "--seed=3").frame
    assert frame.groupby("patient_id")["split"].nunique().max() == 1
    assert (frame["split"] == "test").mean() == pytest.approx(0.25, abs=0.05)
    assert (frame["split"] == "val").mean() == pytest.approx(0.15 * 0.75, abs=0.05)


def test_another_seed_moves_validation_only(tmp_path: Path, release: Path, cohort: Cohort) -> None:
    other = prepared(release, tmp_path / "cohort", "--seed", 1)
    moved = other.frame["split"] != cohort.frame["split"]
    assert moved.any()
    assert not (other.frame["split"][moved] == "test").any()


def test_implausible_ages_become_null_and_are_counted(tmp_path: Path) -> None:
    rows = toy_rows(20)
    rows[0]["age"], rows[1]["age"] = "411", "148"
    cohort = prepared(write_release(tmp_path / "release", rows, year=2017), tmp_path / "cohort")
    frame = cohort.frame.set_index("image_id")
    assert frame.loc[[rows[0]["name"], rows[1]["name"]], "age"].isna().all()
    assert json.loads((cohort.folder / "_stage.json").read_text())["counts"]["age_nulled"] == 2
    assert frame["age"].notna().sum() == len(rows) - 2


def test_run_again_it_does_nothing_and_from_other_settings_it_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = write_release(tmp_path / "release", toy_rows(20)), tmp_path / "cohort"
    stamp = prepared(root, out).folder / "_stage.json"
    before = stamp.stat().st_mtime_ns
    prepared(root, out)
    assert stamp.stat().st_mtime_ns == before
    capsys.readouterr()
    assert run_as_command(main, "nih", "--root", root, "--out", out, "--val-fraction", ".3") == 2
    assert "val_fraction was 0.15, now 0.3" in capsys.readouterr().err
    with label_file(root).open("a") as stream:
        stream.write("\n")
    assert run_as_command(main, "nih", "--root", root, "--out", out) == 2
    assert "input labels has changed" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(tmp_path: Path, release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_as_command(main, "nih", "--root", release, "--out", tmp_path / "cohort", "--dry-run") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["rows"], shown["bad_rows"], shown["state"]) == (80, 0, "to do")
    assert not (tmp_path / "cohort").exists()


def test_the_experiments_section_makes_the_same_cohort(tmp_path: Path, release: Path, cohort: Cohort) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(f"run: run\nprepare:\n  root: {release}\n")
    assert run_as_command(main, "--config", config) == 0
    assert load_cohort(tmp_path / "run" / "cohort").frame.equals(cohort.frame)


def test_unchecked_images_need_not_be_there_and_the_cohort_is_the_same(
    tmp_path: Path, release: Path, cohort: Cohort
) -> None:
    bare = tmp_path / "release"
    bare.mkdir()
    for file in release.glob("*.*"):
        (bare / file.name).write_bytes(file.read_bytes())
    assert run_as_command(main, "nih", "--root", bare, "--out", tmp_path / "refused") == 2
    other = prepared(bare, tmp_path / "cohort", "--check", "none")
    pd.testing.assert_frame_equal(other.frame, cohort.frame)
    away = prepared(tmp_path / "nowhere", tmp_path / "away", "--check", "none", "--csv", label_file(bare))
    assert sorted(away.frame["path"]) == sorted(cohort.frame["path"])


@pytest.mark.parametrize(("name", "told"), [("../../etc/passwd", "leaves the root"), ("", "no image path given")])
def test_unchecked_images_have_names_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, told: str
) -> None:
    root = write_release(tmp_path / "release", toy_rows(20), lists=False)
    with label_file(root).open("a") as stream:
        stream.write(f"{name},Mass,0,99,50,F,PA,12,10,.1,.1\n")
    assert run_as_command(main, "nih", "--root", root, "--out", tmp_path / "cohort", "--check", "none") == 2
    assert told in capsys.readouterr().err


@pytest.mark.skipif(not NIH128.is_dir(), reason="the real radiographs are not here")
def test_the_real_radiographs(tmp_path: Path) -> None:
    cohort = prepared(NIH128, tmp_path / "cohort")
    assert len(cohort.frame) == 8506
    assert len(cohort.split("test")) == 2967
    assert cohort.in_group("tail") == ["Edema", "Hernia", "Pneumonia"]
    assert cohort.in_group("head") == ["Infiltration"]
    assert cohort.frame.groupby("patient_id")["split"].nunique().max() == 1
    positives = cohort.frame.groupby("split")[cohort.labels].sum()
    assert (positives > 0).all(axis=None)
