"""What several test files share: toy data in the NIH layout, and commands called in this process.

A stage's ``main`` is called with its command line in ``sys.argv``, since starting Python and torch for each of a few
dozen commands would take minutes. What a real process does is tested in a few places only.
"""

import importlib
import io
import runpy
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest

from cohort.errors import run_command

REPOSITORY = Path(__file__).resolve().parent.parent
LONGEST = ("test_experiment.py", "test_torture.py", "test_synth_two_processes.py")
"""Files of minutes: started last, one of them would keep a single process at work while the others have ended."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str


Invoke = Callable[..., Outcome]


def _invoke(module: str, *argv: object) -> Outcome:
    """Call ``python -m module argv`` without a process of its own."""
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    words = [module, *map(str, argv)]
    with patch.object(sys, "argv", words), redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            run_command(importlib.import_module(module).main)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return Outcome(code, stdout.getvalue(), stderr.getvalue())


@pytest.fixture(scope="session")
def invoke() -> Invoke:
    """A function: module and arguments of a command -> its exit code and what it printed."""
    return _invoke


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def debug_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Toy radiographs in the layout of the NIH release; do not write into it."""
    folder = tmp_path_factory.mktemp("data") / "debug"
    runpy.run_path(str(REPOSITORY / "scripts" / "make_debug_data.py"))["make"](folder)
    return folder
