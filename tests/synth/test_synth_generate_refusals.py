"""What generation refuses, in one line and before it is costly; what was made before is kept."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny_pipeline import save_tiny_lora, save_tiny_pipeline
from tiny_run import REPOSITORY, build_run, files_of, images_folder, plan_frame, run_here, stamp_of

from cohort.errors import TailfillError, run_command
from synth import generate
from synth.drawing import parts


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline in the standard layout."""
    return save_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "pipeline")


@pytest.fixture
def make_run(tmp_path: Path, saved: Path) -> Callable[..., Path]:
    """Builds a run folder with cohort, plan and generator beside its config, and returns the config's path."""
    return partial(build_run, tmp_path, saved)


def test_long_prompt_is_named_before_anything_is_drawn(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_frame()
    plan.loc[3, "prompt"] = "hernia " * 76
    config = make_run(plan=plan)
    with pytest.raises(TailfillError, match=rf"sample_id {plan['sample_id'][3]}: its text has 78 tokens"):
        run_here(config, monkeypatch)
    assert not (images_folder(config)).exists()
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


def lose_a_key(folder: Path, part: str, file: str) -> None:
    weights = load_file(folder / part / file)
    weights.pop(sorted(weights)[0])
    save_file(weights, folder / part / file, metadata={"format": "pt"})


def narrow_a_layer(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_in.bias"] = weights["conv_in.bias"][:-1].clone()
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize(("damage", "words"), [
    (lambda folder: remove(folder, "model_index.json"), "no model_index.json"),
    (lambda folder: shutil.rmtree(folder / "vae"), "part 'vae'.* is missing"),
    (lambda folder: remove(folder, "vae/diffusion_pytorch_model.safetensors"), "vae: holds no weights"),
    (pickle_weights, "diffusion_pytorch_model.bin: is a pickle"),
    (corrupt_weights, "does not load as a text-to-image pipeline"),
    (lambda folder: remove(folder, "unet/config.json"), "does not load as a text-to-image pipeline"),
    (lambda folder: lose_a_key(folder, "unet", "diffusion_pytorch_model.safetensors"), "unet: its weights lack 1 of"),
    (lambda folder: lose_a_key(folder, "vae", "diffusion_pytorch_model.safetensors"), "vae: its weights lack 1 of"),
    (lambda folder: lose_a_key(folder, "text_encoder", "model.safetensors"), "text_encoder: its weights lack 1 of"),
    (narrow_a_layer, "unet.*conv_in.bias"),
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


def test_what_merely_lies_in_a_stages_folder_is_not_its(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, saved: Path
) -> None:
    config = make_run(pipeline="one/generator/foreign", limit=1)
    shutil.copytree(saved, config.with_suffix("") / "generator" / "foreign")
    run_here(config, monkeypatch)
    assert stamp_of(config)["extra"]["provenance"] == "unknown"
    assert "generator" not in stamp_of(config)["inputs"]


def test_lora_weights_count_in_the_fingerprint(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    save_tiny_lora(tmp_path / "lora")
    config = make_run(lora="lora", limit=1)
    run_here(config, monkeypatch)
    assert stamp_of(config)["extra"]["provenance"] == "unknown"
    assert len(stamp_of(config)["extra"]["lora_weights"]) == 64


def test_a_plan_of_another_schema_version_is_refused(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_run()
    file = config.with_suffix("") / "plan" / "_stage.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema": 0}))
    with pytest.raises(TailfillError, match="plan: schema version 0, wanted 1"):
        run_here(config, monkeypatch)
    assert not images_folder(config).exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_no_more_is_one_line_and_keeps_what_is_done(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    write, full = Path.write_bytes, set(plan_frame()["sample_id"][4:])
    config, whole = make_run("full"), make_run("whole")
    run_here(whole, monkeypatch)

    def until_the_second_batch(self: Path, content: bytes) -> int:
        if any(sample_id in self.name for sample_id in full):
            raise OSError(number, os.strerror(number))
        return write(self, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", until_the_second_batch)
        with pytest.raises(TailfillError, match=rf"png: cannot be written: {os.strerror(number)}"):
            run_here(config, patch)
    assert parts.finished_batches(images_folder(config)) == {0}
    run_here(config, monkeypatch)
    assert files_of(config) == files_of(whole)


def test_a_second_run_in_the_folder_is_refused(make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_run(limit=1)
    work = "import sys, pathlib; from cohort.lock import hold; hold(pathlib.Path(sys.argv[1])); print(1); input()"
    rival = subprocess.Popen([sys.executable, "-uc", work, str(images_folder(config))], cwd=REPOSITORY, text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert rival.stdout is not None
        assert rival.stdout.readline() == "1\n"
        words = f"{re.escape(str(images_folder(config)))}: another process is at work .*process {rival.pid} "
        with pytest.raises(TailfillError, match=words):
            run_here(config, monkeypatch)
        assert not images_folder(config).exists()
    finally:
        rival.kill()
        rival.wait()
    run_here(config, monkeypatch)
    assert stamp_of(config)["counts"]["made"] == 1
