"""What share may the user's own tail classes expect? A prediction interval with the finding as the unit.

A rehearsal knows the gains of a few findings at a few levels. A tail class is another finding, so what counts is how
much *findings* differ: images, patients and seeds within one finding tell nothing about that. Two rules compete:

    mean     g = a h: the same share a whatever the number of real positives
    curve    g = (a + b log2 n) h: the share moves with the number n of real positives

g is the gain of the synthetic arm over the duplicates, h the oracle's. Either is fitted so that its errors sum to 0,
and for ``curve`` those times log2 n too; a of ``mean`` is the ratio of mean gains, as in ratio estimation (Cochran,
Sampling Techniques, chapter 6). Every finding takes part, whether or not it has a share of its own: to leave out those
whose oracle's gain is not told from 0 would select by the very noise that is to be averaged, and a single ratio may be
undefined where the ratio of means is not. Each finding is left out in turn and predicted from the others at all its
levels (Allen's PRESS, 1974); the rule with the smaller mean absolute error is used. Errors are those of the gain, over
the mean gain of the oracle: a finding that real images help little weighs little. The interval is the prediction
-+ t(k - 1) times the root mean squared error: the spread between findings, the noise of each one's own gain, and the
uncertainty of the fit. What all findings share, as the test patients and a run's repeats, is not in it; so only levels
take part at which the oracle's mean gain over all findings is told from 0 in its crossed interval, which holds that
noise. There is no prediction without such a level, or under six findings.

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
    """By rule, the mean over findings left out of the error of their gains (root mean square over levels), in mean
    gains of the oracle; empty where there is no prediction."""
    spread: float
    """Root mean squared error of the chosen rule, in the same unit; NaN where there is no prediction."""
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


def forecast(rows: pd.DataFrame) -> Forecast:
    """Fit both rules and choose one.

    ``rows``: one per finding and level: finding, n_real (positive train images), gain and oracle_gain (finite floats),
    and told: bool, whether the oracle's mean gain over all findings is told from 0 at that level.
    """
    findings, n_measured = rows["finding"].to_numpy(dtype=str), rows["finding"].nunique()
    told = rows["told"].to_numpy(dtype=bool)
    findings = findings[told]
    numbers = rows.loc[told, ["n_real", "gain", "oracle_gain"]].to_numpy(dtype=np.float64)
    n_findings = len(np.unique(findings))
    if n_findings < FEWEST_FINDINGS:
        reason = (f"{n_measured} finding{'s' * (n_measured != 1)} measured; a prediction wants {FEWEST_FINDINGS}"
                  if n_measured < FEWEST_FINDINGS else
                  "what real images bring on average to the findings is told from nothing at no level")
        return Forecast(rule=None, coefficients=(), n_findings=n_findings, errors={}, spread=float("nan"),
                        levels=(0, 0), reason=reason)
    rules = RULES if len(np.unique(numbers[:, 0])) > 1 else RULES[:1]
    missed = {rule: _left_out(findings, numbers, rule) for rule in rules}
    errors = {rule: float(np.abs(miss).mean()) for rule, miss in missed.items()}
    best = min(rules, key=lambda rule: errors[rule])
    return Forecast(
        rule=best, coefficients=tuple(float(c) for c in _fit(numbers, best)), n_findings=n_findings, errors=errors,
        spread=float(np.sqrt(np.square(missed[best]).mean())),
        levels=(int(numbers[:, 0].min()), int(numbers[:, 0].max())),
    )


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
