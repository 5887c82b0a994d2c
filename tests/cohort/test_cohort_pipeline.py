"""``tailfill``: the stages in order, and where a run stands."""

from pathlib import Path

import pytest
from cohort_toys import run_as_command

from cohort.pipeline import OPTIONAL, SECTIONS, STAGES, folder_state, is_made_from
from cohort.stage import Stage, write_atomically
from cohort.status import main


def make(folder: Path, name: str, *, inputs: dict[str, Path] | None = None, content: bytes = b"x",
         begun: bool = False, n: int = 1) -> None:
    stage = Stage(name, folder, config={}, inputs=inputs or {})
    stage.begin()
    if not begun:
        write_atomically(folder / "t.bin", content)
        stage.finish(outputs=["t.bin"], counts={"rows": n}, seconds=90.0)


def status(run: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, str], str]:
    """The line of each stage, and the command to type next."""
    assert run_as_command(main, "status", run) == 0
    lines = capsys.readouterr().out.splitlines()
    table = {line.split()[0]: line for line in lines if line and line.split()[0] in {stage.name for stage in STAGES}}
    return table, next((line for line in lines if line.startswith(("next:", "complete:"))), "")


def test_alone_it_prints_each_stage_with_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_as_command(main) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    shown = [line.split()[0] for line in lines[1 : 1 + len(STAGES)]]
    assert shown == [stage.name for stage in STAGES]
    for stage, line in zip(STAGES, lines[1:], strict=False):
        assert stage.command in line
    assert {"prepare", "plan", "report"} <= set(SECTIONS)


def test_states_of_a_folder(tmp_path: Path) -> None:
    cohort, plan = tmp_path / "cohort", tmp_path / "plan"
    assert folder_state(plan) == "missing"
    make(cohort, "prepare")
    make(plan, "plan", inputs={"cohort": cohort}, begun=True)
    assert folder_state(plan) == "begun"
    make(plan, "plan", inputs={"cohort": cohort})
    assert folder_state(plan) == "complete"
    make(cohort, "prepare", content=b"changed")
    assert folder_state(plan) == "stale"


def test_status_says_what_to_type_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, upcoming = status(tmp_path, capsys)
    assert all("missing" in line or name in (*OPTIONAL, "critic", "arm", "train", "predict", "ensemble")
               for name, line in table.items())
    assert upcoming == "next: python -m cohort.prepare --config CONFIG.yaml"
    (tmp_path / "config.yaml").write_text("run: .\n")
    make(tmp_path / "cohort", "prepare", n=1234)
    table, upcoming = status(tmp_path, capsys)
    assert "complete" in table["prepare"]
    assert "rows=1,234" in table["prepare"]
    assert "1.5 min" in table["prepare"]
    assert upcoming == f"next: python -m prompts.plan --config {tmp_path}/config.yaml"


def test_a_further_cohort_is_needed_where_the_configuration_has_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "cohort", "prepare")
    (tmp_path / "config.yaml").write_text("run: .\noracle: {}\n")
    table, upcoming = status(tmp_path, capsys)
    assert "missing" in table["oracle"]
    assert "not needed" in table["external"]
    assert upcoming == f"next: python -m cohort.prepare --config {tmp_path}/config.yaml --role oracle"


def test_a_stale_or_begun_stage_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "cohort", "prepare")
    make(tmp_path / "plan", "plan", inputs={"cohort": tmp_path / "cohort"})
    make(tmp_path / "cohort", "prepare", content=b"changed")
    table, upcoming = status(tmp_path, capsys)
    assert "stale" in table["plan"]
    assert "prompts.plan" in upcoming


def test_arms_and_seeds_are_summed_and_critics_kept_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("real/seed_0", "real/seed_1", "synthetic/seed_0", "real/seed_1000"):
        make(tmp_path / "train" / folder, "train", n=10)
    table, _ = status(tmp_path, capsys)
    assert "3/3 complete" in table["train"]
    assert "rows=30" in table["train"]
    assert "1/1 complete" in table["critic"]
    make(tmp_path / "train" / "duplicate" / "seed_0", "train", begun=True)
    table, _ = status(tmp_path, capsys)
    assert "begun" in table["train"]


def test_what_is_missing_is_read_from_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("{arms: [real, synthetic], n_seeds: 2, train: {init_seed: 2000}, "
                                          "filter: {critic_seeds: [1000]}}")
    for folder in ("cohort", "plan", "generator", "images", "train/real/seed_2000"):
        make(tmp_path / folder, folder.split("/")[0])
    table, upcoming = status(tmp_path, capsys)
    assert "1/2 complete, 1 missing" in table["critic"]
    assert "4 missing" in table["train"]
    assert "not needed" in table["autoencoder"]
    assert upcoming == (f"next: accelerate launch classify/train.py --config {tmp_path}/config.yaml "
                        "--arm real --arm-seed 1000")
    for folder in ("train/real/seed_1000", "synthetic", "arms/real/seed_0", "arms/synthetic/seed_0",
                   "arms/real/seed_1"):
        make(tmp_path / folder, folder.split("/")[0])
    _, upcoming = status(tmp_path, capsys)
    assert upcoming.endswith("--arm synthetic --arm-seed 1")


def test_a_complete_run_points_to_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for stage in STAGES:
        folder = stage.folder.replace("ARM", "real").replace("SEED", "0").replace("CRITIC", "1000")
        make(tmp_path / folder, stage.name)
    _, upcoming = status(tmp_path, capsys)
    assert upcoming == f"complete: open {tmp_path}/report/report.html"


def test_what_is_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_as_command(main, "status", tmp_path / "none") == 2
    assert capsys.readouterr().err.endswith("is no folder; wanted: the folder of a run\n")
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "_stage.json").write_text("{")
    assert run_as_command(main, "status", tmp_path) == 2
    assert "is no readable stamp" in capsys.readouterr().err


def test_what_a_section_leaves_null_is_the_stages_to_choose(tmp_path: Path) -> None:
    stage = Stage("prepare", tmp_path / "cohort", config={"label_space": "nih_14", "seed": 1}, inputs={})
    stage.begin()
    stage.finish(outputs=[], counts={})
    assert is_made_from(stage.folder, {"label_space": None, "seed": 1})
    assert not is_made_from(stage.folder, {"label_space": "nih_20", "seed": 1})
    assert not is_made_from(stage.folder, {"label_space": None, "seed": 2})
