"""Arms: what stands in which slot; rivals share their slots, seeds share no synthetic image, counts add up."""

import sys

import numpy as np
import pandas as pd
import pytest
from tiny_classify import LABELS, write_cohort, write_stages

from classify import arm as arm_module
from classify.arm import ArmConfig, build_arm, count_slots, write_arm
from classify.arms.filling import deal
from classify.arms.layout import NEGATIVE, tail_slots
from classify.arms.rivals import ARMS, Draw, oversample
from cohort.config import Run
from cohort.errors import TailfillError, run_command
from cohort.stage import require
from cohort.tables import RECONSTRUCTED, arm_schema, check_table, read_table

CONFIG = ArmConfig(slots_per_class=10)
RIVALS = [name for name, arm in ARMS.items() if arm.splits == ("train",)]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("arm"))


@pytest.fixture(scope="module")
def run(cohort):
    return write_stages(cohort)


def build(run, cohort, arm, *, seed=0, config=CONFIG):
    return build_arm(run, cohort, config, arm=arm, seed=seed)


@pytest.mark.parametrize("arm", RIVALS)
def test_every_arm_is_a_valid_table_holding_each_real_image_first(run, cohort, arm):
    slots, _ = build(run, cohort, arm)
    check_table(slots[list(arm_schema().columns)], arm_schema(), where=arm)
    train = cohort.split("train")
    assert list(slots["image_id"][: len(train)].str.removeprefix(RECONSTRUCTED)) == list(train["image_id"])
    assert list(slots["slot_id"]) == list(range(len(slots)))
    counts = count_slots(slots)
    assert counts.pop("slots") == sum(counts.values()) - counts["unfilled"]
    assert not slots.duplicated(["image_id", "repeat"]).any()
    assert (slots.groupby("image_id")["repeat"].max() + 1 == slots["image_id"].value_counts().sort_index()).all()


@pytest.mark.parametrize("arm", ["real", "oversample", "duplicate"])
def test_real_arms_need_no_synthetic_images(cohort, tmp_path, arm):
    slots, extra = build(Run(run=str(tmp_path)), cohort, arm)
    assert slots["sample_id"].isna().all()
    assert (slots["loss_weight"] == 1).all()
    assert extra["tail_seen"]["Hernia"]["synthetic"] == 0


def test_oversample_follows_the_repeat_factor(cohort):
    """Mean repeats over many draws against LVIS' formula, written for one image at a time."""
    train, threshold = cohort.split("train"), 0.6
    frequency = {label: (train[label] == 1).sum() / train[label].notna().sum() for label in LABELS}
    expected = [max([1.0] + [np.sqrt(threshold / frequency[label]) for label in LABELS if row[label] is not pd.NA
                             and row[label] == 1]) for _, row in train.iterrows()]
    config, total, n = ArmConfig(oversample_threshold=threshold), pd.Series(0.0, index=train["image_id"]), 100
    for seed in range(n):
        draw = Draw(cohort=cohort, config=config, rng=np.random.default_rng(seed), frames={}, seed=0,
                    n_seeds=1)
        counts = oversample(draw)["image_id"].value_counts().reindex(total.index)
        assert (counts >= np.floor(expected)).all()
        assert (counts <= np.ceil(expected)).all()
        total += counts
    np.testing.assert_allclose(total / n, expected, atol=4 * 0.5 / np.sqrt(n))


def test_tail_is_dealt_evenly_and_negatives_are_real_images_of_the_very_labels(cohort):
    added = tail_slots(cohort, CONFIG, np.random.default_rng(0))
    positives = added[added["kind"] == "duplicate"]
    assert len(positives) == 10
    assert set(positives["image_id"].value_counts()) == {2, 3}
    assert (positives["image_id"] == positives["source"]).all()
    known = cohort.split("train").set_index("image_id")[LABELS]
    negatives = added[added["kind"] == "negative"]
    assert len(negatives) > 0
    for _, slot in negatives.iterrows():
        wanted = known.loc[slot["source"]].copy()
        wanted["Hernia"] = 0
        assert known.loc[slot["image_id"]].equals(wanted)


def test_negatives_prefer_the_view_of_their_source(cohort):
    views, known = (cohort.split("train").set_index("image_id")[key] for key in ("view", LABELS))
    added = tail_slots(cohort, CONFIG, np.random.default_rng(0))
    for _, slot in added[added["kind"] == "negative"].iterrows():
        wanted = known.loc[slot["source"]].copy()
        wanted["Hernia"] = 0
        same = [image for image in known.index if known.loc[image].equals(wanted)]
        if views[slot["source"]] in set(views[same]):
            assert views[slot["image_id"]] == views[slot["source"]]


