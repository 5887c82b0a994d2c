"""What a check finds: one row each, with how grave it is.

- ``leak``: something of a split that must not be seen stands in training, or of one split in another.
- ``warning``: not a leak as it stands, but a number may mean less than it seems.
- ``note``: good to know.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import pandas as pd
import pandera.pandas as pa

LEAK, WARNING, NOTE = SEVERITIES = ("leak", "warning", "note")

CHECKS: dict[str, str] = {
    "exact_duplicate": "the same pixels twice",
    "near_duplicate": "the same picture twice, compressed, windowed, resized, mirrored or cropped",
    "patient_under_two_ids": "two patient ids with the same picture, and no other sex or age",
    "patient_in_two_splits": "a patient in more than one split",
    "unseen_label": "a label of the unseen classes, known in training (or, a warning, in validation)",
    "unseen_text": "a prompt or report of training (or, a warning, of validation) that names an unseen class",
    "unreadable_image": "an image that cannot be decoded",
    "blank_image": "an image with hardly any contrast",
    "constant_label": "a label that says the same of every image of a split",
    "no_patient_ids": "a cohort in which images stand for their own patients",
}
"""Every check by name, in the order of the text, and what it finds."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """One row of ``checks.parquet``; what does not apply is None."""

    check: str
    severity: str
    words: str
    """The finding in a sentence."""
    cohort: str = "cohort"
    """Which of a run's cohorts: cohort, oracle or external."""
    image_id: str | None = None
    patient_id: str | None = None
    split: str | None = None
    other_cohort: str | None = None
    other_image_id: str | None = None
    other_patient_id: str | None = None
    other_split: str | None = None
    label: str | None = None
    ncc: float | None = None
    """Of a pair of pictures, -1 to 1; 1 for equal pixels."""


SCHEMA = pa.DataFrameSchema(
    {f.name: pa.Column("float64" if f.name == "ncc" else str, {
        "check": pa.Check.isin(list(CHECKS)), "severity": pa.Check.isin(list(SEVERITIES)),
        "ncc": pa.Check.in_range(-1, 1)}.get(f.name), nullable=f.name not in ("check", "severity", "words", "cohort"),
        coerce=True) for f in fields(Found)}, strict=True, name="checks")


def as_table(found: Sequence[Found]) -> pd.DataFrame:
    """The rows as a table, gravest first, then in the order of ``CHECKS``, then as they came."""
    ordered = sorted(found, key=lambda row: (SEVERITIES.index(row.severity), list(CHECKS).index(row.check)))
    frame = pd.DataFrame([asdict(row) for row in ordered], columns=[f.name for f in fields(Found)])
    return frame.astype({name: "float64" if name == "ncc" else "str" for name in frame})
