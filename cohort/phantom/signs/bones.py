"""Broken ribs and clavicles, bent spines.

A broken bone is the intact one taken out over a few centimetres and put back as two fragments out of line; a healed one
keeps its line and gains a knot of new bone. Sources: Goodman, *Felson's Principles of Chest Roentgenology*;
Radiopaedia, articles of the same names. Sizes in cm.
"""

from itertools import pairwise

import numpy as np

from cohort.phantom.build import SIDES, Build
from cohort.phantom.chest import BONE, MARROW, SOFT, Chest
from cohort.phantom.projection import Vector, ellipsoid, tube
from cohort.phantom.signs.forms import bar, column
from cohort.phantom.signs.sign import Sign
from cohort.phantom.skeleton import (
    MARROW_HEIGHT,
    RIB_HEIGHT,
    RIB_THICKNESS,
    clavicle,
    rib_level,
    rib_normal,
    spine_offset,
)

RIB = BONE - SOFT - 0.6 * (BONE - MARROW) * MARROW_HEIGHT / RIB_HEIGHT
"""A rib's attenuation beyond soft tissue's, its marrow included, 1/cm."""


def rib_point(build: Build, side: str, rib: int, angle: float) -> Vector:
    """The middle of a rib, cm (3), at ``angle`` around the chest: 0 in front, pi / 2 at the side, pi behind."""
    normal, level = rib_normal(build, side), rib_level(build, rib)
    point = np.zeros(3)
    for _ in range(8):  # a fixed point: the shell's circumference depends on the height, which falls along the rib
        share = np.sqrt(max(1 - ((point[1] + 5 * build.height) / (20.5 * build.height)) ** 2, 0.05))
        point[0] = SIDES[side] * (13.6 * build.width + RIB_THICKNESS / 2) * share * np.sin(angle)
        point[2] = (9.2 * build.depth + RIB_THICKNESS / 2) * share * np.cos(angle)
        point[1] = level - normal[0] * point[0] - normal[2] * point[2]
    return point


def rib_fracture(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    """Neighbouring ribs broken in a row, with a step, a gap and a bruise below the pleura; or the knots of healing."""
    side = rng.choice(["left", "right"])
    first, most, angle = int(rng.integers(2, 6)), rng.uniform(1, 4), rng.uniform(1.1, 2.0)
    jitter, turns, healed = rng.normal(0, 0.06, 4), rng.choice([-1.0, 1.0], 4), rng.random(4) < 0.35
    bone, up = RIB * chest.build.bone, np.array([0.0, 1.0, 0.0])
    for k in range(1 + int(most * (0.4 + 0.6 * severity))):
        before, at, after = (rib_point(chest.build, side, first + k, angle + jitter[k] + turn)
                             for turn in (-0.17, 0, 0.17))
        along = (after - before) / np.linalg.norm(after - before)
        if healed[k]:
            for place in (-0.35, 0.35):
                knot = ellipsoid(at + place * along, (0.5 + 0.55 * severity,) * 3)
                chest.add([knot], bone * (0.35 + 0.9 * severity))
            continue
        outward = np.cross(along, up) * np.sign(np.cross(along, up) @ at)
        shift = (0.5 * up + outward) * turns[k] * (0.12 + 0.65 * severity)
        gap = along * (0.10 + 0.25 * severity)
        for start, end in ((before, at), (at, after)):
            chest.add(bar(start, end, up=up, high=0.56, thick=0.37), -bone)
        chest.add(bar(before, at + shift - gap, up=up, high=0.6, thick=0.42), 1.3 * bone)
        chest.add(bar(at - shift + gap, after, up=up, high=0.6, thick=0.42), 1.3 * bone)
        chest.fill(side, [ellipsoid(at - 0.4 * outward, (0.7 + 0.9 * severity,) * 3)], share=0.3 + 0.7 * severity)


def clavicle_fracture(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    """The middle third is broken: the inner end is pulled up, the outer one hangs and slides inwards below it."""
    side = rng.choice(["left", "right"])
    where, lean = rng.uniform(0.35, 0.65), rng.uniform(0.7, 1.3)
    start, end, shoulder = (np.array(point) for point in clavicle(chest.build, side)[1:4])
    up = np.array([0.0, 0.15 + 1.1 * severity, 0.0]) * lean
    override = -0.16 + 0.45 * severity
    inner, outer = (start + (end - start) * share for share in (where + override / 2, where - override / 2))
    for a, b, share in ((start, end, -1.0), (end, shoulder, -1.0), (start, inner + up, 1.15),
                        (outer - up, end - 0.8 * up, 1.15), (end - 0.8 * up, shoulder, 1.0)):
        chest.add(tube(a, b, 0.58), share * (BONE * chest.build.bone - SOFT))
        chest.add(tube(a, b, 0.58 * 0.62), share * (MARROW - BONE) * chest.build.bone)


def bend_spine(build: Build, severity: float, rng: np.random.Generator) -> None:
    """The spine is bent sideways; the trunk leans a little."""
    way = rng.choice([-1.0, 1.0], p=[0.25, 0.75])  # thoracic curves are mostly convex to the right
    build.spine_height, lean = rng.uniform(-3.0, 5.0), rng.uniform(0.5, 1.0)
    build.spine_bend = -way * (0.9 + 3.6 * severity)
    build.turn = (build.turn[0], build.turn[1] + 0.10 * way * severity * lean, build.turn[2] + 0.03 * way * severity)


def follow_spine(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    """The soft tissue beside the spine goes with it into the lung."""
    build = chest.build
    side = "left" if build.spine_bend > 0 else "right"
    points = [(spine_offset(build, y)[0], y, -3.0) for y in np.linspace(14, -12, 11) * build.height]
    for top, foot in pairwise(points):
        chest.fill(side, column(top, foot, wide=2.2, deep=5.5))


def hunch(build: Build, severity: float, rng: np.random.Generator) -> None:
    """The chest is short, deep and round, its ribs steep, its upper part bent forward."""
    form = rng.uniform(0.85, 1.15)
    bent = (0.2 + 0.8 * severity) * form
    build.hump += bent
    build.height *= 1 - 0.15 * bent
    build.depth *= 1 + 0.12 * bent
    build.width *= 1 + 0.05 * bent
    build.rib_slope += 0.22 * bent
    build.turn = (build.turn[0] + 0.12 * bent, *build.turn[1:])


def chin(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    """The head hangs: chin and jaw cover the apices."""
    aside, wide = rng.normal(0, 0.5), rng.uniform(4.6, 5.8)
    place = (aside, 23.5 - 6.0 * severity, 9.5)
    chest.add([ellipsoid(place, (wide, 6.0, 4.5))], 0.5 * SOFT)
    change = 0.22 * (BONE * chest.build.bone - SOFT)
    chest.add([ellipsoid(place, (wide - 0.3, 5.7, 4.2))], change)
    chest.add([ellipsoid(place, (wide - 1.2, 4.8, 3.3))], -change)


BONES: dict[str, Sign] = {
    "Rib Fracture": Sign(draw=rib_fracture),
    "Clavicle Fracture": Sign(draw=clavicle_fracture),
    "Scoliosis": Sign(shape=bend_spine, draw=follow_spine),
    "Kyphosis": Sign(shape=hunch, draw=chin),
}
"""Sign by label."""
