"""Image files to 8-bit grey arrays: the one way in which Tailfill reads a radiograph.

PNG and JPEG, 8 or 16 bit, grey, colour, palette, with or without alpha (which is dropped); DICOM by ``cohort.dicom``.
The image is squeezed to a square with an antialiased filter; its sides are not padded or cropped, so that nothing at
the border of a lung is lost. 16-bit values are scaled by the full range of the format (65535 -> 255), never by the
image's own minimum and maximum: brightness must mean the same in each image of a set. An unreadable or truncated file
is an error that names it, never a blank.

Not promised: EXIF rotation, or a window chosen for 12-bit data stored in 16 bits.
"""

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from cohort.dicom.header import is_dicom
from cohort.errors import TailfillError

log = logging.getLogger(__name__)

WIDE_MODES = ("I;16", "I;16B", "I;16L", "I")
"""Pillow's modes for 16-bit grey (``I`` in older releases)."""
FULL_RANGE = 65535
"""Largest value of a 16-bit PNG."""
FILTER = Image.Resampling.BICUBIC
"""Pillow widens a bicubic kernel by the reduction factor, which is what antialiases."""
UNREADABLE = (OSError, UnidentifiedImageError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
"""What Pillow raises for broken files, ``SyntaxError`` for broken PNG chunks included."""


def open_grey(path: Path) -> Image.Image:
    """The decoded image in mode ``L``, or ``F`` with values 0 to 255 where the file has 16 bits or is DICOM.

    Raises ``TailfillError`` naming the file when it is missing, unreadable, truncated or of another kind.
    """
    try:
        if is_dicom(path):
            from cohort.dicom.pixels import read_display  # important: not at the top, other files need no pydicom

            return Image.fromarray(read_display(path))
        with Image.open(path) as image:
            image.load()
            return _to_grey(image)
    except FileNotFoundError as error:
        raise TailfillError(f"{path}: no such image file") from error
    except UNREADABLE as error:
        raise TailfillError(f"{path}: cannot be read as an image: {error}") from error


def _to_grey(image: Image.Image) -> Image.Image:
    if image.mode in WIDE_MODES:
        values = np.asarray(image).astype(np.float32)
        if values.min() < 0 or values.max() > FULL_RANGE:
            raise ValueError(f"values from {values.min():.0f} to {values.max():.0f}; wanted: 0 to {FULL_RANGE}")
        return Image.fromarray(values * np.float32(255 / FULL_RANGE))
    if image.mode in ("P", "PA"):
        return image.convert("RGB").convert("L")
    if image.mode in ("1", "L", "LA", "La", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"):
        return image.convert("L")
    raise ValueError(f"its pixels are of Pillow's mode '{image.mode}'; wanted: grey, colour or palette")


def read_grey(path: Path, size: int) -> np.ndarray:
    """One image as (size, size) uint8, 0 black to 255 white; raises ``TailfillError`` naming an unreadable file."""
    image = open_grey(path)
    if image.size != (size, size):
        image = image.resize((size, size), FILTER)
    return np.clip(np.rint(np.asarray(image)), 0, 255).astype(np.uint8)


def load_images(paths: Sequence[Path], size: int, cache: Path | None, *, threads: int = 2) -> np.ndarray:
    """All images as (n, size, size) uint8, in the order of ``paths``.

    With a ``cache`` folder the pixels are kept there as one ``.npy`` and returned as a read-only memory map, so that a
    set larger than memory can be used; the file's name is a hash of the paths, their sizes and times, and ``size``.
    Without one they are held in memory. Raises ``TailfillError`` naming the first unreadable file.
    """
    if cache is None:
        pixels = np.empty((len(paths), size, size), dtype=np.uint8)
        _fill(pixels, paths, size, threads)
        return pixels
    file = cache / f"{_cache_key(paths, size)}.npy"
    if not file.is_file():
        _write_cache(file, paths, size, threads)
    return np.load(file, mmap_mode="r")


def _write_cache(file: Path, paths: Sequence[Path], size: int, threads: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        pixels = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=(len(paths), size, size))
        _fill(pixels, paths, size, threads)
        pixels.flush()
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _fill(pixels: np.ndarray, paths: Sequence[Path], size: int, threads: int) -> None:
    """Read into ``pixels`` a chunk at a time, so that finished images do not pile up behind a slow one."""
    with (ThreadPoolExecutor(threads) as pool,
          tqdm(total=len(paths), desc=f"read at {size} px", unit="image", mininterval=1.0) as bar):
        for chunk in _chunks(len(paths), 64 * threads):
            for position, image in zip(chunk, pool.map(lambda i: read_grey(paths[i], size), chunk), strict=True):
                pixels[position] = image
            bar.update(len(chunk))


def _chunks(n: int, length: int) -> Iterator[range]:
    return (range(start, min(start + length, n)) for start in range(0, n, length))


def _cache_key(paths: Sequence[Path], size: int) -> str:
    digest = hashlib.sha256(f"{size}\n".encode())
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise TailfillError(f"{path}: no such image file") from error
        digest.update(f"{path.absolute()}\t{status.st_size}\t{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]
