"""Train one arm with one seed: equal optimiser steps, schedule, distortions and class weights in every arm.

What makes arms comparable is that nothing but the table of slots differs. Steps are counted, not epochs; the class
weights of the loss come from the real training images' known labels in every arm (`fold`, which is compared with none,
has those of the images that it learns from); the weights after the last step and their moving average (EMA) are what is
kept: there is no early stopping, which would look at the validation set once per arm. Seeds below 1000 start from one
shared model, the EMA weights of arm ``real`` with seed ``init_seed``, and train ``steps``; that start, and the filter's
critics, have seeds from 1000 on and train ``base_steps`` from nothing, or from a ``backbone`` with a new head. With
``head_only`` all but the head stays as the start has it, bit for bit, and the images' features are computed once. Arm
``crt`` throws its head away for the second phase and trains a new one alone, so with ``head_only`` nothing of its first
phase is left, and it is a head of class-balanced slots in fewer steps.

Killed at any moment, the same command goes on from its last checkpoint and ends with the same weights bit for bit, on
the same device type, number of processes and threads: order, distortions and dropout are functions of (seed, step).
The batch is the global one, and gradients are averaged over processes. Not promised: bit-equal weights on another
number of processes or threads, or on CUDA, where convolutions may sum in another order. ``history.parquet`` holds
measured speeds, so it is no part of the stage's hashed output.

    accelerate launch classify/train.py --config C --arm real --arm-seed 0
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from classify.arm import ArmConfig, arm_folder, check_arm, check_phases, pool_folders, write_arm
from classify.arms.rivals import ARMS
from classify.ensembling.members import member_config, split_name
from classify.learning.features import load_features
from classify.learning.fitting import Learner, Recipe, feed_features, feed_pixels, fit, stream
from classify.learning.heads import HEADS
from classify.learning.losses import LOSSES, best_constant
from classify.learning.models import CARD, Card, head_of, reset_head, save_card, save_weights
from classify.learning.settings import FIRST_EXTRA_SEED, TrainConfig
from classify.learning.start import Start, initial_model
from classify.learning.training import CHECKPOINT, probe_compiler, start_accelerator
from classify.slots import Pool, Slots, grey_statistics, label_matrix, load_pools, load_slots, prevalence
from cohort.config import Run, parse
from cohort.errors import TailfillError, run_command
from cohort.pipeline import read_stamp
from cohort.provenance import FILE, check_no_overlap, is_known, write_patients
from cohort.stage import Stage, verify
from cohort.tables import RECONSTRUCTED, Cohort, arm_schema, load_cohort, read_table, write_table

log = logging.getLogger(__name__)

RUNTIME = ("checkpoint_every", "gradient_accumulation", "compile")
"""Keys that are no part of what is trained: as the number of processes, they change how it is computed."""


def train_folder(run: Run, arm: str, seed: int) -> Path:
    """Where the weights of an arm and seed stand."""
    return run.folder / "train" / arm / f"seed_{seed}"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One arm, one seed: where it reads and writes, and which of the settings apply to it."""

    run: Run
    config: TrainConfig
    arm: str
    seed: int
    member: str = ""
    """Which member of the arm's ensemble, whose keys ``config`` has; empty: there is one model."""

    def folder_of(self, arm: str, seed: int) -> Path:
        """Where the weights of an arm and seed of this member stand."""
        return train_folder(self.run, f"{arm}@{self.member}" if self.member else arm, seed)

    @property
    def is_extra(self) -> bool:
        """Whether the seed is a critic's or the shared start's."""
        return self.seed >= FIRST_EXTRA_SEED

    @property
    def folder(self) -> Path:
        """Where the weights go."""
        return self.folder_of(self.arm, self.seed)

    @property
    def entropy(self) -> tuple[int, ...]:
        """What order, distortions and dropout are drawn from; equal for the arms of one seed."""
        return self.run.seed, self.seed

    @property
    def recipe(self) -> Recipe:
        """The settings of the training loop."""
        config = self.config
        return Recipe(
            name=f"train {self.arm}, seed {self.seed}", seed=self.entropy, batch_size=config.batch_size,
            steps=config.base_steps if self.is_extra else config.steps,
            lr=config.base_lr if self.is_extra else config.lr, warmup_share=config.warmup_share,
            weight_decay=config.weight_decay, ema_decay=config.ema_decay, grad_clip=config.grad_clip,
            phase_2_share=config.phase_2_share, checkpoint_every=config.checkpoint_every,
            min_real_share=config.min_real_share, gradient_accumulation=config.gradient_accumulation,
            compiles=config.compile and not self.trains_head_only,
            crt_lr=config.crt_lr if ARMS[self.arm].renews_head else None,
        )

    @property
    def start(self) -> Start | None:
        """Where the weights of step 0 stand; None: nowhere, they are random or timm's."""
        if not self.is_extra and self.config.init_seed is not None:
            return Start(folder=self.folder_of("real", self.config.init_seed), is_backbone=False)
        return Start(folder=Path(self.config.backbone), is_backbone=True) if self.config.backbone else None

    @property
    def trains_head_only(self) -> bool:
        """Whether all but the head is frozen; never where there is nothing to freeze."""
        return self.config.head_only and (self.start is not None or bool(self.config.pretrained))

    @property
    def pools(self) -> dict[str, Path]:
        """Folders of the tables, beside the cohort's, whose images the arm uses, by stage."""
        return pool_folders(self.run, self.arm)

    def stage(self) -> Stage:
        """The stage; raises ``TailfillError`` with the command to type when something it needs is missing."""
        check_phases(self.arm, phase_2_share=self.config.phase_2_share, steps=self.recipe.steps)
        other = ("steps", "lr", "init_seed") if self.is_extra else ("base_steps", "base_lr")
        unused = (*other, *RUNTIME, "backbone", *(() if self.trains_head_only else ("head_only",)),
                  *(() if ARMS[self.arm].renews_head else ("crt_lr",)),
                  *(("head",) if self.config.head == "linear" else ()))
        settings = {key: value for key, value in asdict(self.config).items() if key not in unused}
        settings["pretrained"] = bool(self.config.pretrained)
        inputs = {"cohort": self.run.cohort_folder, "arm": arm_folder(self.run, self.arm, self.seed)}
        if self.start is None and isinstance(self.config.pretrained, str):
            inputs["pretrained"] = Path(self.config.pretrained)
        if self.start is not None:
            if not self.start.is_backbone and read_stamp(self.start.folder) is None:
                raise TailfillError(f"{self.start.folder}: no complete training run to start from (train.init_seed); "
                                    "run: accelerate launch classify/train.py --config C "
                                    f"--arm {self.start.folder.parent.name} "
                                    f"--arm-seed {self.config.init_seed}")
            inputs |= self.start.inputs()
        inputs |= self.pools
        config = {"arm": self.arm, "arm_seed": self.seed, "seed": self.run.seed, **settings}
        return Stage("train", self.folder, config=config, inputs=inputs)


