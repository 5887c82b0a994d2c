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


@dataclass(frozen=True, kw_only=True)
class Forms:
    """Pieces in the detector's coordinates x = (u, v, 1), for n pieces; float64 but for ``planes``."""

    a: Vector
    """Of A(x) = x a x^T, the squared speed of the ray in the quadric's own measure (n, 3, 3)."""
    b: Vector
    """Of B(x) = b . x; the ray is nearest to the quadric's centre at t = -B / A (n, 3)."""
    discriminant: Vector
    """Of B^2 - A C as a quadratic in x (n, 3, 3)."""
    slopes: Vector
    """dh/dt of each slab's height h, linear in x (n, 2, 3)."""
    planes: Map
    """Height of each slab's two planes above the focal spot, cm (n, 2, 2)."""
    n_slabs: NDArray[np.int_]
    """How many of the two slabs there are (n)."""


NO_SLAB = Slab(normal=(0, 0, 0))
STEP = 16
"""Widths are multiples of this; small ones waste few rays, large ones make few batches."""


def integrate(beam: Beam, pieces: Sequence[Piece], lungs: Mapping[str, tuple[Frame, ...]], total: Map) -> None:
    """Add the integrals of all ``pieces`` to ``total``, float32 (n, n).

    ``lungs`` gives, per lung, its frame and those of the two regions inside it that are no lung; these may overlap.
    """
    if not pieces:
        return
    (top, bottom), (left, right) = _windows(beam, pieces)
    heights, widths = np.maximum(bottom - top, 0), np.minimum(-(-(right - left) // STEP) * STEP, len(total))
    left = np.minimum(left, len(total) - widths)
    forms = _forms(beam, pieces)
    attenuation = np.array([piece.attenuation for piece in pieces], dtype=np.float32)
    batches: dict[tuple[int, str | None], list[int]] = {}
    for number, (piece, width) in enumerate(zip(pieces, widths.tolist(), strict=True)):
        if width > 0 and heights[number]:
            batches.setdefault((width, piece.lung), []).append(number)
    for (width, lung), members in batches.items():
        tall = heights[members]
        ends = np.cumsum(tall)
        owner = np.repeat(members, tall)
        rows, columns = np.arange(ends[-1]) - np.repeat(ends - tall - top[members], tall), left[owner]
        low, high = _cross(forms, owner, beam.v[rows], sliding_window_view(beam.u[0], width)[columns])
        if lung is None:
            length = np.maximum(high - low, 0)
        else:
            length = _in_lung(low, high, [[sliding_window_view(edge, width, axis=1)[rows, columns] for edge in frame]
                                          for frame in lungs[lung]])
        length *= attenuation[owner, None]
        places = zip(top[members].tolist(), left[members].tolist(), tall.tolist(), ends.tolist(), strict=True)
        for row, column, height, end in places:
            total[row:row + height, column:column + width] += length[end - height:end]


def _windows(beam: Beam, pieces: Sequence[Piece]) -> NDArray[np.int_]:
    """First and one past the last row, then column, that each piece's shadow can touch: int (2, 2, n)."""
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
        found.append([np.maximum(first, 0), np.minimum(last, len(grid))])
    return np.array(found)


def _forms(beam: Beam, pieces: Sequence[Piece]) -> Forms:
    """What every piece is along the rays."""
    matrices = np.zeros((len(pieces), 3, 3))
    for matrix, piece in zip(matrices, pieces, strict=True):
        matrix[:len(piece.quadric.matrix)] = piece.quadric.matrix
    k = matrices @ beam.ray
    q = np.einsum("nij,nj->ni", matrices, beam.spot - np.array([piece.quadric.center for piece in pieces]))
    a, b, c = np.einsum("nki,nkj->nij", k, k), np.einsum("nki,nk->ni", k, q), (q * q).sum(axis=1) - 1
    slabs = [(*piece.slabs, NO_SLAB, NO_SLAB)[:2] for piece in pieces]
    normals = np.array([[slab.normal for slab in pair] for pair in slabs], dtype=np.float64)
    planes = np.array([[(slab.low, slab.high) for slab in pair] for pair in slabs]) - (normals @ beam.spot)[..., None]
    return Forms(a=a, b=b, discriminant=b[:, :, None] * b[:, None, :] - c[:, None, None] * a, slopes=normals @ beam.ray,
                 planes=np.clip(planes, -1e6, 1e6).astype(np.float32), n_slabs=np.array([len(p.slabs) for p in pieces]))


def _cross(forms: Forms, owner: NDArray[np.int_], rows: Map, u: Map) -> tuple[Map, Map]:
    """Entry and exit as t, float32 (rows, width).

    ``owner`` (rows) is each row's piece; ``rows`` (rows, 1) and u (rows, width) are the detector's coordinates. What is
    constant along a row is float64 and u is taken from its middle: large terms cancel before float32 is used.
    """
    v, middle = (x.astype(np.float64) for x in (rows, u[:, u.shape[1] // 2, None]))
    u -= middle.astype(np.float32)
    half = _quadratic(forms.discriminant[owner], v, middle, u)
    np.sqrt(np.maximum(half, 0, out=half), out=half)
    inverse = np.reciprocal(_quadratic(forms.a[owner], v, middle, u))
    center = _linear(-forms.b[owner], v, middle, u)
    center *= inverse
    half *= inverse
    low, high = center - half, center + half
    for number in range(forms.n_slabs[owner].max()):
        slope = _linear(forms.slopes[owner, number], v, middle, u)
        slope[np.abs(slope) < 1e-6] = 1e-6
        first, second = (plane[:, None] / slope for plane in forms.planes[owner, number].T)
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
