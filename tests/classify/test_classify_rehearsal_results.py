"""The joined results of a rehearsal, on runs whose gains are planted."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from rehearsed_toys import STRENGTH, write_parent, write_run
from withheld_toys import toy_frame, write_toy

from classify.compare import CompareConfig, Endpoint
from classify.comparison.intervals import patient_draws
from classify.comparison.recovered import fieller_set
from classify.rehearsal.choices import Cell
from classify.rehearsal.page import Findings, headline_of
from classify.rehearsal.results import measure_all, write_results
from classify.rehearsal.settings import RehearsalConfig
from classify.rehearsal.shares import REHEARSED_GROUP, TAIL_GROUP, gather
from cohort.config import Run
from cohort.errors import TailfillError
from cohort.tables import load_cohort

ARMS = ("duplicate", "synthetic", "oracle")
CONFIG = RehearsalConfig(findings=("Effusion", "Nodule", "Mass"), levels=(10, 30), seeds=3, arms=ARMS, max_overlap=0.3)
COMPARE = CompareConfig(n_draws=150)
CELLS = [Cell(findings=one, place=place, level=level, seed=seed) for place, one in enumerate((("Effusion", "Nodule"),
         ("Mass",))) for level in (10, 30) for seed in (0, 1, 2)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Cell, Path]]:
    top = tmp_path_factory.mktemp("rehearsed")
    parent = write_parent(top / "cohort")
    new = write_toy(top / "new", toy_frame(40, seed=5, prefix="q"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("cohort.stage.git_commit", lambda: "toy")  # a process for each of a hundred stamps
        yield {cell: write_run(top / "rehearsal" / cell.name, parent, cell, ARMS, truth=new) for cell in CELLS}


def run_of(folders: dict[Cell, Path]) -> Run:
    top = next(iter(folders.values())).parents[3]
    return Run(run=str(top), threads=1, seed=4)


@pytest.fixture(scope="module")
def results(folders: dict[Cell, Path]) -> Path:
    write_results(run_of(folders), CONFIG, COMPARE, folders, has_truth=True)
    return run_of(folders).folder / "rehearsal" / "results"


def row(table: pd.DataFrame, **keys: object) -> pd.Series:
    for key, value in keys.items():
        table = table[table[key] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_planted_gains_come_back_as_shares_between_none_and_all(results: Path) -> None:
    table = pd.read_parquet(results / "recovered.parquet")
    for finding in ("Effusion", "Nodule", "Mass", REHEARSED_GROUP):
        for level in (10, 30):
            own = row(table, label=finding, level=level, arm="synthetic", metric="AP")
            oracle = row(table, label=finding, level=level, arm="oracle", metric="AP")
            assert oracle["gain_low"] > 0
            assert 0 < own["ci_low"] < own["share"] < own["ci_high"] < 1
            assert own["share"] == pytest.approx(own["gain"] / oracle["gain"])
            assert own["oracle_gain"] == oracle["gain"]
            assert np.isnan(oracle["share"])
    group = [row(table, label=f, level=10, arm="synthetic", metric="AP") for f in ("Effusion", "Nodule", "Mass")]
    mean = row(table, label=REHEARSED_GROUP, level=10, arm="synthetic", metric="AP")
    assert mean["share"] == pytest.approx(sum(one["gain"] for one in group) / sum(one["oracle_gain"] for one in group))


def test_the_set_is_fiellers_on_the_very_same_draws(folders: dict[Cell, Path], results: Path) -> None:
    run = run_of(folders)
    cells = measure_all(run, CONFIG, COMPARE, folders, load_cohort(run.cohort_folder))
    first = next(iter(cells.values())).scored
    assert all((one.scored.patients == first.patients).all() for one in cells.values())
    source = gather(cells, 30)
    assert source.values.shape == (3, 3, 3, 3)  # arms, thinnings, findings, metrics
    draws = patient_draws(first.n_patients, COMPARE.n_draws, np.random.default_rng(run.seed))
    assert source.resampled.shape[-1] == draws.shape[1]
    named = type(source)(values=source.values, resampled=source.resampled, scored=source.scored, arms=list(ARMS),
                         members=source.members, metrics=source.metrics)
    at = source.members["Mass"]
    wanted = fieller_set(named.gain("synthetic", "duplicate", at, 0), named.gain("oracle", "duplicate", at, 0))
    found = row(pd.read_parquet(results / "recovered.parquet"), label="Mass", level=30, arm="synthetic", metric="AP")
    assert (found["ci_low"], found["ci_high"]) == (wanted.low, wanted.high)


def test_an_arm_is_held_against_no_added_slots_and_against_wrong_labels(tmp_path: Path) -> None:
    arms = (*ARMS, "real", "permuted")
    strength = STRENGTH | {"real": 1.3, "permuted": 1.6}
    parent = write_parent(tmp_path / "cohort")
    config = RehearsalConfig(findings=("Effusion", "Nodule"), levels=(10,), seeds=3, arms=arms)
    cells = [Cell(findings=("Effusion", "Nodule"), place=0, level=10, seed=seed) for seed in range(3)]
    own = {cell: write_run(tmp_path / "rehearsal" / cell.name, parent, cell, arms, strength=strength) for cell in cells}
    write_results(Run(run=str(tmp_path), threads=1), config, COMPARE, own, has_truth=False)
    results = tmp_path / "rehearsal" / "results"
    table, shares = (pd.read_parquet(results / f"{name}.parquet") for name in ("contrasts", "recovered"))
    for rival in ("real", "permuted"):
        one = row(table, label=REHEARSED_GROUP, rival=rival, metric="AP")
        gains = {arm: row(shares, label=REHEARSED_GROUP, arm=arm, metric="AP")["gain"] for arm in ("synthetic", rival)}
        assert one["delta"] == pytest.approx(gains["synthetic"] - gains[rival])
    assert row(table, label=REHEARSED_GROUP, rival="real", metric="AP")["low"] > 0
    said = (results / "summary.txt").read_text(encoding="utf-8").splitlines()
    assert said[0].endswith("but are not shown to be better than the same images under each other's labels")
    assert "Synthetic against real: +0." in said[1]


def test_a_harmonised_arm_is_measured_against_harmonised_repeats_and_held_against_plain_ones(tmp_path: Path) -> None:
    arms = (*ARMS, "duplicate-harmonised", "synthetic-harmonised", "permuted-harmonised", "permuted")
    strength = STRENGTH | {"duplicate-harmonised": 0.8, "synthetic-harmonised": 1.6, "permuted-harmonised": 0.7,
                           "permuted": 1.0}
    parent = write_parent(tmp_path / "cohort")
    config = RehearsalConfig(findings=("Effusion", "Nodule"), levels=(10,), seeds=3, arms=arms)
    cells = [Cell(findings=("Effusion", "Nodule"), place=0, level=10, seed=seed) for seed in range(3)]
    own = {cell: write_run(tmp_path / "rehearsal" / cell.name, parent, cell, arms, strength=strength) for cell in cells}
    compare = replace(COMPARE, endpoint=Endpoint(arm="synthetic-harmonised", rival="duplicate-harmonised"))
    write_results(Run(run=str(tmp_path), threads=1), config, compare, own, has_truth=False)
    results = tmp_path / "rehearsal" / "results"
    shares, table = (pd.read_parquet(results / f"{name}.parquet") for name in ("recovered", "contrasts"))
    made = row(shares, label=REHEARSED_GROUP, arm="synthetic-harmonised", metric="AP")
    repeats = row(shares, label=REHEARSED_GROUP, arm="duplicate-harmonised", metric="AP")
    assert (made["rival"], repeats["rival"]) == ("duplicate-harmonised", "duplicate")
    assert made["rival_value"] == pytest.approx(repeats["value"])
    assert made["share"] == pytest.approx((made["value"] - repeats["value"]) / made["oracle_gain"])
    assert pd.isna(repeats["share"])
    assert set(table["rival"]) == {"duplicate", "permuted-harmonised"}
    page = (results / "rehearsal.md").read_text(encoding="utf-8")
    assert "synthetic-harmonised over duplicate-harmonised, by oracle over duplicate" in page


def test_ap_at_the_rare_prevalence_is_lower_and_auroc_the_same_for_what_is_ranked_alike(results: Path) -> None:
    table = pd.read_parquet(results / "recovered.parquet")
    plain = row(table, label="Effusion", level=10, arm="oracle", metric="AP")
    rare = row(table, label="Effusion", level=10, arm="oracle", metric="AP at prevalence")
    assert rare["value"] < plain["value"] / 2


def test_three_findings_give_no_prediction_and_the_page_says_so(results: Path) -> None:
    table = pd.read_parquet(results / "prediction.parquet")
    assert list(table["label"]) == ["Hernia", TAIL_GROUP]
    assert table["predicted"].isna().all()
    assert table["reason"].str.contains("3 findings measured; a prediction wants 6").all()
    for name in ("rehearsal.html", "rehearsal.md", "summary.txt"):
        text = (results / name).read_text(encoding="utf-8")
        assert "No prediction for the tail: 3 findings measured; a prediction wants 6" in text
    page = (results / "rehearsal.html").read_text(encoding="utf-8")
    assert "provenance unknown" in page
    assert "Real, withheld" in page


def test_runs_count_what_was_taken_made_and_kept(results: Path) -> None:
    table = pd.read_parquet(results / "runs.parquet")
    assert len(table) == 18  # 3 findings x 2 levels x 3 seeds
    assert (table["train_n_before"] == table["train_n_kept"] + table["train_n_withheld"]).all()
    assert (table["train_n_kept"] <= table["level"]).all()
    own = table[table["finding"] == "Effusion"]
    assert (own["made"] == 12).all()
    assert (own["kept"] == 9).all()


def test_where_the_oracle_is_no_better_there_is_no_share(folders: dict[Cell, Path], tmp_path: Path) -> None:
    parent = write_parent(tmp_path / "cohort")
    flat = STRENGTH | {"oracle": 1.0, "synthetic": 1.0}
    config = RehearsalConfig(findings=("Nodule",), levels=(10,), seeds=2, arms=ARMS)
    own = {cell: write_run(tmp_path / "rehearsal" / cell.name, parent, cell, ARMS, strength=flat)
           for cell in [Cell(findings=("Nodule",), place=0, level=10, seed=seed) for seed in (0, 1)]}
    run = Run(run=str(tmp_path), threads=1)
    write_results(run, config, COMPARE, own, has_truth=False)
    table = pd.read_parquet(tmp_path / "rehearsal" / "results" / "recovered.parquet")
    share = row(table, label="Nodule", arm="synthetic", metric="AP")
    assert np.isnan(share["share"])
    assert share["reason"] == "the oracle's gain over duplicate may be 0"
    assert "Cannot say" in (tmp_path / "rehearsal" / "results" / "summary.txt").read_text()


@pytest.mark.parametrize(("low", "share", "against", "said"), [
    (None, None, {}, "Cannot say: few"), (0.1, None, {}, "Cannot say: few"),
    (-0.1, None, {}, "Cannot say: even real images bring no clear gain at 10 positives"),
    (0.1, 0.5, {}, "Synthetic images recover 50 % of what real ones would bring"),
    (0.1, 0.5, {"real": 0.1, "permuted": 0.2}, "Synthetic images recover 50 % of what real ones would bring"),
    (0.1, 0.5, {"real": -0.1, "permuted": None}, "Synthetic images recover 50 % of what real ones would bring, but are "
     "not shown to be better than no added slots at all or the same images under each other's labels"),
])
def test_the_headline_blames_the_oracle_only_where_it_is_at_fault_and_names_who_was_not_beaten(
    low: float | None, share: float | None, against: dict[str, float | None], said: str
) -> None:
    rows: dict[str, dict[str, Any]] = {"oracle": {"gain_low": low}, "synthetic": {
        "share": share, "ci_low": 0.2, "ci_high": 0.9, "reason": "few"}}
    found = SimpleNamespace(
        endpoint=Endpoint(), levels=[10], row=lambda *, arm, **_: rows[arm],
        against=lambda *, level: pd.DataFrame({"rival": list(against), "low": list(against.values())}))
    assert headline_of(cast(Findings, found)) == said


def test_again_there_is_nothing_to_do_and_a_lost_run_is_named(folders: dict[Cell, Path], results: Path) -> None:
    before = (results / "recovered.parquet").stat().st_mtime_ns
    write_results(run_of(folders), CONFIG, COMPARE, folders, has_truth=True)
    assert (results / "recovered.parquet").stat().st_mtime_ns == before
    with pytest.raises(TailfillError, match="no complete 'predict"):
        write_results(run_of(folders), CONFIG, COMPARE, folders | {CELLS[0]: results / "nowhere"}, has_truth=True)
