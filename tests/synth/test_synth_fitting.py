"""The loop of fine-tuning: patience, what it writes, what it refuses before any work."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny_pipeline import tiny_pipeline

from classify.learning.training import CHECKPOINT, load_checkpoint, save_checkpoint, start_accelerator
from cohort.config import Run
from cohort.errors import TailfillError
from cohort.stage import Stage
from cohort.tables import Cohort
from synth.finetune import check_family, check_images, open_stage
from synth.learning import fitting, validation
from synth.learning.fitting import Loop, Progress
from synth.learning.tuning import FinetuneConfig, Trainer
from synth.learning.validation import SHEET_VIEWS, draw_sheet, validated_labels

CONFIG = FinetuneConfig(pipeline="a folder", steps=6, batch_size=2, validate_every=1, checkpoint_every=1, patience=2)


def cohort_of(rows: list[tuple[str, int, int]], folder: Path) -> Cohort:
    """A cohort of (split, common finding, rare finding)."""
    frame = pd.DataFrame(rows, columns=["split", "Effusion", "Hernia"]).astype({"Effusion": "Int8", "Hernia": "Int8"})
    frame["patient_id"] = [f"p{number}" for number in range(len(frame))]
    return Cohort(frame=frame, labels=["Effusion", "Hernia"], groups={"Effusion": "head", "Hernia": "tail"}, roots={},
                  salt="s", folder=folder)


class Accelerator:
    """As much of an accelerator as the loop asks for."""

    is_main_process, device, over = True, torch.device("cpu"), False

    def log(self, values: dict, step: int) -> None:
        assert "step" not in values

    def set_trigger(self) -> None:
        self.over = True

    def check_trigger(self) -> bool:
        return self.over


class Model:
    """A trainer whose only weight is the number of the step."""

    def __init__(self, config: FinetuneConfig) -> None:
        self.config, self.step, self.seed, self.pipeline, self.accelerator = config, 0, 0, None, Accelerator()
        self.parameters = [torch.zeros(1)]
        self.ema = self
        self.shadow_params = [torch.zeros(1)]

    store = restore = copy_to = lambda self, parameters: None

    def train_step(self, data: None) -> float:
        self.step += 1
        self.shadow_params = [torch.full((1,), float(self.step))]
        return float(self.step)

    def state(self) -> dict:
        return {"weights": self.shadow_params}

    def load(self, state: dict) -> None:
        self.step, self.shadow_params = state["step"], state["weights"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[Model, Progress]]:
    """A function: the tail's loss of each step, from 0 on -> the model and the progress at the end."""
    def run(tail_losses: list[float], kill_after: int | None = None, **settings: object) -> tuple[Model, Progress]:
        monkeypatch.setattr(fitting, "validation_losses", lambda trainer, *_: {
            "val_loss": 1.0, "val_tail": tail_losses[trainer.step]})
        monkeypatch.setattr(fitting, "draw_sheet", lambda *_, **__: None)
        model = Model(replace(CONFIG, **settings))
        loop = Loop(model, {"train": None, "val": None}, None, tmp_path)
        if kill_after is not None:
            step = model.train_step
            monkeypatch.setattr(model, "train_step", lambda data: step(data) if model.step < kill_after else 1 / 0)
        return model, loop.run()
    return run


@pytest.mark.parametrize(("losses", "patience", "last", "written"), [
    ([9, 5, 4, 6, 7, 1, 1], 2, 4, 2), ([9, 5, 4, 6, 7, 1, 1], 3, 6, 5), ([1, 2, 3, 0, 0, 0, 0], 2, 2, 0),
    ([6, 5, 4, 3, 2, 1, 0], 1, 6, 6), ([3, 3, 3, 3, 3, 3, 3], 1, 1, 0), ([1, 2, 3, 4, 5, 6, 7], None, 6, 6),
])
def test_training_ends_when_patience_does_and_the_best_weights_are_written(
    run: Callable, tmp_path: Path, losses: list[float], patience: int | None, last: int, written: int
) -> None:
    model, progress = run(losses, patience=patience)
    assert (model.step, progress.written_step, progress.is_over(patience)) == (last, written, last < 6)
    assert model.ema.shadow_params == [torch.full((1,), float(written))]
    history = pd.read_parquet(tmp_path / "history.parquet")
    assert history.loc[history["written"], "step"].tolist() == [written]
    assert history["step"].tolist() == list(range(last + 1))


@pytest.mark.parametrize("kill_after", [1, 3, 4])
def test_a_run_that_goes_on_keeps_its_best_weights_and_its_patience(run: Callable, kill_after: int) -> None:
    losses = [9, 5, 4, 6, 7, 8, 1]
    with pytest.raises(ZeroDivisionError):
        run(losses, kill_after=kill_after, patience=3)
    model, progress = run(losses, patience=3)
    assert (model.step, progress.written_step) == (5, 2)
    assert model.ema.shadow_params == [torch.full((1,), 2.0)]
    assert [row["step"] for row in progress.history] == [0, 1, 2, 3, 4, 5]
    again, progress = run(losses, patience=3)  # and one that was over does nothing more
    assert (again.step, progress.written_step) == (5, 2)


def test_every_validation_has_its_row_whatever_its_rhythm(run: Callable) -> None:
    _, progress = run([1.0] * 61, steps=60, validate_every=9, patience=None)
    assert [row["step"] for row in progress.history if "val_tail" in row] == [0, 9, 18, 27, 36, 45, 54, 60]
    rows = [row for row in progress.history if "loss" in row]
    starts = [0, *(row["step"] for row in rows)][:-1]
    assert [row["loss"] for row in rows] == [
        np.mean(np.arange(begin + 1, row["step"] + 1)) for begin, row in zip(starts, rows, strict=True)
    ]


