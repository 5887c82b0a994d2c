"""Rows that start from a real image: of train, with the finding; their negatives from one without it, as alike."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from cohort.errors import TailfillError
from cohort.stage import Stage, read_stamp
from cohort.tables import Cohort, cohort_schema, plan_schema, read_table, write_table
from prompts.plan import build_plan
from prompts.settings import PlanConfig

LABELS = ["Effusion", "Mass", "Hernia", "Edema", "Normal"]
GROUPS = {"Effusion": "head", "Mass": "medium", "Hernia": "tail", "Edema": "tail", "Normal": "head"}
SCARCE = ["Hernia", "Edema"]
STARTS = ["init_image_id", "strength"]
LOOKS = ["view", "age", "sex"]


def toy_cohort(n: int = 500, seed: int = 0) -> Cohort:
    """Scarce findings sit mostly in AP images of older men; some views, sexes, ages and labels are unknown."""
    rng = np.random.default_rng(seed)
    positive = rng.random((n, 5)) < [0.2, 0.03, 0.03, 0.03, 0]
    positive[:, 4] = ~positive[:, :4].any(axis=1)
    sick = positive[:, 2:4].any(axis=1)
    frame = pd.DataFrame({
        "image_id": [f"img{i:04d}" for i in range(n)], "root": "main", "path": [f"{i}.png" for i in range(n)],
        "patient_id": [f"p{i // 2}" for i in range(n)], "study_id": None,
        "view": np.where(sick, rng.choice(["AP", "LATERAL"], n, p=[0.9, 0.1]),
                         rng.choice(["PA", "AP", "LATERAL", None], n, p=[0.5, 0.3, 0.1, 0.1])),
        "age": np.where(rng.random(n) < 0.05, np.nan, rng.uniform(20, 95, n)),
        "sex": np.where(sick, rng.choice(["M", "F"], n, p=[0.8, 0.2]), rng.choice(["M", "F", None], n)),
        "split": rng.choice(["train", "val", "test"], n, p=[0.7, 0.15, 0.15]),
    })
    labels = pd.DataFrame(positive.astype("int8"), columns=LABELS).astype("Int8")
    labels = labels.mask((rng.random((n, 5)) < 0.03) & ~positive)
    return Cohort(frame=pd.concat([frame, labels], axis=1), labels=LABELS, groups=GROUPS, roots={}, salt="s",
                  folder=Path("."))


def planned(cohort: Cohort, **settings: float) -> pd.DataFrame:
    """The rows of a plan, as its table holds them."""
    made = build_plan(cohort, PlanConfig(total=200, **settings), seed=7)  # type: ignore[arg-type]
    return plan_schema(LABELS).validate(made.rows)


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    return toy_cohort()


@pytest.fixture(scope="module")
def rows(cohort: Cohort) -> pd.DataFrame:
    return planned(cohort, image_conditioned=0.5, strength=0.4)


def pairs(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Positives and, row by row, their negatives (one each)."""
    negative = rows["charged_to"] == "negative"
    return rows[~negative].reset_index(drop=True), rows[negative].reset_index(drop=True)


def started(cohort: Cohort, rows: pd.DataFrame) -> pd.DataFrame:
    """The real images that rows start from, row by row."""
    return cohort.frame.set_index("image_id").loc[rows["init_image_id"]].reset_index()


