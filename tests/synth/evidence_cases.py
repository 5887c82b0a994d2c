"""Evidence for tests of rules: any labels and readings, and pixels where a rule loads them."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from synth.judging.evidence import Evidence, Images
from synth.judging.rules import Criterion


def images_of(
    labels: Mapping[str, Sequence[int | None]], *, readings: Mapping[str, np.ndarray] | None = None,
    patients: Sequence[object] | None = None, views: Sequence[object] | None = None, pixels: np.ndarray | None = None,
) -> Images:
    """A set of images; each its own patient and PA where nothing is said."""
    frame = pd.DataFrame({label: pd.array(list(values), dtype="Int8") for label, values in labels.items()})
    n = len(frame)
    held = np.zeros((n, 4, 4), np.uint8) if pixels is None else pixels
    return Images(
        labels=frame, patients=np.array([f"p{i}" for i in range(n)] if patients is None else patients, dtype=object),
        views=np.array(["PA"] * n if views is None else views, dtype=object),
        readings={name: np.asarray(rows, dtype=np.float32) for name, rows in (readings or {}).items()},
        load=lambda rows: held[list(rows)],
    )


def case_of(
    *, made: Images, charged_to: Sequence[str], train: Images, val: Images | None = None,
    scarce: Sequence[str] | None = None, critics: Sequence[str] = (), encoders: Sequence[str] = (),
) -> Evidence:
    """Evidence; validation is train, and every label scarce, where nothing is said."""
    return Evidence(made=made, charged_to=np.array(charged_to, dtype=object), train=train, val=val or train,
                    scarce=list(made.labels.columns if scarce is None else scarce), critics=tuple(critics),
                    encoders=tuple(encoders))


def standing_rule(evidence: Evidence) -> list[Criterion]:
    """A rule for tests, of those still standing."""
    return [Criterion(label=None, score=np.zeros(len(evidence.made)), applies=evidence.still_standing, threshold=0.0,
                      at_least=True, source="test")]
