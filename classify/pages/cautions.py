"""What warns: cautions at the top of a page, negative controls, and failure signatures.

A gain on a negative control can only be an artefact. A failure signature is a known way in which a good number means
little. All are told, and none is proof.
"""

from collections.abc import Mapping
from typing import Any

from classify.comparison.signatures import AS_WELL, FALL, HIGH_AUROC, LIFT
from classify.figures.plots import Axis, Plot, Row, own_series, row_plot
from classify.pages.arms import difference_mark, difference_text
from classify.pages.blocks import Chapter, Notes, Table, count, is_null, number, signed
from classify.pages.evidence import Evidence
from cohort.vocabulary.labels import CONTROL

WORDS = (
    f"Looked for in every arm and class, on the mean over seeds: AUROC of {HIGH_AUROC:g} or more with AP less than "
    f"{100 * LIFT:g} % of the way from prevalence to 1; view, sex or age alone (rates from the train split) within "
    f"{AS_WELL:g} of the arm's AUROC, or above it; an AUROC that falls by more than {FALL:g}, and by more than two "
    "standard errors, from validation to test; a significant gain on a label that leaves no visible sign. A flag is a "
    "reason to look, not a proof.")


NO_PATIENTS = {
    "image": "The source names no patients: each image counts as its own patient.",
    "some": "The source names no patient for some images: each of these counts as its own patient.",
}
"""What a cohort's stamp says under ``patient_ids``, to what a reader must know before any number."""
SHARED = "Splits may share patients, the differences may be too good, and the intervals are too narrow."


def top_cautions(cohort_extra: Mapping[str, Any]) -> tuple[str, ...]:
    """Sentences to stand above every number of a page; ``cohort_extra``: what the cohort's stamp says of it."""
    said = NO_PATIENTS.get(str(cohort_extra.get("patient_ids")))
    return (f"{said} {SHARED}",) if said else ()


def drawn_chapters(evidence: Evidence) -> list[Chapter]:
    """Whether what was asked for can be read in the images made; none for a filter without critics."""
    if evidence.drawn.empty:
        return []
    notes, rows = Notes(), []
    for row in evidence.drawn.to_dict("records"):
        cells = []
        for kind in (("auroc", "ci_low", "ci_high"), ("real_auroc", "real_low", "real_high")):
            value, low, high = (row[key] for key in kind)
            cells += [notes.dash(row["reason"])] * 2 if is_null(value) else [
                number(value), f"{number(low)} to {number(high)}"]
        says = str(row["says"]) if is_null(row["reason"]) else f"{row['says']} {notes.dash(row['reason'])}"
        rows.append((str(row["label"]), says, *cells, count(row["n_pairs"]),
                     count(row["n_real_patients"])))
    table = Table(title="Critics' AUROC: with the finding against without, in images made and in real ones", text=2,
                  rows=tuple(rows), notes=notes.lines(),
                  columns=("Finding", "Verdict", "Images made", "95 % interval", "Real images", "95 % interval",
                           "Pairs", "Real patients with it"))
    return [Chapter(
        anchor="drawn", title="Does it draw what was asked?", blocks=(table,), sources=("synthetic/drawn.parquet",),
        words=("Classifiers that have learnt from real images alone read all images made, before any rule: how well do "
               "their scores rank those that were asked for a finding, and no other scarce one, above their matched "
               "negatives: same noise, view, age, sex and company? At .5 it cannot be read in them. Hardly drawn: "
               "what they have above .5 is less than half of that in real images, where view, age and company "
               "help them, too.",))]


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
        blocks=(_control_forest(evidence), _control_table(evidence)),
        sources=("comparison/controls.parquet", "plan/budget.parquet"),
    )]


def _control_forest(evidence: Evidence) -> Plot:
    """The mean over the controls, a row per arm."""
    focus, table = evidence.endpoint["arm"], evidence.controls
    rows = [Row(label=row["arm"], marks=(difference_mark(row, own_series(row["arm"], focus)),),
                strong=row["arm"] == focus, text=difference_text(row))
            for row in table[table["label"] == CONTROL].to_dict("records")]
    axis = Axis(label=f"difference in {evidence.endpoint['metric']}", zero=True, ends=("rival better", "arm better"))
    return row_plot(rows, title="Every arm against its rival, mean over the controls", names={}, axis=axis)


def _control_table(evidence: Evidence) -> Table:
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


def signature_chapters(evidence: Evidence) -> list[Chapter]:
    """One chapter, or none for a comparison made before signatures were looked for."""
    sentence = evidence.verdict.get("signatures")
    if sentence is None:
        return []
    return [Chapter(anchor="signatures", title="Failure signatures", words=(WORDS, str(sentence)),
                    blocks=(*_flags(evidence), _checks(evidence)), sources=("comparison/signatures.parquet",))]


def _flags(evidence: Evidence) -> tuple[Table, ...]:
    """A row per class and signature that some arm has, in bold where the endpoint's arm has it; none without a flag.

    The words are those of the endpoint's arm, or of the first arm that has it.
    """
    table, focus = evidence.signatures, evidence.endpoint["arm"]
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in table[table["flagged"].fillna(False)].to_dict("records"):
        found.setdefault((str(row["label"]), str(row["signature"])), {})[str(row["arm"])] = str(row["words"])
    ordered = sorted(found.items(), key=lambda item: (evidence.labels.index(item[0][0]), item[0][1]))
    strong = frozenset(at for at, (_, words) in enumerate(ordered) if focus in words)
    rows = []
    for (label, signature), words in ordered:
        shown = focus if focus in words else next(iter(words))
        others = [arm for arm in words if arm != shown]
        rows.append((label, signature, f"{shown}: {words[shown]}",
                     "all" if len(words) == len(evidence.arms) > 2 else ", ".join(others)))
    return (Table(title="What is flagged", columns=("Class", "Signature", "In words", "Other arms that have it"),
                  rows=tuple(rows), text=4, strong=strong),) if rows else ()


def _checks(evidence: Evidence) -> Table:
    """How often each signature was looked for and found, and why some could not be."""
    rows, notes = [], []
    for signature, part in evidence.signatures.groupby("signature", sort=False):
        seen = part["flagged"].notna()
        rows.append((str(signature), count(seen.sum()), count(part["flagged"].fillna(False).sum()),
                     count((~seen).sum())))
        reasons = part.loc[~seen].groupby("reason")["label"].unique()
        notes += [f"{signature}, not looked at: {reason} ({', '.join(labels)})." for reason, labels in reasons.items()]
    return Table(title="What was looked for, over all arms and classes", rows=tuple(rows), notes=tuple(notes),
                 columns=("Signature", "Looked at", "Flagged", "Could not be looked at"))
