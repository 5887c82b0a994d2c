"""From the primary endpoint's interval to one of a few answers, and the sentences that keep it honest.

    interval above 0                                          helps
    interval below 0                                          hurts
    90 % interval inside +- margin (TOST), or only one        no difference larger than X could be shown
      end of the 95 % interval beyond it
    a class under 10 positive patients, or both ends beyond   cannot say (too few positives)
    no delta in any seed or resample: nothing was compared    cannot say (both arms are the same)

X is the margin when two one-sided tests at 5 % (TOST, Schuirmann 1987) hold, and otherwise the farther end of the 95 %
interval. Head and medium are guards: each says whether a loss larger than its margin is excluded (one-sided 5 %). A
missing gain means little in an experiment that was never shown to be able to find one: without an oracle arm that beats
the rival, the answer carries "no gain shown, sensitivity unknown".

Not promised: a claim. Three seeds are an indication, five are wanted for a claim, and one generator is one generator.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from classify.comparison.intervals import Interval, needed_factor
from cohort.labels import MIN_POSITIVE_PATIENTS

HELPS, HURTS = "helps", "hurts"
CANNOT_SAY = "cannot say (too few positives)"
TOO_FEW_SEEDS = "cannot say (too few seeds)"
SAME_ARMS = "cannot say (both arms are the same)"
MIN_SEEDS, CLAIM_SEEDS = 3, 5
"""Seeds below which nothing is said, and from which a claim may be made: the spread of two is hardly known."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """All that the verdict rests on."""

    endpoint: Mapping[str, str]
    """metric, group, arm, rival, weights."""
    interval: Interval
    """Of the endpoint's delta; above 0 is in favour of the arm."""
    margin: float
    """A difference smaller than this counts as none, in units of the metric."""
    guards: Mapping[str, tuple[Interval, float]]
    """Per guarded group: the interval of its delta, and the loss that is still tolerated."""
    positive_patients: Mapping[str, int]
    """Positive test patients of each class of the endpoint's group."""
    n_patients: int
    """Distinct positive test patients of that group."""
    n_seeds: int
    preregistered: bool
    supported: Interval | None = None
    """The same delta over the classes with enough positive patients only, where that is not the whole group."""
    oracle: Interval | None = None
    """Delta of the oracle arm against the rival, where there is an oracle."""


def decide(case: Case) -> tuple[str, float | None]:
    """The answer, and the X of "no difference larger than X"; see the module's table."""
    interval, margin = case.interval, case.margin
    if case.n_seeds < MIN_SEEDS:
        return TOO_FEW_SEEDS, None
    if interval.standard_error == 0:
        return SAME_ARMS, None  # important: as when no synthetic image was kept; else it would pass for "no difference"
    narrow, wide = interval.bounds(0.90), interval.bounds(0.95)
    if narrow is None or wide is None or thin_classes(case):
        return CANNOT_SAY, None
    if wide[0] > 0:
        return HELPS, None
    if wide[1] < 0:
        return HURTS, None
    if narrow[0] > -margin and narrow[1] < margin:
        return _no_difference(margin), margin
    if wide[0] < -margin and wide[1] > margin:
        return CANNOT_SAY, None
    largest = max(abs(wide[0]), abs(wide[1]))
    return _no_difference(largest), largest


def thin_classes(case: Case) -> dict[str, int]:
    """The endpoint's classes with fewer than 10 positive test patients."""
    return {label: n for label, n in case.positive_patients.items() if n < MIN_POSITIVE_PATIENTS}


def judge(case: Case) -> dict[str, Any]:
    """The verdict as it stands in the stamp: JSON-able; ``verdict`` is the answer, ``sentences`` explain it."""
    answer, largest = decide(case)
    factor = needed_factor(case.interval, margin=case.margin, n_seeds=case.n_seeds)
    needed = math.ceil(case.n_patients * factor) if factor is not None and math.isfinite(factor) else None
    guards = {name: _guard(interval, margin) for name, (interval, margin) in case.guards.items()}
    return {
        "verdict": answer, "sentences": _sentences(case, answer, factor=factor, needed=needed, guards=guards),
        "endpoint": dict(case.endpoint), "numbers": _numbers(case.interval), "margin": case.margin,
        "largest_difference": largest, "guards": guards, "sensitivity": _sensitivity(case),
        "positive_patients": dict(case.positive_patients), "n_positive_patients": case.n_patients,
        "thin_classes": thin_classes(case), "needed_positive_patients": needed, "n_seeds": case.n_seeds,
        "supported": None if case.supported is None else _numbers(case.supported),
        "preregistered": case.preregistered,
    }


