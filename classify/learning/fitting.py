"""The training loop: a fixed number of optimiser steps that any kill may interrupt.

All that changes from step to step is a ``Learner``, and all that is random in a step is a function of (seed, step), so
a checkpoint of the one is enough to go on and end at the same bits: on one device type, number of processes and
threads. Every process draws the global batch and takes its share of it, in one pass or several; the loss is divided by
the *global* number of known labels, so the average of the gradients is the gradient of the global batch however unknown
labels fall.

A classifier's re-training (cRT, Kang et al. 2020, 1910.09217, section 4.1) is two trainings in one: all weights on the
slots of phase 1, then a new head alone on those of phase 2, each with its own schedule, optimiser and moving average.
The backbone of the second is the first one's moving average, for raw and averaged weights alike.

Not promised: bit-equal weights on another number of processes or passes, or on CUDA, where convolutions may sum in
another order.
"""

import logging
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from tqdm import tqdm

from classify.learning.losses import BatchLoss
from classify.learning.models import Card, normalise
from classify.learning.training import check_finite, load_checkpoint, save_checkpoint, share_batch
from classify.slots import Slots, distort, distortions, first_of_phase_2, step_places
from cohort.errors import TailfillError

log = logging.getLogger(__name__)

Feed = Callable[[Tensor, Tensor], Tensor]
"""From the inputs of some slots and the draws of their distortions, float32 (n, 6), to what the model takes."""
COMPILER = "inductor"
"""torch.compile's backend."""
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
    min_real_share: float = 0.0
    """Least share of a batch of the slots that were not added."""
    gradient_accumulation: int = 1
    """Passes per process and step."""
    compiles: bool = False
    """Whether the model is compiled."""
    crt_lr: float | None = None
    """Highest learning rate of the phase that re-trains the head; None: phase 2 goes on with all that learns."""

    def schedule(self, step: int) -> tuple[int, int, float]:
        """The training that ``step`` (from 0) belongs to: its first step, its number of steps, its highest rate."""
        first_of_2 = first_of_phase_2(self.steps, self.phase_2_share)
        if self.crt_lr is None:
            return 0, self.steps, self.lr
        return (0, first_of_2, self.lr) if step < first_of_2 else (first_of_2, self.steps - first_of_2, self.crt_lr)

    def places(self, slots: Slots, step: int) -> np.ndarray:
        """The slots of a step's global batch, int64 (batch_size,)."""
        return step_places(slots.phase, slots.added, step=step, steps=self.steps, batch_size=self.batch_size,
                           phase_2_share=self.phase_2_share, min_real_share=self.min_real_share, seed=self.seed)

    def real_share(self, slots: Slots) -> float:
        """The share, over all batches, of the slots that were not added."""
        return float(np.mean([1 - slots.added[self.places(slots, step)].mean() for step in range(self.steps)]))


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

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what a checkpoint holds."""
        self.model.load_state_dict(state["model"])
        self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.history = state["step"], state["history"]


def new_learner(model: nn.Module, *, weight_decay: float, ema_decay: float) -> Learner:
    """AdamW, without decay on biases and norms, and a moving average that starts as a copy and grows slower.

    The average's decay at step t is min(ema_decay, 1 - t^-.75) (K. Crowson's schedule, as timm has it), so that after
    few steps it is no memory of the start. What is frozen learns nothing. The learning rate is set by the caller before
    each step.
    """
    optimizer = torch.optim.AdamW(param_groups_weight_decay(model, weight_decay), lr=0.0)
    ema = ModelEmaV3(model, decay=ema_decay, use_warmup=True, warmup_power=0.75)
    return Learner(model=model, ema=ema, optimizer=optimizer)


def learning_rate(step: int, recipe: Recipe) -> float:
    """The rate of step ``step`` (from 0): linear to the highest, then half a cosine towards 0 after the last step."""
    first, steps, highest = recipe.schedule(step)
    warmup, done = round(steps * recipe.warmup_share), step - first
    if done < warmup:
        return highest * (done + 1) / (warmup + 1)
    return highest * 0.5 * (1 + math.cos(math.pi * (done - warmup) / max(steps - warmup, 1)))


def stream(seed: tuple[int, ...], *place: int) -> int:
    """A seed for torch's global generator, independent for every place and of the streams in ``slots``."""
    return int(np.random.SeedSequence([*seed, 2, *place]).generate_state(1)[0])


