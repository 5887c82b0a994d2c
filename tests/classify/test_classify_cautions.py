"""What a page warns of: a cohort without patient ids, above every number; findings that the images hardly show."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import pytest
from fabricated_run import build_run

from classify.pages.cautions import top_cautions
from classify.pages.evidence import load_evidence
from classify.pages.summary import summary
from classify.report import ReportConfig, render


@pytest.fixture(autouse=True)
def _stamps_at_once() -> Iterator[None]:
    """Stamps of a fabricated run need no look at git, which costs seconds."""
    with patch("cohort.stage.git_commit", return_value="f" * 40), patch("cohort.stage.package_versions", dict):
        yield


@pytest.mark.parametrize(("kind", "words"), [
    ("image", "The source names no patients"), ("some", "names no patient for some images")])
def test_the_caution_stands_above_all_else(tmp_path: Path, kind: str, words: str) -> None:
    evidence = load_evidence(build_run(tmp_path, about={"patient_ids": kind}))
    files = render(evidence, ReportConfig())
    assert files["report.html"].index(words) < files["report.html"].index('<h2 id="verdict-title"')
    lines = [line for line in files["report.md"].splitlines() if line]
    assert lines[1].startswith("> **Caution.** ")
    assert words in lines[1]
    assert summary(evidence, tmp_path / "report.html").startswith("caution: ")


def test_a_cohort_with_patients_has_none(tmp_path: Path) -> None:
    evidence = load_evidence(build_run(tmp_path, about={"patient_ids": "given"}))
    files = render(evidence, ReportConfig())
    assert "Caution." not in files["report.html"] + files["report.md"]
    assert "caution:" not in summary(evidence, tmp_path / "report.html")


def test_only_what_is_said_is_cautioned_about() -> None:
    assert top_cautions({}) == top_cautions({"patient_ids": "given"}) == ()
    assert "too narrow" in top_cautions({"patient_ids": "image"})[0]


def test_what_cannot_be_read_in_the_images_is_told_before_how_close_they_are(tmp_path: Path) -> None:
    evidence = load_evidence(build_run(tmp_path))
    assert 'id="drawn' not in render(evidence, ReportConfig())["report.html"]  # judged without critics
    row = {"label": "Hernia", "says": "hardly drawn", "auroc": 0.493, "ci_low": 0.461, "ci_high": 0.525, "n_pairs": 150,
           "real_auroc": 0.812, "real_low": 0.751, "real_high": 0.873, "n_real_patients": 44,
           "reason": None}
    unknown = dict.fromkeys(("auroc", "ci_low", "ci_high", "real_auroc", "real_low", "real_high"), float("nan"))
    other = row | unknown | {"label": "Pneumonia", "says": "not judged", "n_pairs": 3, "reason": "3 pairs <made>"}
    files = render(replace(evidence, drawn=pd.DataFrame([row, other])), ReportConfig())
    page, text = files["report.html"], files["report.md"]
    assert page.index('id="drawn') < page.index('id="fidelity')
    assert "| Hernia | hardly drawn | 0.493 | 0.461 to 0.525 | 0.812 | 0.751 to 0.873 | 150 | 44 |" in text
    assert "3 pairs &lt;made&gt;" in page
    assert "hardly show what they were asked for: Hernia. Whatever they did" in text
