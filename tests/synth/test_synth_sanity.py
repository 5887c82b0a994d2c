"""Sanity: each statistic sees its own fault and none of the others, and real images pass at the stated share."""

from collections.abc import Callable

import numpy as np
import pytest
from constructed_evidence import evidence_of, images_of
from scipy import ndimage

from synth.judging.rules import Rule, worst_margin
from synth.judging.sanity import (
    STATISTICS,
    PixelStatistics,
    bar,
    blank,
    checkerboard,
    flat_run,
    frame,
    lattice_power,
    mirrored_step,
    saturated,
    view,
)

SIZE = 64
RULES: dict[str, Rule] = {rule.__name__: rule for rule in (blank, saturated, frame, bar, checkerboard)}
LINES = np.arange(SIZE)


def smooth(n: int, seed: int = 0, size: int = SIZE) -> np.ndarray:
    """Grey clouds with more or less noise: uint8 (n, size, size), nothing of the faults below."""
    rng = np.random.default_rng(seed)
    clouds = ndimage.gaussian_filter(rng.normal(size=(n, size, size)), (0, 6, 6), mode="reflect")
    grey = 120 + 35 * clouds / clouds.std() + rng.uniform(1, 7, (n, 1, 1)) * rng.normal(size=clouds.shape)
    return np.clip(np.rint(grey), 1, 254).astype(np.uint8)


def with_frame(images: np.ndarray) -> np.ndarray:
    images[:, :2] = images[:, -2:] = images[:, :, :2] = images[:, :, -2:] = 20
    return images


def with_letterbox(images: np.ndarray) -> np.ndarray:
    images[:, :8] = images[:, -8:] = 0
    return images


def with_bar(images: np.ndarray) -> np.ndarray:
    images[:, :, -6:] = 128
    return images


def with_lattice(period: int) -> Callable[[np.ndarray], np.ndarray]:
    """Points one period apart, so bright that each of their harmonics has an amplitude of 1.5 grey levels."""
    def add(images: np.ndarray) -> np.ndarray:
        points = ((LINES[:, None] % period == 0) & (LINES % period == 0)) * 1.5 * period**2
        return np.clip(images + points, 1, 254).astype(np.uint8)
    return add


FAULTS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], set[str], set[str]]] = {
    "none": (lambda images: images, set(), set()),
    "flat": (lambda images: np.full_like(images, 90), {"blank", "bar"}, set()),
    "black and white": (lambda images: np.where(images > 120, 255, 0).astype(np.uint8), {"saturated"}, set(RULES)),
    "frame": (with_frame, {"frame", "bar"}, set()),
    "letterbox": (with_letterbox, {"frame", "bar", "saturated"}, {"blank", "checkerboard"}),
    "one bar": (with_bar, {"bar"}, set()),
    "lattice of 2": (with_lattice(2), {"checkerboard"}, {"frame"}),
    "lattice of 4": (with_lattice(4), {"checkerboard"}, {"frame"}),
    "lattice of 8": (with_lattice(8), {"checkerboard"}, {"frame"}),
    "blurred": (lambda images: ndimage.gaussian_filter(images, (0, 2, 2)), set(), set()),
    "noisy": (lambda images: np.clip(images + np.random.default_rng(5).normal(0, 4, images.shape), 1, 254)
              .astype(np.uint8), set(), set()),
}
"""Name to how it is made, the rules that must see it, and those that may."""


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_seen_by_its_rule(fault: str) -> None:
    """At least 19 of 20 images with a fault fail the rules that look for it; at least 18 pass all others."""
    spoil, must, may = FAULTS[fault]
    real = images_of(np.zeros((200, 2)), pixels=smooth(200, seed=1))
    case = evidence_of(np.zeros((20, 2)), real, real, pixels=spoil(smooth(20, seed=2)))
    failed = {name: int((worst_margin(rule(case), 20) < 0).sum()) for name, rule in RULES.items()}
    assert all(failed[name] >= 19 for name in must), failed
    assert all(failed[name] <= 2 for name in set(RULES) - must - may), failed


@pytest.mark.parametrize(("rule", "quantile", "passing"), [
    (blank, 0.1, 0.9), (saturated, 0.9, 0.9), (frame, 0.9, 0.9), (bar, 0.9, 0.9), (checkerboard, 0.9, 0.9)])
def test_quantiles_hold_on_the_real_images(rule: Rule, quantile: float, passing: float) -> None:
    """The stated share of the real images that gave the threshold passes it; ties may let more pass."""
    pixels = np.random.default_rng(2).integers(0, 256, (300, 16, 16)).astype(np.uint8)
    real = images_of(np.zeros((300, 2)), pixels=pixels)
    case = evidence_of(np.zeros((300, 2)), real, real, pixels=pixels)
    assert (worst_margin(rule(case, quantile=quantile), 300) >= 0).mean() >= passing - 0.01


