"""The phantom as a cohort: same bytes on one process or two, in one go or after a kill; stamp, roles, bad input."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cohort_toys import run_as_command
from PIL import Image

from cohort.phantom.cases import draw_cases
from cohort.phantom.exam import Exam
from cohort.phantom.prevalence import CORE
from cohort.phantom.settings import PhantomConfig
from cohort.prepare import PrepareConfig, main, prepare, warn_of_scarcity
from cohort.sources import phantom
from cohort.stage import verify
from cohort.tables import Cohort, load_cohort


def sketch(exam: Exam, size: int = 128) -> np.ndarray:
    """A stand-in for an image: noise from the exam's seed, so that each is known by its bytes."""
    return np.random.default_rng(exam.seed).integers(0, 256, (size, size), dtype=np.uint8)


@pytest.fixture
def sketched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw in this process, fast; what is tested is not how an image looks."""
    monkeypatch.setattr(phantom, "render", sketch)
    monkeypatch.setattr(phantom, "CHUNK", 10**6)


def made(folder: Path, **settings: Any) -> Cohort:
    config = PhantomConfig(**{"images": 60, "seed": 1, "findings": "core", "size": 64} | settings)
    prepare(PrepareConfig(source="phantom", phantom=config), folder)
    return load_cohort(folder)


def pictures(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "images").iterdir())}


def test_one_process_and_two_write_the_same_bytes(tmp_path: Path) -> None:
    command = ("phantom", "--images", 40, "--seed", 5, "--size", 64, "--findings", '["Pulmonary Embolism"]')
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        assert run_as_command(main, *command, "--processes", processes, "--out", folder) == 0
        assert (folder / "images").is_dir()
    one, two = pictures(tmp_path / "1"), pictures(tmp_path / "2")
    assert len(one) == 40
    assert one == two
    assert len(set(one.values())) == 40
    stamps = [json.loads((tmp_path / name / "_stage.json").read_text()) for name in "12"]
    assert stamps[0]["output_hash"] == stamps[1]["output_hash"]
    with Image.open(tmp_path / "1" / "images" / next(iter(one))) as image:
        assert (image.mode, image.size) == ("L", (64, 64))


@pytest.mark.usefixtures("sketched")
def test_the_table_is_the_cases_and_the_images_are_theirs(tmp_path: Path) -> None:
    cohort = made(tmp_path / "c")
    cases = list(draw_cases(PhantomConfig(images=60, seed=1, findings="core", size=64)))
    assert cohort.labels == [label for label in PhantomConfig().labels if label in CORE]
    assert cohort.frame["image_id"].tolist() == [case.exam.image_id for case in cases]
    assert cohort.frame[cohort.labels].to_numpy(dtype=bool).tolist() == [case.labels.tolist() for case in cases]
    assert cohort.frame["split"].tolist() == [case.split for case in cases]
    assert cohort.frame["sex"].tolist() == [case.exam.patient.sex for case in cases]
    for file, case in zip(cohort.image_paths(cohort.frame), cases, strict=True):
        with Image.open(file) as image:
            assert (np.asarray(image) == sketch(case.exam, 64)).all()
    assert verify(tmp_path / "c", "cohort", "images").is_dir()


@pytest.mark.usefixtures("sketched")
def test_the_stamp_states_what_was_done_to_the_numbers(tmp_path: Path) -> None:
    cohort = made(tmp_path / "c", test_enrichment=10.0, label_noise={"Edema": 0.1}, site="B", images=500,
                  findings=("Edema", "Kyphosis", "Infarction"), seed=3, test_share=0.1)
    extra = json.loads((tmp_path / "c" / "_stage.json").read_text())["extra"]
    assert extra["enrichment"] == {"val": 1.0, "test": 10.0}
    assert (extra["site"], extra["case_mix"]["scarce"], extra["controls"]) == ("B", 8.0, ["Infarction"])
    assert (extra["label_noise"], extra["noisy_splits"]) == ({"Edema": 0.1}, ["train", "val"])
    assert cohort.groups == {"Edema": "head", "Kyphosis": "medium", "Infarction": "control"}
    assert cohort.in_group("control") == ["Infarction"]
    assert set(cohort.roots) == {"phantom"}


@pytest.mark.usefixtures("sketched")
def test_a_kill_in_the_middle_is_completed_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path / "whole")
    drawn: list[str] = []

    def dying(exam: Exam, size: int) -> np.ndarray:
        if len(drawn) == 23:
            raise KeyboardInterrupt
        drawn.append(exam.image_id)
        return sketch(exam, size)

    monkeypatch.setattr(phantom, "render", dying)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "torn")
    assert not (tmp_path / "torn" / "_stage.json").exists()
    first, drawn[:] = list(drawn), []
    monkeypatch.setattr(phantom, "render", lambda exam, size: (drawn.append(exam.image_id), sketch(exam, size))[1])
    made(tmp_path / "torn")
    assert (len(first), len(drawn), set(first) & set(drawn)) == (23, 37, set())
    assert pictures(tmp_path / "torn") == pictures(tmp_path / "whole")
    made(tmp_path / "torn")
    assert len(drawn) == 37


@pytest.mark.usefixtures("sketched")
def test_the_roles_of_an_experiment_are_cohorts_of_their_own(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("""
run: run
prepare: {source: phantom, phantom: {images: 90, seed: 1, size: 64, findings: core}}
oracle: {source: phantom, phantom: {images: 50, seed: 101, size: 64, findings: core, val_share: 0, test_share: 0,
                                    only_with: [tail, control]}}
