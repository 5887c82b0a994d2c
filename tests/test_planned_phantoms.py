"""A plan as a perfect generator would draw it: what was asked for, on the hospital's machine, pairs of one person."""

import numpy as np
import pandas as pd
import pytest
from planned_phantoms import exams_of

from cohort.errors import TailfillError
from cohort.phantom.radiograph import render

LABELS = ["Normal", "Cardiomegaly", "Kyphosis", "Pulmonary Embolism"]
PLAN = pd.DataFrame({
    "sample_id": ["a", "b", "c"], "seed": [5, 5, 6], "view": ["AP", "AP", "PA"], "sex": ["F", "F", "M"],
    "age": [81.0, 81.0, 30.0], "Normal": [0, 0, 1], "Cardiomegaly": [1, 1, 0], "Kyphosis": [1, 0, 0],
    "Pulmonary Embolism": [0, 0, 1]})


def test_findings_people_and_machine_are_those_asked_for() -> None:
    first, negative, healthy = exams_of(PLAN, LABELS, site="B")
    assert [sign.label for sign in first.signs] == ["Cardiomegaly", "Kyphosis"]
    assert [sign.label for sign in negative.signs] == ["Cardiomegaly"]
    assert healthy.signs == ()  # an embolism leaves no sign
    assert {exam.site.name for exam in (first, negative, healthy)} == {"B"}
    assert [(exam.view, exam.patient.sex, exam.age) for exam in (first, healthy)] == [("AP", "F", 81), ("PA", "M", 30)]


def test_a_matched_negative_is_the_same_person_without_the_finding() -> None:
    first, negative, healthy = exams_of(PLAN, LABELS, site="A")
    assert (first.patient.seed, first.seed, first.signs[:1]) == (negative.patient.seed, negative.seed, negative.signs)
    assert healthy.patient.seed != first.patient.seed
    pair = [render(exam, 64).astype(int) for exam in (first, negative)]
    assert np.abs(pair[0] - pair[1]).max() > 20


def test_ids_name_what_is_asked_for_so_that_another_plan_finds_no_old_images() -> None:
    again, other = (exams_of(plan, LABELS, site="A") for plan in (PLAN, PLAN.assign(Kyphosis=0)))
    ids = [exam.image_id for exam in exams_of(PLAN, LABELS, site="A")]
    assert [exam.image_id for exam in again] == ids
    assert [exam.image_id != one for exam, one in zip(other, ids, strict=True)] == [True, False, False]
    assert ids[0] != exams_of(PLAN, LABELS, site="B")[0].image_id


def test_labels_of_other_cohorts_are_refused() -> None:
    with pytest.raises(TailfillError, match=r"label 'Pneumonia' of the plan is none of the phantom's"):
        exams_of(PLAN.assign(Pneumonia=0), [*LABELS, "Pneumonia"], site="A")
