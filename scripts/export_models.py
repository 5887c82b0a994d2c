"""The trained generator and backbone of the phantom's site B, halved to float16 and put into ``models/`` with a card.

::

    python scripts/export_models.py

Reads ``phantom_generator``, its two further parts, ``phantom_decoder`` and ``phantom_backbone`` of ``runs/``, as
``scripts/make_models.sh`` makes them. Not promised: that a model halved is the model; the loss in a picture is below
one grey value.
"""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file

from classify.learning.models import CARD, save_weights
from cohort.errors import TailfillError, run_command
from cohort.pipeline import read_stamp
from cohort.stage import write_atomically
from synth.exporting.pipeline_folder import forget_origin

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("phantom_generator", "phantom_generator_more", "phantom_generator_scarce")
"""The runs in which the generator is trained, one after the other."""
DECODER = "phantom_decoder"
"""The run in which its decoder is trained on."""
LIMIT_BYTES = 16_000_000
"""Largest size of the generator: what a repository can carry without anybody noticing."""

GENERATOR_CARD = """---
license: apache-2.0
---

# A small generator of phantom radiographs

A text-to-image pipeline in Stable Diffusion's layout (autoencoder, U-Net, CLIP text encoder, tokenizer; diffusers,
safetensors, float16) for grey images of 128 x 128 pixels. It was trained from nothing on {images} procedural
radiographs of the phantom's site B, a referral centre (`python -m cohort.prepare phantom --site B`): no patient's image
was used, and nothing can be memorised that is not already public in this repository.

- **For**: the demo and the calibration of Tailfill, as the model that another hospital has shared. Prompts are those of
  `prompts/phrases.py`, for instance "Frontal chest radiograph of a 60-year-old man. Pneumoperitoneum."
- **Not for**: anything to do with patients.
- **Made by**: `scripts/make_models.sh`, with the configurations {made_by}.
- **Training**: autoencoder {ae_steps:,} steps in {ae_minutes:.0f} minutes, then its decoder {decoder_steps:,} in the
  eyes of `models/backbone` in {decoder_minutes:.0f}; U-Net and text encoder {steps} steps of {batch} images in
  {minutes} minutes, on two CPU cores beside other work.
- **Measured** on validation patients: autoencoder {psnr:.1f} dB ({psnr_images} images); denoising {loss}.
- **Parameters**: {parameters:.1f} million. **Licence**: Apache-2.0, as the code.
"""

BACKBONE_CARD = """---
license: apache-2.0
---

# A backbone for phantom radiographs

{model} on grey images of {size} x {size} pixels, trained on the head and medium findings of the phantom's site B
({images:,} procedural radiographs, no patient's image), as entrants pre-train on another hospital's labels. It has
never been shown a tail finding. `card.json` says how to feed it, `ema.safetensors` holds the weights in float16.

- **For**: `train.backbone` in `configs/demo.yaml` and `configs/phantom.yaml`.
- **Made by**: `scripts/make_models.sh`, configuration `configs/phantom_backbone.yaml`, commit {commit}.
- **Training**: {steps:,} steps of {batch} images in {minutes:.0f} minutes on two CPU cores.
- **Licence**: Apache-2.0, as the code.

Labels: {labels}.
"""


def stamp_of(folder: Path, stage: str) -> dict[str, Any]:
    """The stamp of a complete stage; raises ``TailfillError`` when there is none."""
    stamp = read_stamp(folder)
    if stamp is None:
        raise TailfillError(f"{folder}: the stage {stage} is not complete; run scripts/make_models.sh")
    return stamp


def made_by(stamp: dict[str, Any]) -> str:
    """The commit that a stage ran on, in ten digits; with ``-dirty`` where its code was not that commit's."""
    commit, _, dirty = (stamp["git_commit"] or "unknown").partition("-")
    return "-".join(filter(None, (commit[:10], dirty)))


def in_words(numbers: Sequence[float]) -> str:
    """``1,200, 3,400 and 500``."""
    *others, last = [f"{number:,.0f}" for number in numbers]
    return " and ".join(filter(None, (", ".join(others), last)))


