"""The recovered share: how much of what as many new real images would have brought did an arm bring?

    r = g / h,   g = gain of the arm over its rival,   h = gain of the oracle over the duplicates

Fieller's set (Fieller 1954) holds every r for which g - r h is compatible with 0. Here "compatible" means the crossed
interval of ``classify.comparison.intervals`` for that very combination: the same draws of patients, deltas paired per
seed, and Satterthwaite's degrees of freedom, which depend on r. No delta method and no ratio per draw: those fail just
where the oracle's gain is uncertain, and this does not. Over findings it is the ratio of mean gains.

Write r = tan(theta). Variances are quadratic in the direction u = (cos theta, -sin theta), so the set is where

    (u . (g, h))^2  <=  t(df(u))^2 * (V_patients(u) + u' S2_seeds u / S)

on the circle of directions, V_patients less the interaction as there; r = infinity is a point like any other. With t
fixed the set is an interval, all but an interval, or everything; t moves with df, so a stray gap is possible, and the
hull is given, which is on the safe side. It is an interval exactly where the oracle's own interval excludes 0;
elsewhere, and where the oracle is worse than the duplicates, the share is null. Not promised: that the oracle is the
best there is, or that r lies between 0 and 1.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import optimize, stats

from classify.comparison.intervals import Array, Interval, mean_over_classes
from classify.comparison.metrics import HIGHER_IS_BETTER
from classify.comparison.pairing import Comparison, Gain

ORACLE = "oracle"
N_DIRECTIONS = 361
"""Directions that are scanned before roots are refined: half a degree apart, chosen because the set is connected
but for gaps that df could cut, and these are wide."""
COLUMNS = ("arm", "rival", "oracle", "label", "metric", "share", "ci_low", "ci_high", "kind", "reason")


@dataclass(frozen=True, kw_only=True)
class Share:
    """The recovered share with its Fieller set; ``low`` and ``high`` are its ends where it is an interval."""

    share: float
    kind: str
    """``interval``, ``unbounded`` (all but an interval: the oracle's gain may be 0) or ``everything``."""
    low: float | None = None
    high: float | None = None


def fieller_set(gain: Gain, oracle: Gain, *, level: float = 0.95) -> Share:
    """The set of the module's docstring; both gains of the same seeds, classes and draws, two seeds or more.

    ``level``: confidence, 0 to 1.
    """
    excess = _excess(gain, oracle, level=level)
    g, h = gain.estimates.mean(), oracle.estimates.mean()
    peak = float(np.arctan2(g, h) if h > 0 else np.arctan2(-g, -h))  # g - r h = 0: always in the set
    share = float(g / h) if h else float("nan")
    scan = np.sort(np.append(np.linspace(-np.pi / 2, np.pi / 2, N_DIRECTIONS), peak))
    inside = (excess(scan) <= 0) | (scan == peak)
    if inside[0] or inside[-1]:
        return Share(share=share, kind="everything" if inside.all() else "unbounded")
    first, last = np.flatnonzero(inside)[[0, -1]]
    low, high = (_root(excess, scan[first - 1], scan[first]), _root(excess, scan[last], scan[last + 1]))
    return Share(share=share, kind="interval", low=float(np.tan(low)), high=float(np.tan(high)))


def _excess(gain: Gain, oracle: Gain, *, level: float) -> Callable[[Array], Array]:
    """The left side of the condition minus its right one, as a function of theta; the set is where it is 0 or less."""
    centre = np.array([gain.estimates.mean(), oracle.estimates.mean()])
    n_seeds = len(gain.estimates)
    seeds = np.cov(np.stack([gain.estimates, oracle.estimates]), ddof=1) / n_seeds
    both = np.stack([gain.classes, oracle.classes])  # (2, n_seeds, n_classes, n_draws)
    means = mean_over_classes(both, axis=2)  # (2, n_seeds, n_draws)
    usable = means[..., ~np.isnan(means).any(axis=(0, 1))]
    draws, df_draws = np.cov(usable.mean(axis=1), ddof=1), usable.shape[-1] - 1
    apart = usable - usable.mean(axis=1, keepdims=True)
    interaction = np.einsum("asd,bsd->ab", apart, apart) / ((n_seeds - 1) * usable.shape[-1]) / n_seeds - seeds
    class_df = np.maximum(np.array(gain.patients, dtype=np.float64) - 1, 1)[:, None]  # as in intervals.patient_df
    by_class = np.stack([_covariance(one) for one in both.mean(axis=1).swapaxes(0, 1)])

    def excess(theta: Array) -> Array:
        u = np.stack([np.cos(theta), -np.sin(theta)])
        v_patients = np.maximum(_quadratic(draws, u) - _quadratic(interaction, u), 0.0)  # as in crossed_interval
        v_seeds = _quadratic(seeds, u)
        df_patients = _satterthwaite(np.stack([_quadratic(one, u) for one in by_class]), class_df)
        df = _satterthwaite(np.stack([v_patients, v_seeds]),
                            np.stack([1 / (1 / df_patients + 1 / df_draws), np.full(len(theta), n_seeds - 1.0)]))
        return (centre @ u) ** 2 - stats.t.ppf((1 + level) / 2, df) ** 2 * (v_patients + v_seeds)

    return excess


def _quadratic(matrix: Array, u: Array) -> Array:
    """u' M u for each column of ``u`` (2, n), never below 0."""
    return np.maximum(np.einsum("in,ij,jn->n", u, matrix, u), 0.0)


def _covariance(pair: Array) -> Array:
    """Of the draws in which a class is defined: (2, n_draws) to (2, 2); zeros where fewer than two are."""
    known = pair[:, ~np.isnan(pair).any(axis=0)]
    return np.cov(known, ddof=1) if known.shape[1] > 1 else np.zeros((2, 2))


def _satterthwaite(variances: Array, df: Array) -> Array:
    """``intervals.satterthwaite`` for many sums at once: both (n_parts, n) to (n,)."""
    spread = (variances**2 / df).sum(axis=0)
    return np.divide(variances.sum(axis=0) ** 2, spread, out=np.full(spread.shape, np.inf), where=spread > 0)


def _root(excess: Callable[[Array], Array], low: float, high: float) -> float:
    """Where ``excess`` changes its sign between two neighbouring directions."""
    at = [float(excess(np.array([theta]))[0]) for theta in (low, high)]
    if at[0] * at[1] >= 0:  # the very zero of a gain without any variance
        return low if abs(at[0]) < abs(at[1]) else high
    return float(optimize.brentq(lambda theta: float(excess(np.array([theta]))[0]), low, high))


def recovered_rows(compared: Comparison, rivals: Mapping[str, str]) -> pd.DataFrame:
    """The table ``recovered``: every arm with its rival, every class and group, and AP, AUROC and F1.

    ``rivals``: arm to the arm whose slots it shares, the oracle among them; the oracle's own share is 1 and left out.
    """
    rows = []
    for arm, rival in rivals.items():
        for label, metric in ((label, metric) for metric in HIGHER_IS_BETTER for label in compared.source.members):
            row = {"arm": arm, "rival": rival, "oracle": ORACLE, "label": label, "metric": metric}
            if arm != ORACLE:
                rows.append(row | _cells(compared, arm=arm, rival=rival, base=rivals[ORACLE], label=label,
                                         metric=metric))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _cells(compared: Comparison, *, arm: str, rival: str, base: str, label: str, metric: str) -> dict[str, object]:
    """Share, ends, kind and reason of one row."""
    bound = compared.interval(arm=ORACLE, rival=base, label=label, metric=metric)
    return share_cells(bound, compared.gain(arm=arm, rival=rival, label=label, metric=metric),
                       compared.gain(arm=ORACLE, rival=base, label=label, metric=metric), rival=base)


def share_cells(bound: Interval, gain: Gain, oracle: Gain, *, rival: str) -> dict[str, object]:
    """Share, ci_low, ci_high, kind and reason; all null but the reason unless the oracle clearly beats its ``rival``.

    ``bound``: the interval of the oracle's gain; ``gain`` and ``oracle``: as for ``fieller_set``.
    """
    null: dict[str, object] = {"share": np.nan, "ci_low": np.nan, "ci_high": np.nan, "kind": None}
    if bound.low is None or bound.high is None:
        return null | {"reason": bound.reason}
    found = fieller_set(gain, oracle)
    if found.kind == "interval" and bound.low > 0:
        return {"share": found.share, "ci_low": found.low, "ci_high": found.high, "kind": found.kind, "reason": None}
    return null | {"kind": found.kind, "reason": f"the oracle is worse than {rival}" if bound.high < 0 else
                   f"the oracle's gain over {rival} may be 0"}


def recovered_sentence(table: pd.DataFrame, *, arm: str, label: str, metric: str) -> str:
    """One row of ``recovered`` in words."""
    found = table[(table["arm"] == arm) & (table["label"] == label) & (table["metric"] == metric)]
    if found.empty:
        return f"No recovered share: {arm} fills no slots that the oracle fills too."
    row = found.iloc[0]
    if pd.isna(row["share"]):
        return f"Recovered share of {arm}: undefined ({row['reason']})."
    share, low, high = (round(100 * row[key]) for key in ("share", "ci_low", "ci_high"))
    return (f"{arm} recovers {share} % of what new real images in its slots bring to the {label} group "
            f"(95 % interval {low} to {high} %).")
