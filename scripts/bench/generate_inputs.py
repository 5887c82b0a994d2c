"""What the comparison of ``generate.py`` draws, and what it is held against."""

from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from cohort.phantom.cases import draw_cases
from cohort.phantom.radiograph import render
from cohort.phantom.settings import PhantomConfig
from prompts.phrases import fits, negative_prompt, phrase
from synth.drawing.sampling import Row
from synth.learning.fresh import train_tokenizer

SITE: Final = "B"
"""The hospital whose radiographs ``models/generator`` has learnt."""
PROMPT_SEED, REAL_SEED = 71, 72
"""Of people whom neither the generator (seed 100) nor the other set knows."""


def plan_rows(n: int) -> list[Row]:
    """Rows with the findings and patients of ``n`` cases, in the frequencies of the hospital."""
    rows: list[Row] = []
    config = PhantomConfig(site=SITE, seed=PROMPT_SEED, images=4 * n)
    for number, case in enumerate(draw_cases(config)):
        found = [label for label, present in zip(config.labels, case.labels, strict=True) if present]
        if fits(found) and len(rows) < n:
            exam = case.exam
            text = phrase(found, view=exam.view, age=exam.age, sex=exam.patient.sex, variant=number)
            rows.append(Row(sample_id=f"{number * 73 % 256:02x}{number:014x}", prompt=text,
                            negative_prompt=negative_prompt(), seed=1000 + number))
    return rows


def real_images(n: int, size: int) -> np.ndarray:
    """Radiographs of ``n`` people's exams, uint8 (n, size, size)."""
    cases = islice(draw_cases(PhantomConfig(site=SITE, seed=REAL_SEED, images=n)), n)
    return np.stack([render(case.exam, size) for case in cases])


def save_random_sd15(folder: Path, texts: list[str]) -> None:
    """A pipeline of Stable Diffusion 1.5's sizes (Rombach et al. 2022) with random weights, 512 px, 4 GB."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(texts, vocabulary=800)
    text = CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=768, intermediate_size=3072, projection_dim=768,
                          num_hidden_layers=12, num_attention_heads=12, bos_token_id=tokenizer.bos_token_id,
                          eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)  # diffusers' defaults are its other sizes
    vae = AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
                        sample_size=512, down_block_types=("DownEncoderBlock2D",) * 4,
                        up_block_types=("UpDecoderBlock2D",) * 4)
    StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet, safety_checker=None,
        scheduler=PNDMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
                                skip_prk_steps=True, steps_offset=1),
        feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)
