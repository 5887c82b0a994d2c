"""Crossed intervals: how sure is a difference between two arms, when all seeds share the same test patients?

Two things vary, and they are crossed, not nested: the patients in the test set (one sample, shared by every arm and
every seed) and the seeds (each a training of its own). More seeds cannot make up for few patients, so treating each
seed as if it had met its own patients gives intervals that are too narrow. Here

    interval = mean delta  +-  t(df) * sqrt(V_patients + s2_seeds / S)

- deltas are paired: one per seed, both arms on the same images;
- ``V_patients``: the variance, over bootstrap draws, of the mean delta over seeds, less the part that is in the seeds
  too (below). One draw resamples patients with all their images and is shared by all arms, seeds, classes and metrics
  (``patient_draws``);
- ``s2_seeds``: the variance between the S observed deltas, all on the same test set;
- ``df``: Satterthwaite's, from S - 1 for the seeds and ``patient_df`` for the patients.

What the two parts hold. A delta is a patients' effect (variance P), a seed's effect (Q) and an interaction of the two
(R: each seed errs on other patients). The truth is P + Q/S + R/S. Over the draws the mean varies by P + R/S, and
s2_seeds / S estimates Q/S + R/S; R itself is what the variance between seeds grows by inside the draws, each of which
adds the interaction once more. So V_patients is the variance over draws less R/S, 0 at least, and R is counted once, in
the seeds. Counted twice, it made intervals of an arm against itself, where P is 0, cover in 99 % of the cases
(``scripts/calibrate.py``).

Not promised: anything about another generator or another hospital, or about findings with hardly any positive
patients: a resample of 5 patients knows only those 5.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]

CHUNK_ELEMENTS = 1_250_000
"""Images x draws evaluated at once: 10 MB of float64. With fewer draws each image is too little work for its overhead,
with more the arrays leave the cache (16 draws of 78,946 images were the fastest of 4, 8, 16 and 32)."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its crossed interval. Whatever cannot be known is None, and ``reason`` says why."""

    estimate: float | None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    standard_error: float | None = None
    df: float | None = None
    variance_patients: float | None = None
    """V_patients, without the interaction."""
    variance_seeds: float | None = None
    variance_interaction: float | None = None
    n_draws: int = 0
    """Draws in which the estimate was defined."""
    reason: str | None = None

    def bounds(self, level: float) -> tuple[float, float] | None:
        """The interval at another confidence level (0 to 1), or None where there is none."""
        if self.standard_error is None or self.estimate is None or self.df is None:
            return None
        half = float(stats.t.ppf((1 + level) / 2, self.df)) * self.standard_error
        return self.estimate - half, self.estimate + half

    def p_above(self, bound: float) -> float | None:
        """One-sided p of the hypothesis that the true value is ``bound`` or less; None without an interval."""
        if self.standard_error is None or self.estimate is None or self.df is None:
            return None
        if self.standard_error == 0:
            return 0.0 if self.estimate > bound else 1.0
        return float(stats.t.sf((self.estimate - bound) / self.standard_error, self.df))

    def p_tost(self, margin: float) -> float | None:
        """p of two one-sided tests (TOST): the true value is ``margin`` or more away from 0. None without an interval.

        Below 5 % exactly where the 90 % interval lies inside +- ``margin``.
        """
        below, above = self.p_above(-margin), self.p_above(margin)
        return None if below is None or above is None else max(below, 1 - above)


def patient_draws(n_patients: int, n_draws: int, rng: np.random.Generator) -> NDArray[np.uint16]:
    """How often each patient is in each resample: uint16 (n_patients, n_draws), columns summing to ``n_patients``."""
    shares = np.full(n_patients, 1 / n_patients)
    return np.ascontiguousarray(rng.multinomial(n_patients, shares, size=n_draws).T.astype(np.uint16))


def bootstrap(
    evaluators: Sequence[Callable[[Array], Array]], *, patients: NDArray[np.intp], draws: NDArray[np.uint16],
    threads: int = 1,
) -> Array:
    """Evaluate every evaluator on the same draws: float64 (n_evaluators, n_metrics, n_draws).

    An evaluator (``metrics.ClassMetrics``) maps image weights (n_images, n) to values (n_metrics, n).
    ``patients``: (n_images,) row of each image's patient in ``draws`` (n_patients, n_draws). ``threads``: evaluators at
    work at once, 1 or more; the values do not depend on it.
    """
    step = max(1, CHUNK_ELEMENTS // max(1, len(patients)))
    parts = []
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, draws.shape[1], step):
            weights = draws[:, start : start + step].astype(np.float64)[patients]
            parts.append(np.stack([*pool.map(lambda evaluate, one=weights: evaluate(one), evaluators)]))
    return np.concatenate(parts, axis=-1)


