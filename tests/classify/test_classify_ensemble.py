"""Several models made one: members of an arm, folds of patients, and no prediction of a patient learnt from."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from accelerate.state import AcceleratorState
from experiment import list_steps
from scipy.special import expit
from tiny_classify import LABELS, write_cohort

from classify.arm import ArmConfig, arm_folder, write_arm
from classify.ensemble import ensemble
from classify.ensembling.folds import fold_images, join_folds
from classify.ensembling.members import member_config, split_name
from classify.ensembling.models import EnsembleConfig
from classify.learning.settings import TrainConfig
from classify.predict import PredictConfig, predict
from classify.train import Job, train, train_folder
from cohort.config import Run
from cohort.errors import TailfillError
from cohort.pipeline import STAGES, read_stamp
from cohort.provenance import write_patients
from cohort.stage import Stage
from cohort.status import needed_folders
from cohort.tables import load_cohort, predictions_schema, read_table

CONFIG = TrainConfig(model="test_convnext", image_size=32, steps=3, base_steps=2, init_seed=None, batch_size=8)
MEMBERS = {"r32": {}, "r40": {"image_size": 40, "lr": 1e-3}}
COLUMNS = [f"logit_{label}" for label in LABELS]


def learn(run: Run, arm: str, seed: int, member: str = "") -> None:
    """Train and predict one model."""
    AcceleratorState._reset_state(True)
    train(Job(run=run, config=member_config(run, CONFIG, member), arm=arm, seed=seed, member=member))
    predict(run, PredictConfig(), arm=f"{arm}@{member}" if member else arm, seed=seed)


def table_of(run: Run, kind: str, arm: str, seed: int) -> pd.DataFrame:
    return read_table(run.folder / kind / arm / f"seed_{seed}" / "predictions.parquet", predictions_schema(LABELS))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two members of the arm `real`, and two folds, trained and predicted."""
    folder = tmp_path_factory.mktemp("ensemble")
    write_cohort(folder)
    run = Run(run=str(folder), n_seeds=3, threads=1, tracker="none", members=MEMBERS)
    write_arm(run, ArmConfig(), arm="real", seed=0)
    for member in MEMBERS:
        learn(run, "real", 0, member)
    for seed in (2000, 2001):
        learn(run, "fold", seed)
    return run


@pytest.fixture(scope="module")
def cohort(run):
    return load_cohort(run.cohort_folder)


def test_an_ensemble_is_the_mean_of_its_members_probabilities(run):
    ensemble(run, arm="real", seed=0)
    made = table_of(run, "ensemble", "real", 0)
    single = [table_of(run, "predictions", f"real@{member}", 0) for member in MEMBERS]
    assert not np.allclose(single[0][COLUMNS], single[1][COLUMNS])
    mean = (expit(single[0][COLUMNS]) + expit(single[1][COLUMNS])) / 2
    np.testing.assert_allclose(expit(made[COLUMNS]), mean, atol=1e-6)
    assert set(made["arm"]) == {"real"}
    assert made[["image_id", "weights", *LABELS]].equals(single[0][["image_id", "weights", *LABELS]])


def test_members_share_the_arms_table_and_nothing_else(run):
    stamps = [read_stamp(train_folder(run, f"real@{member}", 0)) for member in MEMBERS]
    assert stamps[0]["inputs"]["arm"] == stamps[1]["inputs"]["arm"]
    assert [stamp["config"]["image_size"] for stamp in stamps] == [32, 40]
    assert not (run.folder / "train" / "real").exists()


def test_again_it_does_nothing_and_a_missing_member_is_named(run, tmp_path):
    ensemble(run, arm="real", seed=0)
    stamp = (run.folder / "ensemble" / "real" / "seed_0" / "_stage.json").read_bytes()
    ensemble(run, arm="real", seed=0)
    assert (run.folder / "ensemble" / "real" / "seed_0" / "_stage.json").read_bytes() == stamp
    with pytest.raises(TailfillError, match="real@r32/seed_1: no complete"):
        ensemble(run, arm="real", seed=1)


