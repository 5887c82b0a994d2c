"""One process at work in a folder: a second one is refused before it writes a byte.

What holds the folder is the operating system's lock on the file ``_lock``, not the file: it ends with the process,
however that ends, so that a kill leaves nothing to clear away. Of several processes of one launch, the main one holds
it for all. The children of a process do not inherit it: a worker that outlives its killed parent blocks nobody.

Not promised: anything on a file system without locks (a warning says so), and on systems without ``fcntl``.
"""

import fcntl
import logging
import os
import platform
from contextlib import suppress
from pathlib import Path

from cohort.errors import TailfillError

log = logging.getLogger(__name__)

LOCK = "_lock"
HELD: dict[Path, int] = {}
"""Folder to the descriptor of its lock file, open as long as this process holds it."""


def hold(folder: Path) -> None:
    """Create ``folder`` and keep it for this process until it ends or lets go; keeping it twice is keeping it.

    Raises ``TailfillError`` when another process has it, or when it cannot be written.
    """
    place = folder.absolute()
    if place in HELD:
        return
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock = os.open(place / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise TailfillError(f"{folder}: cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.read(lock, 200).decode(errors="replace").strip() or "one that has just begun"
        os.close(lock)
        raise TailfillError(f"{folder}: another process is at work in this folder ({owner}); wait for its end, or stop "
                            "it first") from error
    except OSError as error:
        log.warning("%s: cannot be locked (%s), so a second run in it would not be noticed", folder, error.strerror)
    with suppress(OSError):  # a full disk: what is not noted is only the owner's name
        os.ftruncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {platform.node()}\n".encode())
    HELD[place] = lock


def let_go(folder: Path) -> None:
    """End what ``hold`` began, and remove the lock file. Important: only once the work in the folder is done.

    Whoever has opened the removed file gets its lock, and has to look again whether there is anything to do.
    """
    lock = HELD.pop(folder.absolute(), None)
    if lock is not None:
        (folder / LOCK).unlink(missing_ok=True)
        os.close(lock)


def _forget() -> None:
    """In a child that was forked: close its copies, so that the lock ends with the parent."""
    for lock in HELD.values():
        os.close(lock)
    HELD.clear()


os.register_at_fork(after_in_child=_forget)
