"""How the generator is doing while it learns: losses per group on unseen patients, and a sheet of images to look at."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from classify.learning.training import step_generator
from classify.sheets import contact_sheet
from cohort.tables import Cohort
from prompts.phrases import phrase
from synth.learning.denoiser import denoising_loss, sample_latents

MAX_IMAGES = 256
"""Validation images scored; chosen because the loss is noisy in timesteps rather than in images."""


def choose_images(present: np.ndarray, limit: int) -> np.ndarray:
    """Row numbers of at most ``limit`` images of a bool table (n, labels), those with the rarest labels first."""
    frequency = np.maximum(present.mean(axis=0), 1e-9)
    rarity = np.where(present, frequency, 1.0).min(axis=1)
    return np.sort(np.argsort(rarity, kind="stable")[:limit])


@torch.no_grad()
def validation_losses(trainer: Any, val: Any, cohort: Cohort) -> dict[str, float]:
    """Mean denoising loss over the same images, noise and evenly spread timesteps each time.

    Returns ``val_loss`` and ``val_head``, ``val_medium``, ``val_tail`` over the images that carry a label of the group;
    NaN where there are none.
    """
    present = val.frame[cohort.labels].eq(1).fillna(False).to_numpy(dtype=bool)
    rows = choose_images(present, MAX_IMAGES)
    generator = step_generator(trainer.seed, 2**31)
    clean = sample_latents(val.moments[rows], vae=trainer.pipeline.vae, generator=generator)
    noise = torch.randn(clean.shape, generator=generator)
    total = trainer.scheduler.config.num_train_timesteps
    timesteps = torch.linspace(0, total - 1, len(rows)).long()[torch.randperm(len(rows), generator=generator)]
    losses, device = [], trainer.accelerator.device
    for start in range(0, len(rows), 32):
        part = slice(start, start + 32)
        tokens = val.tokens[torch.from_numpy(rows[part]), 0]
        with trainer.accelerator.autocast():
            loss = denoising_loss(
                trainer.accelerator.unwrap_model(trainer.model), trainer.scheduler, clean=clean[part].to(device),
                noise=noise[part].to(device), timesteps=timesteps[part].to(device), tokens=tokens.to(device),
                snr_gamma=trainer.config.snr_gamma,
            )
        losses.append(loss.cpu().numpy())
    flat = np.concatenate(losses)
    out = {"val_loss": float(flat.mean())}
    for group in ("head", "medium", "tail"):
        columns = [cohort.labels.index(label) for label in cohort.in_group(group)]
        carries = present[rows][:, columns].any(axis=1)
        out[f"val_{group}"] = float(flat[carries].mean()) if carries.any() else float("nan")
    return out


@torch.no_grad()
def draw_sheet(pipeline: Any, cohort: Cohort, file: Path, *, seed: int, columns: int = 4) -> None:
    """Generate a few images of every tail label, of one common label and of nothing, and save them as a sheet."""
    wanted = [[label] for label in cohort.in_group("tail")][:4]
    wanted += [[label] for label in (cohort.in_group("head") + cohort.in_group("medium"))[:1]] + [[]]
    prompts = [phrase(found, view=view, age=60.0, sex="M", variant=0) for found in wanted
               for view in ("PA", "AP") for _ in range(columns // 2)]
    titles = [f"{', '.join(found) or 'nothing'} ({view})" for found in wanted
              for view in ("PA", "AP") for _ in range(columns // 2)]
    generators = [torch.Generator().manual_seed(seed * 1000 + index) for index in range(len(prompts))]
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(prompts, num_inference_steps=25, guidance_scale=2.5, generator=generators,
                      output_type="np").images
    grey = [(image.mean(axis=-1) * 255).round().astype(np.uint8) for image in images]
    sheet: Image.Image = contact_sheet(grey, titles, columns)
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file)
