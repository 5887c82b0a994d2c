"""Shapes that several signs are made of, from the solids of ``projection``; sizes in cm."""

from collections.abc import Sequence

import numpy as np

from cohort.phantom.projection import Quadric, Slab, Solid, Vector


def grown(solid: Quadric, factor: float) -> Quadric:
    """An ellipsoid, larger by ``factor`` about its centre."""
    low, high = solid.box
    box = (solid.center + (low - solid.center) * factor, solid.center + (high - solid.center) * factor)
    return Quadric(center=solid.center, matrix=solid.matrix / factor, box=box)


def moved(solid: Quadric, by: Sequence[float]) -> Quadric:
    """The same ellipsoid elsewhere."""
    shift = np.asarray(by, dtype=np.float64)
    return Quadric(center=solid.center + shift, matrix=solid.matrix, box=(solid.box[0] + shift, solid.box[1] + shift))


def between(solid: Quadric, low: float, high: float) -> tuple[Solid, ...]:
    """The part of an ellipsoid between two heights, whose shadow is small if they are near to each other."""
    bottom, top = (np.array([-np.inf, low, -np.inf]), np.array([np.inf, high, np.inf]))
    box = (np.maximum(solid.box[0], bottom), np.minimum(solid.box[1], top))
    part = Quadric(center=solid.center, matrix=solid.matrix, box=box)
    return part, Slab(normal=(0, 1, 0), low=low, high=high)


def column(top: Sequence[float], foot: Sequence[float], *, wide: float, deep: float) -> tuple[Solid, ...]:
    """A leaning column cut level at both ends, so that a stack of them bends without gap or overlap.

    Its section is an ellipse with half axes ``wide`` in x and ``deep`` in z; the top is above the foot.
    """
    a, b = np.asarray(top, dtype=np.float64), np.asarray(foot, dtype=np.float64)
    lean = (a - b) / (a[1] - b[1])
    matrix = np.array([[1 / wide, -lean[0] / wide, 0.0], [0.0, -lean[2] / deep, 1 / deep]])
    reach = np.array([wide, 0.0, deep])
    box = (np.minimum(a, b) - reach, np.maximum(a, b) + reach)
    return Quadric(center=b, matrix=matrix, box=box), Slab(normal=(0, 1, 0), low=float(b[1]), high=float(a[1]))


def bar(start: Vector, end: Vector, *, up: Vector, high: float, thick: float) -> tuple[Solid, ...]:
    """A straight bar of oval section, cut square: half axes ``high`` along ``up`` (3) and ``thick`` across it."""
    axis = (end - start) / np.linalg.norm(end - start)
    rise = up - axis * (up @ axis)
    rise /= np.linalg.norm(rise)
    matrix = np.stack([rise / high, np.cross(axis, rise) / thick])
    reach = max(high, thick)
    box = (np.minimum(start, end) - reach, np.maximum(start, end) + reach)
    return (Quadric(center=start, matrix=matrix, box=box),
            Slab(normal=tuple(axis), low=float(axis @ start), high=float(axis @ end)))
