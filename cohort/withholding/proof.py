"""Did any withheld patient reach what must not have seen him?

A rehearsal is worth nothing if the generator, the critic, the encoder's statistics or a prompt has seen the images that
it pretends not to have. So after each run every trace of a patient is compared with those who were withheld, three
ways:

- ``patients``: the hashed patients that a stage, or a stage that it builds on, has learnt from (``patients.parquet``);
- ``inputs``: the cohort that a stage's stamp names as its input is the thinned one, byte for byte, and the withheld
  cohort stands behind the oracle's arms alone;
- ``ids``: no table of a stage (plan, arm, nearest pairs, predictions) names a withheld image or patient.

The oracle's own arms are let off, and serve as the check of the check: there withheld patients must be found.

Not promised: to see into weights that come from elsewhere without saying whose images they learnt from; they are told
as ``provenance unknown``.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from cohort.errors import TailfillError
from cohort.pipeline import STAMP, read_stamp
from cohort.provenance import FILE, SCHEMA, hash_patients, salt_name
from cohort.tables import RECONSTRUCTED, Cohort, read_table

NAMING = {"image_id": "image_id", "label_source_id": "image_id", "company_id": "image_id", "init_image_id": "image_id",
          "labels_from": "image_id", "patient_id": "patient_id"}
"""Columns of stages' tables that name real images or patients, and the cohort's column that they name."""
ORACLE = "oracle"
"""The folder of the withheld cohort, and how the names of the arms that may see it begin."""


def prove_apart(folders: Sequence[Path], *, thinned: Cohort, withheld: Cohort, thinned_hash: str) -> pd.DataFrame:
    """The table ``overlap``: stage folder, check, patients or ids looked at, how many are withheld ones, and in words.

    ``folders``: a run, and what it builds on beside it. ``thinned_hash``: the output hash in the thinned cohort's
    stamp. Raises ``TailfillError`` naming the first stage that a withheld patient has reached, and when the oracle's
    arm, which must know them, does not.
    """
    rows = [row for folder in folders for stage in _stages(folder)
            for row in _checks(stage, folder, thinned=thinned, withheld=withheld, thinned_hash=thinned_hash)]
    table = pd.DataFrame(rows, columns=["stage", "check", "is_oracle", "n_looked_at", "n_withheld", "says"])
    leaks = table[~table["is_oracle"] & (table["n_withheld"] > 0)]
    if len(leaks):
        first = leaks.iloc[0]
        raise TailfillError(f"{first['stage']}: has seen {first['n_withheld']} withheld {first['check']} "
                            f"({first['says']}); a rehearsal in which they are known proves nothing")
    trained = table[table["is_oracle"] & (table["check"] == "patients")]
    if len(trained) and not (trained["n_withheld"] > 0).all():
        raise TailfillError(f"{trained['stage'].iloc[0]}: the oracle has learnt from no withheld patient, so this "
                            "check could not have found one elsewhere")
    return table


def _stages(folder: Path) -> Iterator[Path]:
    """Folders below ``folder`` that hold a complete stage, the withheld cohort itself left out."""
    for stamp in sorted(folder.rglob(STAMP)):
        if stamp.parent != folder / ORACLE:
            yield stamp.parent


def _checks(
    stage: Path, run: Path, *, thinned: Cohort, withheld: Cohort, thinned_hash: str
) -> Iterator[dict[str, object]]:
    """The rows of one stage."""
    parts = stage.relative_to(run).parts
    row = {"stage": str(stage), "is_oracle": any(part.split("-")[0] == ORACLE for part in parts)}
    if (stage / FILE).is_file():
        learnt = read_table(stage / FILE, SCHEMA)
        shared = set(learnt["patient"]) & hash_patients(withheld.frame["patient_id"], salt=thinned.salt)
        foreign = int((learnt["salt"] != salt_name(thinned.salt)).sum())
        yield row | {"check": "patients", "n_looked_at": len(learnt), "n_withheld": len(shared), "says":
                     f"{foreign} of other cohorts: provenance unknown" if foreign else "every patient compared"}
    stamp = read_stamp(stage) or {}
    inputs = {} if stamp.get("stage") == "thin" else stamp.get("inputs", {})  # thinning itself reads the whole cohort
    wrong = [key for key, entry in inputs.items() if key == ORACLE or (
        key == "cohort" and entry["hash"] != thinned_hash and not _is_apart(entry, withheld))]
    yield row | {"check": "inputs", "n_looked_at": len(inputs), "n_withheld": len(wrong),
                 "says": f"input {wrong[0]}: {inputs[wrong[0]]['path']}" if wrong else "made of the thinned cohort"}
    found, n_ids = _named(stage, withheld)
    yield row | {"check": "ids", "n_looked_at": n_ids, "n_withheld": len(found),
                 "says": found[0] if found else "no table names one"}


def _is_apart(entry: dict[str, str], withheld: Cohort) -> bool:
    """Whether a stage's cohort, though not the thinned one, is without any withheld patient (as a shared base's is)."""
    file = Path(entry["path"]) / "cohort.parquet"
    return file.is_file() and not set(read_table(file)["patient_id"]) & set(withheld.frame["patient_id"])


def _named(stage: Path, withheld: Cohort) -> tuple[list[str], int]:
    """Withheld images and patients that the tables of a stage name, sorted, and how many names were looked at."""
    found, looked_at = set[str](), 0
    for file in sorted(stage.glob("*.parquet")):
        for column in set(NAMING) & set(pq.read_schema(file).names):
            values = set(pd.read_parquet(file, columns=[column])[column].dropna().astype("str")
                         .str.removeprefix(RECONSTRUCTED))
            looked_at, found = looked_at + len(values), found | (values & set(withheld.frame[NAMING[column]]))
    return sorted(found), looked_at
