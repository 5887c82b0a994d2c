"""Support devices: what doctors leave in and on a chest.

Wires and tubes are chains of short straight pieces along a smooth curve through a few anatomical points. Plastic lines
carry barium so that they show. Courses as in Radiopaedia's articles on lines and tubes. Sizes in cm.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from scipy.interpolate import CubicSpline

from cohort.phantom.chest import CALCIUM, METAL, Chest
from cohort.phantom.projection import ellipsoid, tube
from cohort.phantom.signs.sign import Sign

Point = tuple[float, float, float]
PLASTIC = 0.30
"""Attenuation of a tube's wall beyond soft tissue's, 1/cm."""
PIECE = 2.2
"""Length of a wire's straight pieces, cm."""


def wire(chest: Chest, points: Sequence[Point], radius: float, attenuation: float) -> None:
    """A wire along the smooth curve through ``points``."""
    corners = np.asarray(points)
    lengths = np.sqrt((np.diff(corners, axis=0) ** 2).sum(axis=1))
    at = np.concatenate([[0], np.cumsum(lengths)])
    path = CubicSpline(at, corners)(np.linspace(0, at[-1], int(at[-1] / PIECE) + 2))
    for start, end in pairwise(path):
        chest.add(tube(start, end, radius), attenuation)


def pacemaker(chest: Chest, strength: float, rng: np.random.Generator) -> None:
    """A metal case below the clavicle, one or two leads through the subclavian vein into the right heart."""
    build = chest.build
    side, leads, low = rng.choice([1.0, -1.0], p=[0.8, 0.2]), rng.integers(1, 3), rng.normal(0, 0.4)
    w, h = build.width, build.height
    case = (side * 10.0 * w, 7.2 * h + low, 9.5)
    size = 0.75 + 0.4 * strength
    chest.add([ellipsoid(case, (2.0 * size, 1.8 * size, 0.35))], METAL * strength)
    start: list[Point] = [(case[0] - side, case[1] + 1.4, 8.5), (side * 7.0 * w, 9.6 * h, 5.0),
                          (side * 2.8 * w, 8.8 * h, 2.0)]
    bottom = min(build.dome.values())
    tips: list[list[Point]] = [
        [(-2.0 * w, 6.0 * h, 1.0), (-2.5 * w, 0.5, 1.5), (-1.0 * w, bottom + 3.0, 3.0), (4.2 * w, bottom + 1.8, 4.5)],
        [(-1.9 * w, 6.2 * h, 1.0), (-2.7 * w, 1.0, 1.5), (-2.0 * w, bottom + 4.5, 3.0), (-1.6 * w, bottom + 6.8, 4.0)]]
    for tip in tips[:leads]:
        wire(chest, start + tip, 0.11, 0.7 * METAL * strength)


def endotracheal_tube(chest: Chest, strength: float, rng: np.random.Generator) -> None:
    """A tube in the windpipe with a dense stripe, ending above the carina."""
    top, tip = 18.0, rng.uniform(6.8, 9.5)
    shift = 0.2 + 0.35 * chest.build.spine_bend
    chest.add(tube((shift, top, 0.5), (shift, tip, -0.8), 0.5), 1.2 * PLASTIC * strength)
    chest.add(tube((shift, top, 0.5), (shift, tip, -0.8), 0.34), -1.2 * PLASTIC * strength)
    chest.add(tube((shift + 0.3, top, 0.5), (shift + 0.3, tip, -0.8), 0.10), 1.5 * CALCIUM * strength)


def central_line(chest: Chest, strength: float, rng: np.random.Generator) -> None:
    """A thin line from the neck or the arm into the superior vena cava."""
    w, h = chest.build.width, chest.build.height
    side, neck, tip = rng.choice([-1.0, 1.0], p=[0.65, 0.35]), rng.random() < 0.5, rng.uniform(0.0, 4.0)
    start: list[Point] = [(side * 4.2, 18.0, 2.0), (side * 3.4, 12.0, 1.5)] if neck else [
        (side * 17.0 * w, 7.0 * h, 2.0), (side * 11.5 * w, 10.4 * h, 2.0), (side * 6.5 * w, 10.2 * h, 2.0)]
    end: list[Point] = [(side * 2.4 * w, 8.6 * h, 1.5), (-2.3 * w, 5.8 * h, 1.0), (-2.5 * w, tip, 1.0)]
    wire(chest, start + end, 0.13, 1.7 * CALCIUM * strength)


