"""Line integrals through convex solids, in closed form, for the divergent beam of an X-ray tube.

A ray runs from the focal spot s to a detector element p, x(t) = s + t (p - s) with t from 0 to 1. Along it every convex
solid is one interval of t: for a quadric |M (x - c)| <= 1 the roots of a quadratic whose discriminant is itself a
quadratic in the detector's coordinates (the shadow of an ellipsoid is a conic), for a slab the two planes. An
intersection of solids is the intersection of their intervals, so any region cut out of ellipsoids, tubes and planes has
an exact path length: the difference of two numbers, no sampling along the ray.

Coordinates are the patient's, in cm: x to the patient's left (the image's right), y up, z to the front; the origin is
the middle of the chest. Not promised: solids behind the focal spot or the detector; there are none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Point: TypeAlias = Sequence[float] | Vector
Map = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Beam:
    """Focal spot and detector: rays of shape (rows, columns), row 0 on top."""

    source: Vector
    """Focal spot, cm (3)."""
    plane: float
    """z of the detector, cm."""
    u: Map
    """x of the detector's columns, cm (1, columns)."""
    v: Map
    """y of the detector's rows, cm (rows, 1), falling."""
    pose: Vector
    """Rotation from the patient's axes to the room's (3, 3)."""

    @property
    def ray(self) -> Vector:
        """What turns a detector element (u, v, 1) into the ray's vector in the patient's axes (3, 3)."""
        x, y, z = self.source
        room: Vector = self.pose.T @ np.array([[1, 0, -x], [0, 1, -y], [0, 0, self.plane - z]], dtype=np.float64)
        return room

    @property
    def spot(self) -> Vector:
        """The focal spot in the patient's axes, cm (3)."""
        turned: Vector = self.pose.T @ self.source
        return turned

    def lengths(self) -> Map:
        """Distance from the focal spot to every detector element, cm, float32 (rows, columns)."""
        squares = (self.u - self.source[0]) ** 2 + (self.v - self.source[1]) ** 2 + (self.plane - self.source[2]) ** 2
        return np.sqrt(squares).astype(np.float32)

    def window(self, low: Vector, high: Vector) -> tuple[slice, slice]:
        """Rows and columns that the shadow of the axis-parallel box from ``low`` to ``high`` (cm, 3) can touch."""
        center, reach_3d = self.pose @ (low + high) / 2, np.abs(self.pose) @ (high - low) / 2
        low, high = center - reach_3d, center + reach_3d
        depth = self.plane - self.source[2]
        scales = [depth / (z - self.source[2]) for z in (low[2], high[2])]
        slices = []
        for axis, grid in ((1, -self.v.ravel()), (0, self.u.ravel())):
            reach = [self.source[axis] + (x - self.source[axis]) * m for x in (low[axis], high[axis]) for m in scales]
            first, last = (min(reach), max(reach)) if axis == 0 else (-max(reach), -min(reach))
            slices.append(slice(max(int(np.searchsorted(grid, first)) - 1, 0), int(np.searchsorted(grid, last)) + 1))
        return slices[0], slices[1]


@dataclass(frozen=True, kw_only=True)
class Span:
    """Where rays enter and leave a convex region: t in [low, high] for the rays of a window, empty where high < low."""

    rows: slice
    columns: slice
    low: Map
    high: Map

    def crop(self, rows: slice, columns: slice) -> "Span":
        """The same for a window inside this one."""
        inner = (slice(rows.start - self.rows.start, rows.stop - self.rows.start),
                 slice(columns.start - self.columns.start, columns.stop - self.columns.start))
        return Span(rows=rows, columns=columns, low=self.low[inner], high=self.high[inner])

    def length(self) -> Map:
        """Share of the ray inside the region, 0 to 1, float32 of the window's shape."""
        return np.maximum(self.high - self.low, 0)


