"""Many small solids at once: the same integrals as ``projection``, in batches of equal width.

A chest holds some two hundred small pieces (vessels, vertebrae, leads), and for each of them alone the interpreter
would cost more than the arithmetic. So their shadows are cut into rows; rows of equal width, rounded up, make one array
of shape (rows, width). Along a row every quadratic is one in u alone, with coefficients of shape (rows, 1).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from cohort.phantom.projection import Beam, Map, Quadric, Slab, Vector

Frame = tuple[Map, Map]
"""Entry and exit of a region for every ray of the detector; empty where exit < entry."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A quadric cut by slabs, its attenuation (1/cm), and the lung whose tissue it replaces, if any."""

    quadric: Quadric
    slabs: tuple[Slab, ...] = ()
    attenuation: float
    lung: str | None = None


NO_SLAB = Slab(normal=(0, 0, 0))
STEP = 16
"""Widths are multiples of this; small ones waste few rays, large ones make few batches."""


def integrate(beam: Beam, pieces: Sequence[Piece], lungs: Mapping[str, tuple[Frame, ...]], total: Map) -> None:
    """Add the integrals of all ``pieces`` to ``total``, float32 (n, n).

    ``lungs`` gives, per lung, its frame and those of the two regions inside it that are no lung; these may overlap.
    """
    batches: dict[tuple[int, str | None], list[tuple[int, int, int, Piece]]] = {}
    for piece, ((top, bottom), (left, right)) in zip(pieces, _windows(beam, pieces), strict=True):
        if bottom > top and right > left:
            width = min(-(-(right - left) // STEP) * STEP, len(total))
            window = top, bottom - top, min(left, len(total) - width), piece
            batches.setdefault((width, piece.lung), []).append(window)
    for (width, lung), batch in batches.items():
        tops, heights, lefts = (np.array([window[k] for window in batch]) for k in range(3))
        members = [window[3] for window in batch]
        ends = np.cumsum(heights)
        owner = np.repeat(np.arange(len(batch)), heights)
        rows, columns = np.arange(ends[-1]) - (ends - heights - tops)[owner], lefts[owner]
        low, high = _cross(beam, members, owner, beam.v[rows], sliding_window_view(beam.u[0], width)[columns])
        if lung is None:
            length = np.maximum(high - low, 0)
        else:
            length = _in_lung(low, high, [[sliding_window_view(edge, width, axis=1)[rows, columns] for edge in frame]
                                          for frame in lungs[lung]])
        length *= np.array([piece.attenuation for piece in members], dtype=np.float32)[owner, None]
        for top, height, left, end in zip(tops.tolist(), heights.tolist(), lefts.tolist(), ends.tolist(), strict=True):
            total[top:top + height, left:left + width] += length[end - height:end]


def _windows(beam: Beam, pieces: Sequence[Piece]) -> list[list[list[int]]]:
    """First and one past the last row, then column, that each piece's shadow can touch: (n, 2, 2)."""
    low, high = (np.array([p.quadric.box[k] for p in pieces]) for k in (0, 1))
    center, reach = (low + high) / 2 @ beam.pose.T, (high - low) / 2 @ np.abs(beam.pose).T
    low, high = center - reach, center + reach
    scales = (beam.plane - beam.source[2]) / (np.stack([low[:, 2], high[:, 2]]) - beam.source[2])
    found = []
    for axis, grid in ((1, -beam.v[:, 0]), (0, beam.u[0])):
        offsets = np.stack([low[:, axis], high[:, axis]]) - beam.source[axis]
        reached = beam.source[axis] + (offsets[:, None] * scales[None]).reshape(4, -1)
        ends = np.sort([reached.min(axis=0), reached.max(axis=0)] if axis == 0 else
                       [-reached.max(axis=0), -reached.min(axis=0)], axis=0)
        first, last = np.searchsorted(grid, ends[0]) - 1, np.searchsorted(grid, ends[1]) + 1
        found.append(np.stack([np.maximum(first, 0), np.minimum(last, len(grid))], axis=1))
    return np.stack(found, axis=1).tolist()


def _cross(beam: Beam, pieces: Sequence[Piece], owner: NDArray[np.int_], rows: Map, u: Map) -> tuple[Map, Map]:
    """Entry and exit as t, float32 (rows, width).

    ``owner`` (rows) is each row's piece; ``rows`` (rows, 1) and u (rows, width) are the detector's coordinates. What is
    constant along a row is float64 and u is taken from its middle: large terms cancel before float32 is used.
    """
    v, middle = (x.astype(np.float64) for x in (rows, u[:, u.shape[1] // 2, None]))
    u = u - middle.astype(np.float32)
    matrices = np.zeros((len(pieces), 3, 3))
    for matrix, piece in zip(matrices, pieces, strict=True):
        matrix[:len(piece.quadric.matrix)] = piece.quadric.matrix
    k = matrices @ beam.ray
    q = np.einsum("nij,nj->ni", matrices, beam.spot - np.array([p.quadric.center for p in pieces]))
    a, b, c = np.einsum("nki,nkj->nij", k, k), np.einsum("nki,nk->ni", k, q), (q * q).sum(axis=1) - 1
    discriminant = b[:, :, None] * b[:, None, :] - c[:, None, None] * a
    half = np.sqrt(np.maximum(_quadratic(discriminant[owner], v, middle, u), 0))
    inverse = np.float32(1) / _quadratic(a[owner], v, middle, u)
    center = _linear(-b[owner], v, middle, u)
    center *= inverse
    half *= inverse
    low, high = center - half, center + half
    for number in range(max(len(p.slabs) for p in pieces)):
        slabs = [p.slabs[number] if number < len(p.slabs) else NO_SLAB for p in pieces]
        normals = np.array([slab.normal for slab in slabs], dtype=np.float64)
        starts = normals @ beam.spot
        planes = [np.array([getattr(slab, end) for slab in slabs]) for end in ("low", "high")]
        slope = _linear((normals @ beam.ray)[owner], v, middle, u)
        slope[np.abs(slope) < 1e-6] = 1e-6
        np.divide(np.float32(1), slope, out=slope)
        first, second = (np.clip(plane - starts, -1e6, 1e6).astype(np.float32)[owner, None] * slope for plane in planes)
        np.maximum(low, np.minimum(first, second), out=low)
        np.minimum(high, np.maximum(first, second), out=high)
    return low, high


def _linear(c: Vector, v: Vector, middle: Vector, u: Map) -> Map:
    """c . (middle + u, v, 1), float32 (rows, width), for c (rows, 3)."""
    slope, constant = c[:, 0, None], c[:, 1, None] * v + c[:, 2, None]
    line: Map = slope.astype(np.float32) * u
    line += (slope * middle + constant).astype(np.float32)
    return line


def _quadratic(m: Vector, v: Vector, middle: Vector, u: Map) -> Map:
    """x m x^T with x = (middle + u, v, 1), float32 (rows, width), for m (rows, 3, 3)."""
    square, slope = m[:, 0, 0, None], 2 * (m[:, 0, 1, None] * v + m[:, 0, 2, None])
    constant = (m[:, 1, 1, None] * v + 2 * m[:, 1, 2, None]) * v + m[:, 2, 2, None]
    value: Map = square.astype(np.float32) * u
    value += (2 * square * middle + slope).astype(np.float32)
    value *= u
    value += ((square * middle + slope) * middle + constant).astype(np.float32)
    return value


def _in_lung(low: Map, high: Map, frames: Sequence[Sequence[Map]]) -> Map:
    """Length that is lung: inside the first frame, less the other two, by inclusion and exclusion."""
    (entry, leave), *obstacles = frames
    low, high = np.maximum(low, entry), np.minimum(high, leave)
    (low_1, high_1), (low_2, high_2) = ((np.maximum(low, x), np.minimum(high, y)) for x, y in obstacles)
    length = np.maximum(high - low, 0)
    length -= np.maximum(high_1 - low_1, 0)
    length -= np.maximum(high_2 - low_2, 0)
    length += np.maximum(np.minimum(high_1, high_2) - np.maximum(low_1, low_2), 0)
    return length
