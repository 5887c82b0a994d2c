"""Training: a kill changes nothing, and arms share their steps, starts and refusals."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from tiny_classify import write_cohort, write_synthetic

from classify.arm import ArmConfig, write_arm
from classify.learning import fitting
from classify.learning.fitting import Learner, Recipe, learning_rate
from classify.learning.settings import TrainConfig
from classify.slots import distort, distortions, grey_statistics, prevalence
from classify.train import Job, train
from cohort.config import Run
from cohort.errors import TailfillError
from cohort.provenance import hash_patients
from cohort.stage import require

CONFIG = TrainConfig(model="test_convnext", image_size=32, steps=6, base_steps=6, init_seed=None, batch_size=8,
                     warmup_share=0.2, drop_path=0.1, checkpoint_every=2)


@pytest.fixture
def run(tmp_path):
    write_cohort(tmp_path)
    return Run(run=str(tmp_path), n_seeds=3, threads=1, tracker="none")


def go(run, config=CONFIG, *, arm="real", seed=0):
    AcceleratorState._reset_state(True)
    if seed < 1000:
        write_arm(run, ArmConfig(slots_per_class=10), arm=arm, seed=seed)
    train(Job(run=run, config=config, arm=arm, seed=seed))
    return run.folder / "train" / arm / f"seed_{seed}"


class Killed(BaseException):
    """Nothing in the project catches it, as nothing catches SIGKILL."""


def test_killed_and_resumed_gives_the_same_bits(run, tmp_path, monkeypatch):
    straight = go(run)
    other = replace(run, run=str(tmp_path / "other"), cohort=str(tmp_path / "cohort"))
    step, done = fitting._step, []

    def dies_at_the_fifth_step(*args, **kwargs):
        if len(done) == 4:
            raise Killed
        done.append(1)
        return step(*args, **kwargs)

    monkeypatch.setattr(fitting, "_step", dies_at_the_fifth_step)
    with pytest.raises(Killed):
        go(other)
    monkeypatch.setattr(fitting, "_step", step)
    folder = other.folder / "train" / "real" / "seed_0"
    assert (folder / "checkpoint.pt").is_file()
    assert not (folder / "_stage.json").exists()
    counted = []
    monkeypatch.setattr(fitting, "_step", lambda *args, **kwargs: (counted.append(1), step(*args, **kwargs))[1])
    go(other)
    assert len(counted) == 2
    for name in ("raw.safetensors", "ema.safetensors"):
        assert (folder / name).read_bytes() == (straight / name).read_bytes()
    assert not (folder / "checkpoint.pt").exists()
    assert require(folder, "train")["output_hash"] == require(straight, "train")["output_hash"]


def test_what_is_written_and_then_left_alone(run):
    folder = go(run)
    stamp = require(folder, "train")
    assert stamp["counts"] == {"steps": 6, "slots": 40, "images_seen": 48}
    assert set(stamp["outputs"]) == {"ema.safetensors", "raw.safetensors", "card.json", "patients.parquet"}
    history = pd.read_parquet(folder / "history.parquet")
    assert list(history.columns) == ["step", "loss", "lr", "images_per_second"]
    assert history["step"].iloc[-1] == 6
    raw, ema = load_file(folder / "raw.safetensors"), load_file(folder / "ema.safetensors")
    assert any(not torch.equal(raw[key], ema[key]) for key in raw)
    before = (folder / "_stage.json").read_bytes()
    go(run, replace(CONFIG, checkpoint_every=5))
    assert (folder / "_stage.json").read_bytes() == before
    with pytest.raises(TailfillError, match="lr was"):
        go(run, replace(CONFIG, lr=1.0))


def test_it_learns(run):
    """Forty images of noise are learnt by heart."""
    folder = go(run, replace(CONFIG, steps=60, lr=3e-3, drop_path=0.0, checkpoint_every=1000))
    losses = pd.read_parquet(folder / "history.parquet")["loss"]
    assert losses.iloc[-1] < 0.7 * losses.iloc[0]


def test_seeds_below_1000_start_from_the_shared_weights(run):
    config = replace(CONFIG, init_seed=2000, steps=1, base_steps=2)
    with pytest.raises(TailfillError, match="--arm real --arm-seed 2000"):
        go(run, config)
    start = go(run, config, seed=2000)
    folder = go(run, replace(config, lr=1e-9, weight_decay=0.0))
    first, now = load_file(start / "ema.safetensors"), load_file(folder / "raw.safetensors")
    for key, value in first.items():
        torch.testing.assert_close(now[key], value, atol=1e-6, rtol=0)
    with pytest.raises(TailfillError, match="image_size 32"):
        go(run, replace(config, image_size=64), seed=1)


def test_a_critic_needs_no_arm_command_and_trains_base_steps(run):
    folder = go(run, replace(CONFIG, base_steps=3), seed=1000)
    assert require(folder, "critic")["counts"]["steps"] == 3
    assert require(run.folder / "arms" / "real" / "seed_1000", "arm")["counts"]["real"] == 40


def test_patients_are_inherited_and_the_synthetic_arm_trains(run, tmp_path):
    cohort_folder = tmp_path / "cohort"
    from cohort.tables import load_cohort

    cohort = load_cohort(cohort_folder)
    write_synthetic(tmp_path, cohort)
    folder = go(run, arm="synthetic")
    learnt = set(pd.read_parquet(folder / "patients.parquet")["patient"])
    expected = {*cohort.split("train")["patient_id"], "generator-patient"}
    assert learnt == hash_patients(expected, salt=cohort.salt)
    assert require(folder, "train")["inputs"].keys() == {"cohort", "arm", "filter"}


def test_a_test_patient_stops_training(tmp_path):
    write_cohort(tmp_path, shared_patient=True)
    run = Run(run=str(tmp_path), n_seeds=3, threads=1, tracker="none")
    with pytest.raises(TailfillError, match="1 patients of the splits test"):
        go(run)
    assert not (tmp_path / "train" / "real" / "seed_0" / "_stage.json").exists()


def test_a_batch_that_cannot_be_shared_is_refused():
    class TwoProcesses:
        num_processes, device = 2, "cpu"

    recipe = Recipe(name="", seed=(0,), steps=1, batch_size=7, lr=1, warmup_share=0, weight_decay=0, ema_decay=0,
                    grad_clip=1, phase_2_share=0, checkpoint_every=1)
    with pytest.raises(TailfillError, match="multiple of 2"):
        fitting.fit(None, None, None, None, recipe=recipe, checkpoint=Path("none"), accelerator=TwoProcesses())


@pytest.mark.parametrize(("key", "value"), [("steps", 0), ("loss", "asll"), ("precision", "fp8"), ("ema_decay", 1.0),
                                            ("init_seed", 3), ("model", "convnext_femtoo"), ("lr", 0.0)])
def test_settings_out_of_range_are_named(key, value):
    with pytest.raises(TailfillError, match=str(value)):
        TrainConfig(**{key: value})


def test_learning_rate_rises_then_falls_to_nothing():
    recipe = Recipe(name="", seed=(0,), steps=100, batch_size=1, lr=2.0, warmup_share=0.1, weight_decay=0, ema_decay=0,
                    grad_clip=1, phase_2_share=0, checkpoint_every=1)
    rates = np.array([learning_rate(step, recipe) for step in range(100)])
    assert (np.diff(rates[:11]) > 0).all()
    assert rates[10] == rates.max() == 2.0
    assert (np.diff(rates[10:]) < 0).all()
    assert 0 < rates[-1] < 0.002


def test_distortions_are_small_reproducible_and_none_at_zero():
    images = torch.rand(6, 1, 32, 32)
    draws = torch.from_numpy(distortions(6, step=3, seed=(0, 1)))
    torch.testing.assert_close(distort(images, torch.zeros(6, 6)), images)
    torch.testing.assert_close(distort(images, draws)[2:4], distort(images[2:4], draws[2:4]))
    assert not np.array_equal(draws, distortions(6, step=4, seed=(0, 1)))
    moved = distort(images, draws)
    assert moved.min() >= 0
    assert moved.max() <= 1


@pytest.mark.parametrize(("column", "dy", "dx"), [(1, 0.0, -0.04), (2, -0.04, 0.0)])
def test_a_shift_is_a_share_of_the_side_and_nothing_is_mirrored(column, dy, dx):
    """A bright spot left of the middle stays left; at a draw of 1 it moves by 4 % of the side."""
    yy, xx = np.mgrid[0:100, 0:100]
    image = torch.tensor(np.exp(-((yy - 40) ** 2 + (xx - 30) ** 2) / 50), dtype=torch.float32)[None, None]
    draws = torch.zeros(1, 6)
    draws[0, column] = 1.0
    moved = distort(image, draws)[0, 0].numpy()
    centre = np.array([(moved * yy).sum(), (moved * xx).sum()]) / moved.sum()
    np.testing.assert_allclose(centre, [40 + 100 * dy, 30 + 100 * dx], atol=0.1)


def test_statistics_against_numpy():
    images = np.random.default_rng(0).integers(0, 256, (1030, 4, 4), dtype=np.uint8)
    assert grey_statistics(images) == pytest.approx((np.mean(images / 255), np.std(images / 255)))
    some = np.arange(0, 1030, 3)
    assert grey_statistics(images, some) == pytest.approx((np.mean(images[some] / 255), np.std(images[some] / 255)))
    with pytest.raises(TailfillError, match="one grey value"):
        grey_statistics(np.full((3, 4, 4), 7, np.uint8))
    np.testing.assert_allclose(prevalence(np.array([[1, np.nan, np.nan], [0, 1, np.nan]])), [0.5, 1, 0])


def test_checkpoint_holds_all_that_changes():
    assert set(Learner.__dataclass_fields__) == {"model", "ema", "optimizer", "step", "history"}
