"""Every kind of file against numpy; broken files are named; the cache gives back what reading gives."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cohort.errors import TailfillError
from cohort.pixels import load_images, read_grey
from cohort.preparing.decoding import find_unreadable

SIZE = 16


@pytest.fixture
def grey() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)


def test_grey_png_is_read_as_it_is(tmp_path: Path, grey: np.ndarray) -> None:
    Image.fromarray(grey).save(tmp_path / "x.png")
    found = read_grey(tmp_path / "x.png", SIZE)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, grey)


def test_16_bit_png_is_scaled_by_the_full_range(tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, 65536, (SIZE, SIZE), dtype=np.uint16)
    values[0, :4] = (0, 65535, 257, 4095)
    Image.fromarray(values).save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        assert image.mode.startswith("I")  # the file really has 16 bits
    np.testing.assert_array_equal(read_grey(tmp_path / "x.png", SIZE), np.rint(values / 65535 * 255).astype(np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "1"])
def test_other_modes_agree_with_their_grey_values(tmp_path: Path, grey: np.ndarray, mode: str) -> None:
    source = Image.fromarray((grey > 127).astype(np.uint8) * 255 if mode == "1" else grey)
    if mode == "P":  # a palette that turns the order of the indices round
        image = Image.fromarray(255 - grey).convert("P")
        image.putpalette([value for index in range(256) for value in [255 - index] * 3])
    else:
        image = source.convert(mode)
    image.save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as stored:
        assert stored.mode == mode
    np.testing.assert_array_equal(read_grey(tmp_path / "x.png", SIZE), np.asarray(source))


def test_colour_is_weighted_as_luma(tmp_path: Path) -> None:
    colour = np.random.default_rng(2).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(colour).save(tmp_path / "x.png")
    luma = colour @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    assert np.abs(read_grey(tmp_path / "x.png", SIZE) - luma).max() < 1


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_is_near_the_original(tmp_path: Path, mode: str) -> None:
    smooth = np.add.outer(np.arange(SIZE), np.arange(SIZE)).astype(np.uint8) * 8
    Image.fromarray(smooth).convert(mode).save(tmp_path / "x.jpg", quality=95)
    assert np.abs(read_grey(tmp_path / "x.jpg", SIZE).astype(int) - smooth).max() <= 4


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_resizing_is_antialiased_and_to_a_square(tmp_path: Path, dtype: type) -> None:
    full = np.iinfo(dtype).max
    stripes = np.zeros((96, 160), dtype=dtype)
    stripes[:, ::2] = full  # a pattern that plain sampling would turn into black, white or moiré
    Image.fromarray(stripes).save(tmp_path / "x.png")
    found = read_grey(tmp_path / "x.png", SIZE)
    assert found.shape == (SIZE, SIZE)
    assert np.abs(found[:, 1:-1].astype(int) - 127).max() <= 6


def test_a_resize_keeps_within_range(tmp_path: Path) -> None:
    edge = np.zeros((64, 64), dtype=np.uint16)
    edge[:, 32:] = 65535  # a bicubic kernel overshoots here
    Image.fromarray(edge).save(tmp_path / "x.png")
    found = read_grey(tmp_path / "x.png", SIZE)
    assert (found[:, 0].max(), found[:, -1].min()) == (0, 255)
    assert (np.diff(found.astype(int), axis=1) > -30).all()  # nothing has wrapped round


def broken_file(folder: Path, kind: str) -> Path:
    file = folder / "x.png"
    if kind == "missing":
        return file
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(file)
    whole = file.read_bytes()
    file.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"no image at all",
                      "damaged": whole[:60] + bytes(200) + whole[260:]}[kind])
    return file


@pytest.mark.parametrize("kind", ["missing", "truncated", "empty", "text", "damaged"])
def test_a_broken_file_is_an_error_that_names_it(tmp_path: Path, kind: str) -> None:
    file = broken_file(tmp_path, kind)
    with pytest.raises(TailfillError, match=r"x\.png"):
        read_grey(file, SIZE)
    Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(tmp_path / "good.png")
    assert list(find_unreadable([tmp_path / "good.png", file], threads=2)) == [1]


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(TailfillError, match="mode 'F'"):
        read_grey(tmp_path / "x.tif", SIZE)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(3)
    paths = [tmp_path / f"{n}.png" for n in range(7)]
    for file in paths:
        Image.fromarray(rng.integers(0, 256, (20, 24), dtype=np.uint8)).save(file)
    return paths


def test_loading_keeps_the_order_with_and_without_a_cache(tmp_path: Path, files: list[Path]) -> None:
    wanted = np.stack([read_grey(file, SIZE) for file in files])
    cache = tmp_path / "cache"
    for found in (load_images(files, SIZE, None), load_images(files, SIZE, cache), load_images(files, SIZE, cache)):
        np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(load_images(files[::-1], SIZE, cache), wanted[::-1])
    assert isinstance(load_images(files, SIZE, cache), np.memmap)
    assert not list(cache.glob(".*"))


def test_a_changed_file_or_size_is_read_anew(tmp_path: Path, files: list[Path]) -> None:
    cache = tmp_path / "cache"
    load_images(files, SIZE, cache)
    Image.fromarray(np.full((20, 24), 200, dtype=np.uint8)).save(files[0])
    os.utime(files[0], ns=(1, 1))
    assert (load_images(files, SIZE, cache)[0] == 200).all()
    assert load_images(files, 8, cache).shape == (7, 8, 8)
    assert len(list(cache.glob("*.npy"))) == 3


def test_a_cache_of_a_broken_file_is_not_left_behind(tmp_path: Path, files: list[Path]) -> None:
    files[4].write_bytes(b"broken")
    with pytest.raises(TailfillError, match=r"4\.png"):
        load_images(files, SIZE, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_no_images_are_an_empty_array(tmp_path: Path) -> None:
    assert load_images([], SIZE, None).shape == (0, SIZE, SIZE)
    assert load_images([], SIZE, tmp_path).shape == (0, SIZE, SIZE)
