"""A backbone trained on another cohort, whose labels are others: two commands, and whose patients it has seen."""

import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from tiny_classify import GROUPS, LABELS, write_cohort

from classify.learning.models import load_card
from classify.learning.settings import TrainConfig
from classify.train import Job, train
from cohort.config import Run
from cohort.errors import TailfillError
from cohort.stage import Stage, require
from cohort.tables import cohort_schema, load_cohort, write_table

THEIRS = {"Effusion": "Cardiomegaly", "Mass": "Nodule"}


def write_other(folder, *, salt):
    """The toy cohort again, with two labels of other names, as another hospital would have them."""
    cohort = write_cohort(folder / "draft")
    frame = cohort.frame.rename(columns=THEIRS)[list(cohort_schema(list(THEIRS.values())).columns)]
    stage = Stage("cohort", folder / "cohort", config={"hospital": "other"}, inputs={})
    stage.begin()
    write_table(frame, stage.folder / "cohort.parquet", cohort_schema(list(THEIRS.values())))
    stage.finish(outputs=["cohort.parquet"], counts={"rows": len(frame)}, extra={
        "labels": list(THEIRS.values()), "groups": {THEIRS[label]: GROUPS[label] for label in THEIRS}, "salt": salt,
        "roots": {name: str(path) for name, path in cohort.roots.items()}, "patient_ids": "given"})


def go(folder, **changes):
    AcceleratorState._reset_state(True)
    run = Run(run=str(folder), n_seeds=3, threads=1, tracker="none")
    config = TrainConfig(model="test_convnext", image_size=32, base_steps=2, batch_size=8, **changes)
    train(Job(run=run, config=config, arm="real", seed=2000))
    return folder / "train" / "real" / "seed_2000"


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs")
    write_other(folder, salt="of the other hospital")
    return go(folder)


@pytest.mark.parametrize("head", ["linear", "ml_decoder"])
def test_two_commands_from_one_label_space_to_another(theirs, tmp_path, head):
    write_cohort(tmp_path)
    ours = go(tmp_path, backbone=str(theirs), head_only=True, head=head)
    before, after = load_file(theirs / "ema.safetensors"), load_file(ours / "raw.safetensors")
    assert all(torch.equal(after[key], value) for key, value in before.items() if not key.startswith("head.fc"))
    assert load_card(theirs).labels == tuple(THEIRS.values())
    card = load_card(ours)
    assert card.labels == tuple(LABELS)
    assert card.head == head
    assert (card.mean, card.std) == (load_card(theirs).mean, load_card(theirs).std)
    stamp = require(ours, "train")
    assert stamp["inputs"].keys() == {"cohort", "arm", "backbone", "backbone_card"}
    assert stamp["extra"]["provenance"] == "unknown"  # hashed with another salt: nobody can compare them
    learnt, inherited = (set(pd.read_parquet(folder / "patients.parquet")["patient"]) for folder in (ours, theirs))
    assert inherited < learnt
    assert len(learnt - inherited) == load_cohort(tmp_path / "cohort").split("train")["patient_id"].nunique()


def test_a_patient_of_theirs_in_our_test_split_is_refused_where_salts_are_one(tmp_path):
    """The same people, dealt otherwise: what trains there is tested on here."""
    write_other(tmp_path / "theirs", salt="s")
    theirs = go(tmp_path / "theirs")
    cohort = write_cohort(tmp_path / "ours")
    frame = cohort.frame.assign(split=cohort.frame["split"].map({"train": "test", "val": "val", "test": "train"}))
    folder = tmp_path / "swapped"
    stage = Stage("cohort", folder / "cohort", config={}, inputs={})
    stage.begin()
    write_table(frame, stage.folder / "cohort.parquet", cohort_schema(LABELS))
    stage.finish(outputs=["cohort.parquet"], counts={"rows": len(frame)}, extra={
        "labels": LABELS, "groups": GROUPS, "roots": {name: str(path) for name, path in cohort.roots.items()},
        "salt": "s", "patient_ids": "given"})
    with pytest.raises(TailfillError, match="20 patients of the splits test"):
        go(folder, backbone=str(theirs))