@pytest.mark.parametrize("name", RULES)
def test_of_few_real_images_none_fails(name: str) -> None:
    """A share of .1 % of 30 images is none of them: the threshold is the outermost, not a number inside of it."""
    real = images_of(np.zeros((30, 2)), pixels=smooth(30))
    assert (worst_margin(RULES[name](evidence_of(np.zeros((30, 2)), real, real, pixels=smooth(30))), 30) >= 0).all()


def test_a_row_depends_on_its_image_alone() -> None:
    images = smooth(5)
    together = PixelStatistics().read(images)
    assert together.shape == (5, len(STATISTICS))
    assert together.dtype == np.float32
    for i in range(5):
        np.testing.assert_array_equal(PixelStatistics().read(images[i: i + 1])[0], together[i])
    assert PixelStatistics().read(images[:0]).shape == (0, len(STATISTICS))


@pytest.mark.parametrize("statistic", [mirrored_step, flat_run, lattice_power])
def test_statistics_know_no_direction(statistic: Callable[[np.ndarray], float]) -> None:
    """Turned by a right angle, mirrored or inverted, an image has the same statistics."""
    image = with_frame(smooth(1))[0]
    for other in (np.rot90(image), image[:, ::-1], 255 - image):
        assert statistic(other) == pytest.approx(statistic(image), rel=1e-6)


def test_flat_run_is_the_share_of_the_bar() -> None:
    assert flat_run(with_bar(smooth(1))[0]) == pytest.approx(6 / SIZE)
    assert flat_run(smooth(1)[0]) == 0


@pytest.mark.parametrize("size", [8, 16, 17, 50, 100, 128])
def test_any_size_has_finite_statistics(size: int) -> None:
    assert np.isfinite(PixelStatistics().read(smooth(2, size=size))).all()
    assert np.isfinite(PixelStatistics().read(np.zeros((1, size, size), np.uint8))).all()


def radiographs(n: int, *, gap: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features in which PA lies ``gap`` higher than AP along the first axis, and the views."""
    rng = np.random.default_rng(seed)
    views = np.where(np.arange(n) % 2, "PA", "AP").astype(object)
    features = rng.normal(size=(n, 6))
    features[:, 0] += gap * (views == "PA")
    return features, views


def view_case(asked: str, *, gap: float = 8.0, n_val: int = 500) -> tuple[list[float], list[str | None]]:
    """Margins of a PA, an AP and an undecided image that were asked for as ``asked``."""
    made = np.zeros((3, 6))
    made[:, 0] = gap, 0, gap / 2
    (train, train_views), (val, val_views) = radiographs(600, gap=gap, seed=0), radiographs(n_val, gap=gap, seed=1)
    case = evidence_of(made, images_of(train, views=train_views), images_of(val, views=val_views),
                       views=np.full(3, asked, dtype=object))
    criteria = view(case)
    return worst_margin(criteria, 3).tolist(), [criterion.reason for criterion in criteria]


def test_the_other_view_is_dropped() -> None:
    pa, reasons = view_case("PA")
    assert pa[0] > 0 > pa[1]
    assert reasons == [None, None]
    ap, _ = view_case("AP")
    assert ap[1] > 0 > ap[0]


@pytest.mark.parametrize(("asked", "arguments", "why"), [
    ("PA", {"gap": 0.0}, "not above chance"), ("PA", {"n_val": 100}, "50 validation images are too few")])
def test_a_view_that_cannot_be_told_is_not_judged(asked: str, arguments: dict[str, float], why: str) -> None:
    margins, reasons = view_case(asked, **arguments)  # type: ignore[arg-type]
    assert np.isnan(margins).all()
    assert all(why in str(reason) for reason in reasons)


def test_views_without_real_images_are_not_judged() -> None:
    margins, _ = view_case("LATERAL")
    assert np.isnan(margins).all()
    alone = images_of(np.zeros((9, 2)), views=np.full(9, "PA", dtype=object))
    criteria = view(evidence_of(np.zeros((2, 2)), alone, alone, views=np.full(2, "PA", dtype=object)))
    assert all("[9, 0] train" in str(criterion.reason) for criterion in criteria)


def test_real_images_of_a_view_pass_at_the_stated_share() -> None:
    """Views that overlap: fresh real images pass at 99.5 %, whatever the discriminant makes of them."""
    (train, train_views), (val, val_views), (made, views) = (radiographs(n, gap=1.0, seed=i)
                                                             for i, n in enumerate((600, 3000, 6000)))
    case = evidence_of(made, images_of(train, views=train_views), images_of(val, views=val_views), views=views)
    assert (worst_margin(view(case), 6000) >= 0).mean() == pytest.approx(0.995, abs=0.004)
