"""An autoencoder that is trained on from a pipeline's: its start, its parts, its losses, and who takes it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from test_synth_perceptual import save_backbone
from tiny_pipeline import save_tiny_pipeline, tiny_pipeline

from classify.learning.training import CHECKPOINT, load_checkpoint, save_checkpoint
from cohort.config import Run
from cohort.errors import TailfillError
from cohort.provenance import is_known, write_patients
from cohort.stage import Stage
from cohort.tables import Cohort
from synth.autoencoder import find_owners, open_stage
from synth.finetune import find_owners as owners_of_tuning
from synth.finetune import load_pipeline
from synth.learning.coding import AutoencoderConfig, Trainer, start_autoencoder
from synth.learning.perceptual import PerceptualConfig
from synth.learning.tuning import FinetuneConfig

CONFIG = AutoencoderConfig(pipeline="a folder", image_size=32, steps=12, batch_size=4, precision="no",
                           adversarial_weight=0, learning_rate=5e-3)


@pytest.fixture
def images() -> np.ndarray:
    """Twelve smooth 32-px images."""
    coarse = np.random.default_rng(0).integers(0, 256, (12, 4, 4), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def trainer_of(config: AutoencoderConfig, images: np.ndarray, folder: Path) -> Trainer:
    """A trainer on one thread, so that sums have one order."""
    torch.set_num_threads(1)
    return Trainer(config, Accelerator(cpu=True), seed=3, images=images, folder=folder)


def test_training_goes_on_from_the_pipeline_s_autoencoder(images: np.ndarray, tmp_path: Path) -> None:
    folder = save_tiny_pipeline(tmp_path / "pipeline")
    wanted = tiny_pipeline().vae
    trainer = trainer_of(CONFIG, images, folder)
    for name, value in trainer.vae.state_dict().items():
        assert torch.equal(value, wanted.state_dict()[name]), name
    assert trainer.vae.config.scaling_factor == wanted.config.scaling_factor
    losses = [trainer.train_step(images)["loss"] for _ in range(12)]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


def test_the_decoder_learns_alone(images: np.ndarray, tmp_path: Path) -> None:
    folder = save_tiny_pipeline(tmp_path / "pipeline")
    before = tiny_pipeline().vae.state_dict()
    for alone in (False, True):
        trainer = trainer_of(replace(CONFIG, decoder_only=alone), images, folder)
        for _ in range(3):
            trainer.train_step(images)
        changed = {name.split(".")[0] for name, value in trainer.vae.state_dict().items()
                   if not torch.equal(value, before[name])}
        assert changed == {"decoder", "post_quant_conv"} | (set() if alone else {"encoder", "quant_conv"})


def test_a_resumed_run_with_every_loss_ends_at_the_same_bits(images: np.ndarray, tmp_path: Path) -> None:
    folder = save_tiny_pipeline(tmp_path / "pipeline")
    config = replace(CONFIG, decoder_only=True, adversarial_weight=0.3, adversarial_start=0,
                     perceptual=PerceptualConfig(backbone=str(save_backbone(tmp_path / "backbone"))))
    straight, first, second = (trainer_of(config, images, folder) for _ in range(3))
    losses = [straight.train_step(images)["loss"] for _ in range(4)]
    for _ in range(2):
        first.train_step(images)
    save_checkpoint(tmp_path / CHECKPOINT, step=first.step, history=[], **first.state())
    second.load(load_checkpoint(tmp_path / CHECKPOINT))
    assert [second.train_step(images)["loss"] for _ in range(2)] == losses[2:]
    for name, value in straight.vae.state_dict().items():
        assert torch.equal(value, second.vae.state_dict()[name]), name


def test_the_perceptual_loss_counts_by_its_weight(images: np.ndarray, tmp_path: Path) -> None:
    folder, backbone = save_tiny_pipeline(tmp_path / "pipeline"), str(save_backbone(tmp_path / "backbone"))
    first = [trainer_of(replace(CONFIG, perceptual=keys), images, folder).train_step(images)["loss"] for keys in
             (PerceptualConfig(), *(PerceptualConfig(backbone=backbone, weight=weight) for weight in (1.0, 2.0)))]
    assert first[1] > first[0]
    assert first[2] - first[0] == pytest.approx(2 * (first[1] - first[0]), rel=1e-4)


def test_settings_that_do_not_fit_are_named(tmp_path: Path) -> None:
    folder = save_tiny_pipeline(tmp_path / "pipeline")
    with pytest.raises(TailfillError, match=r"autoencoder\.decoder_only is true without autoencoder\.pipeline"):
        AutoencoderConfig(decoder_only=True)
    with pytest.raises(TailfillError, match=r"autoencoder\.perceptual\.backbone is .*, which holds no"):
        AutoencoderConfig(perceptual=PerceptualConfig(backbone=str(tmp_path)))
    with pytest.raises(TailfillError, match=r"autoencoder\.image_size is 18; wanted: a multiple of 4"):
        start_autoencoder(replace(CONFIG, image_size=18), folder)
    with pytest.raises(TailfillError, match="new_autoencoder is True; wanted: false without a pipeline"):
        FinetuneConfig(new_autoencoder=True)


def test_a_stage_from_before_these_settings_is_the_same() -> None:
    assert set(AutoencoderConfig().identity()) == {
        "image_size", "block_out_channels", "layers_per_block", "latent_channels", "steps", "batch_size",
        "learning_rate", "gradient_weight", "kl_weight", "adversarial_weight", "adversarial_start", "precision"}


def test_what_it_starts_from_is_in_the_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_text("a file")
    run = Run(run=str(tmp_path / "run"), cohort=str(tmp_path / "cohort.csv"))
    folders = [save_tiny_pipeline(tmp_path / f"pipeline_{seed}", seed) for seed in (0, 1)]
    backbone = PerceptualConfig(backbone=str(save_backbone(tmp_path / "backbone")))
    prints = [open_stage(config, run, folder).fingerprint for config, folder in (
        (CONFIG, folders[0]), (CONFIG, folders[1]), (replace(CONFIG, decoder_only=True), folders[0]),
        (replace(CONFIG, perceptual=backbone), folders[0]),
        (replace(CONFIG, perceptual=replace(backbone, weight=0.5)), folders[0]))]
    assert len(set(prints)) == 5
    for same in (replace(CONFIG, pipeline="elsewhere"), replace(CONFIG, latent_channels=2)):  # sizes are the pipeline's
        assert open_stage(same, run, folders[0]).fingerprint == prints[0]


def test_a_copy_of_a_pipeline_is_the_same_start_and_another_u_net_beside_it_too(tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_text("a file")
    run = Run(run=str(tmp_path / "run"), cohort=str(tmp_path / "cohort.csv"))
    stage = Stage("finetune", tmp_path / "generator", config={}, inputs={})
    stage.begin()
    owned = save_tiny_pipeline(stage.folder / "pipeline")
    stage.finish(outputs=["pipeline"], counts={})
    copied = save_tiny_pipeline(tmp_path / "copy")
    tiny_pipeline(seed=1).unet.save_pretrained(copied / "unet")
    assert open_stage(CONFIG, run, owned).fingerprint == open_stage(CONFIG, run, copied).fingerprint


def test_a_backbone_that_knows_test_patients_is_refused_and_an_unknown_one_told(tmp_path: Path) -> None:
    frame = pd.DataFrame({"split": ["train", "test"], "patient_id": ["p", "q"]})
    cohort = Cohort(frame=frame, labels=[], groups={}, roots={}, salt="s", folder=tmp_path)
    backbone = save_backbone(tmp_path / "backbone")
    config = replace(CONFIG, perceptual=PerceptualConfig(backbone=str(backbone)))
    owners = find_owners(config, tmp_path)
    assert owners == [None, backbone]
    assert find_owners(replace(config, pipeline=None), None) == [backbone]
    assert [is_known(owner, cohort) for owner in owners] == [False, False]
    write_patients(backbone, ["p"], salt="s")
    assert is_known(backbone, cohort)
    write_patients(backbone, ["q"], salt="s")
    with pytest.raises(TailfillError, match="has learnt from 1 patients"):
        is_known(backbone, cohort)


def test_fine_tuning_takes_the_run_s_own_autoencoder(tmp_path: Path) -> None:
    folder, run = save_tiny_pipeline(tmp_path / "pipeline"), Run(run=str(tmp_path / "run"))
    other = tiny_pipeline(seed=1).vae
    other.save_pretrained(tmp_path / "run/autoencoder/model")
    config = FinetuneConfig(pipeline=str(folder))
    for new, vae in ((False, tiny_pipeline().vae), (True, other)):
        pipeline = load_pipeline(replace(config, new_autoencoder=new), run, folder, ["a"])
        for name, value in pipeline.vae.state_dict().items():
            assert torch.equal(value, vae.state_dict()[name]), name
        assert torch.equal(pipeline.unet.conv_in.weight, tiny_pipeline().unet.conv_in.weight)
    assert owners_of_tuning(replace(config, new_autoencoder=True), run, folder) == [tmp_path / "run/autoencoder", None]
    assert owners_of_tuning(config, run, folder) == [None]
