"""How many positive patients would an answer take? From the variance that this test set showed.

V_patients falls as one over the number of positive patients, what the seeds add stays; so the number that brings the
half-width to a wanted one follows (``intervals.needed_factor``). Two questions:

- the half-width reaches the margin, so that "no difference" could be shown if there is none;
- a true gain as large as the oracle's shows, its interval above 0, in four experiments of five.

It is an estimate, and from few patients a rough one: a variance with df degrees of freedom is known to within the
quantiles of chi-square / df, which give the range beside each number. Not promised: that further patients are like
these, or that the oracle's gain is what one should hope for.
"""

import math
from dataclasses import dataclass

from scipy import stats

from classify.comparison.intervals import Interval, needed_factor

POWER = 0.8
"""Share of experiments in which a gain of the supposed size shows; the usual choice (Cohen 1988)."""


@dataclass(frozen=True, kw_only=True)
class Needed:
    """A number of positive test patients with its 95 % range; all None where the seeds alone are too far apart."""

    patients: int | None
    low: int | None = None
    high: int | None = None

    def __str__(self) -> str:
        if self.patients is None:
            return "no number of patients, since the seeds alone are too far apart: more seeds first"
        return f"about {self.patients:,} (range {self.low:,} to {self.high:,})"


def needed_for_margin(interval: Interval, *, margin: float, n_patients: int, n_seeds: int) -> Needed | None:
    """What brings the half-width of the 95 % interval to ``margin``; None without an interval."""
    factor = needed_factor(interval, margin=margin, n_seeds=n_seeds)
    if factor is None or interval.df is None:
        return None
    if math.isinf(factor):
        return Needed(patients=None)
    ends = [n_patients * factor * interval.df / quantile for quantile in stats.chi2.ppf((0.975, 0.025), interval.df)
            ] if math.isfinite(interval.df) else [n_patients * factor] * 2
    low, patients, high = (math.ceil(number) for number in (ends[0], n_patients * factor, ends[1]))
    return Needed(patients=patients, low=low, high=high)


def needed_for_gain(interval: Interval, *, gain: float, n_patients: int, n_seeds: int) -> Needed | None:
    """What lets a true ``gain`` above 0 show with ``POWER``: gain >= (t(.975) + t(POWER)) standard errors."""
    if interval.df is None:
        return None
    wide, more = stats.t.ppf((0.975, POWER), interval.df)
    return needed_for_margin(interval, margin=gain * wide / (wide + more), n_patients=n_patients, n_seeds=n_seeds)


def needed_for_thinnest(positive_patients: dict[str, int], *, n_patients: int, wanted: int) -> int | None:
    """Positive patients of the group at which its thinnest class has ``wanted``, at today's mix; None if it has none.
    """
    fewest = min(positive_patients.values(), default=0)
    return None if fewest == 0 else math.ceil(n_patients * max(1.0, wanted / fewest))
