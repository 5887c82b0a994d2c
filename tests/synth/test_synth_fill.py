"""Topping up: rounds until the accepted images meet their budgets, whatever interrupts it."""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from experiment import list_steps
from fill_world import LABELS, RULES, Killed, Stages, build_world, write_generator
from tiny_pipeline import save_tiny_pipeline

from cohort import status
from cohort.errors import TailfillError
from cohort.tables import fill_schema, images_schema, load_cohort, plan_schema, read_table, synthetic_schema
from prompts.plan import build_plan
from prompts.settings import PlanConfig
from synth import fill

NEGATIVE = "negative"
TABLES = ("plan/plan.parquet", "plan/budget.parquet", "images/images.parquet", "synthetic/synthetic.parquet",
          "fill/fill.parquet")


def fill_here(config: Path, monkeypatch: pytest.MonkeyPatch, *flags: str, stages: Stages | None = None) -> Stages:
    """Run the command in this process, with stand-ins for what it launches."""
    stages = stages or Stages()
    monkeypatch.setattr(fill, "run_launched", stages)
    monkeypatch.setattr(sys, "argv", ["fill.py", "--config", str(config), *flags])
    fill.main()
    return stages


def hashes(run: Path) -> dict[str, str]:
    return {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in TABLES}


def read_all(run: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Plan, images, verdicts and the account of a filled run."""
    return (read_table(run / TABLES[0], plan_schema(LABELS)), read_table(run / TABLES[2], images_schema()),
            read_table(run / TABLES[3], synthetic_schema(LABELS, RULES)), read_table(run / TABLES[4],
                                                                                     fill_schema(LABELS)))


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was filled without interruption; its configuration lies beside it."""
    folder = tmp_path_factory.mktemp("filled")
    with pytest.MonkeyPatch.context() as patch:
        fill_here(build_world(folder), patch)
    return folder / "run"


def test_each_class_ends_met_or_with_a_reason(filled: Path) -> None:
    *_, account = read_all(filled)
    final = account.drop_duplicates("label", keep="last").set_index("label")
    assert final["status"].to_dict() == {"Hernia": "met", "Edema": "met", "Fibrosis": "given up", NEGATIVE: "met"}
    assert final.loc["Fibrosis", "reason"].startswith("0 of 120 images accepted")
    assert (final["accepted"] >= final["budget"])[["Hernia", "Edema", NEGATIVE]].all()
    assert account["round"].max() >= 2
    assert account[account["label"] == "Fibrosis"]["asked"].tolist()[2:] == [0] * int(account["round"].max() - 1)


def test_the_account_is_that_of_the_tables(filled: Path) -> None:
    plan, images, synthetic, account = read_all(filled)
    final = account.drop_duplicates("label", keep="last").set_index("label")
    kept = synthetic[synthetic["keep"] & (synthetic["charged_to"] != NEGATIVE)]
    for label in ("Hernia", "Edema", "Fibrosis"):
        assert final.loc[label, "accepted"] == (kept[label] == 1).sum()
        asked = plan[(plan[label] == 1) & (plan["charged_to"] != NEGATIVE)]
        assert account[account["label"] == label]["asked"].sum() == len(asked)
    assert images["sample_id"].tolist() == plan["sample_id"].tolist()
    assert len(synthetic) == (images["status"] == "ok").sum()
    counts = json.loads((filled / "images" / "_stage.json").read_text())["counts"]
    assert counts["planned"] == len(plan) == counts["made"] + counts["failed"]
    budget = read_table(filled / TABLES[1]).set_index("label")
    assert "0 of 120" in budget.loc["Fibrosis", "reason"]
    assert budget.loc[["Hernia", "Edema"], "reason"].isna().all()
    assert budget["carried"].to_dict() == plan[plan["charged_to"] != NEGATIVE][LABELS].sum().to_dict()


def test_all_rounds_stand_in_the_form_of_one(filled: Path) -> None:
    plan, images, synthetic, account = read_all(filled)
    assert sorted(plan["round"].unique()) == list(range(account["round"].max() + 1))
    assert synthetic.merge(plan, on="sample_id")["round_x"].equals(synthetic.merge(plan, on="sample_id")["round_y"])
    assert plan.groupby("batch")["round"].nunique().max() == 1
    assert all((filled / "images" / path).is_file() for path in images["path"].dropna())
    pairs = plan.groupby("seed")
    assert (pairs["round"].nunique() > 1).any()  # a negative that was asked again alone
    positives = plan[plan["charged_to"] != NEGATIVE]
    assert positives["seed"].is_unique
    assert plan["seed"].isin(positives["seed"]).all()
    assert not plan.duplicated(["seed", "prompt"]).any()


def test_the_first_round_is_the_ordinary_plan(filled: Path) -> None:
    first = read_table(filled / "round_00" / "plan" / "plan.parquet", plan_schema(LABELS))
    ordinary = build_plan(load_cohort(filled / "cohort"), PlanConfig(total=60), seed=0).rows
    pd.testing.assert_frame_equal(first, plan_schema(LABELS).validate(ordinary))


def test_a_look_of_an_earlier_round_is_not_kept_twice(filled: Path) -> None:
    *_, synthetic, _ = read_all(filled)
    again = synthetic[synthetic["reason"] == "look"]
    assert set(again["charged_to"]) == {"Edema"}
    assert (again["round"] > 0).any()


def test_again_it_does_nothing(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def written() -> dict[str, int]:
        return {str(file): file.stat().st_mtime_ns for file in filled.rglob("*") if file.is_file()}

    before = written()
    assert fill_here(filled.parent / "config.yaml", monkeypatch).calls == 0
    assert written() == before


def test_other_settings_are_refused(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in (("fill.rounds", "4"), ("plan.total", "61"), ("seed", "1")):
        with pytest.raises(TailfillError, match=f"made from other settings: .*{key.split('.')[-1]}"):
            fill_here(filled.parent / "config.yaml", monkeypatch, f"--{key}", value)


def test_a_given_generator_that_was_trained_anew_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is a stage's or has merely been put there: its hash counts, not its place."""
    for name, write in (("stage", write_generator), ("folder", save_tiny_pipeline)):
        config = build_world(tmp_path / name, rounds=1)
        write(tmp_path / name / "given", 0)
        given = tmp_path / name / "given" / ("pipeline" if name == "stage" else "")
        flags = ("--generate.pipeline", str(given))
        fill_here(config, monkeypatch, *flags)
        assert fill_here(config, monkeypatch, *flags).calls == 0
        shutil.rmtree(tmp_path / name / "given")
        write(tmp_path / name / "given", 1)
        with pytest.raises(TailfillError, match=r"made from other settings: .*generate\.weights"):
            fill_here(config, monkeypatch, *flags)


def test_no_round_is_drawn_by_other_weights_than_those_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after its first round, and the given folder exchanged meanwhile: the rounds are not mixed."""
    def kill(folder: Path, moment: str) -> None:
        if folder == tmp_path / "run" / "round_01" / "images" and moment == "before":
            raise Killed

    config = build_world(tmp_path)
    flags = ("--generate.pipeline", str(save_tiny_pipeline(tmp_path / "given", 0)))
    with pytest.raises(Killed):
        fill_here(config, monkeypatch, *flags, stages=Stages(kill))
    shutil.rmtree(tmp_path / "given")
    save_tiny_pipeline(tmp_path / "given", 1)
    with pytest.raises(TailfillError, match=r"round_00.*made from other settings: weights was"):
        fill_here(config, monkeypatch, *flags)


def test_killed_anywhere_it_ends_the_same(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each launched stage is killed before, within and after its work, and the command given again until it ends."""
    config, killed = build_world(tmp_path), set()

    def kill(folder: Path, moment: str) -> None:
        if (folder, moment) not in killed:
            killed.add((folder, moment))
            raise Killed

    while True:
        try:
            fill_here(config, monkeypatch, stages=Stages(kill))
            break
        except Killed:
            assert len(killed) < 60
    assert len(killed) >= 3 * 7  # two stages in each of three rounds or more, and the last filter
    assert hashes(tmp_path / "run") == hashes(filled)


def test_killed_while_it_writes_it_ends_the_same(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own files: each attempt may put one more in place than the one before it."""
    config, real, limit = build_world(tmp_path), Path.replace, 0

    def replace(self: Path, target: Path) -> Path:
        nonlocal left
        left -= target.suffix != ".png"
        if left < 0:
            raise Killed
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    while True:
        left = limit
        try:
            fill_here(config, monkeypatch)
            break
        except Killed:
            limit += 1
    assert limit >= 5
    assert hashes(tmp_path / "run") == hashes(filled)


def test_more_rounds_go_on_where_fewer_ended(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two rounds, then as many as the other has: the same tables, nothing drawn twice, the first end kept."""
    config, run = build_world(tmp_path, rounds=2), tmp_path / "run"
    fill_here(config, monkeypatch)
    first = hashes(run)
    assert (read_table(run / TABLES[4])["status"] == "short").any()
    rounds = {str(file): file.stat().st_mtime_ns for file in run.glob("round_0[01]/images/**/*") if file.is_file()}
    fill_here(config, monkeypatch, "--fill.rounds", "5", "--dry-run")
    said = json.loads(capsys.readouterr().out)
    assert said["rounds_judged"] == 2
    assert said["next_round"]["planned"] > 0
    assert hashes(run) == first
    moved, real = [], Path.replace

    def replace(self: Path, target: Path) -> Path:
        if target.parent.name == "fill_of_2_rounds":
            moved.append(target.name)
            if len(moved) == 3:
                raise Killed
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(Killed):
        fill_here(config, monkeypatch, "--fill.rounds", "5")
    fill_here(config, monkeypatch, "--fill.rounds", "5")
    assert hashes(run) == hashes(filled)
    assert hashes(run / "fill_of_2_rounds") == first
    assert rounds == {name: Path(name).stat().st_mtime_ns for name in rounds}


def test_a_round_of_which_every_image_failed_is_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, and the next round asks again; what could not be made stands in the account."""
    config = build_world(tmp_path, min_acceptance=0, rounds=2)
    fill_here(config, monkeypatch, stages=Stages(fails=lambda place: "round_00" in str(place)))
    assert "none of the images of 1 rounds could be made: not finite" in caplog.text
    plan, images, synthetic, account = read_all(tmp_path / "run")
    assert (account[account["round"] == 0]["made"] == 0).all()
    assert (images.merge(plan, on="sample_id")["round"][images["status"] == "ok"] > 0).all()
    assert len(synthetic) == (images["status"] == "ok").sum() > 0
    final = account.drop_duplicates("label", keep="last").set_index("label")
    assert (final.loc[["Hernia", "Edema"], "accepted"] > 0).all()


def test_where_no_image_can_be_made_it_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one line names the error; given again, it is the same."""
    config = build_world(tmp_path, rounds=1)
    for _ in range(2):
        with pytest.raises(TailfillError, match="rounds could be made, most often: not finite"):
            fill_here(config, monkeypatch, stages=Stages(fails=lambda place: True))
    assert not (tmp_path / "run" / "synthetic").exists()


def test_a_dry_run_says_what_is_next_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = build_world(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert fill_here(config, monkeypatch, "--dry-run").calls == 0
    said = json.loads(capsys.readouterr().out)
    assert sorted(tmp_path.rglob("*")) == before
    assert said["rounds_judged"] == 0
    assert said["next_round"]["planned"] == 120


def test_in_an_experiment_it_takes_the_place_of_what_it_runs() -> None:
    config = {"run": "r", "cohort": None, "train": {"init_seed": None}, "filter": {"critic_seeds": [1000]},
              "finetune": {}, "plan": {}, "generate": {}, "n_seeds": 1, "arms": ["real"]}
    plain, filling = ([step.stage for step in list_steps(config | more)] for more in ({}, {"fill": {}}))
    assert [stage for stage in plain if stage not in filling] == ["plan", "generate", "filter"]
    assert filling.index("finetune") < filling.index("fill") < filling.index("arm")


def test_status_asks_for_fill_and_not_for_what_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = build_world(tmp_path)
    (tmp_path / "run" / "config.yaml").write_text(config.read_text())
    status.print_status(tmp_path / "run")
    assert "next: python -m synth.fill --config" in capsys.readouterr().out


def test_status_asks_for_no_fine_tuning_of_a_generator_that_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"generate": {"pipeline": "elsewhere"}}
    for more, wanted in ({}, False), ({"finetune": {}}, True):
        (tmp_path / "config.yaml").write_text(json.dumps(config | more))
        status.print_status(tmp_path)
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("finetune"))
        assert ("missing" in line) == wanted
