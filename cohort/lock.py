"""One process at work in a folder: a second one is refused before it writes a byte.

What holds the folder is the operating system's lock on a file beside it (``.images.lock`` for ``images``), not the
file: it ends with the process, however that ends, so that a kill leaves nothing to clear away and the file may stay. Of
several processes of one launch, the main one holds it for all. The children of a process do not inherit it: a worker
that outlives its killed parent blocks nobody.

Not promised: anything where files cannot be locked (a warning says so), and on systems without ``fcntl``.
"""

import fcntl
import logging
import os
import platform
from pathlib import Path

from cohort.errors import TailfillError

log = logging.getLogger(__name__)

HELD: dict[Path, int] = {}
"""Lock file to its descriptor, open as long as this process holds it."""


def lock_file(folder: Path) -> Path:
    """The file whose lock stands for ``folder``: beside it, where no link leads past it."""
    place = folder.resolve()
    return place.with_name(f".{place.name}.lock")


def hold(folder: Path) -> None:
    """Keep ``folder`` for this process until it ends or lets go; keeping it twice is keeping it.

    Raises ``TailfillError`` when another process has it.
    """
    file = lock_file(folder)
    if file in HELD:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise TailfillError(f"{file}: cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {platform.node()}\n".encode())
    except BlockingIOError as error:
        owner = os.read(lock, 200).decode(errors="replace").strip() or "one that has just begun"
        os.close(lock)
        raise TailfillError(f"{folder}: another process is at work in this folder ({owner}); wait for its end, or stop "
                            "it first") from error
    except OSError as error:  # no locks here, or a full disk, which the next file will tell
        log.warning("%s: %s, so a second run in %s may not be noticed", file, error.strerror, folder)
    HELD[file] = lock


def let_go(folder: Path) -> None:
    """End what ``hold`` began."""
    lock = HELD.pop(lock_file(folder), None)
    if lock is not None:
        os.close(lock)


def _forget() -> None:
    """In a child that was forked: close its copies, so that the lock ends with the parent."""
    for lock in HELD.values():
        os.close(lock)
    HELD.clear()


os.register_at_fork(after_in_child=_forget)
