"""The verdict, as a table of cases, and the sentences that must come with each."""

import pytest

from classify.comparison.intervals import Interval
from classify.comparison.verdict import CANNOT_SAY, HELPS, HURTS, SAME_ARMS, TOO_FEW_SEEDS, Case, judge

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
