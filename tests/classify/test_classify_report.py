"""The report on a fabricated run: complete, escaped, offline, deterministic, and honest about what is undefined."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import cohort.stage
from classify import report
from classify.pages.accounts import scarcity_chapter
from classify.pages.blocks import signed
from classify.pages.evidence import limits, load_evidence
from classify.pages.results import headline, row_name
from classify.report import ReportConfig, render
from classify.sheets import contact_sheet
from cohort.config import Run
from cohort.errors import TailfillError, run_command
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
SUPPORT = {"Hernia": (5, 4), HOSTILE: (9, 7), "Pneumonia": (30, 26), "Nodule": (160, 120), "Effusion": (420, 260)}
GROUP_SUPPORT = {"tail": (44, 36), "medium": (160, 120), "head": (420, 260), "all": (600, 340)}
ANCHORS = ["verdict", "deltas", "asked", "samples", "fidelity", "metrics", "curves", "cost", "settings", "limits"]
TOO_FEW = "fewer than 10 positive patients"


def build_run(folder: Path, *, seed: int = 0, labels: dict[str, str] = LABELS) -> Run:
    """A small complete run folder, every table through its schema, every stage with its stamp."""
    rng, run = np.random.default_rng(seed), Run(run=str(folder), seed=3)
    build_cohort(folder, labels, rng)
    build_plan(folder, labels, rng)
    build_training(folder, rng)
    build_synthetic(folder, labels, rng)
    build_arms(folder, labels, rng)
    build_comparison(folder, labels, rng)
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


def build_cohort(folder: Path, labels: dict[str, str], rng: np.random.Generator) -> None:
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
        "patient_ids": "image", "source": "Toy & Co", "label_space": "toy"})


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
                           "height": 32, "width": 32, "seconds": 0.5, "rank": 0, "micro_batch": 4})
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


def build_arms(folder: Path, labels: dict[str, str], rng: np.random.Generator) -> None:
    tail = [label for label, group in labels.items() if group == "tail"]
    for arm, seed in [(arm, seed) for arm in ARMS for seed in range(3)] + [("real", 1000)]:
        if seed < 1000:
            stage = Stage("arm", folder / "arms" / arm / f"seed_{seed}", config={"arm": arm, "seed": seed}, inputs={})
            stage.begin()
            write_table(pd.DataFrame({"slot_id": range(4), "image_id": "r001", "sample_id": None, "repeat": 0,
                                      "loss_weight": 1.0, "phase": 1}), stage.folder / "arm.parquet", arm_schema())
            made = int(arm == "synthetic")
            seen = {label: {"slots": 40, "synthetic": 20 * made, "weight": 40 - 14.0 * made} for label in tail}
            stage.finish(outputs=["arm.parquet"], counts={"slots": 1200, "synthetic": 60 * made, "unfilled": 20 * made},
                         extra={"tail_seen": seen})
        stage = Stage("train", folder / "train" / arm / f"seed_{seed}", config={"arm": arm, "seed": seed}, inputs={})
        stage.begin()
        write_table(history(rng, loss=0.2, lr=1e-3).assign(images_per_second=120.0), stage.folder / "history.parquet")
        stage.finish(outputs=["history.parquet"], counts={"steps": 300}, seconds=240)


def build_comparison(folder: Path, labels: dict[str, str], rng: np.random.Generator) -> None:
    rows: list[dict[str, Any]] = []
    supports = {**GROUP_SUPPORT, **{label: SUPPORT.get(label, (9, 7)) for label in labels}}
    pairs = [(arm, None) for arm in ARMS] + [(arm, "real") for arm in ARMS[1:]] + [("synthetic", "duplicate")]
    for label, (images, patients) in supports.items():
        level, width = {"tail": 0.08, "head": 0.45}.get(labels.get(label, label), 0.25), 0.7 / patients
        for arm, rival in pairs:
            delta, bare = rng.normal(0, width), label in labels and patients < 10
            undefined = label == HOSTILE and rival is not None
            rows.append({
                "arm": arm, "rival": rival, "label": label, "metric": "AP", "n_seeds": 3, "n_positive_images": images,
                "n_positive_patients": patients, "value": level + delta, "rival_value": level if rival else None,
                "delta": delta if rival and not undefined else None, "p": 0.4 if rival and not bare else None,
                "ci_low": delta - 2 * width if rival and not bare else None,
                "ci_high": delta + 2 * width if rival and not bare else None,
                "reason": None if rival is None or not bare else TOO_FEW})
    metrics = pd.DataFrame([
        {"arm": arm, "seed": seed, "weights": weights, "split": split, "label": label, "metric": metric,
         "value": None if label == "Hernia" and metric == "F1" else rng.random(), "n_positive_images": images,
         "n_positive_patients": patients, "reason": "1 validation positive" if label == "Hernia" else None}
        for arm in ARMS for seed in range(3) for weights in ("raw", "ema") for split in ("val", "test")
        for label, (images, patients) in supports.items() for metric in ("AP", "AUROC", "F1", "ECE")])
    stage = Stage("compare", folder / "comparison", config={"n_draws": 100}, inputs={"cohort": folder / "cohort"})
    stage.begin()
    write_table(pd.DataFrame(rows), stage.folder / "comparison.parquet", comparison_schema())
    write_table(metrics, stage.folder / "metrics.parquet")
    stage.finish(outputs=["comparison.parquet", "metrics.parquet"], counts={"rows": len(rows)}, extra={"verdict": {
        "verdict": "cannot say (too few positives)",
        "sentences": ["Whether synthetic helps the tail group: cannot say.", f"Hernia has 4, {HOSTILE} has 7."],
        "endpoint": {"metric": "AP", "group": "tail", "arm": "synthetic", "rival": "duplicate", "weights": "ema"}}})


@pytest.fixture(scope="module", autouse=True)
def _stamps_at_once() -> Iterator[None]:
    """Stamps of a fabricated run need neither torch nor git, which cost seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cohort.stage, "git_commit", lambda: "f" * 40 + "-dirty")
        patch.setattr(cohort.stage, "device_name", lambda: "cpu toy")
        patch.setattr(cohort.stage, "package_versions", lambda: {"torch": "2.0", "pandas": "3.0"})
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return build_run(tmp_path_factory.mktemp("reported") / "run")


