"""The chapter of the dose-response: what more synthetic images per class bring, and how many were really there.

A run without amounts has no such chapter. The amount that the slots really hold stands beside the one that was asked
for: where too few images were kept, a larger amount is a larger number of repeats.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from classify.arms.amounts import split_amount
from classify.comparison.amounts import CHOOSES
from classify.figures.curves import Dose, dose_plot
from classify.figures.plots import Axis, Interval, Plot, Row, arm_series, row_plot
from classify.pages.arms import difference_text
from classify.pages.blocks import Chapter, Notes, Table, is_null, number
from classify.pages.evidence import Evidence
from cohort.config import arm_at

LINES = ("real", "oracle")
"""Arms that are drawn as levels to read against, where they have no amounts themselves."""

Cells = dict[tuple[str, float], dict[Any, Any]]
"""(plain arm, amount) to its row."""


def amount_chapters(evidence: Evidence) -> list[Chapter]:
    """One chapter, or none for a run without amounts."""
    if evidence.amounts.empty:
        return []
    found = {(row["base"], float(row["amount"])): row for row in evidence.amounts.to_dict("records")}
    words = ("How many images per class are worth making? An amount multiplies the slots that are added per class; a "
             "share of them holds synthetic images, as far as enough were kept, and repeats of real images fill the "
             "rest. Each amount is compared with repeats in the very same slots.",
             str(evidence.verdict.get("amounts", "")))
    return [Chapter(anchor="amounts", title="How many are worth making", words=words,
                    blocks=(_levels(evidence, found), *_differences(evidence, found), _table(evidence, found)),
                    sources=("comparison/amounts.parquet", "arms/ARM/seed_N/_stage.json"))]


def _pair(evidence: Evidence) -> tuple[str, str]:
    """The plain arm of the endpoint and its plain rival."""
    arm, rival = (split_amount(evidence.endpoint[key])[0] for key in ("arm", "rival"))
    return arm, rival


def _amounts(found: Cells, base: str) -> list[float]:
    return sorted(amount for one, amount in found if one == base)


def _mark(row: Mapping[Any, Any] | None, series: int, *, keys: tuple[str, str, str] = ("value", "ci_low", "ci_high"),
          ) -> Interval:
    """A value with its interval; empty where there is no such row."""
    value, low, high = (None if row is None or is_null(row[key]) else float(row[key]) for key in keys)
    return Interval(series=series, value=value, low=low, high=high)


def _levels(evidence: Evidence, found: Cells) -> Plot:
    """Every arm that has amounts, over those of the endpoint's arm; the others as lines."""
    arm, _ = _pair(evidence)
    metric, group, amounts = evidence.endpoint["metric"], evidence.endpoint["group"], _amounts(found, arm)
    doses = []
    for base in dict.fromkeys(base for base, _ in found):
        rows = [found.get((base, amount)) for amount in amounts]
        chosen = [at for at, row in enumerate(rows) if row is not None and row["chosen"]]
        series = arm_series(base, evidence.arms)
        doses.append(Dose(name=base, marks=tuple(_mark(row, series) for row in rows),
                          chosen=chosen[0] if chosen else None))
    values: dict[str, Any] = {
        name: (evidence.result(arm=name, rival=None, label=group, metric=metric) or {}).get("value")
        for name in LINES if name in evidence.arms and not _amounts(found, name)}
    ticks = []
    for amount in amounts:
        per_class = held(evidence, arm_at(arm, amount))["per_class"]
        ticks.append(f"{amount:g}×" + ("" if per_class is None else f"\n{per_class:,.0f}"))
    return dose_plot(doses, ticks=ticks, title=f"{metric} of the {group} group by amount",
                     xlabel="amount, and the synthetic images that a class really got",
                     ylabel=f"mean {metric} on test", note="Bars are 95 % intervals. Dashed: arms without amounts.",
                     lines={name: float(value) for name, value in values.items() if not is_null(value)})


