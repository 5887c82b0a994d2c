"""A run that is generated whole in seconds: a cohort of three patients, 24 rows, a pipeline of random weights.

What is tortured is the bookkeeping, which does not know how large a network is.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from diffusers import AutoencoderKL

from cohort.provenance import write_patients
from cohort.stage import Stage
from cohort.tables import batches_schema, cohort_schema, plan_schema, read_table, write_table
from synth.drawing.parts import BATCHES
from synth.learning.fresh import FreshConfig, build_pipeline

LABELS = ["Hernia", "Effusion"]
N_ROWS, BATCH = 24, 2
N_BATCHES = N_ROWS // BATCH
PROMPTS = ("chest radiograph with hernia", "chest radiograph with effusion", "chest radiograph, no finding")


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


def plan_of(n_rows: int, batch: int) -> pd.DataFrame:
    """A plan of ``n_rows`` rows in logical batches of ``batch``, with three prompts."""
    rows = range(n_rows)
    return pd.DataFrame({
        "sample_id": [f"{row * 37 % 256:02x}{row:014x}" for row in rows],
        "prompt": [PROMPTS[row % len(PROMPTS)] for row in rows], "negative_prompt": "", "Hernia": 1, "Effusion": 0,
        "view": "PA", "age": 50.0, "sex": "F", "charged_to": "Hernia", "label_source_id": None, "init_image_id": None,
        "strength": None, "seed": [1000 + row for row in rows], "batch": [row // batch for row in rows], "round": 0,
    })


def write_plan(folder: Path, plan: pd.DataFrame) -> None:
    """A complete plan stage that holds ``plan``."""
    stage = Stage("plan", folder, config={}, inputs={})
    stage.begin()
    write_table(plan, folder / "plan.parquet", plan_schema(LABELS))
    stage.finish(outputs=["plan.parquet"], counts={"planned": len(plan)})


def write_generator(folder: Path) -> None:
    """A complete generator stage with a pipeline of random weights: 16 px, latents at 8x8."""
    stage = Stage("finetune", folder, config={}, inputs={})
    stage.begin()
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, sample_size=16, block_out_channels=(8, 8),
        norm_num_groups=8, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )
    sizes = FreshConfig(block_out_channels=(32, 32), text_width=32, text_layers=1, vocabulary=600)
    build_pipeline(sizes, vae, PROMPTS).save_pretrained(folder / "pipeline", safe_serialization=True)
    write_patients(folder, ["1"], salt="s")
    stage.finish(outputs=["pipeline", "patients.parquet"], counts={})


def build_world(run: Path, config: Path) -> None:
    """Everything that generation needs, and its configuration."""
    write_cohort(run / "cohort")
    write_plan(run / "plan", plan_of(N_ROWS, BATCH))
    write_generator(run / "generator")
    section = {"num_inference_steps": 2, "scheduler": "dpm++"}
    config.write_text(json.dumps({"run": str(run), "threads": 1, "tracker": "none", "generate": section}))


def read_account(folder: Path) -> list[dict[str, Any]]:
    """The rows of a finished folder's account of its batches."""
    return [{str(name): value for name, value in row.items()}
            for row in read_table(folder / BATCHES, batches_schema()).to_dict("records")]