@pytest.fixture(scope="module")
def files(run: Run) -> dict[str, str]:
    return render(load_evidence(run), ReportConfig())


def command(monkeypatch: pytest.MonkeyPatch, run: Run, *more: str) -> None:
    """The command, with its settings from a config file."""
    config = run.folder.parent / "c.yaml"
    config.write_text(f"run: {run.run}\nseed: 3\nreport:\n  n_samples: 2\n")
    monkeypatch.setattr(sys, "argv", ["report", "--config", str(config), *more])
    run_command(report.main)


def test_every_chapter_is_there_in_order_and_names_its_tables(files: dict[str, str]) -> None:
    page = files["report.html"]
    assert re.findall(r'<section id="([a-z]+)"', page) == ANCHORS
    sections = page.split("<section ")[1:]
    assert all('class="sources">From <code>' in section for section in sections)
    assert files["report.md"].count("\n## ") == len(ANCHORS)
    assert files["report.md"].count("\nFrom: ") == len(ANCHORS)


def test_names_and_prompts_are_escaped(files: dict[str, str]) -> None:
    page = files["report.html"]
    assert "<script" not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in page
    assert not re.search(r"\son\w+=", re.sub(r">[^<]*<", "><", page)), "an attribute that runs code"
    assert "<script" not in files["report.md"]


def test_a_pipe_in_a_name_breaks_no_markdown_table(files: dict[str, str]) -> None:
    width = None
    for line in files["report.md"].splitlines():
        if not line.startswith("|"):
            width = None
            continue
        cells = len(re.findall(r"(?<!\\)\|", line))
        assert width in (None, cells), line
        width = cells


def test_the_page_asks_nothing_of_the_network(files: dict[str, str]) -> None:
    page = files["report.html"]
    assert "http" not in page
    assert "<link" not in page
    assert "@import" not in page
    targets = re.findall(r'(?:src|href|url\()\s*=?\s*"?([^")\s>]+)', page)
    assert targets
    assert all(target.startswith(("data:image/png;base64,", "#")) for target in targets)