@pytest.mark.parametrize(("name", "seed", "said"), [
    ("real@r33", 0, "no member 'r33'; did you mean 'r32'"),
    ("real", 0, "has a model for each member; wanted: one of real@r32, real@r40"),
])
def test_names_of_models_are_checked(run, name, seed, said):
    with pytest.raises(TailfillError, match=said):
        split_name(run, name, seed)


def test_a_run_without_members_has_no_ensemble(run):
    plain = replace(run, members={})
    assert split_name(plain, "real", 0) == ("real", "")
    with pytest.raises(TailfillError, match="has no members"):
        split_name(plain, "real@r32", 0)
    with pytest.raises(TailfillError, match="nothing to average"):
        ensemble(plain, arm="real", seed=0)


@pytest.mark.parametrize(("keys", "said"), [
    ({"image_sise": 64}, "members.a: unknown key 'image_sise'; did you mean 'image_size'"),
    ({"image_size": 8}, r"members.a: .*image_size"),
    ({"image_size": "large"}, r"members.a: .*image_size"),
])
def test_a_members_keys_are_checked_like_the_sections(run, keys, said):
    with pytest.raises(TailfillError, match=said):
        member_config(replace(run, members={"a": keys, "b": {}}), CONFIG, "a")


def test_one_member_or_a_name_with_a_slash_is_none():
    for members in ({"a": {}}, {"a": {}, "b/c": {}}):
        with pytest.raises(TailfillError, match=r"members is .* wanted: two or more"):
            Run(run="r", members=members)
    with pytest.raises(TailfillError, match=r"ensemble\.folds is 1"):
        EnsembleConfig(folds=1)


def test_each_image_is_predicted_by_the_fold_that_left_it_out_and_test_by_all(run, cohort):
    ensemble(run, arm="fold", seed=2000)
    made = table_of(run, "ensemble", "fold", 2000)
    folds = [table_of(run, "predictions", "fold", seed) for seed in (2000, 2001)]
    for weights in ("raw", "ema"):
        part = made[made["weights"] == weights]
        assert sorted(part["image_id"]) == sorted(cohort.frame["image_id"])
        for number, fold in enumerate(folds):
            learnt = read_table(arm_folder(run, "fold", 2000 + number) / "arm.parquet")["image_id"]
            own = part[part["fold"] == number].set_index("image_id")
            assert len(own)
            assert not set(own["patient_id"]) & set(cohort.frame.set_index("image_id")["patient_id"][learnt])
            then = fold[fold["weights"] == weights].set_index("image_id").loc[own.index]
            assert own[COLUMNS].equals(then[COLUMNS])
        test = part[part["split"] == "test"].set_index("image_id")
        assert set(test["fold"]) == {2}
        each = [fold[fold["weights"] == weights].set_index("image_id").loc[test.index, COLUMNS] for fold in folds]
        np.testing.assert_allclose(expit(test[COLUMNS]), (expit(each[0]) + expit(each[1])) / 2, atol=1e-6)


def test_a_fold_that_has_learnt_from_a_patient_it_is_to_predict_is_refused(run, cohort, tmp_path):
    """The weights are sound and the folds are dealt right, but the run, or one it builds on, has seen a patient."""
    frame = fold_images(cohort, 2001, folder=train_folder(run, "fold", 2001))
    held_out = frame.loc[frame["split"] != "test", "patient_id"].iloc[0]
    source = train_folder(run, "fold", 2001)
    stage = Stage("train", tmp_path / "train" / "fold" / "seed_2001", config={}, inputs={})
    stage.begin()
    names = ["ema.safetensors", "raw.safetensors", "card.json"]
    for name in names:
        (stage.folder / name).write_bytes((source / name).read_bytes())
    write_patients(stage.folder, [held_out], salt=cohort.salt, inherited=[source])
    stage.finish(outputs=[*names, "patients.parquet"], counts={})
    leaky = replace(run, run=str(tmp_path), cohort=str(run.cohort_folder))
    with pytest.raises(TailfillError, match="has learnt from 1 patients that fold 1 predicts"):
        predict(leaky, PredictConfig(), arm="fold", seed=2001)
    assert not (tmp_path / "predictions").exists()


