"""The chapter of the negative controls: labels without a visible sign, on which no arm can gain but by an artefact."""

from classify.pages.arms import difference_mark, difference_text
from classify.pages.blocks import Chapter, Notes, Table, is_null, number, signed
from classify.pages.evidence import Evidence
from classify.plots import Axis, Plot, Row, own_series, row_plot
from cohort.labels import CONTROL


def control_chapters(evidence: Evidence) -> list[Chapter]:
    """One chapter, or none for a cohort without controls."""
    if evidence.controls.empty:
        return []
    labels = ", ".join(evidence.cohort.in_group(CONTROL))
    return [Chapter(
        anchor="controls", title="Negative controls",
        words=(f"{labels}: labels that leave no visible sign. They were asked for, generated and given slots like tail "
               "findings, but nothing in an image can teach them: any gain here would be an artefact.",
               str(evidence.verdict.get("controls", ""))),
        blocks=(_forest(evidence), _table(evidence)),
        sources=("comparison/controls.parquet", "comparison/comparison.parquet"),
    )]


def _forest(evidence: Evidence) -> Plot:
    """The mean over the controls, a row per arm."""
    pairs = list(dict.fromkeys(zip(evidence.controls["arm"], evidence.controls["rival"], strict=True)))
    focus = evidence.endpoint["arm"]
    found = [(arm, evidence.difference((arm, rival), CONTROL)) for arm, rival in pairs]
    rows = [Row(label=arm, marks=(difference_mark(row, own_series(arm, focus)),), strong=arm == focus,
                text=difference_text(row))
            for arm, row in found]
    axis = Axis(label=f"difference in {evidence.endpoint['metric']}", zero=True, ends=("rival better", "arm better"))
    return row_plot(rows, title="Every arm against its rival, mean over the controls", names={}, axis=axis)


def _table(evidence: Evidence) -> Table:
    """Every arm and control: difference, interval, and p over the whole table."""
    notes, rows = Notes(), []
    for row in evidence.controls.to_dict("records"):
        bare = is_null(row["ci_low"])
        rows.append((
            str(row["arm"]), str(row["rival"]), str(row["label"]),
            notes.dash(row["reason"]) if is_null(row["delta"]) else signed(row["delta"]),
            notes.dash(row["reason"]) if bare else f"{signed(row['ci_low'])} to {signed(row['ci_high'])}",
            notes.dash(row["reason"]) if is_null(row["p"]) else number(row["p"])))
    strong = frozenset(i for i, found in enumerate(evidence.controls["significant"]) if found)
    return Table(title="The differences, significant ones in bold", rows=tuple(rows), text=3, strong=strong,
                 notes=notes.lines(),
                 columns=("Arm", "Its rival", "Control", "Difference", "95 % interval", "p (Holm, whole table)"))
