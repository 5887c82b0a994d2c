"""The dose-response: what each amount of synthetic images scores, and the amount that validation would have chosen.

One row per arm at one amount (``classify.arms.amounts``): its mean over the endpoint's group on validation and on test,
and on test the paired difference from its own rival, which has the very same slots. The arm of the endpoint and its
rival each get the amount at which they do best *on validation*, out of the same amounts, so both are tuned equally; of
equals the smaller one. Two differences on test follow, both with the crossed interval of the endpoint:

    same slots    the arm at its chosen amount, against its rival at that amount
    both at best  the arm at its chosen amount, against its rival at the amount chosen for the rival

The difference itself is not what chooses: it is largest where repeats do worst, which recommends nothing. No number
from test enters the choice, and the endpoint stays the plain pair, fixed beforehand. Not promised: intervals adjusted
for the number of amounts, or for the choice; few validation positives choose at random.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from classify.arms.amounts import split_amount
from classify.comparison.intervals import Interval
from classify.comparison.pairing import Comparison
from classify.comparison.pairs import rivals_of
from cohort.config import arm_at

COLUMNS = ("arm", "base", "amount", "rival", "metric", "label", "val", "n_val_positive_patients", "value", "ci_low",
           "ci_high", "delta", "delta_low", "delta_high", "chosen", "reason")
CHOOSES = {"F1": "AP"}
"""Endpoint's metric -> the one that chooses, where validation has none: F1's thresholds were chosen there."""


def dosed_bases(arms: Sequence[str]) -> dict[str, list[float]]:
    """Arms that are there at two amounts or more -> these amounts, ascending."""
    found: dict[str, list[float]] = {}
    for arm in arms:
        base, amount = split_amount(arm)
        found.setdefault(base, []).append(amount)
    return {base: sorted(amounts) for base, amounts in found.items() if len(amounts) > 1}


def shared_amounts(arms: Sequence[str], endpoint: Mapping[str, str]) -> list[float]:
    """The amounts at which both arms of the endpoint are there, ascending.

    None where there are fewer than two, or where the two are one arm at two amounts, which is then the question itself.
    """
    bases = [split_amount(endpoint[key])[0] for key in ("arm", "rival")]
    if bases[0] == bases[1]:
        return []
    dosed = dosed_bases(arms)
    shared = set(dosed.get(bases[0], [])) & set(dosed.get(bases[1], []))
    return sorted(shared) if len(shared) > 1 else []


def choose_amounts(metrics: pd.DataFrame, arms: Sequence[str], endpoint: Mapping[str, str]) -> dict[str, float]:
    """The endpoint's arm and its rival, by their plain names -> the amount with the highest mean on validation.

    ``metrics``: the table of ``measuring.metric_rows``, of which only the validation split is read. Empty where there
    is no amount to choose, or where validation has no value (no positives).
    """
    found = {}
    for key in ("arm", "rival"):
        base = split_amount(endpoint[key])[0]
        values = {amount: _on_validation(metrics, arm_at(base, amount), endpoint)[0]
                  for amount in shared_amounts(arms, endpoint)}
        known = {amount: value for amount, value in values.items() if not np.isnan(value)}
        if known:
            found[base] = max(known, key=lambda amount: known[amount])
    return found if len(found) > 1 else {}


def _on_validation(metrics: pd.DataFrame, arm: str, endpoint: Mapping[str, str]) -> tuple[float, int]:
    """Mean over seeds and classes of an arm on validation, NaN where undefined, and the positive patients behind it."""
    metric = CHOOSES.get(endpoint["metric"], endpoint["metric"])
    rows = metrics[(metrics["split"] == "val") & (metrics["weights"] == endpoint["weights"]) & (metrics["arm"] == arm)
                   & (metrics["label"] == endpoint["group"]) & (metrics["metric"] == metric)]
    return float(rows["value"].mean(skipna=False)), int(rows["n_positive_patients"].max())


def amount_rows(compared: Comparison, metrics: pd.DataFrame, endpoint: Mapping[str, str],
                chosen: Mapping[str, float]) -> pd.DataFrame:
    """The table ``amounts``: every arm that is there at several amounts, at each of them, and in the endpoint's group.

    ``val`` is the mean on validation of the metric that chooses, ``value`` the one on test of the endpoint's metric.
    """
    arms, rows = list(compared.source.arms), []
    rivals, about = rivals_of(arms), {"metric": endpoint["metric"], "label": endpoint["group"]}
    for base, amounts in dosed_bases(arms).items():
        for amount in amounts:
            arm = arm_at(base, amount)
            own = compared.interval(arm=arm, rival=None, **about)
            gain = compared.interval(arm=arm, rival=rivals[arm], **about) if arm in rivals else Interval(
                estimate=None, reason="its rival is not in this run")
            val, n_val = _on_validation(metrics, arm, endpoint)
            low, high = (None if end is None else min(max(end, 0.0), 1.0) for end in (own.low, own.high))
            rows.append({"arm": arm, "base": base, "amount": amount, "rival": rivals.get(arm), **about, "val": val,
                         "n_val_positive_patients": n_val, "value": own.estimate, "ci_low": low,
                         "ci_high": high, "delta": gain.estimate, "delta_low": gain.low, "delta_high": gain.high,
                         "chosen": chosen.get(base) == amount, "reason": own.reason or gain.reason})
    numbers = [*COLUMNS[6:7], *COLUMNS[8:14]]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(dict.fromkeys(numbers, "float64"))


def amount_facts(compared: Comparison, endpoint: Mapping[str, str], chosen: Mapping[str, float]) -> dict[str, Any]:
    """What stands in the stamp: the chosen amounts, and the two differences on test; JSON-able, empty without a choice.
    """
    if not chosen:
        return {}
    base, rival = (split_amount(endpoint[key])[0] for key in ("arm", "rival"))
    arm = arm_at(base, chosen[base])
    pairs = {"same_slots": arm_at(rival, chosen[base]), "both_at_best": arm_at(rival, chosen[rival])}
    facts: dict[str, Any] = {"chosen": dict(chosen), "arm": arm}
    for name, other in pairs.items():
        one = compared.interval(arm=arm, rival=other, label=endpoint["group"], metric=endpoint["metric"])
        facts[name] = {"rival": other, "delta": one.estimate, "ci_low": one.low, "ci_high": one.high,
                       "reason": one.reason}
    return facts


def amount_sentence(table: pd.DataFrame, facts: Mapping[str, Any], endpoint: Mapping[str, str]) -> str:
    """The choice and what it brought on test, in words."""
    metric = CHOOSES.get(endpoint["metric"], endpoint["metric"])
    if not facts:
        return f"No amount could be chosen: {metric} of the {endpoint['group']} group is undefined on validation."
    amounts = " and ".join(f"{amount:g}× for {base}" for base, amount in facts["chosen"].items())
    n_val = int(table.loc[table["chosen"], "n_val_positive_patients"].max())
    n_amounts = len(shared_amounts(list(table["arm"]), endpoint))
    same, best = facts["same_slots"], facts["both_at_best"]
    said = (f"Amount chosen on validation by mean {metric} of the {endpoint['group']} group ({n_val:,} positive "
            f"patients; {n_amounts} amounts tried for each arm): {amounts}. On test {facts['arm']} against "
            f"{same['rival']}, in the same slots: {_text(same)}")
    if best["rival"] != same["rival"]:
        said += f"; against {best['rival']}, the amount that suits the rival best: {_text(best)}"
    return f"{said}. Secondary: the endpoint stays {endpoint['arm']} against {endpoint['rival']}."


def _text(part: Mapping[str, Any]) -> str:
    if part["delta"] is None:
        return f"undefined ({part['reason']})"
    ends = f"no interval: {part['reason']}" if part["ci_low"] is None else (
        f"95 % interval {part['ci_low']:+.3f} to {part['ci_high']:+.3f}".replace("-", "−"))
    return f"{part['delta']:+.3f}".replace("-", "−") + f" ({ends})"
