"""Does the image show what was asked for, and nothing scarce that was not? The critics' word, set on real images.

Every finding asked for must score as high as nearly all real images that show it, every scarce finding that was not
asked for must score no higher than nearly all that do not. Train positives are no substitute for validation: the
critics have learnt them by heart. So where validation has too few images with a finding, one threshold serves both
sides: what few real *negatives* exceed, seen by out-of-fold critics where there are some (``filter.folds``).

"Nearly all" is one level for all labels, because rules for each label multiply: 95 % each over 14 labels keep half. An
image passes up to the smallest tail position that it has on any of its labels (minP, Westfall and Young 1993); the
level is the one that a stated share of whole real images reach. It is fitted on the images that it is told for, hence
the share by cross-validation beside it.

A finding on which the critics cannot be told from chance is *not judged*: no score, no failure, and a reason in the
table of thresholds. Not promised: that an image that passes is right, for critics err, and err together; or the stated
share for each label and each rare combination.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from scipy.special import expit, xlogy

from synth.judging.critic import Gauge, fold_gauges, validation_gauges
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

    def __str__(self) -> str:
        told = [f"{share:.1%} of {n:,} {kind} ({cross:.1%} by cross-validation)"
                for kind, (share, cross, n) in self.shares.items()]
        return f"joint level {self.level:.3g}, at which pass on all labels: {' and '.join(told) or 'nobody knows'}"


@reads("critic", "fold")
def label_agreement(
    evidence: Evidence, *, pass_share: float = 0.9, false_positive_rate: float = 0.01, quantile_from: int = 20,
    judged_from: int = 5, select: Select = "confident", select_quantile: float = 0.5,
) -> list[Criterion]:
    """Each finding's score where it was asked for, and each scarce finding's where it was not.

    Args:
        evidence: with the logits of one critic or more, and those of out-of-fold critics where there are some.
        pass_share: share of real images that pass on all labels together, 0 to 1, of those with a scarce finding and
            of those without; labels with few positive images are set apart from it.
        false_positive_rate: share of real negatives above the threshold of a finding with few positive images.
        quantile_from: validation images with a finding from which it is no longer one of these.
        judged_from: patients with a finding, in the images that its threshold comes from, to judge it at all.
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
    opinions = [_why_not_judged(gauge, judged_from) for gauge in gauges]
    joint = joint_level([gauge for gauge, (why_not, _) in zip(gauges, opinions, strict=True)
                         if why_not is None and gauge.label not in few], evidence.scarce, pass_share=pass_share)
    criteria: list[Criterion] = []
    for gauge, (why_not, skill) in zip(gauges, opinions, strict=True):
        asked, scarce = evidence.made.carriers(gauge.label), gauge.label in evidence.scarce
        if not (scarce or asked.any()):
            continue
        floor, ceiling, source = (None, None, gauge.source) if why_not else (
            _of_negatives(gauge, false_positive_rate) if gauge.label in few else _of_both(gauge, joint))
        about = partial(Criterion, label=gauge.label, n_positive=len(gauge.positives), reason=why_not)
        criteria.append(about(score=gauge.made, applies=asked, threshold=floor, at_least=True,
                              source=f"{source}; {skill}"))
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


def _why_not_judged(gauge: Gauge, judged_from: int) -> tuple[str | None, str]:
    """Reason or None, and the critics' skill in words."""
    if gauge.positive_patients < judged_from or not len(gauge.negatives):
        return (f"not judged: {gauge.positive_patients} patients with the finding (wanted: {judged_from}), "
                f"{len(gauge.negatives)} images without"), "critics' skill unknown"
    auroc, low, high = gauge.skill()
    skill = f"critics' AUROC {auroc:.3f} ({low:.3f} to {high:.3f})"
    return (f"not judged: {skill} is not above chance" if low <= 0.5 else None), skill


def _of_both(gauge: Gauge, joint: Joint) -> tuple[float, float, str]:
    """Floor, ceiling and source where there are positives enough."""
    return *gauge.bounds(joint.level), f"{gauge.source}, {joint}"


