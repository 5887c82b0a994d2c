"""What makes a row unusable once it is read: each check moves its rows, with their reason, to the table's bad rows.

Every row is rejected at most once, so read = kept + rejected + set aside.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from cohort.errors import TailfillError
from cohort.preparing.decoding import find_missing, find_unreadable
from cohort.sources.rows import BadRow, SourceTable, by_line

N_LISTED = 5
"""Bad rows that an error message lists before it only counts them."""
VIEW_ORDER = {"PA": 0, "AP": 1, "LATERAL": 3}
"""Which image stands for its study, first to last: PA before AP before an unknown view (2) before lateral."""


def reject_duplicates(table: SourceTable) -> None:
    """Reject every row whose image id, or whose file, came before."""
    for column, what in (("image_id", "image id"), ("path", "path")):
        frame = table.frame
        repeated = frame[frame.duplicated([column] if column == "image_id" else ["root", column])]
        names = frame[frame[column].isin(repeated[column])].drop_duplicates(column)[column]
        first = {name: position for position, name in by_line(names)}
        _reject(table, {position: f"{what} '{name}' is already in {_told(table, first[name], position)}"
                        for position, name in by_line(repeated[column])})


def reject_shared_patients(table: SourceTable) -> None:
    """Reject every row of a patient who is in more than one split: which of them is right cannot be known."""
    pairs = table.frame[["patient_id", "split"]].dropna(subset="split").drop_duplicates()
    shared = pairs[pairs.duplicated("patient_id", keep=False)].groupby("patient_id")["split"].agg(sorted)
    splits = {patient: " and ".join(names) for patient, names in shared.items()}
    rows = table.frame["patient_id"][table.frame["patient_id"].isin(list(splits))]
    _reject(table, {position: f"patient '{patient}' is in two splits: {splits[patient]}"
                    for position, patient in by_line(rows)})


def reject_unreadable(
    table: SourceTable, root: Path, *, check: Literal["decode", "exist", "none"], threads: int,
    journal: Path | None = None,
) -> None:
    """Reject the rows whose file is missing or, with ``decode``, cannot be read.

    ``journal``: where images that were decoded are remembered, for a run that is killed.
    """
    if check == "none" or table.roots:  # several roots: cohorts that were checked when they were prepared
        return
    paths = [root / name for name in table.frame["path"]]
    found = find_missing(paths) if check == "exist" else find_unreadable(paths, threads=threads, journal=journal)
    _reject(table, {table.frame.index[position]: f"'{table.frame['path'].iloc[position]}': {reason}"
                    for position, reason in found.items()})


def set_laterals_aside(table: SourceTable, policy: Literal["keep", "drop", "one_per_study"]) -> None:
    """Apply the policy for images that carry their study's labels whether or not they can show them.

    ``drop`` sets laterals aside; ``one_per_study`` all images of a study but one, PA before AP before unknown before
    lateral, and of equal views the first by id. An image without study stands for itself.
    """
    frame = table.frame
    if policy == "drop":
        rows = frame["image_id"][frame["view"] == "LATERAL"]
        _set_aside(table, dict.fromkeys(rows.index, "lateral view (laterals: drop)"))
    if policy == "one_per_study":
        if frame["study_id"].isna().all():
            raise TailfillError("prepare.laterals is 'one_per_study' and no image has a study; wanted: keep or drop")
        ranked = frame.assign(rank=frame["view"].map(VIEW_ORDER).fillna(2)).sort_values(["rank", "image_id"])
        of_study = ranked[["patient_id", "study_id"]]
        others = ranked[of_study.duplicated() & ranked["study_id"].notna()]
        _set_aside(table, {position: f"study '{study}' is represented by another image (laterals: one_per_study)"
                           for position, study in by_line(others["study_id"])})


def describe_bad(bad: list[BadRow]) -> str:
    """The first bad rows and how many there are, as one line."""
    listed = "; ".join(f"{entry.file.name} row {entry.row}: {entry.reason}" for entry in bad[:N_LISTED])
    more = f"; and {len(bad) - N_LISTED} more" if len(bad) > N_LISTED else ""
    count = "1 bad row" if len(bad) == 1 else f"{len(bad)} bad rows"
    return f"{count}: {listed}{more}. Mend the file, or give --on-bad skip. Nothing was written"


def _told(table: SourceTable, first: int, again: int) -> str:
    (file, line), (other, _) = table.place(first), table.place(again)
    return f"row {line}" if file == other else f"{file.name}, row {line}"


def _reject(table: SourceTable, reasons: Mapping[int, str]) -> None:
    table.bad += _take(table, reasons)


def _set_aside(table: SourceTable, reasons: Mapping[int, str]) -> None:
    table.set_aside += _take(table, reasons)


def _take(table: SourceTable, reasons: Mapping[int, str]) -> list[BadRow]:
    """Remove the rows from the frame, and return them with their reasons."""
    if not reasons:
        return []
    index = pd.Index(np.fromiter(reasons, dtype=np.int64, count=len(reasons)))
    names = table.frame["image_id"].loc[index]
    table.frame = table.frame[~table.frame.index.isin(index)]
    return [BadRow(file=file, row=line, image_id=name, reason=reasons[position])
            for position, name in by_line(names) for file, line in [table.place(position)]]
