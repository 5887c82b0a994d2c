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
from dataclasses import asdict, dataclass
from typing import Any

from classify.comparison.intervals import Interval
from classify.verdict.needed import Needed, needed_for_gain, needed_for_margin, needed_for_thinnest
from cohort.vocabulary.labels import MIN_POSITIVE_PATIENTS

HELPS, HURTS = "helps", "hurts"
CANNOT_SAY = "cannot say (too few positives)"
TOO_FEW_SEEDS = "cannot say (too few seeds)"
SAME_ARMS = "cannot say (both arms are the same)"
LEVEL = 0.05
"""Of each one-sided test."""
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
    p_tost, wide = interval.p_tost(margin), interval.bounds(0.95)
    if p_tost is None or wide is None or thin_classes(case):
        return CANNOT_SAY, None
    if wide[0] > 0:
        return HELPS, None
    if wide[1] < 0:
        return HURTS, None
    if p_tost < LEVEL:
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
    needed = _needed(case)
    for_margin = needed["margin"]
    guards = {name: _guard(interval, margin) for name, (interval, margin) in case.guards.items()}
    return {
        "verdict": answer, "sentences": _sentences(case, answer, needed=needed, guards=guards),
        "endpoint": dict(case.endpoint), "numbers": _numbers(case.interval), "margin": case.margin,
        "p_tost": case.interval.p_tost(case.margin),
        "largest_difference": largest, "guards": guards, "sensitivity": _sensitivity(case),
        "positive_patients": dict(case.positive_patients), "n_positive_patients": case.n_patients,
        "thin_classes": thin_classes(case), "n_seeds": case.n_seeds,
        "needed_positive_patients": for_margin.patients if isinstance(for_margin, Needed) else None,
        "needed": {name: asdict(one) if isinstance(one, Needed) else one for name, one in needed.items()},
        "supported": None if case.supported is None else _numbers(case.supported),
        "preregistered": case.preregistered,
    }


def _needed(case: Case) -> dict[str, Needed | int | None]:
    """Positive test patients of the group that each way to an answer would take; None where nothing tells."""
    size = {"n_patients": case.n_patients, "n_seeds": case.n_seeds}
    gain = case.oracle.estimate if case.oracle is not None and _sensitivity(case) == "shown" else None
    return {
        "margin": needed_for_margin(case.interval, margin=case.margin, **size),
        "oracle": None if gain is None else needed_for_gain(case.interval, gain=gain, **size),
        "thinnest": needed_for_thinnest(dict(case.positive_patients), n_patients=case.n_patients,
                                        wanted=MIN_POSITIVE_PATIENTS) if thin_classes(case) else None,
    }


def _needed_sentence(case: Case, needed: Mapping[str, Needed | int | None]) -> list[str]:
    """What an answer would take, where it takes more than there is."""
    gain = 0.0 if case.oracle is None or case.oracle.estimate is None else case.oracle.estimate
    purposes = {"margin": f"for a half-width of {case.margin:g}",
                "oracle": f"for a gain like the oracle's ({_signed(gain)}) to show in four experiments of five"}
    ways = []
    for name, purpose in purposes.items():
        one = needed[name]
        if isinstance(one, Needed) and (one.patients is None or one.patients > case.n_patients):
            ways.append(f"{purpose}, {one}")
    if needed["thinnest"] is not None:
        ways.append(f"for {MIN_POSITIVE_PATIENTS} in the thinnest class, about {needed['thinnest']:,} at today's mix")
    return [f"Positive test patients of the group that an answer would take ({case.n_patients:,} are there): "
            f"{'; '.join(ways)}. Estimates from the variance seen here."] if ways else []


def _sentences(case: Case, answer: str, *, needed: Mapping[str, Needed | int | None],
               guards: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The answer in words, most important first."""
    end = case.endpoint
    said = [
        _conclusion(case, answer, needed),
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
    if answer not in (HELPS, HURTS, SAME_ARMS):
        said += _needed_sentence(case, needed)
    said += [f"Guard {name}: {guard['sentence']}" for name, guard in guards.items()]
    if answer not in (HELPS, HURTS):
        said += _about_sensitivity(case)
    if case.n_seeds < CLAIM_SEEDS:
        said.append(f"{case.n_seeds} seeds per arm: an indication at best, a claim needs {CLAIM_SEEDS}.")
    said.append("All seeds share one trained generator: the luck of its training is not in the interval.")
    if not case.preregistered:
        said.append("The endpoint was not fixed before the test predictions existed (no endpoint.json).")
    return said


def _conclusion(case: Case, answer: str, needed: Mapping[str, Needed | int | None]) -> str:
    """The first sentence; where positives are too few, with the number that would do for all ways to an answer."""
    arm, rival, group = (case.endpoint[key] for key in ("arm", "rival", "group"))
    if answer == HELPS:
        tost = case.interval.bounds(0.90)
        small = tost is not None and tost[1] < case.margin
        return f"{arm} helps the {group} group against {rival}" + (", by less than the margin." if small else ".")
    if answer == HURTS:
        return f"{arm} hurts the {group} group against {rival}."
    if answer in (CANNOT_SAY, TOO_FEW_SEEDS, SAME_ARMS):
        known = [one.patients if isinstance(one, Needed) else one for one in needed.values()]
        enough = max((n for n in known if n is not None), default=0)
        number = (f"; about {enough:,} positive test patients would be needed, there are {case.n_patients:,}"
                  if answer == CANNOT_SAY and enough > case.n_patients else "")
        return f"Whether {arm} helps the {group} group against {rival}: {answer}{number}."
    if answer not in (HELPS, HURTS) and (p_tost := case.interval.p_tost(case.margin) or 0.0) < LEVEL:
        return f"{arm} against {rival} in the {group} group: {answer} (two one-sided tests, p = {p_tost:.2g})."
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
    p_loss = interval.p_above(-margin)
    if p_loss is None:
        state, words = "undefined", f"undefined ({interval.reason})"
    elif p_loss < LEVEL:
        state, words = "held", f"a loss beyond {margin:g} is excluded ({_text(interval)})"
    elif interval.high is not None and interval.high < 0:
        state, words = "lost", f"it loses ({_text(interval)}; tolerated: {margin:g})"
    else:
        state, words = "not shown", f"a loss beyond {margin:g} is not excluded ({_text(interval)})"
    return {"state": state, "margin": margin, "p_loss": p_loss, "p_tost": interval.p_tost(margin),
            "sentence": f"{words}.", **_numbers(interval)}


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
