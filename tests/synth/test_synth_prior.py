"""Prior preservation: what is kept is the starting pipeline's prediction, and the head is forgotten less with it."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from tiny_pipeline import LATENT_CHANNELS, LATENT_SIZE, tiny_pipeline

from synth.learning.denoiser import Batch, Denoiser, denoising_loss
from synth.learning.training_set import TrainingSet, tokenise
from synth.learning.tuning import FinetuneConfig, Trainer

CONFIG = FinetuneConfig(pipeline="a folder", steps=200, batch_size=8, warmup_steps=1, learning_rate=2e-3,
                        ema_decay=0.9, caption_dropout=0.0, lora_rank=2)
HEAD, TAIL = slice(0, 4), slice(4, 8)


def two_kinds(pipeline: StableDiffusionPipeline, *, tail_weight: float) -> TrainingSet:
    """Four images of the head, which are alike, and four of the tail, which are their negatives."""
    one = torch.randn((LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE), generator=torch.Generator().manual_seed(5)).numpy()
    means = np.stack([one] * 4 + [-one] * 4) / pipeline.vae.config.scaling_factor
    tokens = tokenise(pipeline.tokenizer, ["effusion"] * 4 + ["hernia"] * 4).view(8, 1, -1)
    return TrainingSet(frame=pd.DataFrame(index=range(8)), moments=np.stack([means, np.zeros_like(means)], axis=1),
                       tokens=tokens, weights=np.repeat([1.0, tail_weight], 4), common=np.repeat([True, False], 4),
                       blank=tokenise(pipeline.tokenizer, [""])[0], vae=pipeline.vae)


def start(pipeline: StableDiffusionPipeline, **settings: object) -> Trainer:
    """A run that starts from a copy of ``pipeline``."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return Trainer(replace(CONFIG, **settings), copy.deepcopy(pipeline), Accelerator(cpu=True), seed=1)


def fixed_batch(data: TrainingSet, rows: slice) -> Batch:
    """Some images of ``data``, each eight times, with noise and timesteps that are always the same."""
    generator = torch.Generator().manual_seed(9)
    clean = torch.from_numpy(data.moments[rows, 0]).repeat(8, 1, 1, 1) * data.vae.config.scaling_factor
    return Batch(clean=clean, noise=torch.randn(clean.shape, generator=generator),
                 timesteps=torch.randint(1000, (len(clean),), generator=generator),
                 tokens=data.tokens[rows, 0].repeat(8, 1))


@torch.no_grad()
def loss_of(trainer: Trainer, batch: Batch) -> float:
    """The model's own loss."""
    return float(denoising_loss(trainer.model, trainer.scheduler, batch, snr_gamma=5.0).mean())


@pytest.fixture(scope="module")
def knows_the_head() -> StableDiffusionPipeline:
    """A pipeline that has learnt the head and never seen the tail."""
    trainer = start(tiny_pipeline(), batch_size=16)
    data = two_kinds(trainer.pipeline, tail_weight=1e-9)
    for _ in range(60):
        trainer.train_step(data)
    return trainer.pipeline


def test_with_the_prior_the_head_is_forgotten_less_and_the_tail_is_learnt(
    knows_the_head: StableDiffusionPipeline
) -> None:
    data = two_kinds(knows_the_head, tail_weight=1e9)  # by weight only the tail is drawn
    head, tail = fixed_batch(data, HEAD), fixed_batch(data, TAIL)
    rise, gain = {}, {}
    for weight in (0.0, 1.0):
        trainer = start(knows_the_head, prior_weight=weight)
        before = loss_of(trainer, head), loss_of(trainer, tail)
        for _ in range(25):
            trainer.train_step(data)
        rise[weight], gain[weight] = loss_of(trainer, head) - before[0], before[1] - loss_of(trainer, tail)
    assert rise[0.0] > 0.05
    assert rise[1.0] < 0.5 * rise[0.0]
    assert gain[1.0] > 0.5 * gain[0.0] > 0


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_what_is_kept_is_the_starting_pipeline_after_any_training(
    mode: str, knows_the_head: StableDiffusionPipeline
) -> None:
    trainer = start(knows_the_head, mode=mode, prior_weight=1.0, learning_rate=0.05)
    data = two_kinds(trainer.pipeline, tail_weight=9.0)
    batch = fixed_batch(data, TAIL)
    expected = Denoiser(knows_the_head.unet, knows_the_head.text_encoder)(batch.clean, batch.timesteps, batch.tokens)
    for _ in range(2):
        trainer.train_step(data)
    assert torch.equal(trainer.prior.predict(batch.clean, batch.timesteps, batch.tokens), expected)
    with torch.no_grad():
        assert not torch.allclose(trainer.model(batch.clean, batch.timesteps, batch.tokens), expected, atol=1e-3)
    assert all(parameter.requires_grad for parameter in trainer.parameters)


def test_at_the_start_only_the_weighted_half_has_a_loss(knows_the_head: StableDiffusionPipeline) -> None:
    trainer = start(knows_the_head, prior_weight=1.0)
    batch = trainer.draw(two_kinds(trainer.pipeline, tail_weight=9.0))
    losses = denoising_loss(trainer.model, trainer.scheduler, batch, snr_gamma=5.0, prior=trainer.prior)
    assert len(losses) == 2 * CONFIG.batch_size
    assert torch.all(losses[:CONFIG.batch_size] > 0)
    torch.testing.assert_close(losses[CONFIG.batch_size:], torch.zeros(CONFIG.batch_size), atol=1e-9, rtol=0)


@pytest.mark.parametrize("tail_weight", [5.0, 1.0])  # the latter is scarcity_cap 1
def test_its_images_are_the_common_ones(tail_weight: float, knows_the_head: StableDiffusionPipeline) -> None:
    data = two_kinds(knows_the_head, tail_weight=tail_weight)
    latents, _ = data.draw(4000, torch.Generator().manual_seed(0), dropout=0.0, common=True)
    one = torch.from_numpy(data.moments[0, 0]) * data.vae.config.scaling_factor
    torch.testing.assert_close(latents, one.expand_as(latents))


def test_without_a_weight_it_costs_nothing(knows_the_head: StableDiffusionPipeline) -> None:
    trainer = start(knows_the_head)
    assert trainer.prior is None
    assert len(trainer.draw(two_kinds(trainer.pipeline, tail_weight=5.0)).clean) == CONFIG.batch_size


@pytest.mark.parametrize("settings", [
    {"gradient_accumulation": 4}, {"gradient_checkpointing": True}, {"gradient_accumulation": 2, "mode": "lora"},
])
def test_how_the_step_is_computed_changes_no_more_than_rounding(
    settings: dict, knows_the_head: StableDiffusionPipeline
) -> None:
    plain = {key: value for key, value in settings.items() if key == "mode"}
    one, other = (start(knows_the_head, prior_weight=0.7, **chosen) for chosen in (plain, settings))
    data = two_kinds(knows_the_head, tail_weight=5.0)
    gradients = []
    for trainer in (one, other):
        trainer.optimiser.step = lambda trainer=trainer: gradients.append([p.grad.clone() for p in trainer.parameters])
        trainer.train_step(data)
    assert len(gradients) == 2
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
