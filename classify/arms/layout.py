"""The slots: each real training image once, and those added for scarce labels, before anything but repeats fills them.

Rivals are compared in the same slots, so the layout is drawn first, from a random generator that the arms of one seed
share, and whatever an arm puts into a slot later replaces a repeat of a real image. For every added slot with a finding
there is one without it: a real image of the very labels that a matched negative has. Negatives keep "looks synthetic"
from meaning "is rare".

Scarce are the tail and, in a cohort that has some, the controls: labels without a visible sign, which are treated
alike so that a gain on them can be told for what it is. Not promised: that a label without a positive gets slots.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from classify.slots import label_matrix
from cohort.errors import TailfillError
from cohort.tables import Cohort
from prompts.rows import remove_scarce

NEGATIVE = "negative"
HARMONISED = "harmonised"
"""Kind of a real image's own slot that holds the image as the generator's autoencoder gives it back."""
KINDS = ("real", HARMONISED, "duplicate", NEGATIVE, "synthetic", "synthetic_negative", "new_real", "reconstructed")


@dataclass(frozen=True, kw_only=True)
class ArmConfig:
    """How many slots the tail gets, and what stands in them."""

    slots_per_class: int = 100
    """Slots added for each scarce label in `duplicate` and all that share its slots; 0 or more."""
    negatives: float = 1.0
    """Slots without the finding per added slot with it, 0 to 1 (0: none)."""
    synthetic_share: float = 0.5
    """Share of the added slots of each label, and of the negative ones, that hold a synthetic image, 0 to 1."""
    synthetic_loss_weight: float = 0.3
    """Loss weight of a slot with a synthetic image, above 0 (DiffuLT, NeurIPS 2024, uses .3); real ones have 1."""
    oversample_threshold: float = 0.05
    """`oversample`: labels rarer than this share of the training images are repeated, above 0 to 1."""

    def __post_init__(self) -> None:
        ranges = {"slots_per_class": (0, math.inf), "negatives": (0, 1), "synthetic_share": (0, 1),
                  "synthetic_loss_weight": (1e-6, math.inf), "oversample_threshold": (1e-6, 1)}
        for key, (low, high) in ranges.items():
            if not low <= getattr(self, key) <= high:
                raise TailfillError(f"arm.{key} is {getattr(self, key)}; wanted: {low:g} to {high:g}")


def real_slots(images: Any, kind: str) -> pd.DataFrame:
    """Slots that hold real images, by their ids.

    Beside the columns of an arm's table: ``kind`` (one of ``KINDS``), ``charged_to``, ``source`` and ``unfilled`` (a
    repeat that waits for an image), which are for filling and counting only.
    """
    ids = pd.Series(np.asarray(images, dtype=object), dtype="str")
    blank = pd.Series([None] * len(ids), dtype="str")
    return pd.DataFrame({"image_id": ids, "sample_id": blank, "labels_from": blank, "loss_weight": 1.0, "phase": 1,
                         "kind": kind, "charged_to": blank, "source": blank, "unfilled": False})


def tail_slots(cohort: Cohort, config: ArmConfig, rng: np.random.Generator) -> pd.DataFrame:
    """The slots added for scarce labels, filled with real images; the same for every arm that gets an equal ``rng``.

    Columns: image_id; kind (``duplicate`` or ``negative``); charged_to (the label, or ``negative``); source (the
    image that the slot stands for: itself, or for a negative the positive that it matches). A label's images are dealt
    evenly; a negative is a training image that carries its source's labels less the scarce ones, of its source's view
    where there is one, dealt evenly too; where no image carries them there is no slot.
    """
    train = cohort.split("train")
    targets = label_matrix(train, cohort.labels)
    rows, charged = np.zeros(0, dtype=np.int64), list[str]()
    for label in cohort.scarce:
        images = np.flatnonzero(targets[:, cohort.labels.index(label)] == 1)
        dealt = np.resize(rng.permutation(images), config.slots_per_class if len(images) else 0)
        rows, charged = np.concatenate([rows, dealt]), charged + [label] * len(dealt)
    ids = train["image_id"].to_numpy()
    positives = real_slots(ids[rows], "duplicate").assign(charged_to=charged, source=ids[rows])
    steps = np.floor(np.arange(len(rows) + 1) * config.negatives)  # a ratio of .5 asks for every second one
    pairs = _negatives(train, targets, rows[np.diff(steps) > 0], cohort, rng)
    negatives = real_slots(ids[pairs[:, 1]], NEGATIVE).assign(charged_to=NEGATIVE, source=ids[pairs[:, 0]])
    return pd.concat([positives, negatives], ignore_index=True)


def balanced_slots(cohort: Cohort, rng: np.random.Generator) -> pd.DataFrame:
    """About as many slots as real training images, an equal number for each label, filled with its positives.

    Class-balanced sampling (Kang et al. 2020, 1910.09217, equation 1 with q = 0) where images have several labels: a
    label uniformly, then one of its positives uniformly, so that an image's share is the sum of 1 / n_k over its labels
    (Wu et al. 2020, 2007.09654, section 3.1). Here they are dealt, not drawn: a label's images come up equally often,
    give or take one. Images that are positive for nothing stand for one label more, or no head would meet them; a label
    without a positive has no slots.
    """
    train = cohort.split("train")
    positive = label_matrix(train, cohort.labels) == 1
    members = [np.flatnonzero(column) for column in [*positive.T, ~positive.any(axis=1)] if column.any()]
    count = math.ceil(len(train) / len(members))
    rows = np.concatenate([np.resize(rng.permutation(images), count) for images in members])
    return real_slots(train["image_id"].to_numpy()[rows], "duplicate")


def _negatives(
    train: pd.DataFrame, targets: np.ndarray, sources: np.ndarray, cohort: Cohort, rng: np.random.Generator
) -> np.ndarray:
    """Pairs (source, training image with its labels less the scarce ones), as row numbers, int64 (n, 2).

    Nothing left means `Normal` where a cohort has that label, as in the plan's negatives; an unknown stays unknown.
    """
    vectors = np.nan_to_num(targets, nan=-1).astype(np.int8)
    scarce = [cohort.labels.index(label) for label in cohort.scarce]
    wanted = vectors[sources]
    wanted[:, scarce] = np.minimum(wanted[:, scarce], 0)
    wanted[remove_scarce(vectors[sources] == 1, scarce, cohort.labels)] = 1
    views = train["view"].fillna("").tolist()
    candidates: dict[tuple[bytes, str | None], list[int]] = {}
    for row in rng.permutation(len(train)):
        for view in (views[row], None):
            candidates.setdefault((vectors[row].tobytes(), view), []).append(int(row))
    used: dict[tuple[bytes, str | None], int] = {}
    pairs: list[tuple[int, int]] = []
    for source, vector in zip(sources, wanted, strict=True):
        key: tuple[bytes, str | None] = (vector.tobytes(), views[source])
        key = key if key in candidates else (vector.tobytes(), None)
        if key in candidates:
            used[key] = used.get(key, -1) + 1
            pairs.append((int(source), candidates[key][used[key] % len(candidates[key])]))
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)
