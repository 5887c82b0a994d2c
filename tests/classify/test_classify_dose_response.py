"""The dose-response: validation alone chooses, both arms are tuned equally, and every number is the comparison's."""

import numpy as np
import pandas as pd
import pytest
from fabricated_predictions import LABELS, Fake, fabricate
from sklearn.metrics import average_precision_score

from classify.comparison.amounts import amount_sentence, choose_amounts, dosed_bases, shared_amounts

ARMS = ("real", "duplicate", "synthetic", "duplicate-0.5x", "synthetic-0.5x", "duplicate-2x", "synthetic-2x")
BEST_ON_VAL = {"synthetic": "synthetic-2x", "duplicate": "duplicate-0.5x"}
BEST_ON_TEST = ("synthetic-0.5x", "duplicate")
ENDPOINT = {"metric": "AP", "group": "tail", "arm": "synthetic", "rival": "duplicate", "weights": "ema"}


def plant(frame: pd.DataFrame, arm: str, seed: int) -> pd.DataFrame:
    """Other arms are best on validation than on test."""
    helped = ((frame["split"] == "val") & (arm in BEST_ON_VAL.values())) | (
        (frame["split"] == "test") & (arm in BEST_ON_TEST))
    return frame.assign(**{f"logit_{label}": (frame[f"logit_{label}"] + 2.0 * (helped & (frame[label] == 1).fillna(
        False))).astype("float32") for label in LABELS})


def compared(folder, *, arms=ARMS, change=plant, flags=()) -> tuple[Fake, dict]:
    fake = fabricate(folder)
    fake.arms = arms
    with pytest.MonkeyPatch.context() as patch:
        return fake, fake.predict(change=change).compare(patch, *flags)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Fake, dict]:
    return compared(tmp_path_factory.mktemp("doses") / "run")


def test_validation_chooses_though_test_says_otherwise(made):
    fake, stamp = made
    assert stamp["extra"]["amounts"]["chosen"] == {"synthetic": 2.0, "duplicate": 0.5}
    table = fake.table("amounts").set_index("arm")
    assert set(table.index) == set(ARMS[1:])
    assert set(table.index[table["chosen"]]) == set(BEST_ON_VAL.values())
    assert table["value"].groupby(table["base"]).idxmax().to_dict() == dict(zip(("synthetic", "duplicate"),
                                                                              BEST_ON_TEST, strict=True))
    assert "synthetic-2x against duplicate-2x" in stamp["extra"]["verdict"]["amounts"]


def test_validation_values_are_those_of_scikit_learn(made):
    fake, _ = made
    table = fake.table("amounts").set_index("arm")
    for arm in ARMS[1:]:
        values = []
        for seed in range(3):
            frame = plant(fake.predictions(arm, seed), arm, seed).query("weights == 'ema' and split == 'val'")
            values += [average_precision_score(frame[label].astype(int), frame[f"logit_{label}"])
                       for label in ("Edema", "Hernia")]
        assert table.loc[arm, "val"] == pytest.approx(np.mean(values), abs=1e-12)


def test_each_amount_is_compared_with_its_own_rival_and_the_numbers_are_the_comparison_s(made):
    fake, stamp = made
    rows = fake.table("comparison").query("label == 'tail' and metric == 'AP'").set_index(["arm", "rival"])
    table = fake.table("amounts").set_index("arm")
    rivals = {"synthetic": "duplicate", "synthetic-0.5x": "duplicate-0.5x", "synthetic-2x": "duplicate-2x",
              "duplicate": "real", "duplicate-0.5x": "real", "duplicate-2x": "real"}
    assert table["rival"].to_dict() == rivals
    for arm, rival in rivals.items():
        found = rows.loc[(arm, rival)]
        assert table.loc[arm, ["delta", "delta_low", "delta_high", "value"]].tolist() == pytest.approx(
            found[["delta", "ci_low", "ci_high", "value"]].tolist())
    facts = stamp["extra"]["amounts"]
    assert facts["same_slots"]["delta"] == pytest.approx(table.loc["synthetic-2x", "delta"])
    assert facts["both_at_best"]["rival"] == "duplicate-0.5x"
    assert facts["both_at_best"]["delta"] == pytest.approx(
        table.loc["synthetic-2x", "value"] - table.loc["duplicate-0.5x", "value"])
    assert facts["both_at_best"]["ci_low"] < facts["both_at_best"]["delta"] < facts["both_at_best"]["ci_high"]


