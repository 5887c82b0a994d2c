"""Arms of two phases: balanced slots for a new head, and a curriculum of synthetic images."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from tiny_classify import LABELS, write_cohort, write_synthetic

from classify.arm import ArmConfig, arm_stage, build_arm
from classify.arms.filling import deal, surer_half
from classify.arms.layout import NEGATIVE, balanced_slots
from classify.arms.rivals import ARMS
from classify.slots import load_pools
from cohort.config import Run
from cohort.errors import TailfillError

CONFIG = ArmConfig(slots_per_class=10)
CURRICULUM = "diverse-to-specific"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("phases"))


@pytest.fixture(scope="module")
def run(cohort):
    write_synthetic(cohort.folder.parent, cohort, per_source=3)
    return Run(run=str(cohort.folder.parent), n_seeds=3, threads=1)


@pytest.fixture(scope="module")
def made(run, cohort):
    return load_pools({"filter": run.folder / "synthetic"}, cohort)["filter"].frame


def build(run, cohort, arm, *, seed=0):
    slots = build_arm(run, cohort, CONFIG, arm=arm, seed=seed)[0]
    return [slots[slots["phase"] == phase].reset_index(drop=True) for phase in (1, 2)]


def sureness(frame):
    return frame["label_agreement"].fillna(-np.inf)


def test_an_images_share_of_balanced_slots_is_the_sum_over_its_labels(cohort):
    """Against the definition: a label uniformly, then one of its images; what is positive for nothing is a label."""
    train = cohort.split("train")
    positive = train[LABELS].eq(1).fillna(False).to_numpy(dtype=bool)
    positive = np.column_stack([positive, ~positive.any(axis=1)])
    assert positive.any(axis=0).all()
    slots = balanced_slots(cohort, np.random.default_rng(0))
    count = len(slots) // positive.shape[1]
    assert len(train) <= len(slots) < len(train) + positive.shape[1]
    times = slots["image_id"].value_counts().reindex(train["image_id"], fill_value=0).to_numpy()
    low = (positive * np.floor(count / positive.sum(axis=0))).sum(axis=1)
    assert (times >= low).all()
    assert (times <= low + positive.sum(axis=1)).all()
    for column, group in enumerate(np.split(slots["image_id"].to_numpy(), positive.shape[1])):
        assert set(group) <= set(train["image_id"][positive[:, column]])
    assert (slots["loss_weight"] == 1).all()


def test_a_label_that_nobody_has_gets_no_balanced_slots(cohort):
    frame = cohort.frame.assign(Mass=pd.array([0] * len(cohort.frame), dtype="Int8"))
    slots = balanced_slots(replace(cohort, frame=frame), np.random.default_rng(0))
    assert len(slots) == 42  # 40 images over Effusion, Hernia and nothing


def test_retraining_begins_as_real_and_its_second_phase_is_another_for_every_seed(run, cohort):
    first, second = build(run, cohort, "crt")
    real = build(run, cohort, "real")[0]
    pd.testing.assert_frame_equal(first, real)
    assert second["added"].all(), "so that no share of real slots is asked of it"
    assert list(second["image_id"]) != list(build(run, cohort, "crt", seed=1)[1]["image_id"])
    stages = [arm_stage(replace(run, seed=seed), CONFIG, arm="crt", seed=0) for seed in (0, 1)]
    assert stages[0].fingerprint != stages[1].fingerprint


def test_the_curriculum_keeps_the_slots_of_duplicate_in_both_phases(run, cohort):
    for seed in range(3):
        repeats = build(run, cohort, "duplicate", seed=seed)[0]
        for phase in build(run, cohort, CURRICULUM, seed=seed):
            for column in ("charged_to", "source", "added"):
                pd.testing.assert_series_equal(phase[column], repeats[column])
            real = phase["sample_id"].isna()
            assert (phase["image_id"] == repeats["image_id"])[real].all()
            assert (phase["loss_weight"] == np.where(real, 1.0, CONFIG.synthetic_loss_weight)).all()


def test_the_curriculum_goes_from_any_image_to_those_the_critic_is_surest_of(run, cohort, made):
    known = made.set_index("image_id")
    used: list[set[str]] = []
    dropped = 0
    for seed in range(3):
        diverse, specific = ([*phase["image_id"][phase["sample_id"].notna()]]
                             for phase in build(run, cohort, CURRICULUM, seed=seed))
        dropped += int((~known.loc[diverse, "keep"]).sum())
        own = deal(made, seed=seed, n_seeds=3, by=("label_source_id", "sample_id"))
        assert set(diverse) | set(specific) <= set(own["image_id"])
        assert known.loc[specific, "keep"].all()
        for charged, group in known.loc[specific].groupby("charged_to"):
            kept = own[own["keep"] & (own["charged_to"] == charged)]
            passed_over = kept[~kept["image_id"].isin(surer_half(own)["image_id"])]
            assert sureness(group).min() >= sureness(passed_over).max()
        used.append({*diverse, *specific})
    assert dropped > 0
    assert len(set.union(*used)) == sum(map(len, used)), "no image serves two seeds"


def test_the_surer_half_is_rounded_up_counts_what_is_not_judged_last_and_asks_for_its_rule(made):
    half = surer_half(made)
    kept = made[made["keep"]]
    assert half["keep"].all()
    for charged in ("Hernia", NEGATIVE):
        group, chosen = kept[kept["charged_to"] == charged], half[half["charged_to"] == charged]
        assert len(chosen) == -(-len(group) // 2)
        assert sureness(chosen).min() >= sureness(group[~group["image_id"].isin(chosen["image_id"])]).max()
    shuffled = made.sample(frac=1, random_state=0)
    assert set(surer_half(shuffled)["image_id"]) == set(half["image_id"])
    with pytest.raises(TailfillError, match="no column label_agreement"):
        surer_half(made.drop(columns="label_agreement"))


def test_both_are_arms_of_two_phases():
    assert ARMS["crt"].renews_head
    assert [name for name, arm in ARMS.items() if arm.renews_head] == ["crt"]
    assert ARMS["crt"].has_phase_2
    assert ARMS[CURRICULUM].has_phase_2
