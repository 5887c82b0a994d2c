"""What a table alone can tell: patients in two splits, unseen classes in training, labels that say nothing.

The unseen classes are those that a zero-shot test asks for (CXR-LT 2024, task 3): no training image may carry a label
of theirs, present or absent, and no text that a generator or classifier learns from may name them. In validation,
where the challenge's own development split has them, they are a warning: what is chosen there is no longer zero-shot.

Not promised: that a text which names no unseen class describes none.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cohort.checking.found import LEAK, NOTE, WARNING, Found
from cohort.errors import TailfillError
from cohort.sources.rows import read_header, read_rows
from cohort.tables import SPLITS, Cohort, plan_schema, read_table
from cohort.vocabulary.findings import findings
from cohort.vocabulary.labels import CXR_LT_2024_UNSEEN, UNSEEN

LEARNT = ("train", "val")
"""Splits that something is learnt from or chosen on."""
TEXT = ("report", "text", "prompt", "caption")
"""Names of the column of a table of reports, the first that is there."""


def unseen_of(cohort: Cohort, label_space: str | None, given: Sequence[str]) -> tuple[str, ...]:
    """The unseen classes: those ``given``, else task 3's where the cohort is of its label space, else none.

    Raises ``TailfillError`` for a class that neither the cohort nor the vocabulary knows.
    """
    known = {*cohort.labels, *findings()}
    strange = [label for label in given if label not in known]
    if strange:
        raise TailfillError(f"--unseen names '{strange[0]}', which is no label of {cohort.folder} and no finding of "
                            "the vocabulary")
    return tuple(given) or (UNSEEN if label_space == CXR_LT_2024_UNSEEN.name else ())


def check_patients(cohort: Cohort, role: str, kind: str | None) -> list[Found]:
    """Patients in two splits; and a cohort in which some or all images stand for their own patients."""
    pairs = cohort.frame[["patient_id", "split"]].drop_duplicates()
    pairs = pairs[pairs.duplicated("patient_id", keep=False)]
    splits = {str(patient): sorted(part["split"], key=SPLITS.index) for patient, part in pairs.groupby("patient_id")}
    found = [Found(check="patient_in_two_splits", severity=LEAK, cohort=role, patient_id=patient, split=names[0],
                   other_patient_id=patient, other_cohort=role, other_split=names[1],
                   words=f"patient '{patient}' has images in {' and '.join(names)}")
             for patient, names in splits.items()]
    if kind != "given":
        some = "some images have" if kind == "some" else "no image has"
        found.append(Found(check="no_patient_ids", severity=WARNING, cohort=role, words=(
            f"{some} {'no ' if kind == 'some' else 'a '}patient id, so each counts as a patient of its own: splits may "
            "share patients, and intervals are too narrow")))
    return found


def check_labels(cohort: Cohort, role: str, unseen: Sequence[str]) -> list[Found]:
    """Labels that are constant in a split, and known labels of unseen classes in train or val."""
    found = []
    for split in SPLITS:
        part = cohort.split(split)
        if part.empty:
            continue
        for label in cohort.labels:
            values = part[label].dropna()
            if label in unseen and split in LEARNT:
                found += _unseen(part, label, split, role)
            elif values.nunique() < 2:
                what = "unknown" if values.empty else "present" if values.iloc[0] == 1 else "absent"
                hidden = label in unseen or values.empty
                found.append(Found(check="constant_label", severity=NOTE if hidden else WARNING, cohort=role,
                                   split=split, label=label,
                                   words=f"'{label}' is {what} in all {len(part):,} images of {split}"))
    return found


def _unseen(part: pd.DataFrame, label: str, split: str, role: str) -> list[Found]:
    """One row where any image of the split has a known label of an unseen class."""
    known = part[part[label].notna()]
    if known.empty:
        return []
    positive = int((known[label] == 1).sum())
    severity = LEAK if split == "train" else WARNING
    return [Found(check="unseen_label", severity=severity, cohort=role, split=split, label=label,
                  image_id=str(known.sort_values(label, ascending=False)["image_id"].iloc[0]),
                  words=f"'{label}' is unseen, but known of {len(known):,} images of {split}, {positive:,} of them "
                        "positive")]


def naming(unseen: Iterable[str]) -> dict[str, re.Pattern[str]]:
    """Unseen class to what names it in a text: its name, aliases and wordings in the vocabulary, in any case."""
    vocabulary, patterns = findings(), {}
    for label in unseen:
        entry = vocabulary.get(label)
        words = [label, *(entry.aliases if entry else ()), *(entry.wordings if entry else ())]
        alternatives = "|".join(sorted({re.escape(word) for word in words}, key=len, reverse=True))
        patterns[label] = re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)", re.IGNORECASE)
    return patterns


def check_texts(texts: pd.Series, unseen: Sequence[str], *, what: str, role: str = "cohort", split: str = "train"
                ) -> list[Found]:
    """One row per unseen class that texts name; ``texts``: str, indexed by image id; ``what`` they are, in words."""
    severity = LEAK if split == "train" else WARNING
    found = []
    for label, pattern in naming(unseen).items():
        hits = texts[texts.str.contains(pattern, na=False)]
        if len(hits):
            found.append(Found(check="unseen_text", severity=severity, cohort=role, split=split, label=label,
                               image_id=str(hits.index[0]),
                               words=f"{len(hits):,} {what} name '{label}', which is unseen; the first: "
                                     f"'{' '.join(str(hits.iloc[0]).split())[:120]}'"))
    return found


def check_plan(folder: Path, labels: Sequence[str], unseen: Sequence[str]) -> list[Found]:
    """Prompts of a plan that name an unseen class, and rows that ask for one."""
    plan = read_table(folder / "plan.parquet", plan_schema(labels))
    found = check_texts(plan.set_index("sample_id")["prompt"], unseen, what="prompts of the plan", role="plan")
    for label in (label for label in labels if label in unseen):
        asked = plan[plan[label] == 1]
        if len(asked):
            found.append(Found(check="unseen_label", severity=LEAK, cohort="plan", split="train", label=label,
                               image_id=str(asked["sample_id"].iloc[0]),
                               words=f"the plan asks for '{label}', which is unseen, in {len(asked):,} images"))
    return found


def read_reports(file: Path, cohort: Cohort) -> pd.Series:
    """The reports of train and val images: str, indexed by image id.

    The CSV has a column ``image_id`` or ``study_id``, and one of ``TEXT``. Raises ``TailfillError`` for other columns,
    and for reports of nobody in the cohort.
    """
    header = read_header(file)
    key = next((name for name in ("image_id", "study_id") if name in header), None)
    text = next((name for name in TEXT if name in header), None)
    if key is None or text is None:
        raise TailfillError(f"{file}: has columns {', '.join(header[:8])}; wanted: image_id or study_id, and one of "
                            f"{', '.join(TEXT)}")
    rows = read_rows(file, [key, text])
    reports = pd.Series(rows.text(text).to_numpy(), index=rows.text(key).to_numpy(), dtype="str")
    learnt = cohort.split(*LEARNT)
    if not np.isin(cohort.frame[key].dropna().to_numpy(dtype=str), reports.index.to_numpy(dtype=str)).any():
        raise TailfillError(f"{file}: no {key} of it is one of {cohort.folder}; wanted: the reports of its images")
    images = learnt[["image_id", key]].dropna() if key != "image_id" else learnt[["image_id"]]
    joined = reports.groupby(level=0).agg("\n".join).reindex(images[key].to_numpy())
    return pd.Series(joined.to_numpy(), index=images["image_id"].to_numpy(), dtype="str").dropna()
