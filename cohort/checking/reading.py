"""Each image decoded once: what tells it from others, kept in a few kilobytes.

``sha256`` is of the decoded pixels, so the same picture in another format, or widened to 16 bits, is the same. The
reading is a thumbnail of ``SIDE`` pixels without its own blur and over its local contrast: ribs, vessels, edges. Grey
scale, brightness, contrast and compression are hardly in it (the filter for generated images uses the same idea).

Blocks of ``BLOCK`` images are written as they are read, so a kill costs one block.
"""

import hashlib
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

from cohort.errors import TailfillError
from cohort.pixels import FILTER, open_grey
from cohort.stage import write_atomically

SIDE = 48
"""Pixels per side of a reading: a rib of a 40 cm wide chest is a pixel or two."""
BAND, LOCAL = 1 / 24, 1 / 8
"""Standard deviations of the blur that is taken away and of the window of local contrast, in sides of the image."""
NOISE = 4.0
"""Grey levels added to the local contrast, so that flat regions stay flat."""
STEPS = 30.0
"""Steps per unit of a reading, which spans about -4 to 4 and is kept in 8 bits."""
BLOCK = 1024
LOW_CONTRAST = 16.0
"""Grey levels of 255 within which all but a hundredth of an image lies, below which it is blank; 12-bit values in a
16-bit file span 15."""
TO_16_BITS = 257
"""What widens 8 bits to 16: 255 becomes 65535."""


@dataclass(frozen=True, kw_only=True)
class Readings:
    """What was read of n images, in order."""

    details: np.ndarray
    """int8 (n, SIDE, SIDE), ``STEPS`` per unit; zeros where the image could not be read."""
    sha256: np.ndarray
    """str (n,): of the pixels, empty where they could not be read."""
    contrast: np.ndarray
    """float64 (n,): grey levels between the .5 % and the 99.5 % quantile, 0 to 255; NaN where not read."""
    errors: np.ndarray
    """str (n,): why an image could not be read, empty where it was."""

    @property
    def usable(self) -> np.ndarray:
        """bool (n,): read, and not blank."""
        return np.asarray(self.contrast >= LOW_CONTRAST)


def grey_range(grey: np.ndarray) -> float:
    """Grey levels between the .5 % and the 99.5 % quantile of an image, (h, w), 0 to 255."""
    low, high = np.quantile(grey, (0.005, 0.995))
    return float(high - low)


def hash_pixels(image: Image.Image) -> str:
    """sha256 of the grey values at 16 bits, and of height and width; ``image``: mode L, or F with 0 to 255."""
    values = np.asarray(image)
    wide = values.astype(np.uint16) * TO_16_BITS if image.mode == "L" else np.rint(
        np.clip(values, 0, 255) * TO_16_BITS).astype(np.uint16)
    return hashlib.sha256(f"{wide.shape}".encode() + wide.tobytes()).hexdigest()


def detail_of(image: Image.Image) -> np.ndarray:
    """int8 (SIDE, SIDE): the reading of a grey image of any size."""
    small = np.asarray(image.convert("F").resize((SIDE, SIDE), FILTER), dtype=np.float32)
    detail = small - gaussian_filter(small, BAND * SIDE, mode="nearest", truncate=3.0)
    contrast = np.sqrt(gaussian_filter(detail * detail, LOCAL * SIDE, mode="nearest", truncate=3.0))
    return np.clip(np.rint(STEPS * detail / (contrast + NOISE)), -127, 127).astype(np.int8)


def read_one(path: Path) -> tuple[np.ndarray, str, float, str]:
    """Reading, sha256, contrast and error of one file."""
    try:
        image = open_grey(path)
        return detail_of(image), hash_pixels(image), grey_range(np.asarray(image)), ""
    except TailfillError as error:
        return np.zeros((SIDE, SIDE), dtype=np.int8), "", np.nan, str(error).removeprefix(f"{path}: ")


def read_images(paths: Sequence[Path], *, threads: int, blocks: Path) -> Readings:
    """Read every image, or what the folder ``blocks`` has of them; an unreadable one is noted, not raised."""
    parts: list[dict[str, np.ndarray]] = []
    with (ThreadPoolExecutor(threads) as pool,
          tqdm(total=len(paths), desc="read", unit="image", mininterval=1.0) as bar):
        for start in range(0, len(paths), BLOCK):
            part = paths[start:start + BLOCK]
            file = blocks / f"{_key(part)}.npz"
            parts.append(_load(file) if file.is_file() else _read_block(part, file, pool))
            bar.update(len(part))
    empty = {"details": np.zeros((0, SIDE, SIDE), np.int8), "sha256": np.zeros(0, "U64"), "contrast": np.zeros(0),
             "errors": np.zeros(0, "U1")}
    return Readings(**{name: np.concatenate([part[name] for part in parts or [empty]]) for name in empty})


def _read_block(paths: Sequence[Path], file: Path, pool: ThreadPoolExecutor) -> dict[str, np.ndarray]:
    details, hashes, contrast, errors = zip(*pool.map(read_one, paths), strict=True)
    block = {"details": np.stack(details), "sha256": np.array(hashes, dtype="U64"),
             "contrast": np.array(contrast, dtype=np.float64), "errors": np.array(errors, dtype=str)}
    content = io.BytesIO()
    np.savez(content, **block)  # type: ignore[arg-type]
    write_atomically(file, content.getvalue())
    return block


def _load(file: Path) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _key(paths: Sequence[Path]) -> str:
    """A hash of the files, and of how images are read."""
    return hashlib.sha256(f"1 {SIDE} {BAND} {LOCAL} {NOISE} {STEPS} {hash_listing(paths)}".encode()).hexdigest()[:32]


def hash_listing(paths: Sequence[Path]) -> str:
    """A hash of paths, sizes and times of change, by which it is known that images are the same as before."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            status = path.stat()
            digest.update(os.fsencode(path.absolute()) + f"\t{status.st_size}\t{status.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(os.fsencode(path.absolute()) + b"\tmissing\n")
    return digest.hexdigest()
