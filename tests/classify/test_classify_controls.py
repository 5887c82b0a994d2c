"""Compare with an oracle and with negative controls: what stands beside the endpoint, and in no group of findings."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fabricated_predictions import ARMS, GROUPS, Fake, fabricate

import cohort.stage
from classify.comparison.controls import control_sentence
from classify.comparison.intervals import holm
from classify.comparison.metrics import HIGHER_IS_BETTER
from classify.comparison.pairs import ABOUT, RIVALS, default_pairs, rivals_of, slot_rivals

CONTROLLED = GROUPS | {"Nodule": "control", "Fibrosis": "medium"}


@pytest.fixture(scope="module")
def stamps_at_once() -> Iterator[pytest.MonkeyPatch]:
    """Stamps of a fabricated run need neither torch nor git, which cost seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cohort.stage, "git_commit", lambda: "f" * 40)
        patch.setattr(cohort.stage, "device_name", lambda: "cpu toy")
        patch.setattr(cohort.stage, "package_versions", lambda: {"torch": "2.0"})
        yield patch


def fresh(folder: Path, arms: tuple[str, ...] = ARMS, groups: dict[str, str] = CONTROLLED) -> Fake:
    """All arms and a control; Fibrosis is Edema under another name, so that no group is empty."""
    made = fabricate(folder)
    made.arms, made.frame["Fibrosis"] = arms, made.frame["Edema"]
    made.write_cohort(groups)
    return made


@pytest.fixture(scope="module")
def compared(tmp_path_factory, stamps_at_once) -> tuple[Fake, dict]:
    """A run in which synthetic helps and the oracle helps more, and the stamp of its comparison."""
    fake = fresh(tmp_path_factory.mktemp("compared") / "run").predict(gain=1.0, oracle=2.0)
    return fake, fake.compare(stamps_at_once)


def test_every_arm_has_one_rival_and_a_line_and_pairs_follow():
    assert set(ABOUT) == {*RIVALS, "real"}
    assert set(RIVALS.values()) <= set(ABOUT)
    pairs = default_pairs(list(ABOUT), arm="synthetic", rival="duplicate")
    assert pairs[0] == ("synthetic", "duplicate")
    assert len(pairs) == len(set(pairs))
    assert {*RIVALS.items()} <= set(pairs)
    assert {("synthetic", other) for other in ABOUT if other != "synthetic"} <= set(pairs)
    assert rivals_of(["synthetic", "oracle"]) == {}
    assert slot_rivals(["real", "duplicate", "oracle"]) == {"oracle": "duplicate"}


def test_the_recovered_share_is_that_of_mean_gains(compared):
    fake, stamp = compared
    table, comparison = fake.table("recovered"), fake.table("comparison")
    assert "recovered.parquet" in stamp["outputs"]
    assert set(zip(table["arm"], table["rival"], table["oracle"], strict=True)) == {
        ("synthetic", "duplicate", "oracle"), ("permuted", "duplicate", "oracle")}
    assert set(table["metric"]) == set(HIGHER_IS_BETTER)
    deltas = comparison[comparison["rival"] == "duplicate"].set_index(["arm", "label", "metric"])["delta"]
    for row in table[table["share"].notna()].itertuples():
        ratio = deltas[row.arm, row.label, row.metric] / deltas["oracle", row.label, row.metric]
        assert row.share == pytest.approx(ratio)
        assert row.ci_low <= row.share <= row.ci_high
    tail = table[(table["label"] == "tail") & (table["metric"] == "AP")].set_index("arm")
    assert 0.2 < tail.loc["synthetic", "ci_low"] < tail.loc["synthetic", "ci_high"] < 1.2
    assert "synthetic recovers" in stamp["extra"]["verdict"]["recovered"]


def test_the_share_is_null_exactly_where_the_oracle_does_not_beat_the_duplicates(compared):
    fake, _ = compared
    table, comparison = fake.table("recovered"), fake.table("comparison")
    oracle = comparison.query("arm == 'oracle' and rival == 'duplicate'").set_index(["label", "metric"])
    gains = oracle["ci_low"] > 0
    assert 0 < gains.sum() < len(gains)
    for row in table.itertuples():
        assert pd.notna(row.share) == gains[row.label, row.metric] == pd.isna(row.reason)


