"""Does the image show what was asked for? The critic's word, calibrated on real validation images.

A scarce finding that was asked for must reach a threshold that most real positives reach; where validation holds too
few of them, one that few real negatives reach. Train positives are no substitute: the critic has learnt them by heart.
In a matched negative no scarce finding may exceed what nearly all real negatives stay below. A finding that the critic
cannot tell from chance is *not judged*: no score, no failure, and a reason in the table of thresholds. Not promised:
that an image that passes is right; the critic errs.
"""

from collections.abc import Sequence

import numpy as np

from synth.judging.critic import auroc_interval
from synth.judging.evidence import Evidence, Images
from synth.judging.rules import Criterion, reads


@reads("critic")
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
    verdicts = {label: _why_not_judged(evidence, label, judged_from) for label in evidence.scarce}
    judged = sum(reason is None for reason, _, _ in verdicts.values())
    logits, negatives = mean_logits(evidence.made, evidence.critics), evidence.negatives
    criteria = []
    for label, (reason, skill, n_positive) in verdicts.items():
        scores, targets = _validation(evidence, label)
        score = logits[:, list(evidence.made.labels.columns).index(label)]
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
        asked = evidence.made.carriers(label)
        for at_least, threshold, applies, where in (
            (True, present, asked & ~negatives, source), (False, absent, negatives, ceiling),
        ):
            criteria.append(Criterion(
                label=label, score=score, applies=applies, threshold=threshold, at_least=at_least,
                source=f"{where}; {skill}", n_positive=n_positive, reason=reason,
            ))
    return criteria


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
    column = list(evidence.val.labels.columns).index(label)
    scores = mean_logits(evidence.val, evidence.critics)[known, column]
    return scores, evidence.val.labels.loc[known, label].to_numpy(dtype=np.int64)


def mean_logits(images: Images, critics: Sequence[str]) -> np.ndarray:
    """The critics' vote: the mean of their logits, float64 (n, n_labels); raises ``ValueError`` when there is none."""
    if not critics:
        raise ValueError("label_agreement: evidence holds no critic's logits")
    return np.mean([images.read(critic).astype(np.float64) for critic in critics], axis=0)
