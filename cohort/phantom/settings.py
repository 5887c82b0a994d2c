"""The settings of a phantom cohort, refused before anything is drawn when they make no sense.

Not promised: that a small cohort holds every finding; a tail class is in two to seven of a thousand images.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from cohort.config import require_values
from cohort.errors import TailfillError, nearest
from cohort.phantom.prevalence import CONTROLS, CORE, FINDINGS, LABELS, NORMAL, base_prevalence, nominal_group
from cohort.phantom.sites import CASE_MIXES, SITES
from cohort.tables import SPLITS
from cohort.vocabulary.labels import CONTROL, GROUPS, group_of

COMMONEST = 0.5
"""Highest share of the images that a finding may have, after case mix and enrichment."""


@dataclass(frozen=True, kw_only=True)
class PhantomConfig:
    """The settings of a phantom cohort."""

    images: int = 6000
    """Images to make, 1 or more; the first n are the same for any number."""
    seed: int = 0
    """Seed of patients and images, 0 or more; another one gives other people."""
    site: Literal["A", "B"] = "A"
    """Hospital: A, or B, a referral centre with another machine and eight times as many rare findings."""
    size: int = 128
    """Height and width, pixels; a multiple of 32 from 64 to 512."""
    findings: Literal["all", "core"] | tuple[str, ...] = "all"
    """Labels: ``all`` 30, the ``core`` of 12 and Normal, or a list as ``[Edema, Mass]``."""
    val_share: float = 0.1
    """Share of the patients in validation; in [0, 1)."""
    test_share: float = 0.2
    """Share of the patients in test; in [0, 1)."""
    val_enrichment: float = 1.0
    """Factor on the prevalence of tail and control labels in validation; 1 to 100."""
    test_enrichment: float = 1.0
    """Factor on the prevalence of tail and control labels in test; 1 to 100."""
    label_noise: float | dict[str, float] = 0.0
    """Share of the positives that are recorded as negative, for all labels or by label; 0 to .5. As many negatives
    become positive, so prevalence stays. Test is never noisy."""
    only_with: tuple[str, ...] = ()
    """Keep only images positive for one of these labels or groups (head, medium, tail, control; those of site A, also
    at site B); empty keeps all."""

    def __post_init__(self) -> None:
        """Raise ``TailfillError`` for the first value out of range."""
        shares = self.val_share >= 0 and self.test_share >= 0 and self.val_share + self.test_share < 1
        require_values(
            "phantom", images=(self.images, self.images >= 1, "1 or more"),
            seed=(self.seed, self.seed >= 0, "0 or more"), site=(self.site, self.site in SITES, ", ".join(SITES)),
            size=(self.size, 64 <= self.size <= 512 and self.size % 32 == 0, "a multiple of 32 from 64 to 512"),
            val_share=(self.val_share, shares, "0 or more, and below 1 together with test_share"),
            test_share=(self.test_share, shares, "0 or more, and below 1 together with val_share"),
            val_enrichment=(self.val_enrichment, 1 <= self.val_enrichment <= 100, "1 to 100"),
            test_enrichment=(self.test_enrichment, 1 <= self.test_enrichment <= 100, "1 to 100"),
        )
        self._check_names()
        noise = self.label_noise if isinstance(self.label_noise, dict) else {"": self.label_noise}
        for label, rate in noise.items():
            require_values("phantom", **{f"label_noise.{label}".rstrip("."): (rate, 0 <= rate <= 0.5, "0 to .5")})

    def _check_names(self) -> None:
        names = {"findings": self.findings if isinstance(self.findings, tuple) else (), "only_with": self.only_with,
                 "label_noise": tuple(self.label_noise) if isinstance(self.label_noise, dict) else ()}
        choices = {"findings": [*LABELS], "only_with": [*self.labels, *GROUPS, CONTROL],
                   "label_noise": [*self.drawn, *self.controls]}
        for key, given in names.items():
            for name in given:
                if name not in choices[key]:
                    raise TailfillError(f"phantom.{key}: '{name}' cannot stand here{nearest(name, choices[key])}")
        if NORMAL in self.labels and not self.drawn:
            raise TailfillError(f"phantom.findings: '{NORMAL}' is derived; wanted too: a label with a visible sign")
        if not self.labels:
            raise TailfillError("phantom.findings is empty; wanted: one label or more")
        if self.only_with and not self.asked_for:
            raise TailfillError(f"phantom.only_with is {', '.join(self.only_with)}, to which none of phantom.findings "
                                "belongs; wanted: what at least one label is or belongs to")
        highest = self.shares(self.drawn + self.controls).max()
        if highest > COMMONEST:
            raise TailfillError(f"phantom.val_enrichment {self.val_enrichment:g} and test_enrichment "
                                f"{self.test_enrichment:g} at site {self.site} put a finding in {highest:.0%} of the "
                                f"images; wanted: {COMMONEST:.0%} at most")

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in the order of their columns."""
        chosen = {"all": LABELS, "core": CORE}[self.findings] if isinstance(self.findings, str) else self.findings
        return tuple(label for label in LABELS if label in chosen)

    @property
    def drawn(self) -> tuple[str, ...]:
        """The visible signs among the labels, in their order."""
        return tuple(label for label in self.labels if label in FINDINGS)

    @property
    def controls(self) -> tuple[str, ...]:
        """The labels that leave no visible sign, in their order."""
        return tuple(label for label in self.labels if label in CONTROLS)

    @property
    def asked_for(self) -> tuple[str, ...]:
        """The labels that ``only_with`` names, themselves or by their group, in their order."""
        return tuple(label for label in self.labels if {label, nominal_group(label)} & {*self.only_with})

    @property
    def groups(self) -> dict[str, str]:
        """Group by label: ``control``, or what follows from its prevalence in train as it is set, not as it came out.

        So what is enriched, pooled and scored as the tail is the same whatever the seed.
        """
        set_shares = dict(zip(self.drawn, self.shares(self.drawn)[SPLITS.index("train")].tolist(), strict=True))
        return {label: group_of(set_shares[label]) if label in set_shares else nominal_group(label)
                for label in self.labels}

    def shares(self, labels: tuple[str, ...]) -> np.ndarray:
        """(3, n) float64: the prevalence of signs and controls per split, in the order of ``SPLITS``."""
        mix = CASE_MIXES[self.site]
        factors = {"train": 1.0, "val": self.val_enrichment, "test": self.test_enrichment}
        scarce = [nominal_group(label) in ("tail", CONTROL) for label in labels]
        usual = [base_prevalence(label) * (mix.scarce if rare else mix.others.get(label, 1.0))
                 for label, rare in zip(labels, scarce, strict=True)]
        return np.array([np.where(scarce, factors[split], 1.0) * usual for split in SPLITS])
