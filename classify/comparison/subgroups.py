"""Sub-groups of the test set by sex, age band and view: does an arm serve some patients worse than others?

For every sub-group and group of findings (the tail, and all), the endpoint's arm, its rival, and the difference of the
two (``rival`` is set), each the mean over seeds with its crossed interval from the same draws of patients:

    AP, AUROC    within the sub-group alone; AP grows with prevalence, so compare arms within a row by it, not rows
    FNR          the share of positives that is missed at each class's validation threshold
    AUROC gap    AUROC less that among all others of the attribute; as a difference of arms, it says whether the
                 sub-group gained as much as the others did
    FNR gap      FNR less that among the others: above 0, the sub-group is under-diagnosed (Seyyed-Kalantari et al.
                 2021, who use these age bands too); as a difference, what the arm changed about it

A class that has no positive in a sub-group is left out of its mean, in every arm alike, and of a gap where either side
has none. A gap is known no better than the smaller of its sides, class by class: these positive patients decide its
degrees of freedom, whether it has an interval, and whether it rests on few. Images whose sex, age or view is unknown
are in no sub-group of it; an attribute with one value has none.

Not promised: intervals adjusted for their number, or a cause. Sub-groups differ in disease, machine and label error.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise, product

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from classify.comparison.intervals import Array, Interval, bootstrap
from classify.comparison.measuring import Scored, groups_of
from classify.comparison.metrics import ClassMetrics, choose_threshold, support
from classify.comparison.pairing import Source
from cohort.config import Run
from cohort.tables import SEXES, VIEWS, Cohort

AGE_BANDS = {"under 20": 20, "20 to 39": 40, "40 to 59": 60, "60 to 79": 80, "80 and over": 200}
"""Band to the age in years below which it ends."""
GROUPS = ("tail", "all")
N_DRAWS = 500
"""Of the comparison's draws, the first: they give a standard error to 3 %, and there are a dozen sub-groups."""
FEW = 20
"""Positive patients of the sub-group below which its numbers are shown in grey."""
RANKING, FNR, GAP, RANKING_GAP = ("AP", "AUROC"), "FNR", "FNR gap", "AUROC gap"
GAPS = {GAP: FNR, RANKING_GAP: "AUROC"}
"""Gap -> what it is a gap in."""
COLUMNS = ("attribute", "subgroup", "label", "arm", "rival", "metric", "value", "ci_low", "ci_high", "n_images",
           "n_positive_images", "n_positive_patients", "n_classes", "few", "reason")


def subgroups_of(people: pd.DataFrame) -> dict[str, dict[str, NDArray[np.bool_]]]:
    """Attribute to sub-group to its images, bool (n_images,): those that occur, of attributes with two or more.

    ``people``: columns sex, age (years) and view; null is unknown.
    """
    age = people["age"].to_numpy(dtype=np.float64, na_value=np.nan)
    ends = [0, *AGE_BANDS.values()]
    found = {
        "sex": {sex: (people["sex"] == sex).to_numpy(dtype=bool, na_value=False) for sex in SEXES},
        "age": {band: (age >= low) & (age < high) for band, (low, high) in zip(AGE_BANDS, pairwise(ends), strict=True)},
        "view": {view: (people["view"] == view).to_numpy(dtype=bool, na_value=False) for view in VIEWS},
    }
    present = {name: {value: rows for value, rows in parts.items() if rows.any()} for name, parts in found.items()}
    return {name: parts for name, parts in present.items() if len(parts) > 1}


def subgroup_rows(scored: Mapping[str, Scored], cohort: Cohort, run: Run, *, pair: tuple[str, str], weights: str,
                  draws: NDArray[np.uint16]) -> pd.DataFrame:
    """The table ``subgroups``; ``few`` marks fewer than 20 positive patients, ``reason`` says why a null is null.

    Of a gap ``few`` is about the smaller side of each class, ``n_positive_*`` about the sub-group as everywhere.

    ``pair``: the arm and its rival; ``scored``, ``weights`` and ``draws`` as in ``measuring.resample``.
    """
    people = cohort.split("test").sort_values("image_id", ignore_index=True)
    measured = _Measured(scored, run, arms=pair, weights=weights, draws=draws)
    groups = groups_of(cohort)
    rows = []
    for attribute, parts in subgroups_of(people).items():
        known = np.any(list(parts.values()), axis=0)
        for subgroup, inside in parts.items():
            sources = measured.sources(inside, known & ~inside, members=groups)
            for label, (arm, rival) in product(GROUPS, ((pair[0], None), (pair[1], None), pair)):
                about = {"attribute": attribute, "subgroup": subgroup, "label": label, "arm": arm, "rival": rival,
                         "n_images": int(inside.sum())}
                rows += [about | cells for cells in _cells(sources, arm, rival, groups[label])]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"rival": "str"})


