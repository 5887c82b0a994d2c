"""Which findings are scarce, and how many images of each to ask for.

Scarcity is counted on real images of the train split, over those whose label is known. A rule turns the counts into
shares of a total; a cap on the synthetic-to-real ratio bounds each class; explicit numbers win over both. What a capped
class gives up goes to the others in the rule's proportions, so the total is kept until every class is capped.

Targets say how many images should *carry* a finding. One image may carry several, so fewer images than the total may be
needed: that is ``prompts.allocate``'s part. Nothing here promises that more images help; past about 10 synthetic per
real image gains are gone (Sagers et al., arXiv 2308.12453), hence the default cap.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cohort.errors import TailfillError, nearest
from cohort.vocabulary.labels import CONTROL, GROUPS


@dataclass(frozen=True, kw_only=True)
class Shares:
    """What a rule wants: relative ``weights`` (C,) and the most it would give each class, ``limits`` (C,), float64."""

    weights: np.ndarray
    limits: np.ndarray


def flat(n_real: np.ndarray, *, floor: int, beta: float) -> Shares:
    """The same for every class."""
    return Shares(weights=np.ones(len(n_real)), limits=np.full(len(n_real), np.inf))


def floor_count(n_real: np.ndarray, *, floor: int, beta: float) -> Shares:
    """As many as lift real + synthetic to ``floor``; a total below the sum is shared in proportion to the need."""
    need = np.maximum(floor - n_real, 0).astype(np.float64)
    return Shares(weights=need, limits=need)


def inverse_frequency(n_real: np.ndarray, *, floor: int, beta: float) -> Shares:
    """In proportion to 1 / n; a class without a real image counts as one with a single one."""
    return Shares(weights=1.0 / np.maximum(n_real, 1), limits=np.full(len(n_real), np.inf))


def effective_number(n_real: np.ndarray, *, floor: int, beta: float) -> Shares:
    """In proportion to (1 - beta) / (1 - beta^n), the inverse effective number of samples (Cui et al., CVPR 2019)."""
    weights = (1.0 - beta) / (1.0 - np.power(beta, np.maximum(n_real, 1)))
    return Shares(weights=weights, limits=np.full(len(n_real), np.inf))


RULES: dict[str, Callable[..., Shares]] = {
    "flat": flat, "floor": floor_count, "inverse_frequency": inverse_frequency, "effective_number": effective_number,
}
"""Name to rule: ``rule(n_real (C,) int, *, floor, beta) -> Shares``."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Images to ask for per scarce class, and in words why a class gets less than its rule wanted."""

    wanted: dict[str, int]
    reasons: dict[str, str]