class Solid(Protocol):
    """A convex solid."""

    def bounds(self) -> tuple[Vector, Vector]:
        """The axis-parallel box around it, cm; infinite where it has no end."""

    def cross(self, beam: Beam, rows: slice, columns: slice) -> tuple[Map, Map]:
        """Entry and exit as t, float32, each broadcastable to the window's shape."""


@dataclass(frozen=True, kw_only=True)
class Slab:
    """All points with low <= normal . x <= high; a half-space when one of the bounds is infinite."""

    normal: Sequence[float]
    low: float = -np.inf
    high: float = np.inf

    def bounds(self) -> tuple[Vector, Vector]:
        """All of space, or what is between the planes when they are at right angles to an axis."""
        low, high = np.full(3, -np.inf), np.full(3, np.inf)
        axes = np.flatnonzero(self.normal)
        if len(axes) == 1:
            n = self.normal[axes[0]]
            low[axes], high[axes] = sorted((self.low / n, self.high / n))
        return low, high

    def cross(self, beam: Beam, rows: slice, columns: slice) -> tuple[Map, Map]:
        """t at both planes, in the order in which the ray meets them."""
        n = np.asarray(self.normal, dtype=np.float64)
        a, b, c = (np.float32(x) for x in n @ beam.ray)
        slope = np.broadcast_to(c, (1, 1)) if abs(a) < 1e-9 else a * beam.u[:, columns] + c
        slope = slope if abs(b) < 1e-9 else slope + b * beam.v[rows]
        slope = np.where(np.abs(slope) < 1e-6, np.float32(1e-6), slope)
        start = float(n @ beam.spot)
        first, second = (np.float32(np.clip(x - start, -1e6, 1e6)) / slope for x in (self.low, self.high))
        return np.minimum(first, second), np.maximum(first, second)


@dataclass(frozen=True, kw_only=True)
class Quadric:
    """All points with |M (x - center)| <= 1: an ellipsoid for a (3, 3) matrix, an endless tube for a (2, 3) one."""

    center: Vector
    matrix: Vector
    box: tuple[Vector, Vector]

    def bounds(self) -> tuple[Vector, Vector]:
        """The box it was given."""
        return self.box

    def cross(self, beam: Beam, rows: slice, columns: slice) -> tuple[Map, Map]:
        """Roots of A t^2 + 2 B t + C, with A quadratic, B linear and C constant in the detector's coordinates."""
        u, v = beam.u[:, columns], beam.v[rows]
        k = self.matrix @ beam.ray  # M d is linear in (u, v, 1); coefficients in float64, for large terms cancel
        q = self.matrix @ (beam.spot - self.center)
        a, b, c = k.T @ k, k.T @ q, float(q @ q) - 1.0
        root = np.sqrt(np.maximum(_quadratic(np.outer(b, b) - c * a, u, v), 0))
        inverse = np.float32(1) / _quadratic(a, u, v)
        middle = (np.float32(-b[0]) * u - np.float32(b[1]) * v - np.float32(b[2])) * inverse
        half = root * inverse
        return middle - half, middle + half


def _quadratic(m: Vector, u: Map, v: Map) -> Map:
    """(u, v, 1) m (u, v, 1)^T for every pair, float32 (rows, columns)."""
    f = [np.float32(x) for x in (m[0, 0], 2 * m[0, 2], m[1, 1], 2 * m[1, 2], m[2, 2], 2 * m[0, 1])]
    value: Map = ((f[0] * u + f[1]) * u + f[4]) + (f[2] * v + f[3]) * v
    return value + (f[5] * v) * u if abs(f[5]) > 0 else value


def rotation(*, about_x: float = 0.0, about_y: float = 0.0, about_z: float = 0.0) -> Vector:
    """A rotation matrix (3, 3), first about z, then y, then x; angles in radians."""
    (cx, cy, cz), (sx, sy, sz) = (np.cos([about_x, about_y, about_z]), np.sin([about_x, about_y, about_z]))
    x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    turned: Vector = x @ y @ z
    return turned


