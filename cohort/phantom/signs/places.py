"""Where in a chest a finding can lie: sides, points inside a lung, lobes, and what is given as a map over a whole lung.

Places are relative to the build, so that a finding keeps its lobe and its distance from wall and diaphragm when the
patient breathes in less deeply; lengths in cm. Not promised: segments.
"""

import numpy as np

from cohort.phantom.build import SIDES, Build
from cohort.phantom.chest import Chest, cage, heart
from cohort.phantom.projection import Map, Quadric, Slab, Solid, Vector

FISSURE_TILT, FISSURE_HEIGHT, MINOR_FISSURE = 1.06, -1.5, 1.8
"""The oblique fissure runs from the fourth thoracic vertebra to the front of the diaphragm, the minor one level with
the right hilum (Felson)."""


def one_side(rng: np.random.Generator, *, right: float = 0.5) -> str:
    """A side; ``right`` is the chance of the right one."""
    return "right" if rng.random() < right else "left"


def sides(rng: np.random.Generator, *, both: float, right: float = 0.5) -> dict[str, float]:
    """Each affected side and its share of the severity: one side wholly, and with chance ``both`` the other in part."""
    first = one_side(rng, right=right)
    chance, less = rng.random(), rng.uniform(0.35, 0.9)
    other = "left" if first == "right" else "right"
    return {first: 1.0, other: less} if chance < both else {first: 1.0}


def wall(build: Build, y: float, z: float = 0.0) -> float:
    """Distance of the ribcage's inside from the midline at height ``y`` and depth ``z``."""
    outline = cage(build)
    return _half(outline, np.array([0.0, y, z]), axis=0)


def inside(build: Build, side: str, *, height: float, across: float, depth: float) -> Vector:
    """A point in a lung, (3,) cm.

    ``height`` from 0 (dome) to 1 (apex), ``across`` 0 (mediastinum) to 1 (wall), ``depth`` -1 (back) to 1 (front);
    what would come to lie in the heart is put behind it.
    """
    floor, top = build.dome[side] + 0.8, 11.0 * build.height
    y = floor + height * (top - floor)
    inner = build.mediastinum + 0.9
    x = inner + across * max(wall(build, y) - 0.6 - inner, 0.5)
    point = np.array([SIDES[side] * x, y, 0.0])
    reach = 0.75 * _half(cage(build), point, axis=2)
    point[2] = depth * reach
    muscle = heart(build)
    from_heart = muscle.matrix @ (point - muscle.center)
    if from_heart @ from_heart < 1.3:
        point[2] = -0.95 * reach
    return point


def _half(solid: Quadric, point: Vector, *, axis: int) -> float:
    """Half the length, cm, of an unturned ellipsoid along ``axis`` through a ``point`` level with its centre."""
    offset = solid.matrix @ (point - solid.center)
    return float(np.sqrt(max(1 - float(offset @ offset), 0.01)) / solid.matrix[axis, axis])


def trimmed(solid: Quadric, side: str, *, low: float = -np.inf, high: float = np.inf) -> Quadric:
    """The same solid with a smaller box around it, cheaper to draw.

    Only for what is filled into the lung of ``side`` between heights ``low`` and ``high``: the rest may be left out.
    """
    left = SIDES[side] > 0
    first = np.maximum(solid.box[0], (0.0 if left else -np.inf, low - 1, -np.inf))
    last = np.minimum(solid.box[1], (np.inf if left else 0.0, high + 1, np.inf))
    return Quadric(center=solid.center, matrix=solid.matrix, box=(first, last))


def lobe(build: Build, side: str, name: str) -> list[Solid]:
    """The part of the ribcage that holds an ``upper``, ``middle`` (on the left: the lingula) or ``lower`` lobe."""
    oblique = (0.0, 1.0, FISSURE_TILT)
    minor = MINOR_FISSURE * build.height
    if name == "lower":
        return [trimmed(cage(build), side), Slab(normal=oblique, high=FISSURE_HEIGHT)]
    before = Slab(normal=oblique, low=FISSURE_HEIGHT)
    low, high = (-np.inf, minor) if name == "middle" else (minor if side == "right" else -np.inf, np.inf)
    return [trimmed(cage(build), side, low=low, high=high), before, Slab(normal=(0, 1, 0), low=low, high=high)]


def grid(chest: Chest) -> tuple[Map, Map]:
    """x (1, columns) and y (rows, 1), float32 cm, at which each ray crosses the plane z = 0 of an unturned chest."""
    beam = chest.beam
    scale = np.float32(-beam.source[2] / (beam.plane - beam.source[2]))
    x, y = (np.float32(focus) + (edge - np.float32(focus)) * scale
            for focus, edge in ((beam.source[0], beam.u), (beam.source[1], beam.v)))
    return x, y


def bell(x: Map, middle: float, width: float) -> Map:
    """A Gaussian of height 1, float32 of x's shape."""
    value: Map = np.exp(-(((x - np.float32(middle)) / np.float32(width)) ** 2))
    return value


def clouds(chest: Chest, rng: np.random.Generator, *, spacing: float) -> Map:
    """A smooth random field over the detector, float32 (rows, columns), mean 0, deviation about 1.

    Normal numbers on knots ``spacing`` cm apart, spread as Gaussians: the same field at any size of image.
    """
    knots = np.arange(-15.0, 15.0 + spacing, spacing).astype(np.float32)
    heights = rng.standard_normal((len(knots), len(knots)), dtype=np.float32)
    x, y = grid(chest)
    across, down = (np.exp(-(((edge - knots) / np.float32(spacing)) ** 2)) for edge in (x.T, y))
    field: Map = down @ heights @ across.T
    return field / np.float32(np.pi / 2)
