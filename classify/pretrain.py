"""Teach a backbone the cohort's training images without their labels, for ``train.backbone`` to start from.

What is scarce in a long tail is labels of rare findings, not radiographs; so a backbone may first learn what chests
have in common, and where they differ, from all training images alike (VICReg, classify/learning/vicreg.py). The folder
looks like that of ``train``: ``ema.safetensors``, a card without labels, and the patients it has learnt from, so that a
later test split which holds one of them is refused. Killed at any moment, the same command goes on and ends at the same
bits, as ``train`` does. Validation and test images are not read.
Not promised: that it helps. It costs as much as a training and needs thousands of steps; judge it on validation.

    accelerate launch classify/pretrain.py --config C
    scripts/experiment.py C --train.backbone RUN/pretrain
"""

import logging
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from classify.learning.fitting import Learner, Recipe, fit, stream
from classify.learning.models import CARD, Card, require_model, save_card, save_weights
from classify.learning.settings import check_pretrained
from classify.learning.start import WEIGHTS_FILE
from classify.learning.training import CHECKPOINT, check_precision, share_batch, start_accelerator
from classify.learning.vicreg import TwoViews, feed_views, vicreg
from classify.slots import Slots, grey_statistics
from cohort.config import Run, parse, path, require_values
from cohort.errors import run_command
from cohort.pixels import load_images
from cohort.provenance import FILE, check_no_overlap, write_patients
from cohort.stage import Stage
from cohort.tables import Cohort, load_cohort, write_table

log = logging.getLogger(__name__)

STREAM = 4
"""Sets its draws apart from those of any arm: the entropy of ``train`` is (seed, arm's seed)."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """How a backbone is taught without labels."""

    model: str = "convnext_femto"
    """Any timm model's name; that of ``train.model``."""
    pretrained: bool | str = path(False)
    """Weights to start from, as ``train.pretrained``; false: from nothing."""
    image_size: int = 128
    """Height and width of the input, px, 32 or more; that of ``train.image_size``."""
    steps: int = 4000
    """Optimiser steps, 1 or more."""
    batch_size: int = 64
    """Images per step, two views each, over all processes together; 2 or more per process."""
    lr: float = 1e-3
    """AdamW's highest learning rate, above 0."""
    weight_decay: float = 0.05
    """AdamW's weight decay, not applied to biases and norms; 0 or more."""
    warmup_share: float = 0.05
    """Share of the steps in which the learning rate rises from 0; a cosine to 0 follows. 0 to below 1."""
    ema_decay: float = 0.99
    """Decay of the moving average of the weights per step, reached gradually; 0 to below 1."""
    grad_clip: float = 5.0
    """Largest norm of the gradient, above 0."""
    width: int = 1024
    """Dimensions of the expander and the embeddings, 2 or more; the paper's 8,192 gains little over it."""
    drop_path: float = 0.0
    """Stochastic depth, 0 to below 1."""
    precision: str = "no"
    """no (float32) or bf16 (autocast)."""
    checkpoint_every: int = 200
    """Steps between checkpoints; does not change the result. 1 or more."""

    def __post_init__(self) -> None:
        """Raise ``TailfillError`` for the first value out of range."""
        check_precision(self.precision, key="pretrain.precision")
        require_model(self.model)
        check_pretrained(self.pretrained, model=self.model, key="pretrain.pretrained")
        require_values("pretrain", image_size=(self.image_size, self.image_size >= 32, "32 or more"),
                       batch_size=(self.batch_size, self.batch_size >= 2, "2 or more"),
                       width=(self.width, self.width >= 2, "2 or more"),
                       weight_decay=(self.weight_decay, self.weight_decay >= 0, "0 or more"),
                       **{key: (getattr(self, key), getattr(self, key) >= 1, "1 or more")
                          for key in ("steps", "checkpoint_every")},
                       **{key: (getattr(self, key), getattr(self, key) > 0, "above 0") for key in ("lr", "grad_clip")},
                       **{key: (getattr(self, key), 0 <= getattr(self, key) < 1, "0 to below 1")
                          for key in ("warmup_share", "ema_decay", "drop_path")})


