"""The bones: ribs, clavicles, scapulae, spine, sternum; lengths in cm.

Ribs are what a stack of parallel slabs cuts out of the shell of the ribcage. The slabs fall from back to front, so that
a rib's shadow is the familiar curve: the back part nearly level and high, the front part steep and low, both meeting at
the side, where the ray runs along the bone and the shadow is brightest. The height h = n . x above the stack's foot is
linear along a ray, and the bone below height h, F(h), is a staircase of ramps; so the bone on a ray between t and t' is
(F(h(t')) - F(h(t))) / (dh/dt), exactly and for all ribs at once. Cartilage does not show: ribs end before the
breastbone.
"""

from itertools import pairwise

import numpy as np

from cohort.phantom.build import SIDES, Build
from cohort.phantom.chest import BONE, MARROW, SOFT, Chest, cage
from cohort.phantom.projection import Beam, Map, Slab, Vector, ellipsoid, intersect, rotation, tube

N_RIBS = 11
RIB_SPACING = 2.3
RIB_HEIGHT, MARROW_HEIGHT = 1.15, 0.7
RIB_THICKNESS = 0.75


def rib_normal(build: Build, side: str) -> Vector:
    """The direction h in which the ribs of a side are stacked; its y is 1, so that h is a height at x = z = 0."""
    return np.array([SIDES[side] * 0.16, 1.0, build.rib_slope])


def rib_level(build: Build, rib: int) -> float:
    """The height h of the middle of rib 0 (the first), 1, ... in cm."""
    return (9.6 - RIB_SPACING * rib) * build.height


def rib_end(build: Build) -> Slab:
    """Where bone turns into cartilage: low ribs end further back."""
    return Slab(normal=(0, -0.42, 1), high=3.6 * build.depth)


def draw_bones(chest: Chest) -> None:
    """All bones of a chest, onto its integral."""
    for side in SIDES:
        _draw_ribs(chest, side)
    _draw_shoulders(chest)
    _draw_spine(chest)


def _draw_ribs(chest: Chest, side: str) -> None:
    """Compact bone between the shell's walls, less the marrow in its middle; the shell is met at the front and back."""
    build, beam = chest.build, chest.beam
    outer = intersect(beam, [cage(build, RIB_THICKNESS), Slab(normal=(SIDES[side], 0, 0), low=1.5)])
    if outer is None:
        return
    at = (outer.rows, outer.columns)
    entry, leave = cage(build).cross(beam, *at)
    entry, leave = np.maximum(entry, outer.low), np.minimum(leave, outer.high)
    solid = leave <= entry
    middle = (outer.low + outer.high) / 2
    back, front = np.where(solid, middle, entry), np.where(solid, middle, leave)
    low, high = rib_end(build).cross(beam, *at)
    slope, start = _height_along(beam, rib_normal(build, side), *at)
    total = np.zeros_like(slope)
    for first, last in ((outer.low, back), (front, outer.high)):
        first, last = np.maximum(first, low), np.minimum(last, high)
        last = np.maximum(last, first)
        total += _bone_below(start + slope * last, build) - _bone_below(start + slope * first, build)
    chest.integral[at] += total / slope


def _height_along(beam: Beam, normal: Vector, rows: slice, columns: slice) -> tuple[Map, float]:
    """dh/dt for the rays of a window, and h at the focal spot."""
    a, b, c = (np.float32(x) for x in normal @ beam.ray)
    return (a * beam.u[:, columns] + c) + b * beam.v[rows], float(normal @ beam.spot)


