"""Label spaces, and which of their labels are scarce.

A label is 1, 0 or unknown (null); unknown stays unknown and counts neither as positive nor in a denominator. Names are
CXR-LT's wording, the order of a space is the order of the columns in every table. Groups are fixed once per cohort and
stored in its stamp: from the real images of the train split, unless the source knows them.

Not promised: that a label is true. NIH's labels are mined from reports (the NIH states over 90 % accuracy).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from cohort.errors import TailfillError, nearest
from cohort.tables import RESERVED

HEAD_ABOVE = 0.10
"""Prevalence above which a label is ``head`` (CXR-LT 2024, 2506.07984: head > 10 %, medium 1-10 %, tail < 1 %)."""
TAIL_BELOW = 0.01
"""Prevalence below which a label is ``tail`` (same source); both bounds themselves are ``medium``."""
GROUPS = ("head", "medium", "tail")
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
    """What a source writes in place of labels when none of them is present."""

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
            raise TailfillError(f"no findings given; wanted: labels joined by '|', or '{self.negative[0]}'")
        present = {self.canonical(word) for word in words if word not in self.negative}
        if present and any(word in self.negative for word in words):
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

LABEL_SPACES: dict[str, LabelSpace] = {space.name: space for space in (NIH_14,)}


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

    A group in ``known`` is taken as it is. Raises ``TailfillError`` for a label that is unknown in every train image:
    it has no prevalence, hence no group.
    """
    groups = {}
    for label, share in prevalence(frame[frame["split"] == "train"], labels).items():
        if share != share:
            raise TailfillError(f"label '{label}': unknown in every train image, so it has no group; leave it out")
        groups[label] = (known or {}).get(label) or group_of(share)
    return groups


def count_labels(frame: pd.DataFrame, labels: Sequence[str], groups: Mapping[str, str]) -> pd.DataFrame:
    """One row per label and split: positive images and patients, and images whose label is known."""
    rows = []
    for label in labels:
        for split, part in frame.groupby("split"):
            positive = part[part[label] == 1]
            rows.append({"label": label, "group": groups[label], "split": split, "n_images": len(positive),
                         "n_patients": positive["patient_id"].nunique(), "n_known": int(part[label].notna().sum())})
    return pd.DataFrame(rows)
