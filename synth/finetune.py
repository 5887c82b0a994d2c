"""Teach a text-to-image diffusion pipeline what radiographs look like, or train a small one from nothing.

With ``finetune.pipeline`` a Stable-Diffusion-family pipeline (path or hub id) is fine-tuned, whole (``full``) or by
low-rank adapters (``lora``, Hu et al. 2021); without it, a miniature of the same layout is built around the
``autoencoder`` stage. Either way the result is an ordinary diffusers folder, ``RUN/generator/pipeline``; an adapter is
merged into it and kept beside it in ``lora/``. Captions are the real images' labels in the words of the prompts;
images of scarce findings are drawn more often, and ``prior_weight`` keeps what the pipeline knew of the others. Killed,
the same command goes on from the last checkpoint and ends at the same loss curve and weights, bit for bit on one device
type, number of processes and of threads. Written are the averaged weights of the last step, or with ``patience`` those
of the step with the lowest validation loss in the tail.

What it does not promise: bit-equal weights on CUDA, whose kernels may sum in another order; other families, which can
draw but not learn here.

    accelerate launch synth/finetune.py --config configs/nih128.yaml
"""

import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft.utils import get_peft_model_state_dict

from classify.learning.training import CHECKPOINT, start_accelerator
from cohort.config import Run, parse
from cohort.errors import TailfillError, run_command
from cohort.provenance import FILE, is_known, write_patients
from cohort.stage import Stage
from cohort.tables import Cohort, load_cohort
from synth.drawing.pipelines import owning_stage, resolve_pipeline, weights_hash
from synth.drawing.weights import load_network, load_networks
from synth.learning.fitting import HISTORY, Loop, Progress
from synth.learning.fresh import build_pipeline
from synth.learning.training_set import are_common, captions, speakable, training_set
from synth.learning.tuning import FinetuneConfig, Trainer
from synth.learning.validation import validated_labels

log = logging.getLogger(__name__)


def check_family(config: FinetuneConfig, folder: Path) -> None:
    """Raise ``TailfillError`` for a pipeline that is not Stable Diffusion's, before any weight is read."""
    kind = json.loads((folder / "model_index.json").read_text(encoding="utf-8")).get("_class_name")
    if kind != StableDiffusionPipeline.__name__:
        raise TailfillError(f"finetune.pipeline: {config.pipeline} is a {kind}; wanted: a StableDiffusionPipeline "
                            "(Stable Diffusion 1.x or 2.x); others can draw (generate.pipeline), but not learn here")


def check_images(config: FinetuneConfig, cohort: Cohort) -> None:
    """Raise ``TailfillError`` when the cohort lacks images that the settings need, before any work."""
    train, val = (speakable(cohort.split(split), cohort.labels) for split in ("train", "val"))
    for split, frame in (("train", train), ("val", val)):
        if frame.empty:
            raise TailfillError(f"finetune: the cohort has no image in its {split} split; wanted: one or more")
    tail = cohort.in_group("tail")
    if config.patience is not None and not validated_labels(val, cohort)[tail].to_numpy().any():
        raise TailfillError(f"finetune.patience is {config.patience}, but no validation image carries a finding of the "
                            f"tail ({', '.join(tail) or 'which is empty'}); wanted: null, or a cohort that has one")
    if config.prior_weight and not are_common(train, cohort.labels, threshold=config.scarcity_threshold).any():
        raise TailfillError(f"finetune.prior_weight is {config.prior_weight}, but every training image carries a "
                            f"finding rarer than scarcity_threshold {config.scarcity_threshold}; wanted: 0, or a lower "
                            "threshold")


def load_pipeline(config: FinetuneConfig, run: Run, folder: Path | None, texts: list[str]) -> Any:
    """The pipeline in ``folder``, or one from nothing; raises ``TailfillError`` when it is of another family."""
    own = run.folder / "autoencoder" / "model"
    if folder is None:
        return build_pipeline(config.fresh, AutoencoderKL.from_pretrained(own), texts)
    try:
        networks = load_networks(folder)
        if config.new_autoencoder:
            networks["vae"] = load_network(AutoencoderKL, own)
        return StableDiffusionPipeline.from_pretrained(
            folder, **networks, use_safetensors=True, safety_checker=None, requires_safety_checker=False)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise TailfillError(f"finetune.pipeline: {config.pipeline} cannot be loaded as a Stable Diffusion pipeline: "
                            f"{error}") from error


