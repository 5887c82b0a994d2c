"""Teach a text-to-image diffusion pipeline what radiographs look like, or train a small one from nothing.

With ``finetune.pipeline`` a Stable-Diffusion-family pipeline (path or hub id) is fine-tuned, whole (``full``) or by
low-rank adapters (``lora``, Hu et al. 2021); without it, a miniature of the same layout is built around the
``autoencoder`` stage. Either way the result is an ordinary diffusers folder, ``RUN/generator/pipeline``; an adapter is
merged into it and kept beside it in ``lora/``. Captions are the real images' labels in the words of the prompts;
images of scarce findings are drawn more often. Interrupted, the same command goes on from the last checkpoint.

What it does not promise: a choice of the best step. The final averaged weights are written.

    accelerate launch synth/finetune.py --config configs/nih128.yaml
"""

import logging
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline
from diffusers.training_utils import EMAModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from tqdm import tqdm

from classify.training import CHECKPOINT, load_checkpoint, save_checkpoint, start_accelerator, step_generator
from cohort.config import Run, hub_or_path, parse
from cohort.errors import TailfillError, run_command
from cohort.provenance import FILE, check_no_overlap, write_patients
from cohort.stage import Stage, require
from cohort.tables import Cohort, load_cohort, write_table
from synth.learning.denoiser import Denoiser, denoising_loss
from synth.learning.fresh import FreshConfig, build_pipeline
from synth.learning.training_set import TrainingSet, captions, speakable, training_set
from synth.learning.validation import draw_sheet, validation_losses

log = logging.getLogger(__name__)

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
    """``no``, ``bf16`` or ``fp16`` (autocast)."""
    validate_every: int = 500
    """Steps between validation losses and contact sheets."""
    checkpoint_every: int = 250
    """Steps between checkpoints."""


def load_pipeline(config: FinetuneConfig, run: Run, texts: list[str]) -> Any:
    """The pipeline to train; raises ``TailfillError`` when it cannot be had or is of another family."""
    if config.pipeline is None:
        require(run.folder / "autoencoder", "autoencoder")
        vae = AutoencoderKL.from_pretrained(run.folder / "autoencoder" / "model")
        torch.manual_seed(run.seed)  # important: weights are initialised from the global generator; from main only
        return build_pipeline(config.fresh, vae, texts)
    try:
        return StableDiffusionPipeline.from_pretrained(config.pipeline, revision=config.revision, use_safetensors=True,
                                                       safety_checker=None, requires_safety_checker=False)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise TailfillError(f"finetune.pipeline: {config.pipeline} cannot be loaded as a Stable Diffusion pipeline "
                            f"from safetensors: {error}") from error


class Trainer:
    """One fine-tuning run: the pipeline, what of it learns, and how far it has come."""

    def __init__(self, config: FinetuneConfig, pipeline: Any, accelerator: Accelerator, *, seed: int) -> None:
        self.config, self.pipeline, self.accelerator, self.seed, self.step = config, pipeline, accelerator, seed, 0
        self.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.unet, self.text_encoder = pipeline.unet, pipeline.text_encoder
        for part in (pipeline.vae, self.unet, self.text_encoder):
            part.requires_grad_(False)
        if config.mode == "lora" and config.pipeline:
            self.unet.add_adapter(LoraConfig(r=config.lora_rank, lora_alpha=config.lora_rank,
                                             target_modules=LORA_TARGETS))
        else:
            self.unet.requires_grad_(True)
            self.text_encoder.requires_grad_(config.train_text_encoder or config.pipeline is None)
        if accelerator.device.type == "cpu":
            self.unet.to(memory_format=torch.channels_last)
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
        self.step = state["step"]

    def train_step(self, data: TrainingSet) -> float:
        """One optimiser step; returns this rank's mean loss."""
        config, total = self.config, 0.0
        share = max(1, config.batch_size // (self.accelerator.num_processes * config.gradient_accumulation))
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
        return total


def fit(trainer: Trainer, sets: dict[str, TrainingSet], cohort: Cohort, folder: Path) -> None:
    """Train to the configured number of steps, going on from the last checkpoint; history is kept in it."""
    history: list[dict[str, float]] = []
    if state := load_checkpoint(folder / CHECKPOINT):
        trainer.load(state)
        history = state["history"]
    accelerator, config, begun = trainer.accelerator, trainer.config, time.monotonic()
    before = history[-1]["seconds"] if history else 0.0
    main, losses = accelerator.is_main_process, []
    bar = tqdm(total=config.steps, initial=trainer.step, desc="finetune", disable=not main)
    while trainer.step < config.steps:
        losses.append(trainer.train_step(sets["train"]))
        bar.update()
        last = trainer.step == config.steps
        if trainer.step % 25 == 0 or last:
            entry = {"step": trainer.step, "loss": float(np.mean(losses)),
                     "seconds": before + time.monotonic() - begun}
            losses.clear()
            if main and (trainer.step % config.validate_every == 0 or last):
                entry |= validate(trainer, sets["val"], cohort, folder)
            history.append(entry)
            bar.set_postfix(loss=entry["loss"])
            accelerator.log({key: value for key, value in entry.items() if key != "step"}, step=trainer.step)
        if main and (trainer.step % config.checkpoint_every == 0 or last):
            save_checkpoint(folder / CHECKPOINT, step=trainer.step, history=history, **trainer.state())
    if main:
        write_table(pd.DataFrame(history), folder / "history.parquet")


def validate(trainer: Trainer, val: TrainingSet, cohort: Cohort, folder: Path) -> dict[str, float]:
    """Losses of the averaged weights per group on the validation split, and a sheet of generated images."""
    trainer.ema.store(trainer.parameters)
    trainer.ema.copy_to(trainer.parameters)
    try:
        losses = validation_losses(trainer, val, cohort)
        draw_sheet(trainer.pipeline, cohort, folder / "validation" / f"step_{trainer.step:06d}.png", seed=trainer.seed)
    finally:
        trainer.ema.restore(trainer.parameters)
    return losses


def finish(trainer: Trainer, n_images: int, cohort: Cohort, run: Run, stage: Stage) -> None:
    """Write the pipeline with its averaged weights, provenance and the stamp."""
    pipeline, config = trainer.pipeline, trainer.config
    trainer.ema.copy_to(trainer.parameters)
    outputs = ["pipeline", "history.parquet", FILE]
    if config.mode == "lora" and config.pipeline:
        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(trainer.unet))
        StableDiffusionPipeline.save_lora_weights(stage.folder / "lora", unet_lora_layers=layers)
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
        outputs.append("lora")
    pipeline.to("cpu").save_pretrained(stage.folder / "pipeline", safe_serialization=True)
    sources = [source for source in parents(config, run) if (source / FILE).is_file()]
    write_patients(stage.folder, cohort.split("train")["patient_id"], salt=cohort.salt, inherited=sources)
    seconds = float(pd.read_parquet(stage.folder / "history.parquet")["seconds"].max())
    left_out = len(cohort.split("train")) - n_images
    stage.finish(
        outputs=outputs, seconds=seconds,
        counts={"train_images": n_images, "too_many_findings": left_out, "steps": trainer.step},
        extra={"provenance": "known" if config.pipeline is None or sources else "unknown",
               "parameters": sum(p.numel() for p in trainer.unet.parameters()),
               "images_per_second": round(trainer.step * config.batch_size / max(seconds, 1e-9), 1)},
    )
    for served in (CHECKPOINT, "latents_train.npy", "latents_val.npy"):
        (stage.folder / served).unlink(missing_ok=True)


