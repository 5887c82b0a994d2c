"""The chapter of the negative controls: labels without a visible sign, on which no arm can gain but by an artefact."""

from classify.pages.arms import difference_mark, difference_text
from classify.pages.blocks import Chapter, Notes, Table, count, is_null, number, signed
from classify.pages.evidence import Evidence
from classify.plots import Axis, Plot, Row, own_series, row_plot
from cohort.labels import CONTROL


def control_chapters(evidence: Evidence) -> list[Chapter]:
    """One chapter, or none for a cohort without controls."""
    if evidence.controls.empty:
        return []
    labels = evidence.cohort.in_group(CONTROL)
    asked = evidence.budget.set_index("label")["target"].reindex(labels).fillna(0).sum()
    return [Chapter(
        anchor="controls", title="Negative controls",
        words=(f"{', '.join(labels)}: labels that leave no visible sign, so that nothing in an image can teach them. "
               f"{count(asked)} synthetic images were asked for in their name, as for tail findings: any gain here "
               "would be an artefact.", str(evidence.verdict.get("controls", ""))),
        blocks=(_forest(evidence), _table(evidence)), sources=("comparison/controls.parquet", "plan/budget.parquet"),
    )]


def _forest(evidence: Evidence) -> Plot:
    """The mean over the controls, a row per arm."""
    focus, table = evidence.endpoint["arm"], evidence.controls
    rows = [Row(label=row["arm"], marks=(difference_mark(row, own_series(row["arm"], focus)),),
                strong=row["arm"] == focus, text=difference_text(row))
            for row in table[table["label"] == CONTROL].to_dict("records")]
    axis = Axis(label=f"difference in {evidence.endpoint['metric']}", zero=True, ends=("rival better", "arm better"))
    return row_plot(rows, title="Every arm against its rival, mean over the controls", names={}, axis=axis)


def _table(evidence: Evidence) -> Table:
    """Every arm and control: difference, interval, and p over the whole table."""
    notes, rows = Notes(), []
    table = evidence.controls[evidence.controls["label"] != CONTROL]
    for row in table.to_dict("records"):
        bare = is_null(row["ci_low"])
        rows.append((
            str(row["arm"]), str(row["rival"]), str(row["label"]),
            notes.dash(row["reason"]) if is_null(row["delta"]) else signed(row["delta"]),
            notes.dash(row["reason"]) if bare else f"{signed(row['ci_low'])} to {signed(row['ci_high'])}",
            notes.dash(row["reason"]) if is_null(row["p"]) else number(row["p"])))
    strong = frozenset(i for i, found in enumerate(table["significant"]) if found)
    return Table(title="The differences, significant ones in bold", rows=tuple(rows), text=3, strong=strong,
                 notes=notes.lines(),
                 columns=("Arm", "Its rival", "Control", "Difference", "95 % interval", "p (Holm, whole table)"))
