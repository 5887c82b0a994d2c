"""The filter by two processes: the same tables as by one, with the real encoder and a critic from its files."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from filter_world import ORDER, build_run

from synth.filling.launching import command_of, environment_of


def stamp_of(config: Path) -> dict:
    """The filter's stamp."""
    return json.loads((config.parent / "run" / "synthetic" / "_stage.json").read_text())


def test_two_processes_share_the_reading_and_come_to_the_same_tables(
    tmp_path: Path, repository: Path, invoke: Callable
) -> None:
    config = build_run(tmp_path / "two", rules=dict.fromkeys(ORDER))
    alone = Path(shutil.copytree(config.parent, tmp_path / "one")) / config.name
    done = subprocess.run(
        command_of(["synth.filter", "--config", str(config)], 2), cwd=repository, text=True, check=False, timeout=300,
        env=environment_of(2) | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}, capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]
    readings = config.parent / "run" / "cache" / "readings"
    ranks = {file.stem for file in readings.glob("efficientnet*/*.digests")}
    assert ranks == {"0", "1"}, "one of the processes read nothing"
    assert invoke("synth.filter", "--config", alone).code == 0
    assert stamp_of(config)["counts"] == stamp_of(alone)["counts"]
    assert stamp_of(config)["outputs"]["synthetic.parquet"] == stamp_of(alone)["outputs"]["synthetic.parquet"]
