"""What share may the user's own tail classes expect? A prediction interval with the finding as the unit.

A rehearsal knows the gains of a few findings at a few levels. A tail class is another finding, so what counts is how
much *findings* differ: images, patients and seeds within one finding tell nothing about that. Two rules compete:

    mean     g = a h: the same share a whatever the number of real positives
    curve    g = (a + b log2 n) h: the share moves with the number n of real positives

g is the gain of the synthetic arm over the duplicates, h the oracle's. Either is fitted so that its errors sum to 0, and
for ``curve`` those times log2 n too: a is the ratio of mean gains, as in ratio estimation (Cochran, Sampling Techniques,
chapter 6). Every finding takes part, whether or not it has a share of its own: to leave out those whose oracle's gain
is not told from 0 would select by the very noise that is to be averaged, and a single ratio may be undefined where the
ratio of means is not. Each finding is left out in turn and predicted from the others at all its levels (Allen's PRESS,
1974); the rule with the smaller mean absolute error is used. Errors are those of the gain, over the mean gain of the
oracle: a finding that real images help little weighs little. The interval is the prediction -+ t(k - 1) times the root
mean squared error, which holds the spread between findings, the noise of their gains and the uncertainty of the fit.

There is no prediction under six findings, or where the oracle's mean gain over the findings is not told from 0.

Not promised: a share outside the levels that were rehearsed; or that the tail resembles the findings that were thinned.
A generator that has seen the thinned finding elsewhere makes every share optimistic. The interval is that of a class
which real images help as much as the average finding; where they help less, its share scatters more.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from classify.comparison.intervals import Array

FEWEST_FINDINGS = 6
"""Under six findings t(k - 1) is 2.8 and more and one odd finding is a quarter of the evidence: no prediction."""
RULES = ("mean", "curve")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A predicted recovered share; ``low`` and ``high`` None where ``reason`` says why there is none."""

    share: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The rule that was chosen, fitted to all findings, and how well either rule told a finding left out."""

    rule: str | None
    coefficients: tuple[float, ...]
    """(share,) of ``mean``, (a, b) of ``curve``."""
    n_findings: int
    errors: dict[str, float]
    """Mean absolute error of a finding left out, in units of the share, by rule; empty under six findings."""
    spread: float
    """Root mean squared error of the chosen rule."""
    levels: tuple[int, int]
    """The lowest and the highest number of positives that was rehearsed."""
    reason: str | None = None

    def predict(self, n_real: int, *, confidence: float = 0.95) -> Prediction:
        """The share of a class with ``n_real`` positive train images, and the interval of a single such class."""
        if self.rule is None:
            return Prediction(share=None, reason=self.reason)
        if n_real < 1:
            return Prediction(share=None, reason="no real positive")
        share = float((_design(np.array([n_real]), self.rule) @ np.array(self.coefficients))[0])
        half = float(stats.t.ppf((1 + confidence) / 2, self.n_findings - 1)) * self.spread
        outside = not self.levels[0] / 2 <= n_real <= self.levels[1] * 2
        note = f"{n_real} positives lie outside what was rehearsed ({self.levels[0]} to {self.levels[1]})"
        return Prediction(share=share, low=share - half, high=share + half, reason=note if outside else None)


def forecast(rows: pd.DataFrame, *, confidence: float = 0.95) -> Forecast:
    """Fit both rules and choose one.

    ``rows``: one per finding and level: finding, n_real (positive train images), gain and oracle_gain (finite floats).
    ``confidence``: that of the interval by which the oracle's mean gain must be above 0.
    """
    findings = rows["finding"].to_numpy(dtype=str)
    numbers = rows[["n_real", "gain", "oracle_gain"]].to_numpy(dtype=np.float64)
    unclear = _unclear(rows, confidence)
    n_findings = len(np.unique(findings))
    if unclear is not None:
        return Forecast(rule=None, coefficients=(), n_findings=n_findings, errors={}, spread=float("nan"),
                        levels=(0, 0), reason=unclear)
    rules = RULES if len(np.unique(numbers[:, 0])) > 1 else RULES[:1]
    missed = {rule: _left_out(findings, numbers, rule) for rule in rules}
    errors = {rule: float(np.abs(miss).mean()) for rule, miss in missed.items()}
    best = min(rules, key=lambda rule: errors[rule])
    return Forecast(
        rule=best, coefficients=tuple(float(c) for c in _fit(numbers, best)), n_findings=n_findings, errors=errors,
        spread=float(np.sqrt(np.square(missed[best]).mean())),
        levels=(int(numbers[:, 0].min()), int(numbers[:, 0].max())),
    )


def _unclear(rows: pd.DataFrame, confidence: float) -> str | None:
    """Why these findings allow no prediction; None where they do."""
    gains = rows.groupby("finding")["oracle_gain"].mean().astype(np.float64)
    if len(gains) < FEWEST_FINDINGS:
        return f"{len(gains)} finding{'s' * (len(gains) != 1)} rehearsed; a prediction wants {FEWEST_FINDINGS}"
    mean = float(gains.mean())
    half = float(stats.t.ppf((1 + confidence) / 2, len(gains) - 1)) * float(gains.sem())
    if mean - half > 0:
        return None
    return (f"what real images bring on average to {len(gains)} findings is not told from nothing ({mean:+.3f}, "
            f"{mean - half:+.3f} to {mean + half:+.3f})")


def _left_out(findings: NDArray[np.str_], numbers: Array, rule: str) -> Array:
    """Per finding, the root mean square over its levels of predicted less observed gain, in mean gains of the oracle.

    float64 (n_findings,).
    """
    missed = []
    for finding in np.unique(findings):
        own, others = numbers[findings == finding], numbers[findings != finding]
        told = _design(own[:, 0], rule) @ _fit(others, rule) * own[:, 2]
        missed.append(np.sqrt(np.square(told - own[:, 1]).mean()))
    return np.array(missed) / numbers[:, 2].mean()


def _fit(numbers: Array, rule: str) -> Array:
    """Coefficients by which the errors, and those times each column of the design, sum to 0; float64 (1,) or (2,).

    Where every oracle's gain is above 0 that is least squares through the origin with weights 1/h (Royall 1970).
    ``numbers``: float64 (n, 3): n_real, gain, oracle_gain.
    """
    design = _design(numbers[:, 0], rule)
    found = np.linalg.lstsq(design.T @ (design * numbers[:, 2:]), design.T @ numbers[:, 1], rcond=None)[0]
    return np.asarray(found, dtype=np.float64)


def _design(n_real: Array, rule: str) -> Array:
    """float64 (n, 1) of ones for ``mean``; (n, 2) with log2 n beside them for ``curve``."""
    found: Array = np.ones((len(n_real), 1 if rule == "mean" else 2))
    if rule == "curve":
        found[:, 1] = np.log2(n_real)
    return found
