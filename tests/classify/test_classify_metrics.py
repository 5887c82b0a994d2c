"""Metrics against scikit-learn and plain loops: ties, weights, unknown labels, classes without positives."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from classify.comparison.metrics import (
    METRICS,
    N_BINS,
    ClassMetrics,
    choose_threshold,
    fit_temperature,
    reliability,
    support,
    undefined_reason,
)


def draw_class(seed: int, *, n: int = 300, prevalence: float = 0.1, decimals: int | None = None):
    """Labels and logits of one made-up class; few ``decimals`` make many ties."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < prevalence).astype(float)
    logits = rng.normal(size=n) + labels
    return labels, np.round(logits, decimals) if decimals is not None else logits, rng


def plain(labels, logits, threshold=None, temperature=None):
    """The metrics with weight 1 for each image."""
    evaluate = ClassMetrics(labels=labels, logits=logits, threshold=threshold, temperature=temperature)
    values = evaluate(np.ones((len(labels), 1)))[:, 0]
    return dict(zip(METRICS, values, strict=True))


@pytest.mark.parametrize("decimals", [None, 1, 0])
@pytest.mark.parametrize("seed", range(5))
def test_ranking_metrics_equal_scikit_learn_with_weights_and_ties(seed, decimals):
    labels, logits, rng = draw_class(seed, decimals=decimals)
    weights = np.concatenate([rng.poisson(1, (300, 6)), rng.random((300, 2))], axis=1).astype(float)
    values = ClassMetrics(labels=labels, logits=logits, threshold=0.5)(weights)
    for draw, weight in enumerate(weights.T):
        expected = [
            average_precision_score(labels, logits, sample_weight=weight),
            roc_auc_score(labels, logits, sample_weight=weight),
            f1_score(labels, logits >= 0.5, sample_weight=weight),
        ]
        np.testing.assert_allclose(values[:3, draw], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("logits", [np.zeros(8), np.arange(8.0), -np.arange(8.0)])
def test_constant_and_extreme_orders(logits):
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1.0])
    found = plain(labels, logits)
    assert found["AP"] == pytest.approx(average_precision_score(labels, logits))
    assert found["AUROC"] == pytest.approx(roc_auc_score(labels, logits))


def test_integer_weights_equal_repeated_rows():
    labels, logits, rng = draw_class(1, decimals=1)
    counts = rng.poisson(1, 300)
    weighted = ClassMetrics(labels=labels, logits=logits, threshold=0.0)(counts[:, None].astype(float))[:3, 0]
    repeated = plain(np.repeat(labels, counts), np.repeat(logits, counts), 0.0)
    assert weighted.tolist() == pytest.approx([repeated[m] for m in METRICS[:3]], abs=1e-12)


def test_calibration_error_equals_a_loop_over_equal_mass_bins():
    labels, logits, _ = draw_class(2, n=317)
    order = np.argsort(-logits)
    edges = np.round(np.linspace(0, 317, N_BINS + 1)).astype(int)
    expected = 0.0
    for low, high in pairwise(edges):
        part = order[low:high]
        expected += len(part) / 317 * abs(labels[part].mean() - expit(logits[part]).mean())
    assert plain(labels, logits)["ECE"] == pytest.approx(expected, abs=1e-12)
    rows = reliability(labels=labels, logits=logits)
    assert sum(n for n, _, _ in rows) == 317
    assert sum(n * abs(share - mean) for n, mean, share in rows) / 317 == pytest.approx(expected, abs=1e-12)


def test_calibration_error_is_small_for_true_probabilities_and_large_for_inflated_ones():
    rng = np.random.default_rng(0)
    logits = rng.normal(-2, 1.5, 20_000)
    labels = (rng.random(20_000) < expit(logits)).astype(float)
    assert plain(labels, logits)["ECE"] < 0.015
    assert plain(labels, logits + 2)["ECE"] > 0.15


