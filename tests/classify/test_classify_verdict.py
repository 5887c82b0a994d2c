"""The verdict, as a table of cases, and the sentences that must come with each."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from classify.comparison.intervals import Interval
from classify.verdict.deciding import CANNOT_SAY, HELPS, HURTS, SAME_ARMS, TOO_FEW_SEEDS, Case, judge

ENDPOINT = {"metric": "AP", "group": "tail", "arm": "synthetic", "rival": "duplicate", "weights": "ema"}


def interval(estimate: float, error: float) -> Interval:
    """A nearly normal interval: 1.96 errors to each side."""
    return Interval(estimate=estimate, low=estimate - 1.96 * error, high=estimate + 1.96 * error, p=0.5, df=1e9,
                    standard_error=error, variance_patients=error**2, variance_seeds=0.0, n_draws=2000)


def case(estimate=0.0, error=0.01, **changes) -> Case:
    """Five seeds, ample positives, margin .02, held guards; ``changes`` replace any part."""
    guard = (interval(0.0, 0.001), 0.01)
    parts = {
        "endpoint": ENDPOINT, "interval": interval(estimate, error), "margin": 0.02, "n_patients": 60, "n_seeds": 5,
        "guards": {"head": guard, "medium": guard}, "positive_patients": {"Hernia": 30, "Edema": 30},
        "preregistered": True,
    }
    return Case(**(parts | changes))


@pytest.mark.parametrize(("given", "answer"), [
    (case(0.05, 0.01), HELPS),
    (case(-0.05, 0.01), HURTS),
    (case(0.005, 0.005), "no difference larger than 0.02 could be shown"),
    (case(0.0, 0.012), "no difference larger than 0.02 could be shown"),  # TOST holds at 90 %, not at 95 %
    (case(0.02, 0.015), "no difference larger than 0.0494 could be shown"),
    (case(-0.02, 0.015), "no difference larger than 0.0494 could be shown"),
    (case(0.0, 0.03), CANNOT_SAY),
    (case(0.01, 0.03), CANNOT_SAY),
    (case(0.05, 0.01, positive_patients={"Hernia": 9, "Edema": 30}), CANNOT_SAY),
    (case(0.05, 0.01, positive_patients={"Hernia": 0, "Edema": 30}), CANNOT_SAY),
    (case(0.05, 0.01, n_seeds=2), TOO_FEW_SEEDS),
    (case(0.0, 0.0), SAME_ARMS),
    (case(interval=Interval(estimate=0.1, reason="fewer than 10 positive patients")), CANNOT_SAY),
    (case(interval=Interval(estimate=None, reason="no class in this group"), positive_patients={}), CANNOT_SAY),
])
def test_answer(given, answer):
    found = judge(given)
    assert found["verdict"] == answer
    assert found["endpoint"] == ENDPOINT
    assert len(found["sentences"]) >= 2


@pytest.mark.parametrize(("oracle", "state", "words"), [
    (None, "unknown", "No gain shown, sensitivity unknown"),
    (interval(0.1, 0.01), "shown", "it could have shown a gain"),
    (interval(0.0, 0.01), "not shown", "could not have said yes"),
    (Interval(estimate=0.1, reason="one seed"), "not shown", "could not have said yes"),
])
def test_a_missing_gain_says_whether_one_could_have_been_seen(oracle, state, words):
    found = judge(case(0.0, 0.005, oracle=oracle))
    assert found["sensitivity"] == state
    assert any(words in sentence for sentence in found["sentences"])
    assert not any("sensitivity unknown" in sentence for sentence in judge(case(0.05, 0.01))["sentences"])


@pytest.mark.parametrize(("guard", "state"), [
    (interval(0.0, 0.001), "held"),
    (interval(0.05, 0.01), "held"),
    (interval(-0.004, 0.001), "held"),
    (interval(-0.05, 0.01), "lost"),
    (interval(-0.005, 0.01), "not shown"),
    (Interval(estimate=0.0, reason="one seed: the variance between seeds is unknown"), "undefined"),
])
def test_guards(guard, state):
    found = judge(case(0.05, 0.01, guards={"head": (guard, 0.01)}))
    assert found["guards"]["head"]["state"] == state
    assert any(sentence.startswith("Guard head") for sentence in found["sentences"])


def test_equivalence_needs_both_sides():
    found = judge(case(guards={"head": (interval(0.05, 0.01), 0.01), "medium": (interval(0.0, 0.001), 0.01)}))
    assert found["guards"]["head"]["p_tost"] > 0.95
    assert found["guards"]["medium"]["p_tost"] < 0.05


def test_needed_patients_scale_with_the_square_of_the_width():
    assert judge(case(0.0, 0.02 / 1.96))["needed_positive_patients"] == pytest.approx(60, abs=1)
    assert judge(case(0.0, 0.04 / 1.96))["needed_positive_patients"] == pytest.approx(240, abs=1)
    assert any("240" in sentence or "241" in sentence for sentence in judge(case(0.0, 0.04 / 1.96))["sentences"])


def test_too_few_positives_carry_the_number_that_would_do():
    found = judge(case(0.0, 0.03, oracle=interval(0.05, 0.01)))
    margin, oracle = found["needed"]["margin"]["patients"], found["needed"]["oracle"]["patients"]
    assert margin == pytest.approx(60 * (1.96 * 0.03 / 0.02) ** 2, rel=0.01)
    assert oracle == pytest.approx(60 * ((1.96 + 0.8416) * 0.03 / 0.05) ** 2, rel=0.01)  # Cohen's 2.8 errors
    assert found["verdict"] == CANNOT_SAY
    assert f"about {margin} positive test patients would be needed, there are 60" in found["sentences"][0]
    assert any(f"{oracle} (range" in sentence for sentence in found["sentences"])
    thin = judge(case(0.05, 0.01, positive_patients={"Hernia": 4, "Edema": 30}))
    assert thin["needed"]["thinnest"] == 150
    assert "about 150 positive" in thin["sentences"][0]
    assert judge(case(0.05, 0.01, positive_patients={"Hernia": 0}))["needed"]["thinnest"] is None
    assert judge(case(0.0, 0.03))["needed"]["oracle"] is None
    assert judge(case(0.0, 0.03, oracle=interval(0.01, 0.01)))["needed"]["oracle"] is None  # its gain may be 0


def test_the_range_of_the_number_covers_what_many_patients_would_have_said():
    rng, df, margin, truth, covered = np.random.default_rng(0), 20, 0.02, 0.03, 0
    exact = 60 * (stats.t.ppf(0.975, df) * truth / margin) ** 2
    for variance in truth**2 * rng.chisquare(df, 500) / df:
        seen = replace(interval(0.0, variance**0.5), df=df, variance_patients=variance)
        found = judge(case(interval=seen))["needed"]["margin"]
        covered += found["low"] <= exact <= found["high"]
    assert 0.92 <= covered / 500 <= 0.98


def test_no_number_of_patients_where_the_seeds_are_too_far_apart():
    found = judge(case(interval=replace(interval(0.0, 0.03), variance_seeds=0.01)))
    assert found["needed"]["margin"] == {"patients": None, "low": None, "high": None}
    assert any("more seeds first" in sentence for sentence in found["sentences"])


def test_two_one_sided_tests_are_the_interval_of_ninety_per_cent():
    rng = np.random.default_rng(1)
    for estimate, error, df in zip(rng.normal(0, 0.01, 300), rng.uniform(0.002, 0.02, 300), rng.integers(2, 50, 300),
                                   strict=True):
        one = replace(interval(estimate, error), df=float(df))
        low, high = one.bounds(0.90)
        assert (one.p_tost(0.02) < 0.05) == (low > -0.02 and high < 0.02)
    assert Interval(estimate=0.0, reason="one seed").p_tost(0.02) is None


def test_what_limits_the_answer_is_said():
    poor = judge(case(0.05, 0.01, n_seeds=3, preregistered=False, positive_patients={"Hernia": 5, "Edema": 30},
                      supported=interval(0.06, 0.01)))
    text = " ".join(poor["sentences"])
    assert poor["thin_classes"] == {"Hernia": 5}
    for words in ("Hernia has 5", "Over Edema alone", "a claim needs 5", "no endpoint.json", "one trained generator"):
        assert words in text
    rich = " ".join(judge(case(0.05, 0.01))["sentences"])
    assert "claim needs" not in rich
    assert "endpoint.json" not in rich
