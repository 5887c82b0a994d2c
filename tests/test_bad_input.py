"""Bad input of every kind: one line that names the culprit, exit code 2, and not one file more than before."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Invoke
from spoilt_worlds import CASES, LABEL_FILE, Words, World


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, debug_data: Path, invoke: Invoke) -> Path:
    """The world before anything is spoilt; copied for each case."""
    world = World(tmp_path_factory.mktemp("world"))
    names = sorted(path.name for path in (debug_data / "images").iterdir())
    names = names[:30] + names[-10:]
    (world.data / "images").mkdir(parents=True)
    for name in names:
        shutil.copy(debug_data / "images" / name, world.data / "images" / name)
    lines = (debug_data / LABEL_FILE).read_text(encoding="utf-8").splitlines()
    (world.data / LABEL_FILE).write_text("\n".join([lines[0], *(x for x in lines if x.split(",")[0] in names)]) + "\n")
    for file in ("train_val_list.txt", "test_list.txt"):
        listed = [name for name in (debug_data / file).read_text().split() if name in names]
        (world.data / file).write_text("\n".join(listed) + "\n")
    flags = world.write_config(plan={"total": 8, "max_ratio": None})
    prepare = ["cohort.prepare", "nih", "--root", debug_data, "--out", world.run / "cohort"]
    for words in (prepare, ["prompts.plan", *flags]):
        outcome = invoke(*words)
        assert outcome.code == 0, outcome.stderr
    return world.folder


@pytest.fixture
def world(pristine: Path, tmp_path: Path) -> World:
    """A copy to spoil."""
    return World(shutil.copytree(pristine, tmp_path / "world"))


@pytest.mark.parametrize("spoil", CASES, ids=lambda spoil: spoil.__name__)
def test_one_line_names_the_culprit_and_nothing_is_written(
    spoil: Callable[[World], Words], world: World, invoke: Invoke
) -> None:
    words = spoil(world)
    before = world.files()
    outcome = invoke(*words)
    lines = [line for line in outcome.stderr.splitlines() if line and "%|" not in line]  # progress bars apart
    assert outcome.code == 2, outcome.stderr
    assert len(lines) == 1, outcome.stderr
    assert lines[0].startswith("error: "), outcome.stderr
    assert [part for part in CASES[spoil] if part not in lines[0]] == [], lines[0]
    assert world.files() == before


@pytest.mark.parametrize(
    "command", [["-m", "prompts.plan"], ["scripts/experiment.py"]], ids=["a stage", "the experiment"]
)
def test_a_real_process_leaves_with_code_2(command: list[str], world: World, repository: Path) -> None:
    words = world.write_config(plan={"totl": 8})
    words = words[1:] if command[0].endswith(".py") else words
    done = subprocess.run([sys.executable, *command, *map(str, words)], cwd=repository, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "'totl'; did you mean 'total'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_at_least_twenty_kinds() -> None:
    assert len(CASES) >= 20
