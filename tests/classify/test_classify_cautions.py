"""A cohort without patient ids is flagged above every number, in each form of the report, and nowhere else."""

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

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
