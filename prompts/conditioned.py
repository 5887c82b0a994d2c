"""Which images start from a real one, and from which: the image-conditioned rows of a plan (SDEdit, Meng et al. 2021).

::

    positive --------> the real image whose labels it copies, noised part of the way and denoised again
    its negative ----> a real image with these labels less the scarce ones: same view and sex, nearest in age

A generator that has seen eight hernias draws them vaguely; one that starts from a real hernia needs only to vary it.

The matched negative does not start from its positive's image: whatever of the finding outlives the noise would be
labelled as absent. Nor does it start from noise while its positive does not: "looks edited" would then mean "has the
finding", the very shortcut that matched negatives are there to close. It starts from a real image without the finding,
at the same strength and with the same noise, and only where no train image has its labels does it start from noise.

Sources are train images; the patient described is the source's own, as the picture shows that patient. Not promised:
that the result departs from its source (the strength decides), or that the finding outlives a high strength (the
filter finds that out).
"""

import numpy as np
import pandas as pd

from prompts.rows import FROM_NOISE, Positives, Starts, evenly, remove_scarce

ANY = "any"
"""In place of a sex, which is M, F or unknown."""


def choose_starts(
    train: pd.DataFrame, matrix: np.ndarray, vectors: np.ndarray, positives: Positives, *, labels: list[str],
    scarce: list[int], has_negative: np.ndarray, share: float,
) -> Starts:
    """What each positive and its negative start from; the same for the same arguments, as nothing is drawn.

    Args:
        train: the train images, N rows.
        matrix: bool (N, L), their labels, unknown as false.
        vectors: bool (P, L), the labels of the positives.
        positives: with their sources; one without a source starts from noise.
        labels: the L names.
        scarce: columns of the scarce labels.
        has_negative: bool (P,).
        share: of the positives with a source, 0 to 1, that start from it.
    """
    positive = _start_positives(positives, share)
    paired = np.flatnonzero((positive != FROM_NOISE) & has_negative)
    negative = np.full(len(positive), FROM_NOISE)
    without = train[[labels[j] for j in scarce]].eq(0).fillna(False).to_numpy(bool).all(axis=1)
    negative[paired] = _match(train, matrix, np.flatnonzero(without), sources=positive[paired],
                              wanted=remove_scarce(vectors[paired], scarce, labels))
    return Starts(positive=positive, negative=negative)


def _start_positives(positives: Positives, share: float) -> np.ndarray:
    """Of each class's rows with a source, and within it of each source's, ``share`` to within one; int64 (P,)."""
    rows = np.flatnonzero(positives.source >= 0)
    rows = rows[np.lexsort((positives.source[rows], positives.charged[rows]))]
    chosen = rows[evenly(len(rows), share)]
    start = np.full(len(positives.source), FROM_NOISE)
    start[chosen] = positives.source[chosen]
    return start


def _match(
    train: pd.DataFrame, matrix: np.ndarray, candidates: np.ndarray, *, sources: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
    """For each source the row of a candidate with the labels ``wanted``, bool (n, L), or ``FROM_NOISE``; int64 (n,).

    It has the source's view, and its sex where such a candidate exists; among those used least so far it is the
    nearest in age, so that a few images do not serve as negatives again and again.
    """
    chosen = np.full(len(sources), FROM_NOISE)
    if not len(sources):  # nearly every plan: no image starts from a real one
        return chosen
    view, sex = (train[key].fillna("").to_numpy(object) for key in ("view", "sex"))
    age = train["age"].to_numpy(np.float64)
    pools: dict[tuple[bytes, object, object], list[int]] = {}
    for row in candidates[np.isin(_as_scalars(matrix[candidates]), _as_scalars(wanted))]:
        for who in (sex[row], ANY):
            pools.setdefault((matrix[row].tobytes(), view[row], who), []).append(int(row))
    used = np.zeros(len(train), np.int64)
    for i, source in enumerate(sources):
        keys = [(wanted[i].tobytes(), view[source], who) for who in (sex[source], ANY)]
        pool = np.array(next((pools[key] for key in keys if key in pools), []), np.int64)
        if len(pool):
            fresh = pool[used[pool] == used[pool].min()]
            apart = np.abs(age[fresh] - age[source])
            chosen[i] = fresh[np.argmin(np.where(np.isnan(apart), np.inf, apart))]
            used[chosen[i]] += 1
    return chosen


def _as_scalars(vectors: np.ndarray) -> np.ndarray:
    """One scalar per row of bool (n, L), equal where the rows are: (n,)."""
    packed = np.packbits(vectors.astype(bool), axis=1)
    scalars: np.ndarray = np.ascontiguousarray(packed).view(f"V{packed.shape[1]}").ravel()
    return scalars
