"""What ``cohort.check`` finds of planted duplicates, how often it takes two patients for one, and how its time grows.

Images are drawn from a prepared cohort and stored again: as they are, as JPEG (quality 40 to 80), with another
window (contrast, gamma or brightness), cropped to 94 to 100 or 88 to 94 % of either side, mirrored, and with all but
the mirror at once. Each copy joins the cohort as a patient of its own, and the check looks for it among all.

::

    python scripts/planted_duplicates.py --cohort RUN/cohort --copies 200

Prints a Markdown table per threshold: copies of each kind that are found, with exact 95 % intervals; false alarms:
images of the cohort itself that are paired with another patient's (each such pair is written to ``--pairs``, to be
looked at, for a cohort can hold true duplicates); and seconds of the search on growing shares of the cohort.
"""

import argparse
import io
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy import stats

from cohort.checking.reading import detail_of, hash_pixels, read_images
from cohort.checking.twins import find_near
from cohort.errors import TailfillError, run_command
from cohort.pixels import open_grey
from cohort.tables import load_cohort, write_table

log = logging.getLogger(__name__)

THRESHOLDS = (0.86, 0.88, 0.9, 0.92, 0.94)
SHARES = (0.25, 0.5, 1.0)
"""Shares of the cohort on which the search is timed."""

Planting = Callable[[Image.Image, np.random.Generator], Image.Image]


def exact(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The image itself."""
    return image


def compressed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Through JPEG at quality 40 to 80."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=int(rng.integers(40, 81)))
    return Image.open(stream)


def windowed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Contrast 1.25 to 1.7, gamma .6 to 1.6, or brightness up to 20 % of the range either way."""
    grey, kind = np.asarray(image) / 255, rng.integers(3)
    if kind == 0:
        grey = 0.5 + (grey - 0.5) * rng.uniform(1.25, 1.7)
    grey = grey ** rng.uniform(0.6, 1.6) if kind == 1 else grey + rng.uniform(-0.2, 0.2) if kind == 2 else grey
    return Image.fromarray(np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8))


def crop(image: Image.Image, rng: np.random.Generator, *, low: float, high: float) -> Image.Image:
    """A window of ``low`` to ``high`` of either side, anywhere, resized back."""
    (width, height), (w, h) = image.size, rng.uniform(low, high, 2)
    x, y = rng.uniform(0, 1 - w), rng.uniform(0, 1 - h)
    box = (x * width, y * height, (x + w) * width, (y + h) * height)
    return image.resize(image.size, Image.Resampling.BICUBIC, box=box)


