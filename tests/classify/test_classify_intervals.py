"""Crossed intervals: against loops, shared draws, coverage under the null, Holm by hand, degrees of freedom."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from classify.comparison.intervals import (
    bootstrap,
    crossed_interval,
    holm,
    mean_over_classes,
    needed_factor,
    patient_df,
    patient_draws,
    satterthwaite,
)
from classify.comparison.metrics import ClassMetrics


def made_up_test_set(rng, *, n_patients=80, per_patient=2, prevalence=0.25, n_seeds=3, seed_noise=0.5):
    """Patients, labels, and the logits of two exchangeable arms: (2, n_seeds, n_images)."""
    patients = np.repeat(np.arange(n_patients), per_patient)
    labels = (rng.random(n_patients) < prevalence).astype(float)[patients]
    shared = rng.normal(size=n_patients)[patients] + 1.5 * labels
    own = 0.5 * rng.normal(size=(2, 1, n_patients))[:, :, patients]
    return patients, labels, shared + own + seed_noise * rng.normal(size=(2, n_seeds, len(patients)))


def average_precision_of(patients, labels, logits, draws):
    """AP as it is (2, n_seeds) and under the draws (2, n_seeds, n_draws)."""
    evaluators = [ClassMetrics(labels=labels, logits=one) for arm in logits for one in arm]
    ones = np.ones((len(labels), 1))
    values = np.stack([evaluate(ones)[0, 0] for evaluate in evaluators]).reshape(logits.shape[:2])
    resampled = bootstrap(evaluators, patients=patients, draws=draws)[:, 0]
    return values, resampled.reshape(*logits.shape[:2], -1)


def test_draws_resample_whole_patients():
    draws = patient_draws(30, 200, np.random.default_rng(0))
    assert draws.shape == (30, 200)
    assert (draws.sum(axis=0) == 30).all()
    assert (draws == patient_draws(30, 200, np.random.default_rng(0))).all()
    assert draws.mean(axis=1) == pytest.approx(1, abs=0.35)


def test_bootstrap_equals_a_loop_that_repeats_rows(monkeypatch):
    monkeypatch.setattr("classify.comparison.intervals.CHUNK_ELEMENTS", 500)  # several chunks
    rng = np.random.default_rng(1)
    patients, labels, logits = made_up_test_set(rng, n_patients=40)
    logits = np.round(logits, 1)
    draws = patient_draws(40, 25, rng)
    evaluators = [ClassMetrics(labels=labels, logits=one) for one in logits[0]]
    fast = bootstrap(evaluators, patients=patients, draws=draws)
    np.testing.assert_array_equal(fast, bootstrap(evaluators, patients=patients, draws=draws, threads=3))
    for seed, scores in enumerate(logits[0]):
        for draw in range(25):
            rows = np.concatenate([np.flatnonzero(patients == p) for p in range(40) for _ in range(draws[p, draw])])
            assert fast[seed, 0, draw] == pytest.approx(average_precision_score(labels[rows], scores[rows]), abs=1e-10)
            assert fast[seed, 1, draw] == pytest.approx(roc_auc_score(labels[rows], scores[rows]), abs=1e-10)


def test_an_arm_against_itself_has_no_width():
    rng = np.random.default_rng(2)
    patients, labels, logits = made_up_test_set(rng)
    values, resampled = average_precision_of(patients, labels, logits[[0, 0]], patient_draws(80, 100, rng))
    found = crossed_interval(values[0] - values[1], resampled[0] - resampled[1], df_patients=20)
    assert (found.estimate, found.low, found.high, found.p, found.reason) == (0, 0, 0, 1, None)


def test_interval_is_the_formula():
    rng = np.random.default_rng(3)
    estimates = np.array([0.1, 0.2, 0.06])
    draws = rng.normal(0.1, 0.05, 400) + rng.normal(0, 0.1, (3, 400))
    found = crossed_interval(estimates, draws, df_patients=20)
    s2 = estimates.var(ddof=1)
    interaction = draws.var(axis=0, ddof=1).mean() - s2
    v = draws.mean(axis=0).var(ddof=1) - interaction / 3
    assert min(interaction, v) > 0
    df_v = 1 / (1 / 20 + 1 / 399)
    df = (v + s2 / 3) ** 2 / (v**2 / df_v + (s2 / 3) ** 2 / 2)
    half = stats.t.ppf(0.975, df) * np.sqrt(v + s2 / 3)
    assert (found.low, found.high) == pytest.approx((0.12 - half, 0.12 + half))
    assert found.p == pytest.approx(2 * stats.t.sf(0.12 / np.sqrt(v + s2 / 3), df))
    assert found.bounds(0.95) == pytest.approx((found.low, found.high))
    assert (found.low > 0) == (found.p < 0.05)
    assert found.p_above(found.bounds(0.90)[0]) == pytest.approx(0.05)


def test_p_below_5_percent_exactly_when_the_interval_excludes_zero():
    rng = np.random.default_rng(4)
    for _ in range(50):
        centre = rng.normal(0, 0.1)
        found = crossed_interval(centre + rng.normal(0, 0.03, 3), centre + rng.normal(0, 0.05, (3, 100)), df_patients=9)
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


def test_coverage_of_a_true_zero_is_near_nominal_and_the_nested_interval_is_too_narrow():
    rng = np.random.default_rng(5)
    crossed, nested = [], []
    for _ in range(200):
        patients, labels, logits = made_up_test_set(rng, n_patients=120)
        values, resampled = average_precision_of(patients, labels, logits, patient_draws(120, 150, rng))
        estimates, draws = values[0] - values[1], resampled[0] - resampled[1]
        found = crossed_interval(estimates, draws, df_patients=int(labels.sum()) // 2 - 1)
        crossed.append(found.low <= 0 <= found.high)
        error = np.sqrt(draws.var(axis=1, ddof=1).mean() / 3)  # as if each seed had met its own patients
        nested.append(abs(estimates.mean()) <= 1.96 * error)
    assert 0.9 <= np.mean(crossed) <= 0.985
    assert np.mean(nested) < 0.9


def test_coverage_of_crossed_random_effects():
    rng = np.random.default_rng(6)
    covered = []
    for _ in range(400):
        patient, seed = rng.normal(0, 1, 40), rng.normal(0, 0.15, 4)
        deltas = patient + seed[:, None] + rng.normal(0, 0.3, (4, 40))
        weights = patient_draws(40, 200, rng) / 40
        found = crossed_interval(deltas.mean(axis=1), deltas @ weights, df_patients=39)
        covered.append(found.low <= 0 <= found.high)
    assert 0.92 <= np.mean(covered) <= 0.985


def test_parts_are_told_apart():
    rng = np.random.default_rng(7)
    found = []
    for _ in range(200):
        deltas = rng.normal(0, 1, 50) + rng.normal(0, 0.1, (5, 1)) + rng.normal(0, 0.8, (5, 50))
        draws = deltas @ (patient_draws(50, 200, rng) / 50)
        found.append(crossed_interval(deltas.mean(axis=1), draws, df_patients=49))
    parts = ("patients", "seeds", "interaction")
    means = [np.mean([getattr(one, f"variance_{part}") for one in found]) for part in parts]
    assert means == pytest.approx([1 / 50, 0.1**2 + 0.8**2 / 50, 0.8**2 / 50], rel=0.15)


@pytest.mark.parametrize(("patients", "seeds", "interaction"), [(0, 0, 1), (0, 0.1, 1), (0.3, 0, 1), (1, 0.1, 1)])
def test_coverage_where_the_seeds_err_on_other_patients(patients, seeds, interaction):
    rng = np.random.default_rng(10)
    covered = []
    for _ in range(600):
        deltas = (patients * rng.normal(size=40) + seeds * rng.normal(size=(5, 1))
                  + interaction * rng.normal(size=(5, 40)))
        draws = deltas @ (patient_draws(40, 100, rng) / 40)
        found = crossed_interval(deltas.mean(axis=1), draws, df_patients=39)
        covered.append(found.low <= 0 <= found.high)
    assert 0.925 <= np.mean(covered) <= 0.975


@pytest.mark.parametrize(("estimates", "draws", "reason"), [
    (np.array([0.1]), np.zeros((1, 200)), "one seed"),
    (np.array([0.1, np.nan]), np.zeros((2, 200)), "undefined"),
    (np.array([0.1, 0.2]), np.where(np.arange(200) < 150, np.nan, 0.1) * np.ones((2, 1)), "only 50 of 200"),
    (np.array([0.1, 0.1]), np.full((2, 200), 0.1), "no seed and no resample"),
])
def test_what_cannot_be_known_is_null_with_a_reason(estimates, draws, reason):
    found = crossed_interval(estimates, draws, df_patients=20)
    assert found.reason.startswith(reason)
    assert (found.low, found.high, found.p, found.bounds(0.9), found.p_above(0.0)) == (None,) * 5


def test_undefined_draws_are_left_out():
    rng = np.random.default_rng(8)
    draws = rng.normal(size=(3, 300))
    holed = np.concatenate([draws, np.full((3, 50), np.nan)], axis=1)
    estimates = np.array([0.1, 0.3, 0.2])
    found = crossed_interval(estimates, holed, df_patients=20)
    assert found == crossed_interval(estimates, draws, df_patients=20)
    assert found.n_draws == 300


def test_group_means_drop_undefined_classes_only():
    values = np.array([[1.0, np.nan, np.nan], [3.0, 4.0, np.nan]])
    assert mean_over_classes(values, axis=0)[:2].tolist() == [2.0, 4.0]
    assert np.isnan(mean_over_classes(values, axis=0)[2])


@pytest.mark.parametrize(("plain", "adjusted"), [
    ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # 4 x .005; 3 x .01; 2 x .03; then never below it
    ([0.5, None, 0.4], [0.8, None, 0.8]),
    ([0.9, 0.9], [1.0, 1.0]),
    ([None, None], [None, None]),
    ([], []),
])
def test_holm_by_hand(plain, adjusted):
    assert holm(plain) == [None if p is None else pytest.approx(p) for p in adjusted]


def test_holm_as_statsmodels_and_r():
    """The p-values and the column of Holm in the tests of statsmodels.stats.multitest, which are R's multtest."""
    plain = [0.838541367553, 0.642193923795, 0.680845947633, 0.967833824309, 0.71626938238, 0.177096952723,
             5.23656777208e-05, 0.0202732688798, 0.00028140506198, 0.0149877310796]
    known = {6: 5.2365677720800005e-04, 8: 2.5326455578199999e-03, 9: 1.1990184863680001e-01, 7: 1.4191288215860001e-01}
    adjusted = holm(plain)
    assert [adjusted[at] for at in known] == pytest.approx(list(known.values()), rel=1e-12)
    assert [p for at, p in enumerate(adjusted) if at not in known] == [1.0] * 6


