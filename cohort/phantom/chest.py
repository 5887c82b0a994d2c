"""The soft parts of a chest, and the sum of everything that a ray meets.

A chest is a sum of regions of constant linear attenuation, each an intersection of convex solids, so that every line
integral is exact (``projection``). Lung is what the ribcage holds, less heart and diaphragm; what a finding puts into a
lung replaces lung tissue there and nowhere else (``fill``), everything else is added to what is there (``add``).

Attenuation in 1/cm at 60 keV, from NIST's tables of mass attenuation (Hubbell and Seltzer, NISTIR 5632) times density.
Not promised: an atlas. Proportions are those of textbooks, shapes are as simple as they can be and still be recognised.
"""

from collections.abc import Sequence
from math import cos, sin, sqrt

import numpy as np

from cohort.phantom.build import SIDES, Build
from cohort.phantom.pieces import Piece, integrate
from cohort.phantom.projection import Beam, Map, Quadric, Slab, Solid, Span, ellipsoid, hull, intersect, rotation, tube

SOFT, LUNG, FAT, AIR = 0.205, 0.053, 0.178, 0.0
BONE, MARROW = 0.60, 0.24
METAL = 3.5  # titanium
CALCIUM = 0.9  # a dense calcification
CAVITY = "pleural cavity, "


class Chest:
    """A chest in front of a detector; ``integral`` is the line integral of attenuation, without the ray's length."""

    def __init__(self, build: Build, beam: Beam) -> None:
        self.build, self.beam = build, beam
        self.integral = np.zeros((beam.v.shape[0], beam.u.shape[1]), dtype=np.float32)
        self._pieces: list[Piece] = []
        outline = cage(build)
        self.center = hull(whole(beam, mediastinum(build)), intersect(beam, [heart(build)]))
        self.lungs = {side: whole(beam, outline, *lung(build, side)) for side in SIDES}
        self.domes = {side: whole(beam, dome(build, side)) for side in SIDES}
        self.aerated = {side: self._net(side, self.lungs[side]) for side in SIDES}
        self._cavities = dict(self.lungs)  # the pleural cavities, which keep their size when a lung collapses
        self._put(body(build, beam), SOFT)
        for side, length in self.aerated.items():
            self.integral += np.float32(LUNG * build.lung[side] - SOFT) * length

    def add(self, solids: Sequence[Solid], attenuation: float, *, spans: Sequence[Span] = ()) -> None:
        """Add ``attenuation`` (1/cm, may be negative) to what is in the intersection of ``solids`` and ``spans``."""
        if not self._queue(solids, spans, attenuation, lung=None):
            span = intersect(self.beam, solids, spans)
            if span is not None:
                self._put(span, attenuation)

    def fill(self, side: str, solids: Sequence[Solid], attenuation: float = SOFT, *, share: float = 1.0,
             pleural: bool = False) -> None:
        """Replace lung tissue by ``attenuation`` in the part of a lung inside ``solids``.

        ``share`` of it: below 1 some air is left; -1 takes back what an earlier call with 1 has filled there. What is
        ``pleural`` lies in the cavity, which keeps its size when the lung collapses.
        """
        change = share * (attenuation - LUNG * self.build.lung[side])
        if not self._queue(solids, (), change, lung=CAVITY + side if pleural else side):
            span = intersect(self.beam, solids, [(self._cavities if pleural else self.lungs)[side]])
            if span is not None:
                self.integral[span.rows, span.columns] += np.float32(change) * self._net(side, span)

    def collapse(self, side: str, solid: Solid) -> None:
        """Shrink a lung to what is inside ``solid``; the rest of its cavity holds air and no vessels."""
        before = self.aerated[side]
        inside, tissue = whole(self.beam, solid), self.lungs[side]
        self.lungs[side] = Span(rows=tissue.rows, columns=tissue.columns, low=np.maximum(inside.low, tissue.low),
                                high=np.minimum(inside.high, tissue.high))
        self.aerated[side] = self._net(side, self.lungs[side])
        self.integral += np.float32(AIR - LUNG * self.build.lung[side]) * (before - self.aerated[side])

    def deepen(self, side: str, pattern: Map, attenuation: float) -> None:
        """Add ``attenuation`` (1/cm) times ``pattern``, float32 of the detector's shape, to a whole lung's tissue."""
        self.integral += np.float32(attenuation) * pattern * self.aerated[side]

    def finish(self) -> Map:
        """The integral with everything that was added."""
        obstacles = (self.center.low, self.center.high)
        lungs = {name: ((space.low, space.high), obstacles, (self.domes[side].low, self.domes[side].high))
                 for side in SIDES for name, space in ((side, self.lungs[side]), (CAVITY + side, self._cavities[side]))}
        integrate(self.beam, self._pieces, lungs, self.integral)
        self._pieces = []
        return self.integral

    def _queue(self, solids: Sequence[Solid], spans: Sequence[Span], attenuation: float, *, lung: str | None) -> bool:
        """Whether it is a single quadric cut by at most two slabs, to be integrated with all the others at the end."""
        quadrics = [solid for solid in solids if isinstance(solid, Quadric)]
        slabs = tuple(solid for solid in solids if isinstance(solid, Slab))
        if spans or len(quadrics) != 1 or len(slabs) > 2:
            return False
        self._pieces.append(Piece(quadric=quadrics[0], slabs=slabs, attenuation=attenuation, lung=lung))
        return True

    def _net(self, side: str, span: Span) -> Map:
        """Length of ``span``, inside a lung, that is neither heart nor mediastinum nor below the diaphragm."""
        center, below = (intersect(self.beam, [], [span, part]) for part in (self.center, self.domes[side]))
        length: Map = span.length()
        if center is not None and below is not None:
            both = np.maximum(np.minimum(center.high, below.high) - np.maximum(center.low, below.low), 0)
            length = length - center.length() - below.length() + both
        return length

    def _put(self, span: Span, attenuation: float) -> None:
        self.integral[span.rows, span.columns] += np.float32(attenuation) * span.length()


