"""The loop of fine-tuning: a loss curve that any kill may interrupt, validations, and the rule that ends it early.

All that the loop knows is a ``Progress``, and a checkpoint holds all of it. Killed at any moment and started again, a
run ends with the same history and the same weights, but for times and memory.

Early stopping is algorithm 7.1 of Goodfellow, Bengio and Courville (*Deep Learning*, 2016) on the tail's loss: training
ends after ``patience`` validations without a lower one, and the averaged weights of the lowest are written. It does not
promise better images: a denoising loss sees texture more than findings.
"""

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from classify.learning.training import CHECKPOINT, check_finite, load_checkpoint, peak_memory, save_checkpoint
from cohort.tables import Cohort, write_table
from synth.learning.training_set import TrainingSet
from synth.learning.tuning import Trainer
from synth.learning.validation import draw_sheet, validation_losses

log = logging.getLogger(__name__)

HISTORY = "history.parquet"
LOG_EVERY = 25
"""Steps per row of the history, validations apart, which always have one."""


@dataclass(kw_only=True)
class Progress:
    """How far training has come, over all sessions."""

    history: list[dict[str, float]] = field(default_factory=list)
    """One row per ``LOG_EVERY`` steps and per validation."""
    losses: list[float] = field(default_factory=list)
    """Losses of the steps since the last row."""
    seconds: float = 0.0
    """Spent so far; what a kill undid is not counted."""
    peak_memory_mib: float = 0.0
    """Of the main process."""
    best: list[torch.Tensor] | None = None
    """The averaged weights of the validation with the lowest tail loss, on the CPU; None without ``patience``."""

    @property
    def tail_losses(self) -> dict[int, float]:
        """Step to the tail's loss of each validation so far."""
        return {int(row["step"]): row["val_tail"] for row in self.history if "val_tail" in row}

    @property
    def written_step(self) -> int:
        """The step whose averaged weights are written."""
        losses = self.tail_losses
        return int(self.history[-1]["step"]) if self.best is None else min(losses, key=losses.__getitem__)

    def is_over(self, patience: int | None) -> bool:
        """Whether the last ``patience`` validations have not lowered the tail's loss; never without ``patience``."""
        if patience is None or self.best is None:
            return False
        return sum(step > self.written_step for step in self.tail_losses) >= patience


class Loop:
    """Training to the last step, or to the end of its patience."""

    def __init__(self, trainer: Trainer, sets: dict[str, TrainingSet], cohort: Cohort, folder: Path) -> None:
        self.trainer, self.sets, self.cohort, self.folder = trainer, sets, cohort, folder
        self.progress = Progress()
        self.timed: list[float] = []
        if state := load_checkpoint(folder / CHECKPOINT):
            trainer.load(state)
            self.progress = Progress(**state["progress"])
            log.info("finetune: goes on from step %d of %d", trainer.step, trainer.config.steps)
        self.begun = time.monotonic() - self.progress.seconds

    def run(self) -> Progress:
        """Train, and leave the weights to be written in ``trainer.ema``; the main process writes the history."""
        trainer, config, progress = self.trainer, self.trainer.config, self.progress
        main = trainer.accelerator.is_main_process
        if config.pipeline is not None and not progress.history:
            self.note(validates=True)  # where it starts from: what is forgotten later shows against this row
        over = progress.is_over(config.patience)
        bar = tqdm(total=config.steps, initial=trainer.step, desc="finetune", disable=not main)
        while trainer.step < config.steps and not over:
            self.step()
            bar.update()
            last = trainer.step == config.steps
            validates = last or trainer.step % config.validate_every == 0
            if validates or trainer.step % LOG_EVERY == 0:
                bar.set_postfix(loss=self.note(validates=validates)["loss"])
            over = validates and self.agrees_it_is_over()
            if main and (last or over or trainer.step % config.checkpoint_every == 0):
                self.save()
        bar.close()
        if progress.best is not None:
            trainer.ema.shadow_params = [weights.to(trainer.accelerator.device) for weights in progress.best]
        if main:
            history = pd.DataFrame(progress.history)
            write_table(history.assign(written=history["step"] == progress.written_step), self.folder / HISTORY)
        return progress

    def step(self) -> None:
        """One optimiser step, with its loss and time."""
        begun = time.monotonic()
        self.progress.losses.append(self.trainer.train_step(self.sets["train"]))
        self.timed.append(time.monotonic() - begun)

    def note(self, *, validates: bool) -> dict[str, float]:
        """Add a row to the history and the tracker; return it."""
        trainer, progress = self.trainer, self.progress
        row: dict[str, float] = {"step": trainer.step}
        if progress.losses:
            row["loss"] = sum(progress.losses) / len(progress.losses)
        if self.timed:
            row["images_per_second"] = trainer.config.batch_size * len(self.timed) / sum(self.timed)
        progress.losses, self.timed = [], []
        if validates and trainer.accelerator.is_main_process:
            row |= self.validate()
        progress.seconds = row["seconds"] = time.monotonic() - self.begun
        progress.history.append(row)
        trainer.accelerator.log({key: value for key, value in row.items() if key != "step"}, step=trainer.step)
        return row

    def validate(self) -> dict[str, float]:
        """Losses of the averaged weights per group on the validation split, and a sheet of generated images.

        With ``patience`` the averaged weights are kept when the tail's loss is the lowest so far. Raises
        ``TailfillError`` when the loss is no longer finite.
        """
        trainer, progress = self.trainer, self.progress
        trainer.ema.store(trainer.parameters)
        trainer.ema.copy_to(trainer.parameters)
        try:
            losses = validation_losses(trainer, self.sets["val"], self.cohort)
            check_finite(losses["val_loss"], step=trainer.step, stage="finetune")
            file = self.folder / "validation" / f"step_{trainer.step:06d}.png"
            draw_sheet(trainer.pipeline, self.cohort, file, seed=trainer.seed)
        finally:
            trainer.ema.restore(trainer.parameters)
        if trainer.config.patience and losses["val_tail"] < min(progress.tail_losses.values(), default=float("inf")):
            progress.best = [weights.detach().cpu().clone() for weights in trainer.ema.shadow_params]
        return losses

    def agrees_it_is_over(self) -> bool:
        """The main process's word on whether patience has ended, as all processes hear it."""
        accelerator, patience = self.trainer.accelerator, self.trainer.config.patience
        if patience is None:
            return False
        if accelerator.is_main_process and self.progress.is_over(patience):
            accelerator.set_trigger()
        return bool(accelerator.check_trigger())

    def save(self) -> None:
        """Write a checkpoint: the trainer's state and the progress."""
        progress = self.progress
        progress.seconds = time.monotonic() - self.begun
        progress.peak_memory_mib = max(progress.peak_memory_mib, peak_memory(self.trainer.accelerator.device))
        save_checkpoint(self.folder / CHECKPOINT, step=self.trainer.step, progress=vars(progress),
                        **self.trainer.state())
