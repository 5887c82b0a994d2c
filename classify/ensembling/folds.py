"""Out-of-fold predictions: every train and validation image, by the one model that has not learnt from its patient.

The runs of arm ``fold`` with seeds 1000 n to 1000 n + n - 1 have each left out one of n folds of patients
(``cohort.preparing.splits``). Each predicts what it left out, and the test images; the ensemble holds the former as
they are, with the number of their fold, and for the test images the average over folds, under fold n.

That no model predicts a patient of its own is not taken from the way in which folds are dealt. It is checked against
the patients that the run says that it has learnt from, through all that it builds on, before anything is predicted and
again when folds are put together. Not promised: that logits of two folds are on one scale.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from classify.ensembling.averaging import average_tables
from cohort.errors import TailfillError
from cohort.preparing.splits import deal_folds
from cohort.provenance import check_not_learnt
from cohort.tables import Cohort

FOLD = "fold"
"""The arm's name."""
LEARNT, TEST = ("train", "val"), "test"


def fold_images(cohort: Cohort, seed: int, *, folder: Path) -> pd.DataFrame:
    """The rows of the cohort that a run of arm ``fold`` may predict, in the cohort's order: its fold, and test.

    ``seed`` is 1000 n + k, ``folder`` the run's. Raises ``TailfillError`` when it has learnt from one of their
    patients.
    """
    n_folds, held_out = divmod(seed, 1000)
    images = cohort.split(*LEARNT)
    folds = deal_folds(images, cohort.labels, n_folds=n_folds, seed=n_folds)
    chosen = set(images["image_id"][folds == held_out])
    frame = cohort.split(*LEARNT, TEST)
    frame = frame[frame["image_id"].isin(chosen) | (frame["split"] == TEST)].reset_index(drop=True)
    check_not_learnt(folder, frame["patient_id"], cohort, what=f"that fold {held_out} predicts")
    return frame


def join_folds(tables: Sequence[pd.DataFrame], cohort: Cohort, *, seed: int, folders: Sequence[Path]) -> pd.DataFrame:
    """The predictions of n folds as one table, ``seed`` in its column; ``folders`` are those of the weights.

    Raises ``TailfillError`` when an image was predicted by a run that has learnt from its patient, by none or by two.
    """
    parts, test = [], []
    for number, (table, folder) in enumerate(zip(tables, folders, strict=True)):
        check_not_learnt(folder, table["patient_id"], cohort, what=f"that fold {number} predicts")
        parts.append(table[table["split"] != TEST].assign(fold=number))
        test.append(table[table["split"] == TEST].reset_index(drop=True))
    joined = pd.concat(parts, ignore_index=True)
    for weights, part in joined.groupby("weights"):
        twice = part["image_id"][part["image_id"].duplicated()]
        missing = set(cohort.split(*LEARNT)["image_id"]) - set(part["image_id"])
        if len(twice) or missing:
            said = f"two folds predict image '{twice.iloc[0]}'" if len(twice) else f"no fold predicts '{min(missing)}'"
            raise TailfillError(f"{folders[0].parent}: {said} ({weights} weights); wanted: each train and validation "
                                "image once")
    return pd.concat([joined, average_tables(test).assign(fold=len(tables))], ignore_index=True).assign(seed=seed)
