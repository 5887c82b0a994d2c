"""Line integrals against sampling along the ray, and the radiograph's physics."""

from dataclasses import replace
from math import gcd

import numpy as np
import pytest

from cohort.phantom import skeleton
from cohort.phantom.build import draw_build
from cohort.phantom.chest import Chest, cage, heart, whole
from cohort.phantom.exam import Exam, Patient
from cohort.phantom.pieces import Piece, integrate
from cohort.phantom.projection import Beam, Slab, Solid, Span, ellipsoid, hull, intersect, rotation, tube
from cohort.phantom.radiograph import display, expose, line_integrals, make_beam, oversampling, render
from cohort.phantom.settings import PhantomConfig
from cohort.phantom.sites import SITES

N_SAMPLES = 20_000


def exam(**changes: object) -> Exam:
    values: dict[str, object] = {
        "image_id": "x", "patient": Patient(patient_id="p", sex="M", seed=5), "study_id": "s", "site": SITES["A"],
        "view": "PA", "age": 60.0, "signs": (), "seed": 9,
    }
    return Exam(**(values | changes))  # type: ignore[arg-type]


def beam(*, n: int = 24, front: float = 1.0, turned: bool = True) -> Beam:
    steps = np.linspace(-16, 16, n).astype(np.float32)
    pose = rotation(about_x=0.1, about_y=-0.07, about_z=0.05) if turned else np.eye(3)
    return Beam(source=np.array([0.5, 1.0, -front * 160]), plane=front * 13.5, u=steps[None, :], v=-steps[:, None],
                pose=pose)


def inside(solid: Solid, points: np.ndarray) -> np.ndarray:
    """Whether points (n, 3), in the patient's axes, are in a solid."""
    if isinstance(solid, Slab):
        height = points @ np.asarray(solid.normal)
        return (height >= solid.low) & (height <= solid.high)
    return (((points - solid.center) @ solid.matrix.T) ** 2).sum(axis=1) <= 1  # type: ignore[attr-defined]


def sampled(solids: list[Solid], rays: Beam, row: int, column: int) -> float:
    """Share of one ray inside all solids, by sampling its last fifth, where the chest is."""
    t = np.linspace(0.8, 1.0, N_SAMPLES)[:, None]
    element = np.array([rays.u[0, column], rays.v[row, 0], rays.plane])
    points = (rays.source + t * (element - rays.source)) @ rays.pose
    return 0.2 * float(np.all([inside(solid, points) for solid in solids], axis=0).mean())


CASES: dict[str, list[Solid]] = {
    "ellipsoid": [ellipsoid((3, -2, 1), (6, 4, 5), rotation(about_x=0.4, about_y=0.7, about_z=-0.3))],
    "tube": [*tube((-9, -5, -4), (8, 7, 5), 2.0)],
    "slab in ellipsoid": [ellipsoid((0, 0, 0), (12, 14, 9)), Slab(normal=(0.2, 1.0, 0.5), low=-1.5, high=2.5)],
    "two ellipsoids and a half-space": [ellipsoid((4, 0, 0), (8, 12, 8)), ellipsoid((-2, 1, 1), (9, 7, 9)),
                                        Slab(normal=(1, 0, 0), low=0.5)],
}


@pytest.mark.parametrize("front", [1.0, -1.0])
@pytest.mark.parametrize("name", CASES)
def test_a_closed_form_is_what_sampling_along_the_ray_gives(name: str, front: float) -> None:
    rays, solids = beam(front=front), CASES[name]
    span = intersect(rays, solids)
    assert span is not None
    exact = np.zeros((24, 24))
    exact[span.rows, span.columns] = span.length()
    everywhere = whole(rays, *solids).length()
    np.testing.assert_allclose(exact, everywhere, atol=1e-6)  # the window has cut nothing off
    assert (exact > 0).sum() > 30
    for row, column in np.argwhere(exact >= 0)[::37]:
        assert exact[row, column] == pytest.approx(sampled(solids, rays, row, column), abs=3e-5)


