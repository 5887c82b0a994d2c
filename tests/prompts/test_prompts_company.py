"""Borrowed company: weights as naive Bayes has them, lenders from all of train, and plans that stay plans."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cohort.errors import TailfillError
from cohort.tables import Cohort
from prompts.company import choose_lenders, company_weights, deal_by_weight, lend
from prompts.plan import Plan, build_plan, look
from prompts.settings import PlanConfig
from prompts.topping import FillConfig, join_verdicts, plan_round, take_stock

LABELS = ["Edema", "Fracture", "Kyphosis", "Clavicle", "Embolism", "Normal"]
GROUPS = {"Edema": "head", "Fracture": "medium", "Kyphosis": "tail", "Clavicle": "tail", "Embolism": "control",
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
    """Four patients, worked out by hand: two images of one patient count as one."""
    train = pd.DataFrame({"patient_id": ["a", "a", "b", "c", "d"], "view": ["AP", "AP", "PA", None, "PA"],
                          "sex": ["M", "M", "M", "M", "M"], "age": [50.0, 50.0, 50.0, 50.0, np.nan]})
    matrix = np.array([[1, 1], [1, 1], [0, 1], [1, 0], [0, 0]], bool)  # a companion, then the finding
    weights = company_weights(train, matrix, matrix[:, 1], pool=np.ones(5, bool), labels=["Edema", "Hernia"],
                              scarce=[1], prior=2.0)
    usual, usual_ap = 3.5 / 6, 2.5 / 5
    edema, ap = (1 + 2 * usual) / 4, (1 + 2 * usual_ap) / 4  # patient a has it, patient b does not
    expected = np.array([edema / usual * ap / usual_ap] * 2 + [(1 - edema) / (1 - usual) * (1 - ap) / (1 - usual_ap),
                                                              edema / usual, (1 - edema) / (1 - usual)])
    expected[4] *= (1 - ap) / (1 - usual_ap)  # all are of one sex and age: neither says anything
    np.testing.assert_allclose(weights, expected / expected.max(), rtol=1e-12)


def test_ages_follow_those_of_the_finding_as_far_as_its_patients_count(cohort: Cohort) -> None:
    train, matrix = train_of(cohort)
    own, everybody = matrix[:, 2], np.ones(len(train), bool)
    n = train.loc[own, "patient_id"].nunique()
    means = [np.average(train["age"], weights=company_weights(
        train, matrix, own, pool=everybody, labels=LABELS, scarce=SCARCE, prior=prior)) for prior in (0.01, n, 1e6)]
    old, usual = train.loc[own, "age"].mean(), train["age"].mean()
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
    assert positives.loc[positives["Clavicle"] == 1, "Fracture"].all()
    assert not positives.loc[positives["Kyphosis"] == 1, "Fracture"].all()


def test_normal_stays_beside_a_finding_only_where_a_real_image_has_the_two(plan: Plan) -> None:
    positives = plan.rows[plan.rows["charged_to"] != "negative"]
    visible = positives[["Edema", "Fracture", "Kyphosis", "Clavicle"]].eq(1).any(axis=1)
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
    assert not negatives[["Kyphosis", "Clavicle", "Embolism"]].to_numpy().any()
    assert (negatives["Normal"] == (negatives["Edema"] + negatives["Fracture"] == 0)).all()


def test_a_round_of_filling_asks_for_what_is_missing_in_borrowed_company(cohort: Cohort, plan: Plan) -> None:
    verdicts = pd.DataFrame({"sample_id": plan.rows["sample_id"], "keep": plan.rows["charged_to"].ne("Kyphosis")})
    seen = join_verdicts(plan.rows, verdicts)
    wanted = dict(zip(plan.budget["label"], plan.budget["target"], strict=True))
    stock = take_stock(seen, {label: wanted[label] for label in ("Kyphosis", "Clavicle", "Embolism")}, FillConfig(),
                       round_=0)
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
    lender = choose_lenders(train, matrix, asked, np.full(200, 3), labels=LABELS, scarce=SCARCE, prior=5.0, rng=rng)
    frontal = train["view"].ne("LATERAL")
    assert frontal.iloc[lender].all()
    assert len(set(lender)) == 200  # equal weights, so nobody lends twice
    made = lend(matrix, asked, lender, labels=LABELS, scarce=SCARCE)
    assert made[:, 3].all()
    assert made[:, 0].mean() == pytest.approx(matrix[frontal, 0].mean(), abs=0.08)


def test_a_company_that_no_prompt_can_say_does_not_lend(monkeypatch: pytest.MonkeyPatch, cohort: Cohort) -> None:
    monkeypatch.setattr("prompts.company.fits", lambda said: "Edema" not in said)
    rows = build_plan(cohort, CONFIG, seed=3).rows
    assert not rows["Edema"].any()
    monkeypatch.setattr("prompts.company.fits", lambda said: False)
    with pytest.raises(TailfillError, match=r"plan.company_prior: no company of a real image fits .* Kyphosis"):
        build_plan(cohort, CONFIG, seed=3)


@pytest.mark.parametrize(("wrong", "message"), [
    ({"company_prior": 0.0}, r"plan.company_prior: is 0.0; wanted: above 0, or null"),
    ({"image_conditioned": 0.5}, r"plan.company_prior: is 10.0 and image_conditioned 0.5; wanted: null, or 0"),
])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(TailfillError, match=message):
        PlanConfig(**{**vars(CONFIG), **wrong})
