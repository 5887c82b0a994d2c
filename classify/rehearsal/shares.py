"""From the runs of a rehearsal to recovered shares: every arm, finding, level and metric, on shared draws of patients.

Each run is one thinning: a cohort, a generator and a training of its own, all of them measured on the same test
patients. So runs take the place of seeds in the crossed interval (``classify.comparison.intervals``), and the spread
between them holds that of the thinnings, the generators and the trainings. A finding is read in the runs of its own
set; the actual tail, which nobody thinned, in those of the first set, averaged over the levels.

Not promised: independence of levels. The same seed meets patients in the same order at every level, so that levels are
paired.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from classify.comparison.intervals import Array, bootstrap
from classify.comparison.measuring import Scored, read_scored
from classify.comparison.metrics import support
from classify.comparison.pairing import Source
from classify.comparison.pairs import HARMONISED_ARM, RIVALS
from classify.comparison.recovered import share_cells
from classify.rehearsal.choices import Cell
from classify.rehearsal.prevalence import REHEARSED, rehearsed_metrics
from cohort.tables import Cohort, load_cohort

REHEARSED_GROUP, TAIL_GROUP = "all findings", "actual tail"
"""Rows over several classes: the ratio of mean gains, never the mean of ratios."""
RIVAL, ORACLE = "duplicate", "oracle"
NO_SHARE = (ORACLE, "real", "oversample", "duplicate-harmonised")
"""Arms without a share: the oracle, whose own is 1, and those that do not fill the duplicates' slots with new images.
"""
KINDS = {"level": "Int64", **dict.fromkeys(("gain", "gain_low", "gain_high", "p", "oracle_gain"), "float64")}
"""Column types that a table of nothing but undefined numbers would lose."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run's arms on the test split."""

    values: Array
    """float64 (n_arms, n_labels, 3): ``prevalence.REHEARSED`` per label."""
    resampled: Array
    """float64 (n_arms, n_labels, 3, n_draws)."""
    n_real: Mapping[str, int]
    """Positive train images that the run had, per label."""
    scored: Scored
    labels: Sequence[str]


def measure(
    run: Path, labels: Sequence[str], *, arms: Sequence[str], weights: str,
    make_draws: Callable[[int], NDArray[np.uint16]], threads: int = 1,
) -> Measured:
    """Read one run's predictions, check them against its cohort, and measure ``labels``.

    ``make_draws``: number of test patients to uint16 (n_patients, n_draws). The prevalence of the third metric is that
    of the run's own training images. Raises ``TailfillError`` for predictions that are missing or not the cohort's.
    """
    cohort = load_cohort(run / "cohort")
    folders = {(arm, 0): run / "predictions" / arm / "seed_0" for arm in arms}
    scored = read_scored(folders, cohort, weights=weights)["test"]
    train, draws = cohort.split("train"), make_draws(scored.n_patients)
    columns = [cohort.labels.index(label) for label in labels]
    rare = [_prevalence(train, label) for label in labels]
    values, resampled = [], []
    for arm in arms:
        logits = scored.logits[arm, 0, weights]
        evaluators = [rehearsed_metrics(labels=scored.labels[:, at], logits=logits[:, at], prevalence=share)
                      for at, share in zip(columns, rare, strict=True)]
        values.append([evaluate(np.ones((len(scored.patients), 1)))[:, 0] for evaluate in evaluators])
        resampled.append(bootstrap(evaluators, patients=scored.patients, draws=draws, threads=threads))
    kept = Scored(labels=scored.labels[:, columns], patients=scored.patients, logits={})
    return Measured(values=np.array(values), resampled=np.stack(resampled), scored=kept, labels=list(labels),
                    n_real={label: int((train[label] == 1).sum()) for label in labels})


def _prevalence(train: pd.DataFrame, label: str) -> float:
    """Of the training images, kept off 0 and 1 by half an image: a label without a positive has no AP anyway."""
    known = int(train[label].notna().sum())
    return min(max(float((train[label] == 1).sum()), 0.5), known - 0.5) / max(known, 1)


def gather(cells: Mapping[Cell, Measured], level: int) -> Source:
    """The findings of one level, each from the runs of its own set: members are the findings and ``all findings``."""
    chosen = [cell for cell in cells if cell.level == level]
    findings = [(finding, place) for place in sorted({cell.place for cell in chosen})
                for finding in next(cell.findings for cell in chosen if cell.place == place)]
    seeds = sorted({cell.seed for cell in chosen})
    by_key = {(cell.place, cell.seed): cells[cell] for cell in chosen}

    def column(finding: str, place: int, kind: str) -> Array:
        ones = [by_key[place, seed] for seed in seeds]
        return np.stack([getattr(one, kind)[:, one.labels.index(finding)] for one in ones], axis=1)

    first = by_key[findings[0][1], seeds[0]]
    labels = np.stack([by_key[place, seeds[0]].scored.labels[:, by_key[place, seeds[0]].labels.index(finding)]
                       for finding, place in findings], axis=1)
    members = {finding: [at] for at, (finding, _) in enumerate(findings)}
    return _source(values=np.stack([column(*one, "values") for one in findings], axis=2),
                   resampled=np.stack([column(*one, "resampled") for one in findings], axis=2),
                   scored=Scored(labels=labels, patients=first.scored.patients, logits={}),
                   members=members | {REHEARSED_GROUP: list(range(len(findings)))})


