"""One training run of an autoencoder: its settings, where it starts, and one optimiser step.

All that is random in a step is drawn from a generator of (seed, step, process), so a checkpoint of weights and
optimisers is enough to go on.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from classify.learning.start import check_backbone
from classify.learning.training import check_finite, check_precision, share_batch, step_generator
from cohort.config import hub_or_path, require_values
from cohort.errors import TailfillError
from synth.learning.perceptual import FeatureDistance, PerceptualConfig
from synth.learning.reconstruction import (
    PatchDiscriminator,
    Reconstruct,
    adaptive_weight,
    gradient_loss,
    load_autoencoder,
    to_signed,
)

SIZES = ("block_out_channels", "layers_per_block", "latent_channels")
"""Settings that a pipeline to start from has of its own."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """The ``autoencoder`` section."""

    pipeline: str | None = hub_or_path(None)
    """Pipeline whose autoencoder is trained on: a folder or a hub id, with its sizes and latent scale, which
    ``finetune.new_autoencoder`` then takes; null: one from nothing, of the sizes below."""
    revision: str | None = None
    """Revision on the hub."""
    decoder_only: bool = False
    """Whether the encoder stays ``pipeline``'s: latents are then the same, and what denoises them needs no training."""
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    """Loss in the features of a backbone of radiographs."""
    image_size: int = 128
    """Pixels per side; a multiple of 2 ** (number of levels - 1)."""
    block_out_channels: tuple[int, ...] = (16, 48, 128, 128)
    """Channels per level, multiples of 8; each level after the first halves the resolution. Full-resolution
    convolutions cost most and give least, so the first entry is small."""
    layers_per_block: int = 1
    """Residual blocks per level."""
    latent_channels: int = 8
    """Channels of the latent."""
    steps: int = 2600
    """Optimiser steps."""
    batch_size: int = 12
    """Images per step over all processes."""
    learning_rate: float = 5e-4
    """Peak rate of AdamW; linear warm-up over 50 steps, then cosine to zero."""
    gradient_weight: float = 2.0
    """Weight of the L1 loss between image gradients."""
    kl_weight: float = 1e-6
    """Weight of the KL divergence to a standard normal, per latent element summed (as in LDM)."""
    adversarial_weight: float = 0.3
    """Weight of the patch discriminator, relative to the reconstruction's gradient; 0 switches it off."""
    adversarial_start: float = 0.6
    """Share of the steps after which the discriminator joins, 0 to 1."""
    precision: str = "bf16"
    """``no`` or ``bf16`` (autocast)."""
    checkpoint_every: int = 200
    """Steps between checkpoints; does not change the result. 1 or more."""

    def __post_init__(self) -> None:
        """Raise ``TailfillError`` for the first value out of range."""
        levels = self.block_out_channels
        factor = 2 ** max(0, len(levels) - 1) if self.pipeline is None else 1
        check_precision(self.precision, key="autoencoder.precision")
        ones = {key: getattr(self, key) for key in
                ("layers_per_block", "latent_channels", "steps", "batch_size", "checkpoint_every")}
        weights = {key: getattr(self, key) for key in ("gradient_weight", "kl_weight", "adversarial_weight")}
        require_values(
            "autoencoder", **{key: (n, n >= 1, "1 or more") for key, n in ones.items()},
            **{key: (weight, weight >= 0, "0 or more") for key, weight in weights.items()},
            block_out_channels=(list(levels), len(levels) > 0 and all(n > 0 and n % 8 == 0 for n in levels),
                                "one or more multiples of 8"),
            image_size=(self.image_size, self.image_size >= 8 and self.image_size % factor == 0,
                        f"a multiple of {factor}, 8 or more"),
            learning_rate=(self.learning_rate, self.learning_rate > 0, "above 0"),
            adversarial_start=(self.adversarial_start, 0 <= self.adversarial_start <= 1, "0 to 1"),
        )
        if self.decoder_only and self.pipeline is None:
            raise TailfillError("autoencoder.decoder_only is true without autoencoder.pipeline; wanted: false, as an "
                                "encoder from nothing has to learn")
        if self.perceptual.backbone is not None:
            check_backbone(Path(self.perceptual.backbone), image_size=self.image_size,
                           key="autoencoder.perceptual.backbone")

    def identity(self) -> dict[str, Any]:
        """What the fingerprint of the stage holds, other weights aside; nothing that is off or the pipeline's."""
        idle = {"checkpoint_every", "pipeline", "revision", "perceptual"}
        idle |= {"decoder_only"} if self.pipeline is None else set(SIZES)
        settings = {key: value for key, value in asdict(self).items() if key not in idle}
        if self.perceptual.backbone is not None:
            settings["perceptual_weight"] = self.perceptual.weight
        return settings


def build_autoencoder(config: AutoencoderConfig) -> AutoencoderKL:
    """An untrained ``AutoencoderKL``, one channel in and out."""
    levels = len(config.block_out_channels)
    return AutoencoderKL(
        in_channels=1, out_channels=1, latent_channels=config.latent_channels, norm_num_groups=8,
        block_out_channels=config.block_out_channels, layers_per_block=config.layers_per_block,
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        sample_size=config.image_size, mid_block_add_attention=False,
    )


