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
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from classify.sheets import contact_sheet
from cohort.config import parse
from cohort.errors import TailfillError, run_command
from cohort.pixels import load_images
from cohort.provenance import write_patients
from cohort.stage import Stage
from cohort.tables import Cohort, load_cohort, write_table
from synth.training import load_checkpoint, save_checkpoint, start_accelerator, step_generator

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
    """Steps between checkpoints."""


class Reconstruct(nn.Module):
    """Encode, sample with the given noise, decode; one ``forward`` so that data-parallel training wraps it whole."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Images (n, 1, h, w) in [-1, 1] and noise (n, c, h/f, w/f) -> reconstruction and KL per image (n,)."""
        posterior = self.vae.encode(images).latent_dist
        latents = posterior.mean + posterior.std * noise
        return self.vae.decode(latents).sample, posterior.kl()


class PatchDiscriminator(nn.Module):
    """Real or reconstructed, per patch (Isola et al. 2017): logits (n, 1, h/8, w/8) for images (n, 1, h, w)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for channels in (width, 2 * width):
            layers += [nn.Conv2d(channels, 2 * channels, 4, 2, 1), nn.GroupNorm(8, 2 * channels), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(4 * width, 1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return self.layers(images)


def build_autoencoder(config: AutoencoderConfig) -> AutoencoderKL:
    """An untrained ``AutoencoderKL``, one channel in and out. Raises ``TailfillError`` for sizes that do not fit."""
    levels = len(config.block_out_channels)
    if config.image_size % 2 ** (levels - 1):
        raise TailfillError(f"autoencoder.image_size is {config.image_size}; wanted: a multiple of {2 ** (levels - 1)}")
    if any(channels % 8 for channels in config.block_out_channels):
        raise TailfillError(f"autoencoder.block_out_channels is {config.block_out_channels}; wanted: multiples of 8")
    return AutoencoderKL(
        in_channels=1, out_channels=1, latent_channels=config.latent_channels, norm_num_groups=8,
        block_out_channels=config.block_out_channels, layers_per_block=config.layers_per_block,
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        sample_size=config.image_size, mid_block_add_attention=False,
    )


def to_signed(images: np.ndarray) -> Tensor:
    """uint8 (n, h, w) -> float32 (n, 1, h, w) in [-1, 1], the range that diffusers' autoencoders expect."""
    return torch.tensor(images, dtype=torch.float32)[:, None] / 127.5 - 1


def to_grey(images: Tensor) -> np.ndarray:
    """Float (n, c, h, w) in [-1, 1], any number of channels -> uint8 (n, h, w)."""
    grey = images.detach().float().mean(1).clamp(-1, 1)
    return ((grey + 1) * 127.5).round().byte().cpu().numpy()


def gradient_loss(*, reconstructed: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of horizontal and vertical image gradients, at full and half resolution."""
    total = reconstructed.new_zeros(())
    for factor in (1, 2):
        a, b = (F.avg_pool2d(x, factor) if factor > 1 else x for x in (reconstructed, target))
        for axis in (2, 3):
            total = total + (a.diff(dim=axis) - b.diff(dim=axis)).abs().mean()
    return total


def adaptive_weight(reconstruction_loss: Tensor, adversarial_loss: Tensor, last_layer: Tensor) -> Tensor:
    """VQGAN's balance (Esser et al. 2021, eq. 7): ratio of the two gradients' norms at the decoder's last layer."""
    ours, theirs = (torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm()
                    for loss in (reconstruction_loss, adversarial_loss))
    return (ours / (theirs + 1e-4)).clamp(0, 1e4).detach()


def psnr(*, reconstructed: np.ndarray, target: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB over a set of uint8 images of equal shape."""
    error = np.square(reconstructed.astype(np.float64) - target.astype(np.float64)).mean()
    return float(10 * np.log10(255**2 / error)) if error > 0 else float("inf")


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: np.ndarray, *, batch_size: int = 32) -> np.ndarray:
    """uint8 (n, h, w) -> uint8 (n, h, w) through the latent's mean."""
    device = next(vae.parameters()).device
    batches = [images[start:start + batch_size] for start in range(0, len(images), batch_size)]
    return np.concatenate([to_grey(vae.decode(vae.encode(to_signed(batch).to(device)).latent_dist.mode()).sample)
                           for batch in batches])


@torch.no_grad()
def latent_scale(vae: AutoencoderKL, images: np.ndarray, *, batch_size: int = 32) -> float:
    """1 / standard deviation of the latents of uint8 images (n, h, w): LDM's scale (Rombach et al. 2022, app. G)."""
    device = next(vae.parameters()).device
    latents = [vae.encode(to_signed(images[start:start + batch_size]).to(device)).latent_dist.mode()
               for start in range(0, len(images), batch_size)]
    return float(1 / torch.cat(latents).std())


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
        config, world = self.config, self.accelerator.num_processes
        generator = step_generator(self.seed, self.step, rank=self.accelerator.process_index)
        chosen = torch.randint(len(images), (max(1, config.batch_size // world),), generator=generator).numpy()
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
    if state := load_checkpoint(folder):
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
        if accelerator.is_main_process and trainer.step % config.checkpoint_every == 0:
            save_checkpoint(folder, step=trainer.step, history=history, **trainer.state())
    if accelerator.is_main_process:
        save_checkpoint(folder, step=trainer.step, history=history, **trainer.state())
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
                 extra={"psnr_db": score, "psnr_images": len(sample), "scaling_factor": vae.config.scaling_factor})


def main() -> None:
    """Train the autoencoder of RUN, or go on where it stopped."""
    options = parse("autoencoder", AutoencoderConfig, doc=__doc__)
    run, config = options.run, options.section
    cohort = load_cohort(run.cohort_folder)
    stage = Stage("autoencoder", run.folder / "autoencoder", inputs={"cohort": run.cohort_folder},
                  config={**asdict(config), "seed": run.seed, "threads": run.threads})
    if options.dry_run:
        sys.stdout.write(stage.describe(train_images=len(cohort.split("train")), steps=config.steps) + "\n")
        return
    if stage.is_complete():
        log.info("autoencoder: complete, nothing to do")
        return
    build_autoencoder(config)
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