def make_card(job: Job, cohort: Cohort, slots: Slots, arm: pd.DataFrame) -> Card:
    """The card of the model to train; that of the start where there is one, after checking that it fits."""
    config = job.config
    if job.start is not None:
        return job.start.card(cohort.labels, model=config.model, image_size=config.image_size, head=config.head)
    mean, std = grey_statistics(slots.images[0], np.flatnonzero(is_held(cohort.split("train"), arm)))
    return Card(model=config.model, labels=tuple(cohort.labels), image_size=config.image_size, mean=mean, std=std,
                head=config.head)


def is_held(real: pd.DataFrame, arm: pd.DataFrame) -> np.ndarray:
    """Which of the images ``real`` an arm holds, as they are or reconstructed, bool (n,).

    Every arm but `fold` holds all of train, so that class weights, first bias and grey statistics are the same in all
    that are compared.
    """
    held: np.ndarray = real["image_id"].isin(arm["image_id"].str.removeprefix(RECONSTRUCTED)).to_numpy()
    return held


def shares_of(arm: pd.DataFrame, cohort: Cohort, splits: Sequence[str]) -> torch.Tensor:
    """Prevalence of each label among the real images of the ``splits`` that an arm holds, float32 (n_labels,)."""
    real = cohort.split(*splits)
    return torch.from_numpy(prevalence(label_matrix(real[is_held(real, arm)], cohort.labels)))


def prepare_patients(
    job: Job, cohort: Cohort, pools: Mapping[str, Pool], arm: pd.DataFrame, folder: Path
) -> None:
    """Write whose images this run learns from; raises ``TailfillError`` when a test patient is among them.

    A synthetic image counts for the patients that its generator learnt from, a real one for its own, and if it is
    reconstructed for those of the autoencoder too.
    """
    real = pd.concat([cohort.frame, *(pool.frame for name, pool in pools.items() if name != "filter")])
    used = real[real["image_id"].isin(arm["image_id"])]
    inherited = [job.start.folder] if job.start is not None and job.start.names_patients else []
    inherited += [job.pools["filter"]] if arm["sample_id"].notna().any() else []
    again = job.pools.get("reconstruct")
    inherited += [again] if again is not None and (again / FILE).is_file() else []
    write_patients(folder, used["patient_id"], salt=cohort.salt, inherited=inherited)
    check_no_overlap(folder, cohort)


def renew_head(model: nn.Module, card: Card, bias: torch.Tensor, *, seed: int) -> None:
    """Freeze all of ``model`` but its head, which starts anew with ``bias``, float32 (n_labels,), for every image."""
    model.requires_grad_(False)
    head = head_of(model)[1].requires_grad_(True)
    torch.manual_seed(seed)  # layers draw initial weights from the global generator
    head.load_state_dict(HEADS[card.head](head.in_features, len(bias)).state_dict())
    reset_head(model, bias)


