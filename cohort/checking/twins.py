"""Which images show the same picture? Exact copies by their pixels, near ones by what survives a crop or a window.

A near-duplicate here is the same exposure stored again: compressed, windowed, resized, cropped a little, mirrored. Two
films of one patient are none, however alike. All chests resemble one another, so resemblance alone tells nothing::

    describe   the reading (``cohort.checking.reading``) at 16 x 16 pixels, projected on its ``COMPONENTS`` principal
               components of these very images, each of variance 1: what all chests share is gone
    retrieve   every image as it is, mirrored, and as 27 windows of 88 to 96 % of its sides would show it, among
               the others within ``RADIUS`` (``cohort.checking.forest``): n log n
    compare    the best window of each pair is refined, scale and shift of either axis by themselves, and the pair's
               normalised cross-correlation (NCC) over 48 x 48 pixels taken

Not promised: crops of more than 12 % of a side, rotations, images shifted with a black edge, or a part of an image; of
more than two near copies of one image, that each is named.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cohort.checking.forest import Forest
from cohort.checking.reading import SIDE, STEPS

COARSE = 16
"""Pixels per side at which images are retrieved."""
SMOOTH = 5
"""Pixels of a reading over which a mean is taken first: detail that 16 pixels cannot show makes a copy that is moved by
half a pixel another image. Of 100 images cropped to 90 to 95 % of their sides, the source was the nearest of 8,506 in
99 %, without it in 93 %."""
COMPONENTS = 16
SAMPLE = 4096
"""Images that the components are taken from, evenly over all."""
SCALES = (0.96, 0.92, 0.88)
"""Windows' sides, in sides of the image; each lies at the edges and in the middle of what it leaves, both ways."""
RADIUS = 2.0
PROMISING, FINALISTS = 0.86, 2
"""NCC at ``COARSE`` below which a pair is not refined, and how many of an image's pairs are."""
MOVES = (0.02, 0.01, 0.005, 0.0025)
"""Steps of the refinement, in sides of the image."""
GAP = 0.15
"""How far below the threshold the first step may leave a pair for which finer ones are tried."""
CHUNK = 512
"""Images described at a time."""

Window = tuple[float, float, float, float]
"""Left edge, width, upper edge, height, in sides of the image."""


@dataclass(frozen=True, kw_only=True)
class Twins:
    """Pairs of images; all arrays (m,)."""

    first: NDArray[np.intp]
    """Row of the image of which ``second`` may be a window."""
    second: NDArray[np.intp]
    ncc: NDArray[np.float64]
    """-1 to 1."""
    mirrored: NDArray[np.bool_]


def windows() -> list[Window]:
    """The windows that are looked through, the whole image first."""
    cut = [(x * (1 - scale), scale, y * (1 - scale), scale) for scale in SCALES for y in (0.0, 0.5, 1.0)
           for x in (0.0, 0.5, 1.0)]
    return [(0.0, 1.0, 0.0, 1.0), *cut]


def exact_groups(sha256: NDArray[np.str_]) -> list[NDArray[np.intp]]:
    """Rows of images with equal pixels, two or more a group; an empty hash is none."""
    order = np.argsort(sha256, kind="stable")
    starts = np.flatnonzero(sha256[order][1:] != sha256[order][:-1]) + 1
    return [np.sort(rows) for rows in np.split(order, starts) if len(rows) > 1 and sha256[rows[0]]]


