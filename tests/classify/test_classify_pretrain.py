"""Pre-training without labels: the paper's loss, views inside the image, a kill, and a backbone that train accepts."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from tiny_classify import LABELS, write_cohort

from classify.arm import ArmConfig, write_arm
from classify.learning import fitting
from classify.learning.models import Card, build_classifier, head_of, load_card
from classify.learning.settings import TrainConfig
from classify.learning.vicreg import LEAST_AREA, TwoViews, crop, feed_views, vicreg
from classify.pretrain import PretrainConfig, pretrain
from classify.train import Job, train
from cohort.config import Run
from cohort.errors import TailfillError
from cohort.provenance import hash_patients
from cohort.stage import require

CONFIG = PretrainConfig(model="test_convnext", image_size=32, steps=6, batch_size=8, width=16, checkpoint_every=2)


@pytest.fixture
def run(tmp_path):
    write_cohort(tmp_path)
    return Run(run=str(tmp_path), n_seeds=3, threads=1, tracker="none")


def go(run, config=CONFIG):
    AcceleratorState._reset_state(True)
    pretrain(run, config)
    return run.folder / "pretrain"


def test_the_loss_is_the_papers():
    """Equations 1 to 6, entry by entry."""
    rng = np.random.default_rng(0)
    views = rng.normal(scale=0.7, size=(5, 2, 3))
    wanted = 25 * np.mean((views[:, 0] - views[:, 1]) ** 2)
    for view in (views[:, 0], views[:, 1]):
        centred = view - view.mean(axis=0)
        covariance = sum(np.outer(row, row) for row in centred) / 4
        wanted += 12.5 * np.mean([max(0.0, 1 - np.sqrt(covariance[j, j] + 1e-4)) for j in range(3)])
        wanted += sum(covariance[i, j] ** 2 for i in range(3) for j in range(3) if i != j) / 3
    found = vicreg(torch.from_numpy(views), torch.zeros(5, 1))
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(wanted, rel=1e-5)


def test_the_same_answer_for_every_image_costs_more_than_any_agreement_saves():
    same = torch.zeros(64, 2, 8)
    told_apart = torch.randn(64, 1, 8, generator=torch.Generator().manual_seed(0)).expand(-1, 2, -1)
    assert vicreg(same, same) > 20 > vicreg(told_apart, told_apart)


@pytest.mark.parametrize("draws", [[1, 0.3, 0.7], [0, 0, 0], [0, 1, 1], [0, 0, 1]])
def test_a_crop_lies_inside_the_image(draws):
    """A ramp shows where each pixel came from."""
    ramp = (torch.arange(64) + 0.5) / 64
    images = torch.stack([ramp.expand(64, 64), ramp.unsqueeze(1).expand(64, 64)]).unsqueeze(1)
    found = crop(images, torch.tensor([draws, draws], dtype=torch.float32))
    side = (LEAST_AREA + (1 - LEAST_AREA) * draws[0]) ** 0.5
    for image, place, axis in ((found[0, 0], draws[1], 1), (found[1, 0], draws[2], 0)):
        profile = image.mean(dim=1 - axis)
        start = place * (1 - side)
        assert float(profile[0]) == pytest.approx(start + side / 128, abs=0.01)
        assert float(profile[-1]) == pytest.approx(start + side - side / 128, abs=0.01)


def test_views_differ_and_depend_on_nothing_but_the_step():
    card = Card(model="test_convnext", labels=(), image_size=32, mean=0.5, std=0.25)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 32, 32), dtype=np.uint8))
    views = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        views.append(feed_views(card)(images, torch.zeros(4, 6)))
    assert views[0].shape == (4, 2, 1, 32, 32)
    assert torch.equal(views[0], views[1])
    assert not torch.allclose(views[0], views[2])
    assert not torch.allclose(views[0][:, 0], views[0][:, 1])


def test_the_backbone_is_timms_under_its_own_names():
    model = TwoViews("test_convnext", image_size=32, width=16, pretrained=False, drop_path=0.0)
    assert model(torch.randn(4, 2, 1, 32, 32)).shape == (4, 2, 16)
    whole = build_classifier("test_convnext", 5)
    name, _ = head_of(whole)
    assert set(model.network.state_dict()) == {key for key in whole.state_dict() if not key.startswith(name)}


def test_killed_and_resumed_gives_the_same_bits(run, tmp_path, monkeypatch):
    straight = go(run)
    other = replace(run, run=str(tmp_path / "other"), cohort=str(tmp_path / "cohort"))
    step, done = fitting._step, []

    class Killed(BaseException):
        """Nothing in the project catches it."""

    def dies_at_the_fourth_step(*args, **kwargs):
        if len(done) == 3:
            raise Killed
        done.append(1)
        return step(*args, **kwargs)

    monkeypatch.setattr(fitting, "_step", dies_at_the_fourth_step)
    with pytest.raises(Killed):
        go(other)
    monkeypatch.setattr(fitting, "_step", step)
    folder = go(other)
    assert (folder / "ema.safetensors").read_bytes() == (straight / "ema.safetensors").read_bytes()
    assert not (folder / "checkpoint.pt").exists()
    go(other)  # complete: nothing to do
    with pytest.raises(TailfillError, match="width was 16, now 32"):
        go(other, replace(CONFIG, width=32))


def test_train_starts_from_it_and_knows_its_patients(run):
    folder = go(run)
    assert load_card(folder).labels == ()
    stamp = require(folder, "pretrain")
    assert stamp["counts"] == {"steps": 6, "images": 40}
    learnt = set(pd.read_parquet(folder / "patients.parquet")["patient"])
    assert learnt == hash_patients([f"p{i}" for i in range(20)], salt="s")  # the training split's
    write_arm(run, ArmConfig(), arm="real", seed=0)
    AcceleratorState._reset_state(True)
    train(Job(run=run, arm="real", seed=0, config=TrainConfig(
        model="test_convnext", image_size=32, steps=2, batch_size=8, init_seed=None, backbone=str(folder),
        head_only=True)))
    trained, backbone = run.folder / "train" / "real" / "seed_0", load_file(folder / "ema.safetensors")
    raw = load_file(trained / "raw.safetensors")
    assert all(torch.equal(raw[key], value) for key, value in backbone.items())
    assert require(trained, "train")["extra"]["provenance"] == "this run"
    assert load_card(trained).labels == tuple(LABELS)


def test_it_learns_what_two_views_share():
    """Images of one grey each: the backbone has to tell them apart, whatever the part and the distortion."""
    torch.manual_seed(0)
    images = torch.linspace(20, 230, 16).to(torch.uint8).view(16, 1, 1).expand(16, 32, 32)
    feed = feed_views(Card(model="test_convnext", labels=(), image_size=32, mean=0.5, std=0.25))
    model = TwoViews("test_convnext", image_size=32, width=4, pretrained=False, drop_path=0.0)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for _ in range(100):
        loss = vicreg(model(feed(images, torch.zeros(16, 6))), torch.zeros(16, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_a_test_patient_in_training_is_refused(tmp_path):
    write_cohort(tmp_path, shared_patient=True)
    with pytest.raises(TailfillError, match="patient"):
        go(Run(run=str(tmp_path), n_seeds=3, threads=1, tracker="none"))


@pytest.mark.parametrize(("changes", "words"), [
    ({"batch_size": 1}, "batch_size is 1; wanted: 2 or more"), ({"model": "convnext_femtoo"}, "convnext_femto"),
    ({"pretrained": "nowhere.pth"}, "nowhere.pth, which is no file"), ({"lr": 0}, "lr is 0; wanted: above 0"),
    ({"precision": "fp16"}, "pretrain.precision"), ({"warmup_share": 1}, "below 1"), ({"image_size": 16}, "32 or more"),
])
def test_bad_settings_are_refused(changes, words):
    with pytest.raises(TailfillError, match=words):
        PretrainConfig(**changes)


def test_command_dry_run_and_its_section_beside_others(run, tmp_path, invoke):
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({"run": str(run.folder), "pretrain": {"steps": 3, "model": "test_convnext"},
                                      "train": {"backbone": "pretrain"}}))
    done = invoke("classify.pretrain", "--config", config, "--dry-run", "--pretrain.batch_size", 4)
    assert done.code == 0, done.stderr
    assert '"steps": 3' in done.stdout
    assert '"state": "to do"' in done.stdout
    assert not (run.folder / "pretrain").exists()
    assert invoke("classify.pretrain", "--config", config, "--pretrain.lrr", 1).code == 2