def test_only_the_start_the_looks_and_the_words_depend_on_the_share(cohort: Cohort, rows: pd.DataFrame) -> None:
    plain = planned(cohort)
    assert plain[STARTS].isna().all(axis=None)
    apart = [*STARTS, *LOOKS, "prompt"]
    pd.testing.assert_frame_equal(plain.drop(columns=apart), rows.drop(columns=apart))
    positive, negative = pairs(rows)
    free = (positive["init_image_id"].isna() & negative["init_image_id"].isna()).repeat(2).to_numpy()
    pd.testing.assert_frame_equal(plain[free], rows[free])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_the_share_is_met_and_the_counts_say_so(cohort: Cohort, share: float) -> None:
    plan = build_plan(cohort, PlanConfig(total=200, image_conditioned=share, allow_unseen=True), seed=3)
    positive, negative = pairs(plan.rows)
    conditioned, with_source = positive["init_image_id"].notna(), positive["label_source_id"].notna()
    assert not with_source.all()  # unseen combinations have no image to start from
    assert conditioned.sum() == plan.counts["conditioned_positives"] == int(with_source.sum() * share + 1e-9)
    assert negative["init_image_id"].notna().sum() == plan.counts["conditioned_negatives"]
    assert not negative.loc[~conditioned, "init_image_id"].notna().any()


def test_a_positive_starts_from_the_train_image_whose_labels_it_copies(cohort: Cohort, rows: pd.DataFrame) -> None:
    positive, _ = pairs(rows)
    positive = positive[positive["init_image_id"].notna()].reset_index(drop=True)
    assert (positive["init_image_id"] == positive["label_source_id"]).all()
    assert (positive["strength"] == 0.4).all()
    source = started(cohort, positive)
    assert set(source["split"]) == {"train"}
    assert all(source.loc[i, label] == 1 for i, label in positive["charged_to"].items())
    pd.testing.assert_frame_equal(positive[["view", "sex"]], source[["view", "sex"]], check_dtype=False)
    np.testing.assert_array_equal(positive["age"], np.floor(source["age"]))
    for text, age, view in zip(positive["prompt"], positive["age"], positive["view"], strict=True):
        assert np.isnan(age) or f"{age:.0f}-year" in text
        assert ("lateral" in text.lower()) == (view == "LATERAL")


def test_sources_are_used_evenly(rows: pd.DataFrame) -> None:
    positive, _ = pairs(rows)
    used = positive.groupby(["charged_to", "label_source_id"])["init_image_id"].agg(["size", "count"])
    assert (abs(used["count"] - 0.5 * used["size"]) < 1).all()
    assert (used["count"] > 0).mean() > 0.5


def test_a_negative_starts_from_an_image_known_to_lack_the_finding(cohort: Cohort, rows: pd.DataFrame) -> None:
    positive, negative = pairs(rows)
    both = negative["init_image_id"].notna() & positive["init_image_id"].notna()
    assert both.sum() > 20
    positive, negative = positive[both].reset_index(drop=True), negative[both].reset_index(drop=True)
    source = started(cohort, negative)
    assert set(source["split"]) == {"train"}
    assert (source[SCARCE] == 0).all(axis=None)
    assert source[SCARCE].notna().all(axis=None)
    np.testing.assert_array_equal(negative[LABELS].to_numpy(int), source[LABELS].fillna(0).to_numpy(int))
    pd.testing.assert_series_equal(negative["view"], positive["view"])
    pd.testing.assert_frame_equal(negative[["view", "sex"]], source[["view", "sex"]], check_dtype=False)
    for key in ("seed", "strength", "label_source_id"):
        pd.testing.assert_series_equal(negative[key], positive[key])
    assert (negative["age"] - positive["age"]).abs().median() < 10  # of ages from 20 to 95


def test_a_negative_starts_from_noise_only_where_no_image_would_do(cohort: Cohort, rows: pd.DataFrame) -> None:
    positive, negative = pairs(rows)
    train = cohort.split("train")
    train = train[train[SCARCE].notna().all(axis=1)]
    vectors = train[LABELS].fillna(0).to_numpy(int)
    assert set(negative.loc[positive["init_image_id"].notna(), "init_image_id"].isna()) == {True, False}
    for i in map(int, np.flatnonzero(positive["init_image_id"].notna())):
        alike = train[(vectors == negative.loc[i, LABELS].to_numpy(int)).all(axis=1)
                      & (train["view"].fillna("") == positive.fillna("").loc[i, "view"]).to_numpy()]
        assert len(alike) > 0 or pd.isna(negative.loc[i, "init_image_id"])
        if pd.isna(negative.loc[i, "init_image_id"]):
            assert alike.empty
            pd.testing.assert_series_equal(negative.loc[i, LOOKS], positive.loc[i, LOOKS], check_dtype=False)
        elif positive.loc[i, "sex"] in set(alike["sex"]):
            assert negative.loc[i, "sex"] == positive.loc[i, "sex"]


