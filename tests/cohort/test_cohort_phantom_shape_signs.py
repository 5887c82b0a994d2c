"""Signs that change the chest before it is drawn: which way, how much, and the same for one seed."""

from collections.abc import Callable

import numpy as np
import pytest
from phantom_toys import amount, change, exam, middle, one_ray_per_pixel  # noqa: F401

from cohort.phantom.build import SIDES, Build, draw_build
from cohort.phantom.chest import heart
from cohort.phantom.signs import SIGNS
from cohort.phantom.signs.bones import rib_point
from cohort.phantom.skeleton import rib_level, rib_normal, spine_offset

SHAPED = ["Cardiomegaly", "Tortuous Aorta", "Scoliosis", "Kyphosis"]
MEASURES: dict[str, Callable[[Build], float]] = {
    "Cardiomegaly": lambda build: float(np.ptp([end[0] for end in heart(build).box])) / (2 * 13.6 * build.width),
    "Tortuous Aorta": lambda build: build.aorta_knob,
    "Scoliosis": lambda build: max(abs(spine_offset(build, y)[0]) for y in range(-12, 13)),
    "Kyphosis": lambda build: build.depth / build.height,
}


def shaped(label: str, severity: float, seed: int = 1) -> Build:
    """A chest with a finding's shape."""
    build, shape = draw_build(exam()), SIGNS[label].shape
    if shape is not None:
        shape(build, severity, np.random.default_rng(seed))
    return build


@pytest.mark.parametrize("label", SHAPED)
def test_the_measure_grows_from_the_normal_one(label: str) -> None:
    for seed in range(5):
        builds = [draw_build(exam()), *(shaped(label, severity, seed) for severity in (0, 0.5, 1))]
        measured = [MEASURES[label](build) for build in builds]
        assert measured == sorted(measured)


def test_an_enlarged_heart_is_wider_than_half_the_chest() -> None:
    ratios = [MEASURES["Cardiomegaly"](shaped("Cardiomegaly", severity)) for severity in (0.3, 1.0)]
    assert ratios[0] > 0.5
    assert ratios[1] < 0.8


@pytest.mark.parametrize("label", SHAPED)
def test_the_shadow_changes_more_and_more_and_repeats(label: str) -> None:
    amounts = [amount(change(label, severity)) for severity in (0.0, 0.5, 1.0)]
    assert 0 < amounts[0] < amounts[1] < amounts[2]
    assert np.array_equal(change(label, 0.5), change(label, 0.5))
    assert not np.allclose(change(label, 0.5), change(label, 0.5, seed=2), atol=1e-3)


def test_spines_bend_either_way_but_more_often_to_the_right() -> None:
    bends = np.array([shaped("Scoliosis", 0.8, seed).spine_bend for seed in range(60)])
    assert 0.6 < (bends < 0).mean() < 0.9
    left = [change("Scoliosis", 0.8, seed) for seed in range(6)]
    assert len({middle(np.minimum(bent, 0))[0] > 0 for bent in left}) == 2


@pytest.mark.parametrize("side", SIDES)
def test_points_on_ribs_lie_on_the_cage_at_the_height_of_their_rib(side: str) -> None:
    build = draw_build(exam())
    radii = np.array([13.6 * build.width, 20.5 * build.height, 9.2 * build.depth])
    for rib in (2, 4, 7):
        for angle in (1.1, 1.6, 2.0):
            point = rib_point(build, side, rib, angle)
            assert rib_normal(build, side) @ point == pytest.approx(rib_level(build, rib), abs=0.01)
            inside, outside = ((point - [0, -5 * build.height, 0]) / (radii + wall) for wall in (0.0, 0.75))
            assert np.linalg.norm(outside) < 1.0 < np.linalg.norm(inside) + 0.02
            assert np.sign(point[0]) == SIDES[side]
