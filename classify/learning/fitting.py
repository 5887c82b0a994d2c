"""The training loop: a fixed number of optimiser steps that any kill may interrupt.

All that changes from step to step is a ``Learner``, and all that is random in a step is a function of (seed, step), so
a checkpoint of the one is enough to go on and end at the same bits: on one device type, number of processes and
threads. Every process draws the global batch and takes its share of it; the loss is divided by the *global* number of
known labels, so the average of the gradients is the gradient of the global batch however unknown labels fall.
Not promised: bit-equal weights on another number of processes, or on CUDA, where convolutions may sum in another order.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from tqdm import tqdm

from classify.learning.losses import MultiLabelLoss
from classify.learning.models import Card, normalise
from classify.learning.training import check_finite, load_checkpoint, save_checkpoint, share_batch
from classify.slots import Slots, distort, distortions, step_places

log = logging.getLogger(__name__)

Feed = Callable[[Tensor, Tensor], Tensor]
"""From the inputs of some slots and the draws of their distortions, float32 (n, 6), to what the model takes."""
LOG_EVERY = 10  # steps per row of the history: reading the loss waits for the device


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of one run of the loop."""

    name: str
    """What the progress bar shows."""
    seed: tuple[int, ...]
    """Entropy of order, distortions and dropout."""
    steps: int
    """Optimiser steps in all."""
    batch_size: int
    """Slots per step over all processes."""
    lr: float
    """Highest learning rate."""
    warmup_share: float
    """Share of the steps in which the rate rises."""
    weight_decay: float
    """AdamW's, not applied to biases and norms."""
    ema_decay: float
    """Largest decay of the moving average per step."""
    grad_clip: float
    """Largest norm of the gradient."""
    phase_2_share: float
    """Share of the steps that draw from the slots of phase 2."""
    checkpoint_every: int
    """Steps between checkpoints."""


@dataclass(kw_only=True)
class Learner:
    """A model in training: all that changes from step to step, and nothing else."""

    model: nn.Module
    """The bare model, not its wrapper for several processes."""
    ema: ModelEmaV3
    optimizer: torch.optim.Optimizer
    step: int = 0
    """Optimiser steps done."""
    history: list[dict[str, float]] = field(default_factory=list)

    def save(self, file: Path) -> None:
        """Write a checkpoint."""
        save_checkpoint(file, step=self.step, history=self.history, model=self.model.state_dict(),
                        ema=self.ema.module.state_dict(), optimizer=self.optimizer.state_dict())

    def load(self, file: Path) -> None:
        """Go on from a checkpoint, if there is one; raises ``TailfillError`` naming a damaged file."""
        if state := load_checkpoint(file):
            self.model.load_state_dict(state["model"])
            self.ema.module.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.history = state["step"], state["history"]


def new_learner(model: nn.Module, *, weight_decay: float, ema_decay: float) -> Learner:
    """AdamW, without decay on biases and norms, and a moving average that starts as a copy and grows slower.

    The average's decay at step t is min(ema_decay, 1 - t^-.75) (K. Crowson's schedule, as timm has it), so that after
    few steps it is no memory of the start. The learning rate is set by the caller before each step.
    """
    optimizer = torch.optim.AdamW(param_groups_weight_decay(model, weight_decay), lr=0.0)
    ema = ModelEmaV3(model, decay=ema_decay, use_warmup=True, warmup_power=0.75)
    return Learner(model=model, ema=ema, optimizer=optimizer)


def learning_rate(step: int, recipe: Recipe) -> float:
    """The rate of step ``step`` (from 0): linear to ``lr``, then half a cosine towards 0 after the last step."""
    warmup = round(recipe.steps * recipe.warmup_share)
    if step < warmup:
        return recipe.lr * (step + 1) / (warmup + 1)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(recipe.steps - warmup, 1)))


def stream(seed: tuple[int, ...], *place: int) -> int:
    """A seed for torch's global generator, independent for every place and of the streams in ``slots``."""
    return int(np.random.SeedSequence([*seed, 2, *place]).generate_state(1)[0])


def feed_pixels(card: Card) -> Feed:
    """Grey images, uint8 (n, size, size): distorted, then normalised as the card says."""
    return lambda images, draws: normalise(distort(images.unsqueeze(1).float() / 255, draws), card)


def feed_features(features: Tensor, draws: Tensor) -> Tensor:
    """Features of a frozen backbone, float32 (n, n_features), as they are: a distortion would need new ones."""
    return features


