"""Rivals that share the slots of `duplicate`: what each may change, whose images it takes, and what seeds may share."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import linear_sum_assignment
from tiny_classify import GROUPS, LABELS, write_cohort, write_further, write_stages, write_synthetic

from classify.arm import ArmConfig, build_arm, count_slots, pool_folders
from classify.arms.filling import assign, charge_to_rarest, cost_of_new
from classify.arms.layout import NEGATIVE, tail_slots
from classify.arms.rivals import ARMS, Draw
from classify.slots import label_matrix, load_pools, load_slots
from cohort.config import Run
from cohort.errors import TailfillError
from cohort.stage import Stage, require
from cohort.tables import RECONSTRUCTED, cohort_schema, load_cohort, write_table

CONFIG = ArmConfig(slots_per_class=10)
SHARING = [arm for arm, made in ARMS.items() if "slots_per_class" in made.settings and arm != "oracle-full"]
NEW_REAL = ("oracle", "external")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("rivals"))


@pytest.fixture(scope="module")
def run(cohort):
    return write_stages(cohort)


def build(run, cohort, arm, *, seed=0, config=CONFIG):
    return build_arm(run, cohort, config, arm=arm, seed=seed)[0]


def frame_of(run, cohort, stage):
    return load_pools({stage: run.folder / ("synthetic" if stage == "filter" else stage)}, cohort)[stage].frame


@pytest.mark.parametrize("arm", SHARING)
@pytest.mark.parametrize("seed", range(3))
def test_all_share_the_slots_of_duplicate_and_keep_its_images_where_nothing_was_put(run, cohort, arm, seed):
    repeats, slots = build(run, cohort, "duplicate", seed=seed), build(run, cohort, arm, seed=seed)
    first = slots[slots["phase"] == 1].reset_index(drop=True)
    for column in ("charged_to", "source", "added"):  # the last: no arm's batches are corrected but all alike
        pd.testing.assert_series_equal(first[column], repeats[column])
    same = first["kind"].isin(["real", "duplicate", NEGATIVE])
    assert (first["image_id"] == repeats["image_id"])[same].all()
    assert (first["loss_weight"][same] == 1).all()
    put = ~same & first["added"]
    assert first["image_id"][put].is_unique or arm.startswith("duplicate-")  # which repeat as duplicate does
    counts = count_slots(slots)
    assert counts["slots"] == sum(counts.values()) - counts["slots"] - counts["unfilled"]


@pytest.mark.parametrize("arm", NEW_REAL)
def test_new_real_images_carry_the_label_stand_where_synthetic_ones_stand_and_weigh_one(run, cohort, arm):
    images = frame_of(run, cohort, arm).set_index("image_id")
    used = []
    for seed in range(3):
        slots, mixed = build(run, cohort, arm, seed=seed), build(run, cohort, "synthetic", seed=seed)
        new = slots[slots["kind"] == "new_real"]
        meant = mixed["kind"].eq("synthetic") | (mixed["unfilled"] & mixed["charged_to"].ne(NEGATIVE))
        assert list(new.index) == list(mixed.index[meant])  # the pool reaches: 20 Hernias for three seeds of five slots
        assert len(new) == 5
        assert (images.loc[new["image_id"], "Hernia"] == 1).all()
        assert (new["loss_weight"] == 1).all()
        assert new["sample_id"].isna().all()
        used += list(new["image_id"])
    assert len(set(used)) == len(used)


def test_the_oracle_in_full_has_its_slots_and_each_of_its_new_images_beside_the_real_ones(run, cohort):
    dealt = []
    for seed in range(3):
        matched, full = build(run, cohort, "oracle", seed=seed), build(run, cohort, "oracle-full", seed=seed)
        shared = [column for column in matched.columns if column not in ("slot_id", "repeat")]
        pd.testing.assert_frame_equal(full[shared].head(len(matched)), matched[shared])
        more = full.iloc[len(matched):]
        assert more["image_id"].is_unique
        assert set(matched.loc[matched["kind"] == "new_real", "image_id"]) <= set(more["image_id"])
        dealt += list(more["image_id"])
    assert sorted(dealt) == sorted(frame_of(run, cohort, "oracle")["image_id"])  # all of them, none for two seeds


@pytest.mark.parametrize("first", ["duplicate", "oracle"])
def test_reconstructed_stand_for_the_images_of_the_slots_that_synthetic_fills(run, cohort, first):
    for seed in range(3):
        plain, slots = build(run, cohort, first, seed=seed), build(run, cohort, f"{first}-reconstructed", seed=seed)
        mixed = build(run, cohort, "synthetic", seed=seed)
        at = slots["kind"].eq("reconstructed")
        assert list(slots.index[at]) == list(mixed.index[mixed["sample_id"].notna() | mixed["unfilled"]])
        assert list(slots["image_id"][at]) == [RECONSTRUCTED + image for image in plain["image_id"][at]]
        pd.testing.assert_series_equal(slots["image_id"][~at], plain["image_id"][~at])
        assert (slots["loss_weight"] == 1).all()
        pools = load_pools(pool_folders(run, f"{first}-reconstructed"), cohort)
        labels = pools["reconstruct"].frame.set_index("image_id")[LABELS]
        of_source = pd.concat([cohort.split("train"), *(pools[name].frame for name in pools if name == "oracle")])
        pd.testing.assert_frame_equal(
            labels.loc[slots["image_id"][at]].reset_index(drop=True),
            of_source.set_index("image_id")[LABELS].loc[plain["image_id"][at]].reset_index(drop=True))


def test_what_a_pool_cannot_fill_stays_a_repeat_and_is_counted(cohort, tmp_path):
    write_synthetic(tmp_path, cohort, per_source=3)
    write_further(tmp_path, "oracle", n=8)  # four Hernias for three seeds of five slots
    run = Run(run=str(tmp_path), n_seeds=3, threads=1)
    slots = [build(run, cohort, "oracle", seed=seed) for seed in range(3)]
    counts = [count_slots(each) for each in slots]
    assert sum(each["new_real"] for each in counts) == 4
    assert all(each["new_real"] + each["unfilled"] == 5 for each in counts)
    repeats = build(run, cohort, "duplicate")
    waiting = slots[0]["unfilled"]
    assert (slots[0]["image_id"] == repeats["image_id"])[waiting].all()


def test_an_exact_twin_is_chosen_before_any_other(run, cohort):
    """Cost 0 where labels and view agree; one per wrong label; a half for the view; never without the charged label."""
    slots = tail_slots(cohort, CONFIG, np.random.default_rng(0))
    slots = slots[slots["kind"] == "duplicate"]
    train = cohort.split("train").set_index("image_id", drop=False)
    sources = train.loc[slots["source"]]
    np.testing.assert_array_equal(np.diag(cost_of_new(slots, sources, cohort, nearest=True)), 0)
    other = sources.assign(Mass=1 - sources["Mass"], view=sources["view"].map({"PA": "AP", "AP": "PA"}))
    np.testing.assert_array_equal(np.diag(cost_of_new(slots, other, cohort, nearest=True)), 1.5)
    unknown = other.assign(Mass=pd.array([pd.NA] * len(other), dtype="Int8"))
    np.testing.assert_array_equal(np.diag(cost_of_new(slots, unknown, cohort, nearest=True)), 0.5)
    np.testing.assert_array_equal(np.diag(cost_of_new(slots, other, cohort, nearest=False)), 0.5)
    for nearest in (True, False):
        assert np.isinf(cost_of_new(slots, sources.assign(Hernia=0), cohort, nearest=nearest)).all()


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (1, 1), (4, 0)])
def test_assignment_serves_as_many_as_can_at_the_least_cost(shape):
    rng = np.random.default_rng(0)
    for _ in range(20):
        cost = rng.integers(0, 4, shape).astype(float)
        legal = rng.random(shape) < 0.6
        rows, columns = assign(np.where(legal, cost, np.inf))
        most = linear_sum_assignment(legal, maximize=True)
        assert len(rows) == legal[most].sum()
        assert legal[rows, columns].all()
        best = linear_sum_assignment(np.where(legal, cost, 1000.0))
        assert cost[rows, columns].sum() == pytest.approx(cost[best][legal[best]].sum())


def test_an_image_is_charged_to_its_rarest_scarce_label(cohort):
    frame = pd.DataFrame({"Effusion": [1, 1, 1, 0], "Mass": [1, 1, 1, 0], "Hernia": [1, 0, pd.NA, 0]}, dtype="Int8")
    two = replace(cohort, groups=GROUPS | {"Mass": "control"})
    assert list(charge_to_rarest(frame, two)["charged_to"]) == ["Hernia", "Mass", "Mass"]


def test_unfiltered_ignores_keep_and_matches_label_vector_and_number(run, cohort):
    made = frame_of(run, cohort, "filter").set_index("image_id")
    used = []
    for seed in range(3):
        slots, mixed = build(run, cohort, "unfiltered", seed=seed), build(run, cohort, "synthetic", seed=seed)
        placed, theirs = slots["sample_id"].notna(), mixed["sample_id"].notna()
        assert (placed <= theirs).all()
        assert (slots["unfilled"] == (mixed["unfilled"] | (theirs & ~placed))).all()
        for column in (*LABELS, "charged_to"):
            assert (made.loc[slots.loc[placed, "image_id"], column].to_numpy()
                    == made.loc[mixed.loc[placed, "image_id"], column].to_numpy()).all()
        assert (slots["loss_weight"] == np.where(placed, 0.3, 1.0)).all()
        used += list(slots.loc[placed, "image_id"])
    assert len(set(used)) == len(used)
    assert not made.loc[used, "keep"].all()


def test_unfiltered_keeps_and_drops_in_the_shares_of_what_was_made(run, cohort):
    """Three of four were kept: over many draws so are three of four that it takes, but for four standard errors."""
    made = frame_of(run, cohort, "filter")
    kept = made.set_index("image_id")["keep"]
    shares = []
    for seed in range(40):
        draw = Draw(cohort=cohort, config=CONFIG, rng=np.random.default_rng(seed), frames={"filter": made}, seed=0,
                    n_seeds=1)
        slots = ARMS["unfiltered"].build(draw)
        shares += list(kept[slots.loc[slots["sample_id"].notna(), "image_id"]])
    assert np.mean(shares) == pytest.approx(kept.mean(), abs=4 * np.sqrt(0.75 * 0.25 / len(shares)))


@pytest.mark.parametrize("arm", ["synthetic", "unfiltered", "permuted"])
def test_where_the_filter_keeps_nothing_every_repeat_stays(run, cohort, arm):
    none = frame_of(run, cohort, "filter").assign(keep=False)
    draw = Draw(cohort=cohort, config=CONFIG, rng=np.random.default_rng(0), frames={"filter": none}, seed=0, n_seeds=1)
    slots = ARMS[arm].build(draw)
    assert slots["sample_id"].isna().all()
    assert slots["unfilled"].any()


def test_unfiltered_takes_the_first_round_only(run, cohort):
    made = frame_of(run, cohort, "filter")
    later = made.assign(round=np.arange(len(made)) % 3)
    draw = Draw(cohort=cohort, config=CONFIG, rng=np.random.default_rng(0), frames={"filter": later}, seed=0, n_seeds=1)
    slots = ARMS["unfiltered"].build(draw)
    used = slots.loc[slots["sample_id"].notna(), "image_id"]
    assert len(used)
    assert (later.set_index("image_id").loc[used, "round"] == 0).all()


def test_permuted_changes_the_labels_of_synthetic_slots_only_and_keeps_their_multiset(run, cohort):
    slots, mixed = build(run, cohort, "permuted"), build(run, cohort, "synthetic")
    pd.testing.assert_frame_equal(slots.drop(columns="labels_from"), mixed.drop(columns="labels_from"))
    swapped = mixed["sample_id"].notna()
    assert (slots["labels_from"].notna() == swapped).all()
    assert sorted(slots.loc[swapped, "labels_from"]) == sorted(mixed.loc[swapped, "image_id"])
    assert (slots.loc[swapped, "labels_from"] != mixed.loc[swapped, "image_id"]).all()
    pools = load_pools(pool_folders(run, "permuted"), cohort)
    targets, original = (load_slots(each, cohort, pools, size=32, cache=None, threads=1) for each in (slots, mixed))
    np.testing.assert_array_equal(targets.index, original.index)
    at = swapped.to_numpy()
    np.testing.assert_array_equal(targets.targets[~at], original.targets[~at])
    assert not np.array_equal(targets.targets[at], original.targets[at])
    assert sorted(map(tuple, targets.targets[at])) == sorted(map(tuple, original.targets[at]))


def test_with_nothing_kept_synthetic_is_duplicate_and_says_so(run, cohort):
    made = frame_of(run, cohort, "filter").assign(keep=False)
    slots, repeats = (
        ARMS[arm].build(Draw(cohort=cohort, config=CONFIG, rng=np.random.default_rng(0), frames={"filter": made},
                             seed=0, n_seeds=1)) for arm in ("synthetic", "duplicate"))
    pd.testing.assert_frame_equal(slots.drop(columns="unfilled"), repeats.drop(columns="unfilled"))
    assert slots["unfilled"].sum() == round(10 / 2) + round((slots["kind"] == NEGATIVE).sum() / 2)


@pytest.mark.parametrize("first", ["synthetic", "duplicate"])
def test_then_real_adds_a_phase_of_the_real_images_alone(run, cohort, first):
    slots = build(run, cohort, f"{first}-then-real")
    columns = ["image_id", "sample_id", "loss_weight", "kind"]
    before, after = (slots.loc[slots["phase"] == phase, columns].reset_index(drop=True) for phase in (1, 2))
    pd.testing.assert_frame_equal(before, build(run, cohort, first)[columns])
    pd.testing.assert_frame_equal(after, build(run, cohort, "real")[columns])


def test_images_of_a_further_cohort_are_found_with_their_own_labels(run, cohort):
    slots = build(run, cohort, "oracle")
    pools = load_pools(pool_folders(run, "oracle"), cohort)
    loaded = load_slots(slots, cohort, pools, size=32, cache=run.folder / "cache", threads=1)
    new = slots["kind"].eq("new_real").to_numpy()
    theirs = pools["oracle"].frame.set_index("image_id").loc[slots.loc[new, "image_id"]]
    np.testing.assert_array_equal(loaded.targets[new], label_matrix(theirs, LABELS))
    assert len(loaded.images) == 2  # the arm names no synthetic image, so none is read


def rewrite(run, role, *, frame=None, labels=LABELS):
    """Write a further cohort again with another table or other labels."""
    known = load_cohort(run.folder / role)
    stage = Stage("prepare", run.folder / role, config={}, inputs={})
    write_table(known.frame if frame is None else frame, stage.folder / "cohort.parquet", cohort_schema(labels))
    stage.finish(outputs=["cohort.parquet"], counts={}, extra=require(stage.folder, role)["extra"] | {"labels": labels})


def test_a_further_cohort_of_the_same_patients_or_other_labels_is_refused(cohort, tmp_path):
    write_further(tmp_path, "oracle")
    run = Run(run=str(tmp_path), n_seeds=3, threads=1)
    frame = load_cohort(tmp_path / "oracle").frame
    rewrite(run, "oracle", frame=frame.assign(patient_id=["p0", *frame["patient_id"][1:]]))
    with pytest.raises(TailfillError, match=r"shares 1 values of patient_id .* 'p0'"):
        load_pools({"oracle": tmp_path / "oracle"}, cohort)
    rewrite(run, "oracle", frame=frame.rename(columns={"Mass": "Nodule"}), labels=["Effusion", "Nodule", "Hernia"])
    with pytest.raises(TailfillError, match=r"other labels .* Mass, Nodule"):
        load_pools({"oracle": tmp_path / "oracle"}, cohort)


def test_controls_get_slots_like_the_tail_and_leave_the_negatives(cohort):
    with_control = replace(cohort, groups=GROUPS | {"Mass": "control"})
    assert with_control.scarce == ["Mass", "Hernia"]
    assert with_control.in_group("tail") == ["Hernia"]
    slots = tail_slots(with_control, CONFIG, np.random.default_rng(0))
    assert slots["charged_to"].value_counts()[["Mass", "Hernia"]].tolist() == [10, 10]
    known = cohort.split("train").set_index("image_id")
    negatives = slots.loc[slots["kind"] == NEGATIVE, "image_id"]
    assert len(negatives)
    assert not known.loc[negatives, ["Mass", "Hernia"]].eq(1).any(axis=None)


def test_a_negative_of_nothing_is_a_normal_image(cohort):
    """As in the plan: where no finding is left, the label that says so is wanted."""
    frame = cohort.frame.assign(Mass=cohort.frame["Mass"].fillna(0))
    nothing = frame[LABELS].eq(0).all(axis=1).astype("Int8")
    normal = replace(cohort, frame=frame.assign(Normal=nothing), labels=[*LABELS, "Normal"],
                     groups=GROUPS | {"Normal": "head"})
    slots = tail_slots(normal, CONFIG, np.random.default_rng(0))
    negatives = slots[slots["kind"] == NEGATIVE]
    known = normal.frame.set_index("image_id")
    sources = known.loc[negatives["source"]]
    alone = (sources["Effusion"].eq(0) & sources["Mass"].eq(0)).to_numpy()
    assert alone.any()
    assert (known.loc[negatives["image_id"], "Normal"].to_numpy()[alone] == 1).all()
