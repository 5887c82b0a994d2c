"""Whose images has a model learnt from? Checked between stages rather than promised.

Every stage that learns writes ``patients.parquet``: one salted hash per patient that it, or a stage that it builds on,
has seen. The next stage refuses when that set meets the test patients. A cohort's salt follows from its patients, so
another split of them is still recognised; hashes under a foreign salt cannot be compared, and their provenance is
``unknown``. Hashes keep ids out of shared weights; they are no anonymisation against somebody who holds both the salt
and a list of ids.
"""

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pandera.pandas as pa

from cohort.errors import TailfillError
from cohort.pipeline import read_stamp
from cohort.tables import Cohort, read_table, write_table

log = logging.getLogger(__name__)

FILE = "patients.parquet"
SCHEMA = pa.DataFrameSchema({"patient": pa.Column(str, unique=True), "salt": pa.Column(str)}, strict=True,
                            name="patients")


def hash_patients(patient_ids: Iterable[str], *, salt: str) -> set[str]:
    """One salted sha256 per distinct patient."""
    return {hashlib.sha256(f"{salt}:{patient}".encode()).hexdigest() for patient in set(patient_ids)}


def salt_name(salt: str) -> str:
    """What tells salts apart without giving them away: a hash of the hash's salt."""
    return hashlib.sha256(f"name of {salt}".encode()).hexdigest()[:16]


def write_patients(folder: Path, patient_ids: Iterable[str], *, salt: str, inherited: Iterable[Path] = ()) -> None:
    """Write the patients that a stage learnt from, those of the stages it builds on (``inherited``) included."""
    own = pd.DataFrame({"patient": sorted(hash_patients(patient_ids, salt=salt)), "salt": salt_name(salt)})
    frames = [own, *(read_table(source / FILE, SCHEMA) for source in inherited)]
    every = pd.concat(frames).drop_duplicates("patient").sort_values("patient")
    write_table(every.astype("str"), folder / FILE, SCHEMA)


def check_no_overlap(folder: Path, cohort: Cohort, *, splits: tuple[str, ...] = ("test",)) -> bool:
    """Whether all patients that the stage in ``folder`` learnt from could be compared with the named splits.

    Raises ``TailfillError`` if one of them is in those splits. False when some were hashed with another cohort's salt.
    """
    return check_not_learnt(folder, cohort.split(*splits)["patient_id"], cohort,
                            what=f"of the splits {', '.join(splits)}")


def check_not_learnt(folder: Path, patient_ids: Iterable[str], cohort: Cohort, *, what: str) -> bool:
    """The same for any patients of ``cohort``; ``what`` they are is said in the error."""
    learnt = read_table(folder / FILE, SCHEMA)
    shared = set(learnt["patient"]) & hash_patients(patient_ids, salt=cohort.salt)
    if shared:
        raise TailfillError(f"{folder}: has learnt from {len(shared)} patients {what}; "
                            "a model that has seen them cannot be used here")
    foreign = int((learnt["salt"] != salt_name(cohort.salt)).sum())
    if foreign:
        log.warning("%s: %d of its patients are of another cohort and cannot be compared: provenance unknown", folder,
                    foreign)
    return not foreign


def is_known(folder: Path | None, cohort: Cohort) -> bool:
    """Whether all patients that the weights in ``folder`` have seen are known, to the stages they build on and back.

    False without a folder, or in one that does not say whose images it learnt from. Raises ``TailfillError`` if test
    patients are among them.
    """
    if folder is None or not (folder / FILE).is_file():
        return False
    extra = (read_stamp(folder) or {}).get("extra", {})
    return check_no_overlap(folder, cohort) and extra.get("provenance") != "unknown"