def _differences(evidence: Evidence, found: Cells) -> tuple[Plot, ...]:
    """The endpoint's arm against its rival in the same slots, a row per amount."""
    arm, _ = _pair(evidence)
    rows = []
    for amount in _amounts(found, arm):
        row = found[arm, amount]
        mark = _mark(row, arm_series(arm, evidence.arms), keys=("delta", "delta_low", "delta_high"))
        text = difference_text({"delta": row["delta"], "ci_low": row["delta_low"], "ci_high": row["delta_high"]})
        rows.append(Row(label=f"{amount:g}×", marks=(mark,), strong=bool(row["chosen"]), text=text))
    metric, group = evidence.endpoint["metric"], evidence.endpoint["group"]
    axis = Axis(label=f"difference in {metric}", zero=True, ends=("repeats better", f"{arm} better"))
    title = f"{arm.capitalize()} against repeats in the same slots, {group} group"
    return (row_plot(rows, names={}, axis=axis, title=title, note="The chosen amount is emphasised."),)


def held(evidence: Evidence, arm: str) -> dict[str, float | None]:
    """Mean over seeds of what an arm's slots hold, from its stamps; null where they do not tell.

    ``slots`` added per class for the finding, ``meant`` of them for synthetic images, ``per_class`` synthetic ones
    there, and ``filled``, the share of all slots meant for synthetic images, those without the finding included.
    """
    stamps = [made.stamp for made in evidence.stamps("arm") if made.arm == arm]
    kinds = ("duplicate", "synthetic", "synthetic_negative", "unfilled")
    if not stamps or any(key not in stamp["counts"] for stamp in stamps for key in kinds):
        return dict.fromkeys(("slots", "meant", "per_class", "filled"))
    config, mean = stamps[0]["config"], {key: float(np.mean([s["counts"][key] for s in stamps])) for key in kinds}
    slots = float(round(config["slots_per_class"] * split_amount(arm)[1]))
    added = mean["duplicate"] + mean["synthetic"]
    synthetic = mean["synthetic"] + mean["synthetic_negative"]
    share = config.get("synthetic_share")
    return {"slots": slots, "meant": None if share is None else share * slots,
            "per_class": slots * mean["synthetic"] / added if added else None,
            "filled": synthetic / (synthetic + mean["unfilled"]) if synthetic + mean["unfilled"] else None}


def _table(evidence: Evidence, found: Cells) -> Table:
    """A row per amount: what the slots hold, both arms on validation and test, and their difference."""
    (arm, rival), notes, rows, strong, short = _pair(evidence), Notes(), [], set(), []
    metric = evidence.endpoint["metric"]
    for at, amount in enumerate(_amounts(found, arm)):
        own, other, there = found[arm, amount], found.get((rival, amount)), held(evidence, arm_at(arm, amount))
        strong |= {at} if own["chosen"] else set()
        if there["filled"] is not None and there["filled"] < 1:
            short.append(f"{100 * there['filled']:.0f} % at {amount:g}×")
        synthetic = f"{number(there['per_class'], 0)} of {number(there['meant'], 0)}"
        rows.append((f"{amount:g}×", f"{number(there['slots'], 0)} ({synthetic})",
                     " / ".join(_cell(row, "val", notes) for row in (own, other)),
                     *(_cell(row, "value", notes) for row in (own, other)),
                     difference_text({"delta": own["delta"], "ci_low": own["delta_low"], "ci_high": own["delta_high"]})
                     if not is_null(own["delta"]) else notes.dash(own["reason"])))
    chosen = [amount for (base, amount), row in found.items() if base == rival and row["chosen"]]
    told = (f"Bold: the amount chosen for {arm}" + (f"; for {rival} it is {chosen[0]:g}×." if chosen else "."),)
    filled = (f"Filled, of all slots meant for synthetic images, with negatives: {', '.join(short)}; elsewhere all.",
              ) if short else ()
    judge = CHOOSES.get(metric, metric)
    columns = ("Amount", "Slots per class (synthetic, meant)",
               f"{judge} on validation, {arm} / {rival}", f"{metric} on test, {arm}", f"{metric} on test, {rival}",
               "Difference")
    return Table(title="By amount", columns=columns, rows=tuple(rows), strong=frozenset(strong),
                 notes=(*(told if strong else ()), *filled, *notes.lines()))


def _cell(row: Mapping[Any, Any] | None, key: str, notes: Notes) -> str:
    """A number, with its interval where it is one of test."""
    if row is None:
        return notes.dash("no such arm in this run")
    if is_null(row[key]):
        return notes.dash("no positives in val" if key == "val" else row["reason"])
    ends = "" if key == "val" or is_null(row["ci_low"]) else f" ({number(row['ci_low'])} to {number(row['ci_high'])})"
    return number(row[key]) + ends
