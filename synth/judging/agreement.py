"""Does the image show what was asked for, and nothing scarce that was not? The critics' word, set on real images.

Every finding asked for must score as high as nearly all real images that show it, every scarce finding that was not
asked for, whether the plan pays for it or not, must score no higher than nearly all that do not. Train positives are no
substitute for validation: the critics have learnt them by heart. So where validation has too few images with a finding,
what it must reach where it was asked for is what few real *negatives* exceed, seen by out-of-fold critics where there
are some (``filter.folds``). That floor stands apart: inside the one level below, the real positives that miss it would
leave no bound to any other label. How many right images pass with such floors is told beside the level.

"Nearly all" is one level for all labels, because rules for each label multiply: 95 % each over 14 labels keep half. An
image passes up to the smallest tail position that it has on any of its labels (minP, Westfall and Young 1993), among
images of other patients (cross-validation+, Barber et al. 2021); the level is the one that a stated share of whole real
images reach so, as an image made is compared with strangers too. The share by cross-validation of all that stands
beside it.

A finding on which the critics cannot be told from chance is *not judged*: no score, no failure, and a reason in the
table of thresholds. Not promised: that an image that passes is right, for critics err, and err together; or the stated
share for each label and each rare combination.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from scipy.special import expit, xlogy

from synth.judging.critic import Gauge, fold_gauges, reached, validation_gauges
from synth.judging.evidence import Evidence
from synth.judging.rules import Criterion, reads

Select = Literal["confident", "band", "entropy"]
PARTS = 10
"""Of the validation patients, for the cross-validated share."""


@dataclass(frozen=True, kw_only=True)
class Joint:
    """One level for several labels."""

    level: float
    """Above the share of real positives, and of negatives, that lie beyond a label's bound, 0 to 1."""
    shares: dict[str, tuple[float, float, int]]
    """Kind of image to the share of real ones that pass on all labels, the same by cross-validation, and how many."""
    with_floors: float | None
    """Share of all of them that also reach the floors of findings with few positives; None where there are none."""

    def __str__(self) -> str:
        told = [f"{share:.1%} of {n:,} {kind} ({cross:.1%} by cross-validation)"
                for kind, (share, cross, n) in self.shares.items()]
        floors = "" if self.with_floors is None else (
            f"; {self.with_floors:.1%} of all with the floors of findings with few positives")
        return (f"joint level {self.level:.3g}, at which pass on all labels: {' and '.join(told) or 'nobody knows'}"
                f"{floors}")


@reads("critic", "fold")
def label_agreement(
    evidence: Evidence, *, pass_share: float = 0.9, false_positive_rate: float = 0.01, quantile_from: int = 20,
    judged_from: int = 5, reach_from: float = 0.5, select: Select = "confident", select_quantile: float = 0.5,
) -> list[Criterion]:
    """Each finding's score where it was asked for, and each scarce finding's where it was not.

    Args:
        evidence: with the logits of one critic or more, and those of out-of-fold critics where there are some.
        pass_share: share of real images that pass on all labels together, 0 to 1, of those with a scarce finding and
            of those without; only the floors of findings with few positive images are set apart from it.
        false_positive_rate: share of real negatives above the floor of a finding with few positive images.
        quantile_from: validation images with a finding from which it is no longer one of these.
        judged_from: patients with a finding, in the images that its threshold comes from, to judge it at all.
        reach_from: share of the few real positives, 0 to 1, that must reach such a floor for it to judge anything.
        select: ``confident`` keeps all that pass. The others keep of these, for the scarce findings asked for, only
            what the critics are unsure of: ``band`` what scores at most the quantile ``select_quantile`` of the real
            positives that pass, so between the outside and the middle of the class (DiffuLT, Shao et al. 2024, keeps
            such images because they teach most); ``entropy`` what has at least that quantile of their predictive
            entropy (feedback-guided synthesis, Askari-Hemmat et al. 2023). Then fewer real images pass, too.
        select_quantile: see ``select``; 0 to 1.
    """
    in_validation = validation_gauges(evidence)
    out_of_fold = fold_gauges(evidence, false_positive_rate=false_positive_rate)
    few = {label for label, gauge in in_validation.items() if len(gauge.positives) < quantile_from}
    gauges = [out_of_fold.get(label, gauge) if label in few else gauge for label, gauge in in_validation.items()]
    floors = _floors([gauge for gauge in gauges if gauge.label in few], false_positive_rate)
    opinions = [_why_not_judged(gauge, judged_from=judged_from, floor=floors.get(gauge.label), reach_from=reach_from)
                for gauge in gauges]
    judged = [gauge for gauge, (why_not, _) in zip(gauges, opinions, strict=True) if why_not is None]
    floors = {gauge.label: floors[gauge.label] for gauge in judged if gauge.label in floors}
    joint = joint_level(judged, evidence.unasked, pass_share=pass_share, floors=floors)
    criteria: list[Criterion] = []
    for gauge, (why_not, skill) in zip(gauges, opinions, strict=True):
        asked, scarce = evidence.made.carriers(gauge.label), gauge.label in evidence.unasked
        if not (scarce or asked.any()):
            continue
        floor, ceiling = (None, None) if why_not else gauge.bounds(joint.level)
        source = gauge.source if why_not else f"{gauge.source}, {joint}"
        lowest = _about_floor(gauge, floors[gauge.label], false_positive_rate) if gauge.label in floors else source
        floor = floors.get(gauge.label, floor)
        about = partial(Criterion, label=gauge.label, n_positive=len(gauge.positives), reason=why_not)
        criteria.append(about(score=gauge.made, applies=asked, threshold=floor, at_least=True,
                              source=f"{lowest}; {skill}"))
        if scarce:
            criteria.append(about(score=gauge.made, applies=~asked, threshold=ceiling, at_least=False,
                                  source=f"{source}; {skill}"))
        if scarce and floor is not None and select != "confident":
            score, threshold, at_least, source = _unsure(gauge, floor, select, select_quantile)
            criteria.append(about(score=score, applies=asked, threshold=threshold, at_least=at_least, source=source))
    return criteria


