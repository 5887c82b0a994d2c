"""The chapter of the failure signatures: known ways in which a good number means little, class by class."""

from classify.comparison.signatures import AS_WELL, FALL, HIGH_AUROC, LIFT
from classify.pages.blocks import Chapter, Table, count
from classify.pages.evidence import Evidence

WORDS = (
    f"Looked for in every arm and class, on the mean over seeds: AUROC of {HIGH_AUROC:g} or more with AP less than "
    f"{100 * LIFT:g} % of the way from prevalence to 1; view, sex or age alone (rates from the train split) within "
    f"{AS_WELL:g} of the arm's AUROC, or above it; an AUROC that falls by more than {FALL:g}, and by more than two "
    "standard errors, from validation to test; a significant gain on a label that leaves no visible sign. A flag is a "
    "reason to look, not a proof.")


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
