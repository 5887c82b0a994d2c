"""The report shows every model's own score beside the ensemble's, on validation and on test."""

from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from fabricated_run import build_run

from classify.ensembling.scores import COLUMNS, ENSEMBLE, model_sentence
from classify.pages.evidence import load_evidence
from classify.pages.results import metrics_chapter

MODELS = ("r64", "r96", ENSEMBLE)


def members(undefined: str = "") -> pd.DataFrame:
    """Two seeds of three arms; the ensemble is the best of them; one group may be undefined."""
    rows = []
    for arm, seed, (at, model), split, label, metric in product(
            ("real", "duplicate", "synthetic", "oracle"), (0, 1), enumerate(MODELS), ("val", "test"),
            ("head", "tail"), ("AP", "AUROC")):
        value, reason = 0.2 + 0.1 * at + 0.01 * seed + (0.05 if split == "val" else 0), None
        value, reason = (np.nan, "no positives") if label == undefined else (value, reason)
        rows.append((arm, seed, model, split, label, metric, value, 9, 7, reason))
    return pd.DataFrame(rows, columns=list(COLUMNS))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return build_run(tmp_path_factory.mktemp("run"))


def test_without_an_ensemble_there_is_no_table(run):
    titles = [block.title for block in metrics_chapter(load_evidence(run)).blocks]
    assert not any("Single models" in title for title in titles)


def test_single_models_stand_above_their_ensemble_on_validation_and_test(run):
    members().to_parquet(run.folder / "comparison" / "members.parquet")
    evidence = load_evidence(run)
    sentence = model_sentence(members(), arm="synthetic", group="tail", metric="AP")
    evidence = replace(evidence, verdict={**evidence.verdict, "members": sentence})
    chapter = metrics_chapter(evidence)
    assert sentence in chapter.words
    assert "of 0.205 (r64) to 0.305 (r96) on test; their ensemble has 0.405" in sentence
    val, test = chapter.blocks[:2]
    assert ["validation" in val.title, " on test" in test.title] == [True, True]
    for table, gain in ((val, 0.05), (test, 0.0)):
        assert [row[:2] for row in table.rows] == list(product(("real", "duplicate", "synthetic"), MODELS))
        assert table.rows[0][2:] == (f"{0.205 + gain:.3f}",) * 2
        assert table.strong == {2, 5, 8}
        assert all(len(row) == len(table.columns) for row in table.rows)


def test_what_is_undefined_has_its_reason(run):
    evidence = replace(load_evidence(run), models=members(undefined="tail"))
    table = metrics_chapter(evidence).blocks[0]
    assert table.rows[0][2] == "— (a)"
    assert table.notes == ("(a) no positives",)
    assert "undefined on test" in model_sentence(members(undefined="tail"), arm="real", group="tail", metric="AP")


def test_averaged_and_last_weights_stand_side_by_side(run):
    evidence = load_evidence(run)
    table = metrics_chapter(evidence).blocks[-1]
    assert table.title == "AP by averaged (EMA) / last weights"
    row = next(cells for cells in table.rows if cells[0].startswith("Tail"))
    place = table.columns.index("synthetic")
    shown = evidence.metrics.query("split == 'test' and metric == 'AP' and label == 'tail' and arm == 'synthetic'")
    means = shown.groupby("weights")["value"].mean()
    assert row[place] == f"{means['ema']:.3f} / {means['raw']:.3f}"
    alone = replace(evidence, metrics=evidence.metrics[evidence.metrics["weights"] == "ema"])
    assert not any("EMA" in block.title for block in metrics_chapter(alone).blocks)
