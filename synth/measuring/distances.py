"""Distances between two sets of features: FID and KID, in float64, with states that merge exactly.

- **FID** (Heusel 2017) needs of a set only its size, mean and covariance: ``Moments``. Those of parts merge to those of
  the whole (Chan, Golub and LeVeque 1979), whichever rank or shard read which part; the FIDs of parts do not, for FID
  is biased upward at small N.
- **KID** (Binkowski 2018) is unbiased at any N and stands in where images are few.

``Moments`` holds the covariance's square root R, not the covariance: parts merge by a QR of their roots one above the
other, so the sums' squares, in which float64 loses half its digits, are never formed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce

import numpy as np
import scipy.linalg

N_SUBSETS = 50
"""Random subsets for KID's spread; its own relative error is then about 1 / sqrt(2 x 50) = 10 %."""
CHUNK = 4096
"""Rows that are turned into float64 at a time, for moments."""
TILE = 4_000_000
"""Pairs whose kernel is held at a time, 32 MB."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """All that FID asks of a set: how many, where, and how wide."""

    n: int
    """Images."""
    mean: np.ndarray
    """float64 (d,)."""
    root: np.ndarray
    """float64 (min(n, d), d), upper triangular: root^T root is the scatter, the sum of (x - mean)(x - mean)^T."""

    @classmethod
    def of(cls, features: np.ndarray) -> "Moments":
        """The moments of features, (n, d) with n >= 1; raises ``ValueError`` for another shape."""
        if features.ndim != 2 or not len(features):
            raise ValueError(f"Moments.of: features of shape {features.shape}; wanted: (n, d), n >= 1")
        parts = (cls(n=len(chunk), mean=chunk.mean(axis=0), root=_triangle(chunk - chunk.mean(axis=0)))
                 for chunk in _chunks(features, CHUNK))
        return reduce(cls.merge, parts)

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both sets together; raises ``ValueError`` for another number of features."""
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"Moments.merge: {len(self.mean)} and {len(other.mean)} features; wanted: the same")
        n = self.n + other.n
        shift = other.mean - self.mean
        between = np.sqrt(self.n * other.n / n) * shift
        return Moments(n=n, mean=self.mean + shift * (other.n / n),
                       root=_triangle(np.concatenate([self.root, other.root, between[None]])))


def frechet_distance(*, real: np.ndarray | Moments, fake: np.ndarray | Moments) -> float:
    """FID of two sets: |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), covariances with n - 1.

    With S = R^T R, the eigenvalues of S1 S2 are the squared singular values of R1 R2^T: exact at any rank, and without
    the square root of a matrix.

    Args:
        real, fake: features (n, d) and (m, d), or their moments; n and m >= 2, and need not be equal.

    Returns:
        The distance in squared feature units, >= 0 up to rounding. Symmetric.

    Raises:
        ValueError: other shapes or fewer images.
    """
    one, two = (x if isinstance(x, Moments) else Moments.of(x) for x in (real, fake))
    if one.mean.shape != two.mean.shape or min(one.n, two.n) < 2:
        raise ValueError(f"frechet_distance: {one.n} real images of {len(one.mean)} features and {two.n} fake ones of "
                         f"{len(two.mean)}; wanted: 2 or more of either, with as many features")
    root_one, root_two = (x.root / np.sqrt(x.n - 1) for x in (one, two))
    cross = np.linalg.svd(root_one @ root_two.T, compute_uv=False).sum()
    return float(((one.mean - two.mean) ** 2).sum() + (root_one**2).sum() + (root_two**2).sum() - 2 * cross)


def kernel_distance(*, real: np.ndarray, fake: np.ndarray) -> float:
    """KID: the unbiased squared MMD with the kernel (x.y / d + 1)^3 (Binkowski 2018, section 4).

    Args:
        real, fake: (n, d) and (m, d), n and m >= 2.

    Returns:
        The estimate; may be negative, expectation 0 for equal distributions. Symmetric.

    Raises:
        ValueError: other shapes or fewer images.
    """
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1] or min(len(real), len(fake)) < 2:
        raise ValueError(f"kernel_distance: features are real {real.shape} and fake {fake.shape}; wanted: (n, d) and "
                         "(m, d), n and m >= 2")
    real, fake = real.astype(np.float64), fake.astype(np.float64)
    return _within(real) + _within(fake) - 2 * _kernel_sum(real, fake) / (len(real) * len(fake))


def kernel_spread(
    *, real: np.ndarray, fake: np.ndarray, subset: int, rng: np.random.Generator, n_subsets: int = N_SUBSETS
) -> float:
    """Standard deviation of KID over random subsets of ``subset`` images per side, drawn without replacement.

    Raises:
        ValueError: ``subset`` below 2, or not smaller than both sets: the subsets would all be the same.
    """
    if not 2 <= subset < min(len(real), len(fake)):
        raise ValueError(f"kernel_spread: subset {subset}; wanted: 2 to {min(len(real), len(fake)) - 1}")
    values = [
        kernel_distance(real=real[rng.choice(len(real), subset, replace=False)],
                        fake=fake[rng.choice(len(fake), subset, replace=False)])
        for _ in range(n_subsets)
    ]
    return float(np.std(values, ddof=1))


def _chunks(features: np.ndarray, step: int) -> Iterator[np.ndarray]:
    """The rows in order as float64, at most ``step`` at a time."""
    for start in range(0, len(features), step):
        yield features[start: start + step].astype(np.float64)


def _triangle(rows: np.ndarray) -> np.ndarray:
    """R of (k, d), (min(k, d), d), with R^T R = rows^T rows."""
    return np.asarray(scipy.linalg.qr(rows, mode="r", check_finite=False)[0][: rows.shape[1]])


def _kernel_sum(x: np.ndarray, y: np.ndarray) -> float:
    """The kernel summed over all pairs, without ever holding all of them."""
    step = max(1, TILE // len(y))
    return float(sum(((chunk @ y.T / x.shape[1] + 1.0) ** 3).sum() for chunk in _chunks(x, step)))


def _within(x: np.ndarray) -> float:
    """The kernel's mean over pairs of two different images of one set."""
    own = (((x**2).sum(axis=1) / x.shape[1] + 1.0) ** 3).sum()
    return (_kernel_sum(x, x) - float(own)) / (len(x) * (len(x) - 1))
