"""The rules that keep or drop an image: each a score, a threshold with its source, and the images that it applies to.

A rule is a function of ``Evidence`` that returns criteria; ``RULES`` names it; its keyword arguments with their
defaults are its settings, so ``filter.rules: {blank: {quantile: .01}}`` needs nothing else. Thresholds come from real
images of the train split (pixel statistics) or of the validation split (critic), never from the images judged.

``label_agreement`` asks the critic. A scarce finding that was asked for must reach a threshold that most real positives
reach; where validation holds too few of them, one that few real negatives reach. Train positives are no substitute:
the critic has learnt them by heart. In a matched negative no scarce finding may exceed what nearly all real
negatives stay below. A finding that the critic cannot tell from chance is *not judged*: no score, no failure, and a
reason in the table of thresholds. Not promised: that an image that passes is right; the critic errs.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cohort.errors import TailfillError, nearest
from synth.judging.critic import auroc_interval

NEGATIVE = "negative"
"""``charged_to`` of a matched negative."""


@dataclass(frozen=True, kw_only=True)
class RealImages:
    """Real images of one split that rules may look at."""

    labels: pd.DataFrame
    """One column per label: 1, 0 or null."""
    patients: np.ndarray
    images: np.ndarray | None = None
    """uint8 (n, size, size), at the size of the generated ones."""
    logits: np.ndarray | None = None
    """Of the critic, (n, n_labels)."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything a rule may look at. ``logits`` are None where no rule in use asks for the critic."""

    images: np.ndarray
    """Generated images, uint8 (n, size, size)."""
    asked: pd.DataFrame
    """Findings asked for, one column per label, 1 or 0; n rows."""
    charged_to: np.ndarray
    """The scarce label each image pays for, or ``negative``; (n,)."""
    scarce: list[str]
    """Labels that the plan pays for."""
    logits: np.ndarray | None
    """Of the critic, (n, n_labels)."""
    train: RealImages
    """With pixels."""
    val: RealImages
    """With the critic's logits."""


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """One score with one threshold. A null threshold means *not judged*, and ``reason`` says why."""

    label: str | None
    score: np.ndarray
    """float64 (n,), in the unit that ``source`` tells."""
    applies: np.ndarray
    """bool (n,): which images it judges."""
    threshold: float | None
    at_least: bool
    """Whether the score must reach the threshold, or must not exceed it."""
    source: str
    """Where the threshold comes from."""
    n_positive: int | None = None
    """Positive images behind the threshold or the judgement, where it is about a label."""
    reason: str | None = None

    def margin(self) -> np.ndarray:
        """float64 (n,): distance on the passing side of the threshold, >= 0 passes; NaN where nothing is judged."""
        if self.threshold is None:
            return np.full(len(self.score), np.nan)
        margin = self.score - self.threshold if self.at_least else self.threshold - self.score
        return np.where(self.applies, margin, np.nan)


def blank(evidence: Evidence, *, quantile: float = 0.001) -> list[Criterion]:
    """Standard deviation of the grey levels (0 to 127.5): at least what all but ``quantile`` of train images have."""
    real = _pixels(evidence)
    threshold = float(np.quantile([image.std() for image in real], quantile))
    score = np.array([image.std() for image in evidence.images], dtype=np.float64)
    return [_of_pixels(score, threshold, at_least=True, source=f"std of grey levels, quantile {quantile:g}", real=real)]


def saturated(evidence: Evidence, *, quantile: float = 0.999) -> list[Criterion]:
    """Share of pixels at 0 or 255: at most what a share of ``quantile`` of the real train images have."""
    real = _pixels(evidence)
    threshold = float(np.quantile(_share_at_ends(real), quantile))
    source = f"share of pixels at 0 or 255, quantile {quantile:g}"
    return [_of_pixels(_share_at_ends(evidence.images), threshold, at_least=False, source=source, real=real)]


def label_agreement(
    evidence: Evidence, *, positive_quantile: float = 0.05, negative_quantile: float = 0.95,
    false_positive_rate: float = 0.1, quantile_from: int = 20, judged_from: int = 5,
) -> list[Criterion]:
    """The critic's logit of each scarce finding that was asked for, and of each that a matched negative must not show.

    Args:
        evidence: with logits.
        positive_quantile: share of the real positives that may fail, 0 to 1.
        negative_quantile: share of the real negatives that pass as negatives, over all scarce findings together
            (Bonferroni: with k findings judged, each threshold is the quantile 1 - (1 - this) / k).
        false_positive_rate: share of real negatives above the threshold where positives are too few for a quantile.
        quantile_from: positive validation images from which ``positive_quantile`` is used.
        judged_from: positive validation images from which a finding is judged at all.
    """
    if evidence.logits is None or evidence.val.logits is None:
        raise ValueError("label_agreement: evidence holds no critic's logits")
    verdicts = {label: _why_not_judged(evidence, label, judged_from) for label in evidence.scarce}
    judged = sum(reason is None for reason, _, _ in verdicts.values())
    negatives = evidence.charged_to == NEGATIVE
    criteria = []
    for label, (reason, skill, n_positive) in verdicts.items():
        scores, targets = _validation(evidence, label)
        score = evidence.logits[:, list(evidence.asked.columns).index(label)]
        if reason is None and n_positive >= quantile_from:
            present: float | None = float(np.quantile(scores[targets == 1], positive_quantile))
            source = f"critic's logit, quantile {positive_quantile:g} of validation positives"
        else:
            present = None if reason else float(np.quantile(scores[targets == 0], 1 - false_positive_rate))
            source = (f"critic's logit, false-positive rate {false_positive_rate:g} on validation negatives "
                      f"(fewer than {quantile_from} positives)")
        level = 1 - (1 - negative_quantile) / max(judged, 1)
        absent = None if reason else float(np.quantile(scores[targets == 0], level))
        ceiling = f"critic's logit, quantile {level:.4g} of validation negatives"
        asked = (evidence.asked[label] == 1).to_numpy(dtype=bool)
        for at_least, threshold, applies, where in (
            (True, present, asked & ~negatives, source), (False, absent, negatives, ceiling),
        ):
            criteria.append(Criterion(
                label=label, score=score, applies=applies, threshold=threshold, at_least=at_least,
                source=f"{where}; {skill}", n_positive=n_positive, reason=reason,
            ))
    return criteria


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule's function, and whether it needs the critic."""

    function: Callable[..., list[Criterion]]
    needs_critic: bool = False


