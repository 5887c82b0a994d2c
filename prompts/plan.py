"""Scarcity -> budget -> a plan with one row per image to make.

::

    python -m prompts.plan --config configs/nih128.yaml            writes RUN/plan: plan.parquet, budget.parquet
    python -m prompts.plan --config configs/nih128.yaml --dry-run  prints the budget, writes nothing

Real train images decide everything: which labels are scarce, how many images of each to ask for (``prompts.scarcity``),
which combinations of findings (``prompts.allocate``), in whose company (``prompts.company``), which patients and words
(``prompts.rows``, ``prompts.phrases``), and which images start from a real one rather than from noise
(``prompts.conditioned``).
Images of the validation and test splits are never looked at. An unknown label of a real image is not asked for: it
counts as absent in its vector, while prevalence is taken over the images whose label is known.

Every scarce finding that gets less than asked has a reason in ``budget.parquet``; an explicit number that cannot be met
is an error. The plan does not promise that the generator can draw what is asked for: the filter finds that out.
"""

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from cohort.config import parse
from cohort.errors import TailfillError, run_command
from cohort.stage import Stage
from cohort.tables import Cohort, load_cohort, plan_schema, write_table
from prompts.allocate import Allocation, Combinations, add_unseen, allocate, combination_limits, find_combinations
from prompts.company import borrow, keep_scarce
from prompts.conditioned import choose_starts
from prompts.phrases import fits, negative_prompt
from prompts.rows import (
    NEGATIVE,
    NOBODY,
    NOTHING_LABELS,
    assemble,
    deal_donors,
    deal_variants,
    describe_patients,
    evenly,
    make_positives,
)
from prompts.scarcity import Targets, find_scarce, set_targets, train_counts
from prompts.settings import PlanConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan's rows, the budget per label, and what the stamp says of them."""

    rows: pd.DataFrame
    budget: pd.DataFrame
    counts: dict[str, int]
    """planned = positives + negatives; extrapolated: positives whose combination no real image carries (of scarce
    findings, where their company is borrowed);
    conditioned_positives, conditioned_negatives: those that start from a real image."""
    extra: dict[str, Any]
    """``scarce`` labels, ``combinations`` asked for, real ones that are ``unspeakable``: too long for any prompt."""


def build_plan(cohort: Cohort, config: PlanConfig, *, seed: int, round_: int = 0) -> Plan:
    """Decide what to ask for; the same cohort (in any order of rows), config, seed and round give the same plan.

    Raises ``TailfillError`` for names that the cohort does not know, for explicit numbers that cannot be met, and when
    nothing is left to ask for.
    """
    reality = look(cohort, config)
    counts, scarce = reality.counts, reality.scarce
    targets = set_targets(counts, scarce, rule=config.rule, total=config.total, floor=config.floor,
                          max_ratio=config.max_ratio, beta=config.beta, per_class=config.per_class)
    wanted = np.array([targets.wanted[label] for label in scarce], np.int64)
    if not wanted.any():
        raise TailfillError("plan: nothing to ask for: " + "; ".join(f"{k}: {v}" for k, v in targets.reasons.items()))
    limits = combination_limits(reality.combinations, reality.columns, wanted, spread=config.spread,
                                max_repeat=config.max_repeat)
    allocation = allocate(reality.combinations.vectors, scarce=reality.columns, targets=wanted, limits=limits,
                          weight=reality.combinations.weight)
    reasons = _shortfalls(scarce, wanted, allocation, targets, config, counts)
    if not allocation.counts.any():
        raise TailfillError("plan: nothing can be asked for: " + "; ".join(f"{k}: {v}" for k, v in reasons.items()))
    rows = make_rows(reality, config, allocation.counts, wanted, seed=seed, round_=round_)
    return plan_of(rows, reality, wanted=targets.wanted, reasons=reasons,
                   combinations=int((allocation.counts > 0).sum()))


@dataclass(frozen=True, kw_only=True)
class Reality:
    """What the real train images say: N images in the order of their ids, L labels, S scarce ones."""

    cohort: Cohort
    train: pd.DataFrame
    counts: pd.DataFrame
    """As :func:`prompts.scarcity.train_counts` has it."""
    scarce: list[str]
    matrix: np.ndarray
    """bool (N, L): the labels, unknown as false."""
    combinations: Combinations
    """The K candidates that a prompt can say; of scarce findings only, where their company is borrowed."""
    n_unspeakable: int
    borrows: bool
    """Whether the findings that are not scarce come from other images."""

    @property
    def columns(self) -> list[int]:
        """The columns of the scarce labels."""
        return [self.cohort.labels.index(label) for label in self.scarce]

    def told_apart(self, matrix: np.ndarray) -> np.ndarray:
        """What of some label vectors, bool (n, L), makes them another candidate."""
        return keep_scarce(matrix, self.columns) if self.borrows else matrix