def _of_negatives(gauge: Gauge, rate: float) -> tuple[float, float, str]:
    """The same, one threshold, where there are few."""
    threshold = float(np.quantile(gauge.negatives, 1 - rate))
    reach = (gauge.positives >= threshold).mean()
    return threshold, threshold, (
        f"{gauge.source}, false-positive rate {rate:g} on {len(gauge.negatives):,} negatives; {reach:.0%} of "
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


def joint_level(gauges: Sequence[Gauge], scarce: Sequence[str], *, pass_share: float) -> Joint:
    """The highest level at which of each kind of validation image at least ``pass_share`` pass on all labels together.

    An image passes on a label that it is known to show, or on a scarce one that it is known not to show, when its score
    is within the label's bound.

    Args:
        gauges: of the same images, in one order, each with positives and negatives.
        scarce: labels that an image must not show when it was not asked for; any of them makes its kind.
        pass_share: above 0 to 1.
    """
    if not gauges:
        return Joint(level=1 - pass_share, shares={})
    targets = np.stack([gauge.targets for gauge in gauges], axis=1)
    columns = [at for at, gauge in enumerate(gauges) if gauge.label in scarce]
    kinds = {"validation images with a scarce finding": (targets[:, columns] == 1).any(axis=1),
             "without": (targets[:, columns] == 0).all(axis=1)}
    kinds = {kind: rows for kind, rows in kinds.items() if rows.any()}
    level = _fit(gauges, scarce, list(kinds.values()), pass_share)
    passing = _passing(gauges, scarce, level, among=gauges)
    crossed = np.zeros(len(targets), dtype=bool)
    part = np.unique(gauges[0].patients.astype(str), return_inverse=True)[1] % PARTS
    for number in np.unique(part):
        rest = [gauge.at(part != number) for gauge in gauges]
        if all(len(gauge.positives) and len(gauge.negatives) for gauge in rest):
            fitted = _fit(rest, scarce, [rows[part != number] for rows in kinds.values()], pass_share)
            crossed[part == number] = _passing(rest, scarce, fitted,
                                               among=[gauge.at(part == number) for gauge in gauges])
    return Joint(level=level, shares={kind: (float(passing[rows].mean()), float(crossed[rows].mean()), int(rows.sum()))
                                      for kind, rows in kinds.items()})


def _fit(gauges: Sequence[Gauge], scarce: Sequence[str], kinds: Sequence[np.ndarray], pass_share: float) -> float:
    """The level; an image's own is the smallest of its tail positions, the share of its like that score no better."""
    own = np.ones(len(gauges[0].scores))
    for gauge in gauges:
        for like, scores in _sides(gauge, scarce):
            position = np.searchsorted(np.sort(scores[like]), scores[like], side="right")
            own[like] = np.minimum(own[like], position / like.sum())
    may_fail = [int((1 - pass_share) * rows.sum() + 1e-9) for rows in kinds]
    levels = [np.sort(own[rows])[n] for rows, n in zip(kinds, may_fail, strict=True) if rows.sum() > n]
    return float(min(levels, default=0.0))


def _passing(
    gauges: Sequence[Gauge], scarce: Sequence[str], level: float, *, among: Sequence[Gauge]
) -> np.ndarray:
    """bool (n,): images of ``among`` within the bounds of ``gauges``."""
    passing = np.ones(len(among[0].scores), dtype=bool)
    for gauge, judged in zip(gauges, among, strict=True):
        floor, ceiling = gauge.bounds(level)
        for (like, scores), bound in zip(_sides(judged, scarce), (floor, -ceiling), strict=False):
            passing &= ~like | (scores >= bound)
    return passing


def _sides(gauge: Gauge, scarce: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Who must show the label and by what score; then, for a scarce one, who must not, the score turned round."""
    return [(gauge.targets == 1, gauge.scores), (gauge.targets == 0, -gauge.scores)][:1 + (gauge.label in scarce)]