def entropy(logits: np.ndarray) -> np.ndarray:
    """Of the yes-or-no answers that logits stand for, nats, 0 to ln 2, highest at logit 0; any shape."""
    p = expit(logits)
    return np.asarray(-xlogy(p, p) - xlogy(1 - p, 1 - p))


def _floors(gauges: Sequence[Gauge], rate: float) -> dict[str, float]:
    """Label to the score that a share ``rate`` of its negatives exceeds, where it has some."""
    return {gauge.label: float(np.quantile(gauge.negatives, 1 - rate)) for gauge in gauges if len(gauge.negatives)}


def _why_not_judged(
    gauge: Gauge, *, judged_from: int, floor: float | None, reach_from: float
) -> tuple[str | None, str]:
    """Reason or None, and the critics' skill in words; ``floor``: that of a finding with few positives.

    A floor that nearly all right images fail says nothing of those that were made.
    """
    if gauge.positive_patients < judged_from or not len(gauge.negatives):
        return (f"not judged: {gauge.positive_patients} patients with the finding (wanted: {judged_from}), "
                f"{len(gauge.negatives)} images without"), "critics' skill unknown"
    auroc, low, high = gauge.skill()
    skill = f"critics' AUROC {auroc:.3f} ({low:.3f} to {high:.3f})"
    if low <= 0.5:
        return f"not judged: {skill} is not above chance", skill
    reach = 1.0 if floor is None else float((gauge.positives >= floor).mean())
    return (f"not judged: {reach:.0%} of {len(gauge.positives)} real positives reach the floor of {floor:.3g} (wanted: "
            f"{reach_from:.0%})" if reach < reach_from else None), skill


def _about_floor(gauge: Gauge, floor: float, rate: float) -> str:
    """Where the floor of a finding with few positives comes from."""
    reach = (gauge.positives >= floor).mean()
    return (f"{gauge.source}, false-positive rate {rate:g} on {len(gauge.negatives):,} negatives; {reach:.0%} of "
            f"{len(gauge.positives)} real positives reach it (validation has too few for a quantile of them)")


def _unsure(gauge: Gauge, floor: float, select: Select, quantile: float) -> tuple[np.ndarray, float, bool, str]:
    """Score, threshold, whether it is to be reached, and source, for what the critics are unsure of."""
    right = gauge.positives[gauge.positives >= floor]
    right = right if len(right) else np.array([floor])
    where = f"quantile {quantile:g} of {len(right)} real positives that pass ({select})"
    if select == "band":
        return gauge.made, float(np.quantile(right, quantile)), False, f"{gauge.source}, {where}"
    return (entropy(gauge.made), float(np.quantile(entropy(right), quantile)), True,
            f"entropy in nats of the {gauge.source}, {where}")


