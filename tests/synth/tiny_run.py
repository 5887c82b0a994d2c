"""A tiny run to generate in: a cohort of three patients, a plan of ten rows, a pipeline of random weights.

Its configuration is a JSON file beside the run's folder, with the same name.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from torture_world import write_cohort

from cohort.provenance import write_patients
from cohort.stage import Stage
from cohort.tables import batches_schema, images_schema, plan_schema, read_table, write_table
from synth import generate

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


def build_run(folder: Path, saved: Path, name: str = "one", *, plan: pd.DataFrame | None = None,
              patients: Sequence[str] = ("1",), **section: Any) -> Path:
    """A run ``name`` in ``folder`` with cohort, plan and the generator ``saved``; returns its config's path."""
    run = folder / name
    write_cohort(run / "cohort")
    write_plan(run / "plan", plan_frame() if plan is None else plan)
    write_generator(run / "generator", patients, saved)
    config = folder / f"{name}.yaml"
    config.write_text(json.dumps({"run": name, "threads": 1, "generate": SECTION | section}), encoding="utf-8")
    return config


def images_folder(config: Path) -> Path:
    """The folder of a run's images."""
    return config.with_suffix("") / "images"


def run_here(config: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> pd.DataFrame:
    """Run the stage in this process and return its table."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(sys, "argv", ["generate.py", "--config", str(config), *flags])
    generate.main()
    return images_of(config)


def images_of(config: Path) -> pd.DataFrame:
    """The table of a run's images."""
    return read_table(images_folder(config) / "images.parquet", images_schema())


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
    stamp: dict[str, Any] = json.loads((images_folder(config) / "_stage.json").read_text(encoding="utf-8"))
    return stamp


def batches_of(config: Path) -> pd.DataFrame:
    """The account of a run's batches."""
    return read_table(images_folder(config) / "batches.parquet", batches_schema())


def files_of(config: Path) -> dict[str, bytes]:
    """What must be equal between runs, name to bytes: everything but the stamp and the account of who drew."""
    folder = images_folder(config)
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*")
            if file.is_file() and file.name not in ("_stage.json", "batches.parquet")}


def pixels(config: Path) -> np.ndarray:
    """All images of a run, int16 (n, height, width)."""
    files = [images_folder(config) / path for path in images_of(config)["path"]]
    return np.stack([np.asarray(Image.open(file)) for file in files]).astype(np.int16)
