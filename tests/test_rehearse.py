"""The runs of a rehearsal as configurations, and the time that is told of them; a whole one is a matter of minutes."""

from pathlib import Path

import pytest
import rehearsal_time
import rehearse
import yaml
from experiment_config import read_experiment
from rehearsal_runs import LEFT_OUT, Rehearsal, base_config, child_config, open_rehearsal, steps_of
from rehearsal_time import foresee, tell_time
from withheld_toys import toy_frame, write_toy

from classify.rehearsal.choices import list_cells
from cohort.errors import TailfillError
from cohort.provenance import write_patients
from cohort.stage import Stage
from cohort.tables import load_cohort
from cohort.withholding.cohorts import Thinning, write_thinned

FINDINGS = '["Effusion", "Nodule"]'
FROM_NOTHING = ("--train.pretrained", "false", "--train.head_only", "false")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("whole") / "cohort", toy_frame(500, seed=4))


def opened(repository: Path, name: str, run: Path, cohort: Path, *more: str) -> Rehearsal:
    words = ["--run", str(run), "--cohort", str(cohort), "--rehearsal.findings", FINDINGS, "--rehearsal.levels", "[10]",
             "--rehearsal.max_overlap", "0.9", *more]
    return open_rehearsal(read_experiment([str(repository / "configs" / name), *words], doc=None))


def test_a_run_is_an_experiment_on_its_thinned_cohort(repository: Path, tmp_path: Path, cohort: Path) -> None:
    rehearsal = opened(repository, "rehearse_phantom.yaml", tmp_path, cohort)
    cells = list_cells(load_cohort(cohort), rehearsal.section)
    assert [cell.name for cell in cells] == [f"set_0/level_10/seed_{seed}" for seed in range(3)]
    child = child_config(rehearsal, cells[1])
    folder = tmp_path / "rehearsal" / cells[1].name
    assert not set(LEFT_OUT) & child.keys()
    assert (child["run"], child["cohort"], child["n_seeds"]) == (str(folder), str(folder / "cohort"), 1)
    assert child["seed"] == rehearsal.config["seed"] + 1
    assert child["plan"]["scarce"] == ["Effusion", "Nodule", "Hernia"]  # the tail too: its oracle can be had
    assert child["plan"]["total"] == 45 * 3
    assert child["finetune"]["steps"] == 100
    assert child["expected_seconds"]["finetune"] == pytest.approx(rehearsal.config["expected_seconds"]["finetune"] / 6)
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(child, sort_keys=False))
    with pytest.raises(TailfillError, match="'oracle' needs a section oracle"):
        read_experiment([str(file)], doc=None)
    write_thinned(cohort, Thinning(findings=cells[1].findings, level=10, seed=1), thinned=folder / "cohort",
                  withheld=folder / "oracle")
    config = read_experiment([str(file)], doc=None).config
    kinds = [step.kind for step in steps_of(config, rehearsal)]
    assert kinds[:5] == ["plan", "critic", "finetune", "generate", "filter"]
    assert kinds.count("train") == len(rehearsal.section.arms)
    assert "prepare" not in kinds


def test_harmonised_arms_have_reconstructions_of_what_stayed_alone(
    repository: Path, tmp_path: Path, cohort: Path
) -> None:
    plain = opened(repository, "rehearse_phantom.yaml", tmp_path, cohort)
    cell = list_cells(load_cohort(cohort), plain.section)[0]
    assert "reconstruct" not in child_config(plain, cell)
    arms = '["duplicate", "synthetic", "oracle", "duplicate-harmonised", "synthetic-harmonised"]'
    rehearsal = opened(repository, "rehearse_phantom.yaml", tmp_path, cohort, "--rehearsal.arms", arms)
    child, folder = child_config(rehearsal, cell), tmp_path / "rehearsal" / cell.name
    assert child["reconstruct"]["oracle"] is False
    file = tmp_path / "harmonised.yaml"
    file.write_text(yaml.safe_dump(child, sort_keys=False))
    write_thinned(cohort, Thinning(findings=cell.findings, level=10, seed=0), thinned=folder / "cohort",
                  withheld=folder / "oracle")
    kinds = [step.kind for step in steps_of(read_experiment([str(file)], doc=None).config, rehearsal)]
    assert kinds.index("finetune") < kinds.index("reconstruct") < kinds.index("arm")


def test_what_is_lacking_is_learnt_once_without_the_findings(repository: Path, tmp_path: Path, cohort: Path) -> None:
    rehearsal = opened(repository, "rehearse_nih128.yaml", tmp_path / "run", cohort, *FROM_NOTHING,
                       "--prepare.root", str(tmp_path))
    assert rehearsal.needs_base
    base = base_config(rehearsal)
    assert [str(step) for step in steps_of(base, rehearsal, base=True)] == [
        "train real seed 2000", "autoencoder", "finetune"]
    assert base["train"]["head_only"] is False
    child = child_config(rehearsal, list_cells(load_cohort(cohort), rehearsal.section)[0])
    assert "autoencoder" not in child
    assert child["finetune"]["pipeline"] == str(rehearsal.base / "generator" / "pipeline")
    assert child["train"]["backbone"] == str(rehearsal.base / "train" / "real" / "seed_2000")
    assert child["train"]["head_only"] is True
    assert child["plan"]["scarce"] == ["Effusion", "Nodule"]  # nobody can check the tail here


