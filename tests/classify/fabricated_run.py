"""A small complete run folder, every table written through its schema and every stage with its stamp, in a second."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from classify.arms.amounts import plain_arms
from classify.comparison.controls import COLUMNS, control_sentence
from classify.comparison.metrics import METRICS
from classify.comparison.pairs import ABOUT, default_pairs, slot_rivals
from classify.comparison.recovered import recovered_sentence
from cohort.config import Run
from cohort.stage import Stage
from cohort.tables import (
    arm_schema,
    cohort_schema,
    comparison_schema,
    images_schema,
    plan_schema,
    synthetic_schema,
    write_table,
)

HOSTILE = "<script>alert('x')</script> $\\frac{|"
LABELS = {"Hernia": "tail", HOSTILE: "tail", "Pneumonia": "tail", "Nodule": "medium", "Effusion": "head"}
ARMS = ("real", "oversample", "duplicate", "synthetic")
ALL_ARMS = tuple(ABOUT)
CONTROLLED = {"Hernia": "tail", "Pneumoperitoneum": "tail", "Nodule": "medium", "Effusion": "head",
              "Infarction": "control", "Pulmonary Embolism": "control"}
SUPPORT = {"Hernia": (5, 4), HOSTILE: (9, 7), "Pneumonia": (30, 26), "Nodule": (160, 120), "Effusion": (420, 260),
           "Pneumoperitoneum": (40, 31), "Infarction": (28, 21), "Pulmonary Embolism": (30, 24)}
GROUP_SUPPORT = {"tail": (44, 36), "medium": (160, 120), "head": (420, 260), "all": (600, 340)}
GAINS = {"oracle": 0.09, "synthetic": 0.05, "external": 0.07, "unfiltered": 0.02, "synthetic-then-real": 0.055}
TOO_FEW = "fewer than 10 positive patients"


def build_run(folder: Path, *, seed: int = 0, labels: dict[str, str] = LABELS, arms: Sequence[str] = ARMS,
              about: dict[str, Any] | None = None) -> Run:
    """A small complete run folder, every table through its schema, every stage with its stamp.

    ``about``: what the source says of the cohort, for its stamp.
    """
    rng, run = np.random.default_rng(seed), Run(run=str(folder), seed=3, arms=tuple(arms))
    build_cohort(folder, labels, rng, about or {})
    build_plan(folder, labels, rng)
    build_training(folder, rng)
    build_synthetic(folder, labels, rng)
    build_arms(folder, labels, rng, arms)
    build_comparison(folder, labels, rng, arms)
    endpoint = {"metric": "AP", "group": "tail", "arm": "synthetic", "rival": "duplicate", "weights": "ema"}
    (folder / "endpoint.json").write_text(json.dumps({"endpoint": endpoint, "sha256": "ab" * 32}))
    return run


def picture(file: Path, rng: np.random.Generator) -> None:
    """A smooth 32 x 32 grey PNG."""
    file.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    Image.fromarray(np.uint8(np.clip(200 * np.exp(-((x - rng.normal() / 4) ** 2 + y**2)), 0, 255))).save(file)


def people(n: int, labels: dict[str, str], rng: np.random.Generator) -> dict[str, Any]:
    """View, age, sex and label columns of n rows."""
    return {"view": rng.choice(["PA", "AP"], n), "age": rng.integers(20, 90, n).astype(float),
            "sex": rng.choice(["M", "F"], n), **{label: rng.integers(0, 2, n) for label in labels}}


def build_cohort(folder: Path, labels: dict[str, str], rng: np.random.Generator, about: dict[str, Any]) -> None:
    n = 24
    frame = pd.DataFrame({"image_id": [f"r{i:03}" for i in range(n)], "root": "all", "study_id": None,
                          "path": [f"r{i:03}.png" for i in range(n)], "patient_id": [f"p{i}" for i in range(n)],
                          "split": ["train"] * 16 + ["val"] * 4 + ["test"] * 4, **people(n, labels, rng)})
    frame.loc[:3, list(labels)] = 0
    for path in frame["path"]:
        picture(folder / "pictures" / path, rng)
    stage = Stage("prepare", folder / "cohort", config={"source": "toy"}, inputs={})
    stage.begin()
    write_table(frame, stage.folder / "cohort.parquet", cohort_schema(list(labels)))
    stage.finish(outputs=["cohort.parquet"], counts={"images": n}, extra={
        "labels": list(labels), "groups": labels, "roots": {"all": str(folder / "pictures")}, "salt": "s",
        "patient_ids": "image", "source": "Toy & Co", "label_space": "toy", **about})


def build_plan(folder: Path, labels: dict[str, str], rng: np.random.Generator) -> None:
    tail = [label for label, group in labels.items() if group == "tail"]
    charged = [label for label in tail for _ in range(6)] + ["negative"] * 6
    n = len(charged)
    frame = pd.DataFrame({
        "sample_id": [f"{i:016x}" for i in range(n)], "prompt": [f"a radiograph of {c}, {HOSTILE}" for c in charged],
        "negative_prompt": "blurry", **people(n, labels, rng), "charged_to": charged, "label_source_id": "r005",
        "init_image_id": None, "strength": None, "seed": range(n), "batch": 0, "round": 0})
    budget = pd.DataFrame([
        {"label": label, "group": group, "n_real": SUPPORT.get(label, (9, 9))[0], "prevalence": 0.004,
         "target": 6 if group == "tail" else 0, "charged": 6 if group == "tail" else 0, "carried": 8,
         "reason": "capped at 2.0 per real image" if label == "Hernia" else None} for label, group in labels.items()])
    stage = Stage("plan", folder / "plan", config={"rule": "floor", "total": n}, inputs={"cohort": folder / "cohort"})
    stage.begin()
    write_table(frame, stage.folder / "plan.parquet", plan_schema(list(labels)))
    write_table(budget, stage.folder / "budget.parquet")
    stage.finish(outputs=["plan.parquet", "budget.parquet"], counts={"planned": n})


def history(rng: np.random.Generator, *, steps: int = 300, **columns: float) -> pd.DataFrame:
    """Falling noisy curves, one column per start value."""
    step = np.arange(1, steps + 1)
    return pd.DataFrame({"step": step, **{name: start * (0.25 + np.exp(-step / 80)) + rng.normal(0, 0.02, steps)
                                          for name, start in columns.items()}})


def build_training(folder: Path, rng: np.random.Generator) -> None:
    stage = Stage("finetune", folder / "generator", config={"steps": 300}, inputs={"plan": folder / "plan"})
    stage.begin()
    table = history(rng, loss=1, val_loss=1, val_head=0.9, val_medium=1, val_tail=1.2)
    table.loc[table["step"] % 50 != 0, [c for c in table if c.startswith("val")]] = np.nan
    write_table(table, stage.folder / "history.parquet")
    stage.finish(outputs=["history.parquet"], counts={"steps": 300}, seconds=1800,
                 extra={"text_encoder": {"provenance": "unknown"}})


def build_synthetic(folder: Path, labels: dict[str, str], rng: np.random.Generator) -> None:
    plan = pd.read_parquet(folder / "plan" / "plan.parquet")
    n, paths = len(plan), [f"images/{s[:2]}/{s}.png" for s in plan["sample_id"]]
    ok = np.arange(n) != 1
    for path in np.array(paths)[ok]:
        picture(folder / "images" / path, rng)
    images = pd.DataFrame({"sample_id": plan["sample_id"], "status": np.where(ok, "ok", "error"),
                           "error": np.where(ok, None, "out of memory"), "path": paths, "sha256": "0" * 64,
                           "height": 32, "width": 32, "micro_batch": 4})
    stage = Stage("generate", folder / "images", config={"steps": 25}, inputs={"plan": folder / "plan"})
    stage.begin()
    write_table(images, stage.folder / "images.parquet", images_schema())
    stage.finish(outputs=["images.parquet"], counts={"planned": n, "made": n - 1, "failed": 1}, seconds=600)
    keep = rng.random(n) < 0.6
    synthetic = plan.assign(
        image_id="synthetic:" + plan["sample_id"], patient_id="synthetic:" + plan["sample_id"], root="synthetic",
        path=paths, study_id=None, split="train", confidence=rng.random(n), keep=keep,
        reason=np.where(keep, None, np.where(rng.random(n) < 0.5, "confidence", "blank")))[ok]
    stage = Stage("filter", folder / "synthetic", config={"quantile": 0.1}, inputs={"generate": folder / "images"})
    schema = synthetic_schema(list(labels), ["confidence"])
    stage.begin()
    write_table(synthetic[list(schema.columns)], stage.folder / "synthetic.parquet", schema)
    write_table(pd.DataFrame({"rule": ["confidence"] * 2, "label": ["Hernia", "Pneumonia"], "threshold": [None, -1.25],
                              "source": "val", "n_positive": [2, 12], "reason": ["2 validation positives", None]}),
                stage.folder / "thresholds.parquet")
    write_table(fidelity(rng), stage.folder / "fidelity.parquet")
    stage.finish(outputs=["synthetic.parquet", "thresholds.parquet", "fidelity.parquet"], seconds=90,
                 counts={"made": n - 1, "kept": int(keep[ok].sum())},
                 extra={"rules": ["confidence"], "roots": {"synthetic": str(folder / "images")}})


def fidelity(rng: np.random.Generator) -> pd.DataFrame:
    rows = [{"name": name, "set": kind, "metric": metric, "spread": 0.004 if metric == "KID" else None,
             "value": None if metric == "FID" else base + rng.random() / 100, "n_real": 900, "n_synthetic": 60,
             "encoder": "efficientnet_lite0", "encoder_sha256": "c" * 64, "resize": "bilinear 224",
             "reason": "60 images are fewer than 500" if metric == "FID" else None}
            for name in ("all", "tail", "Hernia")
            for kind, base in (("kept", 0.05), ("made", 0.07), ("real floor", 0.01))
            for metric in ("KID", "FID")]
    return pd.DataFrame(rows)


def build_arms(folder: Path, labels: dict[str, str], rng: np.random.Generator, arms: Sequence[str]) -> None:
    tail = [label for label, group in labels.items() if group == "tail"]
    for arm, seed in [(arm, seed) for arm in arms for seed in range(3)] + [("real", 1000)]:
        if seed < 1000:
            stage = Stage("arm", folder / "arms" / arm / f"seed_{seed}", config={"arm": arm, "seed": seed}, inputs={})
            stage.begin()
            write_table(pd.DataFrame({"slot_id": range(4), "image_id": "r001", "sample_id": None, "repeat": 0,
                                      "loss_weight": 1.0, "phase": 1, "added": False}),
                        stage.folder / "arm.parquet", arm_schema())
            made = int(arm == "synthetic")
            seen = {label: {"slots": 40, "synthetic": 20 * made, "weight": 40 - 14.0 * made} for label in tail}
            stage.finish(outputs=["arm.parquet"], counts={"slots": 1200, "synthetic": 60 * made, "unfilled": 20 * made},
                         extra={"tail_seen": seen})
        stage = Stage("train", folder / "train" / arm / f"seed_{seed}", config={"arm": arm, "seed": seed}, inputs={})
        stage.begin()
        write_table(history(rng, loss=0.2, lr=1e-3).assign(images_per_second=120.0), stage.folder / "history.parquet")
        stage.finish(outputs=["history.parquet"], counts={"steps": 300}, seconds=240)


def build_comparison(folder: Path, labels: dict[str, str], rng: np.random.Generator, arms: Sequence[str]) -> None:
    pairs = [(arm, None) for arm in arms] + default_pairs(arms, arm="synthetic", rival="duplicate")
    supports = {**GROUP_SUPPORT, **{label: SUPPORT.get(label, (9, 7)) for label in labels}}
    supports |= {"control": (58, 45)} if "control" in labels.values() else {}
    frame = pd.DataFrame([difference(arm, rival, label, labels, supports[label], rng)
                          for label in supports for arm, rival in pairs])
    metrics = pd.DataFrame([
        {"arm": arm, "seed": seed, "weights": weights, "split": split, "label": label, "metric": metric,
         "value": None if label == "Hernia" and metric == "F1" else rng.random(), "n_positive_images": images,
         "n_positive_patients": patients, "reason": "1 validation positive" if label == "Hernia" else None}
        for arm in arms for seed in range(3) for weights in ("raw", "ema") for split in ("val", "test")
        for label, (images, patients) in supports.items() for metric in METRICS])
    tables = {"metrics.parquet": metrics}
    verdict: dict[str, Any] = {
        "verdict": "cannot say (too few positives)",
        "sentences": ["Whether synthetic helps the tail group: cannot say.", f"Hernia has 4, {HOSTILE} has 7."],
        "endpoint": {"metric": "AP", "group": "tail", "arm": "synthetic", "rival": "duplicate", "weights": "ema"}}
    if "oracle" in arms:
        tables["recovered.parquet"] = recovered(slot_rivals(plain_arms(arms)), list(supports))
        verdict["recovered"] = recovered_sentence(tables["recovered.parquet"], arm="synthetic", label="tail",
                                                  metric="AP")
    if "control" in labels.values():
        rivals = list(slot_rivals(plain_arms(arms)).items())
        chosen = frame[pd.Series(list(zip(frame["arm"], frame["rival"], strict=True)), index=frame.index).isin(rivals)
                       & frame["label"].replace(labels).eq("control")]
        tables["controls.parquet"] = chosen.assign(
            p=np.where(chosen["label"] == "control", None, 0.8), significant=False)[list(COLUMNS)]
        verdict["controls"] = control_sentence(tables["controls.parquet"])
    stage = Stage("compare", folder / "comparison", config={"n_draws": 100}, inputs={"cohort": folder / "cohort"})
    stage.begin()
    write_table(frame, stage.folder / "comparison.parquet", comparison_schema())
    for name, table in tables.items():
        write_table(table, stage.folder / name)
    stage.finish(outputs=["comparison.parquet", *tables], counts={"rows": len(frame)}, extra={"verdict": verdict})


def difference(arm: str, rival: str | None, label: str, labels: dict[str, str], support: tuple[int, int],
               rng: np.random.Generator) -> dict[str, Any]:
    """One row of the comparison: undefined for HOSTILE, without interval under 10 positive patients."""
    images, patients = support
    level, width = {"tail": 0.08, "head": 0.45}.get(labels.get(label, label), 0.25), 0.7 / patients
    scarce = label == "tail" or labels.get(label) == "tail"
    delta, bare = rng.normal(GAINS.get(arm, 0) * scarce * (rival is not None), width), label in labels and patients < 10
    undefined = label == HOSTILE and rival is not None
    return {
        "arm": arm, "rival": rival, "label": label, "metric": "AP", "n_seeds": 3, "n_positive_images": images,
        "n_positive_patients": patients, "value": level + delta, "rival_value": level if rival else None,
        "delta": delta if rival and not undefined else None, "p": 0.4 if rival and not bare else None,
        "ci_low": delta - 2 * width if rival and not bare else None,
        "ci_high": delta + 2 * width if rival and not bare else None,
        "reason": None if rival is None or not bare else TOO_FEW}


def recovered(rivals: dict[str, str], names: list[str]) -> pd.DataFrame:
    """Shares with intervals for the tail and for all, null elsewhere; one interval reaches beyond the figure."""
    shares = {arm: GAINS.get(arm, 0.0) / GAINS["oracle"] for arm in rivals if arm != "oracle"}
    rows = []
    for arm, share in shares.items():
        for label in names:
            known, width = label in ("tail", "all"), 2.5 if arm == "permuted" else 0.4
            rows.append({"arm": arm, "rival": rivals[arm], "oracle": "oracle", "label": label, "metric": "AP",
                         "share": share if known else None, "ci_low": share - width if known else None,
                         "ci_high": share + 1.2 * width if known else None, "kind": "interval" if known else None,
                         "reason": None if known else "the oracle's gain over duplicate may be 0"})
    return pd.DataFrame(rows)
