"""The report of a run with every arm and with negative controls, and the summary that it prints."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from fabricated_run import ALL_ARMS, CONTROLLED, build_run

import cohort.stage
from classify.comparison.pairs import ABOUT, rivals_of, slot_rivals
from classify.figures.plots import Axis, Interval, Row, row_plot
from classify.pages.arms import arm_forests, arm_table, recovered_plots, recovered_tables
from classify.pages.blocks import signed
from classify.pages.cautions import control_chapters, top_cautions
from classify.pages.evidence import Evidence, load_evidence
from classify.pages.limits import limits
from classify.pages.summary import summary
from classify.report import ReportConfig, render

ABOUT_COHORT = {"site": "A", "enrichment": {"val": 1.0, "test": 10.0}, "label_noise": 0.05,
                "noisy_splits": ["train", "val"]}


@pytest.fixture(scope="module", autouse=True)
def _stamps_at_once() -> Iterator[None]:
    """Stamps of a fabricated run need neither torch nor git, which cost seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cohort.stage, "git_commit", lambda: "f" * 40)
        patch.setattr(cohort.stage, "device_name", lambda: "cpu toy")
        patch.setattr(cohort.stage, "package_versions", lambda: {"torch": "2.0"})
        yield


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    run = build_run(tmp_path_factory.mktemp("all") / "run", labels=CONTROLLED, arms=ALL_ARMS, about=ABOUT_COHORT)
    return load_evidence(run)


@pytest.fixture(scope="module")
def files(evidence: Evidence) -> dict[str, str]:
    return render(evidence, ReportConfig(n_samples=1))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """A run of the four usual arms, without controls."""
    return load_evidence(build_run(tmp_path_factory.mktemp("plain") / "run"))


def test_every_arm_is_explained_and_drawn_against_its_rival(evidence: Evidence, files: dict[str, str]) -> None:
    assert [row[0] for row in arm_table(evidence).rows] == list(ALL_ARMS)
    assert all(row[2] == ABOUT[row[0]] for row in arm_table(evidence).rows)
    (forest,) = arm_forests(evidence)
    for arm, rival in rivals_of(ALL_ARMS).items():
        found = evidence.difference((arm, rival), "tail")
        assert f"{signed(found['delta'])}  ({signed(found['ci_low'])}" in forest.wide
    for text in files.values():
        assert "as synthetic, drawn without the filter" in text


def test_the_recovered_share_stands_in_figure_table_and_sentence(evidence: Evidence, files: dict[str, str]) -> None:
    (figure,), (table,) = recovered_plots(evidence), recovered_tables(evidence)
    assert {"duplicates", "oracle"} <= set(re.findall(r">([a-z]+)</text>", figure.wide))
    for row in evidence.recovered.query("label == 'tail'").itertuples():
        text = f"{100 * row.share:.0f}\u00a0% ({100 * row.ci_low:.0f} to {100 * row.ci_high:.0f})".replace("-", "−")
        assert text in figure.wide
        assert text in table.rows[0]
    assert len(table.rows) == len(evidence.rows)
    assert "(a) the oracle's gain over duplicate may be 0" in table.notes
    verdict = files["report.html"].split("<section ")[1]
    assert "recovers 56\u00a0% of what" in verdict
    assert "Recovered share of the oracle&#39;s gain" in verdict


def test_a_run_without_a_defined_share_has_the_reason_and_no_figure(evidence: Evidence) -> None:
    null = evidence.recovered.assign(share=None, ci_low=None, ci_high=None, reason="too small")
    without = replace(evidence, recovered=null)
    assert recovered_plots(without) == ()
    assert recovered_tables(without)[0].notes == ("(a) too small",)


