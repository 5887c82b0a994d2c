"""A cohort and a filter's table of a few noise images, written as their stages would, for the tests of this folder."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from cohort.config import Run
from cohort.provenance import write_patients
from cohort.stage import Stage
from cohort.tables import (
    RECONSTRUCTED,
    Cohort,
    cohort_schema,
    load_cohort,
    synthetic_schema,
    write_table,
)

LABELS = ["Effusion", "Mass", "Hernia"]
GROUPS = {"Effusion": "head", "Mass": "medium", "Hernia": "tail"}
SIZE = 32


def write_cohort(folder: Path, *, n: int = 60, shared_patient: bool = False) -> Cohort:
    """``n`` images of 32 px: 2/3 train; four train images carry Hernia, two of them with Effusion as well."""
    rng = np.random.default_rng(0)
    images = folder / "pixels"
    images.mkdir(parents=True)
    split = np.where(np.arange(n) < n * 2 // 3, "train", np.where(np.arange(n) < n * 5 // 6, "val", "test"))
    effusion, mass, hernia = (rng.random(n) < 0.4).astype(int), (rng.random(n) < 0.1).astype(int), np.zeros(n, int)
    hernia[[0, 1, 2, 3, n - 1]] = 1
    effusion[:6], mass[:6] = [1, 1, 0, 0, 1, 0], 0
    for i in range(n):
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)).save(images / f"{i}.png")
    patients = [f"p{i // 2}" for i in range(n)]
    if shared_patient:
        patients[n - 1] = patients[0]
    frame = pd.DataFrame({
        "image_id": [f"i{i}" for i in range(n)], "root": "nih", "path": [f"{i}.png" for i in range(n)],
        "patient_id": patients, "study_id": None, "view": ["PA" if i % 3 else "AP" for i in range(n)],
        "age": 50.0, "sex": "F", "split": split, "Effusion": effusion, "Mass": mass, "Hernia": hernia,
    }).astype(dict.fromkeys(LABELS, "Int8"))
    frame.loc[frame.index[10:13], "Mass"] = pd.NA
    stage = Stage("cohort", folder / "cohort", config={"n": n}, inputs={})
    stage.begin()
    write_table(frame, stage.folder / "cohort.parquet", cohort_schema(LABELS))
    stage.finish(outputs=["cohort.parquet"], counts={"rows": n}, extra={
        "labels": LABELS, "groups": GROUPS, "roots": {"nih": str(images)}, "salt": "s", "patient_ids": "given"})
    return load_cohort(stage.folder)


def write_further(run: Path, role: str, *, n: int = 40) -> Cohort:
    """A further cohort of ``n`` train images of other patients: every second one carries Hernia, labels at random."""
    rng = np.random.default_rng(2 if role == "oracle" else 3)
    images = run / f"pixels of {role}"
    images.mkdir(parents=True)
    for i in range(n):
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)).save(images / f"{i}.png")
    frame = pd.DataFrame({
        "image_id": [f"{role}{i}" for i in range(n)], "root": role, "path": [f"{i}.png" for i in range(n)],
        "patient_id": [f"{role}-p{i}" for i in range(n)], "study_id": None, "view": ["PA", "AP"] * (n // 2),
        "age": 50.0, "sex": "F", "split": "train", "Effusion": rng.integers(0, 2, n), "Mass": rng.integers(0, 2, n),
        "Hernia": [1, 0] * (n // 2),
    }).astype(dict.fromkeys(LABELS, "Int8"))
    stage = Stage("prepare", run / role, config={"n": n}, inputs={})
    stage.begin()
    write_table(frame, stage.folder / "cohort.parquet", cohort_schema(LABELS))
    stage.finish(outputs=["cohort.parquet"], counts={"rows": n}, extra={
        "labels": LABELS, "groups": GROUPS, "roots": {role: str(images)}, "salt": role, "patient_ids": "given"})
    return load_cohort(stage.folder)


def write_reconstructed(run: Path, cohort: Cohort) -> None:
    """A finished stage with a row, and no image, for each training image of the cohort and of the oracle."""
    oracle = load_cohort(run / "oracle")
    frame = pd.concat([cohort.split("train"), oracle.split("train")], ignore_index=True)
    frame = frame.assign(image_id=RECONSTRUCTED + frame["image_id"], root="reconstructed")
    stage = Stage("reconstruct", run / "reconstructed", config={}, inputs={})
    stage.begin()
    write_table(frame, stage.folder / "reconstructed.parquet", cohort_schema(LABELS))
    stage.finish(outputs=["reconstructed.parquet"], counts={"images": len(frame)},
                 extra={"roots": {"reconstructed": str(stage.folder)}})


def write_stages(cohort: Cohort) -> Run:
    """A run of three seeds beside the cohort, with every stage whose images an arm may hold."""
    folder = cohort.folder.parent
    write_synthetic(folder, cohort, per_source=3)
    for role in ("oracle", "external"):
        write_further(folder, role)
    write_reconstructed(folder, cohort)
    return Run(run=str(folder), n_seeds=3, threads=1)


def write_synthetic(run: Path, cohort: Cohort, *, per_source: int = 3, dropped: int = 1) -> pd.DataFrame:
    """``per_source`` kept images per Hernia image of the training split and as many negatives; some dropped ones."""
    rng = np.random.default_rng(1)
    train = cohort.split("train")
    rows = []
    for _, source in train[train["Hernia"] == 1].iterrows():
        for k in range(per_source + dropped):
            for charged in ("Hernia", "negative"):
                labels = {label: source[label] for label in LABELS} | ({"Hernia": 0} if charged == "negative" else {})
                rows.append(labels | {"label_source_id": source["image_id"], "charged_to": charged,
                                      "keep": k < per_source, "view": source["view"], "seed": len(rows) // 2})
    frame = pd.DataFrame(rows)
    frame["sample_id"] = [f"{i:016x}" for i in rng.permutation(len(frame))]
    frame["image_id"] = frame["patient_id"] = "synthetic:" + frame["sample_id"]
    frame["path"] = frame["sample_id"] + ".png"
    frame = frame.assign(root="synthetic", study_id=None, age=50.0, sex="F", split="train", round=0, score=1.0,
                         label_agreement=np.where(rng.random(len(frame)) < 0.2, np.nan, rng.normal(size=len(frame))),
                         reason=np.where(frame["keep"], None, "score"))
    (run / "images").mkdir(parents=True, exist_ok=True)
    for path in frame["path"]:
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)).save(run / "images" / path)
    schema = synthetic_schema(LABELS, ["score", "label_agreement"])
    stage = Stage("filter", run / "synthetic", config={}, inputs={})
    stage.begin()
    write_table(frame[list(schema.columns)], stage.folder / "synthetic.parquet", schema)
    write_patients(stage.folder, ["generator-patient"], salt=cohort.salt)
    stage.finish(outputs=["synthetic.parquet", "patients.parquet"], counts={"made": len(frame)}, extra={
        "rules": ["score", "label_agreement"], "roots": {"synthetic": str(run / "images")}})
    return frame