def write_results(
    job: Job, stage: Stage, learner: Learner, card: Card, *, model: nn.Module, prefix: str, n_slots: int,
    extra: dict[str, Any],
) -> None:
    """Weights of the whole model, card and history, then the stamp; the checkpoint has served.

    ``prefix`` is the place in ``model`` of what the learner holds; everything else is written as it was.
    """
    for name, learnt in (("raw", learner.model), ("ema", learner.ema.module)):
        state = {f"{prefix}{key}": value for key, value in learnt.state_dict().items()}
        save_weights(model.state_dict() | state, stage.folder / f"{name}.safetensors")
    save_card(card, stage.folder)
    history = pd.DataFrame(learner.history)
    write_table(history, stage.folder / "history.parquet")
    extra = extra | {"images_per_second": float(history["images_per_second"].median()),
                     "loss": float(history["loss"].iloc[-1])}
    counts = {"steps": learner.step, "slots": n_slots, "images_seen": learner.step * job.config.batch_size}
    stage.finish(outputs=["ema.safetensors", "raw.safetensors", CARD, FILE], counts=counts, extra=extra)
    (stage.folder / CHECKPOINT).unlink(missing_ok=True)


def train(job: Job) -> None:
    """Train one arm with one seed, unless that is done; called by every process."""
    accelerator = start_accelerator(job.run, job.folder, "no" if job.trains_head_only else job.config.precision)
    if job.recipe.compiles and (failure := probe_compiler(accelerator.device)):
        raise TailfillError(f"train.compile is on, which does not work here: {failure}")
    cohort = load_cohort(job.run.cohort_folder)
    if job.is_extra and accelerator.is_main_process:  # a critic needs no arm command of its own: `real` has no settings
        write_arm(job.run, ArmConfig(), arm=job.arm, seed=job.seed)
    accelerator.wait_for_everyone()
    stage = job.stage()
    complete = stage.is_complete()
    accelerator.wait_for_everyone()
    if complete:
        log.info("train %s, seed %d: complete, nothing to do", job.arm, job.seed)
        return
    arm = read_table(verify(arm_folder(job.run, job.arm, job.seed), "arm", "arm.parquet"), arm_schema())
    pools = load_pools(job.pools, cohort)
    if accelerator.is_main_process:
        stage.begin()
        prepare_patients(job, cohort, pools, arm, stage.folder)
    with accelerator.main_process_first():  # the first writes the cache of pixels, the others read it
        slots = load_slots(arm, cohort, pools, size=job.config.image_size, cache=job.run.folder / "cache",
                           threads=job.run.threads, splits=ARMS[job.arm].splits)
    accelerator.init_trackers("tensorboard" if job.run.tracker == "tensorboard" else "tailfill")  # a folder; a project
    card = make_card(job, cohort, slots, arm)
    shares = shares_of(arm, cohort, ARMS[job.arm].splits)
    loss = LOSSES[job.config.loss](shares)
    bias = best_constant(loss, shares)
    model = initial_model(job.start, card, bias, seed=stream(job.entropy, 0),
                          pretrained=job.config.pretrained, drop_path=job.config.drop_path)
    prefix, learns, feed = "", model, feed_pixels(card)
    if job.trains_head_only:
        name, learns = head_of(model)
        prefix, feed = f"{name}.", feed_features
        with accelerator.main_process_first():
            slots = replace(slots, images=[load_features(model, images, card, cache=job.run.folder / "cache",
                                                         device=accelerator.device) for images in slots.images])
    learner = fit(learns, slots, feed, loss, recipe=job.recipe, checkpoint=stage.folder / CHECKPOINT,
                  accelerator=accelerator,
                  renew_head=partial(renew_head, model, card, bias, seed=stream(job.entropy, 0, 2))
                  if ARMS[job.arm].renews_head else None)
    if accelerator.is_main_process:
        known = not job.config.pretrained if job.start is None else is_known(job.start.folder, cohort)
        write_results(job, stage, learner, card, model=model, prefix=prefix, n_slots=len(slots.index), extra={
            "processes": accelerator.num_processes, "gradient_accumulation": job.recipe.gradient_accumulation,
            "compiled": job.recipe.compiles, "real_share": round(job.recipe.real_share(slots), 6),
            "provenance": "this run" if known else "unknown"})
    accelerator.end_training()


def main() -> None:
    """One arm, one seed."""
    options = parse("train", TrainConfig, doc=__doc__, extra={"arm": (str, ...), "arm-seed": (int, ...)})
    run, seed = options.run, options.extra["arm-seed"]
    arm, member = split_name(run, options.extra["arm"], seed)
    check_arm(run, arm, seed)
    job = Job(run=run, config=member_config(run, options.section, member), arm=arm, seed=seed, member=member)
    if options.dry_run:
        sys.stdout.write(job.stage().describe(steps=job.recipe.steps) + "\n")
        return
    train(job)


if __name__ == "__main__":
    run_command(main)
