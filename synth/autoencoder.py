"""The autoencoder of a generator that is trained from nothing: radiograph -> latent -> radiograph.

A latent diffusion model sees the world through its autoencoder, so ribs that are lost here are lost for good. This is
diffusers' ``AutoencoderKL``, grey in and grey out, trained on the train split only, with an L1 loss, an L1 loss of
image gradients at two scales (edges: ribs, pleura), a small KL term and, in the last part of training, a patch
discriminator with VQGAN's adaptive weight (Esser et al. 2021, eq. 7), which restores texture that L1 blurs. Whoever
fine-tunes an existing pipeline skips this stage.

What it does not promise: a perceptual loss (that would need the weights that later measure fidelity).

    accelerate launch synth/autoencoder.py --config configs/nih128.yaml
"""

import logging
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from classify.figures.sheets import contact_sheet
from classify.learning.training import (
    CHECKPOINT,
    check_finite,
    check_precision,
    load_checkpoint,
    save_checkpoint,
    share_batch,
    start_accelerator,
    step_generator,
)
from cohort.config import parse, require_values
from cohort.errors import run_command
from cohort.pixels import load_images
from cohort.provenance import write_patients
from cohort.stage import Stage
from cohort.tables import Cohort, load_cohort, write_table
from synth.learning.reconstruction import (
    PatchDiscriminator,
    Reconstruct,
    adaptive_weight,
    gradient_loss,
    latent_scale,
    psnr,
    reconstruct,
    to_signed,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """The ``autoencoder`` section."""

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
        factor = 2 ** max(0, len(levels) - 1)
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


def build_autoencoder(config: AutoencoderConfig) -> AutoencoderKL:
    """An untrained ``AutoencoderKL``, one channel in and out."""
    levels = len(config.block_out_channels)
    return AutoencoderKL(
        in_channels=1, out_channels=1, latent_channels=config.latent_channels, norm_num_groups=8,
        block_out_channels=config.block_out_channels, layers_per_block=config.layers_per_block,
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        sample_size=config.image_size, mid_block_add_attention=False,
    )


class Trainer:
    """The models, optimisers and schedules of one training run."""

    def __init__(self, config: AutoencoderConfig, accelerator: Accelerator, *, seed: int) -> None:
        self.config, self.accelerator, self.seed, self.step = config, accelerator, seed, 0
        torch.manual_seed(seed)  # important: weights are initialised from the global generator; called from main only
        self.vae = build_autoencoder(config)
        critic = PatchDiscriminator()
        self.model, self.critic = accelerator.prepare(Reconstruct(self.vae), critic)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=config.learning_rate, weight_decay=0.01)
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
        side = config.image_size // 2 ** (len(config.block_out_channels) - 1)
        noise = torch.randn((len(chosen), config.latent_channels, side, side), generator=generator)
        for optimiser, rate in ((self.optimiser, 1.0), (self.critic_optimiser, 0.5)):
            optimiser.param_groups[0]["lr"] = rate * self.learning_rate()
        with self.accelerator.autocast():
            output, kl = self.model(target, noise.to(target.device))
        output = output.float()
        pixel = (output - target).abs().mean()
        loss = pixel + config.gradient_weight * gradient_loss(reconstructed=output, target=target)
        loss = loss + config.kl_weight * kl.float().mean()
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


def fit(trainer: Trainer, images: np.ndarray, folder: Path) -> None:
    """Train to the configured number of steps, going on from the last checkpoint; history is kept in it."""
    history: list[dict[str, float]] = []
    if state := load_checkpoint(folder / CHECKPOINT):
        trainer.load(state)
        history = state["history"]
    accelerator, config, begun = trainer.accelerator, trainer.config, time.monotonic()
    before = history[-1]["seconds"] if history else 0.0
    bar = tqdm(total=config.steps, initial=trainer.step, desc="autoencoder", disable=not accelerator.is_main_process)
    while trainer.step < config.steps:
        losses = trainer.train_step(images)
        bar.update()
        if trainer.step % 20 == 0 or trainer.step == config.steps:
            seconds = before + time.monotonic() - begun
            history.append({"step": trainer.step, **losses, "seconds": seconds})
            bar.set_postfix(losses)
            accelerator.log(losses, step=trainer.step)
        last = trainer.step == config.steps
        if accelerator.is_main_process and (trainer.step % config.checkpoint_every == 0 or last):
            save_checkpoint(folder / CHECKPOINT, step=trainer.step, history=history, **trainer.state())
    if accelerator.is_main_process:
        write_table(pd.DataFrame(history), folder / "history.parquet")


def finish(trainer: Trainer, cohort: Cohort, stage: Stage, *, cache: Path) -> None:
    """Set the latent scale, write the model, a sheet of reconstructions, provenance, and the stamp."""
    vae, config = trainer.vae.eval(), trainer.config
    frames = {name: cohort.split(name) for name in ("train", "val")}
    images = {name: load_images(cohort.image_paths(frame), config.image_size, cache=cache)
              for name, frame in frames.items()}
    vae.register_to_config(scaling_factor=latent_scale(vae, images["train"][:512]))
    vae.save_pretrained(stage.folder / "model")
    sample = images["val"][:200]
    again = reconstruct(vae, sample)
    pairs = [image for pair in zip(sample[:12], again[:12], strict=True) for image in pair]
    contact_sheet(pairs, ["real", "reconstructed"] * (len(pairs) // 2), columns=8).save(stage.folder / "samples.png")
    write_patients(stage.folder, frames["train"]["patient_id"], salt=cohort.salt)
    score = psnr(reconstructed=again, target=sample)
    log.info("autoencoder: %.2f dB on %d validation images", score, len(sample))
    seconds = pd.read_parquet(stage.folder / "history.parquet")["seconds"].max()
    stage.finish(outputs=["model", "history.parquet", "patients.parquet"], seconds=float(seconds),
                 counts={"train_images": len(images["train"]), "steps": trainer.step},
                 extra={"processes": trainer.accelerator.num_processes, "psnr_db": score, "psnr_images": len(sample),
                        "scaling_factor": vae.config.scaling_factor})
    (stage.folder / CHECKPOINT).unlink(missing_ok=True)


def main() -> None:
    """Train the autoencoder of RUN, or go on where it stopped."""
    options = parse("autoencoder", AutoencoderConfig, doc=__doc__)
    run, config = options.run, options.section
    cohort = load_cohort(run.cohort_folder)
    settings = {key: value for key, value in asdict(config).items() if key != "checkpoint_every"}
    stage = Stage("autoencoder", run.folder / "autoencoder", inputs={"cohort": run.cohort_folder},
                  config={**settings, "seed": run.seed, "threads": run.threads})
    if options.dry_run:
        sys.stdout.write(stage.describe(train_images=len(cohort.split("train")), steps=config.steps) + "\n")
        return
    if stage.is_complete():
        log.info("autoencoder: complete, nothing to do")
        return
    accelerator = start_accelerator(run, stage.folder / "tensorboard", config.precision)
    if accelerator.is_main_process:
        stage.begin()
    accelerator.wait_for_everyone()
    accelerator.init_trackers("autoencoder")
    cache = run.folder / "cache"
    with accelerator.main_process_first():
        images = load_images(cohort.image_paths(cohort.split("train")), config.image_size, cache=cache)
    trainer = Trainer(config, accelerator, seed=run.seed)
    fit(trainer, images, stage.folder)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        finish(trainer, cohort, stage, cache=cache)
    accelerator.end_training()


if __name__ == "__main__":
    run_command(main)
