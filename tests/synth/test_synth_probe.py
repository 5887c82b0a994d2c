"""The probe for origin: chance where nothing betrays it, certainty where something does, and what negatives earn."""

import tracemalloc
from typing import Any

import numpy as np
import pandas as pd
import pytest
from constructed_evidence import evidence_of, images_of
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score

from synth.judging.evidence import NEGATIVE
from synth.measuring.probe import COLUMNS, LEAST_IMAGES, LinearProbe, probe_origin

DIMENSIONS, TRACE, FINDING = 8, 0, 1
"""What the axes of the space hold: the trace of the generator, and the finding."""


Rows = dict[str, dict[str, Any]]


def by_setting(table: pd.DataFrame) -> Rows:
    return {row["setting"]: {str(key): value for key, value in row.items()} for row in table.to_dict("records")}


def counts(row: dict[str, Any]) -> tuple[int, int]:
    return row["n_real"], row["n_synthetic"]


def space(n: int, *, seed: int, finding: np.ndarray, trace: float = 0.0) -> np.ndarray:
    features = np.random.default_rng(seed).normal(size=(n, DIMENSIONS))
    features[:, FINDING] += 2 * finding
    features[:, TRACE] += trace
    return features


def probed(*, trace: float, n_real: int = 600, carriers: int = 60, n_made: int = 200, negatives: bool = True,
           keep: np.ndarray | None = None, finding: float = 1.0) -> Rows:
    """The rows by setting, of images made that show their finding and carry a trace of so many deviations."""
    charged = np.array(["Edema", NEGATIVE] * (n_made // 2) if negatives else ["Edema"] * n_made, dtype=object)
    carrying = np.arange(n_real) < carriers
    train = images_of(space(n_real, seed=0, finding=carrying), positive={"Edema": np.flatnonzero(carrying)})
    made = space(n_made, seed=1, finding=finding * (charged == "Edema"), trace=trace)
    case = evidence_of(made, train, train, charged=charged)
    table = probe_origin(case, keep=np.ones(n_made, dtype=bool) if keep is None else keep)
    assert tuple(table.columns) == COLUMNS
    return by_setting(table)


def test_probe_is_fishers_discriminant() -> None:
    """Log odds as scikit-learn's with equal priors, and as the truth's, 2 x - 2, up to what 4,000 images can tell."""
    positive = np.arange(4000) < 1500
    samples = space(4000, seed=0, finding=positive)
    found = LinearProbe.fit(samples, positive).log_odds(samples)
    reference = LinearDiscriminantAnalysis(priors=[0.5, 0.5]).fit(samples, positive).decision_function(samples)
    assert np.corrcoef(found, reference)[0, 1] > 0.999
    assert roc_auc_score(positive, found) == pytest.approx(roc_auc_score(positive, reference), abs=1e-3)
    np.testing.assert_allclose(found, 2 * samples[:, FINDING] - 2, atol=0.7)


def test_log_odds_of_images_on_disk_hold_a_block_of_them() -> None:
    samples = np.random.default_rng(0).normal(size=(20_000, 64)).astype(np.float32)
    probe = LinearProbe(direction=np.linspace(-1, 1, 64), middle=np.full(64, 0.25))
    tracemalloc.start()
    found = probe.log_odds(samples)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < samples.nbytes / 4
    np.testing.assert_allclose(found, (samples.astype(np.float64) - 0.25) @ probe.direction, rtol=1e-11, atol=1e-11)


def test_without_a_trace_origin_is_chance() -> None:
    """Among carriers the interval holds .5; against all real images the finding itself gives it away."""
    table = probed(trace=0.0)
    for setting in ("carriers", "carriers of Edema"):
        assert table[setting]["ci_low"] <= 0.5 <= table[setting]["ci_high"]
    assert table["tail against all real"]["auroc"] > 0.7
    assert counts(table["carriers"]) == (60, 100)


def test_a_trace_is_found() -> None:
    table = probed(trace=6.0)
    assert all(table[setting]["auroc"] > 0.99 for setting in ("tail against all real", "carriers", "carriers of Edema"))
    assert all(row["ci_low"] <= row["auroc"] <= row["ci_high"] for row in table.values())


def test_negatives_take_the_shortcut_away() -> None:
    """A perfect trace reaches what a perfect probe does, (TPR + TNR) / 2, up to chance among images of one origin."""
    table = probed(trace=8.0, finding=0.0, n_made=400)
    alone = probed(trace=8.0, finding=0.0, n_made=200, negatives=False)
    with_them, without = table["shortcut with negatives"], table["shortcut without negatives"]
    true_positives = 200 / 260
    assert without["auroc"] == pytest.approx((true_positives + 1) / 2, abs=0.05)
    assert with_them["auroc"] == pytest.approx((true_positives + 540 / 740) / 2, abs=0.05)
    assert without["ci_low"] > with_them["ci_high"]
    assert alone["shortcut with negatives"]["reason"] == "no matched negative was kept"
    assert np.isnan(alone["shortcut with negatives"]["auroc"])


def test_dropped_images_do_not_count() -> None:
    """Those with the trace were dropped: the rest is as without them."""
    keep = np.arange(200) % 4 < 2
    assert probed(trace=0.0, keep=keep)["carriers"]["n_synthetic"] == 50
    gone = probed(trace=0.0, keep=np.zeros(200, dtype=bool))
    assert all(np.isnan(row["auroc"]) and row["reason"] for row in gone.values())


def test_too_few_images_or_patients_are_null_with_a_reason() -> None:
    table = probed(trace=0.0, carriers=LEAST_IMAGES - 1)
    assert "19 real images" in str(table["carriers"]["reason"])
    assert np.isnan(table["carriers"]["auroc"])
    assert not np.isnan(table["tail against all real"]["auroc"])


def test_patients_stay_together() -> None:
    """Each patient's images are alike and nothing else is known: folds by image would find them again."""
    rng = np.random.default_rng(3)
    patients = np.repeat([f"p{i}" for i in range(40)], 15)
    own = np.repeat(rng.normal(size=(40, 60)) * 5, 15, axis=0) + rng.normal(size=(600, 60))
    train = images_of(own, positive={"Edema": np.arange(600)}, patients=patients)
    made = np.repeat(rng.normal(size=(20, 60)) * 5, 10, axis=0) + rng.normal(size=(200, 60))
    case = evidence_of(made, train, train)
    synthetic = np.repeat([f"q{i}" for i in range(20)], 10)
    case.made.patients[:] = synthetic
    table = by_setting(probe_origin(case, keep=np.ones(200, dtype=bool)))
    assert table["carriers"]["ci_low"] < 0.6
    everyone = np.concatenate([own, made])
    origin = np.arange(800) >= 600
    leaky = LinearProbe.fit(everyone[::2], origin[::2]).log_odds(everyone[1::2])
    assert roc_auc_score(origin[1::2], leaky) > 0.9


def test_large_sets_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synth.measuring.probe.AT_MOST", 200)
    table = probed(trace=6.0)
    assert counts(table["tail against all real"]) == (100, 100)
    assert sum(counts(table["shortcut with negatives"])) == 200
    assert table["carriers"]["auroc"] > 0.99
