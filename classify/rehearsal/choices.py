"""Which findings are thinned, how far, and which of them together: from the cohort's counts, before anything is run.

A finding serves when it is no tail class itself, has enough positive test patients for an interval that says something,
and enough positives in train that withholding leaves the oracle something: twice the highest level. The best supported
come first. Not promised: that they resemble the tail; a large effusion is easier to see than a small hernia, which is
why the finding, and not the image, is the unit of every prediction.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from classify.rehearsal.settings import RehearsalConfig
from cohort.errors import TailfillError, nearest
from cohort.tables import Cohort
from cohort.withholding.thinning import sets_apart
from prompts.rows import NOTHING_LABELS

MULTIPLES = (1, 2, 4)
"""Default levels as multiples of what the tail has: where it stands, and whether a few more real ones would change
it."""
FEWEST = 5
"""Lowest default level: with fewer positives the thinning itself, not the images, decides what is learnt."""
TO_SPARE = 2
"""A finding must have so many times the highest level in train: as many withheld as kept, at least."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a rehearsal: a set of findings in one cohort, at one level, in one draw of patients."""

    findings: tuple[str, ...]
    place: int
    """Number of the set, from 0."""
    level: int
    seed: int

    @property
    def name(self) -> str:
        """Its folder below the rehearsal's."""
        return f"set_{self.place}/level_{self.level}/seed_{self.seed}"


def count_support(cohort: Cohort) -> pd.DataFrame:
    """Index label; group, n_train (positive images), test_patients (with a positive image)."""
    test, train = cohort.split("test"), cohort.split("train")
    return pd.DataFrame({
        "group": pd.Series(cohort.groups),
        "n_train": {label: int((train[label] == 1).sum()) for label in cohort.labels},
        "test_patients": {label: int(test.loc[(test[label] == 1).fillna(False), "patient_id"].nunique())
                          for label in cohort.labels},
    }).loc[cohort.labels]


def choose_levels(cohort: Cohort, config: RehearsalConfig) -> list[int]:
    """The levels, lowest first; raises ``TailfillError`` where none is given and the cohort has no tail to take
    from."""
    if config.levels:
        return sorted(config.levels)
    support = count_support(cohort)
    tail = support.loc[(support["group"] == "tail") & (support["n_train"] > 0), "n_train"]
    if tail.empty:
        raise TailfillError("rehearsal.levels is empty, and the cohort has no tail class with a positive train image "
                            "to take them from; wanted: numbers of positive images")
    lowest = max(FEWEST, round(float(tail.median())))
    return [times * lowest for times in MULTIPLES]


def choose_findings(cohort: Cohort, config: RehearsalConfig, *, levels: Sequence[int]) -> list[str]:
    """The findings to thin, best supported in test first.

    Raises ``TailfillError`` for a name that is no finding, is scarce itself or has nothing to withhold, and where no
    finding can be chosen.
    """
    support = count_support(cohort)
    wanted = TO_SPARE * max(levels)
    fit = support[support["group"].isin(["head", "medium"]) & (support["n_train"] >= wanted)]
    for finding in config.findings:
        if finding not in cohort.labels:
            raise TailfillError(f"rehearsal.findings: no label '{finding}'{nearest(finding, cohort.labels)}")
        if finding not in fit.index:
            found = support.loc[finding]
            raise TailfillError(f"rehearsal.findings: '{finding}' is {found['group']} with {found['n_train']} positive "
                                f"train images; wanted: head or medium, and {wanted} ({TO_SPARE} x the highest level)")
    if config.findings:
        return list(config.findings)
    fit = fit[(fit["test_patients"] >= config.min_test_patients) & ~fit.index.isin(NOTHING_LABELS)]
    if fit.empty:
        raise TailfillError(f"rehearsal: no finding outside the tail has {wanted} positive train images and "
                            f"{config.min_test_patients} positive test patients; wanted: lower rehearsal.levels or "
                            "rehearsal.min_test_patients")
    order = np.argsort(-fit["test_patients"].to_numpy(), kind="stable")
    return [str(label) for label in fit.index[order][: config.n_findings]]


def list_cells(cohort: Cohort, config: RehearsalConfig) -> list[Cell]:
    """Every run of a rehearsal, seed by seed, so that a first answer stands after the first seeds of all levels."""
    levels = choose_levels(cohort, config)
    findings = choose_findings(cohort, config, levels=levels)
    sets = sets_apart(cohort.frame, findings, max_overlap=config.max_overlap)
    return [Cell(findings=tuple(one), place=place, level=level, seed=seed)
            for seed in range(config.seeds) for place, one in enumerate(sets) for level in levels]
