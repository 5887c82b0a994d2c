"""Label spaces, and which of their labels are scarce.

A label is 1, 0 or unknown (null); unknown stays unknown and counts neither as positive nor in a denominator. Names are
CXR-LT's wording, the order of a space is the order of the columns in every table. Groups are fixed once per cohort and
stored in its stamp: from the real images of the train split, unless the source knows them.

Not promised: that a label is true. NIH's labels are mined from reports (the NIH states over 90 % accuracy).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from cohort.errors import TailfillError, nearest
from cohort.tables import RESERVED
from cohort.vocabulary.findings import names_of

HEAD_ABOVE = 0.10
"""Prevalence above which a label is ``head`` (CXR-LT 2024, 2506.07984: head > 10 %, medium 1-10 %, tail < 1 %)."""
TAIL_BELOW = 0.01
"""Prevalence below which a label is ``tail`` (same source); both bounds themselves are ``medium``."""
GROUPS = ("head", "medium", "tail")
OWN = "own"
"""Name of a label space that consists of the labels that a user or a cohort brings."""
CONTROL = "control"
"""Group of labels that leave no visible sign, whatever their prevalence: a source that makes its images names them."""
MIN_POSITIVE_PATIENTS = 10
"""Fewer positive test patients give no interval: the bootstrap knows too little of their variance."""


@dataclass(frozen=True, kw_only=True)
class LabelSpace:
    """A fixed list of labels in column order, and how a source spells them."""

    name: str
    labels: tuple[str, ...]
    """Canonical names, in the order of the columns."""
    spellings: Mapping[str, str] = field(default_factory=dict)
    """A source's other spelling to the canonical name."""
    negative: tuple[str, ...] = ("No Finding",)
    """What a source writes in place of labels when none of them is present; it may be a label of its own as well."""

    def __post_init__(self) -> None:
        for label in self.labels:
            if label in RESERVED or label.startswith("logit_") or not label.strip():
                raise TailfillError(f"label space '{self.name}': '{label}' is a reserved column name, no label")
        if len(set(self.labels)) != len(self.labels) or not self.labels:
            raise TailfillError(f"label space '{self.name}': labels are {list(self.labels)}; wanted: distinct names")

    def canonical(self, word: str) -> str:
        """The canonical name of a source's ``word``; raises ``TailfillError`` naming the nearest when there is none."""
        label = self.spellings.get(word, word)
        if label not in self.labels:
            raise TailfillError(f"unknown label '{word}'{nearest(word, [*self.labels, *self.spellings])}")
        return label

    def vector(self, findings: str) -> dict[str, int]:
        """``Mass|Effusion`` as one 0 or 1 per label; raises ``TailfillError`` for unknown or contradictory text."""
        words = [word.strip() for word in findings.split("|")]
        if words == [""]:
            none = f", or '{self.negative[0]}'" if self.negative else ""
            raise TailfillError(f"no findings given; wanted: labels joined by '|'{none}")
        present = {self.canonical(word) for word in words if word not in self.negative or word in self.labels}
        if present - set(self.negative) and any(word in self.negative for word in words):
            raise TailfillError(f"'{findings}' holds both '{self.negative[0]}' and a label")
        return {label: int(label in present) for label in self.labels}


NIH_14 = LabelSpace(
    name="nih_14",
    labels=(
        "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia",
        "Infiltration", "Mass", "Nodule", "Pleural Thickening", "Pneumonia", "Pneumothorax",
    ),
    spellings={"Pleural_Thickening": "Pleural Thickening"},
)

NIH_CXR_LT = LabelSpace(
    name="nih_cxr_lt",
    labels=(*NIH_14.labels, "Pneumoperitoneum", "Pneumomediastinum", "Subcutaneous Emphysema", "Tortuous Aorta",
            "Calcification of the Aorta", "No Finding"),
    spellings=NIH_14.spellings,
)
"""NIH's images with the labels that CXR-LT's authors mined anew (Holste et al. 2022); No Finding is one of the 20."""

