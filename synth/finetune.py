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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft.utils import get_peft_model_state_dict
from tqdm import tqdm

from classify.learning.training import (
    CHECKPOINT,
    load_checkpoint,
    save_checkpoint,
    start_accelerator,
)
from cohort.config import Run, parse
from cohort.errors import TailfillError, run_command
from cohort.provenance import FILE, check_no_overlap, is_known, write_patients
from cohort.stage import Stage
from cohort.tables import Cohort, load_cohort, write_table
from synth.drawing.pipelines import owning_stage, resolve_pipeline, weights_hash
from synth.learning.fresh import build_pipeline
from synth.learning.training_set import TrainingSet, captions, speakable, training_set
from synth.learning.tuning import FinetuneConfig, Trainer
from synth.learning.validation import draw_sheet, validation_losses

log = logging.getLogger(__name__)


def load_pipeline(config: FinetuneConfig, run: Run, folder: Path | None, texts: list[str]) -> Any:
    """The pipeline in ``folder``, or one from nothing; raises ``TailfillError`` when it is of another family."""
    if folder is None:
        vae = AutoencoderKL.from_pretrained(run.folder / "autoencoder" / "model")
        return build_pipeline(config.fresh, vae, texts)
    try:
        return StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True, safety_checker=None,
                                                       requires_safety_checker=False, torch_dtype=torch.float32)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise TailfillError(f"finetune.pipeline: {config.pipeline} cannot be loaded as a Stable Diffusion pipeline: "
                            f"{error}") from error


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


def finish(trainer: Trainer, n_images: int, cohort: Cohort, stage: Stage, parents: list[Path]) -> None:
    """Write the pipeline with its averaged weights, provenance and the stamp. ``parents``: stages it started from."""
    pipeline, config = trainer.pipeline, trainer.config
    trainer.ema.copy_to(trainer.parameters)
    outputs = ["pipeline", "history.parquet", FILE]
    if config.uses_lora:
        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(trainer.unet))
        StableDiffusionPipeline.save_lora_weights(stage.folder / "lora", unet_lora_layers=layers)
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
        outputs.append("lora")
    pipeline.to("cpu").save_pretrained(stage.folder / "pipeline", safe_serialization=True)
    write_patients(stage.folder, cohort.split("train")["patient_id"], salt=cohort.salt, inherited=parents)
    seconds = float(pd.read_parquet(stage.folder / "history.parquet")["seconds"].max())
    left_out = len(cohort.split("train")) - n_images
    stage.finish(
        outputs=outputs, seconds=seconds,
        counts={"train_images": n_images, "too_many_findings": left_out, "steps": trainer.step},
        extra={"provenance": "known" if parents and all(is_known(parent, cohort) for parent in parents) else "unknown",
               "processes": trainer.accelerator.num_processes,
               "parameters": sum(p.numel() for p in trainer.unet.parameters()),
               "images_per_second": round(trainer.step * config.batch_size / max(seconds, 1e-9), 1)},
    )
    for served in (CHECKPOINT, "latents_train.npy", "latents_val.npy"):
        (stage.folder / served).unlink(missing_ok=True)


def find_parents(run: Run, folder: Path | None) -> list[Path]:
    """The stages whose weights training starts from and that say whose images they have seen."""
    owner = run.folder / "autoencoder" if folder is None else owning_stage(folder)
    return [owner] if owner is not None and (owner / FILE).is_file() else []


def open_stage(config: FinetuneConfig, run: Run, folder: Path | None) -> Stage:
    """The stage; what identifies a pipeline to start from is its weights, not where they lie."""
    inputs = {"cohort": run.cohort_folder}
    unimportant = {"pipeline", "revision", "validate_every", "checkpoint_every"}
    settings: dict[str, Any] = {key: value for key, value in asdict(config).items() if key not in unimportant}
    if folder is None:
        inputs["autoencoder"] = run.folder / "autoencoder"
    else:
        settings["weights"] = weights_hash(folder)
    return Stage("finetune", run.folder / "generator", inputs=inputs,
                 config={**settings, "seed": run.seed, "threads": run.threads})


def main() -> None:
    """Train the generator of RUN, or go on where it stopped."""
    options = parse("finetune", FinetuneConfig, doc=__doc__)
    run, config = options.run, options.section
    cohort = load_cohort(run.cohort_folder)
    folder = resolve_pipeline(config.pipeline, config.revision) if config.pipeline else None
    stage = open_stage(config, run, folder)
    if options.dry_run:
        sys.stdout.write(stage.describe(train_images=len(cohort.split("train")), steps=config.steps) + "\n")
        return
    if stage.is_complete():
        log.info("finetune: complete, nothing to do")
        return
    parents = find_parents(run, folder)
    for parent in parents:
        check_no_overlap(parent, cohort)
    accelerator = start_accelerator(run, stage.folder / "tensorboard", config.precision)
    if accelerator.is_main_process:
        stage.begin()
    accelerator.wait_for_everyone()
    accelerator.init_trackers("finetune")
    texts = [text for row in captions(speakable(cohort.split("train"), cohort.labels), cohort.labels) for text in row]
    torch.manual_seed(run.seed)  # important: weights and adapters are drawn from the global generator; from main only
    pipeline = load_pipeline(config, run, folder, texts)
    trainer = Trainer(config, pipeline, accelerator, seed=run.seed)
    sets = {split: training_set(trainer, cohort, run, stage.folder, split=split) for split in ("train", "val")}
    fit(trainer, sets, cohort, stage.folder)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        finish(trainer, len(sets["train"].frame), cohort, stage, parents)
    accelerator.end_training()


if __name__ == "__main__":
    run_command(main)