def feed_pixels(card: Card) -> Feed:
    """Grey images, uint8 (n, size, size): distorted, then normalised as the card says."""
    return lambda images, draws: normalise(distort(images.unsqueeze(1).float() / 255, draws), card)


def feed_features(features: Tensor, draws: Tensor) -> Tensor:
    """Features of a frozen backbone, float32 (n, n_features), as they are: a distortion would need new ones."""
    return features


def pass_loss(
    model: nn.Module, slots: Slots, feed: Feed, loss: BatchLoss, *, recipe: Recipe, step: int, number: int,
    accelerator: Accelerator,
) -> Tensor:
    """This process's share of a step's loss in pass ``number`` (from 0).

    Summed over passes, and averaged over processes, it is the loss of the global batch.
    """
    places = recipe.places(slots, step)
    draws = distortions(len(places), step=step, seed=recipe.seed)
    own = slice(accelerator.process_index * recipe.gradient_accumulation + number, None,
                accelerator.num_processes * recipe.gradient_accumulation)
    inputs, targets, weights, own_draws = (
        torch.from_numpy(array).to(accelerator.device) for array in
        (slots.inputs(places[own]), slots.targets[places[own]], slots.weights[places[own]], draws[own].copy())
    )
    logits = model(feed(inputs, own_draws))
    n_known = float((slots.targets[places] >= 0).sum()) / accelerator.num_processes
    return loss(logits, targets, sample_weights=weights, n_known=n_known)


def fit(
    bare: nn.Module, slots: Slots, feed: Feed, loss: BatchLoss, *, recipe: Recipe, checkpoint: Path,
    accelerator: Accelerator, renew_head: Callable[[], None] | None = None,
) -> Learner:
    """Train ``bare`` to the last step, from ``checkpoint`` if that file exists; writes one every so many steps.

    ``feed`` makes the model's input of the slots' inputs: ``feed_pixels(card)``, or ``feed_features`` for a head.
    ``renew_head``, for a recipe with a ``crt_lr``, freezes all of ``bare`` but its head and gives that its first
    weights. Raises ``TailfillError`` when the loss is no longer finite, the batch cannot be shared evenly, or the model
    cannot be compiled.
    """
    share_batch(recipe.batch_size, accelerator.num_processes * recipe.gradient_accumulation, key="train.batch_size")
    learner = start_or_resume(bare.to(accelerator.device), recipe=recipe, checkpoint=checkpoint, renew_head=renew_head)
    model = _prepare(bare, recipe, accelerator, step=learner.step)
    bar = tqdm(total=recipe.steps * recipe.batch_size, initial=learner.step * recipe.batch_size, unit="image",
               desc=recipe.name, mininterval=1.0, disable=not accelerator.is_main_process)
    losses: list[Tensor] = []
    since = time.monotonic()
    while learner.step < recipe.steps:
        if renew_head is not None and learner.step == recipe.schedule(learner.step)[0] > 0:
            learner = _second_learner(learner, renew_head, recipe)
            accelerator.unwrap_model(model, keep_fp32_wrapper=False)
            del model  # and with it what averages the gradients of weights that are frozen now
            accelerator.free_memory()
            model = _prepare(bare, recipe, accelerator, step=learner.step)
        try:
            losses.append(_step(learner, model, slots, feed, loss, recipe=recipe, accelerator=accelerator))
        except TorchDynamoException as error:
            raise TailfillError(f"train.compile is on, and {type(bare).__name__} cannot be compiled: "
                                f"{' '.join(str(error).split())[:200]}") from error
        bar.update(recipe.batch_size)
        if learner.step % LOG_EVERY == 0 or learner.step == recipe.steps:
            seconds, since = time.monotonic() - since, time.monotonic()
            _note(learner, losses, speed=len(losses) * recipe.batch_size / max(seconds, 1e-9), accelerator=accelerator)
            losses = []
        if learner.step % recipe.checkpoint_every == 0 and accelerator.is_main_process:
            learner.save(checkpoint)
    bar.close()
    return learner