def start_autoencoder(config: AutoencoderConfig, folder: Path | None) -> AutoencoderKL:
    """An untrained autoencoder, or that of the pipeline in ``folder``; ``TailfillError`` where its sizes do not fit."""
    if folder is None:
        return build_autoencoder(config)
    vae = load_autoencoder(folder)
    if config.decoder_only:
        vae.encoder.requires_grad_(False)
        if vae.quant_conv is not None:
            vae.quant_conv.requires_grad_(False)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    require_values("autoencoder", image_size=(config.image_size, config.image_size % factor == 0,
                                              f"a multiple of {factor}, by which {folder} makes an image smaller"))
    return vae.train()


class Trainer:
    """The models, optimisers and schedules of one training run.

    ``folder`` is that of the pipeline to start from, if any; ``images`` (uint8, n x h x w) give the perceptual loss its
    units and are not kept.
    """

    def __init__(
        self, config: AutoencoderConfig, accelerator: Accelerator, *, seed: int, images: np.ndarray,
        folder: Path | None = None,
    ) -> None:
        self.config, self.accelerator, self.seed, self.step = config, accelerator, seed, 0
        torch.manual_seed(seed)  # important: weights are initialised from the global generator; called from main only
        self.vae = start_autoencoder(config, folder)
        self.model, self.critic = accelerator.prepare(Reconstruct(self.vae), PatchDiscriminator())
        self.features: FeatureDistance | None = None
        if config.perceptual.backbone is not None:
            self.features = FeatureDistance(Path(config.perceptual.backbone), images, accelerator.device)
        learning = [parameter for parameter in self.vae.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.AdamW(learning, lr=config.learning_rate, weight_decay=0.01)
        self.critic_optimiser = torch.optim.AdamW(self.critic.parameters(), lr=config.learning_rate / 2,
                                                  betas=(0.5, 0.9))

    def state(self) -> dict[str, object]:
        """What a checkpoint holds."""
        return {"model": self.vae.state_dict(), "critic": self.accelerator.unwrap_model(self.critic).state_dict(),
                "optimiser": self.optimiser.state_dict(), "critic_optimiser": self.critic_optimiser.state_dict()}

    def load(self, state: dict) -> None:
        """Continue from a checkpoint."""
        self.vae.load_state_dict(state["model"])
        self.accelerator.unwrap_model(self.critic).load_state_dict(state["critic"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.critic_optimiser.load_state_dict(state["critic_optimiser"])
        self.step = state["step"]

    def train_step(self, images: np.ndarray) -> dict[str, float]:
        """One optimiser step on this rank's share of a batch drawn from ``images`` (uint8, n x h x w)."""
        config = self.config
        share = share_batch(config.batch_size, self.accelerator.num_processes, key="autoencoder.batch_size")
        generator = step_generator(self.seed, self.step, rank=self.accelerator.process_index)
        chosen = torch.randint(len(images), (share,), generator=generator).numpy()
        target = to_signed(images[chosen]).to(self.accelerator.device)
        side = config.image_size // 2 ** (len(self.vae.config.block_out_channels) - 1)
        noise = torch.randn((len(chosen), self.vae.config.latent_channels, side, side), generator=generator)
        for optimiser, rate in ((self.optimiser, 1.0), (self.critic_optimiser, 0.5)):
            optimiser.param_groups[0]["lr"] = rate * self.learning_rate()
        with self.accelerator.autocast():
            output, kl = self.model(target, noise.to(target.device))
        output = output.float()
        pixel = (output - target).abs().mean()
        loss = pixel + config.gradient_weight * gradient_loss(reconstructed=output, target=target)
        loss = loss + config.kl_weight * kl.float().mean()
        if self.features is not None:
            with self.accelerator.autocast():
                distance = self.features(output, target)
            loss = loss + config.perceptual.weight * distance
        if config.adversarial_weight and self.step >= config.adversarial_start * config.steps:
            loss = loss + self._adversarial(loss, output, target)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        check_finite(loss.item(), step=self.step, stage="autoencoder")
        return {"loss": loss.item(), "l1": pixel.item()}

    def learning_rate(self) -> float:
        """Linear warm-up over 50 steps, then cosine to zero."""
        share = self.step / max(1, self.config.steps)
        return self.config.learning_rate * min(1.0, (self.step + 1) / 50) * 0.5 * (1 + float(np.cos(np.pi * share)))

    def _adversarial(self, loss: Tensor, output: Tensor, target: Tensor) -> Tensor:
        """Step the discriminator (hinge loss) and return the autoencoder's weighted adversarial term."""
        with self.accelerator.autocast():
            real, fake = self.critic(target).float(), self.critic(output.detach()).float()
        self.accelerator.backward(F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        self.critic_optimiser.step()
        self.critic.requires_grad_(False)
        with self.accelerator.autocast():
            adversarial = -self.critic(output).float().mean()
        self.critic.requires_grad_(True)
        self.critic_optimiser.zero_grad(set_to_none=True)
        weight = adaptive_weight(loss, adversarial, self.vae.decoder.conv_out.weight)
        return self.config.adversarial_weight * weight * adversarial
