"""The README's tree is the repository's, its pipeline is the program's, and its commands exist."""

import re
import subprocess
from pathlib import Path

import pytest

from cohort.pipeline import STAGES


def read_tree(text: str) -> dict[str, str]:
    """Path to description for each line of the README's tree; a folder's path ends with a slash."""
    block = text.split("## The tree", 1)[1].split("```")[1]
    entries: dict[str, str] = {}
    above: list[str] = []
    for line in block.strip().splitlines():
        name, _, words = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2
        above = [*above[:depth], name]
        entries["".join(above)] = words.strip()
    return entries


@pytest.fixture(scope="module")
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tracked(repository: Path) -> list[str]:
    """What git tracks; a package's ``__init__.py`` goes with its folder."""
    listed = subprocess.run(["git", "ls-files"], cwd=repository, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.splitlines() if not name.endswith("__init__.py")]


def test_every_tracked_file_is_in_the_tree(readme: str, tracked: list[str]) -> None:
    tree = read_tree(readme)
    folders = {name for name in tree if name.endswith("/")}
    whole = {name for name in folders if not any(other.startswith(name) and other != name for other in tree)}
    missing = [name for name in tracked if name not in tree and not any(name.startswith(folder) for folder in whole)]
    assert missing == []


def test_the_tree_holds_nothing_else(readme: str, tracked: list[str]) -> None:
    extra = [name for name in read_tree(readme)
             if not (name in tracked or (name.endswith("/") and any(file.startswith(name) for file in tracked)))]
    assert extra == []


def test_every_file_has_its_line(readme: str) -> None:
    assert [name for name, words in read_tree(readme).items() if not words and not name.endswith("/")] == []


def test_the_pipeline_line_is_the_programs(readme: str) -> None:
    line = next(line for line in readme.splitlines() if " → " in line)
    assert line.split(" → ") == [stage.name for stage in STAGES]


def test_its_commands_exist(readme: str, repository: Path) -> None:
    named = set(re.findall(r"(?:scripts|configs)/[\w.]+\.(?:sh|py|yaml)", readme))
    assert named
    assert [name for name in sorted(named) if not (repository / name).is_file()] == []


def test_configs_open_with_command_hardware_time_and_expectation(repository: Path) -> None:
    for config in sorted((repository / "configs").glob("*.yaml")):
        lines = config.read_text(encoding="utf-8").splitlines()
        header = " ".join(line for line in lines if line.startswith("#"))
        missing = [word for word in ("Command:", "Hardware:", "Time:", "Expected:") if word not in header]
        assert missing == [], config.name