def slightly_cropped(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """94 to 100 % of either side."""
    return crop(image, rng, low=0.94, high=1.0)


def cropped(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """88 to 94 % of either side."""
    return crop(image, rng, low=0.88, high=0.94)


def mirrored(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Left and right exchanged."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def combined(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Slightly cropped, windowed, and compressed."""
    return compressed(windowed(slightly_cropped(image, rng), rng), rng)


PLANTINGS: dict[str, Planting] = {
    "exact": exact, "JPEG": compressed, "window": windowed, "crop to 94-100 %": slightly_cropped,
    "crop to 88-94 %": cropped, "mirror": mirrored, "crop, window and JPEG": combined}


def interval(k: int, n: int) -> str:
    """``k of n (low to high %)``, Clopper and Pearson's 95 %."""
    found = stats.binomtest(k, n).proportion_ci(0.95, method="exact")
    return f"{k} of {n} ({100 * found.low:.2f} to {100 * found.high:.2f} %)"


def plant(paths: Sequence[Path], sources: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Copies of each kind's own sources, int (kinds, n), kind by kind: readings, and whether the pixels are equal."""
    details, equal = [], []
    for make, rows in zip(PLANTINGS.values(), sources, strict=True):
        for row in rows:
            image = open_grey(paths[row]).convert("L")
            copy = make(image, rng)
            details.append(detail_of(copy))
            equal.append(hash_pixels(copy) == hash_pixels(image))
    return np.stack(details), np.array(equal)


def measure(cohort_folder: Path, *, copies: int, threads: int, seed: int, blocks: Path, pairs: Path | None) -> str:
    """The tables as text; raises ``TailfillError`` for more copies than usable images."""
    cohort, rng = load_cohort(cohort_folder), np.random.default_rng(seed)
    paths = cohort.image_paths(cohort.frame)
    readings = read_images(paths, threads=threads, blocks=blocks)
    usable = np.flatnonzero(readings.usable)
    most = len(usable) // len(PLANTINGS)
    if not 0 < copies <= most:
        raise TailfillError(f"--copies is {copies}; wanted: 1 to {most}, for each copy has an image of its own")
    patients = np.unique(cohort.frame["patient_id"].to_numpy(dtype=str), return_inverse=True)[1]
    lines, seconds = [], []
    for share in SHARES:
        rows = usable[:int(share * len(usable))]
        started = time.process_time()
        own = find_near(readings.details[rows], usable=np.ones(len(rows), bool), groups=patients[rows],
                        least=min(THRESHOLDS))
        seconds.append(f"{time.process_time() - started:.0f} s of {len(rows):,} images")
    sources = rng.choice(usable, len(PLANTINGS) * copies, replace=False)
    made, equal = plant(paths, sources.reshape(len(PLANTINGS), copies), rng)
    n = len(usable)
    everything = np.concatenate([readings.details[usable], made])
    found = find_near(everything, usable=np.ones(len(everything), bool), least=min(THRESHOLDS),
                      groups=np.concatenate([patients[usable], patients.max() + 1 + np.arange(len(made))]))
    copied, best = np.searchsorted(usable, sources), np.zeros(len(made))
    for a, b, ncc in zip(found.first.tolist(), found.second.tolist(), found.ncc.tolist(), strict=True):
        old, new = min(a, b), max(a, b) - n
        if new >= 0 and old == copied[new]:
            best[new] = max(best[new], ncc)
    best[equal] = 1.0
    lines.append("| kind | " + " | ".join(f"NCC {least}" for least in THRESHOLDS) + " |")
    lines.append("| :--- |" + " ---: |" * len(THRESHOLDS))
    for kind, values in zip(PLANTINGS, best.reshape(len(PLANTINGS), copies), strict=True):
        lines.append(f"| {kind} | " + " | ".join(interval(int((values >= least).sum()), copies)
                                                 for least in THRESHOLDS) + " |")
    alarms = [len(set(own.first[own.ncc >= least].tolist()) | set(own.second[own.ncc >= least].tolist()))
              for least in THRESHOLDS]
    lines.append("| images of the cohort paired with another patient's | "
                 + " | ".join(interval(n, len(usable)) for n in alarms) + " |")
    if pairs is not None:
        names = cohort.frame["image_id"].to_numpy()[usable]
        write_table(pd.DataFrame({"image_id": names[own.first], "other_image_id": names[own.second], "ncc": own.ncc,
                                  "mirrored": own.mirrored}), pairs)
    return "\n".join([*lines, "", f"search: {', '.join(seconds)} (CPU time)"]) + "\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", type=Path, required=True, help="a prepared cohort")
    parser.add_argument("--copies", type=int, default=200, help="of each kind")
    parser.add_argument("--threads", type=int, default=2, help="threads that decode images")
    parser.add_argument("--seed", type=int, default=0, help="of the copies")
    parser.add_argument("--blocks", type=Path, required=True, help="folder for what was read, kept for another time")
    parser.add_argument("--pairs", type=Path, help="Parquet file for the pairs of the cohort itself")
    options = parser.parse_args()
    sys.stdout.write(measure(options.cohort, copies=options.copies, threads=options.threads, seed=options.seed,
                             blocks=options.blocks, pairs=options.pairs))


if __name__ == "__main__":
    run_command(main)
