"""Near-duplicates within the images made: the better one stays.

Two images are near-duplicates when they lie closer together, in the space of the fidelity encoder, than hardly any
real image lies to the nearest one of another patient. Among images still standing, the better one, the one more
likely among real images (``realism.Gaussian``), is decided first; an image is dropped when it lies that close to a
better one *that stays*. So of a chain of duplicates every second one may stay, and what stays does not depend on the
order of the rows.

Only images of one kind are compared, those charged to the same finding, and matched negatives among themselves. A
negative shares noise and patient with its positive on purpose: dropping it for the resemblance would undo the pair.
Real distances are those of all train images to each other, many more than the images of a kind; the more images, the
nearer the nearest, so the threshold errs towards keeping. Not promised: that what stays is as diverse as real images
are; coverage and recall say that (synth/measuring/manifold.py).
"""

import numpy as np
from scipy.spatial.distance import cdist

from synth.judging.evidence import Evidence
from synth.judging.realism import Gaussian, blocks, features, kinds, neighbour_distances, thinned
from synth.judging.rules import Criterion, reads

REAL_QUERIES = 2_000
"""Real images at most whose nearest neighbours give the threshold, evenly over the rows; a quantile of 1 % is then
known to a fifth of itself."""
DECIDED = 256
"""Images that are decided together."""
LEAST_REAL = 100
"""Real images with a neighbour below which nothing is judged: a quantile of 1 % would be a guess."""


@reads("encoder")
def diversity(evidence: Evidence, *, quantile: float = 0.01) -> list[Criterion]:
    """Distance to the nearest better image of the kind that stays; the best image of each kind is not judged.

    Args:
        evidence: with an encoder's features; images that an earlier rule dropped neither stay nor are judged.
        quantile: share of the real images that lie closer to another patient's than the threshold, 0 to 1.
    """
    made, distances = features(evidence, evidence.made), _real_distances(evidence)
    enough = len(distances) >= LEAST_REAL
    threshold = float(np.quantile(distances, quantile)) if enough else None
    score = np.full(len(made), np.inf)
    if threshold is not None:
        quality = -Gaussian.fit(thinned(features(evidence, evidence.train))).distance(made)
        for kind in kinds(evidence):
            rows = np.flatnonzero(kind.made & evidence.still_standing)
            ranked = rows[np.lexsort((*made[rows, :3].T, -quality[rows]))]
            score[ranked] = distance_to_better(made, ranked, threshold=threshold)
    return [Criterion(
        label=None, score=score, applies=np.isfinite(score), threshold=threshold, at_least=True,
        source=f"distance to the nearest better image that stays; quantile {quantile:g} of the distances of "
               f"{len(distances):,} real train images to the nearest one of another patient",
        reason=None if enough else f"not judged: {len(distances)} real train images with a neighbour of another "
                                   f"patient; wanted: {LEAST_REAL}",
    )]


def _real_distances(evidence: Evidence) -> np.ndarray:
    """float64 (n,): distance of real train images to the nearest image of another patient."""
    train = features(evidence, evidence.train)
    rows = thinned(np.arange(len(train)), at_most=REAL_QUERIES)
    nearest = neighbour_distances(train[rows], train, k=1, patients=evidence.train.patients[rows],
                                  reference_patients=evidence.train.patients)[:, 0]
    return nearest[np.isfinite(nearest)]


def distance_to_better(samples: np.ndarray, ranked: np.ndarray, *, threshold: float) -> np.ndarray:
    """The distance of each image to the nearest earlier one that stays; an image stays unless that is below threshold.

    Args:
        samples: features, float (m, d); may lie on disk, from where blocks of rows are taken.
        ranked: the rows to look at, (n,), the best first.
        threshold: in the unit of the features.

    Returns:
        float64 (n,); infinite for the first.
    """
    nearest = np.full(len(ranked), np.inf)
    staying = np.zeros(0, dtype=int)
    for start in range(0, len(ranked), DECIDED):
        block = samples[ranked[start: start + DECIDED]]
        for part in blocks(ranked[staying]):
            near = _nearest(block, samples[part])
            nearest[start: start + len(block)] = np.minimum(nearest[start: start + len(block)], near)
        within, chosen = cdist(block, block), np.zeros(len(block), dtype=bool)
        for row in range(len(block)):
            nearest[start + row] = within[row, chosen].min(initial=nearest[start + row])
            chosen[row] = nearest[start + row] >= threshold
        staying = np.append(staying, start + np.flatnonzero(chosen))
    return nearest


def _nearest(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
    """float64 (n,): distance to the nearest reference; infinite where there is none."""
    return neighbour_distances(queries, references, k=1, patients=np.arange(len(queries)),
                               reference_patients=-1 - np.arange(len(references)))[:, 0]
