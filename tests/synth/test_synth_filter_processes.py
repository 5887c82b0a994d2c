"""What the filter shares and keeps: two processes come to the tables of one, and a second judging searches no more."""

import json
import shutil
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from filter_world import ORDER, build_run

from cohort.config import Run
from cohort.tables import read_table
from synth import filter as command
from synth.filling.launching import command_of, environment_of
from synth.filter import FilterConfig
from synth.judging import reading
from synth.judging.copies import Gallery, Matches
from synth.judging.memorisation import nearer_to_train, nearest_pairs


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


def test_processes_share_the_search_for_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each searches some images of each set, after both have read what they are searched among; none is left out."""
    monkeypatch.setattr(reading, "BATCH", 8)
    config, cpu = FilterConfig(rules={"memorisation": None}), torch.device("cpu")
    found = []
    for name, world in (("one", 1), ("two", 2)):
        run = Run(run=str(build_run(tmp_path / name).parent / "run"), threads=1)
        inputs, barrier = command.read_inputs(run, config), threading.Barrier(world, timeout=60)
        gatherer = command.make_gatherer(run, config, inputs, encoders=[], device=cpu)
        sources = gatherer.sources()
        with ThreadPoolExecutor(world) as pool:
            for done in [pool.submit(gatherer.read, sources, share=reading.Share(rank=rank, world=world),
                                     wait=barrier.wait) for rank in range(world)]:
                done.result(timeout=120)
        kept = [file for file in gatherer.cache.glob("nearest*/*.digests") if file.stat().st_size]
        assert {file.stem for file in kept} == {str(rank) for rank in range(world)}
        assert len(kept) == 3 * world
        evidence = gatherer.evidence(sources, scarce=["Hernia"])
        found.append((nearest_pairs(evidence), nearer_to_train(evidence)))
    pd.testing.assert_frame_equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_judging_again_searches_for_copies_no_more(
    tmp_path: Path, invoke: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the settings; the same pairs are told."""
    config = build_run(tmp_path)
    searched, search = [], Gallery.search

    def counted(gallery: Gallery, readings: np.ndarray, **settings: int) -> Matches:
        searched.append(len(readings))
        return search(gallery, readings, **settings)

    monkeypatch.setattr(Gallery, "search", counted)
    tables = []
    for share in (0.4, 0.1):
        section = {"rules": {"memorisation": {"false_alarms": share}}}
        config.write_text(yaml.safe_dump({"run": "run", "threads": 1, "filter": section}, sort_keys=False))
        outcome = invoke("synth.filter", "--config", str(config))
        assert outcome.code == 0, outcome.stderr
        tables.append(read_table(config.parent / "run" / "synthetic" / "nearest.parquet"))
        if share == 0.4:
            assert searched
            searched.clear()
        shutil.rmtree(config.parent / "run" / "synthetic")
    assert searched == []
    pd.testing.assert_frame_equal(*tables)
