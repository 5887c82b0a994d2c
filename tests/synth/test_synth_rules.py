"""The registry of rules: their order, settings, a user's own, and what they make of criteria."""

from typing import Literal

import numpy as np
import pytest
from evidence_cases import case_of, images_of

from cohort.errors import TailfillError
from cohort.tables import RESERVED
from synth.judging.evidence import Evidence
from synth.judging.rules import (
    ADVISORY,
    RULES,
    Criterion,
    apply_rules,
    check_rules,
    column,
    fails,
    find_rule,
    read_by,
    reads,
    worst_margin,
)
from synth.judging.sanity import PixelStatistics


def case(n: int = 3) -> Evidence:
    """Images of grey noise, made and real."""
    rng = np.random.default_rng(0)
    statistics = {PixelStatistics.name: PixelStatistics().read(rng.integers(20, 235, (n, 8, 8)).astype(np.uint8))}
    images = images_of({"Hernia": [1] * n}, readings=statistics)
    return case_of(made=images, charged_to=["Hernia"] * n, train=images)


@reads("pixels")
def every_other(
    evidence: Evidence, *, share: float = 0.5, first: int = 1, kind: Literal["odd", "even"] = "odd"
) -> list[Criterion]:
    """A user's own rule: fails every other image."""
    score = (np.arange(len(evidence.made)) + (kind == "odd")) % 2
    return [Criterion(label=None, score=score.astype(float), applies=np.ones(len(score), dtype=bool),
                      threshold=share, at_least=True, source=f"from {first}")]


OWN = f"{__name__}:every_other"


def test_order_of_the_config_is_kept() -> None:
    assert list(apply_rules({"saturated": None, "blank": {"quantile": 0.01}}, case())) == ["saturated", "blank"]


def test_a_rule_of_ones_own_is_one_function_and_one_line() -> None:
    check_rules({OWN: {"share": 0.9, "first": 2, "kind": "even"}})
    verdicts = apply_rules({"blank": None, OWN: {"kind": "even"}}, case())
    assert list(verdicts) == ["blank", "every_other"]
    assert (worst_margin(verdicts["every_other"], 3) >= 0).tolist() == [False, True, False]
    assert "pixels" in read_by([OWN])


def test_a_later_rule_sees_what_still_stands() -> None:
    verdicts = apply_rules({OWN: None, "evidence_cases:standing_rule": None}, case(4))
    assert verdicts["standing_rule"][0].applies.tolist() == [True, False, True, False]


def test_a_rule_that_is_told_not_to_drop_scores_all_the_same() -> None:
    verdicts = apply_rules({OWN: {"drop": False}, "evidence_cases:standing_rule": None}, case(4))
    assert (worst_margin(verdicts["every_other"], 4) < 0).sum() == 2
    assert not fails(verdicts["every_other"], 4).any()
    assert verdicts["standing_rule"][0].applies.all()


def test_advisory_rules_drop_when_they_are_told_to() -> None:
    for name in ADVISORY:
        check_rules({name: {"drop": True}})
        assert name in RULES


def test_every_rule_that_there_is_can_be_found_and_says_what_it_reads() -> None:
    for name in RULES:
        assert find_rule(name).__doc__
        assert read_by([name]), name
        assert column(name) == (name if name != "view" else "view_rule")


def test_no_rule_takes_the_place_of_a_column_of_the_tables() -> None:
    assert not {column(name) for name in [*RULES, "mine:keep", "mine:view"]} & RESERVED


@pytest.mark.parametrize(("rules", "message"), [
    ({"blnk": None}, "unknown rule 'blnk'; did you mean 'blank'"),
    ({"blank": {"quantle": 0.1}}, "unknown key 'quantle'; did you mean 'quantile'"),
    ({"blank": {"quantile": 1.5}}, "quantile is 1.5; wanted: a share"),
    ({"blank": {"quantile": True}}, "quantile is True"),
    ({"blank": {"quantile": "much"}}, "quantile is 'much'; wanted: a share"),
    ({"blank": {"drop": 1}}, "drop is 1; wanted: true or false"),
    ({OWN: {"first": 0.5}}, "first is 0.5; wanted: a whole number"),
    ({OWN: {"first": 2.0}}, "first is 2.0; wanted: a whole number"),
    ({OWN: {"first": float("inf")}}, "first is inf; wanted: a whole number"),
    ({OWN: {"kind": "all"}}, "kind is 'all'; wanted: one of odd, even"),
    ({"no.such.module:rule": None}, "cannot be imported: No module named 'no'"),
    ({"evidence_cases:no_rule": None}, "cannot be imported"),
    ({"blank": None, "evidence_cases:blank": None}, "two rules of one name"),
])
def test_mistakes_in_the_config(rules: dict[str, dict[str, float] | None], message: str) -> None:
    with pytest.raises(TailfillError, match=message):
        check_rules(rules)


def test_worst_margin_is_the_smallest() -> None:
    def criterion(score: list[float], applies: list[bool]) -> Criterion:
        return Criterion(label=None, score=np.array(score), applies=np.array(applies), threshold=0.0, at_least=True,
                         source="test")

    margins = worst_margin([criterion([1, 2, 3], [True, True, False]), criterion([5, -2, 3], [True, True, False])], 3)
    np.testing.assert_array_equal(margins, [1, -2, np.nan])
