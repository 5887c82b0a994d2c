"""A launched command ends with the one that asked for it, and tells its exit code."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from synth.filling.launching import run_launched


def write_module(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder))


@pytest.mark.parametrize(("text", "code"), [("", 0), ("raise SystemExit(2)", 2),
                                           ("import os\nos.kill(os.getpid(), 9)", 137)])
def test_the_exit_code_is_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, code: int) -> None:
    write_module(tmp_path, "said", text, monkeypatch)
    assert run_launched(["said"], 1) == code


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_it_does_not_outlive_a_killed_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: int) -> None:
    pid = tmp_path / "pid"
    text = f"import os, pathlib, time\npathlib.Path({str(pid)!r}).write_text(str(os.getpid()))\ntime.sleep(600)"
    write_module(tmp_path, "sleeper", text, monkeypatch)
    parent = subprocess.Popen([sys.executable, "-c", "from synth.filling.launching import run_launched\n"
                                                     "run_launched(['sleeper'], 1)"])
    try:
        wait_until(lambda: pid.is_file() and pid.read_text() != "")
        sleeper = int(pid.read_text())
        parent.send_signal(how)
        parent.wait()
        wait_until(lambda: not Path(f"/proc/{sleeper}").exists())
    finally:
        parent.kill()


def wait_until(is_so: Callable[[], bool]) -> None:
    """Fails when it is not so after two minutes."""
    end = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_several_processes_are_as_many_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"import os, pathlib\n(pathlib.Path({str(tmp_path)!r}) / ('rank_' + os.environ['RANK'])).write_text(" \
           "os.environ['WORLD_SIZE'])"
    write_module(tmp_path, "counted", text, monkeypatch)
    assert run_launched(["counted"], 2) == 0
    assert {file.name: file.read_text() for file in tmp_path.glob("rank_*")} == {"rank_0": "2", "rank_1": "2"}