def test_drawings_refer_only_to_what_they_define_once(files: dict[str, str]) -> None:
    page = files["report.html"]
    defined = re.findall(r' id="([^"]+)"', page)
    assert len(defined) == len(set(defined))
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', page)) <= set(defined)
    assert not re.search(r"#0[1-9]0[1-9]0[1-9]", page), "a marker colour was left in place"


@pytest.mark.parametrize("reason", [TOO_FEW, "capped at 2.0 per real image", "2 validation positives",
                                    "60 images are fewer than 500", "1 validation positive"])
def test_every_reason_for_a_null_is_shown(files: dict[str, str], reason: str) -> None:
    assert f") {reason}" in files["report.html"]
    assert f") {reason}" in files["report.md"]


def test_no_null_is_shown_as_a_number(files: dict[str, str]) -> None:
    for text in files.values():
        assert not re.search(r"\b(nan|NaN|None|<NA>|NaT)\b", text)


def test_the_endpoint_is_the_number_of_the_comparison(run: Run, files: dict[str, str]) -> None:
    table = pd.read_parquet(run.folder / "comparison" / "comparison.parquet")
    row = table[(table["arm"] == "synthetic") & (table["rival"] == "duplicate") & (table["label"] == "tail")].iloc[0]
    for text in files.values():
        for key in ("delta", "ci_low", "ci_high"):
            assert signed(row[key]) in text
        assert "Pneumonia; without a value" not in text
        assert "44 positive test images of 36 patients; 3 seeds per arm" in text


def test_a_group_tells_how_many_of_its_classes_have_a_value(run: Run) -> None:
    evidence = load_evidence(run)
    table = evidence.comparison.copy()
    table.loc[(table["label"] == "Pneumonia") & table["rival"].isna(), "value"] = None
    evidence = replace(evidence, comparison=table)
    assert row_name(evidence, "tail") == "Tail, mean\u00a0of\u00a02 (of\u00a03)"
    assert "left out: Pneumonia)" in headline(evidence)["what"]


def test_counts_balance(run: Run) -> None:
    chapter = scarcity_chapter(load_evidence(run))
    table = next(block for block in chapter.blocks if block.title.startswith("What became"))
    numbers = np.array([[int(cell) for cell in row[2:]] for row in table.rows])
    assert (numbers[:, 0] == numbers[:, 1:].sum(axis=1)).all()
    assert (numbers[-1] == numbers[:-1].sum(axis=0)).all()
    assert numbers[-1, 0] == len(pd.read_parquet(run.folder / "plan" / "plan.parquet"))


def test_limits_follow_from_the_run(run: Run, files: dict[str, str]) -> None:
    said = " ".join(limits(load_evidence(run)))
    for words in ("Hernia (5 images of 4 patients)", "conditional on them", "no oracle arm", "3 seeds per arm",
                  "60 slots meant for synthetic images hold duplicates instead, 180", "names no patients",
                  "unknown provenance were used in finetune"):
        assert words in said
    assert "Pneumonia (" not in said


def test_equal_inputs_give_equal_bytes(run: Run, files: dict[str, str]) -> None:
    assert render(load_evidence(run), ReportConfig()) == files


def test_row_order_does_not_matter(run: Run, files: dict[str, str]) -> None:
    evidence, rng = load_evidence(run), np.random.default_rng(1)
    mixed = {name: getattr(evidence, name).sample(frac=1, random_state=rng).reset_index(drop=True)
             for name in ("plan", "budget", "images", "synthetic", "comparison")}
    assert render(replace(evidence, **mixed), ReportConfig())["report.md"] == files["report.md"]


def test_the_command_writes_both_files_and_then_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch, run)
    folder = run.folder / "report"
    first = {name: (folder / name).stat().st_mtime_ns for name in ("report.html", "report.md", "_stage.json")}
    assert json.loads((folder / "_stage.json").read_text())["counts"] == {"chapters": len(ANCHORS)}
    command(monkeypatch, run)
    assert first == {name: (folder / name).stat().st_mtime_ns for name in first}


