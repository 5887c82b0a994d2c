"""A fabricated run for tests of the filter: a cohort, a plan, images whose truth is known, and a critic."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from PIL import Image

from classify.learning.models import Card, build_classifier, save_card, save_weights
from cohort.provenance import write_patients
from cohort.stage import Stage, hash_file
from cohort.tables import RECONSTRUCTED, cohort_schema, images_schema, load_cohort, plan_schema, write_table

LABELS = ["Effusion", "Hernia"]
SIZE = 32
SALT = "pepper"
ORDER = ["blank", "saturated", "label_agreement"]
FLAT, SHOWN, HIDDEN = "flat", "shown", "hidden"


class Pixels:
    """An encoder for tests: 4 x 4 mean pixels."""

    name, sha256, resize, num_features, width, key = "pixels", "0" * 64, "4 px, mean", 16, 16, "1"

    def __init__(self, device: object = "cpu") -> None:
        self.device = device

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images[:, None].float() / 255, 4).flatten(1)

    def read(self, images: np.ndarray) -> np.ndarray:
        return self.forward(torch.from_numpy(images)).numpy()


class Patch:
    """A critic for tests: Hernia's logit is the brightness of a corner over that of the rest."""

    key, width = "1", len(LABELS)

    def __init__(self, folder: Path, labels: list[str], *, name: str, device: object) -> None:
        self.name = name

    def read(self, images: np.ndarray) -> np.ndarray:
        contrast = images[:, :8, :8].mean(axis=(1, 2)) - images[:, 16:].mean(axis=(1, 2))
        return np.stack([np.zeros(len(images)), contrast / 10], axis=1).astype(np.float32)


def radiograph(rng: np.random.Generator, *, hernia: bool) -> np.ndarray:
    """Grey noise; a bright corner is the finding."""
    pixels = rng.normal(110, 25, (SIZE, SIZE))
    pixels[:8, :8] += 70 * hernia
    return np.clip(pixels, 1, 254).astype(np.uint8)


def write_cohort(folder: Path, rng: np.random.Generator) -> None:
    rows = []
    (folder / "pixels").mkdir(parents=True)
    for split, n in (("train", 80), ("val", 60), ("test", 4)):
        for i in range(n):
            hernia = i % 2 == 0
            Image.fromarray(radiograph(rng, hernia=hernia)).save(folder / "pixels" / f"{split}{i}.png")
            rows.append({"image_id": f"{split}{i}", "root": "r", "path": f"pixels/{split}{i}.png",
                         "patient_id": f"{split}-{i // 2}", "study_id": None, "view": "PA", "age": 50.0, "sex": "F",
                         "split": split, "Effusion": None if i == 5 else 0, "Hernia": int(hernia)})
    stage = Stage("prepare", folder, config={}, inputs={})
    stage.begin()
    write_table(pd.DataFrame(rows), folder / "cohort.parquet", cohort_schema(LABELS))
    stage.finish(outputs=["cohort.parquet"], counts={"kept": len(rows)}, extra={
        "labels": LABELS, "groups": {"Effusion": "head", "Hernia": "tail"}, "roots": {"r": str(folder)}, "salt": SALT})


def made(rng: np.random.Generator) -> list[tuple[str, str, np.ndarray | None]]:
    """What was asked, a name for the case, and the image that came."""
    flat = np.full((SIZE, SIZE), 100, np.uint8)
    return [
        *[("Hernia", SHOWN, radiograph(rng, hernia=True)) for _ in range(14)],
        *[("Hernia", HIDDEN, radiograph(rng, hernia=False)) for _ in range(6)],
        *[("negative", HIDDEN, radiograph(rng, hernia=False)) for _ in range(14)],
        *[("negative", SHOWN, radiograph(rng, hernia=True)) for _ in range(4)],
        *[("Hernia", FLAT, flat) for _ in range(2)],
        ("Hernia", "failed", None),
    ]


