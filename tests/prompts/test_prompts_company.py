"""Borrowed company: weights as naive Bayes has them, lenders from all of train, and plans that stay plans."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cohort.errors import TailfillError
from cohort.tables import Cohort, plan_schema, read_table, write_table
from prompts.company import borrow, company_weights, deal_by_weight
from prompts.plan import Plan, build_plan, look
from prompts.settings import PlanConfig
from prompts.topping import FillConfig, join_verdicts, plan_round, take_stock

LABELS = ["Edema", "Fracture", "Kyphosis", "Clavicle Fracture", "Embolism", "Normal"]
GROUPS = {"Edema": "head", "Fracture": "medium", "Kyphosis": "tail", "Clavicle Fracture": "tail", "Embolism": "control",
          "Normal": "head"}
SCARCE = [2, 3, 4]
CONFIG = PlanConfig(scarce=("tail", "control"), total=120, max_ratio=None, negatives_per_positive=0.5, age_jitter=0,
                    company_prior=10.0)


def make_cohort(n: int = 3000) -> Cohort:
    """Kyphosis is old and has edema; a clavicle's fracture is a fracture; an embolism leaves no sign: it is normal."""
    rng = np.random.default_rng(0)
    age = rng.uniform(20, 90, n)
    present = np.zeros((n, 6), bool)
    present[:, 0], present[:, 1] = rng.random(n) < 0.2, rng.random(n) < 0.05
    present[:, 2], present[:, 3] = (rng.random(n) < 0.01) & (age > 60), rng.random(n) < 0.01
    present[:, 0] |= present[:, 2] & (rng.random(n) < 0.8)
    present[:, 1] |= present[:, 3]
    present[:, 4] = rng.random(n) < 0.01
    present[:, 5] = ~present[:, :4].any(axis=1)
    frame = pd.DataFrame({
        "image_id": [f"img{i:05d}" for i in range(n)], "root": "main", "path": [f"{i}.png" for i in range(n)],
        "patient_id": [f"p{i // 2}" for i in range(n)], "study_id": None,
        "view": rng.choice(["PA", "AP", "LATERAL"], n, p=[0.5, 0.4, 0.1]), "age": np.floor(age),
        "sex": rng.choice(["M", "F"], n), "split": np.where(np.arange(n) % 4 == 3, "test", "train"),
    })
    labels = pd.DataFrame(present.astype("int8"), columns=LABELS).astype("Int8")
    return Cohort(frame=pd.concat([frame, labels], axis=1), labels=LABELS, groups=GROUPS, roots={}, salt="s",
                  folder=Path("."))


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    return make_cohort()


@pytest.fixture(scope="module")
def plan(cohort: Cohort) -> Plan:
    return build_plan(cohort, CONFIG, seed=3)


def train_of(cohort: Cohort) -> tuple[pd.DataFrame, np.ndarray]:
    train = cohort.split("train").reset_index(drop=True)
    return train, train[LABELS].eq(1).to_numpy(bool)


def test_weights_are_the_ratio_that_naive_bayes_has() -> None:
    """Four patients, worked out by hand: two images of one patient count as one, and lend as one."""
    train = pd.DataFrame({"patient_id": ["a", "a", "b", "c", "d"], "view": ["AP", "AP", "PA", None, "PA"],
                          "sex": ["M", "M", "M", "M", "M"], "age": [50.0, 50.0, 50.0, 50.0, np.nan]})
    matrix = np.array([[1, 1], [1, 1], [0, 1], [1, 0], [0, 0]], bool)  # a companion, then the finding
    weights = company_weights(train, matrix, matrix[:, 1], pool=np.ones(5, bool), labels=["Edema", "Hernia"],
                              scarce=[1], prior=2.0)
    usual, usual_ap = 2.5 / 5, 1.5 / 4
    edema, ap = (1 + 2 * usual) / 4, (1 + 2 * usual_ap) / 4  # patient a has it, patient b does not
    healthy, pa = (1 - edema) / (1 - usual), (1 - ap) / (1 - usual_ap)
    male, usual_male = (2 + 2 * 4.5 / 5) / 4, 4.5 / 5
    expected = np.array([edema / usual * ap / usual_ap / 2] * 2 + [healthy * pa, edema / usual, healthy * pa])
    expected *= male / usual_male  # all are men of one age: that says nothing
    np.testing.assert_allclose(weights, expected / expected.max(), rtol=1e-12)


