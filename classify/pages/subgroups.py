"""The chapter of the sub-groups: what is ranked and what is missed among women and men, young and old, PA and AP."""

from typing import Any

from classify.comparison.subgroups import FEW, FNR, GAP, GROUPS, RANKING
from classify.pages.arms import row_name
from classify.pages.blocks import Chapter, Notes, Table, is_null, number, signed
from classify.pages.evidence import Evidence
from classify.plots import Axis, Interval, Plot, Row, arm_series, row_plot

WORDS = (
    "Each sub-group of the test set by itself: the mean over seeds with its 95 % interval over patients and seeds. AP "
    "grows with prevalence, which differs between sub-groups: by AP compare arms, not rows. FNR is the share of "
    "positive images that is missed at each class's validation threshold; its gap is the difference from all others, "
    "and above zero a sub-group is under-diagnosed. Intervals are not adjusted for their number.")
MARK = "*"
"""Beside the name of a sub-group whose numbers are grey, for those who see no grey."""


def subgroup_chapters(evidence: Evidence) -> list[Chapter]:
    """One chapter, or none for a comparison made before sub-groups were."""
    sentence = evidence.verdict.get("subgroups")
    if sentence is None:
        return []
    found = {} if evidence.subgroups.empty else _rows(evidence)
    blocks: list[Plot | Table] = [_gap_plot(evidence, found)] if found else []
    for label in GROUPS if found else ():
        blocks += [_table(evidence, found, label, RANKING, title="ranking"),
                   _table(evidence, found, label, (FNR, GAP), title="missed findings")]
    return [Chapter(anchor="subgroups", title="Sub-groups", blocks=tuple(blocks),
                    sources=("comparison/subgroups.parquet",),
                    words=(WORDS, str(sentence)) if found else (str(sentence),))]


Cells = dict[tuple[str, str, str, str, str], dict[Any, Any]]
"""(attribute, sub-group, label, arm, metric) to its row."""


def _rows(evidence: Evidence) -> Cells:
    return {(row["attribute"], row["subgroup"], row["label"], row["arm"], row["metric"]): row
            for row in evidence.subgroups.to_dict("records")}


def _names(found: Cells) -> list[tuple[str, str]]:
    """(attribute, sub-group) in the order of the table."""
    return list(dict.fromkeys(key[:2] for key in found))


def _gap_plot(evidence: Evidence, found: Cells) -> Plot:
    """The endpoint's arm and its rival, a row per sub-group that is not too small."""
    pair = [evidence.endpoint[key] for key in ("arm", "rival")]
    names, rows = {arm: arm_series(arm, evidence.arms) for arm in pair}, []
    for attribute, subgroup in _names(found):
        parts = [(arm, found[attribute, subgroup, "all", arm, GAP]) for arm in pair]
        if not any(part["few"] or is_null(part["value"]) for _, part in parts):
            rows.append(Row(label=f"{attribute} {subgroup}", marks=tuple(
                Interval(series=names[arm], value=part["value"], low=_or_none(part["ci_low"]),
                         high=_or_none(part["ci_high"])) for arm, part in parts)))
    axis = Axis(label="share missed, less that among the others", zero=True, ends=("misses fewer", "misses more"))
    return row_plot(rows, title=f"Missed findings, all findings: {' and '.join(pair)}", names=names, axis=axis,
                    note=f"Sub-groups with fewer than {FEW} positive patients are in the tables only.")


def _or_none(value: Any) -> float | None:
    return None if is_null(value) else float(value)


def _table(evidence: Evidence, found: Cells, label: str, metrics: tuple[str, ...], *, title: str) -> Table:
    """Sub-groups down; each metric of the endpoint's arm and of its rival across."""
    pair, notes, rows, grey = [evidence.endpoint[key] for key in ("arm", "rival")], Notes(), [], set()
    for at, (attribute, subgroup) in enumerate(_names(found)):
        parts = [found[attribute, subgroup, label, arm, metric] for metric in metrics for arm in pair]
        grey |= {at} if parts[0]["few"] else set()
        rows.append((f"{attribute} {subgroup}{MARK if parts[0]['few'] else ''}", f"{parts[0]['n_images']:,}",
                     f"{parts[0]['n_positive_images']:,} / {parts[0]['n_positive_patients']:,}",
                     str(parts[0]["n_classes"]), *(_cell(part, notes) for part in parts)))
    few = (f"{MARK} Fewer than {FEW} positive patients: too few to read anything into.",) if grey else ()
    return Table(title=f"{row_name(evidence, label)}: {title}", rows=tuple(rows), grey=frozenset(grey),
                 notes=(*few, *notes.lines()),
                 columns=("Sub-group", "Images", "Positives (images / patients)", "Classes",
                          *(f"{metric}, {arm}" for metric in metrics for arm in pair)))


def _cell(part: dict[Any, Any], notes: Notes) -> str:
    """``0.31 (0.25 to 0.37)``, or a dash with the letter of the reason."""
    shown = signed if part["metric"] == GAP else number
    if is_null(part["value"]):
        return notes.dash(part["reason"])
    if is_null(part["ci_low"]):
        return f"{shown(part['value'], 2)} {notes.dash(part['reason'])}"
    return f"{shown(part['value'], 2)} ({shown(part['ci_low'], 2)} to {shown(part['ci_high'], 2)})"
