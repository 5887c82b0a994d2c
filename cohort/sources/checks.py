"""What makes a row unusable once it is read: each check moves its rows, with their reason, to the table's bad rows.

Every row is rejected at most once, so read = kept + rejected.
"""

from pathlib import Path

from cohort.pixels import find_unreadable
from cohort.sources.rows import BadRow, SourceTable

N_LISTED = 5
"""Bad rows that an error message lists before it only counts them."""


def reject_duplicates(table: SourceTable) -> None:
    """Reject every row whose image id, or whose file, came before."""
    for column, what in (("image_id", "image id"), ("path", "path")):
        first: dict[str, int] = {}
        repeated = {}
        for line, name in _by_line(table, column):
            if first.setdefault(name, line) != line:
                repeated[line] = f"{what} '{name}' is already in row {first[name]}"
        _reject(table, repeated)


def reject_shared_patients(table: SourceTable) -> None:
    """Reject every row of a patient who is in more than one split: which of them is right cannot be known."""
    splits = table.frame.dropna(subset="split").groupby("patient_id")["split"].agg(lambda names: sorted(set(names)))
    shared = {patient: " and ".join(names) for patient, names in splits.items() if len(names) > 1}
    _reject(table, {line: f"patient '{patient}' is in two splits: {shared[patient]}"
                    for line, patient in _by_line(table, "patient_id") if patient in shared})


def reject_unreadable(table: SourceTable, root: Path, *, threads: int) -> None:
    """Decode every image and reject the rows whose file is missing or cannot be read."""
    found = find_unreadable([root / name for name in table.frame["path"]], threads=threads)
    _reject(table, {table.frame.index[position]: f"'{table.frame['path'].iloc[position]}': {reason}"
                    for position, reason in found.items()})


def describe_bad(bad: list[BadRow]) -> str:
    """The first bad rows and how many there are, as one line."""
    listed = "; ".join(f"{entry.file.name} row {entry.row}: {entry.reason}" for entry in bad[:N_LISTED])
    more = f"; and {len(bad) - N_LISTED} more" if len(bad) > N_LISTED else ""
    count = "1 bad row" if len(bad) == 1 else f"{len(bad)} bad rows"
    return f"{count}: {listed}{more}. Mend the file, or give --on-bad skip. Nothing was written"


def _by_line(table: SourceTable, column: str) -> list[tuple[int, str]]:
    return [(int(line), str(value)) for line, value in zip(table.frame.index, table.frame[column], strict=True)]


def _reject(table: SourceTable, reasons: dict[int, str]) -> None:
    names = dict(_by_line(table, "image_id"))
    table.bad += [BadRow(file=table.file, row=line, image_id=names[line], reason=reason)
                  for line, reason in reasons.items()]
    table.frame = table.frame.drop(index=list(reasons))