def _sentences(case: Case, answer: str, *, factor: float | None, needed: int | None,
               guards: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The answer in words, most important first."""
    end = case.endpoint
    said = [
        _conclusion(case, answer),
        f"{end['arm']} against {end['rival']}, mean {end['metric']} of the {end['group']} group "
        f"({', '.join(case.positive_patients) or 'no class'}; {end['weights']} weights, {case.n_seeds} seeds, "
        f"{case.n_patients} positive test patients): {_text(case.interval)}.",
    ]
    if answer == SAME_ARMS:
        said.append("Both arms predict exactly the same: look in the arm's stamp whether any slot holds another image.")
    thin = thin_classes(case)
    if thin:
        said.append("Too few positive test patients for an answer: "
                    + ", ".join(f"{label} has {n}" for label, n in thin.items())
                    + f" (wanted: {MIN_POSITIVE_PATIENTS} or more in each class).")
    if case.supported is not None:
        kept = [label for label in case.positive_patients if label not in thin]
        said.append(f"Over {', '.join(kept)} alone: {_text(case.supported)}; no verdict rests on this part.")
    if factor == math.inf:
        said.append(f"More patients alone cannot bring the half-width to {case.margin:g}: the seeds vary by more.")
    elif needed is not None and needed > case.n_patients:
        said.append(f"Half-width {case.margin:g} would take about {needed:,} positive test patients of the group.")
    said += [f"Guard {name}: {guard['sentence']}" for name, guard in guards.items()]
    if answer not in (HELPS, HURTS):
        said += _about_sensitivity(case)
    if case.n_seeds < CLAIM_SEEDS:
        said.append(f"{case.n_seeds} seeds per arm: an indication at best, a claim needs {CLAIM_SEEDS}.")
    said.append("All seeds share one trained generator: the luck of its training is not in the interval.")
    if not case.preregistered:
        said.append("The endpoint was not fixed before the test predictions existed (no endpoint.json).")
    return said


def _conclusion(case: Case, answer: str) -> str:
    """The first sentence."""
    arm, rival, group = (case.endpoint[key] for key in ("arm", "rival", "group"))
    if answer == HELPS:
        tost = case.interval.bounds(0.90)
        small = tost is not None and tost[1] < case.margin
        return f"{arm} helps the {group} group against {rival}" + (", by less than the margin." if small else ".")
    if answer == HURTS:
        return f"{arm} hurts the {group} group against {rival}."
    if answer in (CANNOT_SAY, TOO_FEW_SEEDS, SAME_ARMS):
        return f"Whether {arm} helps the {group} group against {rival}: {answer}."
    return f"{arm} against {rival} in the {group} group: {answer}."


def _about_sensitivity(case: Case) -> list[str]:
    state = _sensitivity(case)
    if state == "shown":
        return ["The oracle beats the rival in this experiment, so it could have shown a gain."]
    if state == "not shown":
        return ["No gain shown, and the oracle does not beat the rival either: the experiment could not have said yes."]
    return ["No gain shown, sensitivity unknown: without an oracle arm nothing proves that a gain would be seen."]


def _sensitivity(case: Case) -> str:
    """``shown``, ``not shown`` or ``unknown``."""
    if case.oracle is None:
        return "unknown"
    return "shown" if case.oracle.low is not None and case.oracle.low > 0 else "not shown"


def _guard(interval: Interval, margin: float) -> dict[str, Any]:
    """Whether a loss beyond ``margin`` is excluded in a guarded group, and the equivalence test (TOST) beside it."""
    p_loss, below = interval.p_above(-margin), interval.p_above(margin)
    p_tost = None if p_loss is None or below is None else max(p_loss, 1 - below)
    if p_loss is None:
        state, words = "undefined", f"undefined ({interval.reason})"
    elif p_loss < 0.05:
        state, words = "held", f"a loss beyond {margin:g} is excluded ({_text(interval)})"
    elif interval.high is not None and interval.high < 0:
        state, words = "lost", f"it loses ({_text(interval)}; tolerated: {margin:g})"
    else:
        state, words = "not shown", f"a loss beyond {margin:g} is not excluded ({_text(interval)})"
    return {"state": state, "margin": margin, "p_loss": p_loss, "p_tost": p_tost, "sentence": f"{words}.",
            **_numbers(interval)}


def _numbers(interval: Interval) -> dict[str, Any]:
    narrow: Sequence[float | None] = interval.bounds(0.90) or (None, None)
    return {"delta": interval.estimate, "ci_low": interval.low, "ci_high": interval.high, "p": interval.p,
            "ci90_low": narrow[0], "ci90_high": narrow[1], "reason": interval.reason,
            "df": interval.df if interval.df is not None and math.isfinite(interval.df) else None}


def _text(interval: Interval) -> str:
    """``+0.012, 95 % interval −0.034 to +0.058, p = 0.51``, or what is missing."""
    if interval.estimate is None:
        return f"undefined ({interval.reason})"
    if interval.low is None or interval.high is None or interval.p is None:
        return f"{_signed(interval.estimate)}, no interval ({interval.reason})"
    return (f"{_signed(interval.estimate)}, 95 % interval {_signed(interval.low)} to {_signed(interval.high)}, "
            f"p = {interval.p:.2g}")


def _signed(value: float) -> str:
    """Three digits and a true minus; what rounds to zero has no sign."""
    text = f"{value:+.3f}".replace("-", "−")
    return text if float(text[1:]) else text[1:]


def _no_difference(largest: float) -> str:
    return f"no difference larger than {largest:.3g} could be shown"
