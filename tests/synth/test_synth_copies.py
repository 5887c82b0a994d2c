"""Copies: the right training image is named, whatever was done to it, and so is what was done."""

import numpy as np
import pytest
import torch
from PIL import Image
from planted_copies import PLANTINGS, plant

from cohort.phantom.exam import Exam, Patient
from cohort.phantom.radiograph import render
from cohort.phantom.sites import SITES
from synth.judging.copies import IDENTITY, PATIENTS, SIDE, CopyReader, Gallery, align

Chests = tuple[np.ndarray, np.ndarray]
N_PATIENTS, N_COPIES = 45, 20


@pytest.fixture(scope="module")
def chests() -> Chests:
    """Two images of each of 45 patients, uint8 (90, 96, 96), and the patients."""
    def chest(person: int, visit: int) -> np.ndarray:
        return render(Exam(
            image_id="", study_id="", patient=Patient(patient_id="", sex="F" if person % 3 else "M", seed=person),
            site=SITES["A"], view="AP" if person % 2 else "PA", age=30.0 + person, signs=(), seed=100 * person + visit,
        ), size=96)
    return (np.stack([chest(person, visit) for person in range(N_PATIENTS) for visit in range(2)]),
            np.repeat([f"p{person}" for person in range(N_PATIENTS)], 2))


@pytest.fixture(scope="module")
def gallery(chests: Chests) -> Gallery:
    """All of them."""
    return Gallery(CopyReader().read(chests[0]), chests[1])


@pytest.mark.parametrize("kind", list(PLANTINGS))
def test_planted_copies_find_their_source(kind: str, chests: Chests, gallery: Gallery) -> None:
    """At least 95 % of the copies of each kind (90 % of all at once) name their source, and lie close upon it."""
    copies, sources = plant(kind, *chests, N_COPIES, np.random.default_rng(0))
    found = gallery.search(CopyReader().read(copies))
    least = 0.9 if kind == "all but the blend" else 0.95
    assert np.mean(found.rows[:, 0] == sources) >= least
    assert np.mean(found.ncc[:, 0] > 0.9) >= least


def test_matches_are_of_different_patients_nearest_first(chests: Chests, gallery: Gallery) -> None:
    """A patient's follow-ups stand for one match only."""
    found = gallery.search(CopyReader().read(chests[0][:6]))
    assert all(len(set(chests[1][rows])) == PATIENTS for rows in found.rows)
    assert (np.diff(found.ncc) <= 0).all()
    assert found.rows[:, 0].tolist() == list(range(6))


def test_tells_what_was_done(chests: Chests, gallery: Gallery) -> None:
    """A crop of 90 % by 86 % at a known place, mirrored: its scales and shifts to a hundredth of a side."""
    side, (width, height, x, y) = 96, (0.9, 0.86, 0.07, 0.02)
    box = (x * side, y * side, (x + width) * side, (y + height) * side)
    crops = [Image.fromarray(chest).resize((side, side), Image.Resampling.BICUBIC, box=box) for chest in chests[0][:5]]
    wanted = (width, x + width / 2 - 0.5, height, y + height / 2 - 0.5)
    for mirrored in (False, True):
        copies = np.stack([np.asarray(crop)[:, ::-1] if mirrored else np.asarray(crop) for crop in crops])
        found = gallery.search(CopyReader().read(copies))
        assert (found.flipped[:, 0] == mirrored).all()
        np.testing.assert_allclose(found.warps[:, 0], np.tile(wanted, (5, 1)), atol=0.01)


def test_a_row_does_not_depend_on_its_company(chests: Chests, gallery: Gallery) -> None:
    """Neither the reading nor the matches of an image change with the batch."""
    together, alone = CopyReader().read(chests[0][:4]), CopyReader().read(chests[0][3:4])
    np.testing.assert_allclose(together[3:], alone, atol=1e-5)
    copies = together + np.float32(0.2)
    np.testing.assert_array_equal(gallery.search(copies).ncc[3:], gallery.search(copies[3:]).ncc)


def test_the_reading_ignores_the_window(chests: Chests) -> None:
    """Contrast and brightness leave the reading nearly as it was."""
    usual = CopyReader().read(chests[0][:10])
    windowed = CopyReader().read(np.rint(0.6 * chests[0][:10] + 40).astype(np.uint8))
    assert min(np.corrcoef(a, b)[0, 1] for a, b in zip(usual, windowed, strict=True)) > 0.98


def test_correlation_is_pearsons_over_what_both_show() -> None:
    """Without a step, the NCC is the correlation coefficient of the pixels within the frame."""
    image, seen = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ncc, _ = align(image, seen, torch.tensor(IDENTITY).repeat(3, 1), steps=0)
    inner = slice(2, 14)  # pixel centres within .4 of the middle
    wanted = [np.corrcoef(a[inner, inner].ravel(), b[inner, inner].ravel())[0, 1]
              for a, b in zip(image.numpy(), seen.numpy(), strict=True)]
    np.testing.assert_allclose(ncc.numpy(), wanted, atol=1e-5)


def test_aligning_never_loses(chests: Chests) -> None:
    """More steps give a correlation at least as high."""
    readings = torch.from_numpy(CopyReader().read(chests[0])).view(-1, SIDE, SIDE)
    start = torch.tensor(IDENTITY).repeat(45, 1)
    by_steps = torch.stack([align(readings[:45], readings[45:], start, steps=steps)[0] for steps in (0, 2, 5)])
    assert (by_steps.diff(dim=0) >= -1e-6).all()
    assert (by_steps[2] > by_steps[0]).all()


def test_few_patients_and_flat_images(chests: Chests) -> None:
    """Patients that are not there are NaN; a flat image is like nothing; no images have no matches."""
    gallery = Gallery(CopyReader().read(chests[0][:4]), chests[1][:4])
    found = gallery.search(CopyReader().read(np.full((1, 96, 96), 90, np.uint8)))
    assert np.isnan(found.ncc[0, 2:]).all()
    np.testing.assert_allclose(found.ncc[0, :2], 0, atol=1e-4)
    assert gallery.search(np.empty((0, SIDE * SIDE), np.float32)).ncc.shape == (0, PATIENTS)
    with pytest.raises(ValueError, match="no training images"):
        Gallery(np.empty((0, SIDE * SIDE), np.float32), [])
