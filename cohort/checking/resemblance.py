"""How alike are two patients of this cohort? Where all resemble one another, only more than that is a copy.

Real chests at .9 are one picture; procedural ones, tight crops of one organ, or a cohort from one positioning device
may be far more alike. So what is ordinary is measured: for some images the best correlation with an image of another
group, on Fisher's scale (arctanh), where its spread is about even. A pair counts as one picture from a threshold on
that lies ``SPREADS`` robust standard deviations above the median; duplicates do not move either, as long as fewer than
half of the images have one.

Not promised: a threshold that finds every crop in such a cohort; the check says how high it had to be.
"""

import numpy as np
from numpy.typing import NDArray

from cohort.checking.twins import refine, unit, windows

ASKED, AMONG = 200, 4096
"""Images whose nearest other patient is looked for, and among how many; evenly over all."""
SPREADS = 5.0
"""Robust standard deviations above the median; chosen by hand. 8,506 NIH images: .85, less than the .9 at which none is
paired with another patient's; 6,000 phantoms: .99."""
FEWEST = 50
"""Images below which nothing can be called ordinary."""
MAD_TO_SD = 1.4826
ONE = 1 - 1e-7
"""Correlation of equal pictures, below 1 so that arctanh has a value."""


def ordinary(details: NDArray[np.int8], *, usable: NDArray[np.bool_], groups: NDArray[np.intp]) -> NDArray[np.float64]:
    """NCC (-1 to 1) of up to ``ASKED`` images with the most similar one of another group: float64 (m,).

    Arrays as in ``twins.find_near``; an image without another group among those compared is left out.
    """
    rows = np.flatnonzero(usable)
    asked, among = (rows[np.unique(np.linspace(0, len(rows) - 1, min(n, len(rows))).astype(int))]
                    for n in (ASKED, AMONG))
    if not len(rows):
        return np.zeros(0)
    gallery = unit(details[among].astype(np.float32))
    scores = unit(details[asked].astype(np.float32)) @ gallery.T
    scores[groups[asked][:, None] == groups[among]] = -np.inf
    best = scores.argmax(axis=1)
    return np.array([refine(details[one], details[among[other]], windows()[0])
                     for at, (one, other) in enumerate(zip(asked.tolist(), best.tolist(), strict=True))
                     if np.isfinite(scores[at, other])])


def threshold_above(seen: NDArray[np.float64]) -> float:
    """NCC that different patients hardly reach, where ``seen``, float64 (m,), is ordinary; -1 where m is too small."""
    if len(seen) < FEWEST:
        return -1.0
    scale = np.arctanh(np.clip(seen, -ONE, ONE))
    middle = np.median(scale)
    return float(np.tanh(middle + SPREADS * MAD_TO_SD * np.median(np.abs(scale - middle))))
