"""The forest against brute force."""

import numpy as np

from cohort.checking.forest import Forest


def test_the_forest_finds_what_brute_force_finds():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(3000, 16)).astype(np.float32)
    queries = points[::10] + rng.normal(size=(300, 16)).astype(np.float32) * 0.1
    squared = ((queries[:, None] - points[None]) ** 2).sum(axis=2)
    wanted = set(zip(*(rows.tolist() for rows in np.nonzero(squared <= 1.5**2)), strict=True))
    rows, found = Forest(points).near(queries, radius=1.5)
    pairs = list(zip(rows.tolist(), found.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    assert set(pairs) <= wanted
    sources = {(row, 10 * row) for row in range(300)}
    assert len(sources & set(pairs)) >= 299  # near points are hardly ever missed
    few = points[:20]
    assert len(Forest(few).near(few, radius=100.0)[0]) == 400  # one leaf holds all
