"""What every plan keeps: conservation, matched negatives, real sources of train only, determinism, fair beginnings."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from cohort.errors import TailfillError
from cohort.stage import Stage
from cohort.tables import Cohort, cohort_schema, plan_schema, read_table, write_table
from prompts.plan import Plan, build_plan
from prompts.settings import PlanConfig

LABELS = ["Effusion", "Mass", "Hernia", "Edema", "Fibrosis", "Normal"]
GROUPS = {"Effusion": "head", "Mass": "medium", "Hernia": "tail", "Edema": "tail", "Fibrosis": "tail", "Normal": "head"}
SCARCE = ["Hernia", "Edema", "Fibrosis"]


def toy_frame(n: int = 2000, seed: int = 0) -> pd.DataFrame:
    """A cohort whose scarce findings are comorbid, sit in old AP patients, and are richer in test than in train."""
    rng = np.random.default_rng(seed)
    split = rng.choice(["train", "val", "test"], n, p=[0.6, 0.2, 0.2])
    chance = np.array([0.2, 0.04, 0.012, 0.02, 0.008, 0.0]) * np.where(split == "test", 4, 1)[:, None]
    sick = rng.random(n) < 0.2
    positive = rng.random((n, 6)) < np.where(sick[:, None], 2.5 * chance, chance)
    positive[:, 5] = ~positive[:, :5].any(axis=1)
    old = positive[:, 2:5].any(axis=1)
    frame = pd.DataFrame({
        "image_id": [f"img{i:05d}" for i in range(n)], "root": "main", "path": [f"{i}.png" for i in range(n)],
        "patient_id": [f"p{i // 2}" for i in range(n)], "study_id": None,
        "view": np.where(old & (rng.random(n) < 0.8), "AP", rng.choice(["PA", "LATERAL"], n, p=[0.9, 0.1])),
        "age": np.where(old, rng.integers(70, 90, n), rng.integers(0, 70, n)).astype(float),
        "sex": rng.choice(["M", "F"], n), "split": split,
    })
    labels = pd.DataFrame(positive.astype("int8"), columns=LABELS).astype("Int8")
    labels = labels.mask((rng.random((n, 6)) < 0.02) & ~positive)  # some labels are unknown
    return pd.concat([frame, labels], axis=1)


def cohort_of(frame: pd.DataFrame) -> Cohort:
    return Cohort(frame=frame, labels=LABELS, groups=GROUPS, roots={}, salt="s", folder=Path("."))


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    return cohort_of(toy_frame())


@pytest.fixture(scope="module")
def plan(cohort: Cohort) -> Plan:
    return build_plan(cohort, PlanConfig(total=330), seed=7)


def split_rows(plan: Plan) -> tuple[pd.DataFrame, pd.DataFrame]:
    negative = plan.rows["charged_to"] == "negative"
    return plan.rows[~negative].reset_index(drop=True), plan.rows[negative].reset_index(drop=True)


def test_charges_add_up_and_targets_are_met(plan: Plan) -> None:
    positive, negative = split_rows(plan)
    budget = plan.budget.set_index("label")
    assert budget["charged"].sum() == len(positive) == plan.counts["positives"] == plan.counts["negatives"]
    assert plan.counts["planned"] == len(plan.rows) == len(positive) + len(negative)
    assert budget.loc[SCARCE, "target"].sum() == 330
    assert (budget.loc[SCARCE, "carried"] >= budget.loc[SCARCE, "target"]).all()
    assert budget["carried"].tolist() == positive[LABELS].sum().tolist()
    assert len(positive) <= 330
    assert (positive.apply(lambda row: row[row["charged_to"]], axis=1) == 1).all()
    assert not budget.loc[["Effusion", "Mass", "Normal"], "scarce"].any()


def test_the_budget_shows_the_real_counts_of_train(cohort: Cohort, plan: Plan) -> None:
    train = cohort.split("train")
    assert plan.budget["n_real"].tolist() == [int(train[label].sum()) for label in LABELS]
    expected = [train[label].sum() / train[label].notna().sum() for label in LABELS]
    np.testing.assert_allclose(plan.budget["prevalence"], expected)


def test_every_positive_copies_the_vector_of_a_real_train_image(cohort: Cohort, plan: Plan) -> None:
    positive, _ = split_rows(plan)
    sources = cohort.frame.set_index("image_id").loc[positive["label_source_id"]]
    assert set(sources["split"]) == {"train"}
    np.testing.assert_array_equal(positive[LABELS].to_numpy(int), sources[LABELS].fillna(0).to_numpy(int))
    lateral = (sources["view"] == "LATERAL").to_numpy()
    np.testing.assert_array_equal(positive["view"] == "LATERAL", lateral)


def test_sources_of_a_combination_are_dealt_evenly(plan: Plan) -> None:
    positive, _ = split_rows(plan)
    used = positive.groupby([*LABELS, "label_source_id"], observed=True).size()
    for _, counts in used.groupby(LABELS):
        assert counts.max() - counts.min() <= 1


def test_every_real_scarce_image_lends_its_vector(cohort: Cohort, plan: Plan) -> None:
    train = cohort.split("train")
    scarce = train.loc[train[SCARCE].fillna(0).any(axis=1), "image_id"]
    positive, _ = split_rows(plan)
    assert set(positive["label_source_id"]) == set(scarce)


def test_negatives_are_their_positives_without_the_scarce_findings(plan: Plan) -> None:
    positive, negative = split_rows(plan)
    for key in ("seed", "view", "age", "sex", "label_source_id", "negative_prompt"):
        pd.testing.assert_series_equal(negative[key], positive[key])
    assert not negative[SCARCE].any(axis=None)
    for label in ("Effusion", "Mass"):
        pd.testing.assert_series_equal(negative[label], positive[label])
    nothing = (negative[["Effusion", "Mass"]] == 0).all(axis=1)
    assert ((negative["Normal"] == 1) == nothing).all()
    assert (negative["prompt"] != positive["prompt"]).all()
    assert plan.rows["charged_to"].eq("negative").tolist() == [False, True] * len(positive)


def test_patients_match_the_real_ones_of_the_charged_class(cohort: Cohort, plan: Plan) -> None:
    positive, _ = split_rows(plan)
    train = cohort.split("train")
    for label in SCARCE:
        real = train[(train[label] == 1) & (train["view"] != "LATERAL")]
        asked = positive[(positive["charged_to"] == label) & (positive["view"] != "LATERAL")]
        assert abs((asked["view"] == "AP").mean() - (real["view"] == "AP").mean()) < 0.08
        assert abs((asked["sex"] == "M").mean() - (real["sex"] == "M").mean()) < 0.08
        assert asked["age"].between(max(real["age"].min() - 5, 0), real["age"].max() + 5).all()
        assert (asked["age"] % 1 == 0).all()


def test_unknown_views_ages_and_sexes_stay_unknown(cohort: Cohort) -> None:
    blank = cohort_of(cohort.frame.assign(view=None, age=np.nan, sex=None))
    rows = plan_schema(LABELS).validate(build_plan(blank, PlanConfig(total=40), seed=0).rows)
    assert rows[["view", "age", "sex"]].isna().all(axis=None)
    assert not rows["prompt"].str.contains("frontal|lateral|year|man", case=False).any()


def test_prompts_name_what_is_asked_for(plan: Plan) -> None:
    for _, row in plan.rows.iterrows():
        for label in LABELS[:5]:
            assert (label.lower() in row["prompt"].lower()) == bool(row[label])


def test_ids_seeds_and_batches(plan: Plan) -> None:
    rows = plan_schema(LABELS).validate(plan.rows)
    assert rows["sample_id"].str.fullmatch("[0-9a-f]{16}").all()
    positive, _ = split_rows(plan)
    assert positive["seed"].is_unique
    assert positive["seed"].between(0, 2**63 - 1).all()
    assert rows["batch"].tolist() == [i // 32 for i in range(len(rows))]
    assert rows["init_image_id"].isna().all()
    assert rows["strength"].isna().all()


def test_the_same_request_gives_the_same_plan_in_any_order_of_the_cohort(cohort: Cohort, plan: Plan) -> None:
    shuffled = cohort_of(cohort.frame.sample(frac=1, random_state=3).reset_index(drop=True))
    again = build_plan(shuffled, PlanConfig(total=330), seed=7)
    pd.testing.assert_frame_equal(again.rows, plan.rows)
    pd.testing.assert_frame_equal(again.budget, plan.budget)


def test_other_seeds_and_rounds_give_other_images_for_the_same_budget(cohort: Cohort, plan: Plan) -> None:
    for seed, round_ in ((8, 0), (7, 1)):
        other = build_plan(cohort, PlanConfig(total=330), seed=seed, round_=round_)
        assert not set(other.rows["sample_id"]) & set(plan.rows["sample_id"])
        assert not set(other.rows["seed"]) & set(plan.rows["seed"])
        pd.testing.assert_frame_equal(other.budget, plan.budget)
        assert (other.rows["round"] == round_).all()


def test_val_and_test_images_play_no_part(cohort: Cohort, plan: Plan) -> None:
    frame = cohort.frame.copy()
    frame.loc[frame["split"] != "train", LABELS] = 1
    pd.testing.assert_frame_equal(build_plan(cohort_of(frame), PlanConfig(total=330), seed=7).rows, plan.rows)


def test_any_beginning_is_a_fair_sample(plan: Plan) -> None:
    positive, _ = split_rows(plan)
    share = positive["charged_to"].value_counts(normalize=True)
    for k in range(10, len(positive), 7):
        begun = positive["charged_to"][:k].value_counts().reindex(share.index, fill_value=0)
        assert (begun - share * k).abs().max() <= len(share)


@pytest.mark.parametrize(("ratio", "expected"), [(0.0, 0), (0.25, 82), (0.5, 165), (1.0, 330)])
def test_fewer_negatives_where_asked_for(cohort: Cohort, ratio: float, expected: int) -> None:
    made = build_plan(cohort, PlanConfig(scarce=("Hernia",), total=330, max_ratio=None, negatives_per_positive=ratio),
                      seed=1)
    assert made.counts["positives"] == 330
    assert made.counts["negatives"] == expected
    assert (made.rows["charged_to"] == "negative").sum() == expected


def test_a_class_that_is_capped_says_so_and_a_tight_max_repeat_too(cohort: Cohort) -> None:
    made = build_plan(cohort, PlanConfig(total=10_000, max_ratio=2.0), seed=0).budget.set_index("label")
    assert made.loc[SCARCE, "target"].tolist() == (2 * made.loc[SCARCE, "n_real"]).tolist()
    assert made.loc[SCARCE, "reason"].str.startswith("capped at").all()
    made = build_plan(cohort, PlanConfig(total=300, max_repeat=1), seed=0).budget.set_index("label")
    assert made.loc["Hernia", "carried"] == made.loc["Hernia", "n_real"] < made.loc["Hernia", "target"]
    assert "can be asked for: max_repeat 1" in made.loc["Hernia", "reason"]


def test_unseen_combinations_only_on_request_and_flagged(cohort: Cohort, plan: Plan) -> None:
    assert plan.counts["extrapolated"] == 0
    made = build_plan(cohort, PlanConfig(total=330, allow_unseen=True), seed=0)
    positive, _ = split_rows(made)
    flagged = positive["label_source_id"].isna()
    assert flagged.sum() == made.counts["extrapolated"] > 0
    train = cohort.split("train")[LABELS].fillna(0).to_numpy(int)
    real = {tuple(row) for row in train}
    assert all((tuple(row) in real) != unseen
               for row, unseen in zip(positive[LABELS].to_numpy(int), flagged, strict=True))


def test_a_finding_without_any_real_image_can_be_asked_for_by_number(cohort: Cohort) -> None:
    frame = cohort.frame.copy()
    frame.loc[frame["split"] == "train", "Fibrosis"] = 0
    without = cohort_of(frame)
    made = build_plan(without, PlanConfig(total=200), seed=0).budget.set_index("label")
    assert made.loc["Fibrosis", ["target", "carried"]].tolist() == [0, 0]
    assert "no real train image" in made.loc["Fibrosis", "reason"]
    with pytest.raises(TailfillError, match=r"plan.per_class.Fibrosis: cannot be met: only 0 of 9 .* no real train"):
        build_plan(without, PlanConfig(total=200, per_class={"Fibrosis": 9}), seed=0)
    made = build_plan(without, PlanConfig(total=200, per_class={"Fibrosis": 9}, allow_unseen=True), seed=0).budget
    assert made.set_index("label").loc["Fibrosis", "carried"] == 9


def test_explicit_numbers_are_met_beyond_the_cap(cohort: Cohort) -> None:
    made = build_plan(cohort, PlanConfig(total=600, per_class={"Hernia": 500, "Mass": 20}), seed=0)
    budget = made.budget.set_index("label")
    assert budget.loc["Hernia", "target"] == 500 <= budget.loc["Hernia", "carried"]
    assert budget.loc["Mass", "scarce"]
    assert not split_rows(made)[1]["Mass"].any()


@pytest.mark.parametrize(("wrong", "message"), [
    ({"rule": "flatt"}, r"plan.rule: unknown rule 'flatt'; did you mean 'flat'"), ({"total": 0}, "plan.total: is 0"),
    ({"spread": 0.5}, r"plan.spread: is 0.5"), ({"max_ratio": 0.0}, r"plan.max_ratio: is 0.0"),
    ({"beta": 1.0}, r"plan.beta: is 1.0"), ({"negatives_per_positive": 2.0}, "0 to 1"),
    ({"batch_size": 0}, "plan.batch_size: is 0"), ({"rule": "floor"}, r"plan.floor: is missing"),
    ({"per_class": {"Hernia": -1}}, r"plan.per_class.Hernia: is -1"),
    ({"max_repeat": 0}, r"plan.max_repeat: is 0; wanted: 1 or more"), ({"age_jitter": 30}, "plan.age_jitter: is 30"),
])
def test_values_out_of_range_are_named(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(TailfillError, match=message):
        dataclasses.replace(PlanConfig(total=5), **wrong)  # type: ignore[arg-type]


def test_nothing_to_ask_for_is_an_error(cohort: Cohort) -> None:
    with pytest.raises(TailfillError, match=r"nothing to ask for: Hernia: its \d+ real images reach the floor of 1"):
        build_plan(cohort, PlanConfig(rule="floor", floor=1), seed=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cohort: Cohort) -> Path:
    """A run folder with a prepared cohort and a config."""
    folder = tmp_path_factory.mktemp("run")
    stage = Stage("cohort", folder / "cohort", config={}, inputs={})
    stage.begin()
    write_table(cohort.frame, stage.folder / "cohort.parquet", cohort_schema(LABELS))
    stage.finish(outputs=["cohort.parquet"], counts={"rows": len(cohort.frame)},
                 extra={"labels": LABELS, "groups": GROUPS, "roots": {"main": "/data"}, "salt": "s"})
    (folder / "c.yaml").write_text(yaml.safe_dump({"run": str(folder), "seed": 7, "plan": {"total": 330}}))
    return folder


def test_the_command_writes_tables_and_stamp_and_then_does_nothing(run: Path, plan: Plan, invoke) -> None:  # type: ignore[no-untyped-def]
    dry = invoke("prompts.plan", "--config", run / "c.yaml", "--dry-run")
    assert dry.code == 0, dry.stderr
    assert "Hernia" in dry.stdout
    assert not (run / "plan").exists()
    assert invoke("prompts.plan", "--config", run / "c.yaml").code == 0
    rows = read_table(run / "plan" / "plan.parquet", plan_schema(LABELS))
    assert rows["sample_id"].tolist() == plan.rows["sample_id"].tolist()
    assert rows["prompt"].tolist() == plan.rows["prompt"].tolist()
    budget = read_table(run / "plan" / "budget.parquet")
    assert budget.columns.tolist() == ["label", "group", "scarce", "n_real", "prevalence", "target", "charged",
                                       "carried", "reason"]
    assert "nothing to do" in invoke("prompts.plan", "--config", run / "c.yaml").stderr
    other = invoke("prompts.plan", "--config", run / "c.yaml", "--plan.total", "300")
    assert other.code == 2
    assert "total was 330, now 300" in other.stderr


@pytest.mark.parametrize(("section", "culprit"), [
    ({"totl": 5}, "did you mean 'total'"), ({"total": "many"}, "total"), ({"total": -3}, "plan.total: is -3"),
    ({"total": 5, "scarce": ["Hernai"]}, "did you mean 'Hernia'"), ({"total": 5, "scarce": []}, "plan.scarce"),
    ({"total": 5, "per_class": {"Hernia": 9}}, "plan.per_class: asks for 9"), ({}, "plan.total: is missing"),
    ({"total": 500, "max_repeat": 1, "per_class": {"Hernia": 400}}, "plan.per_class.Hernia: cannot be met"),
    ({"total": 5, "rule": "equal"}, "plan.rule: unknown rule 'equal'"),
])
def test_bad_requests_exit_2_with_one_line_and_write_nothing(
    run: Path, tmp_path: Path, invoke, section: dict[str, object], culprit: str  # type: ignore[no-untyped-def]
) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text(yaml.safe_dump({"run": str(tmp_path / "r"), "cohort": str(run / "cohort"), "plan": section}))
    outcome = invoke("prompts.plan", "--config", config)
    assert outcome.code == 2
    assert outcome.stderr.count("\n") == 1
    assert culprit in outcome.stderr
    assert not (tmp_path / "r").exists()
