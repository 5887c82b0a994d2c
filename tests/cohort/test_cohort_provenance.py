"""Patients that a model has learnt from are refused in test, through any number of stages."""

from pathlib import Path

import pandas as pd
import pytest

from cohort.errors import TailfillError
from cohort.provenance import FILE, check_no_overlap, hash_patients, write_patients
from cohort.tables import Cohort


@pytest.fixture
def cohort() -> Cohort:
    frame = pd.DataFrame({"patient_id": ["a", "a", "b", "c", "d"], "split": ["train", "train", "val", "test", "test"]})
    return Cohort(frame=frame, labels=[], groups={}, roots={}, salt="pepper", folder=Path("x"))


def test_one_hash_per_patient_whatever_the_order(tmp_path: Path) -> None:
    assert hash_patients(["a", "b", "a"], salt="s") == hash_patients(["b", "a"], salt="s")
    assert not hash_patients(["a"], salt="s") & hash_patients(["a"], salt="t")
    write_patients(tmp_path, ["b", "a", "a"], salt="s")
    table = pd.read_parquet(tmp_path / FILE)
    assert len(table) == 2
    assert not set(table["patient"]) & {"a", "b"}


def test_train_and_validation_patients_are_fine_and_test_ones_are_not(tmp_path: Path, cohort: Cohort) -> None:
    write_patients(tmp_path / "ok", ["a", "b"], salt=cohort.salt)
    check_no_overlap(tmp_path / "ok", cohort)
    with pytest.raises(TailfillError, match="learnt from 1 patients of the splits val"):
        check_no_overlap(tmp_path / "ok", cohort, splits=("val",))
    write_patients(tmp_path / "bad", ["a", "c", "d"], salt=cohort.salt)
    with pytest.raises(TailfillError, match="bad: has learnt from 2 patients of the splits test"):
        check_no_overlap(tmp_path / "bad", cohort)


def test_what_a_stage_builds_on_is_inherited(tmp_path: Path, cohort: Cohort) -> None:
    write_patients(tmp_path / "autoencoder", ["c"], salt=cohort.salt)
    write_patients(tmp_path / "generator", ["a"], salt=cohort.salt, inherited=[tmp_path / "autoencoder"])
    write_patients(tmp_path / "images", [], salt=cohort.salt, inherited=[tmp_path / "generator"])
    with pytest.raises(TailfillError, match="learnt from 1 patients"):
        check_no_overlap(tmp_path / "images", cohort)


def test_a_stage_without_the_list_is_refused(tmp_path: Path, cohort: Cohort) -> None:
    with pytest.raises(TailfillError, match="no such table"):
        check_no_overlap(tmp_path, cohort)
