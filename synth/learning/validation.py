"""How the generator is doing while it learns: losses per group on unseen patients, and a sheet of images to look at."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from classify.figures.sheets import contact_sheet
from classify.learning.training import step_generator
from cohort.tables import Cohort
from prompts.phrases import phrase
from synth.learning.denoiser import Batch, denoising_loss, sample_latents

MAX_IMAGES = 512
"""Validation images scored; chosen because it takes less time than a sheet of 28 images does, each of 50 passes."""

SHEET_VIEWS = ("PA", "PA", "AP", "AP")
"""The views of a sheet's columns."""
SHEET_STEPS, SHEET_GUIDANCE = 25, 2.5
"""How a sheet is drawn; chosen to be quick and to show what was asked for, not to look its best."""


def validated_labels(frame: pd.DataFrame, cohort: Cohort) -> pd.DataFrame:
    """Which labels the validation images that are scored carry: bool, a column per label, indexed by row number."""
    present = frame[cohort.labels].eq(1).fillna(False).to_numpy(dtype=bool)
    rows = choose_images(present, MAX_IMAGES)
    return pd.DataFrame(present[rows], index=rows, columns=cohort.labels)


def choose_images(present: np.ndarray, limit: int) -> np.ndarray:
    """Row numbers of at most ``limit`` images of a bool table (n, labels): each label's i-th before any one's i+1-th.

    So rare labels are scored on all their images, and common ones not only on those that carry a rare one besides.
    """
    place = np.where(present, present.cumsum(axis=0), np.inf).min(axis=1, initial=np.inf)
    return np.sort(np.argsort(place, kind="stable")[:limit])


@torch.no_grad()
def validation_losses(trainer: Any, val: Any, cohort: Cohort) -> dict[str, float]:
    """Mean denoising loss over the same images, noise and evenly spread timesteps each time.

    Returns ``val_loss`` and ``val_head``, ``val_medium``, ``val_tail`` over the images that carry a label of the group;
    NaN where there are none.
    """
    present = validated_labels(val.frame, cohort)
    rows = present.index.to_numpy()
    generator = step_generator(trainer.seed, 2**31)
    clean = sample_latents(val.moments[rows], vae=trainer.pipeline.vae, generator=generator)
    noise = torch.randn(clean.shape, generator=generator)
    total = trainer.scheduler.config.num_train_timesteps
    timesteps = torch.linspace(0, total - 1, len(rows)).long()[torch.randperm(len(rows), generator=generator)]
    batch = Batch(clean=clean, noise=noise, timesteps=timesteps, tokens=val.tokens[torch.tensor(rows), 0])
    model, losses = trainer.accelerator.unwrap_model(trainer.model), []
    for start in range(0, len(rows), 32):
        part = batch.rows(slice(start, start + 32), trainer.accelerator.device)
        with trainer.accelerator.autocast():
            losses.append(denoising_loss(model, trainer.scheduler, part, snr_gamma=trainer.config.snr_gamma).cpu())
    flat = torch.cat(losses).numpy()
    out = {"val_loss": float(flat.mean())}
    for group in ("head", "medium", "tail"):
        carries = present[cohort.in_group(group)].to_numpy().any(axis=1)
        out[f"val_{group}"] = float(flat[carries].mean()) if carries.any() else float("nan")
    return out


@torch.no_grad()
def draw_sheet(pipeline: Any, cohort: Cohort, file: Path, *, seed: int) -> None:
    """Save a sheet of generated images: a row for each of up to four tail labels, one medium, one head label, nothing.

    The noise is the same each time: what changes from sheet to sheet is what was learnt.
    """
    wanted = [(group, label) for group, most in (("tail", 4), ("medium", 1), ("head", 1))
              for label in cohort.in_group(group)[:most]] + [("", "")]
    pipeline.set_progress_bar_config(disable=True)
    images: list[np.ndarray] = []
    titles = []
    for group, label in wanted:
        prompts = [phrase([label] if label else [], view=view, age=60.0, sex="M", variant=0) for view in SHEET_VIEWS]
        titles += [f"{label} ({group}), {view}" if label else f"nothing, {view}" for view in SHEET_VIEWS]
        generators = [torch.Generator().manual_seed(seed * 1000 + len(images) + column)
                      for column in range(len(prompts))]
        drawn = pipeline(prompts, num_inference_steps=SHEET_STEPS, guidance_scale=SHEET_GUIDANCE,
                         generator=generators, output_type="np")
        images += [(image.mean(axis=-1) * 255).round().astype(np.uint8) for image in drawn.images]
    sheet: Image.Image = contact_sheet(images, titles, len(SHEET_VIEWS))
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file)
