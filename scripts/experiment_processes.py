"""How an experiment runs its stages: one after the other, each a process of its own; no two experiments in one run.

A stage is forked from the experiment, which has imported everything once: starting Python and importing torch for each
of fifty stages would take minutes. Under several processes it is accelerate's launcher that starts them. Whatever
happens to the experiment, its stage does not go on behind its back. Not promised: anything on systems without ``fork``.
"""

import fcntl
import importlib
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cohort.errors import TailfillError, run_command
from synth.filling.launching import command_of, environment_of


@contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Only one experiment at a time works in a run; raises ``TailfillError`` for a second one."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise TailfillError(f"{folder}: another experiment is at work in this run") from error
        yield


def run_interruptible(main: Callable[[], None]) -> None:
    """Run the main function of a command that starts stages; SIGTERM and ctrl-C end it with code 130."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a stage is stopped with us, not orphaned
    try:
        run_command(main)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on from here\n")
        sys.exit(130)


def run_forked(words: list[str], file: Path) -> int:
    """Run a command in a fork of this process and return its exit code.

    Important: nothing in this process may have started torch's threads, which a fork would lose; it only imports.
    """
    process = multiprocessing.get_context("fork").Process(target=be_command, args=(words, file))
    process.start()
    try:
        show_progress(file, lambda: not process.is_alive(), process.join)
    finally:
        process.terminate()
        process.join()
    return process.exitcode or 0


def show_progress(file: Path, is_over: Callable[[], bool], wait: Callable[[float], None]) -> None:
    """Until a stage is over, repeat on a terminal the progress bar that it last wrote to ``file``, once a second.

    ``wait`` waits for so many seconds, or less where the stage ends before.
    """
    terminal = sys.stderr.isatty()
    while not is_over():
        wait(1.0)
        if terminal and file.exists():
            with file.open("rb") as stream:
                stream.seek(max(file.stat().st_size - 2000, 0))
                lines = re.split(rb"[\r\n]+", stream.read().strip())
            told = lines[-1].decode(errors="replace")[:shutil.get_terminal_size().columns - 1]
            sys.stderr.write(f"\r\x1b[K{told if '%|' in told else ''}")
            sys.stderr.flush()
    if terminal:
        sys.stderr.write("\r\x1b[K")


def be_command(words: list[str], file: Path) -> None:
    """In the fork: become the command, with ``file`` for its output; end when the experiment is killed."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    output = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.argv = words
    run_command(importlib.import_module(words[0]).main)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def run_launched(words: list[str], processes: int, file: Path) -> int:
    """Run a command under ``accelerate launch`` and return its exit code."""
    with file.open("ab") as output:
        process = subprocess.Popen(command_of(words, processes), stdout=output, stderr=subprocess.STDOUT,
                                   env=environment_of(processes))
        try:
            show_progress(file, lambda: process.poll() is not None, time.sleep)
            return process.wait()
        finally:
            process.terminate()
            process.wait()