def test_controls_have_a_chapter_and_stand_in_no_result_table(evidence: Evidence, files: dict[str, str]) -> None:
    assert not {"Infarction", "Pulmonary Embolism", "control"} & set(evidence.rows)
    assert evidence.members("all")[0] == ["Hernia", "Pneumoperitoneum", "Nodule", "Effusion"]
    (chapter,) = control_chapters(evidence)
    assert {row[2] for row in chapter.blocks[1].rows} == {"Infarction", "Pulmonary Embolism"}
    assert "any gain here would be an artefact" in chapter.words[0]
    assert f"none of {2 * len(slot_rivals(ALL_ARMS))} differences is significant" in files["report.html"]
    assert "Control (no visible sign, so nothing to gain): Infarction" in files["report.html"]


def test_a_significant_control_is_bold(evidence: Evidence) -> None:
    table = evidence.controls.copy()
    at = table.index[(table["arm"] == "oracle") & (table["label"] == "Infarction")]
    table.loc[at, "significant"] = True
    (chapter,) = control_chapters(replace(evidence, controls=table))
    (bold,) = chapter.blocks[1].strong
    assert chapter.blocks[1].rows[bold][::2][:2] == ("oracle", "Infarction")


def test_how_the_cohort_was_made_is_said(evidence: Evidence, files: dict[str, str]) -> None:
    for text in files.values():
        assert "Test set enriched ×10 for tail and control labels" in text
        assert "Val set enriched" not in text
        assert "site A" in text
        assert "noisy on purpose" in text
        assert "0.05" in text
    assert any("AP grows with prevalence" in line for line in limits(evidence))
    assert not any("no oracle arm" in line for line in limits(evidence))


def test_without_oracle_controls_or_enrichment_nothing_of_them_appears(plain: Evidence) -> None:
    for text in render(plain, ReportConfig(n_samples=1)).values():
        for word in ("ecovered share", "egative control", "enriched", "noisy on purpose", "Control ("):
            assert word not in text


def test_slots_without_new_real_images_are_a_limit(evidence: Evidence) -> None:
    made = [replace(one, stamp={**one.stamp, "counts": {"slots": 9, "new_real": 4, "unfilled": 3}})
            if one.entry.name == "arm" and one.arm == "oracle" else one for one in evidence.made]
    said = " ".join(limits(replace(evidence, made=tuple(made))))
    assert "Too few new real images for arm oracle: over its seeds 9 slots" in said
    assert "12 hold new real ones" in said


@pytest.mark.parametrize("full", [True, False])
def test_the_summary_is_short_and_complete(evidence: Evidence, plain: Evidence, full: bool) -> None:
    chosen = evidence if full else plain
    lines = summary(chosen, Path("runs/demo/report/report.html")).splitlines()
    assert len(lines) <= 15
    assert max(map(len, lines)) <= 120
    start = lines.index(chosen.verdict["sentences"][0])
    assert " ".join(lines[:start]) == "caution: " + top_cautions(chosen.cohort_extra)[0]  # it has no ids
    lines = lines[start:]
    assert ("recovers 56 %" in lines[1]) == full
    assert [line.split(",")[0] for line in lines[4:7]] == ["head", "medium", "tail"]
    assert ("oracle" in lines[3]) == full
    assert lines[-1] == "report: runs/demo/report/report.html"
    found = chosen.difference(("synthetic", "duplicate"), "tail")
    assert signed(found["delta"]) in lines[6]


def test_what_lies_beyond_an_axis_is_an_arrow_at_its_edge() -> None:
    def arrows(low: float, high: float) -> int:
        mark = Interval(series=0, value=0.5, low=low, high=high)
        axis = Axis(label="share", within=(-1, 2), lines={0.0: "none", 1.0: "all"})
        drawn = row_plot([Row(label="a", marks=(mark,))], title="t", names={}, axis=axis).wide
        return len(re.findall(r"<use ", drawn))

    inside = arrows(0.2, 0.8)
    assert [arrows(*ends) - inside for ends in ((-9, 0.8), (0.2, 9), (-9, 9))] == [1, 1, 2]


def test_the_tables_say_what_the_comparison_says(evidence: Evidence) -> None:
    shown = pd.DataFrame(control_chapters(evidence)[0].blocks[1].rows)
    table = evidence.controls[evidence.controls["label"] != "control"]
    assert shown[3].tolist() == [signed(value) for value in table["delta"]]
