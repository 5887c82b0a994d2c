"""Two runs in one folder: the second is refused, and a kill, however it comes, leaves nothing to clear away."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cohort import lock
from cohort.errors import TailfillError
from cohort.lock import hold, let_go, lock_file
from cohort.stage import BEGUN, STAMP, Stage, write_atomically

REPOSITORY = Path(__file__).parents[2]
HOLD = """import sys, pathlib
from cohort.lock import hold
hold(pathlib.Path(sys.argv[1]))
print(1, flush=True)
input()"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the work is."""
    return tmp_path / "images"


@pytest.fixture
def rival(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that is at work in ``folder``."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], cwd=REPOSITORY, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    yield process
    process.kill()
    process.wait()


def stage_in(folder: Path) -> Stage:
    return Stage("plan", folder, config={}, inputs={})


def finish(stage: Stage) -> None:
    write_atomically(stage.folder / "table.bin", b"1")
    stage.finish(outputs=["table.bin"], counts={})


def test_a_second_process_is_refused_by_name_and_writes_nothing(folder: Path, rival: subprocess.Popen[str]) -> None:
    with pytest.raises(TailfillError, match=rf"images: another process is at work .*\(process {rival.pid} on "):
        stage_in(folder).begin()
    assert not folder.exists()


def test_a_killed_process_blocks_nobody(folder: Path, rival: subprocess.Popen[str]) -> None:
    rival.send_signal(signal.SIGKILL)
    rival.wait()
    stage = stage_in(folder)
    stage.begin()
    finish(stage)
    assert sorted(file.name for file in folder.iterdir()) == [STAMP, "table.bin"]


def test_a_worker_that_outlives_its_parent_blocks_nobody(folder: Path) -> None:
    hold(folder)
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
    worker.start()
    os.close(lock.HELD.pop(lock_file(folder)))  # what the end of this process would do
    try:
        done = subprocess.run([sys.executable, "-c", HOLD, str(folder)], cwd=REPOSITORY, text=True, input="\n",
                              capture_output=True, check=False)
    finally:
        worker.kill()
    assert (done.returncode, done.stderr) == (0, "")


def test_one_process_may_begin_again_what_it_has_begun(folder: Path) -> None:
    first, again = stage_in(folder), stage_in(folder)
    first.begin()
    again.begin()
    assert (folder / BEGUN).is_file()
    finish(again)
    assert lock_file(folder) not in lock.HELD


def test_a_linked_folder_is_the_folder(folder: Path, rival: subprocess.Popen[str], tmp_path: Path) -> None:
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(TailfillError, match="another process is at work"):
        hold(tmp_path / "link")


def test_who_comes_too_late_does_not_do_it_again(folder: Path) -> None:
    late, first = stage_in(folder), stage_in(folder)
    assert not late.is_complete()
    first.begin()
    finish(first)
    with pytest.raises(TailfillError, match="has just completed this stage"):
        late.begin()
    assert sorted(file.name for file in folder.iterdir()) == [STAMP, "table.bin"]


def test_half_files_of_a_killed_process_are_cleared_and_no_foreign_content(folder: Path) -> None:
    folder.mkdir()
    (folder / f".{BEGUN}.123.partial").write_bytes(b"{")
    stage = stage_in(folder)
    assert not stage.is_complete()
    stage.begin()
    finish(stage)
    assert sorted(file.name for file in folder.iterdir()) == [STAMP, "table.bin"]


def test_a_file_system_without_locks_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def without(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", without)
    hold(folder)
    assert "Function not implemented, so a second run" in caplog.text
    let_go(folder)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TailfillError, match=r"images\.lock: cannot be written"):
        hold(tmp_path / "file" / "images")