def start_or_resume(
    model: nn.Module, *, recipe: Recipe, checkpoint: Path, renew_head: Callable[[], None] | None
) -> Learner:
    """A learner of ``model``: new, or as its last checkpoint has it; ``TailfillError`` naming a damaged file."""
    state = load_checkpoint(checkpoint)
    if renew_head is not None and state and state["step"] > recipe.schedule(recipe.steps - 1)[0]:
        renew_head()  # a checkpoint of the second training holds the optimiser of the head alone
    learner = new_learner(model, weight_decay=recipe.weight_decay, ema_decay=recipe.ema_decay)
    if state:
        learner.load(state)
        log.info("train: goes on from step %d of %d", learner.step, recipe.steps)
    return learner


def _second_learner(first: Learner, renew_head: Callable[[], None], recipe: Recipe) -> Learner:
    """The learner that re-trains the head on the first one's averaged backbone."""
    first.model.load_state_dict(first.ema.module.state_dict())
    renew_head()
    second = new_learner(first.model, weight_decay=recipe.weight_decay, ema_decay=recipe.ema_decay)
    second.step, second.history = first.step, first.history
    return second


def _prepare(bare: nn.Module, recipe: Recipe, accelerator: Accelerator, *, step: int) -> nn.Module:
    """The model as it is called: compiled, in this process's precision, its gradients averaged over processes.

    A frozen backbone is in evaluation mode: the head learns from what prediction will see.
    """
    if recipe.compiles:
        bare.compile(backend=COMPILER, dynamic=False)  # in place, so that its weights keep their names
    model: nn.Module = accelerator.prepare_model(bare)
    return model.train(recipe.schedule(step)[0] == 0)


def _step(
    learner: Learner, model: nn.Module, slots: Slots, feed: Feed, loss: BatchLoss, *, recipe: Recipe,
    accelerator: Accelerator,
) -> Tensor:
    """One optimiser step; returns this process's loss."""
    # important: dropout and stochastic depth read the global generator, so each step has to set it
    torch.manual_seed(stream(recipe.seed, 1 + learner.step, accelerator.process_index))
    for group in learner.optimizer.param_groups:
        group["lr"] = learning_rate(learner.step, recipe)
    total = torch.zeros((), device=accelerator.device)
    for number in range(recipe.gradient_accumulation):
        is_last = number == recipe.gradient_accumulation - 1
        with nullcontext() if is_last else accelerator.no_sync(model):  # processes meet once a step
            value = pass_loss(model, slots, feed, loss, recipe=recipe, step=learner.step, number=number,
                              accelerator=accelerator)
            accelerator.backward(value)
        total += value.detach()
    nn.utils.clip_grad_norm_(learner.model.parameters(), recipe.grad_clip)
    learner.optimizer.step()
    learner.optimizer.zero_grad()
    learner.ema.update(learner.model, step=learner.step + 1 - recipe.schedule(learner.step)[0])
    learner.step += 1
    return total


def _note(learner: Learner, losses: list[Tensor], *, speed: float, accelerator: Accelerator) -> None:
    """Add a row to the history and to the tracker."""
    mean = float(accelerator.reduce(torch.stack(losses).mean(), reduction="mean"))
    check_finite(mean, step=learner.step, stage="train")
    row = {"loss": mean, "lr": learner.optimizer.param_groups[0]["lr"], "images_per_second": speed}
    learner.history.append({"step": learner.step, **row})
    accelerator.log(row, step=learner.step)