def test_ages_follow_those_of_the_finding_as_far_as_its_patients_count(cohort: Cohort) -> None:
    train, matrix = train_of(cohort)
    own, everybody = matrix[:, 2], np.ones(len(train), bool)
    n = train.loc[own, "patient_id"].nunique()
    means = [np.average(train["age"], weights=company_weights(
        train, matrix, own, pool=everybody, labels=LABELS, scarce=SCARCE, prior=prior)) for prior in (0.01, n, 1e6)]
    share = 1 / train.groupby("patient_id")["image_id"].transform("size")
    old, usual = (np.average(train.loc[rows, "age"], weights=share[rows]) for rows in (own, everybody))
    assert means[2] == pytest.approx(usual, abs=0.1)
    assert means[1] == pytest.approx((old + usual) / 2, abs=3)  # ages are uniform, the weights those of a normal
    assert means[0] > means[1] + 3


def test_lenders_are_dealt_by_weight_to_within_one() -> None:
    weight = np.array([0.0, 3.0, 1.0, 0.5, 0.5])
    rng = np.random.default_rng(0)
    for n in (1, 7, 40):
        counts = np.bincount(deal_by_weight(weight, n, rng), minlength=5)
        assert counts.sum() == n
        assert (np.abs(counts - n * weight / weight.sum()) <= 1).all()
        assert counts[0] == 0


def test_a_label_that_the_finding_implies_is_a_condition_on_the_lender(cohort: Cohort, plan: Plan) -> None:
    positives = plan.rows[plan.rows["charged_to"] != "negative"]
    assert positives.loc[positives["Clavicle Fracture"] == 1, "Fracture"].all()
    assert not positives.loc[positives["Kyphosis"] == 1, "Fracture"].all()


def test_normal_stays_beside_a_finding_only_where_that_is_usual(plan: Plan) -> None:
    positives = plan.rows[plan.rows["charged_to"] != "negative"]
    visible = positives[["Edema", "Fracture", "Kyphosis", "Clavicle Fracture"]].eq(1).any(axis=1)
    assert (positives["Normal"].eq(1) == ~visible).all()
    assert positives.loc[positives["charged_to"] == "Embolism", "Normal"].any()


def test_a_company_is_that_of_a_train_image_whose_patient_is_described(cohort: Cohort, plan: Plan) -> None:
    train, _ = train_of(cohort)
    beside = ["Edema", "Fracture"]
    real = set(train[[*beside, "view", "age", "sex"]].itertuples(index=False, name=None))
    assert set(plan.rows[[*beside, "view", "age", "sex"]].itertuples(index=False, name=None)) <= real
    assert not plan.rows["view"].eq("LATERAL").any()
    assert plan.rows["label_source_id"].isna().all()
    assert plan.counts["extrapolated"] == 0  # each set of scarce findings is somebody's
    changed = cohort.frame.copy()
    changed.loc[changed["split"] == "test", LABELS] = 1
    other = Cohort(frame=changed.sample(frac=1, random_state=1), labels=LABELS, groups=GROUPS, roots={}, salt="s",
                   folder=Path("."))
    pd.testing.assert_frame_equal(build_plan(other, CONFIG, seed=3).rows, plan.rows)


def test_company_is_more_varied_than_the_findings_own_and_leans_towards_it(cohort: Cohort, plan: Plan) -> None:
    own = build_plan(cohort, PlanConfig(**{**vars(CONFIG), "company_prior": None}), seed=3)
    kyphosis = {name: made.rows[made.rows["charged_to"] == "Kyphosis"] for name, made in
                (("own", own), ("borrowed", plan))}
    people = {name: len(rows[["age", "sex", "view"]].drop_duplicates()) for name, rows in kyphosis.items()}
    assert people["borrowed"] > 1.5 * people["own"]
    train, _ = train_of(cohort)
    theirs = train.loc[train["Kyphosis"] == 1, "Edema"].mean()
    assert train["Edema"].mean() < kyphosis["borrowed"]["Edema"].mean() < theirs