def batch_loss(
    model: nn.Module, slots: Slots, feed: Feed, loss: MultiLabelLoss, *, recipe: Recipe, step: int,
    accelerator: Accelerator,
) -> Tensor:
    """This process's share of the loss of a step; its mean over processes is the loss of the global batch."""
    places = step_places(slots.phase, step=step, steps=recipe.steps, batch_size=recipe.batch_size,
                         phase_2_share=recipe.phase_2_share, seed=recipe.seed)
    draws = distortions(len(places), step=step, seed=recipe.seed)
    own = slice(accelerator.process_index, None, accelerator.num_processes)
    inputs, targets, weights, own_draws = (
        torch.from_numpy(array).to(accelerator.device) for array in
        (slots.inputs(places[own]), slots.targets[places[own]], slots.weights[places[own]], draws[own].copy())
    )
    logits = model(feed(inputs, own_draws))
    n_known = float((slots.targets[places] >= 0).sum()) / accelerator.num_processes
    return loss(logits, targets, sample_weights=weights, n_known=n_known)


def fit(
    bare: nn.Module, slots: Slots, feed: Feed, loss: MultiLabelLoss, *, recipe: Recipe, checkpoint: Path,
    accelerator: Accelerator,
) -> Learner:
    """Train ``bare`` to the last step, from ``checkpoint`` if that file exists; writes one every so many steps.

    ``feed`` makes the model's input of the slots' inputs: ``feed_pixels(card)``, or ``feed_features`` for a head.

    Raises ``TailfillError`` when the loss is no longer finite, or the batch cannot be shared evenly.
    """
    share_batch(recipe.batch_size, accelerator.num_processes, key="train.batch_size")
    learner = new_learner(bare.to(accelerator.device), weight_decay=recipe.weight_decay, ema_decay=recipe.ema_decay)
    learner.load(checkpoint)
    if learner.step:
        log.info("train: goes on from step %d of %d", learner.step, recipe.steps)
    model = accelerator.prepare_model(bare).train()
    bar = tqdm(total=recipe.steps * recipe.batch_size, initial=learner.step * recipe.batch_size, unit="image",
               desc=recipe.name, mininterval=1.0, disable=not accelerator.is_main_process)
    losses: list[Tensor] = []
    since = time.monotonic()
    while learner.step < recipe.steps:
        losses.append(_step(learner, model, slots, feed, loss, recipe=recipe, accelerator=accelerator))
        bar.update(recipe.batch_size)
        if learner.step % LOG_EVERY == 0 or learner.step == recipe.steps:
            seconds, since = time.monotonic() - since, time.monotonic()
            _note(learner, losses, speed=len(losses) * recipe.batch_size / max(seconds, 1e-9), accelerator=accelerator)
            losses = []
        if learner.step % recipe.checkpoint_every == 0 and accelerator.is_main_process:
            learner.save(checkpoint)
    bar.close()
    return learner


def _step(
    learner: Learner, model: nn.Module, slots: Slots, feed: Feed, loss: MultiLabelLoss, *, recipe: Recipe,
    accelerator: Accelerator,
) -> Tensor:
    """One optimiser step; returns this process's loss."""
    # important: dropout and stochastic depth read the global generator, so each step has to set it
    torch.manual_seed(stream(recipe.seed, 1 + learner.step, accelerator.process_index))
    for group in learner.optimizer.param_groups:
        group["lr"] = learning_rate(learner.step, recipe)
    value = batch_loss(model, slots, feed, loss, recipe=recipe, step=learner.step, accelerator=accelerator)
    accelerator.backward(value)
    nn.utils.clip_grad_norm_(learner.model.parameters(), recipe.grad_clip)
    learner.optimizer.step()
    learner.optimizer.zero_grad()
    learner.step += 1
    learner.ema.update(learner.model, step=learner.step)
    return value.detach()


def _note(learner: Learner, losses: list[Tensor], *, speed: float, accelerator: Accelerator) -> None:
    """Add a row to the history and to the tracker."""
    mean = float(accelerator.reduce(torch.stack(losses).mean(), reduction="mean"))
    check_finite(mean, step=learner.step, stage="train")
    row = {"loss": mean, "lr": learner.optimizer.param_groups[0]["lr"], "images_per_second": speed}
    learner.history.append({"step": learner.step, **row})
    accelerator.log(row, step=learner.step)