class _Measured:
    """The test split with all that sub-groups are measured by: thresholds, and draws with a first one of ones."""

    def __init__(self, scored: Mapping[str, Scored], run: Run, *, arms: Sequence[str], weights: str,
                 draws: NDArray[np.uint16]) -> None:
        self.test, self.arms, self.n_seeds, self.threads = scored["test"], arms, run.n_seeds, run.threads
        self.keys = [(arm, seed, weights) for arm in arms for seed in range(run.n_seeds)]
        plain = np.ones((len(draws), 1), dtype=np.uint16)
        self.draws = np.concatenate([plain, draws[:, :N_DRAWS]], axis=1)
        self.thresholds = [_thresholds(scored["val"], key) for key in self.keys]
        self.ranked: dict[bytes, Array] = {}

    def sources(self, inside: NDArray[np.bool_], others: NDArray[np.bool_],
                *, members: Mapping[str, list[int]]) -> dict[str, Source]:
        """Metric to the values and resampled values of the images ``inside``; gaps against ``others``."""
        ranks, rates = self._rankings(inside), self._miss_rates(inside)
        auroc = RANKING.index("AUROC")
        found = {RANKING: ranks, (FNR,): rates[:, :, None],
                 (RANKING_GAP,): (ranks - self._rankings(others))[:, :, auroc : auroc + 1],
                 (GAP,): (rates - self._miss_rates(others))[:, :, None]}
        own, other = (np.where(side[:, None], self.test.labels, np.nan) for side in (inside, others))
        thinner = np.where(self._n_patients(other) < self._n_patients(own), other, own)
        sources: dict[str, Source] = {}
        for metrics, values in found.items():
            shaped = values.reshape(len(self.arms), self.n_seeds, *values.shape[1:])
            part = Scored(labels=thinner if metrics[0] in GAPS else own, patients=self.test.patients, logits={})
            source = Source(values=shaped[..., 0], resampled=shaped[..., 1:], scored=part, arms=self.arms,
                            members=members, metrics=metrics)
            sources |= dict.fromkeys(metrics, source)
        return sources

    def _n_patients(self, labels: Array) -> NDArray[np.int_]:
        """Positive patients of each class, (n_labels,)."""
        return np.array([support(labels[:, [at]], self.test.patients)[1] for at in range(labels.shape[1])])

    def _rankings(self, inside: NDArray[np.bool_]) -> Array:
        """AP and AUROC: float64 (n_arms x n_seeds, n_labels, 2, 1 + n_draws), computed once for each set of images."""
        if inside.tobytes() in self.ranked:
            return self.ranked[inside.tobytes()]
        labels, values = self.test.labels[inside], []
        for key in self.keys:
            evaluators = [ClassMetrics(labels=labels[:, at], logits=self.test.logits[key][inside, at])
                          for at in range(labels.shape[1])]
            values.append(bootstrap(evaluators, patients=self.test.patients[inside], draws=self.draws,
                                    threads=self.threads)[:, : len(RANKING)])
        self.ranked[inside.tobytes()] = np.stack(values)
        return self.ranked[inside.tobytes()]

    def _miss_rates(self, inside: NDArray[np.bool_]) -> Array:
        """Missed among positive images: float64 (n_arms x n_seeds, n_labels, 1 + n_draws), NaN without a positive."""
        rows = np.flatnonzero(inside & (self.test.labels == 1).any(axis=1))
        positive = (self.test.labels[rows] == 1).astype(np.float64)
        weights = self.draws[self.test.patients[rows]].astype(np.float64)
        total = positive.T @ weights
        rates = np.full((len(self.keys), *total.shape), np.nan)
        for at, (key, thresholds) in enumerate(zip(self.keys, self.thresholds, strict=True)):
            missed = (positive * (self.test.logits[key][rows] < thresholds)).T @ weights
            defined = (total > 0) & ~np.isnan(thresholds)[:, None]
            np.divide(missed, total, out=rates[at], where=defined)
        return rates


