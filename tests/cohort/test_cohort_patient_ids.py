"""Images whose source names no patient stand for themselves: the stamp says so, and so does the check."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cohort.tables import load_cohort

N = 20


def pictures(folder: Path, names: list[str]) -> None:
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 10), dtype=np.uint8)).save(folder / name)


def csv_of(folder: Path, patients: list[str] | None) -> list[object]:
    """A folder of images with a CSV, with or without a column of patients."""
    names = [f"i{at}.png" for at in range(N)]
    pictures(folder / "images", names)
    header = "path,Mass" + (",patient_id" if patients else "")
    lines = [f"{name},{at % 2}" + (f",{patients[at]}" if patients else "") for at, name in enumerate(names)]
    (folder / "labels.csv").write_text("\n".join([header, *lines]) + "\n")
    return ["csv", "--root", folder / "images", "--csv", folder / "labels.csv", "--label_space", "own",
            "--columns.labels", '["Mass"]']


def class_folders(folder: Path) -> list[object]:
    pictures(folder / "images", [f"{('Mass', 'None')[at % 2]}/i{at}.png" for at in range(N)])
    return ["images", "--root", folder / "images"]


def prepare(invoke, folder: Path, command: list[object]) -> str:
    done = invoke("cohort.prepare", *command, "--out", folder / "cohort")
    assert done.code == 0, done.stderr
    return json.loads((folder / "cohort" / "_stage.json").read_text())["extra"]["patient_ids"]


@pytest.mark.parametrize("make", [lambda folder: csv_of(folder, None), class_folders])
def test_one_image_is_one_patient_and_it_is_said(tmp_path, invoke, make):
    assert prepare(invoke, tmp_path, make(tmp_path)) == "image"
    assert load_cohort(tmp_path / "cohort").frame["patient_id"].is_unique
    done = invoke("cohort.check", "--run", tmp_path, "--no-images")
    assert (done.code, "no image has a patient id" in done.stdout) == (0, True), done.stdout


def test_a_cohort_with_patients_is_not_flagged_and_a_merged_one_is_in_part(tmp_path, invoke):
    patients = [f"p{at // 2}" for at in range(N)]
    assert prepare(invoke, tmp_path / "a", csv_of(tmp_path / "a", patients)) == "given"
    assert "no_patient_ids" not in invoke("cohort.check", "--run", tmp_path / "a", "--no-images").stdout
    assert prepare(invoke, tmp_path / "b", class_folders(tmp_path / "b")) == "image"
    folders = json.dumps([str(tmp_path / name / "cohort") for name in "ab"])
    done = invoke("cohort.prepare", "merge", "--cohorts", folders, "--out", tmp_path / "both")
    assert done.code == 0, done.stderr
    assert json.loads((tmp_path / "both" / "_stage.json").read_text())["extra"]["patient_ids"] == "some"
    done = invoke("cohort.check", "--run", tmp_path / "both", "--no-images")
    assert "some images have no patient id" in done.stdout
    assert (tmp_path / "both_check" / "checks.parquet").is_file()