def find_near(details: NDArray[np.int8], *, usable: NDArray[np.bool_], groups: NDArray[np.intp],
              least: float, description: str = "near-duplicates") -> Twins:
    """Pairs of images of different ``groups`` whose NCC is ``least`` or more.

    Args:
        details: readings, int8 (n, SIDE, SIDE).
        usable: bool (n,); the others are not looked at.
        groups: int (n,): pairs of one group (one patient in one split, say) are not wanted.
        least: NCC, -1 to 1.
        description: what the progress bar says.
    """
    rows = np.flatnonzero(usable)
    if len(rows) < 2:
        return _twins([])
    shown = details if len(rows) == len(details) else details[rows]
    small = np.concatenate([coarse(shown[at:at + CHUNK]) for at in range(0, len(shown), CHUNK)])
    gallery = Gallery(small=small, groups=groups[rows], **components(small))
    found: dict[tuple[int, int], tuple[float, bool]] = {}
    for start in tqdm(range(0, len(rows), CHUNK), desc=description, unit=f"{CHUNK} images", mininterval=1.0):
        part = np.arange(start, min(start + CHUNK, len(rows)))
        for i, j, window, mirrored in finalists(candidates(shown, part, gallery)):
            image = shown[i][:, ::-1] if mirrored else shown[i]
            ncc = refine(image, shown[j], window, hopeless=least - GAP)
            pair = (int(rows[i]), int(rows[j]))
            known = found.get(pair[::-1])
            if ncc >= least and (known is None or known[0] < ncc):
                found.pop(pair[::-1], None)
                found[pair] = (ncc, mirrored)
    return _twins([(*pair, *values) for pair, values in sorted(found.items())])


def _twins(pairs: list[tuple[int, int, float, bool]]) -> Twins:
    first, second, ncc, mirrored = zip(*pairs, strict=True) if pairs else ((), (), (), ())
    return Twins(first=np.array(first, dtype=np.intp), second=np.array(second, dtype=np.intp),
                 ncc=np.array(ncc, dtype=np.float64), mirrored=np.array(mirrored, dtype=bool))


