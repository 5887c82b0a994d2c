"""The chapter of the sub-groups: what is ranked and what is missed among women and men, young and old, PA and AP, and
whether the synthetic images helped them alike.
"""

from typing import Any

from classify.comparison.subgroups import FEW, FNR, GAP, GAPS, GROUPS, RANKING, RANKING_GAP
from classify.figures.plots import Axis, Interval, Plot, Row, arm_series, row_plot
from classify.pages.arms import difference_text, row_name
from classify.pages.blocks import Chapter, Notes, Table, is_null, number, signed
from classify.pages.evidence import Evidence

WORDS = (
    "Each sub-group of the test set by itself, mean over seeds with its 95 % interval over patients and seeds. AP "
    "grows with prevalence, which differs between sub-groups: by AP compare arms, not rows. FNR is the share of "
    "positive images that is missed at each class's validation threshold. A gap is the difference from all others: an "
    "FNR gap above zero means that the sub-group is under-diagnosed. Intervals are not adjusted for their number.")
OLDER = "This comparison was made before differences within sub-groups were measured; compare again to see them."
MARK = "*"
"""Beside the name of a sub-group whose numbers are grey, for those who see no grey."""
LEVELS = (*RANKING, FNR, GAP)
DIFFERENCES = (*RANKING, RANKING_GAP, FNR, GAP)
FEW_NOTE = f"Sub-groups with fewer than {FEW} positive patients are in the tables only."


def subgroup_chapters(evidence: Evidence) -> list[Chapter]:
    """One chapter, or none for a comparison made before sub-groups were."""
    sentence, table = evidence.verdict.get("subgroups"), evidence.subgroups
    if sentence is None:
        return []
    words: tuple[str, ...] = (str(sentence),)
    blocks: list[Plot | Table] = []
    if not table.empty and "rival" not in table:
        words = (OLDER,)
    elif not table.empty:
        words, found = (WORDS, str(sentence)), _rows(evidence)
        blocks = [*_gain_plot(evidence, found), *_gap_plot(evidence, found)]
        for label in GROUPS:
            blocks += [_table(evidence, found, label, differences) for differences in (True, False)]
    return [Chapter(anchor="subgroups", title="Sub-groups", blocks=tuple(blocks), words=words,
                    sources=("comparison/subgroups.parquet",))]


Cells = dict[tuple[str, str, str, str, str | None, str], dict[Any, Any]]
"""(attribute, sub-group, label, arm, rival, metric) to its row; without a rival it is the arm's own value."""


def _rows(evidence: Evidence) -> Cells:
    return {(row["attribute"], row["subgroup"], row["label"], row["arm"],
             None if is_null(row["rival"]) else row["rival"], row["metric"]): row
            for row in evidence.subgroups.to_dict("records")}


def _names(found: Cells) -> list[tuple[str, str]]:
    """(attribute, sub-group) in the order of the table."""
    return list(dict.fromkeys(key[:2] for key in found))


def _mark(row: dict[Any, Any], series: int) -> Interval:
    value, low, high = (None if is_null(row[key]) else float(row[key]) for key in ("value", "ci_low", "ci_high"))
    return Interval(series=series, value=value, low=low, high=high)


def _gain_plot(evidence: Evidence, found: Cells) -> list[Plot]:
    """The difference between the endpoint's arm and its rival, a row per sub-group; none where all are too small."""
    arm, rival, group = (evidence.endpoint[key] for key in ("arm", "rival", "group"))
    label, rows = group if group in GROUPS else "all", []
    metric = evidence.endpoint["metric"] if evidence.endpoint["metric"] in RANKING else RANKING[0]
    for attribute, subgroup in _names(found):
        row = found[attribute, subgroup, label, arm, rival, metric]
        if not row["few"]:
            text = difference_text(row | {"delta": row["value"]})
            rows.append(Row(label=f"{attribute} {subgroup}", marks=(_mark(row, arm_series(arm, evidence.arms)),),
                            text=text))
    axis = Axis(label=f"difference in {metric}", zero=True, ends=(f"{rival} better", f"{arm} better"))
    title = f"{arm.capitalize()} against {rival} by sub-group, {_of(label)}"
    return [row_plot(rows, title=title, names={}, axis=axis, note=FEW_NOTE)] if rows else []


def _gap_plot(evidence: Evidence, found: Cells) -> list[Plot]:
    """Missed findings of the endpoint's arm and its rival, a row per sub-group; none where all are too small."""
    pair = [evidence.endpoint[key] for key in ("arm", "rival")]
    names, rows = {arm: arm_series(arm, evidence.arms) for arm in pair}, []
    for attribute, subgroup in _names(found):
        parts = [(arm, found[attribute, subgroup, "all", arm, None, GAP]) for arm in pair]
        if not any(part["few"] or is_null(part["value"]) for _, part in parts):
            marks = tuple(_mark(part, names[arm]) for arm, part in parts)
            rows.append(Row(label=f"{attribute} {subgroup}", marks=marks))
    axis = Axis(label="share missed, less that among the others", zero=True, ends=("misses fewer", "misses more"))
    title = f"Missed findings, all findings: {' and '.join(pair)}"
    return [row_plot(rows, title=title, names=names, axis=axis, note=FEW_NOTE)] if rows else []


def _of(label: str) -> str:
    return "all findings" if label == "all" else f"{label} group"


def _table(evidence: Evidence, found: Cells, label: str, differences: bool) -> Table:
    """Sub-groups down, metrics across: the endpoint's arm, or its ``differences`` from its rival."""
    arm, rival = (evidence.endpoint[key] for key in ("arm", "rival"))
    metrics = DIFFERENCES if differences else LEVELS
    notes, rows, grey = Notes(), [], set()
    for at, (attribute, subgroup) in enumerate(_names(found)):
        parts = [found[attribute, subgroup, label, arm, rival if differences else None, metric] for metric in metrics]
        grey |= {at} if parts[0]["few"] else set()
        size = () if differences else (f"{parts[0]['n_images']:,}", str(parts[0]["n_classes"]))
        rows.append((f"{attribute} {subgroup}{MARK if parts[0]['few'] else ''}",
                     f"{parts[0]['n_positive_images']:,} / {parts[0]['n_positive_patients']:,}", *size,
                     *(_cell(part, notes, signs=differences or part["metric"] in GAPS) for part in parts)))
    few = (f"{MARK} Fewer than {FEW} positive patients: too few to read anything into.",) if grey else ()
    title = f"{arm} less {rival}" if differences else arm
    return Table(title=f"{row_name(evidence, label)}: {title}", rows=tuple(rows), grey=frozenset(grey),
                 notes=(*few, *notes.lines()),
                 columns=("Sub-group", "Positives (images / patients)",
                          *(() if differences else ("Images", "Classes")), *metrics))


def _cell(part: dict[Any, Any], notes: Notes, *, signs: bool) -> str:
    """``0.31 (0.25 to 0.37)``, or a dash with the letter of the reason."""
    shown = signed if signs else number
    if is_null(part["value"]):
        return notes.dash(part["reason"])
    if is_null(part["ci_low"]):
        return f"{shown(part['value'], 2)} {notes.dash(part['reason'])}"
    return f"{shown(part['value'], 2)} ({shown(part['ci_low'], 2)} to {shown(part['ci_high'], 2)})"
