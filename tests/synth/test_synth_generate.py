"""Generation keeps its promises: an image per planned id, the same bytes for any world size, restarts that continue."""

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny_pipeline import save_tiny_lora, save_tiny_pipeline

from cohort.errors import TailfillError, run_command
from cohort.provenance import write_patients
from cohort.stage import Stage
from cohort.tables import cohort_schema, images_schema, plan_schema, read_table, write_table
from synth import generate
from synth.drawing import parts, sampling

LABELS = ["Hernia", "Effusion"]
REPOSITORY = Path(__file__).parents[2]
SECTION = {"num_inference_steps": 3, "scheduler": "dpm++"}
N_ROWS, BATCH = 10, 4


def plan_frame(**changed: Any) -> pd.DataFrame:
    """Ten rows in batches of 4, 4 and 2, with three prompts."""
    prompts = ["chest radiograph, frontal view with hernia", "chest radiograph with effusion", "no hernia"]
    return pd.DataFrame({
        "sample_id": [f"{i * 37 % 251:02x}{i:014x}" for i in range(N_ROWS)],
        "prompt": [prompts[i % 3] for i in range(N_ROWS)], "negative_prompt": "old",
        "Hernia": 1, "Effusion": 0, "view": "PA", "age": 50.0, "sex": "F", "charged_to": "Hernia",
        "label_source_id": None, "init_image_id": None, "strength": None, "seed": [1000 + i for i in range(N_ROWS)],
        "batch": [i // BATCH for i in range(N_ROWS)], "round": 0, **changed,
    })


def write_cohort(folder: Path) -> None:
    """A cohort of three patients, one per split, without image files."""
    stage = Stage("prepare", folder, config={}, inputs={})
    stage.begin()
    frame = pd.DataFrame({
        "image_id": ["a", "b", "c"], "root": "r", "path": ["a.png", "b.png", "c.png"], "patient_id": ["1", "2", "3"],
        "study_id": None, "view": "PA", "age": 50.0, "sex": "F", "split": ["train", "val", "test"],
        "Hernia": [1, 0, 1], "Effusion": [0, 1, 1],
    })
    write_table(frame, folder / "cohort.parquet", cohort_schema(LABELS))
    stage.finish(outputs=["cohort.parquet"], counts={"images": 3}, extra={
        "labels": LABELS, "groups": {"Hernia": "tail", "Effusion": "head"}, "roots": {"r": str(folder)}, "salt": "s",
    })


def write_plan(folder: Path, frame: pd.DataFrame) -> None:
    """A complete plan stage that holds ``frame``."""
    stage = Stage("plan", folder, config={}, inputs={})
    stage.begin()
    write_table(frame, folder / "plan.parquet", plan_schema(LABELS))
    stage.finish(outputs=["plan.parquet"], counts={"planned": len(frame)})


def write_generator(folder: Path, patients: Sequence[str], source: Path) -> None:
    """A complete generator stage that holds a copy of the pipeline ``source``."""
    stage = Stage("finetune", folder, config={}, inputs={})
    stage.begin()
    shutil.copytree(source, folder / "pipeline")
    write_patients(folder, patients, salt="s")
    stage.finish(outputs=["pipeline", "patients.parquet"], counts={})


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline in the standard layout."""
    return save_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "pipeline")


@pytest.fixture
def make_run(tmp_path: Path, saved: Path) -> Callable[..., Path]:
    """Builds a run folder with cohort, plan and generator beside its config, and returns the config's path."""

    def build(name: str = "one", *, plan: pd.DataFrame | None = None, patients: Sequence[str] = ("1",),
              **section: Any) -> Path:
        run = tmp_path / name
        write_cohort(run / "cohort")
        write_plan(run / "plan", plan_frame() if plan is None else plan)
        write_generator(run / "generator", patients, saved)
        config = tmp_path / f"{name}.yaml"
        config.write_text(json.dumps({"run": name, "threads": 1, "generate": SECTION | section}), encoding="utf-8")
        return config

    return build


def run_here(config: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> pd.DataFrame:
    """Run the stage in this process and return its table."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(sys, "argv", ["generate.py", "--config", str(config), *flags])
    generate.main()
    return images_of(config)


def images_of(config: Path) -> pd.DataFrame:
    """The table of a run's images."""
    return read_table(config.with_suffix("") / "images" / "images.parquet", images_schema())


def launch(config: Path, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """``accelerate launch`` the script from a foreign folder, on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    accelerate = Path(sys.executable).with_name("accelerate")
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    script = REPOSITORY / "synth" / "generate.py"
    return subprocess.run(
        [str(accelerate), "launch", *flags, "--main_process_port", str(port), str(script), "--config", str(config)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )


def stamp_of(config: Path) -> dict[str, Any]:
    """The stamp of a run's images."""
    stamp: dict[str, Any] = json.loads((config.with_suffix("") / "images" / "_stage.json").read_text(encoding="utf-8"))
    return stamp


def made(frame: pd.DataFrame) -> pd.DataFrame:
    """What must be equal between runs: everything but who made it and how long it took."""
    return frame.drop(columns=["seconds", "rank"])


def pixels(config: Path) -> np.ndarray:
    """All images of a run, int16 (n, height, width)."""
    folder = config.with_suffix("") / "images"
    return np.stack([np.asarray(Image.open(folder / path)) for path in images_of(config)["path"]]).astype(np.int16)


def test_two_ranks_make_the_same_files_as_one_process(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = make_run("one"), make_run("two")
    alone = run_here(one, monkeypatch)
    done = launch(two, tmp_path, "--multi_gpu", "--num_processes", "2")
    assert done.returncode == 0, done.stderr
    shared = images_of(two)
    assert set(shared["rank"]) == {0, 1}
    assert stamp_of(two)["extra"]["world_size"] == 2
    assert shared["rank"].value_counts().to_dict() == {0: 6, 1: 4}
    pd.testing.assert_frame_equal(made(alone), made(shared))
    for path in alone["path"]:
        first, second = (config.with_suffix("") / "images" / path for config in (one, two))
        assert first.read_bytes() == second.read_bytes()


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
    config = make_run()
    whole = run_here(config, monkeypatch)
    folder = config.with_suffix("") / "images"
    stamp = stamp_of(config)
    (folder / "_stage.json").unlink()
    (folder / "_begun.json").write_text(json.dumps(stamp), encoding="utf-8")
    (folder / "images.parquet").unlink()
    parts.part_file(folder, 1).unlink()
    torn = folder / whole["path"][5]
    torn.unlink()
    torn.with_name(f".{torn.name}.partial").write_bytes(b"half a file")
    untouched = {path: (folder / path).stat().st_mtime_ns for path in whole["path"][:4]}
    pd.testing.assert_frame_equal(made(run_here(config, monkeypatch)), made(whole))
    assert stamp_of(config)["extra"]["drawn"] == 4
    assert {path: (folder / path).stat().st_mtime_ns for path in untouched} == untouched
    assert not list(folder.rglob("*.partial"))


def test_interrupted_run_keeps_finished_batches(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, whole = make_run("cut"), run_here(make_run("whole"), monkeypatch)
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
    folder = config.with_suffix("") / "images"
    assert not (folder / "images.parquet").exists()
    pd.testing.assert_frame_equal(made(run_here(config, monkeypatch)), made(whole))


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
    assert stamp_of(config)["counts"] == {"planned": 10, "made": 9, "failed": 1}
    others = frame.index != 2
    pd.testing.assert_frame_equal(made(frame[others]), made(whole[others]))


def test_whole_first_batch_failing_stops_the_run(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: sampling.Sampler, rows: Sequence[sampling.Row]) -> torch.Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(sampling.Sampler, "draw", broken)
    config = make_run()
    with pytest.raises(TailfillError, match="all 4 images of batch 0 failed: RuntimeError: mat1 and mat2"):
        run_here(config, monkeypatch)
    assert not parts.finished_batches(config.with_suffix("") / "images")


def test_long_prompt_is_named_before_anything_is_drawn(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_frame()
    plan.loc[3, "prompt"] = "hernia " * 76
    config = make_run(plan=plan)
    with pytest.raises(TailfillError, match=rf"sample_id {plan['sample_id'][3]}: its text has 78 tokens"):
        run_here(config, monkeypatch)
    assert not (config.with_suffix("") / "images").exists()
    plan.loc[3, "prompt"] = "hernia " * 75
    run_here(make_run("fits", plan=plan, limit=1), monkeypatch)


@pytest.mark.parametrize(("section", "words"), [
    ({"scheduler": "unpc"}, "scheduler is 'unpc'; did you mean 'unipc'"),
    ({"precision": "bf15"}, "did you mean 'bf16'"),
    ({"attention": "xformer"}, "did you mean 'xformers'"),
    ({"attention": "xformers"}, "does not work here: needs CUDA"),
    ({"num_inference_steps": 0}, "num_inference_steps is 0"),
    ({"guidance_interval": [0.8, 0.2]}, "guidance_interval is"),
    ({"height": 20}, "multiples of 8"),
    ({"pipeline": "no/such/place"}, "no/such/place does not exist"),
    ({"lora": "no/such/place"}, "no/such/place does not exist"),
])
def test_bad_settings_are_one_line(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    section: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["synth.generate", "--config", str(make_run(**section))])
    with pytest.raises(SystemExit) as stop:
        run_command(generate.main)
    error = capsys.readouterr().err.splitlines()[-1]
    assert (stop.value.code, error.startswith("error: "), words in error) == (2, True, True), error


def test_rows_that_start_from_an_image_are_refused(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TailfillError, match="starts from an image"):
        run_here(make_run(plan=plan_frame(init_image_id="a", strength=0.5)), monkeypatch)


def test_generator_that_has_seen_test_patients_is_refused(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TailfillError, match="learnt from 1 patients of the splits test"):
        run_here(make_run(patients=("1", "3")), monkeypatch)


def test_changed_settings_are_refused_but_not_how_the_work_is_done(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_run(limit=1)
    run_here(config, monkeypatch)
    run_here(config, monkeypatch, "--generate.micro_batch", "2", "--generate.io_threads", "1")
    with pytest.raises(TailfillError, match="num_inference_steps was 3, now 4"):
        run_here(config, monkeypatch, "--generate.num_inference_steps", "4")


def remove(folder: Path, name: str) -> None:
    (folder / name).unlink()


def pickle_weights(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")


def corrupt_weights(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not safetensors")


@pytest.mark.parametrize(("damage", "words"), [
    (lambda folder: remove(folder, "model_index.json"), "no model_index.json"),
    (lambda folder: shutil.rmtree(folder / "vae"), "part 'vae'.* is missing"),
    (lambda folder: remove(folder, "vae/diffusion_pytorch_model.safetensors"), "vae: holds no weights"),
    (pickle_weights, "diffusion_pytorch_model.bin: is a pickle"),
    (corrupt_weights, "does not load as a text-to-image pipeline"),
    (lambda folder: remove(folder, "unet/config.json"), "does not load as a text-to-image pipeline"),
    (lambda folder: (folder / "model_index.json").write_text("{"), "no readable index"),
])
def test_damaged_pipelines_are_one_line(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, saved: Path, tmp_path: Path,
    damage: Callable[[Path], Any], words: str,
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(saved, broken)
    damage(broken)
    with pytest.raises(TailfillError, match=words):
        run_here(make_run(pipeline=str(broken), limit=1), monkeypatch)


def test_external_pipeline_has_unknown_provenance_and_its_weights_count(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, saved: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(saved, elsewhere)
    config = make_run(pipeline="elsewhere", limit=1)
    run_here(config, monkeypatch)
    assert stamp_of(config)["extra"]["provenance"] == "unknown"
    shutil.rmtree(elsewhere)
    save_tiny_pipeline(elsewhere, seed=1)
    with pytest.raises(TailfillError, match="weights was"):
        run_here(config, monkeypatch)


def test_dry_run_writes_nothing(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_run()
    with pytest.raises(TailfillError, match="no such table"):
        run_here(config, monkeypatch, "--dry-run")
    told = json.loads(capsys.readouterr().out)
    assert (told["rows_to_do"], told["batches_to_do"], told["state"]) == (10, 3, "to do")
    assert not (config.with_suffix("") / "images").exists()


def test_lora_weights_count_in_the_fingerprint(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    save_tiny_lora(tmp_path / "lora")
    config = make_run(lora="lora", limit=1)
    run_here(config, monkeypatch)
    assert stamp_of(config)["extra"]["provenance"] == "unknown"
    assert len(stamp_of(config)["extra"]["lora_weights"]) == 64


def test_a_full_disk_is_one_line_and_keeps_what_is_done(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    put = parts.put_in_place
    config, whole = make_run("full"), run_here(make_run("whole"), monkeypatch)

    def full_after_the_first_batch(file: Path, content: bytes) -> None:
        if file.stem in set(plan_frame()["sample_id"][4:]):
            raise TailfillError(f"{file}: cannot be written: No space left on device")
        put(file, content)

    with monkeypatch.context() as patch:
        patch.setattr(parts, "put_in_place", full_after_the_first_batch)
        with pytest.raises(TailfillError, match="No space left"):
            run_here(config, patch)
    assert parts.finished_batches(config.with_suffix("") / "images") == {0}
    pd.testing.assert_frame_equal(made(run_here(config, monkeypatch)), made(whole))


def test_assembling_refuses_doubled_ids(make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_run()
    run_here(config, monkeypatch)
    folder = config.with_suffix("") / "images"
    shutil.copy(parts.part_file(folder, 0), parts.part_file(folder, 2))
    with pytest.raises(TailfillError, match="missing, doubled or unknown"):
        parts.assemble(folder, sample_ids=plan_frame()["sample_id"].tolist(), batches=[0, 1, 2])


def test_the_log_says_which_attention_was_taken(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        run_here(make_run(limit=1), monkeypatch)
    assert "attention sdpa (xFormers: needs CUDA, and this is cpu)" in caplog.text
