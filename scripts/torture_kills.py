"""Processes that are killed: generation as accelerate's launcher starts it, and a fuse that kills it from within.

Every process is forked from this one, which has imported everything and started nothing: starting Python and torch for
each of a hundred processes would take the better part of an hour. A launch is a process group of its own, a launcher
and its ranks, with the variables that ``accelerate launch --multi_gpu`` sets; a kill is SIGKILL to the whole group.

A kill from outside can only be random. To hit what takes microseconds, a rank carries a ``Fuse`` that counts the steps
of one phase: calls of the sampler; of each file half its bytes written, all of them, its name; each part removed.
"""

import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from multiprocessing import connection
from pathlib import Path
from typing import Any

from cohort.errors import run_command
from cohort.pipeline import BEGUN
from synth import generate
from synth.drawing.parts import BATCHES, IMAGES, PARTS, is_assembled
from synth.drawing.sampling import Sampler

FORK = multiprocessing.get_context("fork")


class Fuse:
    """Kills its process group at the ``steps``-th step of ``phase`` in the folder, and says in ``note`` where that was.

    Phases: start (what is noted at the beginning), sampling, writing (PNGs and parts), assembling (all after them).
    """

    def __init__(self, phase: str, steps: int, *, folder: Path, note: Path) -> None:
        self.phase, self.steps, self.folder, self.note = phase, steps, folder, note
        self.lock = threading.Lock()  # PNGs are written by several threads

    def step(self, phase: str | None, where: str) -> None:
        """One step further in ``phase``; the last one does not return."""
        if phase != self.phase:
            return
        with self.lock:
            self.steps -= 1
            if self.steps == 0:
                self.note.write_text(f"{phase}: {where}")
                os.killpg(os.getpgrp(), signal.SIGKILL)
                signal.pause()

    def phase_of(self, file: Path) -> str | None:
        """The phase in which a file is written, None for files that are not this folder's."""
        if self.folder not in file.parents:
            return None
        if file.suffix == ".png" or ".png." in file.name or file.parent.name == PARTS:
            return "writing"
        tables = any(name in file.name for name in (IMAGES, BATCHES))
        begun = BEGUN in file.name and not is_assembled(self.folder)
        return "assembling" if tables or not begun else "start"

    def install(self) -> None:
        """Count the steps of this process from now on."""
        write, replace, unlink, draw = Path.write_bytes, Path.replace, Path.unlink, Sampler.draw

        def write_bytes(file: Path, content: Any) -> int:
            if self.phase_of(file) == self.phase:
                write(file, content[:len(content) // 2])
                self.step(self.phase, f"half of {file.name}")
            return write(file, content)

        def replace_file(file: Path, target: Any) -> Path:
            phase = self.phase_of(file)
            self.step(phase, f"all of {file.name}")
            renamed = replace(file, target)
            self.step(phase, f"{Path(target).name} in place")
            return renamed

        def unlink_file(file: Path, missing_ok: bool = False) -> None:
            if file.parent.name == PARTS and file.exists():
                self.step("assembling", f"before the removal of {file.name}")
            unlink(file, missing_ok=missing_ok)

        def draw_rows(sampler: Sampler, rows: Any) -> Any:
            self.step("sampling", f"before {len(rows)} images")
            images = draw(sampler, rows)
            self.step("sampling", f"after {len(rows)} images")
            return images

        for owner, name, function in ((Path, "write_bytes", write_bytes), (Path, "replace", replace_file),
                                      (Path, "unlink", unlink_file), (Sampler, "draw", draw_rows)):
            setattr(owner, name, function)


def be_rank(config: Path, log: Path, rank: int, world_size: int, port: int, fuse: Fuse | None) -> None:
    """In a fork: one rank of a launch."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if world_size > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
                       "LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if fuse is not None:
        fuse.install()
    sys.argv = ["synth.generate", "--config", str(config)]
    run_command(generate.main)


def be_launcher(config: Path, log: Path, world_size: int, fuse: Fuse | None, bearer: int) -> None:
    """In a fork: the leader of a new process group, with its ranks; when one fails, the others are ended."""
    os.setsid()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [FORK.Process(target=be_rank, args=(config, log, rank, world_size, port, fuse if rank == bearer else None))
             for rank in range(world_size)]
    for process in ranks:
        process.start()
    waiting = list(ranks)
    while waiting:
        connection.wait([process.sentinel for process in waiting])
        over = [process for process in waiting if process.exitcode is not None]
        waiting = [process for process in waiting if process not in over]
        if any(process.exitcode for process in over):
            for process in waiting:
                process.kill()
            raise SystemExit(1)


def launch(config: Path, log: Path, *, world_size: int, fuse: Fuse | None = None, bearer: int = 0,
           seconds: float | None = None) -> int:
    """Generate with ``world_size`` processes, and return the exit code: -9 when they were killed.

    They are killed by the ``fuse`` that rank ``bearer`` carries, or from outside after ``seconds``.
    """
    launcher = FORK.Process(target=be_launcher, args=(config, log, world_size, fuse, bearer))
    launcher.start()
    launcher.join(seconds)
    if launcher.exitcode is None and launcher.pid is not None:
        kill_group(launcher.pid)
        launcher.join()
    return launcher.exitcode or 0


def kill_group(leader: int) -> None:
    """SIGKILL to a process group, or to its leader where that has not yet made one."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(leader, signal.SIGKILL)


def forked(function: Callable[..., Any], *args: Any) -> Any:
    """The result of a function that runs in a fork, since it would start threads. Raises RuntimeError if it fails."""
    receiver, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=lambda: sender.send(function(*args)))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError as error:
        raise RuntimeError(f"{function.__name__} failed, see above") from error
    finally:
        process.join()
