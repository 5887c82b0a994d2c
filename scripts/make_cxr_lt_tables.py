"""CXR-LT's label files with the true columns and invented content, at any size: no label or id of a real patient.

::

    python scripts/make_cxr_lt_tables.py --out DIR --images 377110 [--year 2023]

Writes the three files of each task, MIMIC-IV's ``patients.csv`` and MIMIC-CXR-JPG's metadata table. Sizes of the splits
follow CXR-LT 2024 (68.6, 10.4 and 20.9 % of the images; 406 gold images, at most a fifth of test), frequencies those
of CXR-LT's train images; labels are drawn per study, independently. Not promised: the company that findings
keep, nor that they are the same ones when the number of images is another. The same arguments give the same bytes.
"""

import argparse
import itertools
import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv

from cohort.errors import TailfillError, run_command
from cohort.phantom.prevalence import FINDINGS
from cohort.vocabulary.labels import CXR_LT_2023, CXR_LT_2024, CXR_LT_2024_GOLD, UNSEEN

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
STUDIES_PER_BLOCK = 50_000
"""Studies whose rows are made at a time: 83,000 images, about 150 MB."""
MIN_IMAGES = 30
IDS = ("dicom_id", "subject_id", "study_id", "ViewPosition", "ViewCodeSequence_CodeMeaning", "fpath")
"""The columns before the labels."""


def make_spine(n_images: int, rng: np.random.Generator) -> pd.DataFrame:
    """Number, study, patient and split of every image, by study: all that has to be known of the others at once."""
    n_studies = max(3, round(n_images / IMAGES_PER_STUDY))
    study = np.sort(rng.integers(0, n_studies, n_images))
    patient_of_study = np.sort(rng.integers(0, max(3, round(n_studies / STUDIES_PER_PATIENT)), n_studies))
    split_of_patient = rng.choice(len(SHARES), patient_of_study.max() + 1, p=list(SHARES.values())).astype(np.int8)
    split_of_patient[:3] = range(3)  # none is empty, however small the set
    patient = patient_of_study[study]
    return pd.DataFrame({"number": rng.permutation(n_images), "study": study, "patient": patient,
                         "split": split_of_patient[patient]})


