"""What a perfect generator would make of a plan: the phantom draws every row as it was asked for.

Findings, view, age and sex are the plan's, the machine is the cohort's own; severity, side and place are free, as they
are where a prompt does not name them. A matched negative is the same person without the finding. What such images bring
is the most that the plan allows any generator: where that is little, no training of the generator will mend it.

Not promised: anything about plans of other cohorts than the phantom's, whose labels nobody can draw.
"""

import hashlib
from typing import Any, Literal

import numpy as np
import pandas as pd

from cohort.errors import TailfillError
from cohort.phantom.exam import Exam, Patient, Sign
from cohort.phantom.prevalence import CONTROLS, FINDINGS, NORMAL
from cohort.phantom.sites import SITES


def exams_of(plan: pd.DataFrame, labels: list[str], *, site: str) -> list[Exam]:
    """One exam per row of a plan for the hospital ``site``, in its order; the same for the same row.

    ``image_id`` names what is asked for, not the row: rows of two plans have the same ids and other findings.
    Raises ``TailfillError`` for a label that the phantom does not know.
    """
    for label in labels:
        if label not in {*FINDINGS, *CONTROLS, NORMAL}:
            raise TailfillError(f"label '{label}' of the plan is none of the phantom's; wanted: a phantom's plan")
    return [_exam(row, labels, site) for row in plan.to_dict("records")]


def _exam(row: dict[Any, Any], labels: list[str], site: str) -> Exam:
    def number(*key: object) -> int:
        return int.from_bytes(hashlib.sha256(repr((row["seed"], *key)).encode()).digest()[:4], "big")

    signs = tuple(Sign(label=label, severity=float(np.random.default_rng(number(label, "severity")).random()),
                       seed=number(label)) for label in labels if label in FINDINGS and row[label] == 1)
    view: Literal["PA", "AP"] = "AP" if row["view"] == "AP" else "PA"
    sex: Literal["M", "F"] = "F" if row["sex"] == "F" else "M"
    asked = hashlib.sha256(repr((row["seed"], site, view, sex, row["age"], signs)).encode()).hexdigest()[:16]
    return Exam(image_id=asked, patient=Patient(patient_id=asked, sex=sex, seed=number("patient")), study_id=asked,
                site=SITES[site], view=view, age=float(row["age"]), signs=signs, seed=number("image"))
