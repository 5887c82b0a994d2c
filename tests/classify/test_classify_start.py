"""A backbone of other labels, and training of the head alone: frozen bits, one set of features, known patients."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from tiny_classify import LABELS, write_cohort

from classify.arm import ArmConfig, write_arm
from classify.learning import features
from classify.learning.models import Card, build_classifier, load_classifier, predict_logits, save_card
from classify.learning.settings import TrainConfig
from classify.learning.training import CHECKPOINT
from classify.predict import PredictConfig, predict
from classify.train import Job, train
from cohort.config import Run
from cohort.errors import TailfillError
from cohort.pixels import load_images
from cohort.provenance import hash_patients, write_patients
from cohort.stage import require
from cohort.tables import load_cohort

CARD = Card(model="test_convnext", labels=("Edema", "Effusion"), image_size=32, mean=0.4, std=0.3)
HEAD = ("head.fc.weight", "head.fc.bias")


@pytest.fixture
def run(tmp_path):
    write_cohort(tmp_path)
    return Run(run=str(tmp_path), n_seeds=3, threads=1, tracker="none")


@pytest.fixture
def backbone(tmp_path):
    """Weights for two other labels, stored as float16, with nothing but a card beside them."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    torch.manual_seed(5)
    save_file({key: value.half() for key, value in build_classifier(CARD.model, 2).state_dict().items()},
              folder / "ema.safetensors")
    save_card(CARD, folder)
    return folder


def settings(folder, **changes):
    return TrainConfig(**{
        "model": CARD.model, "image_size": 32, "steps": 6, "base_steps": 6, "init_seed": None, "batch_size": 8,
        "lr": 0.01, "base_lr": 0.01, "checkpoint_every": 2, "head_only": True, "backbone": str(folder), **changes})


def go(run, config, *, arm="real", seed=0):
    AcceleratorState._reset_state(True)
    if seed < 1000:
        write_arm(run, ArmConfig(slots_per_class=10), arm=arm, seed=seed)
    train(Job(run=run, config=config, arm=arm, seed=seed))
    return run.folder / "train" / arm / f"seed_{seed}"


def test_frozen_weights_are_the_backbones_bit_for_bit_and_the_head_learns(run, backbone):
    folder, shipped = go(run, settings(backbone)), load_file(backbone / "ema.safetensors")
    raw, ema = load_file(folder / "raw.safetensors"), load_file(folder / "ema.safetensors")
    for key in shipped.keys() - set(HEAD):
        assert raw[key].dtype == torch.float32
        assert torch.equal(raw[key], shipped[key].float())
        assert torch.equal(ema[key], raw[key])
    assert raw[HEAD[0]].shape == (len(LABELS), 64)
    assert raw[HEAD[0]].abs().max() > 0
    assert not torch.equal(raw[HEAD[0]], ema[HEAD[0]])
    _, card = load_classifier(folder)
    assert card == replace(CARD, labels=tuple(LABELS))
    stamp = require(folder, "train")
    assert set(stamp["outputs"]) == {"ema.safetensors", "raw.safetensors", "card.json", "patients.parquet"}
    assert stamp["config"]["head_only"] is True


def test_predictions_are_those_of_the_full_model_and_features_are_computed_once(run, backbone, monkeypatch):
    cohort, compute, computed = load_cohort(run.cohort_folder), features.compute_features, []
    monkeypatch.setattr(features, "compute_features",
                        lambda *args, **kwargs: (computed.append(len(args[1])), compute(*args, **kwargs))[1])
    frame = cohort.split("val", "test")
    images = load_images(cohort.image_paths(frame), 32, None)
    for arm, seed in (("real", 0), ("oversample", 0), ("real", 1)):
        folder = go(run, settings(backbone), arm=arm, seed=seed)
        AcceleratorState._reset_state(True)
        predict(run, PredictConfig(), arm=arm, seed=seed)
        table = pd.read_parquet(run.folder / "predictions" / arm / f"seed_{seed}" / "predictions.parquet")
        for weights in ("raw", "ema"):
            model, card = load_classifier(folder, weights=weights)
            found = table.loc[table["weights"] == weights, [f"logit_{label}" for label in LABELS]]
            np.testing.assert_allclose(found, predict_logits(model, images, card), atol=1e-5)
    assert computed == [len(cohort.split("train")), len(frame)]


