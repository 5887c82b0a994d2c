"""What the classifier minimises: multi-label losses that know about unknown labels and about slots of lower weight.

The long tail makes two things go wrong with plain binary cross-entropy: the many easy negatives of a rare finding drown
its few positives, and every class pulls with the weight of its prevalence. The asymmetric loss (ASL, Ridnik et al.,
2009.14119) focuses on hard negatives and discards those below a margin.
The entrants of CXR-LT 2024 weigh it per class::

    p_c = n_c / N                       real training prevalence, among known labels
    w+_c = exp(1 - p_c),  w-_c = exp(p_c)
    p = sigmoid(z),  q = min(1 - p + clip, 1)
    pt = p*y + q*(1-y)
    L = - mean[ (y*w+ + (1-y)*w-) * (y*log p + (1-y)*log q) * (1-pt)^(gamma_pos*y + gamma_neg*(1-y)) ]

The mean runs over *known* labels: an unknown one (NaN or negative) adds neither to the sum nor to the count. A slot's
weight scales its terms and leaves the count alone, so a batch of half-weight slots has half the gradient.
Not promised: soft labels. A target is 1, 0 or unknown.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from cohort.errors import TailfillError

GAMMA_NEG, GAMMA_POS, CLIP = 4.0, 1.0, 0.05  # as the entrants of CXR-LT 2024 use them


class BatchLoss(Protocol):
    """What the training loop calls; see ``AsymmetricLoss.__call__`` for shapes."""

    def __call__(
        self, logits: Tensor, targets: Tensor, *, sample_weights: Tensor | None = None, n_known: float | None = None
    ) -> Tensor:
        """The loss of a batch, a scalar."""


class MultiLabelLoss(BatchLoss, Protocol):
    """A loss that has a term for every label."""

    def terms(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The term of every label, unreduced."""


@dataclass(frozen=True, kw_only=True)
class AsymmetricLoss:
    """ASL with optional weights per class; both gammas and the clip at 0 make it binary cross-entropy.

    Raises ``TailfillError`` for a gamma in (0, 1), whose gradient is infinite where a label is met perfectly, and for
    a clip outside [0, 1).
    """

    gamma_neg: float = GAMMA_NEG
    gamma_pos: float = GAMMA_POS
    clip: float = CLIP
    positive_weights: Tensor | None = None
    """float32 (n_labels,), factor of a positive's term; None is 1."""
    negative_weights: Tensor | None = None
    """float32 (n_labels,), factor of a negative's term; None is 1."""

    def __post_init__(self) -> None:
        for name, gamma in (("gamma_neg", self.gamma_neg), ("gamma_pos", self.gamma_pos)):
            if gamma != 0 and gamma < 1:
                raise TailfillError(f"loss: {name} is {gamma}; wanted: 0, or 1 and more")
        if not 0 <= self.clip < 1:
            raise TailfillError(f"loss: clip is {self.clip}; wanted: 0 to below 1")

    def __call__(
        self, logits: Tensor, targets: Tensor, *, sample_weights: Tensor | None = None, n_known: float | None = None
    ) -> Tensor:
        """The mean over known labels, a float32 scalar.

        ``logits`` (batch, n_labels), any float dtype; ``targets`` the same shape, 1, 0 or unknown (NaN or negative);
        ``sample_weights`` (batch,), factor of each row's terms. ``n_known`` replaces the number of known labels that
        the sum is divided by: with it, ranks that hold unequal numbers of known labels average to the global mean.
        A batch without any known label has loss 0.
        """
        known = targets >= 0  # False for NaN
        terms = torch.where(known, self.terms(logits.float(), targets), 0.0)
        if sample_weights is not None:
            terms = terms * sample_weights.unsqueeze(-1)
        count = known.sum() if n_known is None else torch.tensor(n_known, device=logits.device)
        return terms.sum() / count.clamp(min=1e-9)

    def terms(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The term of every label, unreduced: float32 of the shape of ``logits``; arbitrary where unknown.

        Everything is computed from log-sigmoids and from 1 - q = max(p - clip, 0) itself, never as the difference of
        two numbers near 1, so float32 holds at any logit.
        """
        probability, complement = torch.sigmoid(logits), torch.sigmoid(-logits)
        margin = F.relu(probability - self.clip)  # 1 - q; its gradient at p <= clip is 0
        log_q = torch.log1p(-margin) if self.clip > 0 else F.logsigmoid(-logits)
        positive = F.logsigmoid(logits) * complement.pow(self.gamma_pos)
        negative = log_q * margin.pow(self.gamma_neg)
        if self.positive_weights is not None:
            positive = positive * self.positive_weights.to(logits.device)
        if self.negative_weights is not None:
            negative = negative * self.negative_weights.to(logits.device)
        return -torch.where(targets > 0, positive, negative)


def best_constant(loss: MultiLabelLoss, prevalence: Tensor) -> Tensor:
    """The logit of each label that has the least expected loss where every image gets the same; float32 (n_labels,).

    For cross-entropy these are the log-odds of the prevalence, (n_labels,) in [0, 1]; the asymmetric loss wants a rare
    label far higher, and at the log-odds costs several times its optimum. Searched from -10 to 5 in steps of .01.
    """
    grid = torch.linspace(-10, 5, 1501).unsqueeze(1).expand(-1, len(prevalence))
    positive, negative = (loss.terms(grid, torch.full_like(grid, target)) for target in (1.0, 0.0))
    cost = prevalence * positive + (1 - prevalence) * negative
    return grid[cost.argmin(dim=0), 0]


def prevalence_weights(prevalence: Tensor) -> tuple[Tensor, Tensor]:
    """``w+ = exp(1 - p)`` and ``w- = exp(p)`` for the prevalences (n_labels,) in [0, 1]."""
    return torch.exp(1 - prevalence), torch.exp(prevalence)


def weighted_asl(prevalence: Tensor) -> AsymmetricLoss:
    """ASL with the weights of the entrants of CXR-LT 2024."""
    positive, negative = prevalence_weights(prevalence)
    return AsymmetricLoss(positive_weights=positive, negative_weights=negative)


def asl(prevalence: Tensor) -> AsymmetricLoss:
    """ASL without weights; the prevalence is not used."""
    return AsymmetricLoss()


def bce(prevalence: Tensor) -> AsymmetricLoss:
    """Binary cross-entropy; the prevalence is not used."""
    return AsymmetricLoss(gamma_neg=0, gamma_pos=0, clip=0)


LOSSES: dict[str, Callable[[Tensor], MultiLabelLoss]] = {"weighted_asl": weighted_asl, "asl": asl, "bce": bce}
"""Name to constructor; each takes the real training prevalence, float32 (n_labels,)."""
