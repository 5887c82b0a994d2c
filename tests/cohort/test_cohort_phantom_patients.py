"""What the phantom's patients are for: the same chest again and again, so that a leak between splits would pay."""

import numpy as np
import pytest

from cohort.phantom.cases import Case, draw_cases
from cohort.phantom.prevalence import FINDINGS
from cohort.phantom.radiograph import render
from cohort.phantom.settings import PhantomConfig
from cohort.phantom.signs import SIGNS


def test_every_visible_finding_has_a_sign_and_every_sign_a_finding() -> None:
    assert set(SIGNS) == set(FINDINGS)
    assert all(sign.shape or sign.draw for sign in SIGNS.values())


@pytest.fixture(scope="module")
def pairs() -> list[tuple[Case, Case]]:
    """Two PA images of different studies for each of 40 patients."""
    by_patient: dict[str, dict[str, Case]] = {}
    for case in draw_cases(PhantomConfig(images=1500, seed=4)):
        if case.exam.view == "PA":
            by_patient.setdefault(case.exam.patient.patient_id, {}).setdefault(case.exam.study_id, case)
    several = [list(studies.values())[:2] for studies in by_patient.values() if len(studies) > 1]
    return [(one, other) for one, other in several[:40]]


def test_a_patient_is_recognised_in_another_study(pairs: list[tuple[Case, Case]]) -> None:
    """By the nearest image alone: a classifier that has seen a test patient in training can do so too."""
    first, second = (np.stack([render(pair[k].exam, 64).astype(float) for pair in pairs]) for k in (0, 1))
    first, second = ((part - part.mean(axis=(1, 2), keepdims=True)).reshape(len(pairs), -1) for part in (first, second))
    distances = ((first[:, None] - second[None]) ** 2).sum(axis=2)
    recognised = float((distances.argmin(axis=1) == np.arange(len(pairs))).mean())
    assert len(pairs) == 40
    assert recognised > 0.2  # by chance 1 in 40


def test_findings_persist_so_that_recognising_the_patient_pays(pairs: list[tuple[Case, Case]]) -> None:
    """A patient's other study says more about an image's findings than a stranger's does."""
    one, other = (np.stack([pair[k].labels for pair in pairs]).astype(float) for k in (0, 1))
    own = (one == other).mean()
    strangers = np.mean([(one == np.roll(other, shift, axis=0)).mean() for shift in range(1, len(pairs))])
    assert own > strangers + 0.03