def test_degrees_of_freedom():
    assert satterthwaite([(2.0, 7)]) == pytest.approx(7)
    assert satterthwaite([(1.0, 5), (1.0, 5)]) == pytest.approx(10)
    assert satterthwaite([(0.0, 3)]) == float("inf")
    assert patient_df([1.0], [30]) == pytest.approx(29)
    assert patient_df([1.0, 1e-6], [5, 500]) == pytest.approx(4, rel=1e-4)
    assert patient_df([1.0], [1]) == pytest.approx(1)


def test_needed_patients_reach_the_margin():
    rng = np.random.default_rng(9)
    estimates, draws = np.array([0.010, 0.012, 0.011]), rng.normal(0, 0.05, 2000) + rng.normal(0, 0.01, (3, 2000))
    found = crossed_interval(estimates, draws, df_patients=20)
    factor = needed_factor(found, margin=0.02, n_seeds=3)
    error = np.sqrt(found.variance_patients / factor + found.variance_seeds / 3)
    assert stats.t.ppf(0.975, found.df) * error == pytest.approx(0.02)
    assert needed_factor(found, margin=1e-4, n_seeds=3) == float("inf")
    assert needed_factor(crossed_interval(estimates[:1], draws[:1], df_patients=20), margin=0.02, n_seeds=1) is None
