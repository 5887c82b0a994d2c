"""A run to fill, with stand-ins for generation and filter that only keep books: what is tested does not look at pixels.

An image is accepted with the share of its class, decided by its id. Images of the class Edema come in few looks: of two
with one look the later is dropped, which no filter sees that looks at one round alone.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from tiny_pipeline import save_tiny_pipeline

from cohort.stage import Stage, write_atomically
from cohort.tables import cohort_schema, images_schema, plan_schema, read_table, synthetic_schema, write_table
from synth.drawing.pipelines import weights_hash

LABELS = ["Effusion", "Hernia", "Edema", "Fibrosis", "Normal"]
GROUPS = {"Effusion": "head", "Hernia": "tail", "Edema": "tail", "Fibrosis": "tail", "Normal": "head"}
SHARES = {"Hernia": 0.35, "Edema": 1.0, "Fibrosis": 0.0, "negative": 0.8}
LOOKS = 40
RULES = ["look", "share"]


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


def fraction(*parts: object) -> float:
    """A number from 0 to below 1 that only depends on ``parts``."""
    return int.from_bytes(hashlib.sha256(":".join(map(str, parts)).encode()).digest()[:6], "big") / 2**48


def write_cohort(folder: Path) -> None:
    """400 images of 400 patients, each scarce finding alone in a few and beside Effusion in some."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({
        "image_id": [f"i{i:03d}" for i in range(400)], "root": "r", "path": [f"{i}.png" for i in range(400)],
        "patient_id": [f"p{i}" for i in range(400)], "study_id": None, "view": "PA",
        "age": rng.integers(20, 80, 400).astype(float), "sex": rng.choice(["M", "F"], 400),
        "split": np.where(np.arange(400) < 320, "train", np.where(np.arange(400) < 360, "val", "test")),
        **dict.fromkeys(LABELS, 0),
    })
    for start, label in ((0, "Hernia"), (20, "Edema"), (40, "Fibrosis"), (60, "Effusion")):
        frame.loc[start:start + 15, label] = 1
    frame.loc[[0, 1, 2, 20, 21, 40], "Effusion"] = 1
    frame["Normal"] = (frame[LABELS].sum(axis=1) == 0).astype(int)
    stage = Stage("prepare", folder, config={}, inputs={})
    stage.begin()
    write_table(frame, folder / "cohort.parquet", cohort_schema(LABELS))
    stage.finish(outputs=["cohort.parquet"], counts={"images": 400}, extra={
        "labels": LABELS, "groups": GROUPS, "roots": {"r": str(folder)}, "salt": "s"})


def write_generator(folder: Path, seed: int = 0) -> None:
    """A complete fine-tuning, with a pipeline of random weights that nobody loads here."""
    stage = Stage("finetune", folder, config={"seed": seed}, inputs={})
    stage.begin()
    save_tiny_pipeline(folder / "pipeline", seed)
    stage.finish(outputs=["pipeline"], counts={})


def build_world(folder: Path, **fill: Any) -> Path:
    """Cohort, generator and configuration of a run; returns the configuration's file."""
    run = folder / "run"
    write_cohort(run / "cohort")
    write_generator(run / "generator")
    critic = Stage("train", run / "train" / "real" / "seed_1000", config={}, inputs={})
    critic.begin()
    write_atomically(critic.folder / "weights", b"w")
    critic.finish(outputs=["weights"], counts={})
    config = folder / "config.yaml"
    config.write_text(json.dumps({"run": "run", "plan": {"total": 60}, "fill": {"rounds": 5, **fill}}))
    return config


class Stages:
    """In place of ``run_launched``: the launched stages as books; ``kill(folder, moment)`` may raise ``Killed``, and
    every image of a run of which ``fails(run)`` holds cannot be made."""

    def __init__(self, kill: Callable[[Path, str], None] = lambda folder, moment: None,
                 fails: Callable[[Path], bool] = lambda run: False) -> None:
        self.kill, self.fails, self.calls = kill, fails, 0

    def __call__(self, words: list[str], processes: int) -> int:
        module, _, config, _, folder = words
        assert yaml.safe_load(Path(config).read_text())["generate"]["num_inference_steps"] == 25
        self.calls += 1
        generates = module == "synth.generate"
        place = Path(folder) / ("images" if generates else "synthetic")
        self.kill(place, "before")
        if generates:
            self._generate(Path(folder), yaml.safe_load(Path(config).read_text())["generate"]["pipeline"])
        else:
            self._filter(Path(folder))
        self.kill(place, "after")
        return 0

    def _generate(self, run: Path, given: str | None) -> None:
        weights = {"weights": weights_hash(Path(given))} if given else {}
        stage = Stage("generate", run / "images", config={"num_inference_steps": 25, **weights},
                      inputs={"plan": run / "plan", "generator": run / "generator"})
        assert not stage.is_complete()
        stage.begin()
        plan = read_table(run / "plan" / "plan.parquet", plan_schema(LABELS))
        failed = np.array([self.fails(run) or fraction("fails", name) < 0.05 for name in plan["sample_id"]])
        images = pd.DataFrame({
            "sample_id": plan["sample_id"], "status": np.where(failed, "error", "ok"),
            "error": np.where(failed, "not finite", None), "path": "images/" + plan["sample_id"] + ".png",
            "sha256": "0", "height": 8, "width": 8, "micro_batch": 4,
        })
        images.loc[failed, ["path", "sha256", "height", "width"]] = None
        for number, path in enumerate(images["path"].dropna()):
            write_atomically(stage.folder / path, b"png")
            if number == 3:
                self.kill(stage.folder, "within")
        write_table(images, stage.folder / "images.parquet", images_schema())
        stage.finish(outputs=["images.parquet"], extra={"provenance": "known", "drawn": len(plan)}, seconds=10.0,
                     counts={"planned": len(plan), "made": int((~failed).sum()), "failed": int(failed.sum())})

    def _filter(self, run: Path) -> None:
        stage = Stage("filter", run / "synthetic", config={},
                      inputs={"plan": run / "plan", "generate": run / "images"})
        assert not stage.is_complete()
        stage.begin()
        self.kill(stage.folder, "within")
        images = read_table(run / "images" / "images.parquet", images_schema())
        assert all((run / "images" / path).is_file() for path in images["path"].dropna())
        plan = read_table(run / "plan" / "plan.parquet", plan_schema(LABELS)).drop(columns="batch")
        made = images[images["status"] == "ok"].merge(plan, on="sample_id", validate="one_to_one")
        passes = np.array([fraction("passes", name) < SHARES[charged]
                           for name, charged in zip(made["sample_id"], made["charged_to"], strict=True)])
        look = made["sample_id"].map(lambda name: int(fraction("look", name) * LOOKS))
        again = look.where(made["charged_to"] == "Edema").duplicated() & (made["charged_to"] == "Edema")
        identity = "synthetic:" + made["sample_id"]
        frame = made.assign(image_id=identity, root="synthetic", patient_id=identity, study_id=None, split="train",
                            look=np.where(again, -1.0, 1.0), share=np.where(passes, 1.0, -1.0),
                            keep=~again & passes, reason=None)
        frame.loc[~frame["keep"], "reason"] = np.where(again[~frame["keep"]], "look", "share")
        schema = synthetic_schema(LABELS, RULES)
        write_table(frame[list(schema.columns)], stage.folder / "synthetic.parquet", schema)
        stage.finish(outputs=["synthetic.parquet"], counts={"made": len(frame), "kept": int(frame["keep"].sum())},
                     extra={"rules": RULES, "roots": {"synthetic": str((run / "images").resolve())}}, seconds=1.0)
