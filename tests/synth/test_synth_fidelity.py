"""What the table of fidelity promises: one N, floors at it, and null with a reason where a set is too small."""

import numpy as np
import pandas as pd
import pytest
from evidence_cases import case_of, images_of
from hypothesis import given, settings
from hypothesis import strategies as st

from synth.judging.evidence import Evidence
from synth.measuring import fidelity
from synth.measuring.fidelity import (
    FLOOR,
    MANIFOLD,
    MIN_KID,
    RECONSTRUCTED,
    Comparison,
    against,
    halve_patients,
    list_comparisons,
    measure,
    measure_sets,
)


@given(sizes=st.lists(st.integers(1, 7), min_size=2, max_size=40), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_halves_share_no_patient(sizes: list[int], seed: int) -> None:
    patients = pd.Series([f"p{i}" for i, size in enumerate(sizes) for _ in range(size)])
    half = halve_patients(patients, rng=np.random.default_rng(seed))
    assert not set(patients[half]) & set(patients[~half])
    assert abs(int(half.sum()) - len(patients) / 2) <= max(sizes)


def table(n_real: int, made: int, kept: int, monkeypatch: pytest.MonkeyPatch, min_fid: int = 40) -> pd.DataFrame:
    monkeypatch.setattr(fidelity, "MIN_FID", min_fid)
    rng = np.random.default_rng(0)
    keep = np.arange(made) < kept
    comparison = Comparison(name="all", real=np.ones(n_real, bool), sets={"made": np.ones(made, bool), "kept": keep})
    return measure(
        real=rng.normal(size=(n_real, 5)), fake=rng.normal(size=(made, 5)) + 1, comparisons=[comparison],
        patients=pd.Series([f"p{i // 2}" for i in range(n_real)]), max_n=100, kid_subset=30, rng=rng,
    ).set_index(["metric", "set"])


def test_table_at_one_n(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but KID: both sets and the floor at the same N. The sets lie farther off than the floor."""
    frame = table(300, 120, 60, monkeypatch)
    assert list(dict.fromkeys(frame.index.get_level_values("metric"))) == ["KID", "FID", *MANIFOLD]
    for metric in ("FID", *MANIFOLD):
        rows = frame.loc[metric]
        assert set(rows["n_real"]) == set(rows["n_synthetic"]) == {60}
        assert rows["reason"].isna().all()
    for metric, sign in (("FID", 1), ("KID", 1), *((metric, -1) for metric in MANIFOLD)):
        values = sign * frame.loc[metric]["value"]
        assert min(values["made"], values["kept"]) > values[FLOOR]
    assert set(frame.loc["KID"]["subset"]) == {30}


def test_small_sets_are_null_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = table(300, 120, MIN_KID - 1, monkeypatch)
    for metric in ("FID", "KID", *MANIFOLD):
        assert pd.isna(frame.loc[(metric, "kept"), "value"])
        assert f"{MIN_KID - 1} images" in frame.loc[(metric, "kept"), "reason"]
        assert frame.loc[(metric, "made"), "value"] > 0
        assert pd.isna(frame.loc[(metric, "made"), "reason"])
    assert frame.loc[("FID", "made"), "n_synthetic"] == 100  # the kept ones are too few to have a say in N


def test_few_real_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Halves too small for a floor: null, never a floor at another N."""
    frame = table(12, 120, 60, monkeypatch)
    for metric in ("FID", *MANIFOLD):
        assert frame.loc[metric]["value"].isna().all()
        assert frame.loc[metric]["reason"].notna().all()
    assert frame.loc[("KID", "made"), "value"] > 0
    assert pd.isna(frame.loc[("KID", FLOOR), "value"])


def test_no_images_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = table(300, 120, 0, monkeypatch)
    assert frame.loc[("KID", "kept"), "n_synthetic"] == 0
    assert frame.loc["KID"].loc["kept", "reason"] is not None
    assert frame["value"].isna().eq(frame["reason"].notna()).all()


def test_whose_fault_a_distance_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """An autoencoder that shifts all features alike, and a denoiser that draws what this one would draw, or not."""
    monkeypatch.setattr(fidelity, "MIN_FID", 40)
    rng, keep = np.random.default_rng(1), np.arange(200) < 120
    real, like = rng.normal(size=(400, 5)), rng.normal(size=(200, 5))
    comparison = Comparison(name="all", real=np.ones(400, bool), sets={"made": np.ones(200, bool), "kept": keep})

    def found(reconstructed: np.ndarray | None, fake: np.ndarray) -> pd.DataFrame:
        return measure(real=real, fake=fake, reconstructed=reconstructed, comparisons=[comparison], max_n=300,
                       patients=pd.Series([f"p{i // 2}" for i in range(400)]), kid_subset=30,
                       rng=np.random.default_rng(2)).set_index(["metric", "set"])

    shift = np.full(5, 1.5)
    decoder, denoiser = found(real + shift, like + shift), found(real, like + shift)
    perfect = found(real, like)
    for metric in ("KID", "FID"):
        of_decoder, of_denoiser, floor = decoder.loc[metric]["value"], denoiser.loc[metric]["value"], perfect.loc[
            (metric, FLOOR), "value"]
        far = of_decoder["made"] / 2
        assert of_decoder[RECONSTRUCTED] > far > of_decoder[against("made")]
        assert of_denoiser[RECONSTRUCTED] < far < of_denoiser[against("made")]
        assert perfect.loc[(metric, RECONSTRUCTED), "value"] == pytest.approx(floor)  # patients apart, as in the floor
    assert decoder.loc[("recall", against("kept")), "value"] > 0.8 > decoder.loc[("recall", "kept"), "value"]
    assert set(decoder.loc["FID"]["n_synthetic"]) == {120}
    old = found(None, like + shift)
    assert set(old.loc["KID"].index) == {"made", "kept", FLOOR}
    pd.testing.assert_series_equal(old["value"], decoder["value"].loc[old.index])  # what was told before stays


class Named:
    """An encoder for tests: it has read already."""

    def __init__(self, name: str) -> None:
        self.name, self.sha256, self.resize = name, name * 8, "none"


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    """Images asked for Hernia, for Effusion and for neither, 60 each; 400 real ones, of which some carry either."""
    rng = np.random.default_rng(0)
    effusion, hernia = rng.random(400) < 0.4, rng.random(400) < 0.3
    readings = [dict.fromkeys("ab", rng.normal(size=(n, 4))) for n in (400, 180)]
    return case_of(
        train=images_of({"Effusion": effusion.astype(int), "Hernia": hernia.astype(int)}, readings=readings[0]),
        made=images_of({"Effusion": np.repeat([0, 1, 0], 60), "Hernia": np.repeat([1, 0, 0], 60)},
                       readings=readings[1]),
        charged_to=np.repeat(["Hernia", "Effusion", "negative"], 60), encoders=("a", "b"),
    )


GROUPS = {"Effusion": "medium", "Hernia": "tail"}
KEEP = np.arange(180) % 2 == 0


def test_who_is_compared_with_whom(evidence: Evidence) -> None:
    found = {one.name: one for one in list_comparisons(evidence, keep=KEEP, groups=GROUPS)}
    assert list(found) == ["all", "medium", "tail", "Effusion", "Hernia", "negative"]
    carried, asked = evidence.train.labels, evidence.charged_to
    for name, label in (("medium", "Effusion"), ("Effusion", "Effusion"), ("tail", "Hernia"), ("Hernia", "Hernia")):
        np.testing.assert_array_equal(found[name].real, carried[label] == 1)
        np.testing.assert_array_equal(found[name].sets["made"], asked == label)
        np.testing.assert_array_equal(found[name].sets["kept"], (asked == label) & KEEP)
    np.testing.assert_array_equal(found["negative"].real, (carried == 0).all(axis=1))
    np.testing.assert_array_equal(found["negative"].sets["made"], asked == "negative")
    assert found["all"].real.all()
    assert found["all"].sets["made"].all()


def test_every_encoder_measures_the_same_samples(evidence: Evidence) -> None:
    """Two encoders of equal features: equal numbers, each with its own name, weights and way to resize."""
    frame = measure_sets(evidence, encoders=[Named("a"), Named("b")], keep=KEEP, groups=GROUPS, max_n=100,
                         kid_subset=20, rng=np.random.default_rng(0))
    assert not frame.duplicated(["name", "set", "metric", "encoder"]).any()
    assert frame["value"].isna().eq(frame["reason"].notna()).all()
    one, other = (frame[frame["encoder"] == name].reset_index(drop=True) for name in "ab")
    assert set(other["encoder_sha256"]) == {"b" * 8}
    told = ["encoder", "encoder_sha256"]
    pd.testing.assert_frame_equal(one.drop(columns=told), other.drop(columns=told))
