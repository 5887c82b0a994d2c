"""The chapter of the dose-response on made-up tables: what was really there, the chosen amount, and what is missing."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from fabricated_run import build_run

import cohort.stage
from classify.arms.amounts import split_amount
from classify.comparison.amounts import COLUMNS
from classify.comparison.pairs import rivals_of
from classify.figures.plots import arm_series
from classify.pages.amounts import amount_chapters, held
from classify.pages.evidence import Evidence, load_evidence
from classify.report import ReportConfig, render

ARMS = ("real", "duplicate", "synthetic", "oracle", "duplicate-0.5x", "synthetic-0.5x", "duplicate-2x", "synthetic-2x")
WORDS = "Amount chosen on validation: see below."


def amounts(chosen: float | None) -> pd.DataFrame:
    rivals, rows = rivals_of(ARMS), []
    for arm in ARMS:
        base, amount = split_amount(arm)
        if base in ("duplicate", "synthetic"):
            rows.append({"arm": arm, "base": base, "amount": amount, "rival": rivals[arm], "metric": "AP",
                         "label": "tail", "val": 0.1 * amount if chosen else np.nan, "n_val_positive_patients": 30,
                         "value": 0.1111 * amount, "ci_low": 0.05, "ci_high": 0.25, "delta": 0.0222 * amount,
                         "delta_low": -0.01, "delta_high": 0.09, "chosen": amount == chosen, "reason": None})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def test_an_arm_that_is_there_at_other_amounts_only_has_a_colour_too() -> None:
    assert arm_series("external", ("real", "crt")) == arm_series("external", ("real", "crt", "external"))
    assert arm_series("external", ("real", "crt")) != arm_series("crt", ("real", "crt"))


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Slots as two classes have them: too few images were kept for twice the amount."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cohort.stage, "git_commit", lambda: "f" * 40)
        patch.setattr(cohort.stage, "device_name", lambda: "cpu toy")
        patch.setattr(cohort.stage, "package_versions", dict)
        run = build_run(tmp_path_factory.mktemp("doses") / "run", arms=ARMS)
    for arm in ARMS[4:]:
        base, amount = split_amount(arm)
        added, made = int(2 * 40 * amount), min(int(40 * amount), 48) if base == "synthetic" else 0
        for file in (run.folder / "arms" / arm).glob("*/_stage.json"):
            stamp = json.loads(file.read_text())
            stamp["config"] = {"slots_per_class": 40, "synthetic_share": 0.5}
            stamp["counts"] = {"duplicate": added - made, "synthetic": made, "synthetic_negative": 0,
                               "unfilled": int(40 * amount) - made if base == "synthetic" else 0}
            file.write_text(json.dumps(stamp))
    found = load_evidence(run)
    return replace(found, amounts=amounts(2.0), verdict={**found.verdict, "amounts": WORDS})


def test_what_the_slots_really_hold_is_counted_from_the_stamps(evidence: Evidence) -> None:
    assert held(evidence, "synthetic-0.5x") == {"slots": 20, "meant": 10, "per_class": 10, "filled": 1}
    assert held(evidence, "synthetic-2x") == {"slots": 80, "meant": 40, "per_class": 24, "filled": 0.6}
    assert set(held(evidence, "synthetic").values()) == {None}  # this made-up stamp does not tell


def test_the_table_and_figure_show_the_amount_there_and_the_chosen_one(evidence: Evidence) -> None:
    levels, forest, table = amount_chapters(evidence)[0].blocks
    assert [row[0] for row in table.rows] == ["0.5×", "1×", "2×"]
    assert table.rows[2][1] == "80 (24 of 40)"
    assert table.notes[1].endswith("with negatives: 60 % at 2×; elsewhere all.")
    assert table.strong == {2}
    assert table.rows[2][2:] == ("0.200 / 0.200", "0.222 (0.050 to 0.250)", "0.222 (0.050 to 0.250)",
                                 "+0.044  (−0.010 to +0.090)")
    for svg in (levels.wide, levels.narrow):
        assert re.search(r">2×<", svg)
        assert re.search(r">24<", svg)
        assert re.search(r">oracle<", svg)
        assert re.search(r">real<", svg)
    assert "chosen on validation" in {text for *_, text in levels.legend}
    assert "+0.044  (−0.010 to +0.090)" in forest.wide


def test_amounts_stand_in_their_chapter_and_nowhere_else(evidence: Evidence) -> None:
    files = render(evidence, ReportConfig(n_samples=1, max_classes=1))
    assert evidence.arms == ["real", "duplicate", "synthetic", "oracle"]
    for text in files.values():
        assert WORDS in text
        before, chapter = text.split("How many are worth making</h2>" if "<html" in text else "## How many", 1)
        assert "24 of 40" in chapter
        assert "synthetic-2x" not in before
    assert "| **2×** | **80 (24 of 40)** |" in files["report.md"]
    assert "| 1× | " in files["report.md"]


def test_without_a_choice_no_amount_is_marked(evidence: Evidence) -> None:
    levels, _, table = amount_chapters(replace(evidence, amounts=amounts(None)))[0].blocks
    assert table.strong == set()
    assert [text for *_, text in levels.legend] == ["duplicate", "synthetic"]
    assert any("no positives in val" in note for note in table.notes)


def test_a_run_without_amounts_has_no_such_chapter(evidence: Evidence) -> None:
    assert amount_chapters(replace(evidence, amounts=pd.DataFrame())) == []
