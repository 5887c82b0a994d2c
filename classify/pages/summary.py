"""The end of a run in a dozen lines of plain text, for a terminal: the verdict, the groups, and where the page lies."""

from pathlib import Path
from textwrap import wrap

from classify.pages.arms import difference_text
from classify.pages.blocks import DASH, is_null, number
from classify.pages.cautions import top_cautions
from classify.pages.evidence import Evidence

GROUPS = ("head", "medium", "tail")
WIDTH = 120
"""Characters of a terminal's line."""


def summary(evidence: Evidence, page: Path) -> str:
    """Cautions, two sentences, the table of head, medium and tail, and the path of ``page``."""
    said = [str(sentence) for sentence in evidence.verdict.get("sentences", [])]
    second = evidence.verdict.get("recovered") or " ".join(said[1:2])
    cautions = [line for said_above in top_cautions(evidence.cohort_extra)
                for line in wrap(f"caution: {said_above}", WIDTH)]
    return "\n".join([*cautions, *said[:1], str(second), "", *_table(evidence), "", f"report: {page}"]) + "\n"


def _table(evidence: Evidence) -> list[str]:
    """Mean of the endpoint's metric on test per group, for the arms that matter, and the endpoint's difference."""
    arm, rival, metric = (evidence.endpoint[key] for key in ("arm", "rival", "metric"))
    arms = [name for name in dict.fromkeys(("real", rival, arm, "oracle")) if name in evidence.arms]
    rows = [[f"mean {metric} on test", *arms, f"{arm} - {rival} (95 %)"]]
    for group in (name for name in GROUPS if name in evidence.rows):
        own = [evidence.result(arm=name, rival=None, label=group, metric=metric) or {} for name in arms]
        cells = [DASH if is_null(one.get("value")) else number(one["value"]) for one in own]
        defined = len(evidence.members(group)[0])
        rows.append([f"{group}, {defined} class{'es' if defined != 1 else ''}", *cells,
                     difference_text(evidence.difference((arm, rival), group))])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in
                                                   zip(row[1:], widths[1:], strict=True))]).rstrip() for row in rows]