def test_an_autoencoder_that_is_trained_on_is_learnt_once_and_in_the_base_s_pipeline(
    repository: Path, tmp_path: Path, cohort: Path
) -> None:
    given = str(repository / "models" / "generator")
    rehearsal = opened(repository, "rehearse_nih128.yaml", tmp_path / "run", cohort, "--prepare.root", str(tmp_path),
                       "--autoencoder.pipeline", given, "--finetune.pipeline", given,
                       "--finetune.new_autoencoder", "true", *FROM_NOTHING)
    assert base_config(rehearsal)["finetune"]["new_autoencoder"] is True
    child = child_config(rehearsal, list_cells(load_cohort(cohort), rehearsal.section)[0])
    assert (child["finetune"]["pipeline"], child["finetune"]["new_autoencoder"]) == (
        str(rehearsal.base / "generator" / "pipeline"), False)


def test_pre_trained_weights_are_a_backbone(repository: Path, tmp_path: Path, cohort: Path) -> None:
    (tmp_path / "weights").touch()
    rehearsal = opened(repository, "rehearse_nih128.yaml", tmp_path / "run", cohort, "--prepare.root", str(tmp_path),
                       "--train.pretrained", str(tmp_path / "weights"))
    assert [str(step) for step in steps_of(base_config(rehearsal), rehearsal, base=True)] == ["autoencoder", "finetune"]
    train = child_config(rehearsal, list_cells(load_cohort(cohort), rehearsal.section)[0])["train"]
    assert (train["backbone"], train["pretrained"]) == (None, str(tmp_path / "weights"))


@pytest.mark.parametrize(("section", "key"), [("finetune", "pipeline"), ("train", "backbone")])
def test_weights_that_know_a_withheld_patient_are_refused_before_the_run(
    repository: Path, tmp_path: Path, cohort: Path, section: str, key: str
) -> None:
    root = [*FROM_NOTHING, "--prepare.root", str(tmp_path)]
    rehearsal = opened(repository, "rehearse_nih128.yaml", tmp_path / "run", cohort, *root)
    cell = list_cells(load_cohort(cohort), rehearsal.section)[0]
    rehearsal.config[section][key] = str(tmp_path / "given")
    stage = Stage("train", tmp_path / "given", config={}, inputs={})
    stage.begin()
    whole = load_cohort(cohort)
    write_patients(stage.folder, whole.split("train")["patient_id"], salt=whole.salt)
    stage.finish(outputs=["patients.parquet"], counts={})
    with pytest.raises(TailfillError, match=rf"given: has learnt from \d+ patients whom set_0.* \({section}.{key}\)"):
        rehearse.run_cell(rehearsal, cell)
    assert not (rehearsal.folder / cell.name / "experiment.yaml").exists()


def test_a_cohort_without_a_tail_can_be_rehearsed_on_named_findings(
    repository: Path, tmp_path: Path, cohort: Path
) -> None:
    root = [*FROM_NOTHING, "--prepare.root", str(tmp_path), "--plan.scarce", '["control"]']  # the toys have none either
    rehearsal = opened(repository, "rehearse_nih128.yaml", tmp_path / "run", cohort, *root)
    plan = child_config(rehearsal, list_cells(load_cohort(cohort), rehearsal.section)[0])["plan"]
    assert plan["scarce"] == ["Effusion", "Nodule"]
    assert plan["total"] == 150 * 2
    typo = opened(repository, "rehearse_nih128.yaml", tmp_path / "typo", cohort, *root[:-1], '["tial"]')
    with pytest.raises(TailfillError, match="unknown name 'tial'"):
        child_config(typo, list_cells(load_cohort(cohort), typo.section)[0])


def test_a_configuration_without_the_section_or_with_a_strange_endpoint_is_refused(
    repository: Path, tmp_path: Path, cohort: Path
) -> None:
    with pytest.raises(TailfillError, match="no section rehearsal"):
        open_rehearsal(read_experiment([str(repository / "configs" / "phantom.yaml")], doc=None))
    given = yaml.safe_load((repository / "configs" / "rehearse_phantom.yaml").read_text())
    given["generate"]["pipeline"] = str(given.pop("finetune")["pipeline"]).replace("..", str(repository))
    given["train"]["backbone"] = str(repository / "models" / "backbone")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "given.yaml").write_text(yaml.safe_dump(given))
    with pytest.raises(TailfillError, match="no section finetune"):
        opened(tmp_path, "given.yaml", tmp_path, cohort)
    for key, value in (("endpoint.rival", "real"), ("endpoint.metric", "F1"), ("unit", "study")):
        with pytest.raises(TailfillError, match=rf"compare\.{key} is '{value}'; wanted: "):
            opened(repository, "rehearse_phantom.yaml", tmp_path, cohort, f"--compare.{key}", value)
    for arm in ("real", "oracle"):
        with pytest.raises(TailfillError, match=rf"compare\.endpoint\.arm is '{arm}'; wanted: synthetic, oracle-full"):
            opened(repository, "rehearse_phantom.yaml", tmp_path, cohort, "--compare.endpoint.arm", arm)