def _thresholds(val: Scored, key: tuple[str, int, str]) -> Array:
    """F1's threshold of each class: float64 (n_labels,), NaN without a validation positive."""
    chosen = [choose_threshold(labels=val.labels[:, at], logits=val.logits[key][:, at])
              for at in range(val.labels.shape[1])]
    return np.array([np.nan if one is None else one[0] for one in chosen])


def _cells(sources: Mapping[str, Source], arm: str, rival: str | None, members: list[int]) -> list[dict[str, object]]:
    """What one arm scores over ``members``, or what it differs in from its rival, a row per metric."""
    rows, part = [], sources[FNR].scored
    n_images, n_patients = support(part.labels[:, members], part.patients)
    for metric, source in sources.items():
        at = list(source.metrics).index(metric)
        defined = source.defined(members, at)
        n_behind = support(source.scored.labels[:, defined], source.scored.patients)[1]
        one: Interval = source.interval(arm, rival, members, at)
        low, high = (np.nan if end is None else end for end in (one.low, one.high))
        reason = one.reason
        if metric in GAPS and one.estimate is None:
            within = sources[GAPS[metric]]
            place = list(within.metrics).index(GAPS[metric])
            reason = (within.interval(arm, rival, members, place).reason if not within.defined(members, place)
                      else "no positives among the others")
        if metric not in GAPS and rival is None:
            low, high = np.clip([low, high], 0, 1)
        rows.append({
            "metric": metric, "value": np.nan if one.estimate is None else one.estimate, "ci_low": low,
            "ci_high": high, "n_positive_images": n_images, "n_positive_patients": n_patients,
            "n_classes": len(defined), "few": (n_behind if metric in GAPS else n_patients) < FEW,
            "reason": reason,
        })
    return rows


def subgroup_sentence(table: pd.DataFrame, *, arm: str, rival: str) -> str:
    """The smallest sub-group, where ``arm`` misses more than among the others, and who gained otherwise, in words."""
    if table.empty:
        return "No sub-groups: sex, age and view of the test images are unknown, or the same for all of them."
    every = table[(table["arm"] == arm) & (table["label"] == "all")]
    own, change = every[every["rival"].isna()], every[every["rival"] == rival]
    least = own[own["metric"] == GAP].sort_values("n_positive_patients", kind="stable").iloc[0]
    missed = _named(own[(own["metric"] == GAP) & (own["ci_low"] > 0)])
    uneven = _named(change[(change["metric"] == RANKING_GAP) & ((change["ci_low"] > 0) | (change["ci_high"] < 0))])
    widened = _named(change[(change["metric"] == GAP) & (change["ci_low"] > 0)])
    said = [
        f"The smallest sub-group is {least['attribute']} {least['subgroup']}: {least['n_images']:,} test images, "
        f"{least['n_positive_images']:,} with a finding, of {least['n_positive_patients']:,} patients.",
        f"Under-diagnosed by {arm}, share of missed findings less that of the others: {missed or 'none'}.",
        f"Gap wider than with {rival}: {widened or 'none'}.",
        f"AUROC gained over {rival} less what the others gained: {uneven or 'no difference in any'}.",
    ]
    return f"{' '.join(said)} Beyond a 95 % interval each, not adjusted for the number of sub-groups."


def _named(found: pd.DataFrame) -> str:
    """Sub-groups with their numbers, the largest first; those under 20 positive patients are not named."""
    ordered = found[~found["few"]].sort_values("value", ascending=False)
    numbers = [f"{row.value:+.3f}, {row.ci_low:+.3f} to {row.ci_high:+.3f}".replace("-", "−")
               for row in ordered.itertuples()]
    return ", ".join(f"{attribute} {subgroup} ({text})" for attribute, subgroup, text in
                     zip(ordered["attribute"], ordered["subgroup"], numbers, strict=True))
