"""Negative controls: labels that leave no visible sign, so that no image can teach them.

Whatever an arm gains on them is an artefact of the method or chance. They are planned, generated and given slots like
tail findings, but belong to no group of findings: not to the tail, and not to ``all``. One family of tests: every arm
against its rival (the endpoint's arm against the endpoint's rival), every control, Holm's step-down adjusted p over all
of them.

Not promised: that a significant control proves a fault (one run in twenty shows one by chance), or that none excludes
it.
"""

from collections.abc import Mapping, Sequence

import pandas as pd

from classify.comparison.intervals import holm
from classify.comparison.pairing import Comparison
from cohort.vocabulary.labels import CONTROL

LEVEL = 0.05
"""Two-sided, of the whole family."""
COLUMNS = ("arm", "rival", "label", "metric", "delta", "ci_low", "ci_high", "p", "significant", "reason")


def control_rows(compared: Comparison, rivals: Mapping[str, str], *, controls: Sequence[str],
                 metric: str) -> pd.DataFrame:
    """The table ``controls``: every arm against its rival in each control and in their mean, the label ``control``.

    ``p`` is Holm's over all arms and controls; the means are no part of the family and have none.
    """
    keys = [(arm, rival, label) for arm, rival in rivals.items() for label in (*controls, CONTROL)]
    found = [compared.interval(arm=arm, rival=rival, label=label, metric=metric) for arm, rival, label in keys]
    adjusted = holm([None if key[2] == CONTROL else one.p for key, one in zip(keys, found, strict=True)])
    rows = [
        {"arm": arm, "rival": rival, "label": label, "metric": metric, "delta": one.estimate, "ci_low": one.low,
         "ci_high": one.high, "p": p, "significant": p is not None and p < LEVEL, "reason": one.reason}
        for (arm, rival, label), one, p in zip(keys, found, adjusted, strict=True)
    ]
    numbers = dict.fromkeys(("delta", "ci_low", "ci_high", "p"), "float64")
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(numbers)


def control_sentence(table: pd.DataFrame) -> str:
    """What the table says, in words."""
    labels = ", ".join(label for label in dict.fromkeys(table["label"]) if label != CONTROL)
    tested, found = table[table["p"].notna()], table[table["significant"]]
    if tested.empty:
        reasons = "; ".join(dict.fromkeys(table["reason"].dropna()))
        return f"Negative controls ({labels}): no test was possible ({reasons})."
    if found.empty:
        return (f"Negative controls ({labels}): none of {len(tested)} differences is significant (Holm, 5 %), as it "
                "should be: these labels leave no visible sign.")
    named = ", ".join(f"{row.arm} against {row.rival} in {row.label} ({row.delta:+.3f})" for row in found.itertuples())
    return (f"Negative controls: a significant difference where no sign is visible: {named}. It can only be an "
            "artefact or chance; distrust gains of the same size elsewhere.")