def export_generator(runs: Sequence[Path], decoder: Path, target: Path) -> int:
    """Write the pipeline and its card; returns its size in bytes. Raises ``TailfillError`` above ``LIMIT_BYTES``.

    ``runs`` are those of the parts of its training in order, ``decoder`` that of its decoder, ``target`` is the folder
    to write.
    """
    encoded, decoded = (stamp_of(run / "autoencoder", "autoencoder") for run in (runs[0], decoder))
    if not decoded["config"].get("decoder_only"):
        raise TailfillError(f"{decoder}: its encoder was trained too; wanted: autoencoder.decoder_only, as the U-Net "
                            "has learnt the latents of the first one")
    parts = [stamp_of(run / "generator", "finetune") for run in runs]
    pipeline = StableDiffusionPipeline.from_pretrained(runs[-1] / "generator" / "pipeline", torch_dtype=torch.float16)
    pipeline.vae = AutoencoderKL.from_pretrained(decoder / "autoencoder" / "model", torch_dtype=torch.float16)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.save_pretrained(partial, safe_serialization=True)
    forget_origin(partial)
    size = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
    if size > LIMIT_BYTES:
        raise TailfillError(f"{partial}: {size:,} bytes; wanted: {LIMIT_BYTES:,} at most")
    networks = (pipeline.vae, pipeline.unet, pipeline.text_encoder)
    history = pd.read_parquet(runs[-1] / "generator" / "history.parquet").filter(like="val_")
    last = history.dropna(subset="val_loss").tail(1).melt().dropna()  # a group without images has no loss
    losses = ", ".join(f"{key.removeprefix('val_')} {loss:.4f}" for key, loss in
                       zip(last["variable"], last["value"], strict=True))
    card = GENERATOR_CARD.format(
        images=in_words([part["counts"]["train_images"] for part in (*parts, decoded)]),
        psnr=decoded["extra"]["psnr_db"],
        psnr_images=decoded["extra"]["psnr_images"], decoder_steps=decoded["config"]["steps"],
        decoder_minutes=decoded["seconds"] / 60, ae_steps=encoded["config"]["steps"],
        ae_minutes=encoded["seconds"] / 60, steps=in_words([part["config"]["steps"] for part in parts]),
        batch=parts[-1]["config"]["batch_size"], minutes=in_words([part["seconds"] / 60 for part in parts]),
        made_by=", ".join(f"`configs/{run.name}.yaml` (commit {made_by(part)})"
                          for run, part in zip([*runs, decoder], [*parts, decoded], strict=True)),
        loss=losses or "loss not recorded",
        parameters=sum(p.numel() for network in networks for p in network.parameters()) / 1e6,
    )
    write_atomically(partial / "README.md", card.encode())
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    return size


def export_backbone(trained: Path, target: Path) -> int:
    """Write weights, card and model card; returns its size in bytes."""
    stamp = stamp_of(trained, "train")
    content = json.loads((trained / CARD).read_text(encoding="utf-8"))
    save_weights({key: value.half() for key, value in load_file(trained / "ema.safetensors").items()},
                 target / "ema.safetensors")
    write_atomically(target / CARD, (trained / CARD).read_bytes())
    card = BACKBONE_CARD.format(
        model=content["model"], size=content["image_size"], images=stamp["counts"]["slots"],
        commit=made_by(stamp), steps=stamp["counts"]["steps"], batch=stamp["config"]["batch_size"],
        minutes=stamp["seconds"] / 60,
        labels=", ".join(content["labels"]),
    )
    write_atomically(target / "README.md", card.encode())
    return sum(file.stat().st_size for file in target.iterdir())


def main() -> None:
    """Export both."""
    runs, models = ROOT / "runs", ROOT / "models"
    for name, size in (
        ("generator", export_generator([runs / name for name in PARTS], runs / DECODER, models / "generator")),
        ("backbone", export_backbone(runs / "phantom_backbone" / "train" / "real" / "seed_2000", models / "backbone")),
    ):
        log.info("models/%s: %.1f MB", name, size / 1e6)


if __name__ == "__main__":
    run_command(main)
