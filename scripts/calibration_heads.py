"""Thousands of linear heads trained at once, on cached features, each as the stage ``train`` would train it.

A calibration needs models by the ten thousand, and most of a small training is overhead. Heads of equal settings share
one loop here: their weights are one tensor, a step is one batched product. Nothing else differs from ``train`` with
``head_only``: the optimiser, the learning rate, the moving average, the order of the slots and the loss are the
project's own functions, the norm of the gradient is clipped head by head, and no head sees another's slots.

Not promised: second phases, unknown labels, or the very bits of a head that is trained alone (they agree to 1e-5).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from classify.learning.fitting import Recipe, learning_rate, new_learner
from classify.learning.losses import best_constant, weighted_asl
from classify.slots import Slots, places_in_order


@dataclass(frozen=True, kw_only=True)
class Task:
    """One head to train."""

    slots: Slots
    """Its slots, all of phase 1; ``slots.index`` counts in the features that all heads share."""
    shares: np.ndarray
    """float32 (n_labels,): real training prevalence, for the loss and the bias at step 0."""
    seed: tuple[int, ...]
    """Entropy of the order of its slots."""


class Heads(nn.Module):
    """Linear layers side by side: float32 (n_heads, batch, n_features) -> logits (n_heads, batch, n_labels)."""

    def __init__(self, bias: Tensor, n_features: int) -> None:
        """All weights 0 and ``bias``, float32 (n_heads, n_labels): as ``reset_head``."""
        super().__init__()
        weight = torch.zeros(bias.shape[0], n_features, bias.shape[1])
        self.layer = nn.ParameterDict({"weight": nn.Parameter(weight), "bias": nn.Parameter(bias.unsqueeze(1))})

    def forward(self, features: Tensor) -> Tensor:
        """The logits of every head."""
        return torch.baddbmm(self.layer["bias"], features, self.layer["weight"])

    def clip(self, largest: float) -> None:
        """Shorten each head's gradient to the norm ``largest``, as ``clip_grad_norm_`` does to a single head's."""
        gradients = [one.grad for one in self.parameters() if one.grad is not None]
        norms = torch.stack([one.square().sum(dim=(1, 2)) for one in gradients]).sum(dim=0).sqrt()
        factors = (largest / (norms + 1e-6)).clamp(max=1.0).view(-1, 1, 1)
        for one in gradients:
            one.mul_(factors)


@dataclass(frozen=True, kw_only=True)
class Feed:
    """What every head meets, in order: n_heads x (steps * batch_size)."""

    rows: Tensor
    """int64: rows of the shared features."""
    targets: Tensor
    """bool, with a last axis of n_labels."""
    weights: Tensor
    """float32: loss weights."""

    def step(self, features: Tensor, step: int, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Features (n_heads, batch, n_features), targets and weights of one step."""
        now = slice(step * batch_size, (step + 1) * batch_size)
        return features[self.rows[:, now]], self.targets[:, now].float(), self.weights[:, now]


def make_feed(tasks: Sequence[Task], recipe: Recipe) -> Feed:
    """The order in which ``train`` would draw every task's slots."""
    count = recipe.steps * recipe.batch_size
    orders = [places_in_order(np.arange(len(task.slots.index)), seed=[*task.seed, 0, 1], start=0, count=count)
              for task in tasks]
    def pick(values: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack([one[order] for one, order in zip(values, orders, strict=True)]))

    return Feed(rows=pick([task.slots.index for task in tasks]), weights=pick([task.slots.weights for task in tasks]),
                targets=pick([task.slots.targets == 1 for task in tasks]))


def _first_bias(shares: Tensor) -> Tensor:
    """The loss's best constant for the prevalences of every head, float32 (n_heads, n_labels)."""
    different, which = torch.unique(shares, dim=0, return_inverse=True)
    return torch.stack([best_constant(weighted_asl(one), one) for one in different])[which]


def train_heads(features: Tensor, tasks: Sequence[Task], recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """The EMA weights of every head: float32 (n_heads, n_features, n_labels) and biases (n_heads, 1, n_labels).

    ``features``: float32 (n_images, n_features). ``recipe.seed`` is not used: every task has a seed of its own.
    """
    shares = torch.from_numpy(np.stack([task.shares for task in tasks]))
    heads = Heads(_first_bias(shares), features.shape[1])
    learner = new_learner(heads, weight_decay=recipe.weight_decay, ema_decay=recipe.ema_decay)
    loss = weighted_asl(shares.unsqueeze(1))
    feed = make_feed(tasks, recipe)
    for step in range(recipe.steps):
        for group in learner.optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        inputs, targets, weights = feed.step(features, step, recipe.batch_size)
        terms = loss.terms(heads(inputs), targets) * weights.unsqueeze(-1)
        terms.mean(dim=(1, 2)).sum().backward()
        heads.clip(recipe.grad_clip)
        learner.optimizer.step()
        learner.optimizer.zero_grad()
        learner.ema.update(heads, step=step + 1)
    layer = learner.ema.module.layer
    return layer["weight"].detach().numpy(), layer["bias"].detach().numpy()
