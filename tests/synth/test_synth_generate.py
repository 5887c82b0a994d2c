"""Generation keeps its promises: an image per planned id, the same bytes for any world size, restarts that continue."""

import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_pipeline import save_tiny_pipeline
from tiny_run import (
    N_ROWS,
    batches_of,
    build_run,
    files_of,
    images_folder,
    launch,
    pixels,
    plan_frame,
    run_here,
    stamp_of,
)

from cohort.errors import TailfillError
from synth import generate
from synth.drawing import parts, sampling


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline in the standard layout."""
    return save_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "pipeline")


@pytest.fixture
def make_run(tmp_path: Path, saved: Path) -> Callable[..., Path]:
    """Builds a run folder with cohort, plan and generator beside its config, and returns the config's path."""
    return partial(build_run, tmp_path, saved)


def test_two_ranks_make_the_same_files_as_one_process(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = make_run("one"), make_run("two")
    run_here(one, monkeypatch)
    done = launch(two, tmp_path, "--multi_gpu", "--num_processes", "2")
    assert done.returncode == 0, done.stderr
    assert stamp_of(two)["extra"]["world_size"] == 2
    shared = batches_of(two)
    assert shared["batch"].tolist() == [0, 1, 2]
    assert shared["rank"].tolist() == [0, 1, 0]
    assert shared["world_size"].tolist() == [2, 2, 2]
    assert files_of(one) == files_of(two)
    assert stamp_of(one)["output_hash"] == stamp_of(two)["output_hash"]


def test_plain_launch_works_and_is_idempotent(make_run: Callable[..., Path], tmp_path: Path) -> None:
    config = make_run(limit=2)
    done = launch(config, tmp_path, "--num_processes", "1")
    assert done.returncode == 0, done.stderr
    assert stamp_of(config)["counts"] == {"planned": 2, "made": 2, "failed": 0}
    assert stamp_of(config)["extra"]["world_size"] == 1
    assert "sdpa (xFormers: needs CUDA, and this is cpu)" in stamp_of(config)["extra"]["attention"]


def test_table_names_every_planned_row_in_order(make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_run()
    frame = run_here(config, monkeypatch)
    assert frame["sample_id"].tolist() == plan_frame()["sample_id"].tolist()
    assert (frame["status"] == "ok").all()
    assert set(frame["height"]) == set(frame["width"]) == {32}
    images = pixels(config)
    assert images.shape == (N_ROWS, 32, 32)
    assert len({image.tobytes() for image in images}) == N_ROWS  # no two rows share their noise
    assert stamp_of(config)["extra"]["provenance"] == "known"
    before = stamp_of(config)
    run_here(config, monkeypatch)
    assert stamp_of(config) == before


def test_restart_draws_only_what_is_missing_and_ends_the_same(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, whole = make_run("cut"), make_run("whole")
    frame, folder = run_here(whole, monkeypatch), images_folder(config)
    with monkeypatch.context() as patch:
        patch.setattr(generate, "assemble", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_here(config, patch)
    parts.part_file(folder, 1).unlink()
    torn = folder / frame["path"][5]
    torn.unlink()
    torn.with_name(f".{torn.name}.partial").write_bytes(b"half a file")
    untouched = {path: (folder / path).stat().st_mtime_ns for path in frame["path"][:4]}
    run_here(config, monkeypatch)
    assert files_of(config) == files_of(whole)
    assert stamp_of(config)["extra"]["drawn"] == 4
    assert {path: (folder / path).stat().st_mtime_ns for path in untouched} == untouched


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("moment", ["write_table", "check_ids"])
def test_interrupted_assembling_is_done_again_without_drawing(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    config, whole = make_run("cut", limit=5), make_run("whole", limit=5)
    run_here(whole, monkeypatch)
    calls, function = [], getattr(parts, moment)

    def second_call_interrupts(*args: object, **options: object) -> object:
        calls.append(args)
        return interrupt() if len(calls) == 2 else function(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(parts, moment, second_call_interrupts)
        with pytest.raises(KeyboardInterrupt):
            run_here(config, patch)
    assert parts.is_assembled(images_folder(config)) == (moment == "check_ids")
    run_here(config, monkeypatch)
    assert files_of(config) == files_of(whole)
    assert stamp_of(config)["extra"]["drawn"] == 0
    assert stamp_of(config)["extra"]["attention"] == stamp_of(whole)["extra"]["attention"]


def test_interrupted_run_keeps_finished_batches(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, whole = make_run("cut"), make_run("whole")
    run_here(whole, monkeypatch)
    draw, calls = sampling.Sampler.draw, []

    def interrupted(self: sampling.Sampler, rows: Sequence[sampling.Row]) -> torch.Tensor:
        calls.append(len(rows))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(sampling.Sampler, "draw", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_here(config, patch)
    assert not parts.is_assembled(images_folder(config))
    run_here(config, monkeypatch)
    assert files_of(config) == files_of(whole)


def test_micro_batch_changes_no_image_beyond_rounding(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    four, three = make_run("four"), make_run("three", micro_batch=3)
    run_here(four, monkeypatch)
    frame = run_here(three, monkeypatch)
    assert frame["micro_batch"].tolist() == [3, 3, 3, 1, 3, 3, 3, 1, 2, 2]
    assert np.abs(pixels(four) - pixels(three)).max() <= 1
    assert stamp_of(four)["fingerprint"] != ""


def test_nan_is_a_recorded_row_and_its_neighbours_are_unharmed(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_here(make_run("whole"), monkeypatch)
    noise = sampling.initial_noise

    def poisoned(generators: Sequence[torch.Generator], shape: tuple[int, int, int]) -> torch.Tensor:
        latents = noise(generators, shape)
        for latent, generator in zip(latents, generators, strict=True):
            if generator.initial_seed() == 1002:
                latent[0, 0, 0] = float("nan")
        return latents

    monkeypatch.setattr(sampling, "initial_noise", poisoned)
    config = make_run("nan")
    frame = run_here(config, monkeypatch)
    assert frame["status"].tolist() == ["ok", "ok", "error"] + ["ok"] * 7
    assert "not finite" in frame["error"][2]
    assert pd.isna(frame["path"][2])
    assert pd.isna(frame["sha256"][2])
    assert batches_of(config)["failed"].tolist() == [1, 0, 0]
    assert stamp_of(config)["counts"] == {"planned": 10, "made": 9, "failed": 1}
    others = frame.index != 2
    pd.testing.assert_frame_equal(frame[others], whole[others])


@pytest.mark.parametrize("batch", [0, 1])
def test_a_whole_batch_failing_stops_the_run_and_keeps_those_before(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    draw = sampling.Sampler.draw

    def breaking(self: sampling.Sampler, rows: Sequence[sampling.Row]) -> torch.Tensor:
        if rows[0].seed >= 1000 + 4 * batch:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        return draw(self, rows)

    monkeypatch.setattr(sampling.Sampler, "draw", breaking)
    config = make_run()
    with pytest.raises(TailfillError, match=f"all 4 images of batch {batch} failed: RuntimeError: mat1 and mat2"):
        run_here(config, monkeypatch)
    assert parts.finished_batches(images_folder(config)) == set(range(batch))


def test_a_mistake_that_made_nothing_can_be_mended_in_the_same_folder(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_run(limit=1)
    with pytest.raises(TailfillError, match="multiples of 8"):
        run_here(config, monkeypatch, "--generate.height", "20")
    assert run_here(config, monkeypatch)["status"].tolist() == ["ok"]


def test_a_micro_batch_larger_than_the_plans_batches_is_that_of_the_plan(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, draw_rows = [], generate.draw_rows

    def seen(rows: Sequence[sampling.Row], *, micro_batch: int, **options: Any) -> list[sampling.Drawn]:
        sizes.append(micro_batch)
        return draw_rows(rows, micro_batch=micro_batch, **options)

    monkeypatch.setattr(generate, "draw_rows", seen)
    run_here(make_run(micro_batch=64, limit=5), monkeypatch)
    assert sizes == [4, 4]


def test_dry_run_writes_nothing(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_run()
    with pytest.raises(TailfillError, match="no such table"):
        run_here(config, monkeypatch, "--dry-run")
    told = json.loads(capsys.readouterr().out)
    assert (told["rows_to_do"], told["batches_to_do"], told["state"]) == (10, 3, "to do")
    assert not (images_folder(config)).exists()


def test_the_log_says_which_attention_was_taken(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        run_here(make_run(limit=1), monkeypatch)
    assert "attention sdpa (xFormers: needs CUDA, and this is cpu)" in caplog.text