def look(cohort: Cohort, config: PlanConfig) -> Reality:
    """Count and list; raises ``TailfillError`` for names that the cohort does not know."""
    labels = cohort.labels
    train = cohort.split("train").sort_values("image_id", ignore_index=True)
    scarce = find_scarce(config.scarce, labels=labels, groups=cohort.groups, per_class=config.per_class)
    matrix = np.column_stack([train[label].fillna(0).to_numpy(np.int8) for label in labels]).astype(bool)
    columns, borrows = [labels.index(label) for label in scarce], config.company_prior is not None
    if borrows and {*scarce} & {*NOTHING_LABELS}:
        raise TailfillError(f"plan.company_prior: {', '.join(sorted({*scarce} & {*NOTHING_LABELS}))} is scarce, which "
                            "says that there is no company; wanted: null, or other scarce labels")
    combinations, n_unspeakable = _candidates(keep_scarce(matrix, columns) if borrows else matrix, columns, labels,
                                              allow_unseen=config.allow_unseen)
    return Reality(cohort=cohort, train=train, counts=train_counts(train, labels), scarce=scarce, matrix=matrix,
                   combinations=combinations, n_unspeakable=n_unspeakable, borrows=borrows)


def make_rows(
    reality: Reality, config: PlanConfig, counts: np.ndarray, wanted: np.ndarray, *, seed: int, round_: int,
    phrasings: Mapping[int, np.ndarray] | None = None,
) -> pd.DataFrame:
    """The rows of a round: ``counts``, int (K,), one or more images in all, of each combination, and their negatives.

    ``wanted``: int (S,), by which an image with several scarce findings is charged. ``phrasings``: as ``deal_variants``
    has them. The same arguments give the same rows.
    """
    train, matrix, labels = reality.train, reality.matrix, reality.cohort.labels
    rng = np.random.default_rng([seed, round_])
    positives = make_positives(reality.combinations, counts, wanted, scarce=reality.columns, rng=rng)
    vectors = reality.combinations.vectors[positives.combination]
    lender = np.full(len(vectors), NOBODY)
    if config.company_prior is None:
        donor = deal_donors(train, matrix, positives, rng)
    else:
        lender, vectors = borrow(train, matrix, vectors, positives.charged, labels=labels, scarce=reality.columns,
                                 prior=config.company_prior, rng=rng)
        donor = lender
        positives = replace(positives, source=np.full(len(donor), NOBODY))
    patients = describe_patients(train, donor, positives, age_jitter=config.age_jitter, rng=rng)
    has_negative = evenly(len(vectors), config.negatives_per_positive)
    starts = choose_starts(train, matrix, vectors, positives, labels=labels, scarce=reality.columns,
                           has_negative=has_negative, share=config.image_conditioned)
    return assemble(
        train, labels, vectors, positives, patients, variant=deal_variants(positives.charged, phrasings or {}, rng),
        lender=lender, starts=starts, strength=config.strength, scarce=reality.columns, has_negative=has_negative,
        seed=seed, round_=round_, batch_size=config.batch_size, negative_prompt=negative_prompt(),
    )


def plan_of(
    rows: pd.DataFrame, reality: Reality, *, wanted: Mapping[str, int], reasons: Mapping[str, str],
    combinations: int,
) -> Plan:
    """The rows with their budget and counts; ``combinations``: how many were asked for."""
    negative = rows["charged_to"] == NEGATIVE
    conditioned = rows["init_image_id"].notna()
    unseen = {vector.tobytes() for vector, members in zip(reality.combinations.vectors, reality.combinations.members,
                                                          strict=True) if not len(members)}
    asked = reality.told_apart(rows.loc[~negative, reality.cohort.labels].to_numpy(bool))
    return Plan(
        rows=rows, budget=_budget(reality, rows, wanted, reasons),
        counts={"planned": len(rows), "positives": int((~negative).sum()), "negatives": int(negative.sum()),
                "extrapolated": sum(vector.tobytes() in unseen for vector in asked),
                "conditioned_positives": int((conditioned & ~negative).sum()),
                "conditioned_negatives": int((conditioned & negative).sum())},
        extra={"scarce": reality.scarce, "combinations": combinations, "unspeakable": reality.n_unspeakable},
    )


