"""Does an image lie where real images lie? Two distances in the space of the fidelity encoder, never the critic's.

- **Realism**: the squared Mahalanobis distance from the real train images, whose covariance is shrunk towards a sphere
  (Ledoit and Wolf 2004) because there are hardly more images than dimensions. It is the log-likelihood of the Gaussian
  that the Frechet distance compares, up to a constant: what the image itself adds to FID. It sees texture and gross
  anatomy.
- **Neighbourhood**: the distance to the k-th nearest real train image of the image's own kind. It sees an image that is
  a fair radiograph, and nowhere near those that show its finding.

The kind of an image is what it is charged to: real images of the kind are the carriers of that finding; for matched
negatives, the images that are known to show no scarce finding. A threshold is what a stated share of *held-back real
images of the kind* reach: validation images, and where these are too few for that share, train images as well, each
judged without its own patient. It is the split-conformal quantile (Vovk 2005), so the promise holds at any number of
images, if patients are alike; with less than that number there is no threshold, and nothing is judged. Not promised:
that what lies near real images is right; the features know no findings.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.linalg import solve_triangular
from sklearn.covariance import ledoit_wolf

from synth.judging.evidence import NEGATIVE, Evidence, Images
from synth.judging.reading import BLOCK
from synth.judging.rules import Criterion, reads

FIT_IMAGES = 10_000
"""Real images at most behind a fit, evenly over the rows: eight per dimension of the default encoder, and 100 MB."""
FOLDS = 5
"""Parts by patient into which train images are held back from a Gaussian."""
CHUNK = 1 << 20
"""Numbers of a block of deviations: 8 MB at most, whatever the sets' sizes."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Images that are compared with each other: carriers of one scarce finding, or images without any."""

    label: str
    made: np.ndarray
    """bool (n_made,)"""
    train: np.ndarray
    """bool (n_train,)"""
    val: np.ndarray
    """bool (n_val,)"""


def kinds(evidence: Evidence) -> list[Kind]:
    """Every kind that images were made for; each image made belongs to one."""
    found = [Kind(label=label, made=np.asarray(evidence.charged_to == label, dtype=bool),
                  train=evidence.train.carriers(label), val=evidence.val.carriers(label)) for label in evidence.scarce]
    if evidence.negatives.any():
        found.append(Kind(label=NEGATIVE, made=evidence.negatives, train=evidence.train.without(evidence.scarce),
                          val=evidence.val.without(evidence.scarce)))
    return found


@reads("encoder")
def realism(evidence: Evidence, *, passing: float = 0.95) -> list[Criterion]:
    """Squared Mahalanobis distance per dimension from the real train images; about 1 for those it was fitted to.

    Args:
        evidence: with an encoder's features.
        passing: share of the held-back real images of a kind that pass at least, 0 to 1.
    """
    train = features(evidence, evidence.train)
    gaussian = Gaussian.fit(thinned(train))
    made, val = (gaussian.distance(features(evidence, images)) for images in (evidence.made, evidence.val))

    @cache
    def held_back() -> np.ndarray:
        return _distance_across(train, evidence.train.patients)

    return [_criterion(kind, made, val=val[kind.val], train=lambda kind=kind: held_back()[kind.train],  # type: ignore[misc]
                       passing=passing, what="squared Mahalanobis distance per dimension from the real train images")
            for kind in kinds(evidence)]


@reads("encoder")
def neighbourhood(evidence: Evidence, *, passing: float = 0.95, k: int = 3) -> list[Criterion]:
    """Distance to the k-th nearest real train image of the kind, the image's own patient left out.

    Args:
        evidence: with an encoder's features.
        passing: share of the held-back real images of a kind that pass at least, 0 to 1.
        k: which neighbour.
    """
    criteria = []
    for kind in kinds(evidence):
        chosen = thinned(np.flatnonzero(kind.train))
        references, owners = features(evidence, evidence.train)[chosen], evidence.train.patients[chosen]

        def distance(images: Images, rows: np.ndarray, references: np.ndarray = references,
                     owners: np.ndarray = owners) -> np.ndarray:
            return np.concatenate([np.zeros(0), *(
                neighbour_distances(features(evidence, images)[part], references, k=k,
                                    patients=images.patients[part], reference_patients=owners)[:, -1]
                for part in blocks(rows))])

        score = np.full(len(evidence.made), np.nan)
        score[kind.made] = distance(evidence.made, np.flatnonzero(kind.made))
        criteria.append(_criterion(
            kind, score, val=distance(evidence.val, np.flatnonzero(kind.val)),
            train=lambda distance=distance, chosen=chosen: distance(evidence.train, chosen),  # type: ignore[misc]
            passing=passing, what=f"distance to neighbour {k} of {len(chosen):,} real train images of the kind"))
    return criteria


