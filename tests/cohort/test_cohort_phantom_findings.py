"""Signs of pleura, lungs and nodules: where they show, that they grow, persist, and differ from patient to patient."""

from dataclasses import replace

import numpy as np
import pytest

from cohort.phantom.build import draw_build
from cohort.phantom.chest import Chest, draw_soft_parts
from cohort.phantom.exam import Exam, Patient, Sign
from cohort.phantom.radiograph import line_integrals, make_beam
from cohort.phantom.signs import SIGNS
from cohort.phantom.signs.nodules import MASS_RADII, NODULE_RADII, NODULES
from cohort.phantom.signs.opacities import OPACITIES
from cohort.phantom.signs.pleura import PLEURA, pneumothorax
from cohort.phantom.signs.volume import VOLUME
from cohort.phantom.sites import SITES

SIZE = 64
ALL = [*PLEURA, *OPACITIES, *VOLUME, *NODULES]
DARKER = {"Pneumothorax", "Hydropneumothorax", "Emphysema"}
BOTH_SIDES = {"Edema", "Fibrosis", "Emphysema"}
RESHAPED = {"Fibrosis", "Emphysema", "Atelectasis", "Lobar Atelectasis"}


def exam_of(signs: tuple[Sign, ...] = (), *, study: int = 0, view: str = "PA", patient: int = 0) -> Exam:
    """A man of fifty at site A."""
    return Exam(image_id="i", patient=Patient(patient_id="p", sex="M", seed=patient), study_id=str(study),
                site=SITES["A"], view=view, age=50.0, signs=signs, seed=100 + study)


def integrals(label: str | None, severity: float = 0.6, *, seed: int = 3, study: int = 0, view: str = "PA",
              patient: int = 0) -> np.ndarray:
    """What 64 x 64 px see of a man with at most one finding, before noise."""
    signs = (Sign(label=label, severity=severity, seed=seed),) if label else ()
    return line_integrals(exam_of(signs, study=study, view=view, patient=patient), SIZE)


def plain_chest() -> Chest:
    """The same man's chest as it is before anything small is drawn."""
    exam = exam_of()
    build = draw_build(exam)
    return Chest(build, make_beam(exam, build, SIZE))


def difference(label: str, severity: float = 0.6, **where: object) -> np.ndarray:
    """The sign alone; positive where less gets through."""
    return integrals(label, severity, **where) - integrals(None, **{k: v for k, v in where.items() if k != "seed"})


@pytest.mark.parametrize("label", ALL)
def test_the_sign_is_seen_where_rays_meet_a_lung_and_nowhere_else(label: str) -> None:
    change = np.abs(difference(label))
    chest = plain_chest()
    assert change.max() > 0.1
    if label not in RESHAPED:
        assert change[(chest.aerated["left"] + chest.aerated["right"]) == 0].max() < 1e-5


@pytest.mark.parametrize("label", ["Nodule", "Granuloma", "Mass"])
def test_no_place_is_outside_the_lungs(label: str) -> None:
    plain = integrals(None, view="AP")
    for seed in range(20):
        assert (integrals(label, 1.0, seed=seed, view="AP") - plain).max() > 0.05


@pytest.mark.parametrize("label", ALL)
def test_it_grows_with_severity_from_barely_visible(label: str) -> None:
    sizes = [np.mean([np.abs(difference(label, severity, seed=seed)).sum() for seed in (3, 4)])
             for severity in (0.0, 0.5, 1.0)]
    assert 0 < sizes[0] < sizes[1] < sizes[2]
    assert sizes[0] < 0.4 * sizes[2]


@pytest.mark.parametrize("label", ALL)
def test_it_is_the_same_again_and_in_the_same_place_in_the_next_study(label: str) -> None:
    first, again = difference(label), difference(label)
    np.testing.assert_array_equal(first, again)
    later = difference(label, study=1)  # breathed in and placed otherwise
    half = first.shape[1] // 2
    left = [np.abs(change[:, half:]).sum() / np.abs(change).sum() for change in (first, later)]
    assert left[0] == pytest.approx(left[1], abs=0.12)


@pytest.mark.parametrize("label", [label for label in ALL if label not in BOTH_SIDES])
def test_either_side_can_have_it(label: str) -> None:
    plain = integrals(None)
    half = plain.shape[1] // 2
    shares = []
    for seed in range(7):
        change = np.abs(integrals(label, seed=seed) - plain)
        shares.append(change[:, half:].sum() / change.sum())
    assert min(shares) < 0.35
    assert max(shares) > 0.65


@pytest.mark.parametrize("label", ALL)
def test_severity_changes_no_draw(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    sign = SIGNS[label]

    def draw(chest: Chest, severity: float, rng: np.random.Generator) -> None:
        sign.draw(chest, severity, rng)
        states.append(rng.bit_generator.state["state"])

    monkeypatch.setitem(SIGNS, label, replace(sign, draw=draw))
    for severity in (0.0, 1.0):
        integrals(label, severity)
    assert states[0] == states[1]


@pytest.mark.parametrize("label", sorted(DARKER))
def test_air_lets_more_through(label: str) -> None:
    assert difference(label).min() < -0.1


def test_no_vessel_is_left_beside_a_collapsed_lung() -> None:
    """Where a ray met lung before and none now, soft parts add nothing above the diaphragm."""
    normal, collapsed, bare = plain_chest(), plain_chest(), plain_chest()
    for chest in (collapsed, bare):
        pneumothorax(chest, 0.8, np.random.default_rng(3))
    draw_soft_parts(collapsed, np.random.default_rng(0))
    added = np.abs(collapsed.finish() - bare.finish())
    y = np.broadcast_to(normal.beam.v, added.shape)
    for side in ("left", "right"):
        rim = (normal.aerated[side] > 0) & (collapsed.aerated[side] == 0) & (y > 0) & (np.abs(normal.beam.u) > 6)
        assert not rim.any() or added[rim].max() < 1e-6
    assert any((normal.aerated[side] != collapsed.aerated[side]).any() for side in ("left", "right"))


def test_fluid_levels_are_straight_upright_and_not_in_bed() -> None:
    """Down each column of the fluid's side the edge of the fluid is in the same row."""
    steps = {}
    for view in ("PA", "AP"):
        change = difference("Hydropneumothorax", 0.8, view=view)
        side = np.abs(change).sum(axis=0).argmax()
        columns = range(side - 6, side + 7, 3)
        edges = [np.diff(change[:, column]).argmax() for column in columns]
        steps[view] = (max(edges) - min(edges), np.diff(change[:, side]).max())
    assert steps["PA"][0] <= 2
    assert steps["PA"][1] > 2 * steps["AP"][1]


def test_nodules_are_small_and_masses_are_not() -> None:
    """3 cm divides them (Fleischner): the widest nodule covers less than the smallest mass of the same seed."""
    assert 2 * NODULE_RADII[1] <= 3.0 < 2 * MASS_RADII[0]
    for seed in (1, 2):
        areas = [(np.abs(difference(label, severity, seed=seed)) > 0.02).sum()
                 for label, severity in (("Granuloma", 1.0), ("Mass", 0.0), ("Mass", 1.0))]
        assert areas[0] < areas[1] < areas[2]
