"""Grain: known noise is measured where it is, lost structure is not taken for it, and a row's seed decides the rest."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from tiny_pipeline import IMAGE_SIZE, save_tiny_pipeline
from tiny_run import batches_of, build_run, files_of, images_folder, pixels, run_here, stamp_of

from cohort.errors import TailfillError
from cohort.provenance import SCHEMA, hash_patients
from cohort.tables import read_table
from synth.drawing import grain
from synth.drawing.grain import GRAIN, Grain, images_to_measure, measure_grain


def scenes(n: int = 24, size: int = 64) -> np.ndarray:
    """Smooth images over the whole range of grey, float64 (n, size, size)."""
    coarse = np.stack([gaussian_filter(one, 9) for one in np.random.default_rng(0).normal(size=(n, size, size))])
    return 128 + np.clip(coarse / coarse.std() * 70, -120, 120)


def strength(brightness: np.ndarray) -> np.ndarray:
    return 1 + 3 * brightness / 255


def rounded(images: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(images), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_known_noise_is_measured(spread: float) -> None:
    rng, clean = np.random.default_rng(1), scenes()
    own = np.exp(spread * rng.standard_normal(len(clean)))
    noise = rng.standard_normal(clean.shape) * strength(clean) * own[:, None, None]
    found = measure_grain(real=rounded(clean + noise), decoded=clean)
    inside = (found.brightness > 30) & (found.brightness < 225)  # beyond, clipping takes noise away
    ratio = found.deviation[inside] / strength(found.brightness[inside])
    assert ratio.mean() == pytest.approx(1, abs=0.05 + spread / 3)
    assert ratio.std() < 0.05 + spread  # few images, each with its own strength, fill a bin
    assert found.spread == pytest.approx(np.log(own).std(), abs=0.07)


def test_lost_structure_is_not_taken_for_noise() -> None:
    """Bars and blobs that a decoder blurs: a residual of many grey levels, and hardly any grain."""
    real, rng = scenes(), np.random.default_rng(2)
    for one in real:
        for start in rng.integers(0, 56, 3):
            one[start:start + 4] += 25
            one[:, start:start + 6] -= 20
    real = np.clip(real, 0, 255)
    decoded = np.stack([gaussian_filter(one, 1.5) for one in real])
    found = measure_grain(real=rounded(real), decoded=decoded)
    assert (real - decoded).std() > 4
    assert np.median(found.deviation) < 0.4


def test_grain_is_added_as_measured() -> None:
    grains = Grain(brightness=np.array([0.0, 255.0]), deviation=np.array([1.0, 4.0]), spread=0.2)
    grey = torch.full((3, 64, 64), 0.5)
    added = torch.stack([grains.add(grey, seed=seed) - grey for seed in range(200)]) * 255
    assert torch.equal(added[:, 0], added[:, 1])
    own = added[:, 0].std(dim=(1, 2))
    assert float(own.log().mean().exp()) == pytest.approx(2.5, rel=0.05)
    assert float(own.log().std()) == pytest.approx(0.2, abs=0.04)
    neighbours = (added[:, 0, :, 1:] * added[:, 0, :, :-1]).mean() / added[:, 0].square().mean()
    assert abs(float(neighbours)) < 0.01  # white
    assert torch.equal(grains.add(grey, seed=3), grains.add(grey, seed=3))
    assert not torch.equal(grains.add(grey, seed=3), grains.add(grey, seed=4))
    assert grains.add(torch.full((1, 8, 8), float("nan")), seed=1).isnan().all()


def test_what_is_measured_comes_back_through_the_table() -> None:
    clean = scenes()
    first = measure_grain(real=rounded(clean + np.random.default_rng(3).normal(0, 2, clean.shape)), decoded=clean)
    second = Grain.of_table(first.table())
    again = np.stack([second.add(torch.tensor(one / 255, dtype=torch.float32)[None], seed=seed)[0].numpy() * 255
                      for seed, one in enumerate(clean)])
    third = measure_grain(real=rounded(again), decoded=clean)
    inside = (first.brightness > 30) & (first.brightness < 225)
    np.testing.assert_allclose(third.deviation[inside], first.deviation[inside], rtol=0.15)


def test_too_few_pixels_are_one_line() -> None:
    with pytest.raises(TailfillError, match="wanted: more or larger training images"):
        measure_grain(real=np.zeros((1, 16, 16), np.uint8), decoded=np.zeros((1, 16, 16)))


@pytest.mark.parametrize(("n", "size", "wanted"), [(10, 512, 10), (5000, 128, 256), (5000, 1024, 32)])
def test_how_many_images_are_measured_on(n: int, size: int, wanted: int) -> None:
    rows = images_to_measure(n, size)
    assert len(set(rows.tolist())) == len(rows) == wanted
    assert rows[0] == 0
    assert rows[-1] == n - 1


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Builds a run whose only train image exists; a few flat pixels are enough to measure on."""
    saved = save_tiny_pipeline(tmp_path / "pipeline")
    monkeypatch.setattr(grain, "LEAST_PIXELS", 20)

    def build(name: str, **section: Any) -> Path:
        config = build_run(tmp_path, saved, name, **section)
        noise = np.random.default_rng(0).integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE)).astype(np.uint8)
        Image.fromarray(noise).save(config.with_suffix("") / "cohort" / "a.png")
        return config

    return build


def test_generation_adds_grain_and_says_whose_it_is(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, grainy, halves = make_run("plain"), make_run("grainy", grain=True), make_run("halves", grain=True,
                                                                                       micro_batch=2)
    for config in (plain, grainy, halves):
        run_here(config, monkeypatch)
    folder = images_folder(grainy)
    table = Grain.of_table(read_table(folder / GRAIN))
    assert (pixels(grainy) - pixels(plain)).std() > table.deviation.min() / 2 > 1
    assert np.abs(pixels(grainy) - pixels(halves)).max() <= 1  # the noise is the row's, whoever it is drawn with
    assert batches_of(halves)["micro_batch"].max() == 2
    learnt = set(read_table(folder / "patients.parquet", SCHEMA)["patient"])
    assert learnt == hash_patients(["1"], salt="s")  # the train patient, who is the generator's as well
    assert {GRAIN, "patients.parquet"} < set(stamp_of(grainy)["outputs"])
    assert "cohort" in stamp_of(grainy)["inputs"]
    assert not {GRAIN, "patients.parquet"} & set(stamp_of(plain)["outputs"])


def test_a_restart_takes_the_grain_that_was_measured(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = make_run("whole", grain=True), make_run("cut", grain=True)
    run_here(whole, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(Grain, "add", _interrupt_after(4, Grain.add))
        with pytest.raises(KeyboardInterrupt):
            run_here(cut, patch)
    monkeypatch.setattr(grain, "measure_grain", None)  # nobody may measure again
    run_here(cut, monkeypatch)
    assert files_of(cut) == files_of(whole)


def _interrupt_after(n: int, function: Callable) -> Callable:
    calls: list[int] = []

    def counted(self: Grain, image: torch.Tensor, *, seed: int) -> torch.Tensor:
        calls.append(seed)
        if len(calls) > n:
            raise KeyboardInterrupt
        return function(self, image, seed=seed)

    return counted


def test_grain_needs_squares(make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TailfillError, match="grain is measured on squares"):
        run_here(make_run("oblong", grain=True, height=32, width=48), monkeypatch)
