"""Autoencoder and generator trained by two processes, whole and by LoRA; the world size is observed, not assumed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

SETTINGS = {
    "run": "run", "threads": 1, "tracker": "none",
    "autoencoder": {"image_size": 32, "block_out_channels": [8, 8], "latent_channels": 4, "steps": 4, "batch_size": 4,
                    "adversarial_start": 0.5, "precision": "no"},
    "finetune": {"steps": 3, "batch_size": 8, "gradient_accumulation": 2, "validate_every": 3,
                 "fresh": {"block_out_channels": [32, 32], "text_width": 32, "text_layers": 1}},
}


def launch(script: str, config: Path, repository: Path) -> None:
    """Run a stage under accelerate with two CPU processes, from the configuration's folder."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
               "--main_process_port", "0", str(repository / script), "--config", str(config)]
    environment = dict(os.environ) | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=config.parent, env=environment, capture_output=True, text=True, check=False,
                          timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def stamp_of(folder: Path) -> dict:
    """A stage's stamp."""
    return json.loads((folder / "_stage.json").read_text())


@pytest.fixture(scope="module")
def trained(debug_data: Path, repository: Path, invoke: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of an autoencoder and a generator from nothing, each trained by two processes."""
    folder = tmp_path_factory.mktemp("two")
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(SETTINGS))
    assert invoke("cohort.prepare", "nih", "--root", debug_data, "--out", folder / "run" / "cohort").code == 0
    launch("synth/autoencoder.py", config, repository)
    launch("synth/finetune.py", config, repository)
    return folder


def test_both_stages_ran_on_two_processes(trained: Path) -> None:
    for folder, steps in (("autoencoder", 4), ("generator", 3)):
        stamp = stamp_of(trained / "run" / folder)
        assert stamp["extra"]["processes"] == 2
        assert stamp["counts"]["steps"] == steps
        assert not (trained / "run" / folder / "checkpoint.pt").exists()
    history = pd.read_parquet(trained / "run" / "generator" / "history.parquet")
    assert history["val_loss"].notna().sum() == 1
    assert (trained / "run" / "generator" / "validation" / "step_000003.png").is_file()


def test_adapters_of_that_pipeline_too(trained: Path, repository: Path) -> None:
    tuned = {**SETTINGS, "run": "tuned", "cohort": "run/cohort",
             "finetune": {"pipeline": "run/generator/pipeline", "mode": "lora", "lora_rank": 2, "steps": 4,
                          "batch_size": 4, "gradient_accumulation": 2, "prior_weight": 1.0,
                          "learning_rate": 1e-30, "patience": 1, "validate_every": 1}}
    config = trained / "tuned.yaml"
    config.write_text(yaml.safe_dump(tuned))
    launch("synth/finetune.py", config, repository)
    stamp = stamp_of(trained / "tuned" / "generator")
    assert (stamp["extra"]["processes"], stamp["extra"]["provenance"]) == (2, "known")
    assert "lora" in stamp["outputs"]
    # so low a rate gains nothing: both processes end after the first step, and the start is written
    assert (stamp["counts"]["steps"], stamp["extra"]["written_step"]) == (1, 0)
    assert stamp["extra"]["ended"].startswith("1 validations without")
