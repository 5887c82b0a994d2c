"""Signs that add to a drawn chest: they grow, stay where they belong and where they were, and repeat exactly."""

import numpy as np
import pytest
from phantom_toys import FIELD_CM, RAYS, amount, change, middle, one_ray_per_pixel  # noqa: F401

from cohort.phantom.signs.air import AIR_LEAKS
from cohort.phantom.signs.bones import BONES
from cohort.phantom.signs.devices import SUPPORT
from cohort.phantom.signs.mediastinum import MEDIASTINUM

LOCAL = [label for label, sign in {**MEDIASTINUM, **BONES, **AIR_LEAKS, **SUPPORT}.items() if sign.shape is None]
PLACES = {  # farthest x and y from the middle of the detector, cm, both ways
    "Hernia": (9, (-14, 6)), "Calcification of the Aorta": (8, (-14, 13)), "Pneumomediastinum": (11, (-12, 18)),
    "Azygos Lobe": (9, (1, 18)), "Rib Fracture": (18, (-16, 15)), "Clavicle Fracture": (18, (7, 18)),
    "Pneumoperitoneum": (17, (-18, 0)), "Subcutaneous Emphysema": (19, (-18, 18)), "Support Devices": (19, (-19, 19)),
}
SIDED = ["Rib Fracture", "Clavicle Fracture", "Subcutaneous Emphysema", "Hernia"]


def test_every_local_sign_has_a_place() -> None:
    assert set(LOCAL) == set(PLACES)


@pytest.mark.parametrize("view", ["PA", "AP"])
@pytest.mark.parametrize("label", LOCAL)
def test_it_is_subtle_at_first_and_grows(label: str, view: str) -> None:
    amounts = [amount(change(label, severity, view=view)) for severity in (0.0, 0.35, 0.7, 1.0)]
    assert 0 < amounts[0] < 0.5 * amounts[-1]
    assert amounts == sorted(amounts)


@pytest.mark.parametrize("label", LOCAL)
def test_it_stays_in_its_place(label: str) -> None:
    width, (low, high) = PLACES[label]
    steps = ((np.arange(RAYS) + 0.5) / RAYS - 0.5) * FIELD_CM
    there = (np.abs(steps)[None, :] <= width) & (steps[::-1, None] >= low) & (steps[::-1, None] <= high)
    for seed in (1, 2, 3):
        assert np.abs(change(label, 1.0, seed)[~there]).max(initial=0) < 1e-4


@pytest.mark.parametrize("label", LOCAL)
def test_next_time_it_is_where_it_was(label: str) -> None:
    for seed in (1, 2):
        first, second = (middle(change(label, severity, seed, moment=moment))
                         for severity, moment in ((0.5, 7), (0.6, 8)))
        assert np.hypot(first[0] - second[0], first[1] - second[1]) < 3.0


@pytest.mark.parametrize("label", SIDED)
def test_both_sides_occur(label: str) -> None:
    assert len({middle(change(label, 0.8, seed))[0] > 0 for seed in range(10)}) == 2


@pytest.mark.parametrize("label", LOCAL)
def test_the_same_seed_gives_the_same_and_another_one_another(label: str) -> None:
    once, again, other = (change(label, 0.6, seed) for seed in (1, 1, 2))
    assert np.array_equal(once, again)
    assert not np.allclose(once, other, atol=1e-3)