def test_budget_and_negatives_are_as_in_any_plan(plan: Plan) -> None:
    budget = plan.budget[plan.budget["scarce"]]
    assert (budget["carried"] >= budget["target"]).all()
    negatives = plan.rows[plan.rows["charged_to"] == "negative"]
    of_pair = plan.rows[plan.rows["charged_to"] != "negative"].set_index("seed").loc[negatives["seed"]]
    assert len(negatives) == len(of_pair) == sum(budget["charged"]) // 2
    for column in ("Edema", "Fracture", "view", "age", "sex"):
        assert negatives[column].tolist() == of_pair[column].tolist()
    assert not negatives[["Kyphosis", "Clavicle Fracture", "Embolism"]].to_numpy().any()
    assert (negatives["Normal"] == (negatives["Edema"] + negatives["Fracture"] == 0)).all()


def test_a_round_of_filling_asks_for_what_is_missing_in_borrowed_company(cohort: Cohort, plan: Plan) -> None:
    verdicts = pd.DataFrame({"sample_id": plan.rows["sample_id"], "keep": plan.rows["charged_to"].ne("Kyphosis")})
    seen = join_verdicts(plan.rows, verdicts)
    wanted = dict(zip(plan.budget["label"], plan.budget["target"], strict=True))
    budget = {label: wanted[label] for label in ("Kyphosis", "Clavicle Fracture", "Embolism")}
    stock = take_stock(seen, budget, FillConfig(), round_=0)
    again = plan_round(look(cohort, CONFIG), CONFIG, FillConfig(), seen=seen, stock=stock, seed=3, round_=1).rows
    assert again["Kyphosis"].sum() > wanted["Kyphosis"]
    assert again["label_source_id"].isna().all()
    assert len(again.loc[again["Kyphosis"] == 1, ["age", "sex", "view"]].drop_duplicates()) > 20
    assert not set(again["sample_id"]) & set(plan.rows["sample_id"])


def test_a_finding_that_nobody_has_takes_the_usual_company() -> None:
    train, matrix = train_of(make_cohort(400))
    matrix[:, 3] = False
    asked = np.zeros((200, 6), bool)
    asked[:, 3] = True
    rng = np.random.default_rng(0)
    lender, made = borrow(train, matrix, asked, np.full(200, 3), labels=LABELS, scarce=SCARCE, prior=5.0, rng=rng)
    frontal = train["view"].ne("LATERAL")
    assert frontal.iloc[lender].all()
    assert train["patient_id"].iloc[lender].value_counts().max() == 2  # 200 rows of 180 patients, all alike
    assert made[:, 3].all()
    assert made[:, 0].mean() == pytest.approx(matrix[frontal, 0].mean(), abs=0.08)


def test_a_company_that_no_prompt_can_say_does_not_lend(monkeypatch: pytest.MonkeyPatch, cohort: Cohort) -> None:
    monkeypatch.setattr("prompts.company.fits", lambda said: "Edema" not in said)
    rows = build_plan(cohort, CONFIG, seed=3).rows
    assert not rows["Edema"].any()
    monkeypatch.setattr("prompts.company.fits", lambda said: False)
    with pytest.raises(TailfillError, match=r"plan.company_prior: no company of a real image fits .* Kyphosis"):
        build_plan(cohort, CONFIG, seed=3)


def test_that_there_is_no_finding_cannot_be_asked_for_in_company(cohort: Cohort) -> None:
    with pytest.raises(TailfillError, match=r"plan.company_prior: Normal is scarce, which says that there is no comp"):
        build_plan(cohort, PlanConfig(**{**vars(CONFIG), "scarce": ("tail", "Normal")}), seed=3)


