"""Predictions: both sets of weights, every validation and test image, any batch size, and no known test patient."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from accelerate.state import AcceleratorState
from tiny_classify import LABELS, write_cohort

from classify.arm import ArmConfig, write_arm
from classify.learning.settings import TrainConfig
from classify.predict import PredictConfig, predict
from classify.train import Job, train
from cohort.config import Run
from cohort.errors import TailfillError
from cohort.provenance import write_patients
from cohort.stage import Stage
from cohort.tables import load_cohort, predictions_schema, read_table

CONFIG = TrainConfig(model="test_convnext", image_size=32, steps=3, init_seed=None, batch_size=8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    write_cohort(folder)
    run = Run(run=str(folder), n_seeds=3, threads=1, tracker="none")
    write_arm(run, ArmConfig(), arm="real", seed=0)
    AcceleratorState._reset_state(True)
    train(Job(run=run, config=CONFIG, arm="real", seed=0))
    return run


def predictions(run, batch_size=64):
    AcceleratorState._reset_state(True)
    predict(run, PredictConfig(batch_size=batch_size), arm="real", seed=0)
    return run.folder / "predictions" / "real" / "seed_0"


def elsewhere(run, tmp_path):
    """Another run folder with the same cohort and the same trained arm."""
    (tmp_path / "train" / "real").mkdir(parents=True)
    (tmp_path / "train" / "real" / "seed_0").symlink_to(run.folder / "train" / "real" / "seed_0")
    return replace(run, run=str(tmp_path), cohort=str(run.cohort_folder))


def test_rows_labels_and_weights(run):
    cohort = load_cohort(run.cohort_folder)
    table = read_table(predictions(run) / "predictions.parquet", predictions_schema(LABELS))
    expected = cohort.split("val", "test")
    for weights in ("raw", "ema"):
        part = table[table["weights"] == weights]
        assert list(part["image_id"]) == list(expected["image_id"])
        for label in LABELS:
            assert list(part[label]) == list(expected[label])
    assert not table[table["weights"] == "raw"]["logit_Mass"].equals(table[table["weights"] == "ema"]["logit_Mass"])
    assert "train" not in set(table["split"])


def test_any_batch_size_gives_the_same_logits(run, tmp_path):
    columns = [f"logit_{label}" for label in LABELS]
    whole = pd.read_parquet(predictions(run) / "predictions.parquet")[columns]
    single = pd.read_parquet(predictions(elsewhere(run, tmp_path), batch_size=3) / "predictions.parquet")[columns]
    np.testing.assert_allclose(single, whole, atol=1e-5)


def test_again_does_nothing(run):
    stamp = (predictions(run) / "_stage.json").read_bytes()
    assert (predictions(run, batch_size=5) / "_stage.json").read_bytes() == stamp


def test_a_model_that_has_seen_a_test_patient_is_refused(run, tmp_path):
    """The weights are sound, but the stage says that it (or one it builds on) has learnt from a test patient."""
    cohort, source = load_cohort(run.cohort_folder), run.folder / "train" / "real" / "seed_0"
    stage = Stage("train", tmp_path / "train" / "real" / "seed_0", config={}, inputs={})
    stage.begin()
    names = ["ema.safetensors", "raw.safetensors", "card.json"]
    for name in names:
        (stage.folder / name).write_bytes((source / name).read_bytes())
    write_patients(stage.folder, cohort.split("test")["patient_id"][:1], salt=cohort.salt)
    stage.finish(outputs=[*names, "patients.parquet"], counts={})
    with pytest.raises(TailfillError, match="1 patients of the splits test"):
        predictions(replace(run, run=str(tmp_path), cohort=str(run.cohort_folder)))
    assert not (tmp_path / "predictions").exists()


def test_untrained_arm_names_the_command(run, tmp_path):
    with pytest.raises(TailfillError, match=r"classify/train\.py"):
        predictions(replace(run, run=str(tmp_path), cohort=str(run.cohort_folder)))


def test_batch_size_has_a_range():
    with pytest.raises(TailfillError, match=r"predict\.batch_size is 0"):
        PredictConfig(batch_size=0)