def test_the_endpoint_and_what_stands_beside_it_know_no_amounts(made):
    fake, stamp = made
    assert stamp["extra"]["verdict"]["endpoint"]["arm"] == "synthetic"
    assert ["synthetic", "duplicate-2x"] not in stamp["extra"]["pairs"]
    for name in ("subgroups", "signatures"):
        table = fake.table(name)
        assert not table["arm"].str.endswith("x").any()


def test_test_labels_and_scores_play_no_part_in_the_choice():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame([{"arm": arm, "seed": seed, "weights": "ema", "split": split, "label": "tail", "metric": "AP",
                          "value": rng.random(), "n_positive_patients": 12}
                         for arm in ARMS for seed in range(3) for split in ("val", "test")])
    chosen = choose_amounts(rows, ARMS, ENDPOINT)
    means = rows[rows["split"] == "val"].groupby("arm")["value"].mean()
    for base in ("synthetic", "duplicate"):
        best = means[[base, f"{base}-0.5x", f"{base}-2x"]].idxmax()
        assert chosen[base] == {base: 1.0, f"{base}-0.5x": 0.5, f"{base}-2x": 2.0}[best]
    without = rows.assign(value=rows["value"].where(rows["split"] == "val"))
    assert choose_amounts(without, ARMS, ENDPOINT) == chosen
    level = rows.assign(value=0.5)
    assert set(choose_amounts(level, ARMS, ENDPOINT).values()) == {0.5}  # of equals the least to make


def test_both_arms_choose_among_the_same_amounts():
    arms = ("duplicate", "synthetic", "synthetic-2x", "synthetic-5x", "duplicate-2x", "oracle", "oracle-2x")
    assert dosed_bases(arms) == {"synthetic": [1, 2, 5], "duplicate": [1, 2], "oracle": [1, 2]}
    assert shared_amounts(arms, ENDPOINT) == [1, 2]
    assert shared_amounts(arms[:4], ENDPOINT) == []


def test_the_amounts_that_are_told_are_those_that_both_arms_were_tried_at():
    arms = ("duplicate", "synthetic", "synthetic-2x", "synthetic-5x", "duplicate-2x")
    table = pd.DataFrame({"arm": arms, "base": [arm.partition("-")[0] for arm in arms], "n_val_positive_patients": 12,
                          "chosen": [False, False, True, False, True]})
    part = {"rival": "duplicate-2x", "delta": 0.01, "ci_low": 0.0, "ci_high": 0.02}
    facts = {"chosen": {"synthetic": 2.0, "duplicate": 2.0}, "arm": "synthetic-2x", "same_slots": part,
             "both_at_best": part}
    assert "2 amounts tried for each arm" in amount_sentence(table, facts, ENDPOINT)


def test_two_amounts_of_one_arm_as_the_endpoint_leave_nothing_to_choose():
    assert shared_amounts(ARMS, ENDPOINT | {"arm": "synthetic-2x", "rival": "synthetic"}) == []


def test_without_amounts_there_is_no_table(tmp_path):
    fake, stamp = compared(tmp_path / "run", arms=ARMS[:3], change=None)
    assert stamp["extra"]["amounts"] == {}
    assert "amounts" not in stamp["extra"]["verdict"]
    assert not (fake.run / "comparison" / "amounts.parquet").exists()


def test_where_validation_has_no_positives_nothing_is_chosen_and_that_is_said(tmp_path):
    fake = fabricate(tmp_path / "run")
    for label in ("Edema", "Hernia"):
        fake.frame.loc[fake.frame["split"] == "val", label] = 0
    fake.write_cohort()
    fake.arms = ("duplicate", "synthetic", "duplicate-2x", "synthetic-2x")
    with pytest.MonkeyPatch.context() as patch:
        stamp = fake.predict().compare(patch)
    assert stamp["extra"]["verdict"]["amounts"].startswith("No amount could be chosen")
    table = fake.table("amounts")
    assert table["val"].isna().all()
    assert not table["chosen"].any()
    own = table[table["base"] == "synthetic"]
    assert own["delta"].notna().all()
    assert (table.drop(own.index)["reason"] == "its rival is not in this run").all()  # it has no arm real
