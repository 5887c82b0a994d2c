"""One fine-tuning run: its settings, what of a pipeline learns, and one optimiser step.

All that is random in a step is drawn from a generator of (seed, step, rank), so a checkpoint of parameters, optimiser
and averaged weights is enough to go on.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from peft import LoraConfig

from classify.learning.training import check_finite, check_precision, share_batch, step_generator
from cohort.config import hub_or_path, require_values
from synth.learning.denoiser import Denoiser, denoising_loss
from synth.learning.fresh import FreshConfig
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
    """Images per step over all processes and accumulation steps."""
    gradient_accumulation: int = 1
    """Forward passes per optimiser step."""
    learning_rate: float = 5e-4
    """Peak rate of AdamW after linear warm-up; 1e-5 (full) or 1e-4 (lora) suit a pre-trained pipeline."""
    warmup_steps: int = 100
    """Steps of linear warm-up, after which the rate falls to a tenth by a cosine."""
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
    precision: str = "no"
    """``no`` or ``bf16`` (autocast)."""
    validate_every: int = 500
    """Steps between validation losses and contact sheets."""
    checkpoint_every: int = 250
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        """Raise ``TailfillError`` for the first value out of range."""
        check_precision(self.precision, key="finetune.precision")
        ones = {key: getattr(self, key) for key in ("lora_rank", "steps", "batch_size", "gradient_accumulation",
                                                    "validate_every", "checkpoint_every")}
        require_values(
            "finetune", **{key: (n, n >= 1, "1 or more") for key, n in ones.items()},
            mode=(self.mode, self.mode in ("full", "lora"), "full or lora"),
            pipeline=(self.pipeline, self.pipeline is not None or self.mode == "full", "a pipeline for lora to adapt"),
            learning_rate=(self.learning_rate, self.learning_rate > 0, "above 0"),
            warmup_steps=(self.warmup_steps, self.warmup_steps >= 0, "0 or more"),
            ema_decay=(self.ema_decay, 0 < self.ema_decay < 1, "between 0 and 1"),
            snr_gamma=(self.snr_gamma, self.snr_gamma >= 0, "0 or more"),
            caption_dropout=(self.caption_dropout, 0 <= self.caption_dropout < 1, "0 to below 1"),
            scarcity_threshold=(self.scarcity_threshold, 0 < self.scarcity_threshold <= 1, "above 0, 1 at most"),
            scarcity_cap=(self.scarcity_cap, self.scarcity_cap >= 1, "1 or more"),
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
        pipeline.vae.to(accelerator.device)
        module = Denoiser(self.unet, self.text_encoder)
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.model = accelerator.prepare(module)
        self.optimiser = torch.optim.AdamW(self.parameters, lr=config.learning_rate, weight_decay=0.01)
        self.ema = EMAModel(self.parameters, decay=config.ema_decay, use_ema_warmup=True, power=0.75)

    def learning_rate(self) -> float:
        """Linear warm-up, then a cosine down to a tenth of the peak."""
        config = self.config
        share = min(1.0, self.step / max(1, config.steps))
        cosine = 0.1 + 0.45 * (1 + float(np.cos(np.pi * share)))
        return config.learning_rate * min(1.0, (self.step + 1) / max(1, config.warmup_steps)) * cosine

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"parameters": [p.detach().cpu() for p in self.parameters], "optimiser": self.optimiser.state_dict(),
                "ema": self.ema.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        with torch.no_grad():
            for parameter, saved in zip(self.parameters, state["parameters"], strict=True):
                parameter.copy_(saved)
        self.optimiser.load_state_dict(state["optimiser"])
        self.ema.load_state_dict(state["ema"])
        self.ema.to(self.accelerator.device)
        self.step = state["step"]

    def train_step(self, data: TrainingSet) -> float:
        """One optimiser step; returns this rank's mean loss."""
        config, total = self.config, 0.0
        parts = self.accelerator.num_processes * config.gradient_accumulation
        share = share_batch(config.batch_size, parts, key="finetune.batch_size")
        generator = step_generator(self.seed, self.step, rank=self.accelerator.process_index)
        self.optimiser.param_groups[0]["lr"] = self.learning_rate()
        for _ in range(config.gradient_accumulation):
            clean, tokens = data.draw(share, generator, dropout=config.caption_dropout)
            noise = torch.randn(clean.shape, generator=generator)
            timesteps = torch.randint(self.scheduler.config.num_train_timesteps, (share,), generator=generator)
            clean, noise, timesteps, tokens = (x.to(self.accelerator.device) for x in (clean, noise, timesteps, tokens))
            with self.accelerator.autocast():
                loss = denoising_loss(self.model, self.scheduler, clean=clean, noise=noise, timesteps=timesteps,
                                      tokens=tokens, snr_gamma=config.snr_gamma).mean()
            self.accelerator.backward(loss / config.gradient_accumulation)
            total += loss.item() / config.gradient_accumulation
        self.accelerator.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.ema.step(self.parameters)
        self.step += 1
        check_finite(total, step=self.step, stage="finetune")
        return total