def train_counts(train: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """Index label; ``n_real``: positives (int64); ``prevalence``: of the images whose label is known, NaN if none is.

    ``train`` holds the train split's real images with one {1, 0, null} column per label.
    """
    values = train[list(labels)]
    positives, known = values.sum().astype("int64"), values.notna().sum()
    return pd.DataFrame({"n_real": positives, "prevalence": (positives / known.where(known > 0)).astype("float64")})


def find_scarce(
    names: Sequence[str], *, labels: Sequence[str], groups: Mapping[str, str], per_class: Mapping[str, int]
) -> list[str]:
    """The scarce labels in column order: those named, those of a named group, and those with an explicit number.

    Raises ``TailfillError`` for a name that is neither group nor label, and when nothing is left to be scarce.
    """
    any_name = [*GROUPS, CONTROL, *labels]
    for where, given, legal in (("plan.scarce", names, any_name), ("plan.per_class", per_class, [*labels])):
        for name in given:
            if name not in legal:
                raise TailfillError(f"{where}: unknown name '{name}'{nearest(name, legal)}")
    scarce = [label for label in labels if label in names or groups[label] in names or label in per_class]
    if not scarce:
        raise TailfillError(f"plan.scarce: no label of the cohort belongs to {', '.join(names) or '(nothing named)'}; "
                            "wanted: a group that has labels, or names of labels")
    return scarce


def share_out(total: int, *, weights: np.ndarray, caps: np.ndarray) -> np.ndarray:
    """Split ``total`` over classes in proportion to ``weights`` (C,) without exceeding ``caps`` (C,) (whole, or inf).

    Returns int64 (C,) that sums to ``min(total, sum of caps)``: what a capped class gives up goes to the others, and
    fractions are rounded by largest remainder, ties to the earlier class. Weights of 0 get nothing.
    """
    shares = np.zeros(len(weights))
    open_classes = (weights > 0) & (caps > 0)
    left = float(total)
    while open_classes.any():
        trial = np.where(open_classes, weights / weights[open_classes].sum() * left, 0.0)
        full = open_classes & (trial >= caps)
        if not full.any():
            shares += trial
            break
        shares[full] = caps[full]
        left -= caps[full].sum()
        open_classes &= ~full
    whole = np.floor(shares + 1e-9).astype(np.int64)
    missing = round(shares.sum()) - int(whole.sum())
    by_remainder = np.argsort(-np.where(open_classes, shares - whole, -1.0), kind="stable")
    whole[by_remainder[:missing]] += 1
    return whole


def set_targets(
    counts: pd.DataFrame, scarce: Sequence[str], *, rule: str, total: int | None, floor: int | None,
    max_ratio: float | None, beta: float, per_class: Mapping[str, int],
) -> Targets:
    """Images to ask for per scarce class.

    ``counts`` as :func:`train_counts` returns it. ``total``: sum of all targets, explicit ones included; None only
    where the rule knows its own sum (``floor``) or every class has an explicit number. ``max_ratio``: synthetic per
    real image of a class, None for no cap. ``per_class`` wins over rule and cap.

    Raises ``TailfillError`` when the total is missing, or smaller than the explicit numbers.
    """
    ruled = [label for label in scarce if label not in per_class]
    explicit = sum(per_class.values())
    n_real = counts.loc[ruled, "n_real"].to_numpy(np.int64)
    shares = RULES[rule](n_real, floor=floor or 0, beta=beta)
    if total is None and ruled and rule != "floor":
        raise TailfillError(f"plan.total: is missing; rule '{rule}' shares it among {', '.join(ruled)}")
    if total is not None and explicit > total:
        raise TailfillError(f"plan.per_class: asks for {explicit} images, plan.total is {total}; "
                            "wanted: a total that is at least the sum of the explicit numbers")
    ratio_caps = np.floor(n_real * max_ratio) if max_ratio is not None else np.full(len(ruled), np.inf)
    caps = np.minimum(ratio_caps, shares.limits)
    left = int(caps.sum()) if total is None else total - explicit
    given = share_out(left, weights=shares.weights, caps=caps)
    reasons = {}
    for i, label in enumerate(ruled):
        reason = _why_less(int(n_real[i]), int(given[i]), ratio_cap=ratio_caps[i], limit=shares.limits[i],
                           max_ratio=max_ratio, floor=floor, total=total)
        if reason:
            reasons[label] = reason
    wanted = dict(per_class) | {label: int(n) for label, n in zip(ruled, given, strict=True)}
    return Targets(wanted={label: wanted[label] for label in scarce}, reasons=reasons)


def _why_less(
    n_real: int, given: int, *, ratio_cap: float, limit: float, max_ratio: float | None, floor: int | None,
    total: int | None,
) -> str | None:
    """Why a class gets what it gets, when the rule alone would have given more, or gives nothing."""
    if n_real == 0 and ratio_cap == 0:
        return "no real train image carries it, so any number exceeds max_ratio"
    if limit == 0:
        return f"its {n_real} real images reach the floor of {floor}"
    if given >= ratio_cap and given < limit:
        return f"capped at {given}: max_ratio {max_ratio:g} x {n_real} real images"
    if np.isfinite(limit) and given < limit:
        return f"the floor of {floor} needs {limit:.0f}, the total of {total} leaves {given}"
    return None
