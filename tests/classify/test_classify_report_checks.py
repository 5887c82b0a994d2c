"""The report's chapters of sub-groups and failure signatures, and its count of looks, on made-up tables."""

from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from fabricated_run import HOSTILE, build_run

import cohort.stage
from classify.comparison.signatures import COLUMNS as SIGNATURE_COLUMNS
from classify.comparison.subgroups import COLUMNS, FNR, GAPS, GROUPS, RANKING
from classify.pages.cautions import signature_chapters
from classify.pages.evidence import Evidence, load_evidence
from classify.pages.results import verdict_chapter
from classify.pages.subgroups import subgroup_chapters
from classify.report import ReportConfig, render
from classify.verdict.looks import LOOKS, record_look

COMPARED = (("synthetic", None), ("duplicate", None), ("synthetic", "duplicate"))


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """A run whose comparison has both tables."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cohort.stage, "git_commit", lambda: "f" * 40)
        patch.setattr(cohort.stage, "device_name", lambda: "cpu toy")
        patch.setattr(cohort.stage, "package_versions", dict)
        run = build_run(tmp_path_factory.mktemp("checked") / "run")
    found = load_evidence(run)
    return replace(found, subgroups=subgroups(), signatures=signatures(),
                   verdict={**found.verdict, "subgroups": "The smallest is small.", "signatures": "Two are flagged."})


def subgroups() -> pd.DataFrame:
    """Women have positives enough, men have few and no interval."""
    rows = []
    for (subgroup, n), label, (arm, rival) in product((("F", 40), ("M", 7)), GROUPS, COMPARED):
        few = n < 20
        rows += [{"attribute": "sex", "subgroup": subgroup, "label": label, "arm": arm, "rival": rival,
                  "metric": metric, "value": 0.25, "ci_low": np.nan if few else 0.125,
                  "ci_high": np.nan if few else 0.375, "n_images": 1234, "n_positive_images": n,
                  "n_positive_patients": n, "n_classes": 2, "few": few,
                  "reason": "fewer than 10 positive patients" if few else None}
                 for metric in (*RANKING, FNR, *GAPS)]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"rival": "str"})


def signatures() -> pd.DataFrame:
    """One flag in a class with a hostile name, one check that was not possible, one without a finding."""
    rows = [("metadata alone", "real", HOSTILE, True, "age alone", None),
            ("metadata alone", "synthetic", HOSTILE, True, "sex alone ranks about as well", None),
            ("metadata alone", "duplicate", "Nodule", False, None, None),
            ("metadata alone", "synthetic", "Hernia", None, None, "fewer than 10 positive patients in test")]
    table = pd.DataFrame(rows, columns=["signature", "arm", "label", "flagged", "words", "reason"])
    return table.assign(value=0.5, reference=0.5)[list(SIGNATURE_COLUMNS)].astype({"flagged": "boolean"})


def test_both_chapters_stand_in_both_files_and_escape_names(evidence: Evidence) -> None:
    files = render(evidence, ReportConfig(n_samples=1, max_classes=1))
    page = files["report.html"]
    assert page.index('id="signatures"') < page.index('id="metrics"') < page.index('id="subgroups"')
    assert "<script" not in page
    assert page.count('<tr class="grey">') == 4  # differences and levels, of the tail and of all
    for words in ("The smallest is small.", "Two are flagged.", "sex alone ranks about as well"):
        assert words in page
        assert words in files["report.md"]


def test_small_sub_groups_are_marked_without_colour_and_left_out_of_the_figure(evidence: Evidence) -> None:
    gains, gaps, *tables = subgroup_chapters(evidence)[0].blocks
    for plot in (gains, gaps):
        assert "sex F" in plot.wide
        assert "sex M" not in plot.wide
    assert "+0.250  (+0.125 to +0.375)" in gains.wide
    for table in tables:
        assert [row[0] for row in table.rows] == ["sex F", "sex M*"]
        assert table.grey == {1}
        assert table.notes[0].startswith("* Fewer than 20 positive patients")
    assert tables[0].columns[2:] == ("AP", "AUROC", "AUROC gap", "FNR", "FNR gap")
    assert tables[0].rows[0][2] == "+0.25 (+0.12 to +0.38)"
    assert tables[1].rows[0][4] == "0.25 (0.12 to 0.38)"
    assert tables[1].rows[1][4] == "0.25 — (a)"


def test_a_table_from_before_differences_were_measured_is_not_mistaken_for_one(evidence: Evidence) -> None:
    small = replace(evidence, subgroups=evidence.subgroups.assign(few=True))
    assert {block.kind for block in subgroup_chapters(small)[0].blocks} == {"table"}  # nothing that a plot may show
    older = replace(evidence, subgroups=evidence.subgroups.drop(columns="rival"))
    (chapter,) = subgroup_chapters(older)
    assert chapter.blocks == ()
    assert "compare again" in chapter.words[0]


def test_checks_that_were_not_possible_say_why(evidence: Evidence) -> None:
    flags, checks = signature_chapters(evidence)[0].blocks
    assert flags.rows == ((HOSTILE, "metadata alone", "synthetic: sex alone ranks about as well", "real"),)
    assert flags.strong == {0}
    assert checks.rows == (("metadata alone", "3", "2", "1"),)
    assert checks.notes == ("metadata alone, not looked at: fewer than 10 positive patients in test (Hernia).",)


def test_an_older_comparison_has_neither_chapter_nor_count(evidence: Evidence) -> None:
    older = load_evidence(evidence.run)
    assert subgroup_chapters(older) == signature_chapters(older) == []
    assert "not known" in verdict_chapter(older).points[-1]
    fingerprint = next(made.stamp["fingerprint"] for made in older.stamps("compare"))
    for one in (fingerprint, "another"):
        record_look(evidence.run.folder / LOOKS, fingerprint=one, sha256="e", fixed_beforehand=True)
    assert "looked at 2 times" in verdict_chapter(load_evidence(evidence.run)).points[-1]
