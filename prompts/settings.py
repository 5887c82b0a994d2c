"""The settings of a plan: what is scarce, how many images of it, and in which combinations and company.

Not promised: that a cohort can meet them; the plan says what it cannot.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from cohort.errors import TailfillError, nearest
from prompts.scarcity import RULES

MAX_TOTAL = 10_000_000
"""Forty times CXR-LT's training set: more is a slip of the finger."""


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What to ask for."""

    scarce: tuple[str, ...] = ("tail",)
    """Scarce labels, by group (head, medium, tail, control: those without a visible sign) or by name."""
    rule: str = "flat"
    """Budget rule: flat (equal), floor (real + synthetic up to ``floor``), inverse_frequency, or effective_number."""
    total: int | None = None
    """Sum of all targets, 1 or more; negatives come on top. Null with rule floor: whatever reaches the floor."""
    floor: int | None = None
    """Images of a class, real + synthetic, that rule floor aims for; 1 or more."""
    max_ratio: float | None = 10.0
    """Cap on synthetic per real image of a class, above 0; null for none. Past 10 gains are gone (arXiv 2308.12453)."""
    per_class: dict[str, int] = field(default_factory=dict)
    """Explicit targets by label, 0 or more, inside the total; they win over rule and cap, and make the label scarce."""
    beta: float = 0.999
    """Of rule effective_number, 0 or more and below 1 (Cui et al. 2019, who use .9 to .9999)."""
    spread: float = 2.0
    """How far a combination's share of a class's images may depart from its real share, up or down; factor from 1."""
    max_repeat: int | None = None
    """Most images per real image that carries the combination, 1 or more; null for no limit beyond ``spread``."""
    allow_unseen: bool = False
    """Whether to also ask for pairs of scarce findings that no real image carries; their label_source_id is null."""
    company_prior: float | None = None
    """Null: a scarce finding is asked for with the other findings, view, sex and age of the images that carry it. Above
    0: with those of any train image, weighted by how usual they are for it; on that, all of train counts as much
    as this many patients (``prompts.company``). ``spread`` then concerns scarce findings only."""
    negatives_per_positive: float = 1.0
    """Matched negatives per positive, 0 to 1: a second one with the same noise would be the same image again."""
    image_conditioned: float = 0.0
    """Share of the positives with a source, 0 to 1, that start from that real image, as do their negatives from one."""
    strength: float = 0.6
    """Share of the noise schedule that such an image goes through, above 0 (its source) to 1 (as from pure noise)."""
    age_jitter: int = 5
    """Years by which an age may differ from the real one that it was taken from, 0 to 20."""
    batch_size: int = 32
    """Rows of a logical batch, 1 or more: the unit in which images are made and accounted for."""

    def __post_init__(self) -> None:
        """Raise ``TailfillError`` for the first value out of range."""
        if self.rule not in RULES:
            raise TailfillError(f"plan.rule: unknown rule '{self.rule}'{nearest(self.rule, list(RULES))}")
        for key, low, high in (("total", 1, None), ("floor", 1, None), ("spread", 1, None), ("max_repeat", 1, None),
                               ("negatives_per_positive", 0, 1), ("image_conditioned", 0, 1), ("age_jitter", 0, 20),
                               ("batch_size", 1, None)):
            value = getattr(self, key)
            if value is not None and not (low <= value and (high is None or value <= high)):
                raise TailfillError(f"plan.{key}: is {value}; wanted: " + (
                    f"{low} or more" if high is None else f"{low} to {high}"))
        if self.max_ratio is not None and not self.max_ratio > 0:
            raise TailfillError(f"plan.max_ratio: is {self.max_ratio}; wanted: above 0, or null for no cap")
        if self.company_prior is not None and not 0 < self.company_prior < math.inf:
            raise TailfillError(f"plan.company_prior: is {self.company_prior}; wanted: above 0 and finite, "
                                "or null for each finding's own company")
        if self.company_prior is not None and self.image_conditioned:
            raise TailfillError(f"plan.company_prior: is {self.company_prior} and image_conditioned "
                                f"{self.image_conditioned}; wanted: null, or 0, for an image that starts from a real "
                                "one has the findings of that one")
        if not 0 < self.strength <= 1:
            raise TailfillError(f"plan.strength: is {self.strength}; wanted: above 0, to 1")
        if not 0 <= self.beta < 1:
            raise TailfillError(f"plan.beta: is {self.beta}; wanted: 0 or more and below 1")
        if self.total is not None and self.total > MAX_TOTAL:
            raise TailfillError(f"plan.total: is {self.total}; wanted: {MAX_TOTAL} at most")
        if self.rule == "floor" and self.floor is None:
            raise TailfillError("plan.floor: is missing; rule 'floor' wants the images per class to aim for")
        for label, n in self.per_class.items():
            if n < 0:
                raise TailfillError(f"plan.per_class.{label}: is {n}; wanted: 0 or more")

    def identity(self) -> dict[str, Any]:
        """What the fingerprint of a plan holds; plans from before ``company_prior`` have none, and are the same."""
        return {key: value for key, value in asdict(self).items() if key != "company_prior" or value is not None}