def test_the_first_negative_is_the_nearest_in_age_and_the_pool_is_used_up_before_it_repeats(cohort: Cohort) -> None:
    frame = cohort.split("train").head(12).copy()
    frame[LABELS] = [[0, 0, 0, 0, 1]] * 11 + [[0, 0, 1, 0, 0]]
    frame["view"], frame["sex"] = "AP", ["M"] * 4 + ["F"] * 7 + ["M"]
    frame["age"] = [60.0, np.nan, 30.0, 41.0, *[50.0] * 7, 50.0]
    small = Cohort(frame=frame, labels=LABELS, groups=GROUPS, roots={}, salt="s", folder=Path("."))
    made = build_plan(small, PlanConfig(scarce=("Hernia",), total=10, max_ratio=None, image_conditioned=1.0), seed=0)
    negative = pairs(made.rows)[1]["init_image_id"].tolist()
    men = frame["image_id"].to_numpy()
    nearest_first = [men[3], men[0], men[2], men[1]]  # 9, 10 and 20 years apart, then the unknown age
    assert negative == (nearest_first * 3)[:10]


def test_val_and_test_images_are_never_started_from(cohort: Cohort, rows: pd.DataFrame) -> None:
    frame = cohort.frame.copy()
    frame.loc[frame["split"] != "train", [*LABELS, "age"]] = 1
    other = Cohort(frame=frame, labels=LABELS, groups=GROUPS, roots={}, salt="s", folder=Path("."))
    pd.testing.assert_frame_equal(planned(other, image_conditioned=0.5, strength=0.4), rows)


@pytest.mark.parametrize(("wrong", "message"), [
    ({"image_conditioned": 1.5}, "plan.image_conditioned: is 1.5; wanted: 0 to 1"),
    ({"strength": 0.0}, r"plan.strength: is 0.0; wanted: above 0"), ({"strength": 1.1}, r"plan.strength: is 1.1"),
])
def test_values_out_of_range_are_named(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(TailfillError, match=message):
        PlanConfig(total=5, **wrong)  # type: ignore[arg-type]


def test_dry_run_and_stamp_count_them(cohort: Cohort, tmp_path: Path, invoke) -> None:  # type: ignore[no-untyped-def]
    stage = Stage("cohort", tmp_path / "cohort", config={}, inputs={})
    stage.begin()
    write_table(cohort.frame, stage.folder / "cohort.parquet", cohort_schema(LABELS))
    stage.finish(outputs=["cohort.parquet"], counts={"rows": len(cohort.frame)},
                 extra={"labels": LABELS, "groups": GROUPS, "roots": {"main": "/data"}, "salt": "s"})
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({"run": str(tmp_path), "plan": {"total": 60, "image_conditioned": 0.25}}))
    dry = invoke("prompts.plan", "--config", config, "--dry-run")
    assert dry.code == 0, dry.stderr
    assert invoke("prompts.plan", "--config", config).code == 0
    stamp = read_stamp(tmp_path / "plan")
    assert stamp is not None
    found = read_table(tmp_path / "plan" / "plan.parquet", plan_schema(LABELS))["init_image_id"].notna().sum()
    n = stamp["counts"]
    assert found == n["conditioned_positives"] + n["conditioned_negatives"] > 0
    assert n["conditioned_positives"] == n["positives"] // 4
    shown = json.loads(dry.stdout[:dry.stdout.rindex("}") + 1])
    assert shown["rows"]["conditioned_positives"] == n["conditioned_positives"]
