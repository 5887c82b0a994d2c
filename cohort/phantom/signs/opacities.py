"""Lungs that hold too little air: consolidation, edema and fibrosis.

A consolidation is many soft balls in one neighbourhood or lobe (hence ill-defined except at a fissure), edema a cloudy
map around the hila, fibrosis a net: the zero lines of a smooth random field, as thin and tangled as thickened septa.

Sources: Goodman, *Felson's Principles of Chest Roentgenology*; Hansell et al., Fleischner glossary, Radiology 2008.
Not promised: a cause; pneumonia and haemorrhage look the same here.
"""

import numpy as np

from cohort.phantom.build import SIDES, Build
from cohort.phantom.chest import AIR, LUNG, SOFT, Chest
from cohort.phantom.projection import Vector, ellipsoid, tube
from cohort.phantom.signs.places import bell, clouds, grid, inside, lobe, sides, wall
from cohort.phantom.signs.sign import Sign

N_BALLS = 16
KERLEY_LINES = 6
LOBES = ("upper", "middle", "lower")


def consolidation(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    """An ill-defined patchy opacity with branching air in it; in some cases a lobe that ends sharply at its fissure."""
    for side, share in sides(rng, both=0.35).items():
        lobar = rng.random() < 0.3
        name = LOBES[int(rng.integers(3))]
        height, across, depth = rng.uniform(0.0, 0.8), rng.uniform(0.15, 0.8), rng.uniform(-0.8, 0.8)
        scatter = rng.normal(0, 1, (N_BALLS, 3))
        size = rng.uniform(0.6, 1.2, N_BALLS)
        center = inside(chest.build, side, height=height, across=across, depth=depth)
        extent = (1.4 + 2.0 * severity) * share
        for offset, radius in zip(scatter * extent * (0.75, 0.85, 0.9), size * (0.9 + 0.5 * extent), strict=True):
            chest.fill(side, [ellipsoid(center + offset, (radius,) * 3)], share=0.07 + 0.41 * severity)
        if lobar:
            chest.fill(side, lobe(chest.build, side, name), share=(0.06 + 0.7 * severity) * share)
        _bronchi(chest, side, center, severity, rng)


def _bronchi(chest: Chest, side: str, center: Vector, severity: float, rng: np.random.Generator) -> None:
    """Air bronchograms: bronchi that stay open, from the hilum into the opacity."""
    root = inside(chest.build, side, height=0.55, across=0.0, depth=0.0)
    for _ in range(3):
        end = center + rng.normal(0, 1.3, 3)
        start = root + 0.45 * (end - root)
        chest.fill(side, tube(start, end, 0.2), AIR, share=1.6 * severity)


def edema(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    """Hazy wings around the hila, blurred and full upper vessels, short septal lines at the base of the wall."""
    build = chest.build
    x, y = grid(chest)
    coarse, fine = clouds(chest, rng, spacing=2.2), clouds(chest, rng, spacing=0.8)
    texture = 1 + 0.3 * coarse + 0.18 * fine
    lean = rng.uniform(0.75, 1.25)
    for side, share in (("right", lean), ("left", 2 - lean)):
        wing = bell(x, SIDES[side] * 5.2, 4.0) * bell(y, 0.5 * build.height, 5.6)
        base = bell(x, SIDES[side] * 6.0, 6.5) * bell(y, build.dome[side] + 2.0, 6.0)
        pattern = np.maximum(texture, 0) * (wing + np.float32(0.35) * base)
        amount = (0.03 + 0.62 * severity) * share
        chest.deepen(side, pattern, amount * (SOFT - LUNG * build.lung[side]))
        root = inside(build, side, height=0.6, across=0.0, depth=0.0)
        for _ in range(4):
            reach = np.array([SIDES[side] * rng.uniform(0.5, 4.5), rng.uniform(4.0, 6.5), rng.normal(0, 1.5)])
            chest.fill(side, tube(root, root + reach, 0.15 + 0.17 * severity))
        for _ in range(KERLEY_LINES):
            height = build.dome[side] + rng.uniform(0.0, 5.0)
            depth, length = rng.uniform(-4, 4), rng.uniform(1.0, 2.0)
            edge = SIDES[side] * (wall(build, height, depth) - 0.1)
            chest.fill(side, tube((edge, height, depth), (edge - SIDES[side] * length, height + 0.1, depth),
                                  0.05 + 0.1 * severity))


def stiffen(build: Build, severity: float, rng: np.random.Generator) -> None:
    """Fibrosis makes lungs small: both domes high."""
    for side in SIDES:
        build.dome[side] += 0.4 + 2.4 * severity


def fibrosis(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    """A net of fine lines, densest at the bases and along the wall, in small lungs."""
    build = chest.build
    x, y = grid(chest)
    mesh = rng.uniform(0.6, 0.8)
    fine, coarse = (bell(clouds(chest, rng, spacing=mesh * scale), 0.0, 0.3) for scale in (1.0, 1.5))
    net = fine + coarse - np.float32(0.25)
    lean = rng.uniform(0.85, 1.15)
    for side, share in (("right", lean), ("left", 2 - lean)):
        reach = 5.0 + 6.0 * severity
        basal = bell(y, build.dome[side] - 1.0, reach)
        outward = 0.5 + 0.5 * np.clip((np.float32(SIDES[side]) * x - 3) / np.float32(8), 0, 1)
        amount = (0.05 + 0.45 * severity) * share
        chest.deepen(side, net * basal * outward, amount * (SOFT - LUNG * build.lung[side]))


OPACITIES: dict[str, Sign] = {
    "Consolidation": Sign(draw=consolidation),
    "Edema": Sign(draw=edema),
    "Fibrosis": Sign(shape=stiffen, draw=fibrosis),
}
"""Signs of lungs that hold too little air, by label."""
