"""Precision, recall, density and coverage: whether synthetic images look real, and whether they show all that is real.

A set's manifold is the union of balls around its images, each as wide as the way to the k-th nearest other image.

- **Precision** (Kynkaanniemi 2019): the share of fakes inside the real manifold. **Recall**: the share of real images
  inside the fakes' manifold. Fakes that drop a mode have high precision and low recall.
- **Density** (Naeem 2020): in how many real balls a fake lies, divided by k: 1 for equal distributions, not bounded by
  1, and not fooled by one real outlier's wide ball. **Coverage**: the share of real balls that hold a fake.

All four depend on N and on k, so only values at the same N and k compare, and each needs its floor. Not promised: that
a fake inside the manifold shows its finding, or is not a copy of a training image: a copy has the best precision.
"""

from collections.abc import Iterator

import numpy as np

NEIGHBOURS = 5
"""k of Naeem 2020 (section 5), for all four; Kynkaanniemi 2019 use 3."""
TILE = 4_000_000
"""Distances held at a time, 32 MB."""


def manifold(*, real: np.ndarray, fake: np.ndarray, k: int = NEIGHBOURS) -> dict[str, float]:
    """The four numbers, from two sets of features.

    An image on the rim of a ball counts as inside, as in Kynkaanniemi 2019 (equation 1). Memory: both sets in float64,
    and ``TILE`` distances.

    Args:
        real, fake: (n, d) and (m, d), n and m > k; need not be equal.
        k: which neighbour tells how wide a ball is; 1 or more.

    Returns:
        ``precision``, ``recall`` and ``coverage`` in [0, 1], ``density`` in [0, n / k].

    Raises:
        ValueError: other shapes, fewer images, or k below 1.
    """
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1] or not 1 <= k < min(len(real), len(fake)):
        raise ValueError(f"manifold: features are real {real.shape} and fake {fake.shape}, k {k}; wanted: (n, d) and "
                         "(m, d), 1 <= k < n and m")
    centre = real.mean(axis=0, dtype=np.float64)  # distances stay, and their rounding shrinks
    real, fake = real - centre, fake - centre
    real_radii, fake_radii = radii(real, k), radii(fake, k)
    precise = np.zeros(len(fake), dtype=bool)
    recalled, covered, held = 0, 0, 0
    for rows, squares in _tiles(real, fake):
        inside = squares <= real_radii[rows, None]
        precise |= inside.any(axis=0)
        covered += int(inside.any(axis=1).sum())
        held += int(inside.sum())
        recalled += int((squares <= fake_radii).any(axis=1).sum())
    return {"precision": float(precise.mean()), "recall": recalled / len(real),
            "density": held / (k * len(fake)), "coverage": covered / len(real)}


def radii(features: np.ndarray, k: int) -> np.ndarray:
    """The squared distance of each image, (n, d), to its k-th nearest other one: float64 (n,)."""
    found = np.empty(len(features))
    for rows, squares in _tiles(features, features):
        squares[np.arange(len(squares)), rows] = -1.0  # itself comes first, whatever the rounding
        found[rows] = np.partition(squares, k, axis=1)[:, k]
    return found


def _tiles(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Row numbers of x, (t,), with their squared distances to all of y, float64 (t, m)."""
    across = (y**2).sum(axis=1)
    step = max(1, TILE // len(y))
    for start in range(0, len(x), step):
        rows = np.arange(start, min(start + step, len(x)))
        part = x[rows]
        yield rows, np.maximum((part**2).sum(axis=1)[:, None] + across - 2.0 * (part @ y.T), 0.0)
