"""CXR-LT's label files with the true columns and invented content, at any size: no label or id of a real patient.

::

    python scripts/make_cxr_lt_tables.py --out DIR --images 377110 [--year 2023]

Writes the three files of each task, MIMIC-IV's ``patients.csv`` and MIMIC-CXR-JPG's metadata table. Sizes of the splits
follow CXR-LT 2024 (68.6, 10.4 and 20.9 % of the images; 406 gold images, at most a fifth of test), frequencies those
of CXR-LT's train images; labels are drawn per study, independently. Not promised: the company that findings
keep. The same arguments give the same bytes.
"""

import argparse
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv

from cohort.errors import run_command
from cohort.labels import CXR_LT_2023, CXR_LT_2024, CXR_LT_2024_GOLD, UNSEEN
from cohort.phantom.prevalence import FINDINGS

log = logging.getLogger(__name__)

SHARES = {"train": 258_871 / 377_110, "val": 39_293 / 377_110, "test": 78_946 / 377_110}
VIEWS = (("PA", "postero-anterior", 0.25), ("AP", "antero-posterior", 0.39), ("LATERAL", "lateral", 0.23),
         ("LL", "left lateral", 0.09), ("", "Erect", 0.04))
"""ViewPosition, its code's meaning, and about how many of MIMIC-CXR-JPG's images have it."""
OTHERS = {
    "Adenopathy": 0.01317, "Enlarged Cardiomediastinum": 0.11445, "Fissure": 0.01083, "Fracture": 0.04469,
    "Infarction": 0.00281, "Infiltration": 0.03897, "Lung Lesion": 0.00903, "Lung Opacity": 0.29931,
    "Normal": 0.13247, "Pleural Other": 0.00238, "Pneumonia": 0.18024, "Pulmonary Embolism": 0.0063,
    "Pulmonary Hypertension": 0.00349, "Tuberculosis": 0.00803, "Bulla": 0.00078, "Cardiomyopathy": 0.00159,
    "Hilum": 0.00693, "Osteopenia": 0.00168,
    "No Finding": 0.13,
}
"""Frequencies of labels that the phantom does not have: of CXR-LT's train images (2506.07984), No Finding's chosen."""
IMAGES_PER_STUDY, STUDIES_PER_PATIENT = 1.66, 3.5
"""About MIMIC-CXR's: 377,110 images, 227,835 studies, 65,379 patients."""


def make_images(n_images: int, rng: np.random.Generator) -> pd.DataFrame:
    """Ids, views, paths, splits (by patient) and labels of all tasks, one row per image."""
    n_studies = max(3, round(n_images / IMAGES_PER_STUDY))
    study = np.sort(rng.integers(0, n_studies, n_images))
    patient_of_study = np.sort(rng.integers(0, max(3, round(n_studies / STUDIES_PER_PATIENT)), n_studies))
    split_of_patient = rng.choice(list(SHARES), patient_of_study.max() + 1, p=list(SHARES.values()))
    split_of_patient[:3] = list(SHARES)  # none is empty, however small the set
    patient = patient_of_study[study]
    view = rng.choice(len(VIEWS), n_images, p=[share for *_, share in VIEWS])
    number = rng.permutation(n_images)
    frame = pd.DataFrame({
        "dicom_id": [f"{i:08x}-{i * 2654435761 % 2**32:08x}-{i ^ 0x5bd1e995:08x}-{i:08x}-4e384014" for i in number],
        "subject_id": (10_000_032 + 7 * patient).astype(str), "study_id": [f"s{50_000_000 + 3 * s}" for s in study],
        "ViewPosition": np.array([name for name, *_ in VIEWS])[view],
        "ViewCodeSequence_CodeMeaning": np.array([meaning for _, meaning, _ in VIEWS])[view],
    })
    frame["fpath"] = ("files/p" + frame["subject_id"].str[:2] + "/p" + frame["subject_id"] + "/" + frame["study_id"]
                      + "/" + frame["dicom_id"] + ".jpg")
    shares = {name: finding.percent / 100 for name, finding in FINDINGS.items()} | OTHERS
    for label in sorted({*CXR_LT_2024.labels, *UNSEEN, "No Finding"}):
        frame[label] = (rng.random(n_studies) < shares[label]).astype(np.int8)[study]
    return frame.assign(split=split_of_patient[patient])


def write(frame: pd.DataFrame, file: Path) -> None:
    """A frame as CSV, quoted only where needed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.csv.write_csv(pa.Table.from_pandas(frame, preserve_index=False), file,
                          pyarrow.csv.WriteOptions(quoting_style="needed"))


def write_tables(folder: Path, n_images: int, *, year: int = 2024, seed: int = 0) -> None:
    """All files of a year below ``folder``, and the two tables of the people."""
    rng = np.random.default_rng(seed)
    frame = make_images(n_images, rng)
    ids = list(frame.columns[:6])
    part = {split: frame[frame["split"] == split] for split in SHARES}
    if year == 2023:
        for split, name in (("train", "train"), ("val", "development"), ("test", "test")):
            write(part[split][[*ids, *CXR_LT_2023.labels]], folder / "cxr-lt-2023" / f"{name}.csv")
    else:
        swapped = [*sorted(set(CXR_LT_2024_GOLD.labels) - {"Normal"}), "Normal"]  # as Nodule and Normal change places
        write(part["train"][[*ids, *CXR_LT_2024.labels]], folder / "cxr-lt-2024" / "train_labeled.csv")
        for task, labels in ((1, CXR_LT_2024.labels), (2, swapped), (3, UNSEEN)):
            gold = part["test"].iloc[: min(406, max(1, len(part["test"]) // 5))]
            for split, name in (("val", "development"), ("test", "test")):
                chosen = gold if (split, task) == ("test", 2) else part[split]
                write(chosen[[*ids, *labels]], folder / "cxr-lt-2024" / f"{name}_labeled_task{task}.csv")
    people = frame[["subject_id"]].drop_duplicates()
    write(people.assign(gender=rng.choice(["F", "M"], len(people)), anchor_age=rng.integers(18, 90, len(people)),
                        anchor_year=2150), folder / "patients.csv")
    write(frame[["dicom_id", "subject_id", "study_id"]].assign(
        StudyDate=2150 + rng.integers(-3, 4, n_images)).assign(StudyDate=lambda f: f["StudyDate"].astype(str) + "0704"),
        folder / "mimic-cxr-2.0.0-metadata.csv")


def main() -> None:
    """Write the tables that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--images", type=int, default=377_110, help="rows of all splits together, 30 or more")
    parser.add_argument("--year", type=int, default=2024, choices=(2023, 2024), help="the release")
    parser.add_argument("--seed", type=int, default=0, help="0 or more")
    options = parser.parse_args()
    write_tables(options.out, options.images, year=options.year, seed=options.seed)
    log.info("make_cxr_lt_tables: %d images in %s", options.images, options.out)


if __name__ == "__main__":
    run_command(main)