def _candidates(
    matrix: np.ndarray, scarce: list[int], labels: list[str], *, allow_unseen: bool
) -> tuple[Combinations, int]:
    """Combinations that a prompt can say, and how many real ones are left out because none can."""
    seen = find_combinations(matrix, scarce)
    speakable = [fits([labels[j] for j in np.flatnonzero(vector)]) for vector in seen.vectors]
    kept = np.flatnonzero(speakable)
    if len(kept) < len(seen.vectors):
        log.info("plan: %d combinations have too many findings for a prompt", len(seen.vectors) - len(kept))
    said = Combinations(vectors=seen.vectors[kept], members=[seen.members[k] for k in kept], weight=seen.weight[kept])
    return add_unseen(said, matrix, scarce) if allow_unseen else said, len(seen.vectors) - len(kept)


def _shortfalls(
    scarce: list[str], wanted: np.ndarray, allocation: Allocation, targets: Targets, config: PlanConfig,
    counts: pd.DataFrame,
) -> dict[str, str]:
    """A reason per class that gets less than its rule wanted; raises for an explicit number that cannot be met."""
    reasons = dict(targets.reasons)
    for label, target, reach in zip(scarce, wanted, allocation.reachable, strict=True):
        if reach >= target:
            continue
        n_real = int(counts["n_real"][label])
        why = f"only {reach} of {target} images can be asked for: " + (
            "no real train image carries it (allow_unseen asks for it without one)" if n_real == 0 else
            "no combination with it fits into a prompt" if reach == 0 else
            f"max_repeat {config.max_repeat} x the combinations of {n_real} real images")
        if label in config.per_class:
            raise TailfillError(f"plan.per_class.{label}: cannot be met: {why}")
        reasons[label] = "; ".join(filter(None, [reasons.get(label), why]))
    for label, reason in reasons.items():
        log.info("plan: %s: %s", label, reason)
    return reasons


def _budget(
    reality: Reality, rows: pd.DataFrame, wanted: Mapping[str, int], reasons: Mapping[str, str]
) -> pd.DataFrame:
    """One row per label of the cohort; those that are not scarce have no target, and ``carried`` shows the padding."""
    positive = rows[rows["charged_to"] != NEGATIVE]
    charged = positive["charged_to"].value_counts()
    labels, counts = reality.cohort.labels, reality.counts
    return pd.DataFrame({
        "label": labels, "group": [reality.cohort.groups[label] for label in labels],
        "scarce": [k in reality.scarce for k in labels],
        "n_real": counts.loc[labels, "n_real"].to_numpy(), "prevalence": counts.loc[labels, "prevalence"].to_numpy(),
        "target": [wanted.get(label, 0) for label in labels],
        "charged": [int(charged.get(label, 0)) for label in labels],
        "carried": positive[labels].sum().to_numpy(np.int64),
        "reason": pd.array([reasons.get(label) for label in labels], dtype="str"),
    })


def main() -> None:
    """The ``plan`` stage."""
    options = parse("plan", PlanConfig, doc=__doc__)
    run, config = options.run, options.section
    cohort = load_cohort(run.cohort_folder)
    stage = Stage("plan", run.folder / "plan", config={**config.identity(), "seed": run.seed},
                  inputs={"cohort": run.cohort_folder})
    if not options.dry_run and stage.is_complete():
        log.info("plan: complete, nothing to do")
        return
    plan = build_plan(cohort, config, seed=run.seed)
    if options.dry_run:
        asked = plan.budget[plan.budget["scarce"]].drop(columns="scarce").to_string(index=False)
        sys.stdout.write(f"{stage.describe(rows=plan.counts, **plan.extra)}\n{asked}\n")
        return
    stage.begin()
    write_table(plan.rows, stage.folder / "plan.parquet", plan_schema(cohort.labels))
    write_table(plan.budget, stage.folder / "budget.parquet")
    stage.finish(outputs=["plan.parquet", "budget.parquet"], counts=plan.counts, extra=plan.extra)
    log.info("plan: %(planned)d images: %(positives)d positives, %(negatives)d matched negatives; from a real image "
             "start %(conditioned_positives)d and %(conditioned_negatives)d", plan.counts)


if __name__ == "__main__":
    run_command(main)
