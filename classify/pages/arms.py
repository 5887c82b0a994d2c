"""Arm by arm: what each is for, how it does against its own rival, how much of the oracle's gain it recovers."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from classify.comparison.measuring import UNDER_200
from classify.comparison.pairs import ABOUT, rivals_of
from classify.ensembling.folds import FOLD
from classify.ensembling.scores import ENSEMBLE
from classify.figures.plots import Axis, Interval, Plot, Row, own_series, row_plot
from classify.pages.blocks import DASH, Notes, Table, is_null, number, signed
from classify.pages.evidence import GROUPS, Evidence

SHARE_AXIS = (-1.0, 2.0)
"""Recovered shares that the figure shows at most; beyond that an interval is an arrow, and the table has it."""


def row_name(evidence: Evidence, name: str) -> str:
    """A label as itself; a group with the number of classes that its mean runs over: ``Tail, mean of 2 (of 3)``."""
    if name not in GROUPS:
        return name
    defined, undefined = evidence.members(name)
    of_all = f" (of\u00a0{len(defined) + len(undefined)})" if undefined else ""
    shown = "Under 200 positives" if name == UNDER_200 else name.capitalize()
    return f"{shown}, mean\u00a0of\u00a0{len(defined)}{of_all}"


def arm_table(evidence: Evidence) -> Table:
    """Every arm, its rival, and the question that it answers."""
    rivals = rivals_of(evidence.arms)
    rows = tuple((arm, rivals.get(arm, DASH), ABOUT.get(arm, "")) for arm in evidence.arms)
    return Table(title="The arms", columns=("Arm", "Its rival", "What stands in it, and why"), rows=rows, text=3)


def arm_forests(evidence: Evidence) -> tuple[Plot, ...]:
    """The endpoint's group and metric: a row per arm, against its own rival; none where no such pair was compared."""
    end, rows, groups = evidence.endpoint, [], dict[str, list[str]]()
    for arm, rival in rivals_of(evidence.arms).items():
        row = evidence.difference((arm, rival), end["group"])
        if row:
            groups.setdefault(rival, []).append(arm)
            rows.append(Row(label=arm, marks=(difference_mark(row, own_series(arm, end["arm"])),),
                            strong=arm == end["arm"], text=difference_text(row)))
    note = "Against " + "; ".join(f"{rival}: {', '.join(arms)}" for rival, arms in groups.items()) + "."
    axis = Axis(label=f"difference in {end['metric']}", zero=True, ends=("rival better", "arm better"))
    title = f"Every arm against its rival, {end['group']} group"
    return (row_plot(rows, title=title, names={}, note=note, axis=axis),) if rows else ()


def difference_mark(row: Mapping[Any, Any], series: int) -> Interval:
    """A difference with its interval; ``row`` as in the comparison, empty when there is none."""
    value, low, high = (None if is_null(row.get(k)) else float(row[k]) for k in ("delta", "ci_low", "ci_high"))
    return Interval(series=series, value=value, low=low, high=high)


def difference_text(row: Mapping[Any, Any]) -> str:
    """``+0.012  (−0.004 to +0.028)``, or what is missing."""
    if is_null(row.get("delta")):
        return "undefined"
    if is_null(row.get("ci_low")):
        return f"{signed(row['delta'])}  no interval"
    return f"{signed(row['delta'])}  ({signed(row['ci_low'])} to {signed(row['ci_high'])})"


def recovered_plots(evidence: Evidence) -> tuple[Plot, ...]:
    """A row per arm on an axis from the duplicates to the oracle; none where no share of the group is defined."""
    end, rows = evidence.endpoint, []
    for (arm, label), row in _shares(evidence).items():
        if label == end["group"] and not is_null(row["share"]):
            mark = Interval(series=own_series(arm, end["arm"]), value=row["share"], low=row["ci_low"],
                            high=row["ci_high"])
            rows.append(Row(label=arm, marks=(mark,), strong=arm == end["arm"], text=_share_text(row, Notes())))
    axis = Axis(label=f"share of the oracle's gain in {end['metric']}", percent=True, within=SHARE_AXIS,
                lines={0.0: "duplicates", 1.0: "oracle"})
    title = f"Recovered share of the oracle's gain, {end['group']} group"
    return (row_plot(rows, title=title, names={}, axis=axis),) if rows else ()


def recovered_tables(evidence: Evidence) -> tuple[Table, ...]:
    """The share of every arm in every group and class; none in a run without an oracle."""
    shares, notes = _shares(evidence), Notes()
    arms = list(dict.fromkeys(arm for arm, _ in shares))
    rows = tuple((row_name(evidence, name), *(_share_text(shares[arm, name], notes) for arm in arms))
                 for name in evidence.rows)
    strong = frozenset(i for i, name in enumerate(evidence.rows) if name in GROUPS)
    title = "Recovered share: gain over the rival, as a share of the oracle's gain over the duplicates"
    return (Table(title=title, columns=("Class", *arms), rows=rows, strong=strong,
                  notes=notes.lines()),) if shares else ()


def member_tables(evidence: Evidence) -> tuple[Table, ...]:
    """Each model by itself and their ensemble last, on validation and on test, by group; none without an ensemble."""
    table, end = evidence.models, evidence.endpoint
    if table.empty:
        return ()
    metric = end["metric"] if end["metric"] in set(table["metric"]) else "AP"
    chosen = table[(table["metric"] == metric) & (table["arm"].isin((end["arm"], end["rival"], "real", FOLD)))]
    groups = [group for group in GROUPS if group in set(chosen["label"])]
    found = []
    for split in dict.fromkeys(chosen["split"]):
        notes, rows = Notes(), []
        for (arm, model), part in chosen[chosen["split"] == split].groupby(["arm", "model"], sort=False):
            by_group = {group: part[part["label"] == group] for group in groups}
            rows.append((str(arm), str(model), *(_member_cell(by_group[group], notes) for group in groups)))
        strong = frozenset(at for at, row in enumerate(rows) if row[1] == ENSEMBLE)
        name = {"val": "validation"}.get(str(split), str(split))
        found.append(Table(title=f"Single models and their ensemble: {metric} on {name}, mean over seeds", text=2,
                           columns=("Arm", "Model", *(row_name(evidence, group) for group in groups)),
                           rows=tuple(rows), strong=strong, notes=notes.lines()))
    return tuple(found)


def _member_cell(part: pd.DataFrame, notes: Notes) -> str:
    """The mean over seeds, or a dash with the letter of the reason."""
    if part.empty or part["value"].isna().all():
        return notes.dash("not computed" if part.empty else part["reason"].iloc[0])
    return number(part["value"].mean())


def _shares(evidence: Evidence) -> dict[tuple[str, str], dict[Any, Any]]:
    """(arm, class or group) to its row of ``recovered`` in the endpoint's metric, in the order of the arms."""
    records = [] if evidence.recovered.empty else evidence.recovered.to_dict("records")
    found = {(row["arm"], row["label"]): row for row in records if row["metric"] == evidence.endpoint["metric"]}
    return dict(sorted(found.items(), key=lambda item: evidence.arms.index(item[0][0])))


def _share_text(row: Mapping[Any, Any], notes: Notes) -> str:
    """``63 % (20 to 110)``, or a dash with the letter of the reason."""
    if is_null(row["share"]):
        return notes.dash(row["reason"])
    share, low, high = (f"{100 * row[key]:.0f}".replace("-", "−") for key in ("share", "ci_low", "ci_high"))
    return f"{share}\u00a0% ({low} to {high})"
