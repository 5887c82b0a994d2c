"""Generation is killed while it samples, writes and assembles, by two processes, and nothing shows for it."""

import subprocess
import sys
from pathlib import Path


def test_three_kills_of_two_processes_leave_the_same_bytes(repository: Path) -> None:
    command = [sys.executable, str(repository / "scripts" / "torture.py"), "--kills", "3", "--processes", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    for phase in ("sampling", "writing", "assembling"):
        assert f"2 processes, {phase}: " in done.stderr
    assert "3 kills (1 sampling, 1 writing, 1 assembling)" in done.stderr
    assert "batches by world size: {2: " in done.stderr
