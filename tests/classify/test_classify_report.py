"""The report on a fabricated run: complete, escaped, offline, deterministic, and honest about what is undefined."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fabricated_run import TOO_FEW, build_run

import cohort.stage
from classify import report
from classify.figures.sheets import contact_sheet
from classify.pages.accounts import scarcity_chapter
from classify.pages.arms import row_name
from classify.pages.blocks import DASH, p_value, signed
from classify.pages.evidence import load_evidence
from classify.pages.limits import limits
from classify.pages.results import headline
from classify.report import ReportConfig, render
from cohort.config import Run
from cohort.errors import TailfillError, run_command

ANCHORS = ["verdict", "deltas", "asked", "samples", "fidelity", "metrics", "curves", "cost", "settings", "limits"]


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
    stamp = run.folder / "synthetic" / "_stage.json"
    content = json.loads(stamp.read_text())
    for name in ("fidelity.parquet", "thresholds.parquet"):
        (run.folder / "synthetic" / name).unlink()
        content["outputs"].pop(name, None)
    stamp.write_text(json.dumps(content))
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


@pytest.mark.parametrize(("value", "said"), [(0.012, "p = 0.012"), (2e-4, "p < 0.001"), (None, f"p = {DASH}")])
def test_a_p_value_is_never_nothing(value: float | None, said: str) -> None:
    assert p_value(value) == said
