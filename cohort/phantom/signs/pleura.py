"""Findings of the pleura: fluid, air, both, and scars.

Fluid and air lie in the pleural cavity, between lung and wall, and are drawn so: fluid is what the cavity holds below a
surface that the lung's rounded base dips into (hence the meniscus), air is what it holds outside a lung that has shrunk
(hence no vessels there).

Sources: Goodman, *Felson's Principles of Chest Roentgenology*; Hansell et al., Fleischner glossary, Radiology 2008.
Not promised: loculated fluid, tension.
"""

import numpy as np

from cohort.phantom.build import SIDES
from cohort.phantom.chest import AIR, CALCIUM, LUNG, SOFT, Chest, cage
from cohort.phantom.projection import Quadric, Slab, Solid, ellipsoid, rotation
from cohort.phantom.signs.places import one_side, sides, trimmed, wall
from cohort.phantom.signs.sign import Sign


def supine(chest: Chest) -> bool:
    """Whether the image was taken in bed: fluid runs to the back."""
    return bool(chest.beam.source[2] > 0)


def effusion(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    """Blunted costophrenic angle, then a basal opacity whose upper border rises to the wall; in bed a veil as well."""
    for side, share in sides(rng, both=0.4, right=0.55).items():
        _fluid(chest, side, severity * share)


def _fluid(chest: Chest, side: str, severity: float) -> None:
    """Fluid whose surface meets the wall at ``top`` and is lowest under the lung's base."""
    build, x = chest.build, SIDES[side]
    bed = supine(chest)
    top = build.dome[side] - 1.2 + (9.0 if bed else 12.0) * severity**1.2
    dip = 3.2 + 3.5 * severity
    middle = 4.6 * build.width
    base = ellipsoid((x * middle, top, -0.3), (wall(build, top) + 0.15 - middle, dip, 9.4 * build.depth))
    below = Slab(normal=(0, 1, 0), high=top)
    chest.fill(side, [trimmed(cage(build), side, high=top), below], pleural=True)
    chest.fill(side, [trimmed(base, side, high=top), below], share=-1.0, pleural=True)
    if bed:
        level = -7.0 * build.depth + 7.0 * severity
        behind = Slab(normal=(0, 0.3, 1), high=level - 1.5)
        chest.fill(side, [trimmed(cage(build), side), behind], share=0.7, pleural=True)


def pneumothorax(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    """A fine pleural line beside a rim without vessels, widest at the apex."""
    side = one_side(rng)
    _collapse(chest, side, severity, tilt=rng.uniform(-0.3, 1.0), floor=chest.build.dome[side] - 1.0)


def hydropneumothorax(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    """A straight fluid level from wall to mediastinum, air and a pleural line above it; in bed a veil instead."""
    side, tilt, filled = one_side(rng), rng.uniform(-0.3, 1.0), rng.uniform(0.25, 0.6)
    build = chest.build
    extent = 0.08 + 0.87 * severity
    if supine(chest):
        _collapse(chest, side, extent, tilt=tilt, floor=build.dome[side] - 1.0)
        _fluid(chest, side, filled * severity**0.5 + 0.4 * severity)
        return
    level = build.dome[side] - 1.5 + (1.0 + 12.0 * filled) * (0.15 + 0.85 * severity)
    _collapse(chest, side, extent, tilt=tilt, floor=level)
    surface = Slab(normal=tuple(chest.beam.pose[1]), high=level)  # level in the room, however one stands
    water: list[Solid] = [trimmed(cage(build), side, high=level), surface]
    chest.fill(side, water, SOFT + LUNG * build.lung[side], pleural=True)  # for the air beside the lung
    chest.fill(side, water, AIR)  # what that was too much within the lung


def _collapse(chest: Chest, side: str, severity: float, *, tilt: float, floor: float) -> None:
    """Air around a shrunken lung, whose edge shows above ``floor``; more beside it than on top the higher ``tilt``."""
    build, x = chest.build, SIDES[side]
    gap = (0.5 + 5.0 * severity**1.3) * (1 + 0.3 * tilt)
    drop = (1.2 + 6.0 * severity**1.3) * (1 - 0.3 * tilt)

    def shrunk(thickness: float) -> Quadric:
        outside = (13.3 * build.width - gap) / 2
        top = 12.3 * build.height - drop
        radii = np.array([outside - 0.3, 16.0 * build.height, 8.9 * build.depth - 0.3 * gap])
        return ellipsoid((x * (outside + 0.3), top - 16.0 * build.height, -0.3 - 0.1 * gap), radii + thickness,
                         rotation(about_z=x * 0.10))

    above = Slab(normal=(0, 1, 0), low=floor)
    chest.collapse(side, shrunk(0.0))
    chest.fill(side, [trimmed(shrunk(0.0), side, low=floor), above], share=0.06 + 0.25 * severity**2)
    chest.fill(side, [trimmed(shrunk(0.08), side, low=floor), above], pleural=True)
    chest.fill(side, [trimmed(shrunk(0.0), side, low=floor), above], share=-1.0, pleural=True)


def thickening(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    """Bands of soft tissue along the wall, a cap over the apex or a blunted angle, sometimes calcified."""
    build = chest.build
    for side, share in sides(rng, both=0.45).items():
        x = SIDES[side]
        apical, calcified = rng.random() < 0.4, rng.random() < 0.25
        extent, low, depth = rng.uniform(2.5, 5.5), rng.uniform(-6.0, 1.0), rng.uniform(-4.0, 2.0)
        thick = (0.35 + 1.1 * severity) * share
        y = low * build.height
        chest.fill(side, [ellipsoid((x * wall(build, y, depth), y, depth), (thick, extent, 4.5))], pleural=True)
        angle = build.dome[side] - 2.6
        chest.fill(side, [ellipsoid((x * wall(build, angle), angle, 0.0), (0.7 + 2.0 * severity, 0.8 + thick, 5.0))],
                   pleural=True)
        if apical:
            foot = 7.0 * build.height
            upper = Slab(normal=(0, 1, 0), low=foot)
            below = ellipsoid((0, -5 * build.height - 1.6 * thick, 0),  # wide and deep: a cap over the apex, no shell
                              (14.6 * build.width, 20.5 * build.height, 12.0 * build.depth))
            chest.fill(side, [trimmed(cage(build), side, low=foot), upper], pleural=True)
            chest.fill(side, [trimmed(below, side, low=foot), upper], share=-1.0, pleural=True)
        if calcified:
            plate = ellipsoid((x * (wall(build, y, depth) - 0.2), y, depth), (0.18, 0.6 * extent, 1.2))
            chest.fill(side, [plate], CALCIUM, share=0.2 + 0.8 * severity, pleural=True)


PLEURA: dict[str, Sign] = {
    "Pleural Effusion": Sign(draw=effusion),
    "Pneumothorax": Sign(draw=pneumothorax),
    "Hydropneumothorax": Sign(draw=hydropneumothorax),
    "Pleural Thickening": Sign(draw=thickening),
}
"""The pleura's signs, by label."""