def make_images(spine: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Ids, views, paths, splits and labels of all tasks for a stretch of whole studies, one row per image."""
    view = rng.choice(len(VIEWS), len(spine), p=[share for *_, share in VIEWS])
    frame = pd.DataFrame({
        "dicom_id": [f"{i:08x}-{i * 2654435761 % 2**32:08x}-{i ^ 0x5bd1e995:08x}-{i:08x}-4e384014"
                     for i in spine["number"].tolist()],
        "subject_id": (10_000_032 + 7 * spine["patient"]).astype("str").to_numpy(),
        "study_id": [f"s{50_000_000 + 3 * study}" for study in spine["study"].tolist()],
        "ViewPosition": np.array([name for name, *_ in VIEWS])[view],
        "ViewCodeSequence_CodeMeaning": np.array([meaning for _, meaning, _ in VIEWS])[view],
    })
    frame["fpath"] = ("files/p" + frame["subject_id"].str[:2] + "/p" + frame["subject_id"] + "/" + frame["study_id"]
                      + "/" + frame["dicom_id"] + ".jpg")
    shares = {name: finding.percent / 100 for name, finding in FINDINGS.items()} | OTHERS
    studies, of_image = np.unique(spine["study"], return_inverse=True)
    for label in sorted({*CXR_LT_2024.labels, *UNSEEN, "No Finding"}):
        frame[label] = (rng.random(len(studies)) < shares[label]).astype(np.int8)[of_image]
    return frame.assign(split=np.array(list(SHARES))[spine["split"]])


@dataclass(frozen=True, kw_only=True)
class LabelFile:
    """One file of a release: the images of a split with these labels, of which the first ``n_at_most``."""

    name: str
    split: str
    labels: Sequence[str]
    n_at_most: int | None = None


def label_files(year: int, *, n_test: int) -> list[LabelFile]:
    """The files of a release whose test split has ``n_test`` images."""
    if year == 2023:
        return [LabelFile(name=f"cxr-lt-2023/{name}.csv", split=split, labels=CXR_LT_2023.labels)
                for split, name in (("train", "train"), ("val", "development"), ("test", "test"))]
    swapped = [*sorted(set(CXR_LT_2024_GOLD.labels) - {"Normal"}), "Normal"]  # as Nodule and Normal change places
    gold = min(406, max(1, n_test // 5))
    parts = [LabelFile(name=f"cxr-lt-2024/{name}_labeled_task{task}.csv", split=split, labels=labels,
                       n_at_most=gold if (split, task) == ("test", 2) else None)
             for task, labels in ((1, CXR_LT_2024.labels), (2, swapped), (3, UNSEEN))
             for split, name in (("val", "development"), ("test", "test"))]
    return [LabelFile(name="cxr-lt-2024/train_labeled.csv", split="train", labels=CXR_LT_2024.labels), *parts]


class Appender:
    """CSV files that grow by one frame after the other, quoted only where needed."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.writers: dict[str, pyarrow.csv.CSVWriter] = {}
        self.rows: Counter[str] = Counter()

    def append(self, name: str, frame: pd.DataFrame, *, n_at_most: int | None = None) -> None:
        """Add the rows of ``frame`` to the file ``name``, and no more than ``n_at_most`` to the whole file."""
        kept = frame if n_at_most is None else frame.iloc[: max(0, n_at_most - self.rows[name])]
        table = pa.Table.from_pandas(kept, preserve_index=False)
        if name not in self.writers:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            self.writers[name] = self.stack.enter_context(pyarrow.csv.CSVWriter(
                self.folder / name, table.schema, write_options=pyarrow.csv.WriteOptions(quoting_style="needed")))
        self.writers[name].write_table(table)
        self.rows[name] += len(kept)


def write_tables(folder: Path, n_images: int, *, year: int = 2024, seed: int = 0) -> None:
    """All files of a year below ``folder``, and the two tables of the people; raises ``TailfillError`` when it cannot.

    Memory grows by 25 bytes an image: strings and labels are made and written ``STUDIES_PER_BLOCK`` studies at a time.
    """
    if n_images < MIN_IMAGES or seed < 0:
        raise TailfillError(f"--images is {n_images}, --seed {seed}; wanted: {MIN_IMAGES} or more, and 0 or more")
    spine = make_spine(n_images, np.random.default_rng(seed))
    files = label_files(year, n_test=int((spine["split"] == list(SHARES).index("test")).sum()))
    first_studies = range(0, int(spine["study"].iloc[-1]) + 1, STUDIES_PER_BLOCK)
    cuts = [*np.searchsorted(spine["study"], list(first_studies)), n_images]
    with ExitStack() as stack:
        out, last_patient = Appender(folder, stack), -1
        for block, (start, end) in enumerate(itertools.pairwise(cuts)):
            rng, part = np.random.default_rng([seed, 1 + block]), spine.iloc[start:end]
            if start == end:
                continue
            frame = make_images(part, rng)
            for file in files:
                rows = frame.loc[frame["split"] == file.split, [*IDS, *file.labels]]
                out.append(file.name, rows, n_at_most=file.n_at_most)
            new = (part["patient"] > last_patient).to_numpy()  # they stand in order
            write_people(out, frame, frame.loc[new, "subject_id"].drop_duplicates(), rng)
            last_patient = int(part["patient"].iloc[-1])


def write_people(out: Appender, frame: pd.DataFrame, patients: pd.Series, rng: np.random.Generator) -> None:
    """MIMIC-IV's row of each of the ``patients``, and MIMIC-CXR-JPG's of each image of ``frame``."""
    out.append("patients.csv", pd.DataFrame({
        "subject_id": patients, "gender": rng.choice(["F", "M"], len(patients)),
        "anchor_age": rng.integers(18, 90, len(patients)), "anchor_year": 2150}))
    years = 2150 + rng.integers(-3, 4, len(frame))
    out.append("mimic-cxr-2.0.0-metadata.csv", frame[["dicom_id", "subject_id", "study_id"]].assign(
        StudyDate=pd.Series(years, frame.index).astype("str") + "0704"))


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
