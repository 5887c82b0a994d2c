"""Air where there should be none, outside the lungs and the mediastinum.

Sources: Goodman, *Felson's Principles of Chest Roentgenology*; Radiopaedia, articles of the same names. Sizes in cm.
"""

import numpy as np

from cohort.phantom.build import SIDES
from cohort.phantom.chest import AIR, SOFT, Chest, dome
from cohort.phantom.projection import Slab, ellipsoid, rotation, tube
from cohort.phantom.signs.forms import moved
from cohort.phantom.signs.sign import Sign

STREAKS, FIBRES, NECK = 16, 8, 7
"""Pockets of air in each chest wall, gaps in each pectoral muscle, streaks on each side of the neck."""


def subcutaneous_emphysema(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    """Dark streaks and bubbles along the chest wall and up the neck; the pectoral muscle becomes a striped fan."""
    first, other = rng.choice(["left", "right"]), rng.uniform(0.0, 0.8)
    for side in SIDES:
        amount = severity if side == first else severity * other
        strength = (AIR - SOFT) * (0.25 + 0.75 * amount) * (1.0 if side == first else min(4 * amount, 1))
        _wall(chest, side, amount, strength, rng)
        _pectoral(chest, side, amount, strength, rng)
        _neck(chest, side, amount, strength, rng)


def _wall(chest: Chest, side: str, amount: float, strength: float, rng: np.random.Generator) -> None:
    build, x = chest.build, SIDES[side]
    for y, place, long, deep in rng.uniform((-11, 0.0, 0.3, 1.0), (9, 0.6, 2.6, 2.6), (STREAKS, 4)):
        inner = (13.6 * build.width + 0.9) * np.sqrt(1 - ((y + 5) / 20.5) ** 2)
        outer = (15.2 * build.width + build.fat) * np.sqrt(1 - ((y + 12) / 40) ** 2) - 0.2
        lean = rotation(about_z=x * 0.03 * (y + 5))
        pocket = ellipsoid((x * (inner + place * (outer - inner)), y * build.height, 0),
                           (0.12 + 0.28 * amount, long * (0.5 + 0.5 * amount), deep), lean)
        chest.add([pocket], strength)


def _pectoral(chest: Chest, side: str, amount: float, strength: float, rng: np.random.Generator) -> None:
    build, x = chest.build, SIDES[side]
    start = np.array([x * 13.5 * build.width, 9.0 * build.height, 7.0])
    for k, (begin, end) in enumerate(rng.uniform((0.05, 0.55), (0.3, 0.95), (FIBRES, 2))):
        tip = np.array([x * 3.5 * build.width, (8.5 - 1.8 * k) * build.height, 9.0])
        way = tip - start
        chest.add(tube(start + begin * way, start + end * way, 0.12 + 0.26 * amount), strength)


def _neck(chest: Chest, side: str, amount: float, strength: float, rng: np.random.Generator) -> None:
    x = SIDES[side]
    for out, y, long, deep in rng.uniform((1.8, 11, 0.8, 0.8), (5.6, 17, 2.2, 2.0), (NECK, 4)):
        chest.add([ellipsoid((x * out, y * chest.build.height, 0), (0.10 + 0.22 * amount, long, deep),
                             rotation(about_z=x * -0.1 * out))], strength)


def pneumoperitoneum(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    """A dark crescent between the diaphragm, a thin white line, and the liver; often under the left dome too."""
    left, tilt = rng.uniform(0.0, 0.9), rng.uniform(-0.5, 1.0)
    upright = chest.beam.source[2] < 0
    for side, share in (("right", 1.0), ("left", left)):
        thick = (0.15 + 2.0 * severity) * share * (1.0 if upright else 0.7)
        whole = dome(chest.build, side)
        under = moved(whole, (0, -0.28, 0))
        x, _, z = whole.center
        width, height, depth = (whole.box[1] - whole.box[0]) / 2
        shift = SIDES[side] * tilt * 0.5
        organ = ellipsoid((x + shift, whole.center[1] - 0.28 - thick, z), (1.4 * width, height, 1.4 * depth))
        floor = Slab(normal=(0, 1, 0), low=chest.build.dome[side] - 0.5 - 1.5 * thick)
        chest.add([under, floor], AIR - SOFT)
        chest.add([under, organ, floor], SOFT - AIR)


AIR_LEAKS: dict[str, Sign] = {
    "Subcutaneous Emphysema": Sign(draw=subcutaneous_emphysema),
    "Pneumoperitoneum": Sign(draw=pneumoperitoneum),
}
"""Sign by label."""
