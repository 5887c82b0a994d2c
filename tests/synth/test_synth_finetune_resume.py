"""Fine-tuning killed in the middle, in a process of its own, ends as if nothing had happened."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from tiny_pipeline import tiny_pipeline

from classify.learning.training import CHECKPOINT, load_checkpoint
from cohort.stage import PARTIAL, hash_folder
from cohort.tables import load_cohort
from synth.learning import fitting
from synth.learning.fresh import FreshConfig, build_pipeline
from synth.learning.training_set import captions
from synth.learning.tuning import Trainer

STEPS, VALIDATION, EVERY = 40, 26, 4  # rows of the history at 25, 26 and 40; checkpoints in between
TIMES = ["seconds", "images_per_second"]
SETTINGS = {
    "threads": 1, "tracker": "none", "cohort": "cohort",
    "finetune": {"pipeline": "tiny", "train_text_encoder": True, "steps": STEPS, "batch_size": 4, "warmup_steps": 4,
                 "learning_rate": 1e-3, "prior_weight": 0.5, "patience": 9, "validate_every": VALIDATION,
                 "checkpoint_every": EVERY},
}


def checkpoint_time(folder: Path) -> int:
    """When the checkpoint was written, 0 without one."""
    file = folder / CHECKPOINT
    return file.stat().st_mtime_ns if file.exists() else 0


def kill_after_a_checkpoint(config: Path, folder: Path, repository: Path) -> None:
    """Start a run and kill it at the first checkpoint after its validation in the middle."""
    process = subprocess.Popen([sys.executable, str(repository / "synth" / "finetune.py"), "--config", str(config),
                                "--run", str(folder.parent)], env={**os.environ, "HF_HUB_OFFLINE": "1"},
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seen = None
    while seen is None or checkpoint_time(folder) == seen:
        assert process.poll() is None, "ended before it could be killed"
        if seen is None and (folder / "validation" / f"step_{VALIDATION:06d}.png").exists():
            seen = checkpoint_time(folder)
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, invoke: Callable, debug_data: Path) -> Path:
    """A cohort, a tiny pipeline, and the settings that fine-tune it."""
    folder = tmp_path_factory.mktemp("resume")
    assert invoke("cohort.prepare", "nih", "--root", debug_data, "--out", folder / "cohort").code == 0
    cohort = load_cohort(folder / "cohort")
    texts = [text for row in captions(cohort.split("train"), cohort.labels) for text in row]
    torch.manual_seed(0)
    build_pipeline(FreshConfig(block_out_channels=(32, 32), text_width=32, text_layers=1), tiny_pipeline().vae,
                   texts).save_pretrained(folder / "tiny")
    (folder / "config.yaml").write_text(yaml.safe_dump(SETTINGS))
    return folder / "config.yaml"


def test_a_killed_run_ends_with_the_curve_and_the_weights_of_an_uninterrupted_one(
    config: Path, invoke: Callable, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "draw_sheet", lambda *_, **__: None)  # to save time; the process that is killed draws
    whole, killed = (config.parent / name / "generator" for name in ("whole", "killed"))
    assert invoke("synth.finetune", "--config", config, "--run", whole.parent).code == 0
    kill_after_a_checkpoint(config, killed, repository)
    state = load_checkpoint(killed / CHECKPOINT)
    assert VALIDATION < state["step"] < STEPS
    assert not (killed / "_stage.json").exists()
    assert len(state["progress"]["losses"]) == state["step"] - VALIDATION  # the next row is their mean too
    (killed / f".{CHECKPOINT}{PARTIAL}").write_bytes(b"half a checkpoint")

    steps, step = [], Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", lambda self, data: (steps.append(self.step), step(self, data))[1])
    assert invoke("synth.finetune", "--config", config, "--run", killed.parent).code == 0
    assert steps == list(range(state["step"], STEPS))  # it went on rather than started again

    curves = [pd.read_parquet(folder / "history.parquet") for folder in (whole, killed)]
    assert curves[0]["step"].tolist() == [0, 25, VALIDATION, STEPS]
    pd.testing.assert_frame_equal(*(curve.drop(columns=TIMES) for curve in curves), check_exact=True)
    assert curves[0]["loss"][1:].notna().all()
    assert hash_folder(whole / "pipeline") == hash_folder(killed / "pipeline")
    assert curves[1]["seconds"].is_monotonic_increasing
    assert curves[1]["seconds"].iloc[-1] > state["progress"]["seconds"] > curves[1]["seconds"].iloc[-2]
    assert not [path.name for path in killed.iterdir() if path.name.startswith((".", CHECKPOINT))]


def test_the_cohort_of_this_test_has_a_tail_to_validate(config: Path) -> None:
    cohort = load_cohort(config.parent / "cohort")
    assert cohort.split("val")[cohort.in_group("tail")].eq(1).any(axis=None)
