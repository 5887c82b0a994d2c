"""What a rule may look at: the images made and the real ones, with everything that was read from them in one pass.

Pixels are not among it: 50,000 images would fill the memory. A rule that needs them asks ``Images.load`` for a few
rows. Nothing of the test split is ever here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

NEGATIVE = "negative"
"""``charged_to`` of a matched negative."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """One set of images: n rows throughout, in one order."""

    labels: pd.DataFrame
    """One column per label: 1, 0 or null. For images made, the findings asked for."""
    patients: np.ndarray
    """The patient of each image, (n,). An image made is its own patient unless it was drawn from a real one."""
    views: np.ndarray
    """``PA``, ``AP``, another view or None, (n,). For images made, the view asked for."""
    readings: Mapping[str, np.ndarray]
    """Name of a reader to what it read: float32 (n, width). Which readers have read which set: synth/filter.py."""
    load: Callable[[Sequence[int]], np.ndarray]
    """Row numbers to pixels: uint8 (k, size, size), at the size of the images made."""

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, reader: str) -> np.ndarray:
        """What a reader read; raises ``ValueError`` naming the readers that there are."""
        if reader not in self.readings:
            raise ValueError(f"nothing was read by '{reader}'; there are: {', '.join(sorted(self.readings)) or 'none'}")
        return self.readings[reader]

    def carriers(self, label: str) -> np.ndarray:
        """bool (n,): images known to show a finding."""
        return np.asarray(self.labels[label].eq(1).fillna(False), dtype=bool)

    def without(self, labels: Sequence[str]) -> np.ndarray:
        """bool (n,): images known to show none of the findings."""
        return np.asarray(self.labels[list(labels)].eq(0).fillna(False).all(axis=1), dtype=bool)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The case of all images made."""

    made: Images
    charged_to: np.ndarray
    """The scarce label each image pays for, or ``negative``; (n,)."""
    scarce: list[str]
    """Labels that the plan pays for, in the cohort's order."""
    train: Images
    val: Images
    watched: tuple[str, ...] = ()
    """Further labels that are rare (the tail group), whether the plan pays for them or not."""
    controls: tuple[str, ...] = ()
    """Labels without a visible sign, that any gain on them be known for an artefact."""
    critics: tuple[str, ...] = ()
    """Readings that hold a critic's logits, (n, n_labels) in the order of the labels."""
    folds: Mapping[str, Images] = field(default_factory=dict)
    """Readings of the images made that hold an out-of-fold critic's logits, to the real images of train and validation
    that it has not learnt from, which hold them too."""
    encoders: tuple[str, ...] = ()
    """Readings that hold a fidelity encoder's features; the first is the one that rules use."""
    reconstructed: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Name of an encoder to its features of the train images as the generator's autoencoder draws them, row by row,
    float32 (n_train, d); empty where there are none."""
    noise: np.ndarray | None = None
    """The noise each image made began from, int64 (n,): a matched negative has its positive's, and one that starts from
    a real image -1. None where nobody knows."""
    standing: np.ndarray | None = None
    """bool (n,): images made that no rule before this one has dropped; None before the first."""

    @property
    def unasked(self) -> list[str]:
        """Labels that an image must not show unless it was asked for them: ``scarce``, then ``watched``."""
        return list(dict.fromkeys([*self.scarce, *self.watched]))

    @property
    def negatives(self) -> np.ndarray:
        """bool (n,): the images made that are matched negatives."""
        return np.asarray(self.charged_to == NEGATIVE, dtype=bool)

    @property
    def still_standing(self) -> np.ndarray:
        """bool (n,): ``standing``, all of them before the first rule."""
        return np.ones(len(self.made), dtype=bool) if self.standing is None else self.standing
