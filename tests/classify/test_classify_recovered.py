"""The recovered share: closed forms, the interval that it inverts, coverage, and what must stay null."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from classify.comparison.intervals import crossed_interval, mean_over_classes, patient_df, patient_draws
from classify.comparison.pairing import Gain
from classify.comparison.recovered import fieller_set, recovered_sentence


def gains(rng, *, share=0.6, oracle=0.1, n_seeds=5, n_patients=40, n_draws=300, noise=0.15, seed_noise=0.02,
          n_classes=1):
    """Gains of an arm and of the oracle with a known share: effects of patients and of seeds, correlated."""
    means = np.array([share * oracle, oracle])
    found = []
    patients = rng.normal(size=(2, n_classes, n_patients)) + rng.normal(size=(1, n_classes, n_patients))
    seeds = rng.normal(size=(2, n_seeds, n_classes)) + rng.normal(size=(1, n_seeds, n_classes))
    weights = patient_draws(n_patients, n_draws, rng) / n_patients
    for mean, patient, seed in zip(means, patients, seeds, strict=True):
        values = mean + noise * patient[None] + seed_noise * seed[:, :, None]
        found.append(Gain(estimates=values.mean(axis=(1, 2)), classes=values @ weights,
                          patients=[n_patients] * n_classes))
    return tuple(found)


def combined(gain, oracle, r):
    """The crossed interval of g - r h, straight from its own module."""
    classes = gain.classes - r * oracle.classes
    means = classes.mean(axis=0)
    variances = [row[~np.isnan(row)].var(ddof=1) for row in means]
    return crossed_interval(gain.estimates - r * oracle.estimates, mean_over_classes(classes, axis=1),
                            df_patients=patient_df(variances, gain.patients))


def test_the_set_inverts_the_crossed_interval_and_is_the_oracles_interval_at_infinity():
    rng = np.random.default_rng(0)
    kinds = []
    for _ in range(40):
        gain, oracle = gains(rng, oracle=0.05, share=rng.normal(0.5, 1), n_classes=3, n_seeds=4)
        gain.classes[:, 0, :20] = oracle.classes[:, 0, :20] = np.nan  # draws that leave a class without positives
        found = fieller_set(gain, oracle)
        kinds.append(found.kind)
        bound = combined(oracle, oracle, 0.0)
        assert (found.kind == "interval") == (bound.low > 0 or bound.high < 0)
        assert found.share == pytest.approx(gain.estimates.mean() / oracle.estimates.mean())
        if found.kind == "interval":
            assert found.low < found.share < found.high
            for r, inside in ((found.low, True), (found.high, True), (found.low, False), (found.high, False)):
                step = 1e-5 * (found.high - found.low) * (1 if (r == found.low) == inside else -1)
                one = combined(gain, oracle, r + step)
                assert (one.low <= 0 <= one.high) == inside
    assert {"interval", "unbounded"} <= set(kinds)


def test_closed_form_where_only_the_seeds_vary():
    rng = np.random.default_rng(1)
    for _ in range(20):
        g, h = rng.normal(0.05, 0.02, 6), rng.normal(0.1, 0.02, 6)
        pair = [Gain(estimates=e, classes=np.repeat(e[:, None, None], 50, axis=2), patients=[30]) for e in (g, h)]
        found = fieller_set(*pair)
        q = stats.t.ppf(0.975, 5) ** 2 / 6  # Fieller 1954: (g - r h)^2 <= q (s_gg - 2 r s_gh + r^2 s_hh)
        s = np.cov(g, h)
        roots = np.roots([h.mean() ** 2 - q * s[1, 1], 2 * (q * s[0, 1] - g.mean() * h.mean()),
                          g.mean() ** 2 - q * s[0, 0]])
        assert found.kind == "interval"
        assert [found.low, found.high] == pytest.approx(sorted(roots.real), abs=1e-6)


def test_an_exact_oracle_leaves_the_interval_of_the_gain():
    gain, _ = gains(np.random.default_rng(2))
    exact = Gain(estimates=np.full(5, 0.2), classes=np.full_like(gain.classes, 0.2), patients=gain.patients)
    found, alone = fieller_set(gain, exact), combined(gain, exact, 0.0)
    assert (found.low, found.high) == pytest.approx((alone.low / 0.2, alone.high / 0.2), abs=1e-9)


@pytest.mark.parametrize(("factor", "share"), [(0.0, 0.0), (1.0, 1.0), (-0.5, -0.5)])
def test_a_share_without_any_noise_of_its_own_is_a_point(factor, share):
    _, oracle = gains(np.random.default_rng(3))
    scaled = Gain(estimates=factor * oracle.estimates, classes=factor * oracle.classes, patients=oracle.patients)
    found = fieller_set(scaled, oracle)
    assert (found.share, found.low, found.high) == pytest.approx((share, share, share), abs=1e-6)


def test_signs_and_scale_do_not_matter():
    gain, oracle = gains(np.random.default_rng(4))
    whole = fieller_set(gain, oracle)
    other = fieller_set(*(Gain(estimates=-3 * one.estimates, classes=-3 * one.classes, patients=one.patients)
                          for one in (gain, oracle)))
    assert (whole.low, whole.high) == pytest.approx((other.low, other.high), abs=1e-9)


def test_nothing_is_known_of_the_ratio_of_two_noises():
    rng = np.random.default_rng(5)
    kinds = [fieller_set(*gains(rng, oracle=0.0)).kind for _ in range(60)]
    assert kinds.count("everything") > 30
    assert kinds.count("interval") < 8


@pytest.mark.parametrize("share", [0.0, 0.6])
def test_coverage_is_near_nominal(share):
    rng = np.random.default_rng(6)
    covered = []
    for _ in range(400):
        found = fieller_set(*gains(rng, share=share, oracle=0.12, n_draws=150))
        if found.kind == "interval":
            covered.append(found.low <= share <= found.high)
    assert len(covered) > 350
    assert 0.92 <= np.mean(covered) <= 0.985


def test_a_row_in_words():
    row = {"arm": "synthetic", "label": "tail", "metric": "AP", "share": 0.63, "ci_low": 0.2, "ci_high": 1.1,
           "reason": None}
    assert "recovers 63 %" in recovered_sentence(pd.DataFrame([row]), arm="synthetic", label="tail", metric="AP")
    null = pd.DataFrame([row | {"share": None, "reason": "the oracle's gain over duplicate may be 0"}])
    assert "undefined (the oracle's gain" in recovered_sentence(null, arm="synthetic", label="tail", metric="AP")
    assert "No recovered share" in recovered_sentence(null, arm="duplicate", label="tail", metric="AP")