def write_plan_and_images(run: Path, rng: np.random.Generator) -> None:
    rows, files = [], []
    noises = {"Hernia": itertools.count(), "negative": itertools.count()}  # shared in pairs
    for i, (charged_to, case, pixels) in enumerate(made(rng)):
        sample_id = f"{i:02x}" + f"{i:014x}"
        rows.append({"sample_id": sample_id, "prompt": case, "negative_prompt": "", "Effusion": 0,
                     "Hernia": int(charged_to == "Hernia"), "view": "PA", "age": 60.0, "sex": "M",
                     "charged_to": charged_to, "label_source_id": "train0", "init_image_id": None, "strength": None,
                     "seed": next(noises[charged_to]), "batch": 0, "round": 0})
        row = {"sample_id": sample_id, "status": "ok", "error": None, "path": f"images/{sample_id}.png", "sha256": None,
               "height": SIZE, "width": SIZE, "micro_batch": 8}
        if pixels is None:
            row |= {"status": "error", "error": "out of memory", "path": None, "height": None, "width": None}
        else:
            file = run / "images" / row["path"]
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
            row["sha256"] = hash_file(file)
        files.append(row)
    plan = Stage("plan", run / "plan", config={}, inputs={})
    plan.begin()
    write_table(pd.DataFrame(rows), run / "plan" / "plan.parquet", plan_schema(LABELS))
    plan.finish(outputs=["plan.parquet"], counts={"planned": len(rows)})
    images = Stage("generate", run / "images", config={}, inputs={"generator": run / "generator"})
    images.begin()
    order = rng.permutation(len(files))
    write_table(pd.DataFrame(files).iloc[order], run / "images" / "images.parquet", images_schema())
    images.finish(outputs=["images.parquet"], counts={"planned": len(files)}, extra={"provenance": "checked"})


def write_learnt(folder: Path, stage_name: str, patients: list[str], *, critic: bool = False) -> None:
    """A complete stage that has learnt from ``patients``; a critic gets random weights."""
    stage = Stage(stage_name, folder, config={}, inputs={})
    stage.begin()
    outputs = ["patients.parquet"]
    if critic:
        torch.manual_seed(len(str(folder)))
        save_weights(build_classifier("convnext_atto", len(LABELS)).state_dict(), folder / "ema.safetensors")
        save_card(Card(model="convnext_atto", labels=tuple(LABELS), image_size=SIZE, mean=0.5, std=0.25), folder)
        outputs += ["ema.safetensors", "card.json"]
    write_patients(folder, patients, salt=SALT)
    stage.finish(outputs=outputs, counts={})


def write_reconstructed(run: Path, generator: Path) -> Path:
    """A complete stage with the train images, darkened and in another order; returns its folder."""
    frame = load_cohort(run / "cohort").split("train").iloc[::-1]
    stage = Stage("reconstruct", run / "reconstructed", config={}, inputs={"generator": generator})
    stage.begin()
    for image, path in zip(frame["image_id"], frame["path"], strict=True):
        with Image.open(run / "cohort" / path) as pixels:
            pixels.point(lambda grey: grey // 2).save(stage.folder / f"{image}.png")
    again = frame.assign(image_id=RECONSTRUCTED + frame["image_id"], root="reconstructed",
                         path=frame["image_id"] + ".png")
    write_table(again, stage.folder / "reconstructed.parquet", cohort_schema(LABELS))
    stage.finish(outputs=["reconstructed.parquet"], counts={"images": len(again)},
                 extra={"roots": {"reconstructed": str(stage.folder)}})
    return stage.folder


def build_run(root: Path, **section: object) -> Path:
    """A run with everything that the filter reads; returns its config, whose section ``filter`` may be told."""
    rng, run = np.random.default_rng(0), root / "run"
    write_cohort(run / "cohort", rng)
    write_learnt(run / "generator", "finetune", ["train-0"])
    write_plan_and_images(run, rng)
    write_learnt(run / "train" / "real" / "seed_1000", "train", ["train-1", "train-2"], critic=True)
    config = root / "c.yaml"
    chosen = section or {"encoders": ["pixels"], "rules": dict.fromkeys(ORDER)}
    config.write_text(yaml.safe_dump({"run": "run", "threads": 1, "filter": chosen}, sort_keys=False))
    return config
