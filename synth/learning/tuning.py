"""One fine-tuning run: its settings, what of a pipeline learns, and one optimiser step.

All that is random in a step is drawn from a generator of (seed, step), so a checkpoint of parameters, optimiser and
averaged weights is enough to go on. Every process draws the whole batch and takes its share: the number of processes
and of accumulated passes changes sums by their rounding, nothing else.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from peft import LoraConfig

from classify.learning.training import check_finite, share_batch, step_generator
from cohort.config import hub_or_path, require_values
from synth.learning.denoiser import Batch, Denoiser, denoising_loss
from synth.learning.fresh import FreshConfig
from synth.learning.prior import StartingPipeline
from synth.learning.training_set import TrainingSet

LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
"""The attention projections, as in diffusers' own text-to-image LoRA script."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """The ``finetune`` section."""

    pipeline: str | None = hub_or_path(None)
    """Pipeline to start from: a folder or a hub id; null trains a small one from nothing around RUN/autoencoder."""
    revision: str | None = None
    """Revision on the hub."""
    new_autoencoder: bool = False
    """Whether RUN/autoencoder, trained on from that of ``pipeline``, takes its place; from nothing it always does."""
    mode: str = "full"
    """``full`` or ``lora``; a pipeline from nothing is always trained in full."""
    lora_rank: int = 16
    """Rank of the adapters, 1 or more."""
    train_text_encoder: bool = False
    """Whether the text encoder learns too (``full`` only); from nothing it always does."""
    fresh: FreshConfig = field(default_factory=FreshConfig)
    """Sizes of a pipeline from nothing."""
    steps: int = 3000
    """Optimiser steps."""
    batch_size: int = 32
    """Images per step over all processes and accumulated passes; as many again where ``prior_weight`` is above 0."""
    gradient_accumulation: int = 1
    """Forward passes per process and optimiser step, 1 or more: saves memory, changes no more than rounding."""
    gradient_checkpointing: bool = False
    """Whether the U-Net's activations are computed again rather than kept: less memory, about a third more time, for a
    step has one more forward pass (Chen et al. 2016)."""
    learning_rate: float = 5e-4
    """Peak rate of AdamW; 1e-5 (full) or 1e-4 (lora) suit a pre-trained pipeline. Over all steps the rate falls to a
    tenth by a cosine."""
    warmup_steps: int = 100
    """Steps of linear warm-up, on top of the cosine; 0 or more."""
    ema_decay: float = 0.999
    """Decay of the weight average that is written, below 1; it warms up from the first step."""
    snr_gamma: float = 5.0
    """Clip of min-SNR loss weights (Hang et al. 2023 use 5); 0 for uniform weights."""
    caption_dropout: float = 0.1
    """Share of images trained without caption, for classifier-free guidance (Ho and Salimans 2022 use .1 to .2)."""
    scarcity_threshold: float = 0.05
    """Labels rarer than this share of the images are drawn more often, by sqrt(threshold / share)."""
    scarcity_cap: float = 5.0
    """Most times that an image is drawn as often as a common one, 1 or more."""
    prior_weight: float = 0.0
    """Weight of the loss that keeps the starting pipeline's predictions on images without a scarce finding, 0 or more;
    0 switches it off, 1 is DreamBooth's (Ruiz et al. 2022). Not for a pipeline from nothing."""
    precision: str = "no"
    """``no``, or autocast to ``bf16`` or ``fp16`` (GPUs only; gradients are scaled)."""
    validate_every: int = 500
    """Steps between validation losses and contact sheets."""
    patience: int | None = None
    """Validations without a lower tail loss after which training ends, 1 or more; the averaged weights of the best one
    are written. null: all steps are done, and the last weights written."""
    checkpoint_every: int = 250
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        """Raise ``TailfillError`` for the first value out of range."""
        ones = {key: getattr(self, key) for key in ("lora_rank", "steps", "batch_size", "gradient_accumulation",
                                                    "validate_every", "checkpoint_every")}
        require_values(
            "finetune", **{key: (n, n >= 1, "1 or more") for key, n in ones.items()},
            mode=(self.mode, self.mode in ("full", "lora"), "full or lora"),
            pipeline=(self.pipeline, self.pipeline is not None or self.mode == "full", "a pipeline for lora to adapt"),
            new_autoencoder=(self.new_autoencoder, self.pipeline is not None or not self.new_autoencoder,
                             "false without a pipeline, whose autoencoder is the run's own"),
            train_text_encoder=(self.train_text_encoder, not (self.train_text_encoder and self.mode == "lora"),
                                "false where mode is lora"),
            learning_rate=(self.learning_rate, self.learning_rate > 0, "above 0"),
            warmup_steps=(self.warmup_steps, self.warmup_steps >= 0, "0 or more"),
            ema_decay=(self.ema_decay, 0 < self.ema_decay < 1, "between 0 and 1"),
            snr_gamma=(self.snr_gamma, self.snr_gamma >= 0, "0 or more"),
            caption_dropout=(self.caption_dropout, 0 <= self.caption_dropout < 1, "0 to below 1"),
            scarcity_threshold=(self.scarcity_threshold, 0 < self.scarcity_threshold <= 1, "above 0, 1 at most"),
            scarcity_cap=(self.scarcity_cap, self.scarcity_cap >= 1, "1 or more"),
            prior_weight=(self.prior_weight,
                          self.prior_weight == 0 or (self.prior_weight > 0 and self.pipeline is not None),
                          "0, or above 0 with a pipeline to start from"),
            precision=(self.precision, self.precision in ("no", "bf16", "fp16"), "no, bf16 or fp16"),
            patience=(self.patience, self.patience is None or self.patience >= 1, "1 or more, or null"),
        )

    @property
    def uses_lora(self) -> bool:
        """Whether adapters are trained rather than the weights themselves."""
        return self.mode == "lora" and self.pipeline is not None


