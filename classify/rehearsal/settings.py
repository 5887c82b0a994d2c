"""The ``rehearsal`` section: what is thinned, how far, how often, and how cheaply.

A rehearsal answers "will synthetic images help *my* rare findings?" before they are made: it thins plentiful findings
to the rarity of the tail, runs the whole pipeline on what is left, and compares with the real images that were taken
away. Where the experiment has an ``oracle`` section, new patients of the actual tail (a phantom can make some), they
join the oracle, and the prediction for the tail is checked.
"""

from dataclasses import dataclass

from classify.comparison.pairs import HARMONISED_ARM
from cohort.config import require_values
from cohort.errors import TailfillError

ARMS = ("real", "oversample", "duplicate", "synthetic", "unfiltered", "permuted", "oracle", "oracle-full",
        "duplicate-harmonised", "synthetic-harmonised", "permuted-harmonised")
"""Arms that a rehearsal can have; the others need sections or second phases of their own."""
NEEDED = ("duplicate", "synthetic", "oracle")
"""Arms without which there is no recovered share."""


@dataclass(frozen=True, kw_only=True)
class RehearsalConfig:
    """What is thinned, how far, how often."""

    findings: tuple[str, ...] = ()
    """Findings to thin, by name; empty: the ``n_findings`` best supported ones."""
    n_findings: int = 6
    """How many are chosen where none is named, 1 or more; under six give no prediction for the tail."""
    levels: tuple[int, ...] = ()
    """Positive train images that stay, 1 or more each; empty: the median of the actual tail classes, twice and four
    times that."""
    seeds: int = 3
    """Thinnings per finding and level, each of other patients, with a generator and images of its own; 2 or more."""
    min_test_patients: int = 30
    """Positive test patients that a finding must have to be chosen by itself, 1 or more; 30 make a 95 % interval of
    AUROC about .1 wide, chosen by hand."""
    max_overlap: float = 0.25
    """Share of a finding's positives, 0 to 1, that may carry another one where both are thinned in one cohort, with one
    generator for both; findings that meet more often are thinned apart."""
    arms: tuple[str, ...] = ("real", "duplicate", "synthetic", "oracle", "oracle-full")
    """Arms to run: ``duplicate``, ``synthetic`` and ``oracle``, and what else is wanted."""
    quick: bool = True
    """Train heads on features of a frozen backbone, and fine-tune a quarter of ``finetune.steps``; false: all as the
    other sections say."""
    finetune_steps: int | None = None
    """Optimiser steps of each thinning's fine-tuning, 1 or more; null: as ``quick`` says."""
    images_per_finding: int | None = None
    """Images to ask for per thinned finding, 1 or more; null: ``plan.total`` over the classes of ``plan.scarce``."""
    reference_seconds: float | None = None
    """Seconds of the reference operation where ``expected_seconds`` were measured, above 0; the time is told from both.
    Null: this machine's pace is taken to be that one's."""

    def __post_init__(self) -> None:
        """Raise ``TailfillError`` for the first value out of range."""
        require_values(
            "rehearsal", n_findings=(self.n_findings, self.n_findings >= 1, "1 or more"),
            levels=(list(self.levels), all(n >= 1 for n in self.levels) and len(set(self.levels)) == len(self.levels),
                    "different numbers, 1 or more each"),
            findings=(list(self.findings), len(set(self.findings)) == len(self.findings), "different names"),
            seeds=(self.seeds, self.seeds >= 2, "2 or more: without a spread between thinnings there is no interval"),
            min_test_patients=(self.min_test_patients, self.min_test_patients >= 1, "1 or more"),
            max_overlap=(self.max_overlap, 0 <= self.max_overlap <= 1, "0 to 1"),
            **{key: (getattr(self, key), getattr(self, key) is None or getattr(self, key) >= 1, "1 or more, or null")
               for key in ("finetune_steps", "images_per_finding")},
            reference_seconds=(self.reference_seconds, self.reference_seconds is None or self.reference_seconds > 0,
                               "above 0, or null"),
        )
        for arm in self.arms:
            if arm not in ARMS:
                raise TailfillError(f"rehearsal.arms: '{arm}' cannot stand here; wanted: {', '.join(ARMS)}")
        harmonised = [arm for arm in self.arms if arm.endswith(HARMONISED_ARM)]
        for arm in (*NEEDED, *(["duplicate-harmonised"] if harmonised else [])):
            if arm not in self.arms:
                raise TailfillError(f"rehearsal.arms lacks '{arm}'; wanted: {', '.join(NEEDED)} at least"
                                    + (f", and duplicate-harmonised beside {harmonised[0]}" if harmonised else ""))