def finish(
    trainer: Trainer, progress: Progress, n_images: int, cohort: Cohort, stage: Stage, owners: list[Path | None]
) -> None:
    """Write the pipeline with its averaged weights, provenance and the stamp; it started from the stages ``owners``."""
    pipeline, config = trainer.pipeline, trainer.config
    parents = [owner for owner in owners if owner is not None and (owner / FILE).is_file()]
    trainer.ema.copy_to(trainer.parameters)
    outputs = ["pipeline", HISTORY, FILE]
    if config.uses_lora:
        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(trainer.unet))
        StableDiffusionPipeline.save_lora_weights(stage.folder / "lora", unet_lora_layers=layers)
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
        outputs.append("lora")
    pipeline.to("cpu").save_pretrained(stage.folder / "pipeline", safe_serialization=True)
    write_patients(stage.folder, cohort.split("train")["patient_id"], salt=cohort.salt, inherited=parents)
    rate = float(pd.DataFrame(progress.history)["images_per_second"].median())
    left_out = len(cohort.split("train")) - n_images
    over = progress.is_over(config.patience)
    ended = f"{config.patience} validations without a lower tail loss" if over else "all steps done"
    log.info("finetune: ended at step %d (%s), weights of step %d written; %.1f images/s, peak memory %.0f MiB",
             trainer.step, ended, progress.written_step, rate, progress.peak_memory_mib)
    stage.finish(
        outputs=outputs, seconds=progress.seconds,
        counts={"train_images": n_images, "too_many_findings": left_out, "steps": trainer.step},
        extra={"provenance": "known" if all(is_known(owner, cohort) for owner in owners) else "unknown",
               "processes": trainer.accelerator.num_processes,
               "parameters": sum(p.numel() for p in trainer.unet.parameters()),
               "ended": ended, "written_step": progress.written_step, "images_per_second": round(rate, 1),
               "peak_memory_mib": round(progress.peak_memory_mib)},
    )
    for served in (CHECKPOINT, "latents_train.npy", "latents_val.npy"):
        (stage.folder / served).unlink(missing_ok=True)


def find_owners(config: FinetuneConfig, run: Run, folder: Path | None) -> list[Path | None]:
    """The folders of the stages whose weights training starts from; None for weights that no stage has written."""
    own = [run.folder / "autoencoder"] if folder is None or config.new_autoencoder else []
    return [*own, *([owning_stage(folder)] if folder is not None else [])]


def open_stage(config: FinetuneConfig, run: Run, folder: Path | None) -> Stage:
    """The stage; what identifies a pipeline to start from is its weights, not where they lie."""
    inputs = {"cohort": run.cohort_folder}
    unimportant = {"pipeline", "revision", "checkpoint_every", "gradient_checkpointing"}
    if not config.new_autoencoder:
        unimportant.add("new_autoencoder")
    if config.patience is None:
        unimportant.add("validate_every")  # when it only shows how training goes
    settings: dict[str, Any] = {key: value for key, value in asdict(config).items() if key not in unimportant}
    if folder is None or config.new_autoencoder:
        inputs["autoencoder"] = run.folder / "autoencoder"
    if folder is not None:
        settings["weights"] = weights_hash(folder)
    return Stage("finetune", run.folder / "generator", inputs=inputs,
                 config={**settings, "seed": run.seed, "threads": run.threads})


def main() -> None:
    """Train the generator of RUN, or go on where it stopped."""
    options = parse("finetune", FinetuneConfig, doc=__doc__)
    run, config = options.run, options.section
    cohort = load_cohort(run.cohort_folder)
    folder = resolve_pipeline(config.pipeline, config.revision) if config.pipeline else None
    if folder is not None:
        check_family(config, folder)
    stage = open_stage(config, run, folder)
    if options.dry_run:
        sys.stdout.write(stage.describe(train_images=len(cohort.split("train")), steps=config.steps) + "\n")
        return
    if stage.is_complete():
        log.info("finetune: complete, nothing to do")
        return
    check_images(config, cohort)
    owners = find_owners(config, run, folder)
    for owner in owners:
        is_known(owner, cohort)  # raises where it has learnt from test patients
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
    progress = Loop(trainer, sets, cohort, stage.folder).run()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        finish(trainer, progress, len(sets["train"].frame), cohort, stage, owners)
    accelerator.end_training()


if __name__ == "__main__":
    run_command(main)
