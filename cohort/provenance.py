"""Whose images has a model learnt from? Checked between stages rather than promised.

Every stage that learns writes ``patients.parquet``: one salted hash per patient that it, or a stage that it builds on,
has seen. The next stage refuses when that set meets the test patients. Hashes keep ids out of shared weights; they are
no anonymisation against somebody who holds both the salt and a list of ids.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from cohort.errors import TailfillError
from cohort.tables import Cohort, read_table, write_table

FILE = "patients.parquet"


def hash_patients(patient_ids: Iterable[str], *, salt: str) -> set[str]:
    """One salted sha256 per distinct patient."""
    return {hashlib.sha256(f"{salt}:{patient}".encode()).hexdigest() for patient in set(patient_ids)}


def write_patients(folder: Path, patient_ids: Iterable[str], *, salt: str, inherited: Iterable[Path] = ()) -> None:
    """Write the patients that a stage learnt from, those of the stages it builds on (``inherited``) included."""
    hashes = hash_patients(patient_ids, salt=salt)
    for source in inherited:
        hashes |= set(read_table(source / FILE)["patient"])
    write_table(pd.DataFrame({"patient": sorted(hashes)}), folder / FILE)


def check_no_overlap(folder: Path, cohort: Cohort, *, splits: tuple[str, ...] = ("test",)) -> None:
    """Raise ``TailfillError`` if the stage in ``folder`` has learnt from a patient of the named splits."""
    learnt = set(read_table(folder / FILE)["patient"])
    shared = learnt & hash_patients(cohort.split(*splits)["patient_id"], salt=cohort.salt)
    if shared:
        raise TailfillError(f"{folder}: has learnt from {len(shared)} patients of the splits {', '.join(splits)}; "
                            "a model that has seen them cannot be used here")
