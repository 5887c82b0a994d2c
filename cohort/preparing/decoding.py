"""Is every image there, and can it be decoded? In parallel, every bad file reported, and a kill costs little.

Decoding 377,110 full-size radiographs takes an hour or more. So what has been decoded is appended, ``CHUNK`` images at
a time, to a journal in the folder of the cohort: path, size and time of change, and the reason where it failed. A run
that starts again trusts the entries of files that have not changed since. The journal counts as half a file: it
vanishes when the cohort is complete.
"""

import csv
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from cohort.errors import TailfillError
from cohort.pixels import open_grey

CHUNK = 1024
"""Images between two entries of the journal: half a minute's work at full size."""
JOURNAL = ".decoded.partial"


def find_unreadable(paths: Sequence[Path], *, threads: int, journal: Path | None = None) -> dict[int, str]:
    """Decode every file; position to reason for those that cannot be read."""
    known = _read_journal(journal)
    bad: dict[int, str] = {}
    with (ThreadPoolExecutor(threads) as pool,
          tqdm(total=len(paths), desc="decode", unit="image", mininterval=1.0) as bar):
        for start in range(0, len(paths), CHUNK):
            part = paths[start : start + CHUNK]
            states = list(pool.map(_state, part))
            todo = [at for at, state in enumerate(states) if known.get(str(part[at]), (None,))[0] != (state or "?")]
            found = dict(zip(todo, pool.map(_problem, [part[at] for at in todo]), strict=True))
            reasons = [found[at] if at in found else known[str(path)][1] for at, path in enumerate(part)]
            bad |= {start + at: reason for at, reason in enumerate(reasons) if reason}
            if journal is not None and todo and len(part) == CHUNK:
                _append(journal, [(str(part[at]), states[at] or "", reasons[at]) for at in todo])
            bar.update(len(part))
    return bad


def find_missing(paths: Sequence[Path]) -> dict[int, str]:
    """Position to reason for files that do not exist."""
    return {at: missing(path) for at, path in enumerate(paths) if not os.path.isfile(path)}


def missing(path: Path) -> str:
    """Why there is no file ``path``, naming one whose name differs only in upper and lower case."""
    try:
        beside = {name.lower(): name for name in os.listdir(path.parent)}
    except OSError:
        return "no such image file"
    other = beside.get(path.name.lower())
    return f"no such image file; '{other}' is there" if other else "no such image file"


def _problem(path: Path) -> str:
    """Why an image cannot be decoded, or nothing."""
    if not os.path.isfile(path):
        return missing(path)
    try:
        open_grey(path)
    except TailfillError as error:
        return str(error).removeprefix(f"{path}: ")
    return ""


def _state(path: Path) -> str | None:
    """Size and time of change of a file, None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return f"{status.st_size} {status.st_mtime_ns}"


def _read_journal(journal: Path | None) -> dict[str, tuple[str, str]]:
    """Path to (state, reason); a last line that a kill has cut is left out."""
    if journal is None or not journal.is_file():
        return {}
    with journal.open(encoding="utf-8", newline="") as stream:
        return {row[0]: (row[1], row[2]) for row in csv.reader(stream) if len(row) == 4 and row[3] == "."}


def _append(journal: Path, rows: list[tuple[str, str, str]]) -> None:
    journal.parent.mkdir(parents=True, exist_ok=True)
    with journal.open("a", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([*row, "."] for row in rows)
