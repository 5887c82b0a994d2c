"""The rules against their formulas, and shares that keep their total, their caps and their order."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohort.errors import TailfillError
from prompts.scarcity import RULES, Targets, find_scarce, set_targets, share_out, train_counts

LABELS = ["Mass", "Hernia", "Edema"]
GROUPS = {"Mass": "medium", "Hernia": "tail", "Edema": "tail"}


def targets(n_real: dict[str, int], **changes: object) -> Targets:
    counts = pd.DataFrame({"n_real": pd.Series(n_real)})
    settings_: dict[str, object] = {"rule": "flat", "total": None, "floor": None, "max_ratio": None, "beta": 0.999,
                                    "per_class": {}}
    return set_targets(counts, list(n_real), **(settings_ | changes))  # type: ignore[arg-type]


def test_counts_take_prevalence_over_known_labels() -> None:
    train = pd.DataFrame({"Mass": pd.array([1, 0, None, 1], "Int8"), "Hernia": pd.array([None] * 4, "Int8")})
    counts = train_counts(train, ["Mass", "Hernia"])
    assert counts["n_real"].tolist() == [2, 0]
    assert counts["prevalence"]["Mass"] == pytest.approx(2 / 3)
    assert np.isnan(counts["prevalence"]["Hernia"])


def test_flat_and_inverse_frequency() -> None:
    assert targets({"a": 5, "b": 500}, total=100).wanted == {"a": 50, "b": 50}
    assert targets({"a": 10, "b": 30}, total=400, rule="inverse_frequency").wanted == {"a": 300, "b": 100}


def test_floor_lifts_real_and_synthetic_to_the_floor() -> None:
    assert targets({"a": 5, "b": 60, "c": 200}, rule="floor", floor=100).wanted == {"a": 95, "b": 40, "c": 0}
    short = targets({"a": 5, "b": 60, "c": 200}, rule="floor", floor=100, total=27)
    assert short.wanted == {"a": 19, "b": 8, "c": 0}
    assert "needs 95, the total of 27 leaves 19" in short.reasons["a"]
    assert targets({"a": 5, "b": 60}, rule="floor", floor=100, total=1000).wanted == {"a": 95, "b": 40}


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999])
def test_effective_number_is_cui_et_al(beta: float) -> None:
    n = np.array([1, 10, 1000])
    expected = np.array([(1 - beta) / (1 - beta**k) for k in n])
    np.testing.assert_allclose(RULES["effective_number"](n, floor=0, beta=beta).weights, expected)


def test_effective_number_runs_from_flat_to_inverse_frequency() -> None:
    n = np.array([7, 39, 444])

    def weights(rule: str, beta: float) -> np.ndarray:
        found = RULES[rule](n, floor=0, beta=beta).weights
        return found / found.mean()

    np.testing.assert_allclose(weights("effective_number", 0.0), 1.0)
    np.testing.assert_allclose(weights("effective_number", 1 - 1e-9), weights("inverse_frequency", 0.0), rtol=1e-4)


def test_a_capped_class_gives_to_the_others_and_says_why() -> None:
    capped = targets({"a": 7, "b": 500}, total=400, max_ratio=10)
    assert capped.wanted == {"a": 70, "b": 330}
    assert capped.reasons == {"a": "capped at 70: max_ratio 10 x 7 real images"}
    assert targets({"a": 0, "b": 500}, total=40, max_ratio=10).reasons["a"].startswith("no real train image")


def test_explicit_numbers_win_over_rule_and_cap() -> None:
    given_ = targets({"a": 1, "b": 50, "c": 50}, total=500, max_ratio=10, per_class={"a": 300, "b": 0})
    assert given_.wanted == {"a": 300, "b": 0, "c": 200}
    assert targets({"a": 1}, per_class={"a": 9}).wanted == {"a": 9}


def test_contradictory_totals_are_errors() -> None:
    with pytest.raises(TailfillError, match=r"plan.total: is missing; rule 'flat'"):
        targets({"a": 1})
    with pytest.raises(TailfillError, match=r"plan.per_class: asks for 300 images, plan.total is 200"):
        targets({"a": 1, "b": 2}, total=200, per_class={"a": 300})


def test_scarce_by_group_by_name_and_by_explicit_number() -> None:
    assert find_scarce(["tail"], labels=LABELS, groups=GROUPS, per_class={}) == ["Hernia", "Edema"]
    assert find_scarce(["Edema"], labels=LABELS, groups=GROUPS, per_class={"Mass": 3}) == ["Mass", "Edema"]
    control = GROUPS | {"Mass": "control"}
    assert find_scarce(["tail", "control"], labels=LABELS, groups=control, per_class={}) == ["Mass", "Hernia", "Edema"]
    with pytest.raises(TailfillError, match=r"plan.scarce: unknown name 'Hernai'; did you mean 'Hernia'"):
        find_scarce(["Hernai"], labels=LABELS, groups=GROUPS, per_class={})
    with pytest.raises(TailfillError, match=r"plan.per_class: unknown name 'tail'"):
        find_scarce(["tail"], labels=LABELS, groups=GROUPS, per_class={"tail": 5})
    with pytest.raises(TailfillError, match="no label of the cohort belongs to head"):
        find_scarce(["head"], labels=LABELS, groups=GROUPS, per_class={})


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 3000), st.lists(st.tuples(st.floats(0, 100), st.one_of(st.integers(0, 500), st.just(np.inf))),
                                      min_size=1, max_size=8))
def test_shares_keep_total_and_caps_and_follow_the_weights(total: int, classes: list[tuple[float, float]]) -> None:
    weights, caps = np.array([w if w > 1e-6 else 0.0 for w, _ in classes]), np.array([c for _, c in classes], float)
    shares = share_out(total, weights=weights, caps=caps)
    assert shares.sum() == min(total, caps[weights > 0].sum())
    assert (shares >= 0).all()
    assert (shares <= caps).all()
    free = (weights > 0) & (shares < caps)
    for i in np.flatnonzero(free):
        assert (shares <= np.where(weights > 0, weights / weights[i] * (shares[i] + 1) + 1 + 1e-6, 0)).all()


def test_rounding_is_by_largest_remainder() -> None:
    shares = share_out(10, weights=np.array([45.0, 33.0, 22.0]), caps=np.full(3, np.inf))
    assert shares.tolist() == [5, 3, 2]
    assert share_out(1, weights=np.ones(3), caps=np.full(3, np.inf)).tolist() == [1, 0, 0]
