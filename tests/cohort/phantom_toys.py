"""Shadows of phantom chests with and without a finding, without noise and at few rays, for the tests of signs."""

import numpy as np
import pytest

from cohort.phantom import radiograph
from cohort.phantom.exam import Exam, Patient, Sign
from cohort.phantom.radiograph import FIELD_CM, line_integrals
from cohort.phantom.sites import SITES

RAYS = 64
"""Rays per axis."""


@pytest.fixture(autouse=True)
def one_ray_per_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Import it, and the chests of a test file are drawn sixteen times as fast."""
    monkeypatch.setattr(radiograph, "oversampling", lambda size: 1)


def exam(*signs: Sign, view: str = "PA", person: int = 3, moment: int = 7, sex: str = "M") -> Exam:
    """An exam of a patient (``person``) at a time (``moment``)."""
    return Exam(image_id="i", patient=Patient(patient_id="p", sex=sex, seed=person), study_id="s", site=SITES["A"],
                view=view, age=60.0, signs=signs, seed=moment)


def shadow(*signs: Sign, **which: object) -> np.ndarray:
    """Line integrals, float32 (RAYS, RAYS)."""
    return line_integrals(exam(*signs, **which), RAYS)


def change(label: str, severity: float, seed: int = 1, **which: object) -> np.ndarray:
    """What a finding adds to the shadow, float32 (RAYS, RAYS); 0 where nothing."""
    return shadow(Sign(label=label, severity=severity, seed=seed), **which) - shadow(**which)


def amount(difference: np.ndarray) -> float:
    """How much changes in all: the sum of the absolute change over the detector, cm^2."""
    return float(np.abs(difference).sum()) * (FIELD_CM / RAYS) ** 2


def middle(difference: np.ndarray) -> tuple[float, float]:
    """(x, y) in cm from the middle of the detector, x to the patient's left, y up: the centroid of the change."""
    weight = np.abs(difference)
    steps = ((np.arange(RAYS) + 0.5) / RAYS - 0.5) * FIELD_CM
    return float((weight.sum(axis=0) @ steps) / weight.sum()), float(-(weight.sum(axis=1) @ steps) / weight.sum())