def test_a_slip_of_a_label_neither_implies_nor_makes_normal() -> None:
    """Slips: a clavicle in twenty is no fracture, a kyphosis of forty normal. Chance: edema in two of two."""
    n = 4000
    train = pd.DataFrame({"patient_id": [f"p{i}" for i in range(n)], "view": "PA", "sex": "M", "age": 50.0})
    matrix = np.zeros((n, 6), bool)
    matrix[:200, 0] = True  # edema
    matrix[1000:1200, 1] = matrix[1160:1180, 3] = True
    matrix[1160, 1] = False
    matrix[2000:2040, 2] = matrix[2000:2002, 0] = True  # two kyphoses with edema
    matrix[:, 5] = ~matrix[:, :5].any(axis=1)
    matrix[2039, 5] = True
    vectors = np.zeros((400, 6), bool)
    vectors[:200, 3] = vectors[200:, 2] = vectors[:10, 2] = True  # ten rows have both, and are charged to kyphosis
    charged = np.where(np.arange(400) < 200, 3, 2)
    charged[:10] = 2
    rng = np.random.default_rng(0)
    _, made = borrow(train, matrix, vectors, charged, labels=LABELS, scarce=SCARCE, prior=30.0, rng=rng)
    assert made[:200, 1].all()
    assert 0.02 < made[200:, 0].mean() < 0.2
    assert not made[200:, 1].all()
    assert not made[:, 5].any()
    rare = matrix.copy()
    rare[:, 2] = False
    rare[2000:2002, 2] = True  # the two kyphoses with edema are all there are
    _, made = borrow(train, rare, vectors[200:], charged[200:], labels=LABELS, scarce=SCARCE, prior=30.0, rng=rng)
    assert 0.05 < made[:, 0].mean() < 0.3
    few = matrix.copy()
    few[:1165, 3] = few[1170:, 3] = False  # five clavicles
    few[1165, 1] = False  # of which one is not written down as a fracture
    _, made = borrow(train, few, vectors[:200], charged[:200], labels=LABELS, scarce=SCARCE, prior=30.0, rng=rng)
    assert made[:, 1].all()


def test_who_lent_is_written_down_and_old_plans_keep_their_fingerprint(cohort: Cohort, plan: Plan) -> None:
    train = cohort.split("train").set_index("image_id")
    lent = train.loc[plan.rows["company_id"]]
    for column in ("view", "sex", "age"):
        assert lent[column].tolist() == plan.rows[column].tolist()
    own = PlanConfig(**{**vars(CONFIG), "company_prior": None})
    assert build_plan(cohort, own, seed=3).rows["company_id"].isna().all()
    assert "company_prior" not in own.identity()
    assert CONFIG.identity()["company_prior"] == 10.0


@pytest.mark.parametrize(("wrong", "message"), [
    ({"company_prior": 0.0}, r"plan.company_prior: is 0.0; wanted: above 0 and finite, or null"),
    ({"company_prior": float("inf")}, r"plan.company_prior: is inf; wanted: above 0 and finite"),
    ({"image_conditioned": 0.5}, r"plan.company_prior: is 10.0 and image_conditioned 0.5; wanted: null, or 0"),
])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(TailfillError, match=message):
        PlanConfig(**{**vars(CONFIG), **wrong})


def test_rounds_of_old_and_new_plans_stand_in_one_table(cohort: Cohort, plan: Plan, tmp_path: Path) -> None:
    """A plan from before companies were lent has no such column; nulls stay null, in a file as well."""
    old = plan.rows.drop(columns="company_id").assign(sample_id="old-" + plan.rows["sample_id"])
    write_table(old, tmp_path / "old.parquet", plan_schema(LABELS))
    rounds = pd.concat([read_table(tmp_path / "old.parquet", plan_schema(LABELS)), plan.rows], ignore_index=True)
    write_table(rounds, tmp_path / "plan.parquet", plan_schema(LABELS))
    found = read_table(tmp_path / "plan.parquet", plan_schema(LABELS))
    assert found["company_id"].isna().tolist() == [True] * len(old) + [False] * len(plan.rows)
    assert found["company_id"].dropna().tolist() == plan.rows["company_id"].tolist()
    assert found["label_source_id"].isna().all()
