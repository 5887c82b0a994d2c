"""Complete runs of a rehearsal, made up: predictions whose gains are planted, and a stamp for every stage."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from withheld_toys import LABELS, toy_frame, write_toy

from classify.rehearsal.choices import Cell
from cohort.stage import Stage
from cohort.tables import load_cohort, predictions_schema, write_table
from cohort.withholding.cohorts import Thinning, write_thinned

STRENGTH = {"real": 1.0, "duplicate": 1.0, "synthetic": 1.6, "oracle": 2.2, "oracle-full": 2.6}
"""How well each arm's logits know the labels."""


def write_parent(folder: Path, *, n_patients: int = 900) -> Path:
    """A cohort with a picture behind every training image that a page may show."""
    frame = toy_frame(n_patients, seed=8)
    Image.fromarray(np.full((32, 32), 90, dtype=np.uint8)).save(folder.parent / "one.png")
    return write_toy(folder, frame.assign(path="../one.png"))


def write_run(
    folder: Path, parent: Path, cell: Cell, arms: tuple[str, ...], *, strength: dict[str, float] = STRENGTH,
    truth: Path | None = None
) -> Path:
    """One run: thinned cohort, images judged, arms counted, and predictions that are as good as ``strength`` says."""
    write_thinned(parent, Thinning(findings=cell.findings, level=cell.level, seed=cell.seed), thinned=folder / "cohort",
                  withheld=folder / "oracle", truth=truth)
    cohort = load_cohort(folder / "cohort")
    train = cohort.split("train").head(12)
    (folder / "images").mkdir()
    Image.fromarray(np.full((32, 32), 160, dtype=np.uint8)).save(folder / "images" / "made.png")
    made = train.assign(charged_to=cell.findings[0], keep=[True] * 9 + [False] * 3, reason=[None] * 9 + ["sanity"] * 3,
                        path="made.png")
    for stage, name, table in (("filter", "synthetic", made), ("finetune", "generator", pd.DataFrame({"step": [1]}))):
        _finish(Stage(stage, folder / name, config={}, inputs={"cohort": folder / "cohort"}), f"{name}.parquet", table,
                extra={"provenance": "unknown"})
    for arm in arms:
        _finish(Stage("arm", folder / "arms" / arm / "seed_0", config={}, inputs={}), "arm.parquet", made,
                counts={"new_real": 7, "unfilled": 1},
                extra={"tail_seen": {cell.findings[0]: {"slots": 40, "synthetic": 18, "weight": 40.0}}})
        stage = Stage("predict", folder / "predictions" / arm / "seed_0", config={},
                      inputs={"cohort": folder / "cohort"})
        _finish(stage, "predictions.parquet", _predictions(cohort.split("val", "test"), arm, cell, strength[arm]))
    return folder


def _predictions(frame: pd.DataFrame, arm: str, cell: Cell, strength: float) -> pd.DataFrame:
    rng = np.random.default_rng([cell.seed, cell.level])  # the same noise in every arm: they are paired
    columns = {f"logit_{label}": (strength * frame[label].astype(float) + rng.normal(size=len(frame))).astype("float32")
               for label in LABELS}
    told = frame.assign(fold=0, arm=arm, seed=0, weights="ema", **columns)
    return told[list(predictions_schema(LABELS).columns)]


def _finish(stage: Stage, name: str, table: pd.DataFrame, *, counts: dict[str, int] | None = None,
            extra: dict[str, object] | None = None) -> None:
    stage.begin()
    write_table(table, stage.folder / name)
    stage.finish(outputs=[name], counts=counts or {}, extra=extra)
