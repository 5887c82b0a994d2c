"""Many small solids at once: the same integrals as ``projection``, in batches of equal windows.

A chest holds some three hundred small pieces (vessels, vertebrae, leads), and for each of them alone the interpreter
would cost more than the arithmetic. Pieces are sorted by the size of their shadow's window, rounded up to a power of two,
and each batch is one set of array operations of shape (pieces, rows, columns).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

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


def integrate(beam: Beam, pieces: Sequence[Piece], lungs: Mapping[str, tuple[Frame, ...]], total: Map) -> None:
    """Add the integrals of all ``pieces`` to ``total``, float32 (n, n).

    ``lungs`` gives, per lung, its frame and those of the two regions inside it that are no lung; these may overlap.
    """
    batches: dict[tuple[int, int, bool], list[tuple[int, int, Piece]]] = {}
    for piece, reach in zip(pieces, _windows(beam, pieces), strict=True):
        (top, bottom), (left, right) = reach
        if bottom > top and right > left:
            height, width = (min(_round_up(n), len(total)) for n in (bottom - top, right - left))
            place = min(top, len(total) - height), min(left, len(total) - width)
            batches.setdefault((height, width, piece.lung is not None), []).append((*place, piece))
    for (height, width, within), batch in batches.items():
        rows, columns = np.array([b[0] for b in batch]), np.array([b[1] for b in batch])
        members = [b[2] for b in batch]
        v = sliding_window_view(beam.v[:, 0], height)[rows][:, :, None]
        u = sliding_window_view(beam.u[0], width)[columns][:, None, :]
        low, high = _cross(beam, members, u, v)
        length = _in_lungs(low, high, members, lungs, rows, columns) if within else np.maximum(high - low, 0)
        length *= np.array([piece.attenuation for piece in members], dtype=np.float32)[:, None, None]
        for row, column, patch in zip(rows, columns, length, strict=True):
            total[row:row + height, column:column + width] += patch


def _round_up(n: int) -> int:
    """To the next of 24, 48, 96, ...: few sizes, little waste."""
    return 24 << max((n - 1) // 24, 0).bit_length()


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


def _cross(beam: Beam, pieces: Sequence[Piece], u: Map, v: Map) -> tuple[Map, Map]:
    """Entry and exit of every piece as t, float32 (pieces, rows, columns)."""
    matrices = np.zeros((len(pieces), 3, 3))
    for matrix, piece in zip(matrices, pieces, strict=True):
        matrix[:len(piece.quadric.matrix)] = piece.quadric.matrix
    k = matrices @ beam.ray
    q = np.einsum("nij,nj->ni", matrices, beam.spot - np.array([p.quadric.center for p in pieces]))
    a, b, c = np.einsum("nki,nkj->nij", k, k), np.einsum("nki,nk->ni", k, q), (q * q).sum(axis=1) - 1
    root = np.sqrt(np.maximum(_quadratic(b[:, :, None] * b[:, None, :] - c[:, None, None] * a, u, v), 0))
    inverse = np.float32(1) / _quadratic(a, u, v)
    middle = -_linear(b, u, v) * inverse
    root *= inverse
    low, high = middle - root, middle + root
    for number in range(max(len(p.slabs) for p in pieces)):
        slabs = [p.slabs[number] if number < len(p.slabs) else NO_SLAB for p in pieces]
        normals = np.array([slab.normal for slab in slabs], dtype=np.float64)
        slope = _linear(normals @ beam.ray, u, v)
        slope = np.where(np.abs(slope) < 1e-6, np.float32(1e-6), slope)
        starts = normals @ beam.spot
        ends = [np.clip(np.array([getattr(slab, end) for slab in slabs]) - starts, -1e6, 1e6) for end in ("low", "high")]
        first, second = (end.astype(np.float32)[:, None, None] / slope for end in ends)
        low = np.maximum(low, np.minimum(first, second))
        high = np.minimum(high, np.maximum(first, second))
    return low, high


def _linear(coefficients: Vector, u: Map, v: Map) -> Map:
    """c . (u, v, 1) per piece, float32 (pieces, rows, columns)."""
    x, y, one = (coefficients[:, i].astype(np.float32)[:, None, None] for i in range(3))
    line: Map = (x * u + one) + y * v
    return line


def _quadratic(m: Vector, u: Map, v: Map) -> Map:
    """(u, v, 1) m (u, v, 1)^T per piece, float32 (pieces, rows, columns)."""
    f = {(i, j): m[:, i, j].astype(np.float32)[:, None, None] for i in range(3) for j in range(3)}
    value: Map = ((f[0, 0] * u + 2 * f[0, 2]) * u + f[2, 2]) + ((f[1, 1] * v + 2 * f[1, 2]) * v)
    value += (2 * f[0, 1] * v) * u
    return value


def _in_lungs(low: Map, high: Map, pieces: Sequence[Piece], lungs: Mapping[str, tuple[Frame, ...]], rows: Vector,
              columns: Vector) -> Map:
    """Length of every piece that is lung: inside the first frame, less the other two, by inclusion and exclusion."""
    clipped = [(np.empty_like(low), np.empty_like(high)) for _ in range(3)]
    for name, frames in lungs.items():
        mine = np.flatnonzero([piece.lung == name for piece in pieces])
        inside = (low[mine], high[mine])
        for (entries, leaves), frame in zip(clipped, frames, strict=True):
            windows = [sliding_window_view(edge, low.shape[1:])[rows[mine], columns[mine]] for edge in frame]
            inside = np.maximum(inside[0], windows[0]), np.minimum(inside[1], windows[1])
            entries[mine], leaves[mine] = inside
            inside = (clipped[0][0][mine], clipped[0][1][mine])
    length = np.maximum(clipped[0][1] - clipped[0][0], 0)
    for entries, leaves in clipped[1:]:
        length -= np.maximum(leaves - entries, 0)
    (entry, leave), (entry_2, leave_2) = clipped[1:]
    return length + np.maximum(np.minimum(leave, leave_2) - np.maximum(entry, entry_2), 0)
