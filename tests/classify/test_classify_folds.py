"""Out-of-fold critics: folds are whole patients and cover everything once; what is compared never sees validation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from experiment import list_steps
from tiny_classify import LABELS, write_cohort

from classify.arm import build_arm, check_arm
from classify.arms.layout import ArmConfig
from classify.arms.rivals import ARMS
from classify.learning.models import load_card
from classify.learning.settings import TrainConfig
from classify.predict import PredictConfig, predict
from classify.slots import label_matrix, load_slots, prevalence
from classify.train import Job, shares_of, train
from cohort.config import Run
from cohort.errors import TailfillError
from cohort.pipeline import STAGES, fold_seeds
from cohort.pixels import load_images
from cohort.preparing.splits import deal_folds
from cohort.provenance import FILE, hash_patients
from cohort.status import needed_folders
from cohort.tables import predictions_schema, read_table

TRAINING = TrainConfig(model="test_convnext", image_size=32, base_steps=2, init_seed=None, batch_size=8)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("folds"))


@pytest.fixture(scope="module")
def run(cohort):
    return Run(run=str(cohort.folder.parent), n_seeds=3, threads=1, tracker="none")


@pytest.mark.parametrize("n_folds", [2, 5])
def test_every_train_and_validation_image_is_held_out_once_with_all_of_its_patient(run, cohort, n_folds):
    images = cohort.split("train", "val").set_index("image_id")
    held_out = []
    for seed in fold_seeds(n_folds):
        slots, _ = build_arm(run, cohort, ArmConfig(), arm="fold", seed=seed)
        assert slots["image_id"].is_unique
        rest = images.drop(slots["image_id"])
        assert not set(rest["patient_id"]) & set(images.loc[slots["image_id"], "patient_id"])
        held_out += list(rest.index)
    assert sorted(held_out) == sorted(images.index)


def test_positives_are_spread_over_the_folds(cohort):
    """Four images of two patients carry Hernia: in two folds each holds out one of the patients."""
    images = cohort.split("train", "val")
    folds = deal_folds(images, LABELS, n_folds=2, seed=2)
    assert set(folds[images["Hernia"] == 1]) == {0, 1}
    order = np.random.default_rng(0).permutation(len(images))
    shuffled = deal_folds(images.iloc[order], LABELS, n_folds=2, seed=2)
    assert (shuffled == folds[order]).all()
    with pytest.raises(TailfillError, match="2 patients cannot be dealt into 3 folds"):
        deal_folds(images[:4], LABELS, n_folds=3, seed=0)


def test_a_fold_learns_from_its_images_alone_and_predicts_those_left_out(run, cohort, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(True)
    train(Job(run=run, config=TRAINING, arm="fold", seed=2001))
    slots, _ = build_arm(run, cohort, ArmConfig(), arm="fold", seed=2001)
    learnt = cohort.frame[cohort.frame["image_id"].isin(slots["image_id"])]
    told = set(read_table(run.folder / "train" / "fold" / "seed_2001" / FILE)["patient"])
    assert told == hash_patients(learnt["patient_id"], salt=cohort.salt)
    assert set(learnt["split"]) == {"train", "val"}
    rows = cohort.split("train").loc[lambda frame: frame["image_id"].isin(slots["image_id"])]
    pixels = load_images(cohort.image_paths(rows), 32, None, threads=1) / 255
    card = load_card(run.folder / "train" / "fold" / "seed_2001")
    assert (card.mean, card.std) == pytest.approx((pixels.mean(), pixels.std())), "no held-out image counts"
    predict(run, PredictConfig(), arm="fold", seed=2001)
    table = read_table(run.folder / "predictions" / "fold" / "seed_2001" / "predictions.parquet",
                       predictions_schema(LABELS))
    unseen = cohort.frame[~cohort.frame["image_id"].isin(slots["image_id"])]
    assert set(table["image_id"]) == set(unseen["image_id"])
    assert set(table["fold"]) == {1}


def test_labels_that_are_held_out_have_no_say_in_class_weights(run, cohort):
    """Every label of the held-out fold turned round; those that are learnt from tell the weights."""
    arm, _ = build_arm(run, cohort, ArmConfig(), arm="fold", seed=2001)
    splits = ARMS["fold"].splits
    learnt = cohort.frame["image_id"].isin(arm["image_id"])
    columns = cohort.frame[LABELS]
    turned = cohort.frame.assign(**{label: column.where(learnt, 1 - column) for label, column in columns.items()})
    shares = shares_of(arm, cohort, splits)
    assert torch.equal(shares_of(arm, replace(cohort, frame=turned), splits), shares)
    np.testing.assert_array_equal(shares, prevalence(label_matrix(cohort.frame[learnt], LABELS)))


def test_all_of_train_tells_the_class_weights_of_what_is_compared(run, cohort):
    whole = prevalence(label_matrix(cohort.split("train"), LABELS))
    for arm in ("real", "oversample", "duplicate", "crt"):
        table, _ = build_arm(run, cohort, ArmConfig(), arm=arm, seed=0)
        np.testing.assert_array_equal(shares_of(table, cohort, ARMS[arm].splits), whole)


def test_an_arm_that_is_compared_cannot_hold_a_validation_image(run, cohort):
    slots, _ = build_arm(run, cohort, ArmConfig(), arm="fold", seed=2000)
    with pytest.raises(TailfillError, match="is neither a train image of the cohort"):
        load_slots(slots, cohort, {}, size=32, cache=None)
    assert len(load_slots(slots, cohort, {}, size=32, cache=None, splits=("train", "val")).index) == len(slots)


@pytest.mark.parametrize("seed", [0, 1000, 2002, 21000])
def test_what_is_no_fold_is_refused(run, seed):
    with pytest.raises(TailfillError, match=f"arm-seed is {seed}; wanted: 1000 n"):
        check_arm(run, "fold", seed)


def test_an_experiment_makes_its_folds_before_the_filter_and_status_knows_them(run):
    config = {"run": run.run, "cohort": None, "train": {"init_seed": 2000}, "n_seeds": 1, "arms": ["real"],
              "filter": {"critic_seeds": [1000], "folds": 3}}
    steps = list(list_steps(config))
    wanted = ["real seed 2000", "real seed 1000", *(f"fold seed {seed}" for seed in (3000, 3001, 3002))]
    assert [str(step) for step in steps[:5]] == [f"train {name}" for name in wanted]
    assert [step.stage for step in steps][5] == "filter"
    assert {step.kind for step in steps[:5]} == {"critic"}
    entry = next(entry for entry in STAGES if entry.name == "critic")
    assert [step.folder for step in steps[:5]] == needed_folders(run.folder, entry, config)[:5]