external: {source: phantom, phantom: {images: 70, seed: 1, site: B, size: 64, findings: core}}
""")
    cohorts = {}
    for role, folder in (("cohort", "cohort"), ("oracle", "oracle"), ("external", "external")):
        assert run_as_command(main, "--config", config, "--role", role) == 0
        cohorts[role] = load_cohort(tmp_path / "run" / folder)
    assert [len(cohort.frame) for cohort in cohorts.values()] == [90, 50, 70]
    assert len({tuple(cohort.labels) for cohort in cohorts.values()}) == 1
    patients = [set(cohort.frame["patient_id"]) for cohort in cohorts.values()]
    assert len(set.union(*patients)) == sum(len(found) for found in patients)
    assert set(cohorts["oracle"].frame["split"]) == {"train"}


BAD: dict[str, tuple[tuple[object, ...], str]] = {
    "no images": (("phantom", "--images", 0), "phantom.images is 0; wanted: 1 or more"),
    "unknown label": (("phantom", "--findings", '["Edma"]'), "did you mean 'Edema'"),
    "unknown site": (("phantom", "--site", "C"), "site"),
    "no train image": (("phantom", "--images", 1, "--val-share", 0, "--test-share", ".98"), "in the split 'train'"),
    "no process": (("phantom", "--images", 1, "--processes", 0), "processes is 0"),
    "a root": (("phantom", "--images", 1, "--root", "x"), "root"),
    "nih without a root": (("nih",), "prepare.root is None with source 'nih'; wanted: the folder of the images"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    words, culprit = BAD[kind]
    assert run_as_command(main, *words, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert culprit in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("section", "culprit"), [
    ("{source: phantom, phantom: {imges: 3}}", "unknown key 'imges'; did you mean 'images'"),
    ("{source: phantom, root: x}", "wanted: none, the images are made"),
    ("{source: phantom, phantom: {label_noise: {Edema: 3}}}", "phantom.label_noise.Edema is 3"),
    ("{source: phantom, phantom: {only_with: [tails]}}", "phantom.only_with: 'tails'"),
])
def test_a_bad_section_is_refused_by_its_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], section: str, culprit: str
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(f"run: run\noracle: {section}\n")
    assert run_as_command(main, "--config", config, "--role", "oracle") == 2
    assert culprit in capsys.readouterr().err
    assert run_as_command(main, "--config", config, "--role", "orcle") == 2
    assert "--role is 'orcle'; wanted: cohort, oracle, external" in capsys.readouterr().err


@pytest.mark.usefixtures("sketched")
def test_other_settings_are_refused_in_the_same_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path / "c")
    command = ("phantom", "--findings", "core", "--size", 64, "--seed", 1, "--out", tmp_path / "c")
    assert run_as_command(main, *command, "--images", 60) == 0
    assert run_as_command(main, *command, "--images", 61) == 2
    assert "phantom.images was 60, now 61" in capsys.readouterr().err


def test_tail_labels_with_too_few_test_patients_for_an_interval_are_named(caplog: pytest.LogCaptureFixture) -> None:
    counted = pd.DataFrame({"label": ["Hernia", "Mass", "Edema", "Hernia"], "group": ["tail", "tail", "head", "tail"],
                            "split": ["test", "test", "test", "train"], "n_patients": [9, 10, 3, 2]})
    warn_of_scarcity(counted)
    assert [record.getMessage() for record in caplog.records] == [
        "prepare: under 10 positive test patients, so no interval of their own: Hernia 9"]
