"""A finished run to export, fabricated: accepted and dropped images, a tiny generator, and what a filter measures."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from filter_world import LABELS, write_cohort, write_plan_and_images
from tiny_pipeline import save_tiny_pipeline

from cohort.errors import run_command
from cohort.stage import Stage
from cohort.tables import read_table, synthetic_schema, write_table
from synth.export import main

RULES = ["blank", "realism", "memorisation"]


def write_filtered(run: Path, *, keep_every: int = 2) -> None:
    """A complete filter that keeps every second image, and has measured what filters measure."""
    images = read_table(run / "images" / "images.parquet")
    made = images[images["status"] == "ok"].sort_values("sample_id", ignore_index=True)
    plan = read_table(run / "plan" / "plan.parquet")
    made = made.merge(plan.drop(columns="batch"), on="sample_id")
    keep = np.arange(len(made)) % keep_every == 0
    identity = "synthetic:" + made["sample_id"]
    frame = made.assign(image_id=identity, root="synthetic", study_id=None, split="train", patient_id=identity,
                        blank=np.where(keep, 1.5, -2.0), realism=-0.5, memorisation=np.nan, keep=keep,
                        reason=np.where(keep, None, "blank"))
    schema = synthetic_schema(LABELS, RULES)
    fidelity = pd.DataFrame([
        {"name": "all", "set": which, "metric": metric, "value": value, "spread": None, "n_real": 80,
         "n_synthetic": 20, "subset": None, "reason": reason, "encoder": "pixels", "encoder_sha256": "0" * 64,
         "resize": "4 px"}
        for which, metric, value, reason in (("kept", "KID", 0.125, None), ("real floor", "KID", 0.001, None),
                                             ("kept", "FID", None, "too few"), ("real floor", "FID", None, "too few"))])
    memorised = pd.DataFrame([{"share": 0.5, "low": 0.25, "high": 0.75, "if_all_copied": 0.875, "n": 38,
                               "n_per_side": 30, "reason": None}])
    stage = Stage("filter", run / "synthetic", config={}, inputs={
        "cohort": run / "cohort", "plan": run / "plan", "generate": run / "images"})
    stage.begin()
    write_table(frame[list(schema.columns)], stage.folder / "synthetic.parquet", schema)
    write_table(fidelity, stage.folder / "fidelity.parquet")
    write_table(memorised, stage.folder / "memorised.parquet")
    stage.finish(outputs=["synthetic.parquet", "fidelity.parquet", "memorised.parquet"],
                 counts={"kept": int(keep.sum())}, extra={"rules": RULES})


def build(root: Path, *, source: str = "phantom") -> Path:
    """A finished run with a tiny generator of its own."""
    rng, run = np.random.default_rng(0), root / "run"
    write_cohort(run / "cohort", rng)
    stamp = json.loads((run / "cohort" / "_stage.json").read_text())
    stamp["config"] = {"source": source}
    (run / "cohort" / "_stage.json").write_text(json.dumps(stamp))
    stage = Stage("finetune", run / "generator", config={"batch_size": 8}, inputs={"cohort": run / "cohort"})
    stage.begin()
    save_tiny_pipeline(run / "generator" / "pipeline")
    stage.finish(outputs=["pipeline"], counts={"steps": 5, "train_images": 80}, extra={"provenance": "known"})
    write_plan_and_images(run, rng)
    write_filtered(run)
    return run


def export(run: Path, out: Path, *words: str, api: Any = None) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["export", "--run", str(run), "--out", str(out), *words])
        try:
            run_command(lambda: main(api))
        except SystemExit as left:
            return int(left.code or 0)
    return 0


class Hub:
    """Stands in for the hub, and remembers what was asked of it."""

    def __init__(self, *, private: bool = False, error: Exception | None = None) -> None:
        self.private, self.error = private, error
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def create_repo(self, repo_id: str, **settings: Any) -> None:
        self.calls.append(("create", {"repo_id": repo_id, **settings}))

    def repo_info(self, repo_id: str, **settings: Any) -> Any:
        return SimpleNamespace(private=self.private)

    def upload_folder(self, **settings: Any) -> None:
        if self.error:
            raise self.error
        self.calls.append(("upload", settings))
