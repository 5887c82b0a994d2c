"""The heart, the aorta and what lies between the lungs, when something is wrong with it.

Thin lines (a calcified wall, a fissure, a lifted pleura) are shells: an ellipsoid less a slightly smaller one. Where a
ray runs along the wall the shadow is a line, elsewhere it hardly shows, as in a radiograph.

Sources: Goodman, *Felson's Principles of Chest Roentgenology*; Hansell and others, Fleischner glossary (2008). In cm.
"""

import numpy as np

from cohort.phantom.build import SIDES, Build
from cohort.phantom.chest import AIR, CALCIUM, LUNG, SOFT, Chest, heart, mediastinum
from cohort.phantom.projection import Slab, ellipsoid, rotation, tube
from cohort.phantom.signs.forms import between, column, grown
from cohort.phantom.signs.sign import Sign


def enlarge_heart(build: Build, severity: float, rng: np.random.Generator) -> None:
    """The heart is wider than half the chest; its apex points down (left ventricle) or out."""
    build.heart *= 1.06 + 0.40 * severity
    build.apex_drop += rng.uniform(-0.25, 0.12) * (0.3 + 0.7 * severity)
    build.vessels *= 1 + 0.15 * severity


def hernia(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    """Hiatal hernia: a round shadow behind the heart, low and near the middle, with an air-fluid level in it."""
    build = chest.build
    side, shift, full = rng.choice([-1.0, 1.0], p=[0.3, 0.7]), rng.uniform(0.6, 2.2), rng.uniform(-0.1, 0.45)
    size = 2.0 + 3.0 * severity
    wide = size * rng.uniform(0.95, 1.25)
    x, y, z = side * shift * (0.6 + 0.6 * severity), min(build.dome.values()) + 2.2 + 0.55 * size, -4.0
    for lung in SIDES:
        chest.fill(lung, [ellipsoid((x, y, z), (wide, size, 0.8 * size))])
    inside = ellipsoid((x, y, z), (0.9 * wide, 0.9 * size, 0.7 * size))
    upright = chest.beam.source[2] < 0
    level = Slab(normal=(0, 1, 0), low=y + full * size)
    chest.add([inside, level] if upright else [grown(inside, 0.62)], (AIR - SOFT) * (0.55 + 0.45 * severity))


def lengthen_aorta(build: Build, severity: float, rng: np.random.Generator) -> None:
    """The aorta has grown too long for its place: a large high knob."""
    build.aorta_knob *= 1.06 + 0.30 * severity * rng.uniform(0.8, 1.1)


def tortuous_aorta(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    """The descending aorta swings into the left lung and back; the ascending one bulges to the right."""
    w, h = chest.build.width, chest.build.height
    swing, lowest, rise = rng.uniform(0.8, 1.2), rng.uniform(-2.0, 1.5), rng.uniform(0.4, 1.0)
    reach = 1.2 + 3.4 * severity * swing
    turns = np.linspace(0, np.pi, 9)
    edges = 2.3 * w + reach * np.sin(turns)  # where the left border runs; the right one is hidden in the mediastinum
    points = [((edge + 1.0) / 2, y, -3.5 - 1.5 * np.sin(turn / 2))
              for edge, y, turn in zip(edges, np.linspace(7.0 * h, 2 * lowest - 7.0 * h, 9), turns, strict=True)]
    for top, foot, edge in zip(points[:-1], points[1:], edges, strict=False):
        chest.fill("left", column(top, foot, wide=(edge - 1.0) / 2 + 0.8, deep=2.5))
    chest.fill("right", [ellipsoid((-1.5 * w, 4.5 * h, 0.8), (2.0 + 2.4 * rise * severity, 4.0, 2.4))])


def calcified_aorta(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    """A thin bright rim on the wall of the aortic knob, and flecks further down the wall."""
    build = chest.build
    w, h, knob = build.width, build.height, build.aorta_knob
    angle, arc, deep = rng.uniform(0.0, 0.9), rng.uniform(0.0, 0.35), rng.uniform(0.8, 1.5)
    inner = ellipsoid((2.3 * w, 7.0 * h, -1.5), (1.85 * knob, 1.55 * knob, 2.6))
    across = (np.cos(angle), np.sin(angle), 0.0)
    middle = float(np.dot(across, inner.center))
    slabs = [Slab(normal=across, low=middle + (0.75 - 0.5 * severity - 0.2 * arc) * 1.7 * knob),
             Slab(normal=(0, 0, 1), low=-1.5 - deep, high=-1.5 + deep)]
    change = (CALCIUM - SOFT) * (0.45 + 0.55 * severity)
    chest.add([grown(inner, 1.08 + 0.06 * severity), *slabs], change)
    chest.add([inner, *slabs], -change)
    for place, length in zip(rng.uniform(-9, 4, 4), rng.uniform(0.6, 1.6, 4), strict=True):
        x = 3.0 * w + 0.06 * place
        chest.add(tube((x, place * h, -4.6), (x - 0.05, place * h - length * (0.4 + severity), -4.7), 0.12),
                  change * min(2 * severity, 1))


def pneumomediastinum(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    """Air lifts the pleura off the heart and the upper mediastinum as a fine line, and streaks up into the neck."""
    build = chest.build
    first = rng.choice(["left", "right"], p=[0.7, 0.3])
    other, high, low = rng.uniform(0.3, 1.0), rng.uniform(6.0, 10.0), rng.uniform(-8.0, -4.0)
    covers = ((heart(build), (low, 3.2)), (grown(mediastinum(build), 1.04), (2.2, high * build.height)))
    for side in SIDES:
        gap = (0.035 + 0.10 * severity) * (1.0 if side == first else other)
        for covered, heights in covers:
            air = between(grown(covered, 1 + gap), *heights)
            chest.fill(side, between(grown(covered, (1 + gap) * (1.030 + 0.018 * severity)), *heights))
            chest.fill(side, air, share=-1)
            chest.fill(side, air, AIR, share=1.0 + severity)
    places, forms = rng.uniform((-3.4, 6.5), (3.4, 14.5), (12, 2)), rng.uniform((1.2, 0.7), (3.0, 1.5), (12, 2))
    for (x, y), (long, deep), lean in zip(places, forms, rng.normal(0, 0.08, 12), strict=True):
        streak = ellipsoid((x + lean * long, y, 0.5), (0.10 + 0.20 * severity, long, deep), rotation(about_z=-lean))
        chest.add([streak], (AIR - SOFT) * (0.25 + 0.55 * severity))


def azygos_lobe(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    """A fine line, convex outwards, from the right apex to a teardrop (the vein) above the right hilum."""
    w, h = chest.build.width, chest.build.height
    out, foot, deep = rng.uniform(2.6, 4.4), rng.uniform(3.4, 4.8), rng.uniform(3.0, 4.5)
    drop = 0.5 + 0.5 * severity
    inner = ellipsoid((-2.2 * w, 10.0 * h, -1.0), (out * w, 10.0 * h - foot, deep))
    outside = Slab(normal=(-1, 0, 0), low=2.9 * w)
    chest.fill("right", [grown(inner, 1.03 + 0.05 * severity), outside])
    chest.fill("right", [inner, outside], share=-1)
    chest.fill("right", [inner, outside], LUNG + 0.012 * severity)  # its own lobe is a little denser
    chest.fill("right", [ellipsoid((-3.5 * w, foot + 0.5, -1.0), (drop, 1.7 * drop, drop))])


MEDIASTINUM: dict[str, Sign] = {
    "Cardiomegaly": Sign(shape=enlarge_heart),
    "Hernia": Sign(draw=hernia),
    "Tortuous Aorta": Sign(shape=lengthen_aorta, draw=tortuous_aorta),
    "Calcification of the Aorta": Sign(draw=calcified_aorta),
    "Pneumomediastinum": Sign(draw=pneumomediastinum),
    "Azygos Lobe": Sign(draw=azygos_lobe),
}
"""Sign by label."""