def test_time_is_what_was_expected_at_the_pace_of_its_kind_else_at_the_machines() -> None:
    seconds, unknown = foresee(
        {"train": 4, "filter": 2, "plan": 1, "report": 3}, expected={"train": 100.0, "filter": 10.0}, pace=1.5,
        spent={"train": [(2.0, 100.0), (20.0, 500.0)], "report": [(4.0, None), (6.0, None)]})
    assert seconds == pytest.approx(4 * 100 * 0.03 + 2 * 15.0 + 3 * 5.0)
    assert unknown == ["plan"]


def test_a_finished_fine_tuning_of_more_steps_tells_how_long_a_shorter_one_takes(
    repository: Path, tmp_path: Path, cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rehearsal = opened(repository, "rehearse_nih128.yaml", tmp_path / "run", cohort, *FROM_NOTHING, "--prepare.root",
                       str(tmp_path), "--expected_seconds", '{"finetune": 1600}')
    monkeypatch.setattr(rehearsal_time, "time_reference", lambda threads: rehearsal.section.reference_seconds)
    before = int(tell_time(rehearsal).split("about ")[1].split(" ")[0])
    assert before == round((1600 + 3 * 200) / 60)  # 1,600 steps once, 200 in each of three runs
    stage = Stage("finetune", rehearsal.base / "generator", config=base_config(rehearsal)["finetune"], inputs={})
    stage.begin()
    stage.finish(outputs=[], counts={}, seconds=3200.0)
    assert int(tell_time(rehearsal).split("about ")[1].split(" ")[0]) == round(3 * 400 / 60)


def test_a_dry_run_tells_the_time_at_this_machines_pace(
    repository: Path, tmp_path: Path, cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rehearsal = opened(repository, "rehearse_phantom.yaml", tmp_path, cohort)
    told = {}
    for pace in (1.0, 2.0):
        monkeypatch.setattr(rehearsal_time, "time_reference", lambda threads, pace=pace: pace * float(
            rehearsal.section.reference_seconds or 0))
        text = tell_time(rehearsal)
        assert "set_0/level_10/seed_2: Effusion, Nodule at 10 positives: 0 of" in text
        told[pace] = int(text.split("about ")[1].split(" ")[0])
    child = child_config(rehearsal, list_cells(load_cohort(cohort), rehearsal.section)[0])
    kinds = [step.kind for step in steps_of(child, rehearsal)]
    wanted = 3 * sum(child["expected_seconds"][kind] for kind in kinds) / 60
    assert told[1.0] == pytest.approx(wanted, abs=1)
    assert told[2.0] == pytest.approx(2 * wanted, abs=1)
    with pytest.raises(TailfillError, match="prepare it first"):
        tell_time(opened(repository, "rehearse_phantom.yaml", tmp_path, tmp_path / "nowhere"))


def test_the_reference_operation_is_timed() -> None:
    assert 0 < rehearsal_time.time_reference(1) < 600


@pytest.mark.parametrize(("arms", "section", "said"), [
    ('["duplicate-harmonised", "synthetic-harmonised"]', {"image_size": 64}, "image_size is 64 and generate.height"),
    ('["duplicate-harmonised", "synthetic-harmonised"]', {"pipeline": "a/b"}, "pipeline is a/b and generate.pipeline"),
    ('["duplicate", "oracle-reconstructed"]', {"oracle": False}, "the arm 'oracle-reconstructed' needs the oracle"),
])
def test_reconstructions_that_would_be_missing_or_look_otherwise_are_refused(
    repository: Path, tmp_path: Path, arms: str, section: dict[str, object], said: str
) -> None:
    config = yaml.safe_load((repository / "configs" / "phantom.yaml").read_text(encoding="utf-8"))
    del config["external"], config["finetune"]["pipeline"], config["train"]["backbone"]
    file, arm = tmp_path / "config.yaml", yaml.safe_load(arms)
    config |= {"reconstruct": section, "autoencoder": {}, "run": str(tmp_path / "run"), "arms": arm,
               "compare": {"endpoint": {"arm": arm[1], "rival": arm[0]}}}
    config["train"]["head_only"] = False
    if "oracle" not in section:
        del config["oracle"]
    file.write_text(yaml.safe_dump(config))
    with pytest.raises(TailfillError, match=said):
        read_experiment([str(file)], doc=None)