RULES: dict[str, Rule] = {
    "blank": Rule(function=blank),
    "saturated": Rule(function=saturated),
    "label_agreement": Rule(function=label_agreement, needs_critic=True),
}
"""Name, which is also the score's column, to rule."""


def check_rules(rules: Mapping[str, Mapping[str, float] | None]) -> None:
    """Raise ``TailfillError`` for an unknown rule or setting, or a setting out of range.

    Settings with a whole-number default are counts from 1 on; the others are shares, strictly between 0 and 1.
    """
    for name, settings in rules.items():
        if name not in RULES:
            raise TailfillError(f"filter.rules: unknown rule '{name}'{nearest(name, list(RULES))}")
        legal = {key: parameter.default for key, parameter in inspect.signature(RULES[name].function).parameters.items()
                 if parameter.kind is inspect.Parameter.KEYWORD_ONLY}
        for key, value in (settings or {}).items():
            if key not in legal:
                raise TailfillError(f"filter.rules.{name}: unknown key '{key}'{nearest(key, list(legal))}")
            whole = isinstance(legal[key], int)
            if isinstance(value, bool) or not isinstance(value, int | float) or (
                (value < 1 or value != int(value)) if whole else not 0 < value < 1
            ):
                wanted = "a whole number from 1 on" if whole else "a share between 0 and 1"
                raise TailfillError(f"filter.rules.{name}.{key} is {value!r}; wanted: {wanted}")


def apply_rules(
    rules: Mapping[str, Mapping[str, float] | None], evidence: Evidence
) -> dict[str, list[Criterion]]:
    """Every rule's criteria, in the order of the config; the first failing rule will be an image's reason."""
    return {name: RULES[name].function(evidence, **(settings or {})) for name, settings in rules.items()}


def worst_margin(criteria: list[Criterion], n: int) -> np.ndarray:
    """float64 (n,): the smallest margin over a rule's criteria; an image fails below 0; NaN where none judged it."""
    margins = np.stack([np.full(n, np.nan), *(criterion.margin() for criterion in criteria)])
    smallest = np.where(np.isnan(margins), np.inf, margins).min(axis=0)
    return np.where(np.isfinite(smallest), smallest, np.nan)


def _why_not_judged(evidence: Evidence, label: str, judged_from: int) -> tuple[str | None, str, int]:
    """Reason or None, the critic's skill in words, and the number of positive validation images."""
    scores, targets = _validation(evidence, label)
    patients = evidence.val.patients[evidence.val.labels[label].notna().to_numpy()]
    n_positive, n_negative = int((targets == 1).sum()), int((targets == 0).sum())
    if n_positive < judged_from or n_negative == 0:
        reason = f"not judged: {n_positive} positive validation images (wanted: {judged_from}), {n_negative} negative"
        return reason, "critic's skill unknown", n_positive
    auroc, low, high = auroc_interval(logits=scores, targets=targets, patients=patients)
    skill = f"critic's validation AUROC {auroc:.3f} ({low:.3f} to {high:.3f})"
    return (f"not judged: {skill} is not above chance" if low <= 0.5 else None), skill, n_positive


def _validation(evidence: Evidence, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Logits and targets of the validation images whose label is known."""
    known = evidence.val.labels[label].notna().to_numpy()
    column = list(evidence.asked.columns).index(label)
    if evidence.val.logits is None:
        raise ValueError("evidence holds no validation logits")
    return evidence.val.logits[known, column], evidence.val.labels.loc[known, label].to_numpy(dtype=np.int64)


def _pixels(evidence: Evidence) -> np.ndarray:
    if evidence.train.images is None or len(evidence.train.images) == 0:
        raise ValueError("evidence holds no pixels of real train images")
    return evidence.train.images


def _of_pixels(
    score: np.ndarray, threshold: float, *, at_least: bool, source: str, real: np.ndarray
) -> Criterion:
    return Criterion(label=None, score=score, applies=np.ones(len(score), dtype=bool), threshold=threshold,
                     at_least=at_least, source=f"{source} of {len(real):,} real train images")


def _share_at_ends(images: np.ndarray) -> np.ndarray:
    """float64 (n,): share of pixels at 0 or 255."""
    return np.array([((image == 0) | (image == 255)).mean() for image in images], dtype=np.float64)