def parents(config: FinetuneConfig, run: Run) -> list[Path]:
    """The stage folders whose weights this one starts from."""
    return [run.folder / "autoencoder"] if config.pipeline is None else [Path(config.pipeline).parent]


def check(config: FinetuneConfig, cohort: Cohort, run: Run) -> None:
    """Raise ``TailfillError`` for settings that cannot work, or a start that has seen test patients."""
    if config.mode not in ("full", "lora"):
        raise TailfillError(f"finetune.mode is '{config.mode}'; wanted: full or lora")
    if config.mode == "lora" and config.pipeline is None:
        raise TailfillError("finetune.mode is lora but finetune.pipeline is null; wanted: a pipeline to adapt")
    if config.lora_rank < 1 or not 0 <= config.caption_dropout < 1 or not 0 < config.ema_decay < 1:
        raise TailfillError("finetune: wanted lora_rank >= 1, caption_dropout in [0, 1), ema_decay in (0, 1); came "
                            f"{config.lora_rank}, {config.caption_dropout}, {config.ema_decay}")
    for source in parents(config, run):
        if (source / FILE).is_file():
            check_no_overlap(source, cohort)


def main() -> None:
    """Train the generator of RUN, or go on where it stopped."""
    options = parse("finetune", FinetuneConfig, doc=__doc__)
    run, config = options.run, options.section
    cohort = load_cohort(run.cohort_folder)
    inputs = {"cohort": run.cohort_folder} | ({} if config.pipeline else {"autoencoder": run.folder / "autoencoder"})
    stage = Stage("finetune", run.folder / "generator", inputs=inputs,
                  config={**asdict(config), "seed": run.seed, "threads": run.threads})
    if options.dry_run:
        sys.stdout.write(stage.describe(train_images=len(cohort.split("train")), steps=config.steps) + "\n")
        return
    if stage.is_complete():
        log.info("finetune: complete, nothing to do")
        return
    check(config, cohort, run)
    texts = [text for row in captions(speakable(cohort.split("train"), cohort.labels), cohort.labels) for text in row]
    pipeline = load_pipeline(config, run, texts)
    accelerator = start_accelerator(run, stage.folder / "tensorboard", config.precision)
    if accelerator.is_main_process:
        stage.begin()
    accelerator.wait_for_everyone()
    accelerator.init_trackers("finetune")
    trainer = Trainer(config, pipeline, accelerator, seed=run.seed)
    sets = {split: training_set(trainer, cohort, run, stage.folder, split=split) for split in ("train", "val")}
    fit(trainer, sets, cohort, stage.folder)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        finish(trainer, len(sets["train"].frame), cohort, run, stage)
    accelerator.end_training()


if __name__ == "__main__":
    run_command(main)
