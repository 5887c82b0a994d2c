"""Averages of probabilities, and copies of an image: properties, references, and one copy that changes nothing."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from accelerate.state import AcceleratorState
from scipy.special import expit, logit
from tiny_classify import LABELS, write_cohort

from classify.arm import ArmConfig, write_arm
from classify.ensembling.averaging import average, average_tables
from classify.ensembling.distorted import copy_of
from classify.learning.models import load_classifier, predict_logits
from classify.learning.settings import TrainConfig
from classify.predict import PredictConfig, Task, predict
from classify.train import Job, train, train_folder
from cohort.config import Run
from cohort.errors import TailfillError
from cohort.pixels import load_images
from cohort.tables import load_cohort, read_table

CONFIG = TrainConfig(model="test_convnext", image_size=32, steps=3, base_steps=3, init_seed=None, batch_size=8)
COLUMNS = [f"logit_{label}" for label in LABELS]


def test_the_average_is_the_logit_of_the_mean_probability():
    rng = np.random.default_rng(0)
    z = rng.normal(0, 4, size=(5, 7, 3))
    np.testing.assert_allclose(average(list(z)), logit(expit(z).mean(axis=0)), rtol=1e-5)
    np.testing.assert_allclose(average(list(z)), average(list(z[[3, 0, 4, 1, 2]])), rtol=1e-6)
    assert (average(list(z)) <= z.max(axis=0)).all()
    assert (average(list(z)) >= z.min(axis=0)).all()
    assert average([z[0].astype(np.float32)]).tolist() == z[0].astype(np.float32).tolist()


def test_the_averages_cross_entropy_is_at_most_the_mean_of_theirs():
    rng = np.random.default_rng(1)
    z, y = rng.normal(0, 5, size=(4, 500)), rng.integers(0, 2, 500)
    loss = np.logaddexp(0, np.where(y == 1, -z, z)).mean(axis=1)
    mixed = average(list(z)).astype(np.float64)
    assert np.logaddexp(0, np.where(y == 1, -mixed, mixed)).mean() <= loss.mean()


def test_large_logits_keep_their_order():
    steps = np.linspace(-300, 300, 61)
    found = average([steps, steps + 1])
    assert np.isfinite(found).all()
    assert (np.diff(found) > 0).all()


def test_tables_of_other_images_are_not_averaged():
    table = pd.DataFrame({"image_id": ["a", "b"], "weights": "ema", "logit_x": [0.0, 1.0]})
    with pytest.raises(TailfillError, match="not of the same images"):
        average_tables([table, table[::-1].reset_index(drop=True)])


def test_a_copy_depends_on_seed_number_and_place_and_on_no_other_row():
    images = np.random.default_rng(0).integers(0, 256, (600, 32, 32), dtype=np.uint8)
    every = np.arange(len(images))
    first = copy_of(images, copy=1, seed=0, rows=every)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(copy_of(images, copy=1, seed=0, rows=every[123:400]), first[123:400])
    np.testing.assert_array_equal(copy_of(images, copy=0, seed=0, rows=every[5:9]), images[5:9])
    for other in ({"copy": 2, "seed": 0}, {"copy": 1, "seed": 1}):
        assert (copy_of(images, rows=every, **other) != first).any(axis=(1, 2)).all()


def test_a_copy_is_near_its_image():
    """A disc moves by less than its radius and keeps its grey value."""
    y, x = np.mgrid[:64, :64]
    disc = np.where((y - 32) ** 2 + (x - 32) ** 2 < 16**2, 150, 60).astype(np.uint8)[None].repeat(20, axis=0)
    moved = copy_of(disc, copy=1, seed=0, rows=np.arange(20)).astype(float)
    assert (abs(moved[:, 28:36, 28:36] - 150) < 60).all()
    assert (moved != disc).any(axis=(1, 2)).all()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copies")
    write_cohort(folder)
    run = Run(run=str(folder), n_seeds=3, threads=1, tracker="none")
    write_arm(run, ArmConfig(), arm="real", seed=0)
    for seed, config in ((2000, CONFIG), (0, replace(CONFIG, init_seed=2000, head_only=True))):
        AcceleratorState._reset_state(True)
        train(Job(run=run, config=config, arm="real", seed=seed))
    return run


def predicted(run: Run, tmp_path, seed: int, **settings) -> pd.DataFrame:
    """What a run folder of its own, with the same weights, predicts."""
    (tmp_path / "train").symlink_to(run.folder / "train")
    other = replace(run, run=str(tmp_path), cohort=str(run.cohort_folder))
    AcceleratorState._reset_state(True)
    predict(other, PredictConfig(**settings), arm="real", seed=seed)
    return read_table(tmp_path / "predictions" / "real" / f"seed_{seed}" / "predictions.parquet")


@pytest.mark.parametrize("seed", [2000, 0], ids=["all weights", "head only"])
def test_copies_are_averaged_and_the_first_is_the_image_itself(run, tmp_path, seed):
    cohort, folder = load_cohort(run.cohort_folder), train_folder(run, "real", seed)
    frame = cohort.split("val", "test")
    images, every = load_images(cohort.image_paths(frame), 32, None), np.arange(len(frame))
    model, card = load_classifier(folder, weights="ema")
    each = [predict_logits(model, copy_of(images, copy=copy, seed=run.seed, rows=every), card) for copy in range(3)]
    found = predicted(run, tmp_path, seed, tta=3)
    np.testing.assert_allclose(found.loc[found["weights"] == "ema", COLUMNS], average(each), atol=1e-5)
    assert abs(each[0] - average(each)).max() > 1e-4


def test_one_copy_is_the_stage_that_it_always_was(run, tmp_path):
    def stage(tta: int, seed: int = 0) -> dict:
        return Task(run=replace(run, seed=seed), config=PredictConfig(tta=tta), arm="real", seed=0).stage().config

    assert stage(1) == {"arm": "real", "arm_seed": 0} == stage(1, seed=1)
    assert stage(2) != stage(3) != stage(3, seed=1)


@pytest.mark.parametrize("tta", [0, 65])
def test_the_number_of_copies_has_a_range(tta):
    with pytest.raises(TailfillError, match=f"predict.tta is {tta}; wanted: 1 to 64"):
        PredictConfig(tta=tta)