def test_many_pieces_at_once_are_the_pieces_one_by_one() -> None:
    rays, rng = beam(n=64), np.random.default_rng(0)
    chest = Chest(draw_build(exam()), rays)
    frames = {side: ((chest.lungs[side].low, chest.lungs[side].high), (chest.center.low, chest.center.high),
                     (chest.domes[side].low, chest.domes[side].high)) for side in ("left", "right")}
    total, wanted = np.zeros((64, 64), dtype=np.float32), np.zeros((64, 64), dtype=np.float32)
    for lung in (None, "left", "right"):
        pieces = []
        for _ in range(12):
            a, b = rng.uniform(-11, 11, (2, 3))
            quadric, slab = tube(a, b, rng.uniform(0.4, 2))
            pieces.append(Piece(quadric=quadric, slabs=(slab,), attenuation=0.7, lung=lung))
        integrate(rays, pieces, frames, total)
        for piece in pieces:
            span = intersect(rays, [piece.quadric, *piece.slabs], [] if lung is None else [chest.lungs[lung]])
            if span is not None:
                length = span.length() if lung is None else chest._net(lung, span)
                wanted[span.rows, span.columns] += np.float32(0.7) * length
    assert wanted.max() > 0.01
    np.testing.assert_allclose(total, wanted, atol=2e-6)


def test_ribs_are_slabs_of_the_ribcages_shell() -> None:
    """Every rib on one ray is the sampled path through bone: between the walls, in a slab, before the cartilage."""
    chest = Chest(draw_build(exam()), beam(n=40))
    build, rays = chest.build, chest.beam
    before = chest.integral.copy()
    skeleton._draw_ribs(chest, "left")
    drawn = chest.integral - before
    normal, found = skeleton.rib_normal(build, "left"), 0
    for row, column in ((14, 30), (18, 33), (22, 27), (26, 35), (12, 26)):
        t = np.linspace(0.8, 1.0, N_SAMPLES)[:, None]
        element = np.array([rays.u[0, column], rays.v[row, 0], rays.plane])
        points = (rays.source + t * (element - rays.source)) @ rays.pose
        shell = inside(cage(build, skeleton.RIB_THICKNESS), points) & ~inside(cage(build), points)
        shell &= inside(skeleton.rib_end(build), points) & (points[:, 0] >= 1.5)
        height, value = points @ normal, 0.0
        for high, attenuation in ((skeleton.RIB_HEIGHT, skeleton.BONE * build.bone - skeleton.SOFT),
                                  (skeleton.MARROW_HEIGHT, (skeleton.MARROW - skeleton.BONE) * build.bone * 0.6)):
            bone = np.zeros(len(height), dtype=bool)
            for rib in range(skeleton.N_RIBS):
                foot = skeleton.rib_level(build, skeleton.N_RIBS - 1 - rib) - high / 2
                bone |= (height >= foot) & (height <= foot + high)
            value += attenuation * 0.2 * float((bone & shell).mean())
        assert drawn[row, column] == pytest.approx(value, abs=1e-4)
        found += value > 1e-4
    assert found >= 3


def test_overlapping_bodies_are_not_counted_twice() -> None:
    rays = beam()
    one, other = whole(rays, ellipsoid((0, 0, 0), (9, 9, 7))), intersect(rays, [ellipsoid((2, 1, 1), (8, 6, 7))])
    union = hull(one, other).length()
    assert np.all(union >= one.length() - 1e-6)
    assert union.max() < 15 / 160
    assert hull(one, None).length() == pytest.approx(one.length())


def test_the_heart_is_larger_at_the_bedside() -> None:
    """The heart lies in front: near the detector in PA, far from it and nearer to the tube in AP (about 10 % more)."""
    widths = {}
    for view in ("PA", "AP"):
        one = exam(view=view)
        build = draw_build(exam())
        rays = make_beam(one, replace(build, turn=(0, 0, 0)), 256)
        shadow = whole(rays, heart(build)).length() > 0
        columns = np.flatnonzero(shadow.any(axis=0))
        widths[view] = float(rays.u[0, columns[-1]] - rays.u[0, columns[0]])
    assert 1.06 < widths["AP"] / widths["PA"] < 1.25