def _criterion(
    kind: Kind, score: np.ndarray, *, val: np.ndarray, train: Callable[[], np.ndarray], passing: float, what: str
) -> Criterion:
    """Scores of one kind against what held-back real images reach; infinite ones, without neighbours, do not count."""
    held_back, whose = val[np.isfinite(val)], "validation images"
    if held_back_quantile(held_back, passing) is None:
        of_train = train()
        held_back = np.concatenate([held_back, of_train[np.isfinite(of_train)]])
        whose = "validation images, and train images without their patients"
    threshold, reason = held_back_quantile(held_back, passing), None
    if threshold is None:
        reason = f"not judged: {len(held_back)} real images of the kind are too few for a share of {passing:g}"
    return Criterion(
        label=kind.label, score=score, applies=kind.made, threshold=threshold, at_least=False, reason=reason,
        source=f"{what}, which a share of {passing:g} of {len(held_back):,} real images of the kind keep ({whose})",
        n_positive=None if kind.label == NEGATIVE else len(held_back),
    )


def held_back_quantile(scores: np.ndarray, passing: float) -> float | None:
    """The score that a new image of the same kind does not exceed with a probability of at least ``passing``.

    It is the ceil((n + 1) passing)-th smallest of n; None where that is more than n.
    """
    rank = math.ceil(round((len(scores) + 1) * passing, 9))
    return None if rank > len(scores) else float(np.sort(scores)[rank - 1])


def features(evidence: Evidence, images: Images) -> np.ndarray:
    """float32 (n, d): what the main encoder reads; raises ``ValueError`` when there is none."""
    if not evidence.encoders:
        raise ValueError("realism: evidence holds no encoder's features")
    return images.read(evidence.encoders[0])


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """A normal distribution with a shrunk covariance."""

    mean: np.ndarray
    """float64 (d,)"""
    root: np.ndarray
    """float64 (d, d), lower triangular; its square is the covariance."""

    @classmethod
    def fit(cls, samples: np.ndarray) -> "Gaussian":
        """Fit to (n, d), n >= 2. Features that never vary get a millionth of the mean variance at least."""
        samples = samples.astype(np.float64)
        covariance = ledoit_wolf(samples)[0]
        floor = max(1e-6 * float(np.trace(covariance)) / len(covariance), np.finfo(np.float64).tiny)
        return cls(mean=samples.mean(axis=0), root=np.linalg.cholesky(covariance + floor * np.eye(len(covariance))))

    def distance(self, samples: np.ndarray) -> np.ndarray:
        """Squared Mahalanobis distance per dimension: (n, d), which may lie on disk, to float64 (n,)."""
        step, found = max(1, CHUNK // len(self.mean)), np.empty(len(samples))
        for start in range(0, len(found), step):
            block = solve_triangular(self.root, (samples[start: start + step] - self.mean).T, lower=True)
            found[start: start + step] = (block**2).mean(axis=0)
        return found


def _distance_across(train: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Each train image's distance from a Gaussian of other patients; infinite where there are too few patients."""
    names, owner = np.unique(patients.astype(str), return_inverse=True)
    distance = np.full(len(train), np.inf)
    for fold in range(FOLDS if len(names) >= 2 * FOLDS else 0):
        inside = owner % FOLDS == fold
        distance[inside] = Gaussian.fit(train[thinned(np.flatnonzero(~inside))]).distance(train[inside])
    return distance


def neighbour_distances(
    queries: np.ndarray, references: np.ndarray, *, k: int, patients: np.ndarray, reference_patients: np.ndarray
) -> np.ndarray:
    """Euclidean distances to the k nearest references of other patients, ascending.

    Args:
        queries: float (n, d).
        references: float (m, d).
        k: neighbours.
        patients, reference_patients: (n,) and (m,); references of a query's patient are not its neighbours.

    Returns:
        float64 (n, k); infinite where there are fewer than k. Memory beside the sets, which may lie on disk: a block of
        either, and one of distances.
    """
    nearest = np.full((len(queries), k), np.inf)
    if not len(references):
        return nearest
    centre = references.mean(axis=0)
    _, owner = np.unique(np.concatenate([patients, reference_patients]).astype(str), return_inverse=True)
    for rows in blocks(np.arange(len(references))):
        near = references[rows] - centre
        squares = (near**2).sum(axis=1)
        for some in blocks(np.arange(len(queries))):
            block = queries[some] - centre
            squared = (block**2).sum(axis=1)[:, None] + squares - 2 * (block @ near.T)
            squared[owner[some, None] == owner[len(queries) + rows]] = np.inf
            found = np.concatenate([nearest[some], squared], axis=1)
            nearest[some] = np.sort(np.partition(found, k - 1, axis=1)[:, :k], axis=1)
    return np.sqrt(np.maximum(nearest, 0))


def blocks(rows: np.ndarray) -> list[np.ndarray]:
    """The rows in parts of ``BLOCK`` at most; none for none."""
    return [rows[start: start + BLOCK] for start in range(0, len(rows), BLOCK)]


def thinned(rows: np.ndarray, *, at_most: int = FIT_IMAGES) -> np.ndarray:
    """At most that many of the rows, evenly spaced; all of them where there are no more."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), at_most)).astype(int)]