@pytest.mark.parametrize(("ratio", "share"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_ratio_of_negatives(cohort, ratio, share):
    counts = count_slots(tail_slots(cohort, ArmConfig(slots_per_class=10, negatives=ratio), np.random.default_rng(0)))
    assert counts["negative"] <= round(share * 10)
    assert (counts["negative"] > 0) == (ratio > 0)


def test_synthetic_has_the_slots_of_duplicate(run, cohort):
    """Each synthetic image stands in a slot of the very image that it was made from, or of its negative."""
    frame = pd.read_parquet(run.folder / "synthetic" / "synthetic.parquet").set_index("image_id")
    for seed in range(3):
        duplicates, _ = build(run, cohort, "duplicate", seed=seed)
        mixed, _ = build(run, cohort, "synthetic", seed=seed)
        assert len(mixed) == len(duplicates)
        swapped = mixed["sample_id"].notna()
        assert (mixed["image_id"] == duplicates["image_id"])[~swapped].all()
        sources = frame.loc[mixed["image_id"][swapped], "label_source_id"]
        assert list(sources) == list(duplicates["source"][swapped])
        assert frame.loc[mixed["image_id"][swapped], "keep"].all()
        assert (mixed["loss_weight"] == np.where(swapped, 0.3, 1.0)).all()
        assert mixed["image_id"][swapped].is_unique


def test_share_of_synthetic_and_unfilled_slots(run, cohort):
    """Four sources with one kept image each per seed: four of the five wanted, one unfilled; likewise the negatives."""
    slots, extra = build(run, cohort, "synthetic", config=ArmConfig(slots_per_class=10, negatives=0))
    counts = count_slots(slots)
    assert (counts["synthetic"], counts["duplicate"], counts["unfilled"]) == (4, 6, 1)
    few = build(run, cohort, "synthetic", config=ArmConfig(slots_per_class=10, negatives=0, synthetic_share=0.2))
    assert count_slots(few[0])["synthetic"] == 2
    assert count_slots(few[0])["unfilled"] == 0
    assert extra["tail_seen"]["Hernia"] == {"slots": 14, "synthetic": 4, "weight": pytest.approx(10 + 4 * 0.3)}


def test_seeds_share_no_synthetic_image_and_use_all(run):
    frame = pd.read_parquet(run.folder / "synthetic" / "synthetic.parquet")
    kept = frame[frame["keep"]]
    by = ("label_source_id", "sample_id")
    parts = [set(deal(kept, seed=seed, n_seeds=3, by=by)["sample_id"]) for seed in range(3)]
    assert set.union(*parts) == set(kept["sample_id"])
    assert sum(map(len, parts)) == len(kept)
    for seed in range(3):
        assert (deal(kept, seed=seed, n_seeds=3, by=by).groupby(["charged_to", "label_source_id"]).size() == 1).all()


@pytest.mark.parametrize("trial", range(20))
def test_no_two_seeds_hold_images_of_one_noise(trial):
    """Three findings, each positive with up to two negatives of its noise, some of everything dropped."""
    rng, n_seeds = np.random.default_rng(trial), 1 + trial % 5
    pairs = pd.DataFrame({"charged_to": rng.choice(["Edema", "Hernia", "Mass"], 90), "seed": np.arange(90) * 7,
                          "label_source_id": rng.choice(list("abcdef"), 90)})
    negatives = pairs.loc[rng.integers(0, 90, 90)].assign(charged_to=NEGATIVE)
    frame = pd.concat([pairs, negatives], ignore_index=True)
    frame["sample_id"] = rng.permutation([f"{i:03}" for i in range(len(frame))])
    frame = frame[rng.random(len(frame)) < rng.choice([0.2, 0.7, 1])]
    parts = [deal(frame, seed=seed, n_seeds=n_seeds, by=("label_source_id", "sample_id")) for seed in range(n_seeds)]
    assert sorted(name for part in parts for name in part["sample_id"]) == sorted(frame["sample_id"])
    together = pd.concat([part.assign(owner=k) for k, part in enumerate(parts)])
    assert together.groupby("seed")["owner"].nunique().max() == 1
    positive = frame["charged_to"] != NEGATIVE
    for charged in frame["charged_to"][positive].unique():
        sizes = [(part["charged_to"] == charged).sum() for part in parts]
        assert max(sizes) - min(sizes) <= 1
    shuffled = frame.sample(frac=1, random_state=trial)
    again = deal(shuffled, seed=0, n_seeds=n_seeds, by=("label_source_id", "sample_id"))
    assert list(again["sample_id"]) == list(parts[0]["sample_id"])


def test_negatives_without_their_positive_make_up_for_what_pairs_leave_uneven():
    frame = pd.DataFrame({"charged_to": ["Edema", "Hernia", "Mass"] + [NEGATIVE] * 9, "seed": [0, 1, 2, *range(9)],
                          "sample_id": [f"{i:02}" for i in range(12)]})
    parts = [deal(frame, seed=seed, n_seeds=3, by=("sample_id",)) for seed in range(3)]
    assert [(part["charged_to"] == NEGATIVE).sum() for part in parts] == [3, 3, 3]
    assert {"Edema", "Hernia", "Mass"} < set(parts[0]["charged_to"]), "each finding begins with the first seed"
    kept = deal(frame.drop(columns="seed"), seed=0, n_seeds=3, by=("sample_id",))
    assert list(kept["sample_id"]) == ["00", "01", "02", "03", "06", "09"], "older tables do not know the noise"


def test_a_kept_pair_stands_in_slots_of_one_seed(run, cohort):
    frame = pd.read_parquet(run.folder / "synthetic" / "synthetic.parquet").set_index("image_id")
    tables = [build(run, cohort, "synthetic", seed=seed)[0].dropna(subset="sample_id") for seed in range(3)]
    owners = pd.concat([frame.loc[table["image_id"]].assign(owner=seed) for seed, table in enumerate(tables)])
    assert owners.groupby("seed")["owner"].nunique().max() == 1
    assert owners["seed"].duplicated().any()


def test_the_deal_does_not_depend_on_the_order_of_rows(run):
    frame = pd.read_parquet(run.folder / "synthetic" / "synthetic.parquet")
    shuffled = frame.sample(frac=1, random_state=0)
    for seed in range(3):
        first, second = (set(deal(each, seed=seed, n_seeds=3, by=("label_source_id", "sample_id"))["sample_id"])
                         for each in (frame, shuffled))
        assert first == second


def test_written_once_and_reproducible(run, cohort):
    write_arm(run, CONFIG, arm="synthetic", seed=1)
    folder = run.folder / "arms" / "synthetic" / "seed_1"
    table = read_table(folder / "arm.parquet", arm_schema())
    expected, _ = build(run, cohort, "synthetic", seed=1)
    assert list(table["image_id"]) == list(expected["image_id"])
    stamp = (folder / "_stage.json").read_bytes()
    write_arm(run, CONFIG, arm="synthetic", seed=1)
    assert (folder / "_stage.json").read_bytes() == stamp
    assert require(folder, "arm")["counts"]["slots"] == len(table)
    with pytest.raises(TailfillError, match=r"synthetic_share was 0.5, now 0.25"):
        write_arm(run, ArmConfig(slots_per_class=10, synthetic_share=0.25), arm="synthetic", seed=1)


def test_settings_of_other_arms_make_no_table_stale(run):
    write_arm(run, CONFIG, arm="real", seed=0)
    write_arm(run, ArmConfig(slots_per_class=3, synthetic_loss_weight=1), arm="real", seed=0)


@pytest.mark.parametrize(("arguments", "words"), [
    (["--arm", "duplicat", "--arm-seed", "0"], "duplicate"),
    (["--arm", "real", "--arm-seed", "3"], "0 to 2"),
    (["--arm", "duplicate", "--arm-seed", "1000"], "1000"),
    (["--arm", "synthetic", "--arm-seed", "0", "--run", "ABSENT"], "synth/filter.py"),
    (["--arm", "duplicate", "--arm-seed", "0", "--arm.negatives", "2"], "arm.negatives"),
])
def test_bad_input_is_one_line_and_leaves_nothing(run, tmp_path, monkeypatch, capsys, arguments, words):
    given = [str(tmp_path) if word == "ABSENT" else word for word in arguments]
    base = ["arm", "--run", str(run.folder), "--cohort", str(run.cohort_folder)]
    monkeypatch.setattr(sys, "argv", base + given)
    before = sorted(run.folder.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        run_command(arm_module.main)
    assert stopped.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()
    assert len(message) == 1
    assert words in message[0]
    assert sorted(run.folder.rglob("*")) == before
    assert not list(tmp_path.iterdir())
