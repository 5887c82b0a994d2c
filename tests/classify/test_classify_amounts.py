"""Arms at other amounts: names, nested layouts, equal slots for the rivals of one amount, and what is not there."""

from itertools import pairwise

import pandas as pd
import pytest
from tiny_classify import write_cohort, write_further, write_synthetic

from classify.arm import ArmConfig, arm_stage, build_arm, check_arm, count_slots
from classify.arms.amounts import plain_arms, split_amount
from classify.arms.layout import NEGATIVE
from classify.arms.rivals import ARMS
from cohort.config import Run, arm_at
from cohort.errors import TailfillError

CONFIG = ArmConfig(slots_per_class=4)
AMOUNTS = (0.5, 2.0, 5.0)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("amounts"))


@pytest.fixture(scope="module")
def run(cohort):
    folder = cohort.folder.parent
    write_synthetic(folder, cohort, per_source=6)
    write_further(folder, "oracle")
    return Run(run=str(folder), n_seeds=3, threads=1, amounts=AMOUNTS)


def build(run, cohort, arm, *, seed=0):
    return build_arm(run, cohort, CONFIG, arm=arm, seed=seed)[0]


def positives(slots: pd.DataFrame) -> pd.DataFrame:
    """The added slots of the one scarce label, in order."""
    return slots[slots["charged_to"].notna() & slots["charged_to"].ne(NEGATIVE)].reset_index(drop=True)


def test_names_and_amounts_go_back_and_forth(run):
    for amount in (0.01, 0.25, 0.333333, 2.0, 5.0, 100.0):
        assert split_amount(arm_at("synthetic-then-real", amount)) == ("synthetic-then-real", amount)
    assert split_amount(arm_at("synthetic", 1.0)) == ("synthetic", 1.0)
    assert run.arms[4:] == ("duplicate-0.5x", "synthetic-0.5x", "duplicate-2x", "synthetic-2x", "duplicate-5x",
                            "synthetic-5x")
    assert Run(run="r", arms=run.arms, amounts=AMOUNTS).arms == run.arms  # as the resolved configuration is read
    assert plain_arms(run.arms) == ["real", "oversample", "duplicate", "synthetic"]
    assert plain_arms(run.arms, "synthetic-2x")[-1] == "synthetic-2x"


@pytest.mark.parametrize("amounts", [(0.0,), (2.0, -1.0), (1000.0,)])
def test_an_amount_out_of_range_is_refused(amounts):
    with pytest.raises(TailfillError, match=r"amounts is .*; wanted: 0.01 to 100 each"):
        Run(run="r", amounts=amounts)


def test_amounts_need_both_arms_that_they_are_about():
    with pytest.raises(TailfillError, match=r"arms is .*wanted: duplicate and synthetic among them"):
        Run(run="r", arms=("real", "synthetic"), amounts=(2.0,))


@pytest.mark.parametrize("arm", ["real-2x", "oversample-2x", "synthetic-1x", "synthetic-02x", "nothing-2x", "-2x"])
def test_what_has_no_added_slots_or_is_written_otherwise_is_no_arm(run, arm):
    assert arm not in ARMS
    with pytest.raises(TailfillError, match="unknown"):
        check_arm(run, arm, 0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("amount", AMOUNTS)
def test_each_amount_has_its_slots_and_shares_them_with_its_own_rival(run, cohort, amount, seed):
    ours, rival = (build(run, cohort, arm_at(arm, amount), seed=seed) for arm in ("synthetic", "duplicate"))
    assert len(positives(ours)) == 4 * amount
    for column in ("charged_to", "source"):
        pd.testing.assert_series_equal(ours[column], rival[column])
    counts = count_slots(ours)
    assert counts["synthetic"] + counts["synthetic_negative"] + counts["unfilled"] == 4 * amount  # half of both kinds


@pytest.mark.parametrize("base", ["duplicate", "synthetic"])
def test_a_smaller_amount_is_the_beginning_of_a_larger_one(run, cohort, base):
    arms = [positives(build(run, cohort, arm_at(base, amount))) for amount in (0.5, 1.0, 2.0, 5.0)]
    for smaller, larger in pairwise(arms):
        pd.testing.assert_series_equal(smaller["source"], larger["source"][:len(smaller)])
        made = [set(part["sample_id"].dropna()) for part in (smaller, larger)]
        assert made[0] <= made[1]


def test_what_was_not_kept_is_counted_as_unfilled_and_stays_a_repeat(run, cohort):
    counts = [count_slots(build(run, cohort, "synthetic-5x", seed=seed)) for seed in range(3)]
    assert [one["synthetic"] + one["unfilled"] >= 10 for one in counts] == [True] * 3
    assert sum(one["synthetic"] for one in counts) == 24  # six of each of four sources, none of them twice
    assert sum(one["unfilled"] for one in counts) > 0


def test_any_arm_with_added_slots_has_amounts_and_a_table_of_its_own(run, cohort):
    assert len(positives(build(run, cohort, "oracle-2x"))) == 8
    assert ARMS["oracle-2x"].needs == ARMS["oracle"].needs
    stages = [arm_stage(run, CONFIG, arm=arm, seed=0) for arm in ("synthetic", "synthetic-2x")]
    assert stages[0].fingerprint != stages[1].fingerprint
    assert stages[0].folder != stages[1].folder


def test_an_amount_that_leaves_no_slot_is_refused(run, cohort):
    with pytest.raises(TailfillError, match=r"'synthetic-0.1x': 0.1 times 4 slots"):
        build(run, cohort, "synthetic-0.1x")