def test_without_an_oracle_or_controls_there_are_no_such_tables(tmp_path, stamps_at_once):
    fake = fresh(tmp_path / "run", ("duplicate", "synthetic"), GROUPS)
    stamp = fake.predict().compare(stamps_at_once)
    assert not {"recovered.parquet", "controls.parquet"} & set(stamp["outputs"])
    assert not {"recovered", "controls"} & set(stamp["extra"]["verdict"])
    assert "control" not in set(fake.table("comparison")["label"])


def test_controls_are_in_no_group_of_findings_and_a_family_of_their_own(compared):
    fake, stamp = compared
    values = fake.table("comparison").query("arm == 'real' and rival.isna() and metric == 'AP'").set_index("label")
    findings = [label for label, group in CONTROLLED.items() if group != "control"]
    assert values.loc["all", "value"] == pytest.approx(values.loc[findings, "value"].mean())
    assert values.loc["control", "value"] == pytest.approx(values.loc["Nodule", "value"])
    intervals = fake.table("intervals").query("arm == 'synthetic' and rival == 'duplicate' and metric == 'AP'")
    plain = intervals.set_index("label")
    assert plain.loc["Nodule", "p"] == plain.loc["Nodule", "p_plain"]
    assert plain.loc[findings, "p"].tolist() == pytest.approx(holm(plain.loc[findings, "p_plain"].tolist()))
    table = fake.table("controls")
    mean, table = table[table["label"] == "control"], table[table["label"] != "control"]
    assert set(table["label"]) == {"Nodule"}
    assert mean["p"].isna().all()
    assert mean["delta"].tolist() == table["delta"].tolist()
    assert set(table["arm"]) == {"synthetic", "oracle", "permuted"}
    assert (table["p"] >= fake.table("comparison").query("label == 'Nodule'").set_index(["arm", "rival", "metric"]).loc[
        [(row.arm, row.rival, "AP") for row in table.itertuples()], "p"].to_numpy()).all()
    assert "Nodule" not in stamp["extra"]["verdict"]["positive_patients"]
    assert "none of 3 differences is significant" in stamp["extra"]["verdict"]["controls"]


def test_a_gain_on_a_control_is_called_an_artefact(tmp_path, stamps_at_once):
    def knows(frame, arm, seed):
        more = 3.0 * (arm == "oracle") * frame["Nodule"].astype(float).fillna(0.0)
        return frame.assign(logit_Nodule=(frame["logit_Nodule"] + more).astype("float32"))

    fake = fresh(tmp_path / "run", ("duplicate", "synthetic", "oracle"))
    verdict = fake.predict(change=knows).compare(stamps_at_once)["extra"]["verdict"]
    assert "oracle against duplicate in Nodule" in verdict["controls"]
    assert "artefact" in verdict["controls"]


def test_controls_follow_the_endpoint_and_the_oracle_counts_whatever_pairs_are_shown(tmp_path, stamps_at_once):
    fake = fresh(tmp_path / "run", ("real", "synthetic", "oracle"))
    flags = ("--compare.endpoint.rival", "real", "--compare.pairs", '[["synthetic", "real"]]')
    stamp = fake.predict(oracle=2.0).compare(stamps_at_once, *flags)
    assert stamp["extra"]["pairs"] == [["synthetic", "real"]]
    assert stamp["extra"]["verdict"]["sensitivity"] == "shown"
    table = fake.table("controls")
    assert set(zip(table["arm"], table["rival"], strict=True)) == {("synthetic", "real")}
    assert "Negative controls (Nodule): none of 1" in stamp["extra"]["verdict"]["controls"]


def test_controls_without_any_test_say_why():
    table = pd.DataFrame({"arm": ["oracle"], "rival": ["duplicate"], "label": ["Infarction"], "p": [np.nan],
                          "significant": [False], "reason": ["fewer than 10 positive patients"]})
    assert "no test was possible (fewer than 10" in control_sentence(table)