def test_seconds_of_several_sessions_add_up(run: Callable, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run([1.0] * 7, kill_after=3, patience=None)
    state = load_checkpoint(tmp_path / CHECKPOINT)
    state["progress"]["seconds"] += 1000
    save_checkpoint(tmp_path / CHECKPOINT, **state)
    _, progress = run([1.0] * 7, patience=None)
    seconds = [row["seconds"] for row in progress.history]
    assert max(seconds[:4]) < 1000 < min(seconds[4:])
    assert progress.seconds < 2000


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_half(content: dict, file: Path) -> None:
        file.write_bytes(b"half")
        raise RuntimeError("file write failed")

    save_checkpoint(tmp_path / CHECKPOINT, step=1)
    monkeypatch.setattr(torch, "save", write_half)
    with pytest.raises(TailfillError, match="cannot be written: file write failed; the checkpoint before it is kept"):
        save_checkpoint(tmp_path / CHECKPOINT, step=2)
    assert load_checkpoint(tmp_path / CHECKPOINT) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]


def test_a_diverged_validation_is_no_best_one(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "check_finite", lambda loss, **_: 1 / 0 if loss == 1.0 else None)
    with pytest.raises(ZeroDivisionError):
        run([1.0] * 7)


def test_patience_without_a_tail_to_validate_is_refused(tmp_path: Path) -> None:
    rows = [("train", 1, 0)] * 9 + [("train", 0, 1), ("val", 1, 0), ("val", 0, 0)]
    check_images(replace(CONFIG, patience=None), cohort_of(rows, tmp_path))
    check_images(CONFIG, cohort_of([*rows, ("val", 0, 1)], tmp_path))
    with pytest.raises(TailfillError, match=r"patience is 2, but no validation image carries .* \(Hernia\)"):
        check_images(CONFIG, cohort_of(rows, tmp_path))
    with pytest.raises(TailfillError, match="no image in its val split"):
        check_images(replace(CONFIG, patience=None), cohort_of(rows[:10], tmp_path))
    with pytest.raises(TailfillError, match=r"prior_weight is 1\.0, but every training image"):
        check_images(replace(CONFIG, patience=None, prior_weight=1.0, scarcity_threshold=0.9),
                     cohort_of([("train", 0, 1), ("train", 1, 0), ("val", 1, 0)], tmp_path))


def test_a_limited_validation_leaves_out_neither_the_rare_nor_the_common_alone(tmp_path: Path) -> None:
    cohort = cohort_of([("val", 1, 0), ("val", 1, 1)] * 600, tmp_path)
    carried = validated_labels(cohort.frame, cohort)
    assert len(carried) == validation.MAX_IMAGES
    assert (carried["Effusion"] & ~carried["Hernia"]).sum() > 100
    assert carried["Hernia"].sum() > 200


@pytest.mark.parametrize("kind", ["StableDiffusionXLPipeline", "PixArtSigmaPipeline", "StableDiffusionInpaintPipeline"])
def test_another_family_is_refused_with_what_is_accepted(kind: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    with pytest.raises(TailfillError, match=f"is a {kind}; wanted: a StableDiffusionPipeline"):
        check_family(replace(CONFIG, pipeline=str(tmp_path)), tmp_path)


def test_only_settings_that_change_the_weights_are_in_the_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_text("a file")
    run = Run(run=str(tmp_path / "run"), cohort=str(tmp_path / "cohort.csv"))

    def differs(**changes: object) -> bool:
        base = replace(CONFIG, patience=None)
        one, other = (open_stage(config, run, tmp_path) for config in (base, replace(base, **changes)))
        return one.fingerprint != other.fingerprint

    assert not any(differs(**free) for free in ({"validate_every": 7}, {"gradient_checkpointing": True}))
    assert all(differs(**bound) for bound in ({"patience": 3}, {"prior_weight": 1.0}, {"precision": "bf16"}))
    stage = Stage("autoencoder", run.folder / "autoencoder", config={}, inputs={})
    stage.begin()
    stage.finish(outputs=[], counts={})
    assert differs(new_autoencoder=True)
    before = open_stage(replace(CONFIG, patience=None), run, tmp_path)
    assert ("new_autoencoder" in before.config, "autoencoder" in before.inputs) == (False, False)
    patient = [open_stage(replace(CONFIG, validate_every=n), run, tmp_path).fingerprint for n in (1, 2)]
    assert patient[0] != patient[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="half precision works on this machine")
def test_half_precision_without_a_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TailfillError, match="'fp16', which needs a GPU"):
        start_accelerator(Run(run=str(tmp_path), tracker="none"), tmp_path, "fp16")


def test_the_scale_of_half_precision_survives_a_checkpoint(tmp_path: Path) -> None:
    from accelerate import Accelerator

    scales = []
    for init_scale in (64.0, 2.0):
        trainer = Trainer(CONFIG, tiny_pipeline(), Accelerator(cpu=True), seed=1)
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)
        if state := load_checkpoint(tmp_path / CHECKPOINT):
            trainer.load(state)
        save_checkpoint(tmp_path / CHECKPOINT, step=1, **trainer.state())
        scales.append(trainer.accelerator.scaler.get_scale())
    assert scales == [64.0, 64.0]


def test_a_sheet_has_a_row_for_each_group_and_is_the_same_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "SHEET_STEPS", 2)
    cohort = cohort_of([("train", 1, 1)], tmp_path)
    for name in ("one", "two"):
        draw_sheet(tiny_pipeline(), cohort, tmp_path / f"{name}.png", seed=3)
    one, two = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("one", "two"))
    assert np.array_equal(one, two)
    assert one.shape[0] > one.shape[1] * 3 / len(SHEET_VIEWS)  # Hernia, Effusion, nothing
