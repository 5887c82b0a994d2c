"""Made-up predictions of several arms on a made-up cohort, and the compare command on them."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
import pandas as pd

from classify.compare import main
from cohort.errors import run_command
from cohort.stage import Stage
from cohort.tables import cohort_schema, predictions_schema, read_table, write_table

GROUPS = {"Effusion": "head", "Nodule": "medium", "Edema": "tail", "Hernia": "tail", "Fibrosis": "tail"}
PREVALENCE = {"Effusion": 0.4, "Nodule": 0.3, "Edema": 0.25, "Hernia": 0.2, "Fibrosis": 0.0}
LABELS = list(GROUPS)
ARMS = ("real", "oversample", "duplicate", "synthetic", "oracle", "permuted")


@dataclass
class Fake:
    """A run folder with a cohort; ``predict`` adds predictions, ``compare`` runs the command."""

    run: Path
    frame: pd.DataFrame
    arms: tuple[str, ...] = ("real", "duplicate", "synthetic")
    n_seeds: int = 3

    def write_cohort(self, groups: dict[str, str] = GROUPS) -> None:
        """Write the cohort's folder anew from the frame."""
        folder = self.run / "cohort"
        for file in folder.glob("*"):
            file.unlink()
        stage = Stage("prepare", folder, config={}, inputs={})
        stage.begin()
        write_table(self.frame, folder / "cohort.parquet", cohort_schema(LABELS))
        stage.finish(outputs=["cohort.parquet"], counts={},
                     extra={"labels": LABELS, "groups": groups, "roots": {"r": "."}, "salt": "s"})

    def predictions(self, arm: str, seed: int, *, gain: float = 0.0) -> pd.DataFrame:
        """Logits that know a little of the labels, and ``gain`` more of the tail; raw and ema."""
        rng = np.random.default_rng([ARMS.index(arm) if arm in ARMS else crc32(arm.encode()), seed])
        truth = self.frame[LABELS].to_numpy(dtype=float, na_value=0.0)
        parts = []
        for weights in ("raw", "ema"):
            part = self.frame.assign(fold=0, arm=arm, seed=seed, weights=weights)
            for at, label in enumerate(LABELS):
                help_ = 1.0 + gain * (GROUPS[label] == "tail")
                part[f"logit_{label}"] = (help_ * truth[:, at] - 1 + 0.7 * rng.normal(size=len(part))).astype("float32")
            parts.append(part[list(predictions_schema(LABELS).columns)])
        return pd.concat(parts, ignore_index=True)

    def predict(self, *, gain: float = 0.0, oracle: float = 0.0, change=None) -> "Fake":
        """Write every arm's and seed's folder; ``change(frame, arm, seed)`` may spoil one."""
        gains = {"synthetic": gain, "oracle": oracle}
        for arm in self.arms:
            for seed in range(self.n_seeds):
                frame = self.predictions(arm, seed, gain=gains.get(arm, 0.0))
                if change is not None:
                    frame = change(frame, arm, seed)
                stage = Stage("predict", self.run / "predictions" / arm / f"seed_{seed}", config={}, inputs={})
                stage.begin()
                write_table(frame, stage.folder / "predictions.parquet")  # validated by the reader
                stage.finish(outputs=["predictions.parquet"], counts={"rows": len(frame)})
        return self

    def compare(self, monkeypatch, *flags: str) -> dict:
        """Run the command; returns the stamp."""
        argv = ["compare", "--run", str(self.run), "--arms", json.dumps(self.arms), "--n_seeds", str(self.n_seeds),
                "--compare.n_draws", "120", *flags]
        monkeypatch.setattr(sys, "argv", argv)
        run_command(main)
        return json.loads((self.run / "comparison" / "_stage.json").read_text())

    def table(self, name: str) -> pd.DataFrame:
        return read_table(self.run / "comparison" / f"{name}.parquet")


def fabricate(folder: Path) -> Fake:
    """120 test and 40 validation patients with two images each; unknown labels; Fibrosis never occurs."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(160), 2)
    frame = pd.DataFrame({
        "image_id": [f"i{n:04}" for n in range(320)], "root": "r", "path": "x.png",
        "patient_id": [f"p{n}" for n in patients], "study_id": None, "view": "PA", "age": 50.0, "sex": "F",
        "split": np.where(patients < 120, "test", "val"),
    })
    for label in LABELS:
        frame[label] = pd.array((rng.random(320) < PREVALENCE[label]).astype(int), dtype="Int8")
    frame.loc[frame.index % 17 == 0, "Nodule"] = pd.NA
    made = Fake(run=folder, frame=frame)
    made.write_cohort()
    return made