@pytest.mark.parametrize("size", [64, 128, 256, 512])
def test_any_size_shows_the_same_chest(size: int) -> None:
    """Pixels of a smaller image are the means of those of a larger one, but for noise and quantisation."""
    quiet = exam(site=replace(SITES["A"], photons=1e9, blur_mm=1e-3))
    small = render(quiet, 64).astype(float)
    image = render(quiet, size)
    assert image.shape == (size, size)
    assert image.dtype == np.uint8
    factor = size // 64
    pooled = image.reshape(64, factor, 64, factor).mean(axis=(1, 3))
    assert np.abs(pooled - small).mean() < 3.0
    assert np.corrcoef(pooled.ravel(), small.ravel())[0, 1] > 0.998


@pytest.mark.parametrize("size", [96, 224])
def test_a_size_need_not_be_a_power_of_two(size: int) -> None:
    assert PhantomConfig(size=size).size == size
    quiet = exam(site=replace(SITES["A"], photons=1e9, blur_mm=1e-3))
    common = gcd(size, 64)
    small, image = (render(quiet, n).reshape(common, n // common, common, -1).mean(axis=(1, 3)) for n in (64, size))
    assert np.corrcoef(small.ravel(), image.ravel())[0, 1] > 0.998


def test_the_signal_obeys_beer_lambert_scatter_and_counting() -> None:
    site = replace(SITES["A"], photons=1e8, scatter=0.0, blur_mm=1e-3)
    integrals = line_integrals(exam(), 64)
    n = oversampling(64)
    primary = np.exp(-integrals).reshape(64, n, 64, n).mean(axis=(1, 3))
    np.testing.assert_allclose(expose(integrals, exam(site=site), 64), primary, rtol=0.02)
    veiled = expose(integrals, exam(site=replace(site, scatter=0.5)), 64)
    assert np.all(veiled > primary * 0.98)
    assert veiled[32, 32] / primary[32, 32] > 1.2
    noisy = [expose(integrals, exam(site=replace(site, photons=2000.0), seed=s), 64) for s in range(30)]
    air = np.array([image[0, 0] for image in noisy])
    assert air.std() > 3 * np.array([image[0, 0] for image in [expose(integrals, exam(site=site, seed=s), 64)
                                                               for s in range(30)]]).std()


def test_an_image_follows_from_its_seeds_alone() -> None:
    np.testing.assert_array_equal(render(exam(), 64), render(exam(), 64))
    assert (render(exam(seed=10), 64) != render(exam(), 64)).any()
    other = exam(patient=Patient(patient_id="p", sex="M", seed=6))
    assert (render(other, 64) != render(exam(), 64)).mean() > 0.5


def test_lungs_are_dark_and_bones_and_heart_bright() -> None:
    grey = display(expose(line_integrals(exam(), 128), exam(), 128), exam()).astype(float)
    lung, middle, corner = grey[45:75, 88:98].mean(), grey[70:90, 58:66].mean(), grey[:4, :4].mean()
    assert corner < lung < middle
    assert 20 < lung < 120
    assert middle > 170


def test_what_lies_beside_the_detector_casts_no_shadow() -> None:
    for center in ((60, 0, 0), (-60, 0, 0), (0, 60, 0), (0, -60, 0)):
        span = intersect(beam(), [ellipsoid(center, (1, 1, 1))])
        assert span is None or not span.length().any()
    apart = Span(rows=slice(0, 2), columns=slice(0, 2), low=np.zeros((2, 2)), high=np.ones((2, 2)))
    assert intersect(beam(), [ellipsoid((12, -12, 0), (1, 1, 1))], [apart]) is None