def test_killed_for_good_and_resumed_gives_the_same_bits(run, backbone, tmp_path):
    """A real process gets SIGKILL at its fifth step, in the middle between two checkpoints."""
    straight = go(run, settings(backbone))
    other = replace(run, run=str(tmp_path / "other"), cohort=str(run.cohort_folder))
    write_arm(other, ArmConfig(slots_per_class=10), arm="real", seed=0)
    script = tmp_path / "dies.py"
    script.write_text(
        "import os, signal\nfrom classify import train\nfrom classify.learning import fitting\n"
        "from cohort.config import Run\nstep = fitting._step\n"
        "def dies(learner, *args, **kwargs):\n"
        "    if learner.step == 5:\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(learner, *args, **kwargs)\n"
        f"fitting._step = dies\nconfig = train.{settings(backbone)!r}\nrun = {other!r}\n"
        "train.train(train.Job(run=run, config=config, arm='real', seed=0))\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    folder = other.folder / "train" / "real" / "seed_0"
    assert (folder / CHECKPOINT).is_file()
    go(other, settings(backbone))
    for name in ("raw.safetensors", "ema.safetensors"):
        assert (folder / name).read_bytes() == (straight / name).read_bytes()


def test_critic_start_and_arms(run, backbone, monkeypatch):
    """With a shared start the arms take over its head, and share its features."""
    config = settings(backbone, init_seed=2000, base_steps=20, steps=1, lr=1e-9)
    go(run, config, seed=1000)
    start = go(run, config, seed=2000)
    monkeypatch.setattr(features, "compute_features", None)
    folder = go(run, config)
    first, now = load_file(start / "ema.safetensors"), load_file(folder / "raw.safetensors")
    for key, value in first.items():
        torch.testing.assert_close(now[key], value, atol=1e-6, rtol=0)
    assert require(folder, "train")["inputs"].keys() == {"cohort", "arm", "start"}


def test_without_a_backbone_the_shared_start_trains_whole_and_is_then_frozen(run):
    config = settings("", backbone=None, init_seed=2000)
    start, folder = go(run, config, seed=2000), go(run, config)
    assert "head_only" not in require(start, "train")["config"]
    first, now = load_file(start / "ema.safetensors"), load_file(folder / "ema.safetensors")
    assert [key for key in first if not torch.equal(first[key], now[key])] == sorted(HEAD)


def test_whole_training_from_a_backbone(run, backbone):
    folder = go(run, settings(backbone, head_only=False, lr=1e-9, steps=1))
    shipped, raw = load_file(backbone / "ema.safetensors"), load_file(folder / "raw.safetensors")
    for key in shipped.keys() - set(HEAD):
        torch.testing.assert_close(raw[key], shipped[key].float(), atol=1e-6, rtol=0)


def test_fingerprints_hold_the_weights_and_new_keys_only_where_they_are_used(run, backbone, tmp_path):
    write_arm(run, ArmConfig(), arm="real", seed=0)

    def stage(config):
        return Job(run=run, config=config, arm="real", seed=0).stage()

    assert not {"backbone", "head_only"} & stage(settings("", backbone=None, head_only=False)).config.keys()
    first = stage(settings(backbone)).fingerprint
    moved = backbone.rename(tmp_path / "elsewhere")
    assert stage(settings(moved)).fingerprint == first
    save_card(replace(CARD, mean=0.5), moved)
    assert stage(settings(moved)).fingerprint != first


@pytest.mark.parametrize(("split", "salt", "provenance"), [("train", "s", "this run"), ("train", "far", "unknown"),
                                                          (None, None, "unknown")])
def test_whose_images_a_backbone_has_seen(run, backbone, split, salt, provenance):
    cohort = load_cohort(run.cohort_folder)
    if split:
        write_patients(backbone, ["of the backbone"], salt=salt)
    folder = go(run, settings(backbone))
    assert require(folder, "train")["extra"]["provenance"] == provenance
    learnt = set(pd.read_parquet(folder / "patients.parquet")["patient"])
    inherited = hash_patients(["of the backbone"], salt=salt) if split else set()
    assert learnt == hash_patients(cohort.split("train")["patient_id"], salt=cohort.salt) | inherited


def test_a_backbone_that_has_seen_a_test_patient_is_refused(run, backbone):
    cohort = load_cohort(run.cohort_folder)
    write_patients(backbone, cohort.split("test")["patient_id"][:1], salt=cohort.salt)
    with pytest.raises(TailfillError, match="1 patients of the splits test"):
        go(run, settings(backbone))


@pytest.mark.parametrize(("changes", "words"), [
    ({"image_size": 64}, "image_size 32; wanted: 64"), ({"model": "test_resnet"}, "wanted: test_resnet"),
    ({"backbone": "nowhere"}, "nowhere"), ({"pretrained": True}, "one start"),
    ({"backbone": None}, "head_only is true without"),
])
def test_what_cannot_be_is_refused_before_any_work(backbone, changes, words):
    with pytest.raises(TailfillError, match=words):
        settings(backbone, **changes)


def test_weights_that_are_missing_or_do_not_fit_are_named(run, backbone):
    config = settings(backbone)
    save_file({"stem.weight": torch.zeros(1)}, backbone / "ema.safetensors")
    with pytest.raises(TailfillError, match=r"ema\.safetensors: is no backbone"):
        go(run, config)
    Path(backbone / "ema.safetensors").unlink()
    with pytest.raises(TailfillError, match=r"holds no ema\.safetensors"):
        settings(backbone)
