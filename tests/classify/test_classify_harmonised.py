"""Harmonised arms: as many real images as synthetic ones have the decoder's look, the same in all arms of a seed."""

import pandas as pd
import pytest
from tiny_classify import write_cohort, write_stages

from classify.arm import ArmConfig, build_arm
from classify.arms.layout import HARMONISED
from classify.arms.rivals import ARMS
from classify.comparison.pairs import default_pairs, oracle_rival
from classify.train import is_held
from cohort.tables import RECONSTRUCTED

CONFIG = ArmConfig(slots_per_class=10)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("harmonised"))


@pytest.fixture(scope="module")
def run(cohort):
    return write_stages(cohort)


def build(run, cohort, arm, *, seed=0, config=CONFIG):
    return build_arm(run, cohort, config, arm=arm, seed=seed)[0]


@pytest.mark.parametrize(("first", "plain_arm"), [
    ("duplicate", "duplicate-reconstructed"), ("synthetic", "synthetic"), ("permuted", "permuted"),
    ("oracle-reconstructed", "oracle-reconstructed")])
@pytest.mark.parametrize("share", [0.5, 0.25])
def test_harmonised_arms_hold_one_share_of_the_real_images_reconstructed_and_are_the_plain_arm_else(
    run, cohort, first, plain_arm, share
):
    halves, config = [], ArmConfig(slots_per_class=10, synthetic_share=share)
    for seed in range(3):
        plain, slots = (build(run, cohort, arm, seed=seed, config=config) for arm in (plain_arm, f"{first}-harmonised"))
        at = slots["kind"].eq(HARMONISED)
        assert at.sum() == round(share * len(cohort.split("train")))
        assert (plain["kind"][at] == "real").all()
        assert list(slots["image_id"][at]) == [RECONSTRUCTED + image for image in plain["image_id"][at]]
        columns = [column for column in plain.columns if column != "repeat"]
        pd.testing.assert_frame_equal(slots[columns][~at], plain[columns][~at])
        halves.append(frozenset(slots["image_id"][at]))
        repeats = build(run, cohort, "duplicate-harmonised", seed=seed, config=config)
        assert halves[-1] == frozenset(repeats["image_id"][at])
    assert len(set(halves)) == 3  # each seed its own


def test_class_weights_and_grey_statistics_are_those_of_all_of_train_in_every_arm_that_is_compared(run, cohort):
    train = cohort.split("train")
    for arm in (arm for arm in ARMS if arm != "fold"):
        assert is_held(train, build(run, cohort, arm)).all(), arm


def test_the_oracle_has_to_beat_plain_repeats_whatever_the_endpoint_s_rival() -> None:
    arms = ["duplicate", "duplicate-harmonised", "synthetic-harmonised", "oracle"]
    pairs = default_pairs(arms, arm="synthetic-harmonised", rival="duplicate-harmonised")
    assert pairs[0] == ("synthetic-harmonised", "duplicate-harmonised")
    assert [pair for pair in pairs if pair[0] == "oracle"] == [("oracle", "duplicate")]
    assert (oracle_rival("duplicate-harmonised"), oracle_rival("duplicate-2x")) == ("duplicate", "duplicate-2x")