def mean_over_classes(values: Array, *, axis: int) -> Array:
    """Mean over the classes along ``axis`` that are defined; NaN where none is.

    A class that a resample leaves without positives is NaN for every arm and seed, because this depends on the labels
    and the draw alone: so it is dropped from that draw for both arms of a pair alike.
    """
    known = ~np.isnan(values)
    n_known = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.divide(total, n_known, out=np.full(total.shape, np.nan), where=n_known > 0)


def satterthwaite(parts: Sequence[tuple[float, float]]) -> float:
    """Degrees of freedom of a sum of independent variance estimates, given as (variance, degrees of freedom).

    Satterthwaite 1946: (sum v)^2 / sum(v^2 / df). Without any variance: infinity.
    """
    total = sum(variance for variance, _ in parts)
    spread = sum(variance**2 / df for variance, df in parts)
    return total**2 / spread if spread > 0 else float("inf")


def patient_df(class_variances: Sequence[float], positive_patients: Sequence[int]) -> float:
    """Degrees of freedom of V_patients for a class, or for the mean over several classes.

    A ranking metric of a rare class is close to a mean over its *positive* patients, so a class brings the number of
    these minus 1 (1 at least), not that of all patients and not that of the draws: 30 positives among 3,000 patients
    tell as little of their variance as a sample of 30. A group's variance is nearly the sum of its classes' variances
    (over their number squared, which cancels), hence Satterthwaite again: a class of 5 patients that holds most of the
    variance leaves the group hardly more than 4. ``class_variances``: bootstrap variance of each class's mean delta.
    """
    return satterthwaite([(v, max(n - 1, 1)) for v, n in zip(class_variances, positive_patients, strict=True)])


def crossed_interval(estimates: Array, draws: Array, *, df_patients: float, level: float = 0.95) -> Interval:
    """The crossed interval of the module's docstring.

    ``estimates``: float64 (n_seeds,), one paired delta (or one value) per seed on the test set as it is.
    ``draws``: float64 (n_seeds, n_draws), the same per resample; a draw with NaN is left out. ``df_patients``: see
    ``patient_df``; the noise of finitely many draws is added to it. ``level``: confidence, 0 to 1.
    An exact zero in every seed and draw has an interval of width zero and p = 1.
    """
    if np.isnan(estimates).any():
        return Interval(estimate=None, reason="undefined on the test set")
    estimate, n_seeds = float(estimates.mean()), len(estimates)
    usable = draws[:, ~np.isnan(draws).any(axis=0)]
    if n_seeds < 2:
        return Interval(estimate=estimate, reason="one seed: the variance between seeds is unknown")
    if usable.shape[1] < max(2, draws.shape[1] / 2):
        return Interval(estimate=estimate, n_draws=usable.shape[1],
                        reason=f"only {usable.shape[1]} of {draws.shape[1]} resamples define it")
    s2_seeds = float(estimates.var(ddof=1))
    interaction = max(0.0, float(usable.var(axis=0, ddof=1).mean()) - s2_seeds)
    v_patients = max(0.0, float(usable.mean(axis=0).var(ddof=1)) - interaction / n_seeds)
    error = float(np.sqrt(v_patients + s2_seeds / n_seeds))
    if error == 0 and estimate != 0:
        return Interval(estimate=estimate, n_draws=usable.shape[1], reason="no seed and no resample changes it")
    df_draws = usable.shape[1] - 1
    df = satterthwaite([(v_patients, 1 / (1 / df_patients + 1 / df_draws)), (s2_seeds / n_seeds, n_seeds - 1)])
    half = float(stats.t.ppf((1 + level) / 2, df)) * error
    return Interval(
        estimate=estimate, low=estimate - half, high=estimate + half, standard_error=error, df=df,
        p=float(2 * stats.t.sf(abs(estimate) / error, df)) if error > 0 else 1.0,
        variance_patients=v_patients, variance_seeds=s2_seeds, n_draws=usable.shape[1],
        variance_interaction=interaction,
    )


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p-values (Holm 1979); None stays None and is no member of the family."""
    known = sorted((p, at) for at, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    running = 0.0
    for rank, (p, at) in enumerate(known):
        running = max(running, min(1.0, (len(known) - rank) * p))
        adjusted[at] = running
    return adjusted


def needed_factor(interval: Interval, *, margin: float, n_seeds: int, level: float = 0.95) -> float | None:
    """How many times as many (positive) patients would make the half-width equal ``margin``; approximate.

    V_patients falls as 1/n; the seeds' share and t stay as they are. None without an interval, and infinity where the
    seeds alone are wider than the margin, so that no number of patients is enough.
    """
    if interval.df is None or not interval.variance_patients or interval.variance_seeds is None:
        return None
    room = (margin / float(stats.t.ppf((1 + level) / 2, interval.df))) ** 2 - interval.variance_seeds / n_seeds
    return interval.variance_patients / room if room > 0 else float("inf")