def gather_tail(cells: Mapping[Cell, Measured], tail: Sequence[str]) -> Source:
    """The actual tail in the runs of the first set, averaged over levels: each seed one run, as its levels share
    seeds."""
    seeds = sorted({cell.seed for cell in cells})
    own = [[one for cell, one in cells.items() if cell.place == 0 and cell.seed == seed] for seed in seeds]
    columns = [own[0][0].labels.index(label) for label in tail]

    def mean(kind: str) -> Array:
        return np.stack([np.mean([getattr(one, kind)[:, columns] for one in ones], axis=0) for ones in own], axis=1)

    scored = own[0][0].scored
    return _source(values=mean("values"), resampled=mean("resampled"),
                   scored=Scored(labels=scored.labels[:, columns], patients=scored.patients, logits={}),
                   members={label: [at] for at, label in enumerate(tail)} | {TAIL_GROUP: list(range(len(tail)))})


def _source(*, values: Array, resampled: Array, scored: Scored, members: dict[str, list[int]]) -> Source:
    return Source(values=values, resampled=resampled, scored=scored, arms=(), members=members, metrics=REHEARSED)


def share_rows(
    source: Source, arms: Sequence[str], *, level: int | None, n_real: Mapping[str, float]
) -> list[dict[str, Any]]:
    """One row per arm but ``duplicate``, member and metric: its gain over ``rival_of`` it, and the recovered share.

    Columns: level (null for the actual tail), n_real (positive train images, mean over runs), arm, rival, label,
    metric, is_group, value, rival_value, gain, gain_low, gain_high, p, oracle_gain (over ``duplicate``), share, ci_low,
    ci_high, kind, reason (why there is no share), n_positive_images, n_positive_patients (test), n_runs. The oracle's
    row is the assay sensitivity.
    """
    known = replace(source, arms=list(arms))
    rows = []
    for label, members in known.members.items():
        images, patients = support(known.scored.labels[:, members], known.scored.patients)
        for m, metric in enumerate(known.metrics):
            bound = known.interval(ORACLE, RIVAL, members, m)
            for arm in arms:
                if arm == RIVAL:
                    continue
                rival = rival_of(arm)
                own = known.interval(arm, rival, members, m)
                cells = {} if arm in NO_SHARE else share_cells(
                    bound, known.gain(arm, rival, members, m), known.gain(ORACLE, RIVAL, members, m), rival=RIVAL)
                rows.append({
                    "level": level, "n_real": n_real[label], "arm": arm, "rival": rival, "label": label,
                    "metric": metric,
                    "is_group": len(members) > 1 or label in (REHEARSED_GROUP, TAIL_GROUP),
                    "value": known.per_seed(arm, None, members, m).mean(),
                    "rival_value": known.per_seed(rival, None, members, m).mean(), "gain": own.estimate,
                    "gain_low": own.low, "gain_high": own.high, "p": own.p, "oracle_gain": bound.estimate,
                    **cells, "n_positive_images": images, "n_positive_patients": patients,
                    "n_runs": known.values.shape[1],
                })
    return rows


def recovered_table(cells: Mapping[Cell, Measured], arms: Sequence[str]) -> pd.DataFrame:
    """``share_rows`` of every level and finding, lowest level first."""
    rows: list[dict[str, Any]] = []
    for level in sorted({cell.level for cell in cells}):
        source = gather(cells, level)
        n_real = {finding: float(np.mean([one.n_real[finding] for cell, one in cells.items()
                                          if cell.level == level and finding in cell.findings]))
                  for finding in source.members if finding != REHEARSED_GROUP}
        n_real[REHEARSED_GROUP] = float(np.mean(list(n_real.values())))
        rows += share_rows(source, arms, level=level, n_real=n_real)
    return pd.DataFrame(rows).astype(KINDS)


def rival_of(arm: str) -> str:
    """The repeats that ``arm`` is measured against: harmonised ones where its own real images are."""
    return RIVALS[arm] if arm.endswith(HARMONISED_ARM) else RIVAL


def rivals_aside(arm: str, arms: Sequence[str]) -> list[str]:
    """What ``arm`` must beat beside its rival before its gain is that of its images, as far as it is among ``arms``.

    The same training without added slots, which repeats can harm; where real images are harmonised, repeats among real
    ones as they are; the same images under each other's labels.
    """
    permuted = "permuted-harmonised" if arm.endswith(HARMONISED_ARM) else "permuted"
    return [other for other in ("real", RIVAL, permuted) if other in arms and other not in (arm, rival_of(arm))]


def contrast_table(cells: Mapping[Cell, Measured], arms: Sequence[str], *, arm: str) -> pd.DataFrame:
    """``arm`` against ``rivals_aside`` it: level, label, arm, rival, metric, delta, low, high."""
    rows = []
    for level in sorted({cell.level for cell in cells}):
        source = replace(gather(cells, level), arms=list(arms))
        for label, members in source.members.items():
            for rival in rivals_aside(arm, arms):
                for m, metric in enumerate(source.metrics):
                    one = source.interval(arm, rival, members, m)
                    rows.append({"level": level, "label": label, "arm": arm, "rival": rival, "metric": metric,
                                 "delta": one.estimate, "low": one.low, "high": one.high})
    columns = ["level", "label", "arm", "rival", "metric", "delta", "low", "high"]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[-3:], "float64"))


def tail_table(cells: Mapping[Cell, Measured], cohort: Cohort, arms: Sequence[str]) -> pd.DataFrame:
    """``share_rows`` of the actual tail, where an oracle of new patients was there; level is null."""
    tail = [label for label in cohort.in_group("tail") if (cohort.split("train")[label] == 1).any()]
    source = gather_tail(cells, tail)
    first = next(one for cell, one in cells.items() if cell.place == 0)
    n_real = {label: float(first.n_real[label]) for label in tail}
    n_real[TAIL_GROUP] = float(np.median(list(n_real.values())))
    return pd.DataFrame(share_rows(source, arms, level=None, n_real=n_real)).astype(KINDS)
