"""The next round: enough of what is missing, none of what is hopeless, in other words, and nothing is drawn twice."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from test_prompts_plan import LABELS, SCARCE, cohort_of, toy_frame

from cohort.errors import TailfillError
from prompts.phrases import N_VARIANTS
from prompts.plan import Plan, Reality, build_plan, look
from prompts.settings import PlanConfig
from prompts.topping import (
    GIVEN_UP,
    MET,
    NEGATIVE,
    OPEN,
    SHORT,
    FillConfig,
    inflate,
    join_verdicts,
    negatives_again,
    phrased_as,
    phrasings_of,
    plan_round,
    shares_of_combinations,
    smooth,
    take_stock,
    upper_bound,
)

CONFIG, FILL = PlanConfig(total=330), FillConfig()


@pytest.fixture(scope="module")
def reality() -> Reality:
    return look(cohort_of(toy_frame()), CONFIG)


@pytest.fixture(scope="module")
def first(reality: Reality) -> Plan:
    return build_plan(reality.cohort, CONFIG, seed=7)


def judge(plan: pd.DataFrame, keep: np.ndarray) -> pd.DataFrame:
    return join_verdicts(plan, pd.DataFrame({"sample_id": plan["sample_id"], "keep": keep}))


def budget_of(plan: Plan) -> dict[str, int]:
    return {label: int(n) for label, n in zip(plan.budget["label"], plan.budget["target"], strict=True) if n}


def next_round(reality: Reality, first: Plan, seen: pd.DataFrame, **settings: float) -> tuple[Plan, pd.DataFrame]:
    """The second round, and the standing that it was planned from."""
    fill = FillConfig(**settings)
    stock = take_stock(seen, budget_of(first), fill, round_=0)
    return plan_round(reality, CONFIG, fill, seen=seen, stock=stock, seed=7, round_=1), stock.set_index("label")


def positives_of(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["charged_to"] != NEGATIVE]


def test_it_asks_as_much_as_the_share_so_far_needs(reality: Reality, first: Plan) -> None:
    rng = np.random.default_rng(0)
    chance = first.rows["charged_to"].map({"Hernia": 0.3, "Edema": 0.8, "Fibrosis": 1.0, NEGATIVE: 1.0})
    seen = judge(first.rows, rng.random(len(first.rows)) < chance)
    plan, stock = next_round(reality, first, seen)
    shares = shares_of_combinations(reality, seen)["share"].to_numpy()
    vectors = {vector.tobytes(): k for k, vector in enumerate(reality.combinations.vectors)}
    asked = positives_of(plan.rows)
    share_of_row = np.array([shares[vectors[row.tobytes()]] for row in asked[LABELS].to_numpy(bool)])
    for label in SCARCE:
        missing = stock.loc[label, "budget"] - stock.loc[label, "accepted"]
        expected = share_of_row[(asked[label] == 1).to_numpy()].sum()
        if stock.loc[label, "status"] == OPEN:
            assert missing - 3 <= expected <= 1.3 * missing + 3 * np.sqrt(missing) + 3
    assert stock.loc["Hernia", "status"] == OPEN
    assert (asked["Hernia"] == 1).sum() > 2 * (stock.loc["Hernia", "budget"] - stock.loc["Hernia", "accepted"])


def test_a_class_that_is_met_is_not_asked_again(reality: Reality, first: Plan) -> None:
    keep = (first.rows["Hernia"] == 0).to_numpy()
    plan, stock = next_round(reality, first, judge(first.rows, keep), min_acceptance=0.0)
    assert stock.loc["Hernia", "status"] == OPEN
    assert set(positives_of(plan.rows)["charged_to"]) <= {
        label for label in SCARCE if stock.loc[label, "status"] == OPEN}
    assert set(stock[stock["status"] == MET].index) <= {*SCARCE, NEGATIVE}


def test_nothing_is_drawn_twice_and_all_is_decided_by_seed_and_round(reality: Reality, first: Plan) -> None:
    seen = judge(first.rows, np.arange(len(first.rows)) % 3 == 0)
    plan, _ = next_round(reality, first, seen)
    again, _ = next_round(reality, first, seen.sample(frac=1, random_state=0).sort_index())
    pd.testing.assert_frame_equal(plan.rows, again.rows)
    both = pd.concat([first.rows, plan.rows])
    assert both["sample_id"].is_unique
    assert positives_of(both)["seed"].is_unique
    assert set(plan.rows["round"]) == {1}
    assert plan.rows["label_source_id"].dropna().isin(reality.train["image_id"]).all()
    assert plan.rows["batch"].value_counts().max() <= CONFIG.batch_size
    assert plan.counts["planned"] == len(plan.rows) == plan.counts["positives"] + plan.counts["negatives"]


def test_with_nothing_accepted_the_cap_holds(reality: Reality, first: Plan) -> None:
    seen = judge(first.rows, np.zeros(len(first.rows), bool))
    plan, stock = next_round(reality, first, seen, over_provision=3.0, min_acceptance=0.0)
    wanted = plan.budget.set_index("label")["target"]
    assert (wanted[SCARCE] >= stock.loc[SCARCE, "budget"]).all()
    assert len(positives_of(plan.rows)) <= 3 * wanted.sum() + 1
    given_up, stock = next_round(reality, first, seen, min_acceptance=0.05)
    assert set(stock.loc[SCARCE, "status"]) == {GIVEN_UP}
    assert given_up.rows.empty


def test_a_hopeless_combination_makes_room_for_others(reality: Reality, first: Plan) -> None:
    rows = first.rows
    mixed = ((rows["Edema"] == 1) & (rows["Effusion"] == 1)).to_numpy()
    rng = np.random.default_rng(1)
    seen = judge(rows, ~mixed & (rng.random(len(rows)) < 0.5))
    shares = shares_of_combinations(reality, seen)
    hopeless = [upper_bound(a, n) < 0.25 for a, n in zip(shares["accepted"], shares["asked"], strict=True)]
    assert any(hopeless)
    plan, _ = next_round(reality, first, seen, min_acceptance=0.25)
    asked = {row.tobytes() for row in positives_of(plan.rows)[LABELS].to_numpy(bool)}
    assert not asked & {vector.tobytes() for vector in reality.combinations.vectors[hopeless]}
    assert (positives_of(plan.rows)["Edema"] == 1).any()


def test_words_that_fail_are_said_less(reality: Reality, first: Plan) -> None:
    variant = np.array([phrased_as(row, phrasings_of(row, LABELS)) for row in first.rows.to_dict("records")])
    seen = judge(first.rows, (variant % 2 == 0) & (np.arange(len(first.rows)) % 4 > 0))
    plan, _ = next_round(reality, first, seen)
    asked = np.array([phrased_as(row, phrasings_of(row, LABELS)) for row in positives_of(plan.rows).to_dict("records")])
    counts = np.bincount(asked, minlength=N_VARIANTS)
    assert counts[1::2].sum() < 0.6 * counts[::2].sum()


def test_no_source_lends_its_labels_too_often() -> None:
    config = PlanConfig(total=330, max_repeat=12)
    reality = look(cohort_of(toy_frame()), config)
    first = build_plan(reality.cohort, config, seed=7)
    seen = judge(first.rows, np.arange(len(first.rows)) % 5 < 2)
    fill = FillConfig(over_provision=1.0)
    stock = take_stock(seen, budget_of(first), fill, round_=0)
    plan = plan_round(reality, config, fill, seen=seen, stock=stock, seed=7, round_=1)
    accepted = shares_of_combinations(reality, pd.concat([seen, judge(plan.rows, np.ones(len(plan.rows), bool))]))
    assert (accepted["accepted"] <= np.maximum(config.max_repeat * reality.combinations.weight, 0)).all()


def test_a_dropped_negative_is_asked_again_in_other_words(first: Plan) -> None:
    keep = (first.rows["charged_to"] != NEGATIVE) | (np.arange(len(first.rows)) % 4 > 1)
    seen, asked = judge(first.rows, keep.to_numpy()), first.rows
    dropped = set(seen[(seen["charged_to"] == NEGATIVE) & ~seen["keep"]]["seed"])
    for round_ in range(1, 8):
        again = negatives_again(seen, LABELS, times=2, seed=7, round_=round_, first=10)
        if again.empty:
            break
        assert set(again["seed"]) <= dropped
        assert again["seed"].value_counts().max() <= 2
        same = again.merge(first.rows[first.rows["charged_to"] == NEGATIVE], on="seed", suffixes=("", "_then"))
        for key in (*LABELS, "age", "label_source_id"):
            assert same[key].tolist() == same[f"{key}_then"].tolist()
        asked = pd.concat([asked, again])
        seen = pd.concat([seen, judge(again, np.zeros(len(again), bool))], ignore_index=True)
    assert round_ < 7
    assert not asked[["seed", "prompt"]].duplicated().any()
    assert asked["sample_id"].is_unique


def test_standing_at_the_last_round(first: Plan) -> None:
    seen = judge(first.rows, (first.rows["charged_to"] != "Hernia").to_numpy() | (np.arange(len(first.rows)) % 3 > 0))
    stock = take_stock(seen, budget_of(first), FillConfig(rounds=1), round_=0).set_index("label")
    assert stock.loc["Hernia", "status"] == SHORT
    assert "after 1 rounds" in stock.loc["Hernia", "reason"]
    kept = seen[seen["keep"] & (seen["charged_to"] != NEGATIVE)]
    assert stock.loc[SCARCE, "accepted"].tolist() == [int((kept[label] == 1).sum()) for label in SCARCE]
    assert stock.loc[NEGATIVE, "budget"] == len(kept)


def test_shares_and_their_bound() -> None:
    assert smooth(0, 0, 0.3) == pytest.approx(0.3)
    assert 0.3 < smooth(5, 10, 0.3) < 0.5
    for accepted, asked in ((0, 59), (3, 40), (7, 9)):
        interval = binomtest(accepted, asked).proportion_ci(0.9, method="exact")  # its two sides are 5 % each
        assert upper_bound(accepted, asked) == pytest.approx(interval.high)
    assert upper_bound(0, 0) == upper_bound(4, 4) == 1.0


def test_inflation_rounds_the_sum_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        counts, shares = rng.integers(0, 9, 12), rng.uniform(0.1, 1.0, 12)
        asks = inflate(counts, shares)
        assert asks.sum() == int(np.ceil((counts / shares).sum() - 1e-9))
        assert (np.abs(asks - counts / shares) < 1 + 1e-9).all()
        assert (asks[counts == 0] == 0).all()


@pytest.mark.parametrize(("key", "value"), [("rounds", 0), ("rounds", 101), ("over_provision", 0.5),
                                            ("min_acceptance", 1.0), ("min_acceptance", -0.1)])
def test_settings_out_of_range_are_named(key: str, value: float) -> None:
    with pytest.raises(TailfillError, match=rf"fill\.{key} is {value}; wanted"):
        FillConfig(**{key: value})