CXR_LT_2024 = LabelSpace(
    name="cxr_lt_2024",
    labels=(
        "Adenopathy", "Atelectasis", "Azygos Lobe", "Calcification of the Aorta", "Cardiomegaly", "Clavicle Fracture",
        "Consolidation", "Edema", "Emphysema", "Enlarged Cardiomediastinum", "Fibrosis", "Fissure", "Fracture",
        "Granuloma", "Hernia", "Hydropneumothorax", "Infarction", "Infiltration", "Kyphosis", "Lobar Atelectasis",
        "Lung Lesion", "Lung Opacity", "Mass", "Nodule", "Normal", "Pleural Effusion", "Pleural Other",
        "Pleural Thickening", "Pneumomediastinum", "Pneumonia", "Pneumoperitoneum", "Pneumothorax",
        "Pulmonary Embolism", "Pulmonary Hypertension", "Rib Fracture", "Round(ed) Atelectasis",
        "Subcutaneous Emphysema", "Support Devices", "Tortuous Aorta", "Tuberculosis",
    ),
    negative=(),
)
"""Task 1 of CXR-LT 2024 (2506.07984)."""
NEW_IN_2024 = (
    "Adenopathy", "Azygos Lobe", "Clavicle Fracture", "Fissure", "Granuloma", "Hydropneumothorax", "Infarction",
    "Kyphosis", "Lobar Atelectasis", "Pulmonary Embolism", "Pulmonary Hypertension", "Rib Fracture",
    "Round(ed) Atelectasis", "Tuberculosis",
)
"""Labels of task 1 that CXR-LT 2023 did not have."""
UNSEEN = ("Bulla", "Cardiomyopathy", "Hilum", "Osteopenia", "Scoliosis")
"""Labels of task 3: known in its development and test sets alone."""
CXR_LT_2024_GOLD = LabelSpace(
    name="cxr_lt_2024_gold", labels=tuple(k for k in CXR_LT_2024.labels if k not in NEW_IN_2024), negative=(),
)
"""Task 2: the 26 labels that are judged by hand."""
CXR_LT_2024_UNSEEN = LabelSpace(
    name="cxr_lt_2024_unseen", labels=(*CXR_LT_2024.labels, *UNSEEN), negative=(),
)
"""Task 3: the five unseen labels beside those that may be learnt."""
CXR_LT_2023 = LabelSpace(
    name="cxr_lt_2023",
    labels=tuple(sorted({"No Finding", *CXR_LT_2024_GOLD.labels} - {"Normal"})),
)
"""CXR-LT 2023: task 2's labels, with No Finding (no other label) in place of Normal (the report says so)."""
CHEXPERT = LabelSpace(
    name="chexpert",
    labels=("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
            "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other",
            "Fracture", "Support Devices"),
)
"""The CheXpert labeller's 14 (Irvin et al. 2019), of CheXpert and of MIMIC-CXR-JPG."""


PADCHEST = LabelSpace(name="padchest", labels=tuple(names_of("padchest")), negative=())
"""The findings of the vocabulary that PadChest has; of its own labels several may mean one of them."""
VINDR = LabelSpace(name="vindr", labels=tuple(names_of("vindr")),
                   spellings={own: name for name, (own,) in names_of("vindr").items() if own != name})
LABEL_SPACES: dict[str, LabelSpace] = {space.name: space for space in (
    NIH_14, NIH_CXR_LT, CXR_LT_2024, CXR_LT_2024_GOLD, CXR_LT_2024_UNSEEN, CXR_LT_2023, CHEXPERT, PADCHEST, VINDR)}


def prevalence(frame: pd.DataFrame, labels: Sequence[str]) -> dict[str, float]:
    """Share of positive among known labels, in [0, 1], per label; NaN where no image is known."""
    return {label: float(frame[label].mean()) if frame[label].notna().any() else float("nan") for label in labels}


def group_of(share: float) -> str:
    """``head``, ``medium`` or ``tail`` for a prevalence in [0, 1]."""
    return "head" if share > HEAD_ABOVE else "tail" if share < TAIL_BELOW else "medium"


def assign_groups(
    frame: pd.DataFrame, labels: Sequence[str], *, known: Mapping[str, str] | None = None
) -> dict[str, str]:
    """``head``, ``medium`` or ``tail`` per label, from the known labels of the rows with split ``train``.

    A group in ``known`` is taken as it is. For another label raises ``TailfillError`` when it is unknown in every train
    image: it has no prevalence, hence no group.
    """
    groups = {}
    for label, share in prevalence(frame[frame["split"] == "train"], labels).items():
        group = (known or {}).get(label)
        if group is None and share != share:
            raise TailfillError(f"label '{label}': unknown in every train image, so it has no group; leave it out")
        groups[label] = group or group_of(share)
    return groups


def count_labels(frame: pd.DataFrame, labels: Sequence[str], groups: Mapping[str, str]) -> pd.DataFrame:
    """One row per label and split: positive images and patients, and images whose label is known."""
    rows = []
    parts = {str(split): part for split, part in frame.groupby("split")}
    patients = {split: part["patient_id"].factorize()[0] for split, part in parts.items()}
    for label in labels:
        for split, part in parts.items():
            positive = (part[label] == 1).to_numpy(dtype=bool, na_value=False)
            rows.append({"label": label, "group": groups[label], "split": split, "n_images": int(positive.sum()),
                         "n_patients": len(np.unique(patients[split][positive])),
                         "n_known": int(part[label].notna().sum())})
    return pd.DataFrame(rows)
