"""Training of the arms that take images from elsewhere, or end on a phase of their own."""

from dataclasses import replace

import pandas as pd
import pytest
from accelerate.state import AcceleratorState
from tiny_classify import write_cohort, write_further, write_synthetic

from classify.arm import ArmConfig, write_arm
from classify.learning.settings import TrainConfig
from classify.train import Job, train
from cohort.config import Run
from cohort.errors import TailfillError
from cohort.provenance import hash_patients
from cohort.stage import require
from cohort.tables import load_cohort

CONFIG = TrainConfig(model="test_convnext", image_size=32, steps=4, init_seed=None, batch_size=8)


@pytest.fixture
def run(tmp_path):
    write_synthetic(tmp_path, write_cohort(tmp_path))
    write_further(tmp_path, "oracle")
    return Run(run=str(tmp_path), n_seeds=3, threads=1, tracker="none")


def go(run, arm, config=CONFIG):
    AcceleratorState._reset_state(True)
    write_arm(run, ArmConfig(slots_per_class=10), arm=arm, seed=0)
    train(Job(run=run, config=config, arm=arm, seed=0))
    return run.folder / "train" / arm / "seed_0"


def test_the_oracle_learns_from_the_patients_whose_images_it_takes(run):
    folder = go(run, "oracle")
    assert require(folder, "train")["inputs"].keys() == {"cohort", "arm", "filter", "oracle"}
    own, further = load_cohort(run.cohort_folder), load_cohort(run.folder / "oracle").frame
    arm = pd.read_parquet(run.folder / "arms" / "oracle" / "seed_0" / "arm.parquet")
    used = further[further["image_id"].isin(arm["image_id"])]
    assert 0 < len(used) < len(further)
    learnt = set(pd.read_parquet(folder / "patients.parquet")["patient"])
    assert learnt == hash_patients([*own.split("train")["patient_id"], *used["patient_id"]], salt=own.salt)


@pytest.mark.parametrize("arm", ["duplicate", "duplicate-then-real"])
def test_every_arm_makes_the_same_steps_whatever_its_phases(run, arm):
    counts = require(go(run, arm, replace(CONFIG, phase_2_share=0.5)), "train")["counts"]
    assert (counts["steps"], counts["images_seen"]) == (4, 32)


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_a_phase_that_no_step_reaches_is_refused_before_any_work(run, share):
    with pytest.raises(TailfillError, match=rf"phase_2_share is {share:g}, .*'synthetic-then-real'.* 4 steps"):
        go(run, "synthetic-then-real", replace(CONFIG, phase_2_share=share))
    assert not (run.folder / "train").exists()