@pytest.mark.parametrize(("gone", "wanted"), [("comparison", "classify.compare"), ("synthetic", "synth/filter.py"),
                                              ("plan", "prompts.plan"), ("images", "synth/generate.py"),
                                              ("cohort", "cohort.prepare")])
def test_a_missing_stage_is_named_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], gone: str, wanted: str
) -> None:
    run = build_run(tmp_path / "run", labels={"Hernia": "tail", "Effusion": "head"})
    (run.folder / gone).rename(run.folder.parent / "away")
    with pytest.raises(SystemExit) as stopped:
        command(monkeypatch, run)
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert len(said.strip().splitlines()) == 1
    assert wanted in said
    assert not (run.folder / "report").exists()


def test_what_is_optional_may_be_missing(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", labels={"Hernia": "tail", "Effusion": "head"})
    for name in ("generator", "train", "arms", "endpoint.json"):
        (run.folder / name).rename(tmp_path / name)
    for name in ("fidelity", "thresholds"):
        (run.folder / "synthetic" / f"{name}.parquet").unlink()
    page = render(load_evidence(run), ReportConfig())["report.html"]
    assert re.findall(r'<section id="([a-z]+)"', page) == ANCHORS
    assert "measured no fidelity" in page
    assert "left a history" in page


def test_a_comparison_without_verdict_is_refused(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", labels={"Hernia": "tail", "Effusion": "head"})
    stamp = run.folder / "comparison" / "_stage.json"
    stamp.write_text(stamp.read_text().replace('"verdict": {', '"other": {'))
    with pytest.raises(TailfillError, match=r"no extra\.verdict; run: python -m classify\.compare"):
        load_evidence(run)


@pytest.mark.parametrize(("key", "value"), [("n_samples", 0), ("max_classes", 0), ("picture_px", 8)])
def test_settings_out_of_range_are_refused(key: str, value: int) -> None:
    with pytest.raises(TailfillError, match=f"report.{key} is {value}; wanted: "):
        ReportConfig(**{key: value})


def luminance(colour: str) -> float:
    """WCAG 2's relative luminance of #rgb or #rrggbb."""
    digits = colour.lstrip("#")
    parts = [digits[i:i + 2] for i in (0, 2, 4)] if len(digits) == 6 else [c * 2 for c in digits]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (int(p, 16) / 255 for p in parts)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_text_contrast_is_at_least_4_5_in_light_dark_and_print(files: dict[str, str]) -> None:
    themes = re.findall(r":root \{(.*?)\}", files["report.html"], flags=re.DOTALL)
    assert len(themes) == 3
    for theme in themes:
        colours = dict(re.findall(r"--(\w+): (#\w+);", theme))
        for ink in ("ink", "muted", "accent", "s0", "s1", "s2", "s3", "s4", "s5"):
            for paper in ("paper", "card"):
                bright, dark = sorted((luminance(colours[ink]), luminance(colours[paper])), reverse=True)
                assert (bright + 0.05) / (dark + 0.05) >= 4.5, (ink, paper, theme)


@pytest.mark.parametrize(("n", "columns", "size"), [(1, 4, (144, 168)), (5, 3, (416, 328))])
def test_contact_sheet_has_every_image_and_nothing_resampled(n: int, columns: int, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (64, 64), dtype=np.uint8) for _ in range(n)]
    sheet = np.asarray(contact_sheet(images, ["caption"] * n, columns))
    assert (sheet.shape[1], sheet.shape[0]) == size
    for i, image in enumerate(images):
        x, y = 8 + (i % columns) * 136, 8 + (i // columns) * 160
        assert (sheet[y:y + 128:2, x:x + 128:2] == image).all()


def test_contact_sheet_refuses_what_it_cannot_lay_out() -> None:
    image = np.zeros((8, 8), dtype=np.uint8)
    wrong = (([], [], 2), ([image], [], 2), ([image], ["a"], 0), ([image.astype(float)], ["a"], 1))
    for images, captions, columns in wrong:
        with pytest.raises(ValueError, match="contact_sheet"):
            contact_sheet(images, captions, columns)
