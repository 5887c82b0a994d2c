"""Splits: whole patients, the same whatever the order of the rows, near the wanted shares for every label."""

import numpy as np
import pandas as pd
import pytest
from cohort_toys import toy_frame
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from cohort.errors import TailfillError
from cohort.preparing.splits import Dealer, rarest_label, split_patients

LABELS = ["a", "b", "c"]
SHARES = {"test": 0.2, "val": 0.15}


@settings(max_examples=15, deadline=None)
@given(n_patients=st.integers(12, 60), seed=st.integers(0, 10_000), rate=st.sampled_from([0.0, 0.02, 0.3, 1.0]))
def test_no_patient_is_in_two_splits(n_patients: int, seed: int, rate: float) -> None:
    frame = toy_frame(n_patients, LABELS, seed=seed, rate=rate)
    split = split_patients(frame, LABELS, fractions=SHARES, seed=seed)
    assert set(split) == {"train", "val", "test"}
    assert split.groupby(frame["patient_id"]).nunique().max() == 1


def test_the_same_seed_gives_the_same_split_and_another_seed_another() -> None:
    frame = toy_frame(80, LABELS, seed=1)
    first, again, other = (split_patients(frame, LABELS, fractions=SHARES, seed=seed) for seed in (5, 5, 6))
    assert first.equals(again)
    assert not first.equals(other)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("n_folds", "n_classes", "n_patients"), [(2, 2, 12), (5, 3, 60), (20, 6, 70)])
def test_patients_are_dealt_as_scikit_learn_deals_them(
    n_folds: int, n_classes: int, n_patients: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(seed)
    patients = rng.integers(0, n_patients, 4 * n_patients)
    strata = np.minimum(rng.geometric(0.4, len(patients)), n_classes)
    dealers = [kind(n_splits=n_folds, shuffle=True, random_state=seed) for kind in (StratifiedGroupKFold, Dealer)]
    theirs, ours = ([test.tolist() for _, test in dealer.split(strata, strata, patients)] for dealer in dealers)
    assert ours == theirs
    monkeypatch.setattr(StratifiedGroupKFold, "_find_best_fold", None)  # theirs is not what ours has called
    assert [test.tolist() for _, test in dealers[1].split(strata, strata, patients)] == theirs


def test_the_order_of_the_rows_does_not_matter() -> None:
    frame = toy_frame(80, LABELS, seed=2)
    shuffled = frame.sample(frac=1, random_state=3)
    split = split_patients(frame, LABELS, fractions=SHARES, seed=0)
    assert split_patients(shuffled, LABELS, fractions=SHARES, seed=0).sort_index().equals(split)


def test_shares_of_images_and_of_each_label_are_near_the_wanted_ones() -> None:
    frame = toy_frame(600, LABELS, seed=4, rate=0.05)
    split = split_patients(frame, LABELS, fractions=SHARES, seed=0)
    for name, share in SHARES.items():
        assert (split == name).mean() == pytest.approx(share, abs=0.02)
        for label in LABELS:
            assert (split[frame[label] == 1] == name).mean() == pytest.approx(share, abs=0.04)


@pytest.mark.parametrize("seed", range(5))
def test_validation_sees_a_finding_of_eight_images(seed: int) -> None:
    frame = toy_frame(300, LABELS, seed=seed)
    first_images = frame.drop_duplicates("patient_id").index[:: 300 // 8][:8]
    frame["rare"] = pd.array(frame.index.isin(first_images), dtype="boolean").astype("Int8")
    split = split_patients(frame, [*LABELS, "rare"], fractions={"val": 0.15}, seed=seed)
    assert 1 <= (split[frame["rare"] == 1] == "val").sum() <= 2


def test_each_row_is_dealt_by_its_rarest_finding() -> None:
    frame = pd.DataFrame({"patient_id": list("pqrs"), "common": [1, 1, 1, 0], "rare": [0, None, 1, 0]})
    frame = frame.astype({"common": "Int8", "rare": "Int8"})
    np.testing.assert_array_equal(rarest_label(frame, ["common", "rare"]), [0, 0, 1, -1])


@pytest.mark.parametrize("fractions", [{"val": 0.0}, {"val": 0.5, "test": 0.5}, {"val": -0.1, "test": 0.3}])
def test_impossible_fractions_are_refused(fractions: dict[str, float]) -> None:
    with pytest.raises(TailfillError, match="split fractions"):
        split_patients(toy_frame(20, LABELS, seed=0), LABELS, fractions=fractions, seed=0)


def test_one_patient_cannot_be_split() -> None:
    frame = toy_frame(20, LABELS, seed=0).assign(patient_id="only")
    with pytest.raises(TailfillError, match="1 patients"):
        split_patients(frame, LABELS, fractions={"val": 0.2}, seed=0)