def whole(beam: Beam, *solids: Solid) -> Span:
    """The intersection of ``solids`` for every ray of the detector; high < low where a ray misses it."""
    shape = (beam.v.shape[0], beam.u.shape[1])
    low, high = np.ones(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
    span = intersect(beam, solids)
    if span is not None:
        low[span.rows, span.columns], high[span.rows, span.columns] = span.low, span.high
    return Span(rows=slice(0, shape[0]), columns=slice(0, shape[1]), low=low, high=high)


def cage(build: Build, thickness: float = 0.0) -> Quadric:
    """The inside of the ribcage, or its outside ``thickness`` cm further out."""
    return ellipsoid((0, -5 * build.height, 0), (13.6 * build.width + thickness, 20.5 * build.height + thickness,
                                                 9.2 * build.depth + thickness))


def lung(build: Build, side: str) -> tuple[Solid, ...]:
    """Where a lung can be, within the ribcage: an ellipsoid that leans inwards, beside the middle."""
    x = SIDES[side]
    space = ellipsoid((x * 6.9 * build.width, -4.5 * build.height, -0.3),
                      (6.7 * build.width, 17.8 * build.height, 9.2 * build.depth), rotation(about_z=x * 0.12))
    return space, Slab(normal=(x, 0, 0), low=0.5)


def mediastinum(build: Build) -> Quadric:
    """What keeps the lungs apart, the heart aside; they nearly meet in front of it and behind."""
    return ellipsoid((0.1, -4, -1.8), (build.mediastinum * 1.12, 30, 5.5 * build.depth))


def dome(build: Build, side: str) -> Quadric:
    """The diaphragm's dome and what lies below it."""
    high = 9.5 * build.dome_curve
    return ellipsoid((SIDES[side] * 6.4 * build.width, build.dome[side] - high, -0.5),
                     (7.6 * build.width, high, 9.8 * build.depth))


def heart(build: Build) -> Quadric:
    """The heart: its long axis points to the left, down and to the front."""
    turned = rotation(about_y=-0.35, about_z=-build.apex_drop)
    scale = build.heart * build.width
    lowest = min(build.dome.values()) + 3.6
    return ellipsoid((1.9 * build.width, lowest, 2.2), (6.6 * scale, 4.9 * scale, 4.6 * scale), turned)


def body(build: Build, beam: Beam) -> Span:
    """Trunk, shoulders, neck and breasts as one body."""
    fat, width = build.fat, build.width
    trunk = ellipsoid((0, -12 * build.height, 0), (15.2 * width + fat, 40 * build.height, 10.6 * build.depth + fat))
    parts: list[Span | None] = [intersect(beam, tube((0, 8, -1), (0, 30, -1), 5.6 * width))]
    for x in SIDES.values():
        parts.append(intersect(beam, [ellipsoid((x * 13.2 * width, 11.5 * build.height, -1.5),
                                                (6.4 * width + fat, 5.6 + fat, 5.5 + fat))]))
        if build.breast:
            lean = rotation(about_x=0.5, about_z=-x * 0.25)
            parts.append(intersect(beam, [ellipsoid((x * 8.2 * width, -8.0 * build.height, 8.2 * build.depth),
                                                    (6.4 * width, 7.4, 0.6 + 0.7 * fat + 0.5 * build.breast), lean)]))
    return hull(whole(beam, trunk), *parts)


def draw_soft_parts(chest: Chest, rng: np.random.Generator) -> None:
    """Great vessels, hila, windpipe, the lungs' vessels and the air in the stomach."""
    build = chest.build
    h, w = build.height, build.width
    knob = build.aorta_knob
    for side, solids in (
        ("left", [ellipsoid((2.3 * w, 7.0 * h, -1.5), (2.0 * knob, 1.7 * knob, 2.6))]),
        ("left", [ellipsoid((3.4 * w, 3.0 * h, -0.5), (1.6, 1.5, 1.6))]),
        ("right", [ellipsoid((-3.5 * w, 1.8 * h, 0.0), (1.5, 2.1, 1.5))]),
        ("right", tube((-2.4 * w, 9 * h, 1), (-2.4 * w, 1 * h, 1), 0.9)),
        ("left", tube(((1.9 + build.aorta_sway) * w, 6.5 * h, -4.5), (1.6 * w, -16 * h, -5.5), 1.25)),
    ):
        chest.fill(side, solids)
    inside = Slab(normal=(1, 0, 0), low=-build.mediastinum, high=build.mediastinum)
    shift = 0.35 * build.spine_bend
    for start, end, radius in (((0.2 + shift, 22, 0.5), (0.2 + shift, 5.2 * h, -1.5), 0.85),
                               ((0.2 + shift, 5.4 * h, -1.5), (-4, 2.2 * h, -1.5), 0.65),
                               ((0.2 + shift, 5.4 * h, -1.5), (4.6, 1.9 * h, -1.5), 0.55)):
        chest.add([*tube(start, end, radius), inside], AIR - SOFT)
    if build.stomach:
        size = build.stomach
        bubble = (6.2 * w, build.dome["left"] - 1.0 - 1.5 * size, 1.5)
        chest.add([ellipsoid(bubble, (2.9 * size, 1.4 * size, 3.0 * size))], AIR - SOFT)
    for side in SIDES:
        _draw_vessels(chest, side, rng)


def _draw_vessels(chest: Chest, side: str, rng: np.random.Generator) -> None:
    """A fan of branching tubes from the hilum; thinner outwards, wider below than above as in an upright chest."""
    x, scale = SIDES[side], chest.build.vessels
    root = (x * 3.4 * chest.build.width, 2.0 * chest.build.height, -0.3)
    for angle in (np.linspace(-1.35, 1.15, 7) + rng.normal(0, 0.12, 7)).tolist():
        direction = (x * cos(angle), sin(angle), rng.normal(0, 0.45))
        _grow(chest, side, root, direction, calibre=scale * (0.44 if angle < 0 else 0.36), level=0, rng=rng)


def _grow(chest: Chest, side: str, start: tuple[float, float, float], direction: tuple[float, float, float], *,
          calibre: float, level: int, rng: np.random.Generator) -> None:
    """One vessel and, to the second level, the two that it divides into."""
    x, y, z = (value / sqrt(sum(part * part for part in direction)) for value in direction)
    length = rng.uniform(2.6, 4.2) * (1.2 if level == 0 else 1.0)
    end = (start[0] + x * length, start[1] + y * length, start[2] + z * length)
    chest.fill(side, tube(start, end, calibre))
    if level < 2:
        for turn in (-1, 1):
            bend = turn * rng.uniform(0.25, 0.5)
            branch = (x * cos(bend) - y * sin(bend), x * sin(bend) + y * cos(bend), z + rng.normal(0, 0.25))
            _grow(chest, side, end, branch, calibre=calibre * 0.72, level=level + 1, rng=rng)
