"""Focal lesions: nodule, mass and granuloma, told apart by size and by what they are made of.

A nodule is at most 3 cm across and a mass is more (Hansell et al., Fleischner glossary, Radiology 2008); a granuloma is
small, sharp and calcified. A nodule's size is drawn from its severity, so the two sizes never overlap.
Not promised: what they turn out to be.
"""

import numpy as np

from cohort.phantom.chest import CALCIUM, SOFT, Chest
from cohort.phantom.projection import Vector, ellipsoid, rotation, tube
from cohort.phantom.signs.places import inside, one_side
from cohort.phantom.signs.sign import Sign

NODULE_RADII = (0.45, 1.45)
MASS_RADII = (1.7, 4.0)
GRANULOMA_RADII = (0.25, 0.55)


def _between(ends: tuple[float, float], share: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * share


def _somewhere(chest: Chest, rng: np.random.Generator) -> tuple[str, Vector]:
    """A side, and a point in its lung away from the edges."""
    side = one_side(rng, right=0.55)
    height, across, depth = rng.uniform(0.08, 0.92), rng.uniform(0.2, 0.9), rng.uniform(-0.8, 0.8)
    return side, inside(chest.build, side, height=height, across=across, depth=depth)


def nodule(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    """A round opacity of 1 to 3 cm, in one of four several."""
    several, count = rng.random() < 0.25, int(rng.integers(2, 5))
    for number in range(4):
        side, center = _somewhere(chest, rng)
        stretch, turn = rng.uniform(0.85, 1.15, 3), rng.uniform(-1.5, 1.5)
        radius = _between(NODULE_RADII, severity**0.6) * (1.0 if number == 0 else rng.uniform(0.6, 1.0))
        if number == 0 or (several and number < count):
            shape = ellipsoid(center, radius * stretch, rotation(about_z=turn))
            chest.fill(side, [shape], share=0.65 + 0.6 * severity)


def mass(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    """An irregular opacity of more than 3 cm, lobulated and with spicules; now and then a cavity in it."""
    side, center = _somewhere(chest, rng)
    radius = _between(MASS_RADII, severity)
    cavity, off = rng.random() < 0.15, rng.normal(0, 0.15, 3)
    share = 0.6 + 0.4 * severity
    core = ellipsoid(center, radius * 0.85 * rng.uniform(0.85, 1.1, 3), rotation(about_z=rng.uniform(-1.5, 1.5)))
    chest.fill(side, [core], share=share * 0.85)
    directions = rng.normal(0, 1, (6, 3))
    directions /= np.sqrt((directions**2).sum(axis=1))[:, None]
    for direction, size in zip(directions, rng.uniform(0.35, 0.6, 6), strict=True):
        chest.fill(side, [ellipsoid(center + direction * radius * 0.62, (size * radius,) * 3)], share=share * 0.45)
    for direction, length in zip(rng.normal(0, 1, (7, 3)) * (1, 1, 0.3), rng.uniform(1.2, 1.7, 7), strict=True):
        reach = direction / np.sqrt(direction @ direction) * radius
        chest.fill(side, tube(center + 0.6 * reach, center + length * reach, 0.12), share=0.8)
    if cavity:
        chest.fill(side, [ellipsoid(center + off * radius, (0.5 * radius,) * 3)], SOFT, share=-share)


def granuloma(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    """One to three small, sharp, very dense spots; in some a calcified node at the hilum too."""
    count, hilar = int(rng.integers(1, 4)), rng.random() < 0.3
    sides = []
    for number in range(3):
        side, center = _somewhere(chest, rng)
        radius = _between(GRANULOMA_RADII, severity) * rng.uniform(0.75, 1.0)
        sides.append(side)
        if number < count:
            chest.fill(side, [ellipsoid(center, (radius,) * 3)], CALCIUM, share=0.6 + 0.7 * severity)
    node = inside(chest.build, sides[0], height=rng.uniform(0.55, 0.65), across=0.05, depth=0.0)
    if hilar:
        chest.fill(sides[0], [ellipsoid(node, (0.3 + 0.3 * severity, 0.3 + 0.2 * severity, 0.4))], CALCIUM,
                   share=0.6 + 0.7 * severity)


NODULES: dict[str, Sign] = {
    "Nodule": Sign(draw=nodule),
    "Mass": Sign(draw=mass),
    "Granuloma": Sign(draw=granuloma),
}
"""Focal signs, by label."""