def test_tables_of_folds_that_leak_lack_an_image_or_have_it_twice_are_refused(run, cohort):
    tables = [table_of(run, "predictions", "fold", seed) for seed in (2000, 2001)]
    folders = [train_folder(run, "fold", seed) for seed in (2000, 2001)]
    with pytest.raises(TailfillError, match=r"seed_2000: has learnt from .* patients that fold 0 predicts"):
        join_folds(tables[::-1], cohort, seed=2000, folders=folders)
    mine = tables[0][tables[0]["split"] != "test"]
    with pytest.raises(TailfillError, match="no fold predicts"):
        join_folds([tables[0].drop(mine.index[0]), tables[1]], cohort, seed=2000, folders=folders)
    with pytest.raises(TailfillError, match="two folds predict"):
        join_folds([pd.concat([tables[0], mine[:1]]), tables[1]], cohort, seed=2000, folders=folders)


def test_a_single_fold_is_no_ensemble(run):
    with pytest.raises(TailfillError, match="arm-seed is 2001, a single fold"):
        ensemble(run, arm="fold", seed=2001)


def test_an_experiment_trains_every_member_and_status_knows_them(run):
    config = {"run": run.run, "cohort": None, "members": {"a": {}, "b": {"init_seed": 2002}}, "n_seeds": 1,
              "train": {"init_seed": 2001}, "arms": ["real"], "ensemble": {"folds": 2}}
    wanted = ["train real@a seed 2001", "train real@b seed 2002", "train fold seed 2000", "train fold seed 2001",
              "arm real seed 0", "train real@a seed 0", "predict real@a seed 0", "train real@b seed 0",
              "predict real@b seed 0", "ensemble real seed 0", "predict fold seed 2000", "predict fold seed 2001",
              "ensemble fold seed 2000", "compare", "report"]
    steps = list(list_steps(config))
    assert [str(step) for step in steps] == wanted
    for entry in STAGES:
        needed = set(needed_folders(run.folder, entry, config))
        assert {step.folder for step in steps if step.kind == entry.name} <= needed


def test_dry_runs_say_what_would_be_done_and_do_nothing(run, invoke, tmp_path):
    settings = tmp_path / "config.json"
    settings.write_text(json.dumps({"run": run.run, "threads": 1, "members": MEMBERS, "train": {
        "model": "test_convnext", "image_size": 32, "steps": 3, "init_seed": None, "batch_size": 8}}))
    words = ("--config", settings, "--dry-run", "--arm-seed", 0, "--arm")
    found = invoke("classify.train", *words, "real@r40")
    assert json.loads(found.stdout)["config"]["image_size"] == 40
    assert json.loads(found.stdout)["state"] == "complete, nothing to do"
    found = invoke("classify.predict", *words, "real@r40", "--predict.tta", 4)
    assert found.code == 2  # other settings than those it was made with
    assert "tta was None, now 4" in found.stderr
    found = invoke("classify.ensemble", *words, "real")
    assert json.loads(found.stdout)["models"] == ["real@r32 seed 0", "real@r40 seed 0"]
    for module, name, said in (("classify.train", "real", "wanted: one of real@r32, real@r40"),
                               ("classify.predict", "real@r41", "no member 'r41'"),
                               ("classify.ensemble", "rael", "did you mean 'real'")):
        found = invoke(module, *words, name)
        assert found.code == 2
        assert said in found.stderr