def feeding_tube(chest: Chest, strength: float, rng: np.random.Generator) -> None:
    """A line down the middle, below the diaphragm into the stomach."""
    build = chest.build
    sway, end = rng.normal(0, 0.4), rng.uniform(4.0, 8.0)
    dome = build.dome["left"]
    wire(chest, [(0.4, 18.0, -2.0), (0.2 + 0.5 * sway, 8.0, -3.0), (0.5 + sway, 0.0, -3.0), (1.2, dome + 1.0, -2.0),
                 (2.8, dome - 3.0, 0.0), (end * build.width, dome - 4.2, 2.0)], 0.16, 1.5 * CALCIUM * strength)


def chest_drain(chest: Chest, strength: float, rng: np.random.Generator) -> None:
    """A wide tube through the side of the chest, upwards along its wall, with a dense stripe."""
    w, h = chest.build.width, chest.build.height
    x, y, top = rng.choice([-1.0, 1.0]), rng.uniform(-6, -2), rng.uniform(4.5, 10.0)
    points: list[Point] = [(x * 17.5 * w, y - 2.5, 0.0), (x * 13.0 * w, y, 0.0), (x * 9.5 * w, y + 4.0, -1.0),
                           (x * 6.8 * w, top * h, -2.0)]
    wire(chest, points, 0.38, PLASTIC * strength)
    wire(chest, [(a + 0.22 * x, b, c) for a, b, c in points], 0.10, 1.7 * CALCIUM * strength)


def sternal_wires(chest: Chest, strength: float, rng: np.random.Generator) -> None:
    """Five to seven small loops of wire down the middle, after open heart surgery."""
    number, aside, size = int(rng.integers(5, 8)), rng.normal(0, 0.25, 7), rng.uniform(0.6, 0.85, 7)
    for k in range(number):
        x, y = 0.2 + aside[k], (7.5 - 2.2 * k) * chest.build.height
        loop = [(x - size[k], y), (x, y + 0.45), (x + size[k], y), (x, y - 0.45), (x - size[k], y)]
        for start, end in pairwise(loop):
            chest.add(tube((*start, 9.3), (*end, 9.3), 0.09), METAL * strength)


def ecg_leads(chest: Chest, strength: float, rng: np.random.Generator) -> None:
    """Electrodes on the skin and their cables, which leave together on one side below."""
    w, h = chest.build.width, chest.build.height
    x, jitter = rng.choice([-1.0, 1.0]), rng.normal(0, 0.8, (4, 2))
    spots = np.array([(-9, 7), (9, 7.5), (-9.5, -8), (9.5, -7)]) + jitter
    for spot, bow in zip(spots, rng.uniform(-2, 2, 4), strict=True):
        place = (spot[0] * w, spot[1] * h, 10.0)
        chest.add([ellipsoid(place, (0.75, 0.75, 0.2))], METAL * 0.6 * strength)
        middle, end = 0.6 * place[0] + bow + 2 * x, x * 7.0 + 0.1 * place[0]
        wire(chest, [place, (middle, 0.5 * (place[1] - 9), 11.0), (end, -19.0, 11.0)], 0.12, 0.35 * METAL * strength)


Draw = Callable[[Chest, float, np.random.Generator], None]
DEVICES: dict[str, tuple[Draw, float, bool]] = {
    "central line": (central_line, 0.30, False), "feeding tube": (feeding_tube, 0.15, True),
    "pacemaker": (pacemaker, 0.16, False), "sternal wires": (sternal_wires, 0.12, False),
    "endotracheal tube": (endotracheal_tube, 0.12, True), "chest drain": (chest_drain, 0.08, False),
    "ECG leads": (ecg_leads, 0.07, True),
}
"""How each device is drawn, how often it is a patient's first, and whether only those who lie in bed have it."""


def support_devices(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    """One to four devices, in an order that is the patient's own; the more severe, the more and the denser."""
    bedside = chest.beam.source[2] > 0
    names, shares = list(DEVICES), np.array([share for _, share, _ in DEVICES.values()])
    order = rng.choice(len(names), len(names), replace=False, p=shares / shares.sum())
    seeds = rng.integers(0, 2**32, len(names))
    chosen = [k for k in order if bedside or not DEVICES[names[k]][2]][:1 + int(3.99 * severity**1.5)]
    for k in chosen:
        DEVICES[names[k]][0](chest, 0.5 + 0.5 * min(2 * severity, 1), np.random.default_rng(seeds[k]))


SUPPORT: dict[str, Sign] = {"Support Devices": Sign(draw=support_devices)}
"""Sign by label."""
