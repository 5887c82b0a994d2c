"""Lungs of the wrong volume: collapsed in part, rolled up, or blown up.

Lost volume shows twice, as the opacity of what has collapsed and as what moves into the room that it leaves, so these
signs change the build (diaphragm) as well as the lung.

Sources: Goodman, *Felson's Principles of Chest Roentgenology*; Hansell et al., Fleischner glossary, Radiology 2008;
Radiopaedia, "Lobar lung collapse". Not promised: collapse of the middle lobe, which frontal images hardly show.
"""

import numpy as np

from cohort.phantom.build import SIDES, Build
from cohort.phantom.chest import AIR, Chest, cage
from cohort.phantom.projection import Slab, ellipsoid, rotation, tube
from cohort.phantom.signs.places import inside, one_side, sides, trimmed, wall
from cohort.phantom.signs.sign import Sign

LOBES = (("right", "upper"), ("left", "lower"), ("right", "lower"), ("left", "upper"))
LOBE_CHANCES = (0.36, 0.28, 0.22, 0.14)


def lift(build: Build, severity: float, rng: np.random.Generator) -> None:
    """The diaphragm rises where there is a band."""
    for side, share in sides(rng, both=0.35).items():
        build.dome[side] += (0.3 + 1.5 * severity) * share


def bands(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    """Straight, nearly level lines of 2 to 10 cm above a raised diaphragm, with a little haze below them."""
    build = chest.build
    for side, share in sides(rng, both=0.35).items():
        n_bands = int(rng.integers(1, 4))
        for number in range(n_bands):
            height = 0.06 + 0.14 * number + rng.uniform(0, 0.08)
            center = inside(build, side, height=height, across=rng.uniform(0.3, 0.7), depth=rng.uniform(-0.5, 0.3))
            tilt = SIDES[side] * rng.normal(0.15, 0.22)
            half = rng.uniform(2.6, 4.4) * (0.7 + 0.5 * severity)
            radii = (half, (0.13 + 0.33 * severity) * share, 1.2 + 2.0 * severity)
            chest.fill(side, [ellipsoid(center, radii, rotation(about_z=tilt))])
        haze = inside(build, side, height=0.0, across=0.35, depth=-0.5)
        chest.fill(side, [ellipsoid(haze, (4.5, 1.2 + 1.8 * severity, 4.0))], share=(0.1 + 0.35 * severity) * share)


def shrink(build: Build, severity: float, rng: np.random.Generator) -> None:
    """The diaphragm of the collapsed lobe's side rises, most for a lower lobe."""
    side, name = _collapsed_lobe(rng)
    build.dome[side] += (0.4 + 1.8 * severity) * (1.0 if name == "lower" else 0.6)


def lobar(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    """A wedge with a sharp border: under the apex (right upper), behind the heart (lower); left upper: a veil."""
    side, name = _collapsed_lobe(rng)
    build, x = chest.build, SIDES[side]
    share, slant = 0.06 + 0.94 * severity, rng.uniform(-0.6, 0.6)
    if name == "lower":
        reach = 4.4 + slant + 1.2 * severity
        wedge = Slab(normal=(x, 0.5, 0.05 * slant), high=reach)
        chest.fill(side, [trimmed(cage(build), side), wedge, Slab(normal=(0, 1, 1), high=-0.5)], share=share)
    elif side == "left":
        veil = Slab(normal=(x * 0.1, 0.45, 1), low=1.8 + slant)
        chest.fill(side, [trimmed(cage(build), side), veil], share=0.8 * share)
        chest.fill(side, [ellipsoid((x * 3.5, 3.5, 1.0), (3.2, 6.0, 5.0))], share=0.5 * share)
    else:
        hilum = 0.3 * build.height
        fissure = Slab(normal=(0, 1, 0), low=hilum)
        radii = (7.4, 13.2 + 2.2 * severity, 12.0)
        expanded = ellipsoid((x * (9.2 + slant), -5.0, 0.0), radii, rotation(about_z=x * 0.12))
        chest.fill(side, [trimmed(cage(build), side, low=hilum), fissure], share=share)
        chest.fill(side, [trimmed(expanded, side, low=hilum), fissure], share=-share)


def _collapsed_lobe(rng: np.random.Generator) -> tuple[str, str]:
    return LOBES[int(np.searchsorted(np.cumsum(LOBE_CHANCES), rng.random() * sum(LOBE_CHANCES)))]


def rounded(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    """A ball at thickened pleura in a lung's lower back, with vessels that curve into it like a comet's tail."""
    side = one_side(rng, right=0.6)
    build, x = chest.build, SIDES[side]
    y = build.dome[side] + rng.uniform(1.0, 5.0)
    z = rng.uniform(-4.0, 0.0) * build.depth
    radius = 1.2 + 1.5 * severity
    edge = wall(build, y, z)
    center = np.array([x * (edge - 0.75 * radius), y, z])
    chest.fill(side, [ellipsoid(center, (radius * 1.1, radius, radius))], share=0.6 + 0.5 * severity)
    chest.fill(side, [ellipsoid((x * edge, y, z), (0.3 + 0.4 * severity, 3.0, 4.5))], pleural=True)
    root = inside(build, side, height=0.5, across=0.0, depth=0.0)
    for bow in (-1.0, -0.35, 0.35, 1.0):
        bend = 0.5 * (center + root) + np.array([0.0, bow * (1.2 + 0.5 * severity) - 1.2, 0.0])
        foot = center + np.array([-x * 0.5, bow * 0.7, 0]) * radius
        calibre = 0.2 + 0.3 * severity
        chest.fill(side, tube(foot, bend, calibre * 1.2))
        chest.fill(side, tube(bend, root, calibre))


def blow_up(build: Build, severity: float, rng: np.random.Generator) -> None:
    """Emphysema: low flat domes, deep chest, thin upright heart, few vessels, little lung tissue per volume."""
    for side in SIDES:
        build.dome[side] -= 0.5 + 2.4 * severity
        build.lung[side] *= 0.95 - 0.4 * severity
    build.dome_curve *= 0.92 - 0.5 * severity
    build.heart *= 0.97 - 0.18 * severity
    build.apex_drop += 0.25 * severity
    build.depth *= 1.0 + 0.06 * severity
    build.rib_slope -= 0.12 * severity
    build.vessels *= 0.95 - 0.45 * severity


def bullae(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    """In some lungs air spaces with hairline walls, most of them in the upper zones."""
    for side in SIDES:
        for _ in range(2):
            shown, height, across = rng.random() < 0.45, rng.uniform(0.45, 0.95), rng.uniform(0.3, 0.9)
            depth, radius = rng.uniform(-0.4, 0.4), rng.uniform(1.6, 3.2) * (0.5 + 0.5 * severity)
            center = inside(chest.build, side, height=height, across=across, depth=depth)
            if shown:
                chest.fill(side, [ellipsoid(center, (radius + 0.12,) * 3)])
                chest.fill(side, [ellipsoid(center, (radius,) * 3)], share=-1.0)
                chest.fill(side, [ellipsoid(center, (radius,) * 3)], AIR)


VOLUME: dict[str, Sign] = {
    "Atelectasis": Sign(shape=lift, draw=bands),
    "Lobar Atelectasis": Sign(shape=shrink, draw=lobar),
    "Round(ed) Atelectasis": Sign(draw=rounded),
    "Emphysema": Sign(shape=blow_up, draw=bullae),
}
"""Signs of lungs of the wrong volume, by label."""