def test_a_temperature_mends_what_is_only_scaled_and_moves_no_ranking():
    rng = np.random.default_rng(1)
    truth = rng.normal(-1, 1.5, (20_000, 3))
    labels = np.where(rng.random(truth.shape) < 0.1, np.nan, rng.random(truth.shape) < expit(truth))
    scales = (0.25, 1.0, 4.0)
    for scale in scales:
        temperature = fit_temperature(labels=labels, logits=scale * truth)
        assert temperature == pytest.approx(scale, rel=0.05)
        found = plain(labels[:, 0], scale * truth[:, 0], 0.0, temperature)
        assert found["ECE_T"] < 0.02
        assert found["ECE"] > 0.05 or scale == 1
        divided = plain(labels[:, 0], scale * truth[:, 0] / temperature, 0.0)
        assert found["ECE_T"] == pytest.approx(divided["ECE"], abs=1e-12)
        assert {m: found[m] for m in METRICS[:3]} == pytest.approx({m: divided[m] for m in METRICS[:3]}, abs=1e-12)
    assert fit_temperature(labels=np.zeros((5, 2)), logits=truth[:5, :2]) is None
    assert fit_temperature(labels=np.full((5, 2), np.nan), logits=truth[:5, :2]) is None


@pytest.mark.parametrize("decimals", [None, 0])
def test_row_order_does_not_matter(decimals):
    labels, logits, rng = draw_class(3, decimals=decimals)
    weights = rng.poisson(1, (300, 5)).astype(float)
    mixed = rng.permutation(300)
    straight = ClassMetrics(labels=labels, logits=logits, threshold=0.2, temperature=1.7)(weights)
    shuffled = ClassMetrics(labels=labels[mixed], logits=logits[mixed], threshold=0.2,
                            temperature=1.7)(weights[mixed])
    np.testing.assert_allclose(straight, shuffled, rtol=0, atol=1e-13)


def test_unknown_labels_are_left_out():
    labels, logits, rng = draw_class(4)
    masked = labels.copy()
    masked[rng.random(300) < 0.3] = np.nan
    known = ~np.isnan(masked)
    assert plain(masked, logits, 0.1, 2) == pytest.approx(plain(labels[known], logits[known], 0.1, 2), abs=1e-13)


def test_undefined_is_nan_with_a_reason_never_zero():
    logits = np.arange(4.0)
    cases = [
        (np.zeros(4), {"AP": "no positives in test", "AUROC": "no positives in test", "F1": "no positives in test"}),
        (np.ones(4), {"AP": "no negatives in test", "AUROC": "no negatives in test"}),
        (np.full(4, np.nan), dict.fromkeys(METRICS, "no known labels in test")),
    ]
    for labels, reasons in cases:
        found = plain(labels, logits, 0.0, 1.0)
        for metric in METRICS:
            reason = undefined_reason(metric, labels=labels, fitted=True, split="test")
            assert reason == reasons.get(metric)
            assert np.isnan(found[metric]) == (reason is not None)
    labels = np.array([0, 1, 0, 1.0])
    for metric in ("F1", "ECE_T"):
        assert np.isnan(plain(labels, logits)[metric])
        assert undefined_reason(metric, labels=labels, fitted=False, split="test").startswith("no positives")


def test_a_draw_without_positives_is_nan_and_the_others_are_untouched():
    labels, logits, _ = draw_class(5)
    weights = np.ones((300, 2))
    weights[labels == 1, 0] = 0
    values = ClassMetrics(labels=labels, logits=logits, threshold=0.0)(weights)
    assert np.isnan(values[:3, 0]).all()
    assert values[0, 1] == pytest.approx(average_precision_score(labels, logits))


def test_threshold_maximises_f1_on_its_own_split():
    labels, logits, _ = draw_class(6, decimals=1)
    threshold, f1 = choose_threshold(labels=labels, logits=logits)
    tried = {value: f1_score(labels, logits >= value) for value in np.unique(logits)}
    assert f1 == pytest.approx(max(tried.values()))
    assert tried[threshold] == pytest.approx(f1)
    assert choose_threshold(labels=np.zeros(5), logits=np.arange(5.0)) is None


def test_support_counts_images_and_patients_once():
    labels = np.array([[1, 1], [1, 0], [0, np.nan], [np.nan, 1]])
    assert support(labels, np.array(["a", "a", "b", "c"])) == (3, 2)
    assert support(labels[:, :1], np.array(["a", "a", "b", "c"])) == (2, 1)
