"""A prepared cohort of patients who exist in tables only."""

from pathlib import Path

import numpy as np
import pandas as pd

from cohort.stage import Stage
from cohort.tables import cohort_schema, write_table
from cohort.vocabulary.labels import assign_groups, count_labels

LABELS = ["Effusion", "Mass", "Nodule", "Hernia"]
SHARES = {"Effusion": 0.3, "Mass": 0.12, "Nodule": 0.1, "Hernia": 0.005}


def toy_frame(n_patients: int, *, seed: int, prefix: str = "p") -> pd.DataFrame:
    """One to five images per patient; findings cling to patients, and Mass likes the company of Effusion."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(n_patients):
        split = ("train", "train", "train", "val", "test")[number % 5]
        has = {label: rng.random() < share for label, share in SHARES.items()}
        has["Mass"] |= has["Effusion"] and rng.random() < 0.2
        for visit in range(1 + rng.integers(5)):
            rows.append({
                "image_id": f"{prefix}{number}-{visit}", "root": "toy", "path": f"{prefix}{number}-{visit}.png",
                "patient_id": f"{prefix}{number}", "study_id": None, "view": "PA", "age": 50.0, "sex": "F",
                "split": split, **{label: int(has[label] and rng.random() < 0.8) for label in LABELS},
            })
    return pd.DataFrame(rows)


def write_toy(folder: Path, frame: pd.DataFrame, *, salt: str = "pepper") -> Path:
    """``frame`` as a prepared cohort in ``folder``."""
    groups = assign_groups(frame, LABELS)
    stage = Stage("prepare", folder, config={}, inputs={})
    stage.begin()
    write_table(frame, folder / "cohort.parquet", cohort_schema(LABELS))
    write_table(count_labels(frame, LABELS, groups), folder / "counts.parquet")
    stage.finish(outputs=["cohort.parquet"], counts={"kept": len(frame)}, extra={
        "labels": LABELS, "groups": groups, "roots": {"toy": str(folder)}, "salt": salt, "source": "toy"})
    return folder