class Gallery:
    """Images to be searched, each at ``COARSE``: 1.1 kB an image beside its reading."""

    def __init__(self, small: NDArray[np.float32], *, groups: NDArray[np.intp], centre: NDArray[np.float32],
                 axes: NDArray[np.float32]) -> None:
        """Take the images, float32 (n, COARSE, COARSE), their groups, int (n,), and what ``components`` gives."""
        self.small, self.groups, self.centre, self.axes = small, groups, centre, axes
        self.forest = Forest(self.describe(small))

    def describe(self, seen: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 (n, COARSE, COARSE) -> (n, k)."""
        return np.asarray((unit(seen) - self.centre) @ self.axes, dtype=np.float32)

    def near(self, seen: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Positions in ``seen``, and those of images within ``RADIUS`` of them."""
        return self.forest.near(self.describe(seen), radius=RADIUS)


def candidates(
    shown: NDArray[np.int8], part: NDArray[np.intp], gallery: Gallery
) -> dict[tuple[int, int], tuple[float, Window, bool]]:
    """Pairs (row of ``part``, other row) of different groups, with NCC at ``COARSE``, window and whether mirrored."""
    best: dict[tuple[int, int], tuple[float, Window, bool]] = {}
    views: list[tuple[Window, bool]] = [(window, False) for window in windows()] + [(windows()[0], True)]
    for window, mirrored in views:
        images = shown[part][:, :, ::-1] if mirrored else shown[part]
        seen = coarse(images, window)
        row, j = gallery.near(seen)
        other = gallery.groups[part[row]] != gallery.groups[j]
        i, j, row = part[row][other], j[other], row[other]
        scores = _ncc(seen[row], gallery.small[j])
        for a, b, score in zip(i.tolist(), j.tolist(), scores.tolist(), strict=True):
            if score > best.get((a, b), (-2.0,))[0]:
                best[a, b] = (score, window, mirrored)
    return best


def finalists(
    pairs: dict[tuple[int, int], tuple[float, Window, bool]]
) -> Iterator[tuple[int, int, Window, bool]]:
    """Of each first row the ``FINALISTS`` best pairs that are promising, so that refinement is linear in the images."""
    best: dict[int, list[tuple[float, int, Window, bool]]] = {}
    for (i, j), (score, window, mirrored) in pairs.items():
        if score >= PROMISING:
            best.setdefault(i, []).append((score, j, window, mirrored))
    for i, found in best.items():
        for _, j, window, mirrored in sorted(found, reverse=True)[:FINALISTS]:
            yield i, j, window, mirrored


def components(small: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """``centre``, (256,), and ``axes``, (256, k), of images at ``COARSE``, on each of which they have variance 1."""
    chosen = np.unique(np.linspace(0, len(small) - 1, min(SAMPLE, len(small))).astype(int))
    flat = unit(small[chosen])
    centre = flat.mean(axis=0)
    _, spread, axes = np.linalg.svd(flat - centre, full_matrices=False)
    k = min(COMPONENTS, len(spread))
    scale = np.maximum(spread[:k] / np.sqrt(len(flat)), 1e-6)
    return {"centre": centre, "axes": np.asarray(axes[:k].T / scale, dtype=np.float32)}


def coarse(details: NDArray[np.int8], window: Window = (0.0, 1.0, 0.0, 1.0)) -> NDArray[np.float32]:
    """What a window of readings shows at ``COARSE``: int8 (n, SIDE, SIDE) -> float32 (n, COARSE, COARSE)."""
    left, width, top, height = window
    across, down = (areas(start, length, COARSE) @ smoothing() for start, length in ((left, width), (top, height)))
    return np.asarray(down @ (details.astype(np.float32) / np.float32(STEPS)) @ across.T, dtype=np.float32)


@lru_cache(maxsize=4096)
def areas(start: float, length: float, n: int) -> NDArray[np.float32]:
    """Means over n equal pieces of [start, start + length] of ``SIDE`` pixels that span [0, 1]: float32 (n, SIDE).

    What lies outside is left out; a piece that lies wholly outside is 0.
    """
    edges = (start + length * np.arange(n + 1) / n) * SIDE
    pixels = np.arange(SIDE)
    shared = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    shared = np.clip(shared, 0, None)
    return np.asarray(shared / np.maximum(shared.sum(axis=1, keepdims=True), 1e-6), dtype=np.float32)


@cache
def smoothing() -> NDArray[np.float32]:
    """float32 (SIDE, SIDE): means over ``SMOOTH`` pixels, fewer at the edges."""
    near = np.abs(np.arange(SIDE)[:, None] - np.arange(SIDE)) <= SMOOTH // 2
    return np.asarray(near / near.sum(axis=1, keepdims=True), dtype=np.float32)


def refine(image: NDArray[np.int8], other: NDArray[np.int8], window: Window, *, hopeless: float = -1.0) -> float:
    """The highest NCC of ``other`` with a window of ``image`` that is found from ``window`` on, step by step.

    Finer steps are not tried where the coarser ones have not come above ``hopeless``.
    """
    target, source = unit(other.astype(np.float32)[None])[0], image.astype(np.float32)

    def score(where: Window) -> float:
        left, width, top, height = where
        shown = areas(top, height, SIDE) @ source @ areas(left, width, SIDE).T
        return min(float(unit(shown[None])[0] @ target) / target.size, 1.0)  # rounding of float32

    best, value = window, score(window)
    for step in MOVES:
        improved = value > hopeless or step == MOVES[0]
        while improved:
            improved = False
            for axis in (0, 2):
                for edge, size in ((step, -step), (-step, step), (0.0, step), (0.0, -step)):
                    moved = list(best)
                    moved[axis], moved[axis + 1] = round(moved[axis] + edge, 6), round(moved[axis + 1] + size, 6)
                    if moved[axis] < -step or moved[axis] + moved[axis + 1] > 1 + step or moved[axis + 1] < 0.8:
                        continue
                    found = score((moved[0], moved[1], moved[2], moved[3]))
                    if found > value + 1e-6:
                        best, value, improved = (moved[0], moved[1], moved[2], moved[3]), found, True
    return value


def unit(seen: NDArray[np.floating]) -> NDArray[np.float32]:
    """(n, s, s) -> (n, s * s), each of mean 0 and variance 1."""
    flat = seen.reshape(len(seen), int(np.prod(seen.shape[1:])))
    flat = flat - flat.mean(axis=1, keepdims=True)
    return np.asarray(flat / np.maximum(flat.std(axis=1, keepdims=True), 1e-6), dtype=np.float32)


def _ncc(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """Normalised cross-correlation of each pair, (n, s, s) each -> (n,)."""
    return np.asarray((unit(a) * unit(b)).mean(axis=1), dtype=np.float64)
