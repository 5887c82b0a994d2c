"""What the generator is taught: latents of real images, and captions in the very words that the prompts use.

Images are encoded once. Each label vector has several phrasings, so that the text encoder learns findings rather than
sentences; images of scarce findings are drawn more often, but not without limit.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cohort.config import Run
from cohort.errors import TailfillError
from cohort.pixels import load_images
from cohort.stage import write_atomically
from cohort.tables import Cohort
from prompts.phrases import N_VARIANTS, fits, phrase
from synth.learning.denoiser import encode_moments, sample_latents


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """Latent moments, tokenised captions and drawing weights of one split's images."""

    frame: pd.DataFrame
    """The n images' rows of the cohort."""
    moments: np.ndarray
    """float16 (n, 2, c, h, w): mean and standard deviation of each image's latent."""
    tokens: torch.Tensor
    """int64 (n, variants, 77)."""
    weights: np.ndarray
    """float64 (n,), 1 or more."""
    common: np.ndarray
    """bool (n,): images without a scarce finding."""
    blank: torch.Tensor
    """int64 (77,): the empty caption."""
    vae: Any

    def draw(
        self, n: int, generator: torch.Generator, *, dropout: float, common: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scaled latents (n, c, h, w) float32 and tokens (n, 77) int64 of ``n`` images drawn by weight.

        ``common``: only images without a scarce finding, all of them equally often.
        """
        weights = self.common.astype(np.float64) if common else self.weights
        chosen = torch.multinomial(torch.from_numpy(weights), n, replacement=True, generator=generator)
        variant = torch.randint(self.tokens.shape[1], (n,), generator=generator)
        tokens = self.tokens[chosen, variant].clone()
        tokens[torch.rand(n, generator=generator) < dropout] = self.blank
        return sample_latents(self.moments[chosen.numpy()], vae=self.vae, generator=generator), tokens


def training_set(trainer: Any, cohort: Cohort, run: Run, folder: Path, *, split: str) -> TrainingSet:
    """Encode a split's images (once; kept in ``folder``) and tokenise their captions.

    ``trainer`` brings pipeline, config and accelerator. All ranks call this; the main one encodes. An image with more
    findings than a caption can name is left out rather than taught with some of them unsaid.
    """
    pipeline, config = trainer.pipeline, trainer.config
    frame = speakable(cohort.split(split), cohort.labels)
    kept = folder / f"latents_{split}.npy"
    if trainer.accelerator.is_main_process and not kept.is_file():
        size = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        images = load_images(cohort.image_paths(frame), size, cache=run.folder / "cache")
        buffer = io.BytesIO()
        np.save(buffer, encode_moments(pipeline.vae, images))
        write_atomically(kept, buffer.getvalue())
    trainer.accelerator.wait_for_everyone()
    texts = [text for row in captions(frame, cohort.labels) for text in row]
    tokens = tokenise(pipeline.tokenizer, texts)
    weights = sampling_weights(frame, cohort.labels, threshold=config.scarcity_threshold, cap=config.scarcity_cap)
    tokens = tokens.view(len(frame), N_VARIANTS, -1)
    return TrainingSet(frame=frame, moments=np.load(kept, mmap_mode="r"), tokens=tokens, weights=weights,
                       common=are_common(frame, cohort.labels, threshold=config.scarcity_threshold),
                       blank=tokenise(pipeline.tokenizer, [""])[0], vae=pipeline.vae)


def findings(frame: pd.DataFrame, labels: Sequence[str]) -> list[list[str]]:
    """The labels that each row is known to carry, in column order."""
    present = frame[list(labels)].eq(1).fillna(False).to_numpy(dtype=bool)
    return [[label for label, has in zip(labels, row, strict=True) if has] for row in present]


def speakable(frame: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """The rows whose findings fit into a caption, with a fresh index."""
    return frame[[fits(found) for found in findings(frame, labels)]].reset_index(drop=True)


def captions(frame: pd.DataFrame, labels: Sequence[str]) -> list[list[str]]:
    """For each row of a cohort's frame its ``N_VARIANTS`` captions; a null label is not mentioned."""
    out = []
    people = frame[["view", "age", "sex"]].itertuples(index=False)
    for found, (view, age, sex) in zip(findings(frame, labels), people, strict=True):
        out.append([
            phrase(found, view=None if pd.isna(view) else view, age=None if pd.isna(age) else float(age),
                   sex=None if pd.isna(sex) else sex, variant=variant)
            for variant in range(N_VARIANTS)
        ])
    return out


def tokenise(tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:
    """Texts -> int64 (n, 77), padded. Raises ``TailfillError`` for a text over the limit instead of cutting it."""
    limit = tokenizer.model_max_length
    ids = tokenizer(list(texts), padding="max_length", max_length=limit, truncation=False).input_ids
    for text, row in zip(texts, ids, strict=True):
        if len(row) > limit:
            raise TailfillError(f"caption '{text}' has {len(row)} tokens; wanted: {limit} or fewer")
    return torch.tensor(ids)


def sampling_weights(frame: pd.DataFrame, labels: Sequence[str], *, threshold: float, cap: float) -> np.ndarray:
    """How much more often than others each image is drawn, float64 (n,), from 1 to ``cap``.

    Repeat-factor weights (Gupta et al. 2019, LVIS, sec. 4): ``max over the image's labels of sqrt(threshold / f_c)``,
    at least 1, with ``f_c`` the share of images that carry the label; capped, so that a class with eight images is not
    learnt by heart.
    """
    present = frame[list(labels)].eq(1).fillna(False).to_numpy(dtype=np.float64)
    frequency = np.maximum(present.mean(axis=0), 1 / max(1, len(frame)))
    return np.clip((present * np.sqrt(threshold / frequency)).max(axis=1, initial=1.0), 1.0, cap)


def are_common(frame: pd.DataFrame, labels: Sequence[str], *, threshold: float) -> np.ndarray:
    """Which images carry no finding rarer than ``threshold``, bool (n,); whatever the cap of their weights."""
    return sampling_weights(frame, labels, threshold=threshold, cap=np.inf) == 1