def _bone_below(h: Map, build: Build) -> Map:
    """F(h): the bone in the stack below height h, cm, times its attenuation less soft tissue's; float32."""
    compact, marrow = BONE * build.bone - SOFT, 0.6 * (MARROW - BONE) * build.bone
    spacing = RIB_SPACING * build.height
    foot = np.float32(rib_level(build, N_RIBS - 1) - RIB_HEIGHT / 2)
    steps = np.clip((h - foot) * np.float32(1 / spacing), 0, N_RIBS)
    full = np.floor(steps)
    steps -= full  # where in its own step, of which the rib takes the lower part
    below: Map = full * np.float32(compact * RIB_HEIGHT + marrow * MARROW_HEIGHT)
    below += np.minimum(steps, np.float32(RIB_HEIGHT / spacing)) * np.float32(compact * spacing)
    steps -= np.float32((RIB_HEIGHT - MARROW_HEIGHT) / 2 / spacing)
    below += np.clip(steps, 0, np.float32(MARROW_HEIGHT / spacing)) * np.float32(marrow * spacing)
    return below


def long_bone(chest: Chest, start: tuple[float, float, float], end: tuple[float, float, float], radius: float) -> None:
    """A tube of compact bone around marrow."""
    chest.add(tube(start, end, radius), chest.build.bone * BONE - SOFT)
    chest.add(tube(start, end, radius * 0.62), (MARROW - BONE) * chest.build.bone)


def clavicle(build: Build, side: str) -> list[tuple[float, float, float]]:
    """The points that a clavicle runs through, from the breastbone outwards."""
    x, w, h = SIDES[side], build.width, build.height
    return [(x * 1.9 * w, 9.0 * h, 5.0), (x * 7.0 * w, 10.6 * h, 5.2), (x * 11.0 * w, 12.0 * h, 2.5),
            (x * 15.5 * w, 12.4 * h, -1.0)]


def _draw_shoulders(chest: Chest) -> None:
    build = chest.build
    w, h = build.width, build.height
    forward = chest.beam.source[2] < 0  # hands on the hips: the shoulder blades are turned out of the lungs
    for side, x in SIDES.items():
        points = clavicle(build, side)
        for start, end in pairwise(points):
            long_bone(chest, start, end, 0.58)
        out = 15.2 if forward else 12.2
        turned = rotation(about_y=x * (-0.9 if forward else -0.5), about_z=x * 0.16)
        blade = ellipsoid((x * out * w, 4.5 * h, -7.0), (3.6, 7.2 * h, 0.42), turned)
        chest.add([blade], 0.6 * (BONE * build.bone - SOFT))
        long_bone(chest, (x * (out - 3.5) * w, 8.6 * h, -8.0), (x * (out + 3.5) * w, 12.2 * h, -4.0), 0.5)
        chest.add([ellipsoid((x * 18.2 * w, 10.8 * h, -1.5), (2.4, 2.5, 2.4))], MARROW * build.bone - 0.5 * SOFT)
        long_bone(chest, (x * 18.6 * w, 9.5 * h, -1.5), (x * 20.5 * w, -12 * h, -1.0), 1.1)
    breastbone = ellipsoid((0, 2 * h, 8.8 * build.depth), (1.7, 8.5 * h, 0.55))
    chest.add([breastbone], 0.5 * (MARROW * build.bone - SOFT) + 0.03)


def spine_offset(build: Build, y: float) -> tuple[float, float]:
    """Where the spine's middle stands at height y, cm: (x, z)."""
    x = build.spine_bend * float(np.exp(-((y - build.spine_height) / 7.5) ** 2))
    return x, -5.8 + build.hump * 2.0 * float(np.exp(-((y - 6) / 6) ** 2)) * -1.0


def _draw_spine(chest: Chest) -> None:
    build = chest.build
    bone = build.bone
    pitch = 2.42 * build.height
    for level in range(17):
        y = 17.5 * build.height - pitch * level
        (x, z), (x_low, z_low) = spine_offset(build, y), spine_offset(build, y - 0.8 * pitch)
        radius = 1.35 + 0.025 * level
        chest.add(tube((x, y, z), (x_low, y - 0.8 * pitch, z_low), radius), 0.08 * bone)
        for out in (-1, 1):
            chest.add([ellipsoid((x + out * 1.15, y - 0.3 * pitch, z - 1.9), (0.42, 0.55, 0.7))], 0.18 * bone)
        chest.add([ellipsoid((x, y - 0.75 * pitch, z - 3.3), (0.32, 1.0, 1.3))], 0.15 * bone)
