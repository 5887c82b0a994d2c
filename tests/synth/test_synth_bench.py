"""The benchmarks compare what they say: the same images, the stated network evaluations, every batch once."""

import importlib
import sys
import threading
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_pipeline import save_tiny_pipeline

STEPS = 5
sys.path.append(str(Path(__file__).parents[2] / "scripts" / "bench"))
bench, processes, ways, inputs = (importlib.import_module(name) for name in
                                  ("generate", "processes", "generate_ways", "generate_inputs"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline in the standard layout."""
    return save_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "pipeline")


def options_for(saved: Path, *flags: str) -> Any:
    small = ["--images", "3", "--batch", "2", "--steps", str(STEPS), "--rounds", "1", "--threads", "1"]
    return bench.parse(["--pipeline", str(saved), *small, "--scheduler", "ddim", "--ways", "diffusers", "tailfill",
                        *flags])


def test_ways_draw_the_same_images_at_the_stated_evaluations(saved: Path, tmp_path: Path) -> None:
    options, rows = options_for(saved), inputs.plan_rows(3)
    made = {}
    for way in bench.make_ways(options, saved, rows):
        way.draw(rows, tmp_path / way.name)
        made[way.name] = bench.read_images(tmp_path / way.name, rows).astype(int), way.meter.evaluations / len(rows)
    assert {name: evaluations for name, (_, evaluations) in made.items()} == {
        bench.OWN: 2 * STEPS, bench.EQUAL: 2 * STEPS, bench.INTERVAL: 2 * 3 + 2}  # guided from .2 to .8 of 5 steps
    assert np.abs(made[bench.OWN][0] - made[bench.EQUAL][0]).max() <= 1
    assert np.abs(made[bench.OWN][0] - made[bench.INTERVAL][0]).max() > 1


def test_settings_of_tailfill_are_crossed_and_only_the_first_is_drawn_at_equal_evaluations(saved: Path) -> None:
    options = options_for(saved, "--ways", "loop", "tailfill", "--attention", "sdpa", "eager")
    names = [way.name for way in bench.make_ways(options, saved, inputs.plan_rows(1))]
    assert names == [bench.LOOP, bench.INTERVAL, bench.EQUAL, "Tailfill (eager, compile off)"]


def test_report_has_a_line_for_each_way(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "make_encoder", lambda name: None)
    monkeypatch.setattr(bench, "encode", lambda encoder, images, description: images[:, 0].astype(np.float32))
    monkeypatch.setattr(bench, "real_images", lambda n, size: np.zeros((n, size, size), dtype=np.uint8))
    flags = ["--images", "10", "--steps", "2", "--batch", "10", "--rounds", "1", "--threads", "1", "--real", "12"]
    bench.main(["--pipeline", str(saved), "--ways", "diffusers", "tailfill", *flags])
    lines = capsys.readouterr().out.splitlines()
    assert [line[:34].strip() for line in lines] == ["", *[bench.OWN, bench.INTERVAL, bench.EQUAL] * 2]
    assert "1.00 [1.00 to 1.00]" in lines[1]  # against itself
    assert "+0.0000 (+0.0000 to +0.0000)" in lines[4]


def test_processes_draw_every_batch_once(saved: Path, tmp_path: Path) -> None:
    options = processes.parse(["--pipeline", str(saved), "--batches", "3", "--batch", "1", "--steps", "1"])
    threads, ranks = torch.get_num_threads(), []
    for rank in range(2):  # as threads here: starting Python and torch thrice takes too long
        here, there = Pipe()
        threading.Thread(target=processes.work, args=(rank, 2, options, tmp_path / str(rank), there)).start()
        here.recv()
        ranks.append(here)
    spans = processes.draw(ranks)
    for orders in ranks:
        orders.send(False)
    torch.set_num_threads(threads)
    assert [n_batches for _, _, n_batches in spans] == [2, 1]
    assert all(began < end for began, end, _ in spans)
    drawn = [path.stem for rank in "01" for path in (tmp_path / rank / "images").rglob("*.png")]
    assert sorted(drawn) == sorted(row.sample_id for row in inputs.plan_rows(3))