def pretrain_stage(run: Run, config: PretrainConfig) -> Stage:
    """The stage; its fingerprint holds the bytes of the weights that it starts from."""
    settings = {key: value for key, value in asdict(config).items() if key != "checkpoint_every"}
    inputs = {"cohort": run.cohort_folder}
    if isinstance(config.pretrained, str):
        inputs["pretrained"] = Path(config.pretrained)
    return Stage("pretrain", run.folder / "pretrain", inputs=inputs,
                 config={"seed": run.seed, **settings, "pretrained": bool(config.pretrained)})


def unlabelled_slots(cohort: Cohort, *, size: int, cache: Path, threads: int) -> Slots:
    """A slot for each training image, without labels."""
    frame = cohort.split("train")
    n = len(frame)
    return Slots(
        images=[load_images(cohort.image_paths(frame), size, cache, threads=threads)],
        index=np.arange(n, dtype=np.int64), targets=np.full((n, 1), np.nan, dtype=np.float32),
        weights=np.ones(n, dtype=np.float32), phase=np.ones(n, dtype=np.int64), added=np.zeros(n, dtype=bool),
    )


def recipe_of(run: Run, config: PretrainConfig) -> Recipe:
    """The settings of the training loop."""
    return Recipe(
        name="pretrain", seed=(run.seed, STREAM, 0), steps=config.steps, batch_size=config.batch_size, lr=config.lr,
        warmup_share=config.warmup_share, weight_decay=config.weight_decay, ema_decay=config.ema_decay,
        grad_clip=config.grad_clip, phase_2_share=0.0, checkpoint_every=config.checkpoint_every,
    )


def write_results(stage: Stage, learner: Learner, card: Card, *, n_images: int, known: bool) -> None:
    """The averaged backbone without its expander, card and history, then the stamp; the checkpoint has served."""
    averaged: TwoViews = learner.ema.module
    save_weights(averaged.network.state_dict(), stage.folder / WEIGHTS_FILE)
    save_card(card, stage.folder)
    history = pd.DataFrame(learner.history)
    write_table(history, stage.folder / "history.parquet")
    stage.finish(outputs=[WEIGHTS_FILE, CARD, FILE], counts={"steps": learner.step, "images": n_images}, extra={
        "images_per_second": float(history["images_per_second"].median()), "loss": float(history["loss"].iloc[-1]),
        "provenance": "this run" if known else "unknown"})
    (stage.folder / CHECKPOINT).unlink(missing_ok=True)


def pretrain(run: Run, config: PretrainConfig) -> None:
    """Train the backbone, unless that is done; called by every process."""
    stage = pretrain_stage(run, config)
    accelerator = start_accelerator(run, stage.folder, config.precision)
    share_batch(config.batch_size, accelerator.num_processes, key="pretrain.batch_size")
    complete = stage.is_complete()
    accelerator.wait_for_everyone()
    if complete:
        log.info("pretrain: complete, nothing to do")
        return
    cohort = load_cohort(run.cohort_folder)
    if accelerator.is_main_process:
        stage.begin()
        write_patients(stage.folder, cohort.split("train")["patient_id"], salt=cohort.salt)
        check_no_overlap(stage.folder, cohort)
    with accelerator.main_process_first():  # the first writes the cache of pixels, the others read it
        slots = unlabelled_slots(cohort, size=config.image_size, cache=run.folder / "cache", threads=run.threads)
    accelerator.init_trackers("tensorboard" if run.tracker == "tensorboard" else "tailfill")  # a folder; a project
    mean, std = grey_statistics(slots.images[0])
    card = Card(model=config.model, labels=(), image_size=config.image_size, mean=mean, std=std)
    recipe = recipe_of(run, config)
    torch.manual_seed(stream(recipe.seed, 0))  # timm draws initial weights from the global generator
    model = TwoViews(config.model, image_size=config.image_size, width=config.width, pretrained=config.pretrained,
                     drop_path=config.drop_path)
    learner = fit(model, slots, feed_views(card), vicreg, recipe=recipe, checkpoint=stage.folder / CHECKPOINT,
                  accelerator=accelerator)
    if accelerator.is_main_process:
        write_results(stage, learner, card, n_images=len(slots.index), known=not config.pretrained)
    accelerator.end_training()


def main() -> None:
    """The whole stage."""
    options = parse("pretrain", PretrainConfig, doc=__doc__)
    if options.dry_run:
        sys.stdout.write(pretrain_stage(options.run, options.section).describe(steps=options.section.steps) + "\n")
        return
    pretrain(options.run, options.section)


if __name__ == "__main__":
    run_command(main)