def ellipsoid(center: Point, radii: Point, turned: Vector | None = None) -> Quadric:
    """An ellipsoid with half axes ``radii`` (cm, above 0), turned about its centre."""
    c, r = np.asarray(center, dtype=np.float64), np.asarray(radii, dtype=np.float64)
    axes = np.eye(3) if turned is None else turned
    reach = np.sqrt(((axes * r) ** 2).sum(axis=1))
    return Quadric(center=c, matrix=axes.T / r[:, None], box=(c - reach, c + reach))


def tube(start: Point, end: Point, radius: float) -> tuple[Solid, ...]:
    """A straight round tube between two points, as two solids to intersect; cut at right angles to its axis."""
    a, b = list(map(float, start)), list(map(float, end))  # plain numbers: there are many tubes
    length = sqrt(sum((q - p) ** 2 for p, q in zip(a, b, strict=True)))
    x, y, z = axis = tuple((q - p) / length for p, q in zip(a, b, strict=True))
    across = (y, -x, 0.0) if abs(z) < 0.9 else (0.0, z, -y)
    scale = 1 / (radius * sqrt(sum(value * value for value in across)))
    i, j, k = (value * scale for value in across)
    matrix = np.array([[i, j, k], [y * k - z * j, z * i - x * k, x * j - y * i]])
    box = (np.array([min(p, q) - radius for p, q in zip(a, b, strict=True)]),
           np.array([max(p, q) + radius for p, q in zip(a, b, strict=True)]))
    quadric = Quadric(center=np.array(a), matrix=matrix, box=box)
    low = a[0] * x + a[1] * y + a[2] * z
    return quadric, Slab(normal=axis, low=low, high=low + length)


def intersect(beam: Beam, solids: Sequence[Solid], spans: Sequence[Span] = ()) -> Span | None:
    """The intersection of convex solids and of regions already crossed; None when no ray of the detector meets it."""
    n_rows, n_columns = beam.v.shape[0], beam.u.shape[1]
    rows, columns = slice(0, n_rows), slice(0, n_columns)
    if solids:
        boxes = [solid.bounds() for solid in solids]
        low, high = np.max([b[0] for b in boxes], axis=0), np.min([b[1] for b in boxes], axis=0)
        if np.any(high <= low):
            return None
        if np.all(np.isfinite([low, high])):
            rows, columns = beam.window(low, high)
    for span in spans:
        rows = slice(max(rows.start, span.rows.start), min(rows.stop, span.rows.stop))
        columns = slice(max(columns.start, span.columns.start), min(columns.stop, span.columns.stop))
    rows, columns = slice(rows.start, min(rows.stop, n_rows)), slice(columns.start, min(columns.stop, n_columns))
    if rows.stop <= rows.start or columns.stop <= columns.start:
        return None
    parts = [solid.cross(beam, rows, columns) for solid in solids]
    cropped = [span.crop(rows, columns) for span in spans]
    parts += [(span.low, span.high) for span in cropped]
    low_t, high_t = parts[0]
    for entry, leave in parts[1:]:
        low_t, high_t = np.maximum(low_t, entry), np.minimum(high_t, leave)
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    return Span(rows=rows, columns=columns, low=np.broadcast_to(low_t, shape), high=np.broadcast_to(high_t, shape))


def hull(first: Span, *others: Span | None) -> Span:
    """The union of overlapping regions, each as one interval; ``first`` must cover the whole detector.

    Rays that meet two regions with a gap between them count the gap too: use it only for bodies that merge.
    """
    empty = first.high <= first.low
    low, high = np.where(empty, np.float32(2), first.low), np.where(empty, np.float32(-2), first.high)
    for other in others:
        if other is not None:
            at = (other.rows, other.columns)
            filled = other.high > other.low
            low[at] = np.minimum(low[at], np.where(filled, other.low, np.float32(2)))
            high[at] = np.maximum(high[at], np.where(filled, other.high, np.float32(-2)))
    return Span(rows=first.rows, columns=first.columns, low=low, high=high)
