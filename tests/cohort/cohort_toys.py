"""Tiny releases and folders for the cohort's tests, and a way to run a command as a user does."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cohort.errors import run_command
from cohort.vocabulary.labels import NIH_14

HEADER_2020 = ("Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
               "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]")
HEADER_2017 = HEADER_2020 + ","
SPELT = [label.replace(" ", "_") for label in NIH_14.labels]


def toy_rows(n_patients: int = 40, *, seed: int = 0, images_each: int = 2) -> list[dict]:
    """Rows of a release; patient p is in test when p is divisible by 5, each label is carried by several patients."""
    rng = np.random.default_rng(seed)
    rows = []
    for patient in range(1, n_patients + 1):
        for follow_up in range(images_each):
            present = {SPELT[patient % 14], *(label for label in SPELT if rng.random() < 0.15)}
            findings = "|".join(sorted(present)) if rng.random() < 0.8 else "No Finding"
            rows.append({"name": f"{patient:08d}_{follow_up:03d}.png", "findings": findings, "patient": str(patient),
                         "age": str(20 + patient), "sex": "FM"[patient % 2], "view": ("PA", "AP")[follow_up % 2],
                         "split": "train" if patient % 5 else "test"})
    return rows


def write_image(file: Path, seed: int = 0) -> None:
    """A small grey PNG of noise."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 10), dtype=np.uint8)).save(file)


def write_release(root: Path, rows: list[dict], *, year: int = 2020, parts: int = 1, lists: bool = True) -> Path:
    """A release below ``root``: one image folder or several, either year's label file, with or without split lists."""
    lines = [HEADER_2020 if year == 2020 else HEADER_2017]
    for number, row in enumerate(rows):
        folder = "images" if parts == 1 else f"images_{1 + number % parts:03d}/images"
        write_image(root / folder / row["name"], seed=number)
        age = row["age"] if year == 2020 else f"{int(row['age']):03d}Y"
        lines.append(f"{row['name']},{row['findings']},0,{row['patient']},{age},{row['sex']},{row['view']},12,10,.1,.1"
                     + ("" if year == 2020 else ","))
    (root / f"Data_Entry_2017{'_v2020' if year == 2020 else ''}.csv").write_text("\n".join(lines) + "\n")
    for split, name in (("train", "train_val_list.txt"), ("test", "test_list.txt")) if lists else ():
        names = [row["name"] for row in rows if row["split"] == split]
        (root / name).write_text("\n".join(names) + "\n")
    return root


def label_file(root: Path) -> Path:
    """The release's label file."""
    return next(root.glob("Data_Entry_2017*.csv"))


def run_as_command(main: Callable[[], None], *argv: object) -> int:
    """Exit code of ``main`` run as a command with these arguments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command", *map(str, argv)])
        try:
            run_command(main)
        except SystemExit as left:
            return int(left.code or 0)
    return 0


def toy_frame(n_patients: int, labels: list[str], *, seed: int, rate: float = 0.1) -> pd.DataFrame:
    """Rows of 1 to 5 images per patient with random labels, a few of them unknown."""
    rng = np.random.default_rng(seed)
    patients = np.repeat([f"p{n}" for n in range(n_patients)], rng.integers(1, 6, n_patients))
    frame = pd.DataFrame({"image_id": [f"i{n}" for n in range(len(patients))], "patient_id": patients})
    for label in labels:
        values = pd.array(rng.random(len(frame)) < rate, dtype="boolean").astype("Int8")
        values[rng.random(len(frame)) < 0.05] = pd.NA
        frame[label] = values
    return frame