class Trainer:
    """One fine-tuning run: the pipeline, what of it learns, and how far it has come."""

    def __init__(self, config: FinetuneConfig, pipeline: Any, accelerator: Accelerator, *, seed: int) -> None:
        self.config, self.pipeline, self.accelerator, self.seed, self.step = config, pipeline, accelerator, seed, 0
        self.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.unet, self.text_encoder = pipeline.unet, pipeline.text_encoder
        for part in (pipeline.vae, self.unet, self.text_encoder):
            part.requires_grad_(False)
        if config.uses_lora:
            self.unet.add_adapter(LoraConfig(r=config.lora_rank, lora_alpha=config.lora_rank,
                                             target_modules=LORA_TARGETS))
        else:
            self.unet.requires_grad_(True)
            self.text_encoder.requires_grad_(config.train_text_encoder or config.pipeline is None)
        if config.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.prior = StartingPipeline(self.unet, self.text_encoder, weight=config.prior_weight,
                                      uses_lora=config.uses_lora) if config.prior_weight else None
        self.n_parts = accelerator.num_processes * config.gradient_accumulation
        self.share = share_batch(config.batch_size, self.n_parts, key="finetune.batch_size")
        # important: evaluation mode, so that no dropout of a foreign pipeline draws from the global generator
        module = Denoiser(self.unet, self.text_encoder).eval()
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.model = accelerator.prepare(module)
        for part in (pipeline.vae, self.prior):
            if part is not None:
                part.to(accelerator.device)
        self.optimiser = accelerator.prepare(
            torch.optim.AdamW(self.parameters, lr=config.learning_rate, weight_decay=0.01))
        self.ema = EMAModel(self.parameters, decay=config.ema_decay, use_ema_warmup=True, power=0.75)

    def learning_rate(self) -> float:
        """A cosine over all steps down to a tenth of the peak, times a linear warm-up."""
        config = self.config
        share = min(1.0, self.step / max(1, config.steps))
        cosine = 0.1 + 0.45 * (1 + float(np.cos(np.pi * share)))
        return config.learning_rate * min(1.0, (self.step + 1) / max(1, config.warmup_steps)) * cosine

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds; all of it changes from step to step."""
        scaler = self.accelerator.scaler  # of fp16's gradients, else None
        return {"parameters": [p.detach().cpu() for p in self.parameters], "optimiser": self.optimiser.state_dict(),
                "ema": self.ema.state_dict(), "scaler": scaler.state_dict() if scaler else {}}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        with torch.no_grad():
            for parameter, saved in zip(self.parameters, state["parameters"], strict=True):
                parameter.copy_(saved)
        self.optimiser.load_state_dict(state["optimiser"])
        self.ema.load_state_dict(state["ema"])
        self.ema.to(self.accelerator.device)
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]

    def draw(self, data: TrainingSet) -> Batch:
        """The step's whole batch, and after it as many common images where a prior is to be kept; on the CPU."""
        config, generator = self.config, step_generator(self.seed, self.step)
        drawn = [data.draw(config.batch_size, generator, dropout=config.caption_dropout, common=common)
                 for common in ([False, True] if self.prior else [False])]
        clean, tokens = (torch.cat(part) for part in zip(*drawn, strict=True))
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(self.scheduler.config.num_train_timesteps, (len(clean),), generator=generator)
        return Batch(clean=clean, noise=noise, timesteps=timesteps, tokens=tokens)

    def train_step(self, data: TrainingSet) -> float:
        """One optimiser step; returns the batch's mean loss, over all processes, the prior's included.

        Raises ``TailfillError``, in every process, when it is not finite.
        """
        config, accelerator = self.config, self.accelerator
        total = torch.zeros((), device=accelerator.device)
        self.optimiser.param_groups[0]["lr"] = self.learning_rate()
        batch = self.draw(data)
        for number in range(config.gradient_accumulation):
            place = accelerator.process_index * config.gradient_accumulation + number
            # every n-th row: image i and the common image i belong to the same part, so each has as many of both
            part = batch.rows(slice(place, None, self.n_parts), accelerator.device)
            is_last = number == config.gradient_accumulation - 1
            with nullcontext() if is_last else accelerator.no_sync(self.model):  # processes meet once a step
                with accelerator.autocast():
                    losses = denoising_loss(self.model, self.scheduler, part, snr_gamma=config.snr_gamma,
                                            prior=self.prior)
                loss = losses.sum() / (self.share * config.gradient_accumulation)
                accelerator.backward(loss)
            total += loss.detach()
        accelerator.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.ema.step(self.parameters)
        self.step += 1
        mean = float(accelerator.reduce(total, reduction="mean"))
        check_finite(mean, step=self.step, stage="finetune")
        return mean
