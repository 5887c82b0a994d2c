"""Evidence from numbers: a space of features in which everything is known, for tests of the rules."""

import numpy as np
import pandas as pd

from synth.judging.evidence import Evidence, Images
from synth.judging.sanity import PixelStatistics

LABELS = ["Edema", "Hernia", "Mass"]
ENCODER = "space"


def images_of(
    features: np.ndarray, *, positive: dict[str, np.ndarray] | None = None, patients: np.ndarray | None = None,
    views: np.ndarray | None = None, pixels: np.ndarray | None = None,
) -> Images:
    """A set of images: ``positive`` says which rows carry a label, all else is known to be absent."""
    n = len(features)
    labels = pd.DataFrame(0, index=range(n), columns=LABELS, dtype="Int8")
    for label, rows in (positive or {}).items():
        labels.loc[rows, label] = 1
    readings = {ENCODER: features.astype(np.float32)}
    if pixels is not None:
        readings[PixelStatistics.name] = PixelStatistics().read(pixels)
    return Images(
        labels=labels, patients=np.array([f"p{i}" for i in range(n)]) if patients is None else patients,
        views=np.full(n, None, dtype=object) if views is None else views, readings=readings,
        load=lambda rows: np.zeros((len(rows), 8, 8), np.uint8),
    )


def evidence_of(
    made: np.ndarray, train: Images, val: Images, *, charged: str | np.ndarray = "Edema",
    scarce: tuple[str, ...] = ("Edema",), views: np.ndarray | None = None, standing: np.ndarray | None = None,
    pixels: np.ndarray | None = None,
) -> Evidence:
    """The case of images made with these features, each carrying what it is charged to."""
    charged_to = np.full(len(made), charged, dtype=object) if isinstance(charged, str) else charged
    carried = {label: np.flatnonzero(charged_to == label) for label in LABELS}
    patients = np.array([f"synthetic:{i}" for i in range(len(made))])
    return Evidence(
        made=images_of(made, positive=carried, patients=patients, views=views, pixels=pixels), charged_to=charged_to,
        scarce=list(scarce), train=train, val=val, encoders=(ENCODER,), standing=standing,
    )