def joint_level(
    gauges: Sequence[Gauge], scarce: Sequence[str], *, pass_share: float, floors: Mapping[str, float] | None = None
) -> Joint:
    """The highest level at which of each kind of validation image at least ``pass_share`` pass on all labels together.

    An image passes on a label that it is known to show, or on a scarce one that it is known not to show, when its score
    is within the label's bound.

    Args:
        gauges: with the same validation images, each with positives and negatives.
        scarce: labels that an image must not show when it was not asked for; any of them makes its kind.
        pass_share: above 0 to 1.
        floors: labels whose positives are judged by another bound than the level's, to that bound.
    """
    floors = floors or {}
    part_of = _parts(gauges[0]) if gauges else {}
    sides = [side for gauge in gauges for side in _sides(gauge, scarce, floors, part_of)]
    if not sides:
        return Joint(level=1 - pass_share, shares={}, with_floors=None)
    targets = np.stack([gauge.in_validation()[1] for gauge in gauges], axis=1)
    columns = [at for at, gauge in enumerate(gauges) if gauge.label in scarce]
    kinds = {"validation images with a scarce finding": (targets[:, columns] == 1).any(axis=1),
             "without": (targets[:, columns] == 0).all(axis=1)}
    kinds = {kind: rows for kind, rows in kinds.items() if rows.any()}
    part = np.array([part_of[name] for name in gauges[0].patients[gauges[0].of_val].astype(str)])
    level = _fit(_positions(sides, part), list(kinds.values()), pass_share)
    passing, crossed = _passing(sides, level), np.zeros(len(targets), dtype=bool)
    for number in np.unique(part):
        inside = part == number
        rest = [replace(side, reference=side.reference[side.part != number], part=side.part[side.part != number])
                for side in sides]
        if all(len(side.reference) for side in rest):
            fitted = _fit(_positions(rest, part), [rows & ~inside for rows in kinds.values()], pass_share)
            crossed[inside] = _passing(rest, fitted)[inside]
    reaching = passing.copy()
    for gauge in gauges:
        scores, known = gauge.in_validation()
        reaching &= (known != 1) | (scores >= floors.get(gauge.label, -np.inf))
    return Joint(level=level, with_floors=float(reaching.mean()) if floors else None,
                 shares={kind: (float(passing[rows].mean()), float(crossed[rows].mean()), int(rows.sum()))
                         for kind, rows in kinds.items()})


@dataclass(frozen=True, kw_only=True)
class Side:
    """What one label asks of the validation images that show it, or of those that do not, by scores that are turned
    round there: the higher the better."""

    like: np.ndarray
    """bool (n_val,): whom it asks."""
    scores: np.ndarray
    """float64 (n_val,)"""
    reference: np.ndarray
    """float64 (k,): scores of all real images of the side."""
    part: np.ndarray
    """int (k,): which part of the validation patients each of them is in; -1 for none."""


def _parts(gauge: Gauge) -> dict[str, int]:
    """Validation patient to one of ``PARTS`` parts."""
    return {name: at % PARTS for at, name in enumerate(np.unique(gauge.patients[gauge.of_val].astype(str)))}


def _sides(
    gauge: Gauge, scarce: Sequence[str], floors: Mapping[str, float], part_of: Mapping[str, int]
) -> list[Side]:
    """Who must show the label, unless a floor of its own says that; for a scarce one, who must not."""
    scores, targets = gauge.in_validation()
    wanted = ([] if gauge.label in floors else [(1, 1)]) + ([(0, -1)] if gauge.label in scarce else [])
    return [Side(like=targets == target, scores=sign * scores, reference=sign * gauge.scores[gauge.targets == target],
                 part=np.array([part_of.get(name, -1) for name in gauge.patients[gauge.targets == target].astype(str)]))
            for target, sign in wanted]


def _positions(sides: Sequence[Side], part: np.ndarray) -> np.ndarray:
    """Each validation image's smallest tail position on any label, float64 (n_val,): the share of its like in the other
    parts that score no better; ``part``: its own, int (n_val,)."""
    own = np.ones(len(part))
    for side in sides:
        for number in np.unique(part):
            rows, others = side.like & (part == number), side.reference[side.part != number]
            others = np.sort(others if len(others) else side.reference)  # where all its like are in one part
            position = np.searchsorted(others, side.scores[rows], side="right") / len(others)
            own[rows] = np.minimum(own[rows], position)
    return own


def _fit(own: np.ndarray, kinds: Sequence[np.ndarray], pass_share: float) -> float:
    """The level that of each kind a share ``pass_share`` of the positions ``own`` reaches."""
    may_fail = [int((1 - pass_share) * rows.sum() + 1e-9) for rows in kinds]
    levels = [np.sort(own[rows])[n] for rows, n in zip(kinds, may_fail, strict=True) if rows.sum() > n]
    return float(min(levels, default=0.0))


def _passing(sides: Sequence[Side], level: float) -> np.ndarray:
    """bool (n_val,): images within every bound."""
    passing = np.ones(len(sides[0].like), dtype=bool)
    for side in sides:
        passing &= ~side.like | (side.scores >= reached(side.reference, level))
    return passing
