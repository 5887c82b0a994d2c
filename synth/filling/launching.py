"""A stage in a process of its own, or in several under accelerate's launcher, that never outlives who asked for it.

Between the two stands a small process that waits for the stage, and ends it when its own parent is gone, however that
went: a kill cannot be caught by the one that is killed. Not promised: anything when that small process is killed.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

PATIENCE = 0.2
"""Seconds until a parent's end is noticed."""
GRACE = 30.0
"""Seconds that a stage has to end when it is told to."""


def command_of(words: list[str], processes: int) -> list[str]:
    """The command line that runs ``words``, a module and its arguments, in so many processes."""
    if processes == 1:
        return [sys.executable, "-m", *words]
    return [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes),
            "--main_process_port", "0", "-m", *words]


def environment_of(processes: int) -> dict[str, str]:
    """The variables of that command."""
    import torch  # important: not at the top, which the small process imports too

    # important: accelerate's own --cpu would start one process only, with the variable it starts all
    on_cpu = processes > 1 and not torch.cuda.is_available()
    return dict(os.environ) | ({"ACCELERATE_USE_CPU": "true"} if on_cpu else {})


def run_launched(words: list[str], processes: int) -> int:
    """Run ``words`` and return the exit code; what is written goes where this process' own output goes."""
    guard = [sys.executable, str(Path(__file__).resolve()), str(os.getpid()), *command_of(words, processes)]
    process = subprocess.Popen(guard, env=environment_of(processes))
    try:
        return process.wait()
    finally:
        process.terminate()
        process.wait()


def guard_command(parent: int, command: list[str]) -> int:
    """Run ``command`` for as long as this process' parent is ``parent``; its exit code, as a shell tells it."""
    process = subprocess.Popen(command)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal tells the command itself
    while process.poll() is None:
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            if os.getppid() != parent:
                end(process)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, and make it end when it does not."""
    process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()


if __name__ == "__main__":
    sys.exit(guard_command(int(sys.argv[1]), sys.argv[2:]))
