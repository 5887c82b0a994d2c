"""What the memorisation gate catches: copies of training images planted on purpose, and real images of unseen patients.

A share of the training patients leaves training: nothing is trained here, so they become the patients whom neither
training nor the threshold (which comes from validation) has seen. From the images of the others, copies are made:
exact, cropped (85 to 100 % of each side, and resized back), shifted (up to 8 %, the gap black or repeated), brightened
(brightness, contrast or gamma), mirrored, compressed (JPEG, quality 30 to 50), blended (80 % with 20 % of another
patient's image), and all of that but the blend at once. Test images are never read.

::

    python scripts/planted_copies.py --cohort runs/nih128/cohort --copies 200

Prints a Markdown table: how many of each kind are caught and how often the pair named is the right one, with exact 95 %
intervals; false alarms, by image and by patient (one image each; images of one patient are not independent); the
set-level share of the unseen images, which copy nobody; and the time of the three searches that an image goes through.
"""

import argparse
import io
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from cohort.errors import TailfillError, run_command
from cohort.pixels import load_images
from cohort.tables import Cohort, load_cohort
from synth.judging.copies import CopyReader
from synth.judging.evidence import Evidence, Images
from synth.judging.memorisation import (
    NEAREST,
    Collection,
    MatchReader,
    exact_interval,
    make_searches,
    memorisation,
    nearer_to_train,
    nearest_pairs,
)
from synth.judging.reading import Reader, pixel_digests

KEEP, SHIFT = 0.85, 0.08
"""Smallest share of a side that a crop keeps; largest shift, in sides."""
BLEND = 0.8
"""Share of the source in a blend."""

Planting = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
"""Source and another patient's image, uint8 (s, s) each, to a copy of the source, uint8 (s, s)."""


def _uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def exact(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image itself."""
    return image


def cropped(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A window of 85 to 100 % of either side, anywhere, resized back."""
    side = len(image)
    width, height = rng.uniform(KEEP, 1, 2)
    x, y = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
    box = (x * side, y * side, (x + width) * side, (y + height) * side)
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC, box=box))


def shifted(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Moved by up to 8 % of the side in either direction; the gap is black or repeats the border."""
    side, reach = len(image), int(SHIFT * len(image))
    padded = np.pad(image, reach, mode="edge") if rng.random() < 0.5 else np.pad(image, reach)
    y, x = rng.integers(0, 2 * reach + 1, 2)
    return padded[y: y + side, x: x + side]


def brightened(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness by 10 to 25 % of the range, contrast by .5 to .8 or 1.25 to 1.7, or gamma .5 to .75 or 1.4 to 2."""
    grey, more = image / 255, bool(rng.random() < 0.5)
    kind = rng.integers(3)
    if kind == 0:
        return _uint8(255 * (grey + (1 if more else -1) * rng.uniform(0.1, 0.25)))
    if kind == 1:
        return _uint8(255 * (0.5 + (grey - 0.5) * (rng.uniform(1.25, 1.7) if more else rng.uniform(0.5, 0.8))))
    return _uint8(255 * grey ** (rng.uniform(1.4, 2) if more else rng.uniform(0.5, 0.75)))


def flipped(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Left and right exchanged."""
    return image[:, ::-1]


def compressed(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Through JPEG at quality 30 to 50."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(stream, "JPEG", quality=int(rng.integers(30, 51)))
    return np.asarray(Image.open(stream))


def blended(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """80 % of the image and 20 % of another patient's."""
    return _uint8(BLEND * image + (1 - BLEND) * other.astype(float))


def combined(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cropped, shifted, brightened, mirrored every other time, and compressed."""
    for plant in (cropped, shifted, brightened, *((flipped,) if rng.random() < 0.5 else ()), compressed):
        image = plant(image, other, rng)
    return image


PLANTINGS: dict[str, Planting] = {
    "exact": exact, "cropped": cropped, "shifted": shifted, "brightened": brightened, "flipped": flipped,
    "JPEG": compressed, "blended": blended, "all but the blend": combined,
}


def plant(
    kind: str, pixels: np.ndarray, patients: np.ndarray, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Copies of n images drawn from uint8 (m, s, s): the copies, uint8 (n, s, s), and the rows of their sources."""
    sources = rng.integers(0, len(pixels), n)
    others = [rng.choice(np.flatnonzero(patients != patients[source])) for source in sources]
    copies = [PLANTINGS[kind](pixels[i], pixels[j], rng) for i, j in zip(sources, others, strict=True)]
    return np.stack(copies), sources


def main() -> None:
    """Print the table."""
    options = parse()
    torch.set_num_threads(options.threads)
    rng = np.random.default_rng(options.seed)
    cohort = load_cohort(options.cohort)
    splits = {split: cohort.frame[cohort.frame["split"] == split] for split in ("train", "val")}
    unseen = draw_patients(splits["train"]["patient_id"].to_numpy(str), options.unseen, rng)
    pixels, val_pixels = (_pixels(cohort, splits[split], options) for split in ("train", "val"))
    patients = splits["train"]["patient_id"].to_numpy(str)
    train = as_images(pixels[~unseen], patients[~unseen])
    val = as_images(val_pixels, splits["val"]["patient_id"].to_numpy(str))
    searches = make_searches(collection_of(train), collection_of(val))
    nearest = [search for search in searches if search.name == NEAREST]
    val = with_matches(val, nearest)
    shown = np.flatnonzero(unseen)[: options.limit or None]
    real = as_images(pixels[shown], patients[shown])
    sys.stdout.write(f"{len(train)} training images, {len(val)} of validation, {len(real)} of unseen patients\n\n")
    sys.stdout.write("| copies | n | caught | 95 % | right pair | median NCC |\n| :- | -: | -: | :- | -: | -: |\n")
    for kind in PLANTINGS:
        copies, sources = plant(kind, pixels[~unseen], train.patients, options.copies, rng)
        made = with_matches(as_images(copies, None), nearest)
        sys.stdout.write(catches(kind, case(made, train=train, val=val), sources, options) + "\n")
        sys.stdout.flush()
    galleries = [search.gallery for search in searches]  # built before the clock runs
    start = time.perf_counter(), time.process_time()
    real = with_matches(real, searches)
    wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
    sys.stdout.write("\n" + alarms(case(real, train=train, val=val), rng, options) + "\n")
    sys.stdout.write(f"Searches: {len(real) / wall:.0f} images/s by the clock, {1000 * cpu / len(real):.1f} ms of CPU "
                     f"each, {len(galleries)} searches.\n")


def catches(kind: str, evidence: Evidence, sources: np.ndarray, options: argparse.Namespace) -> str:
    """A row of the table."""
    caught, pairs = dropped(evidence, options), nearest_pairs(evidence)
    low, high = exact_interval(int(caught.sum()), len(caught))
    return (f"| {kind} | {len(caught)} | {caught.mean():.1%} | {low:.1%} to {high:.1%} | "
            f"{np.mean(pairs['nearest'] == sources):.1%} | {pairs['ncc'].median():.3f} |")


def alarms(evidence: Evidence, rng: np.random.Generator, options: argparse.Namespace) -> str:
    """False alarms and the set-level share, in three lines."""
    pairs = nearest_pairs(evidence)
    alarm = dropped(evidence, options)
    patients = evidence.made.patients
    order = rng.permutation(len(patients))
    one = order[np.unique(patients[order], return_index=True)[1]]
    by_image, by_patient = (f"{a.sum()} of {len(a)} ({a.mean():.2%}, 95 % {low:.2%} to {high:.2%})"
                            for a in (alarm, alarm[one]) for low, high in [exact_interval(int(a.sum()), len(a))])
    share = nearer_to_train(evidence)
    threshold = memorisation(evidence, false_alarms=options.false_alarms)[0]
    return (f"Threshold: {threshold.threshold}, {threshold.source}.\nReal images of unseen patients taken for copies: "
            f"{by_image}; one image per patient: {by_patient}; their median NCC {pairs['ncc'].median():.3f}.\n"
            f"Nearer to train than to held-out: {share}.")


def dropped(evidence: Evidence, options: argparse.Namespace) -> np.ndarray:
    """bool (n,): what the rule drops."""
    return np.asarray(memorisation(evidence, false_alarms=options.false_alarms)[0].margin() < 0)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", type=Path, required=True, help="folder of a prepared cohort")
    parser.add_argument("--size", type=int, default=128, help="pixels per side at which images are read")
    parser.add_argument("--copies", type=int, default=200, help="of each kind")
    parser.add_argument("--unseen", type=float, default=0.2, help="share of the training patients that leave it")
    parser.add_argument("--limit", type=int, default=0, help="images of unseen patients; 0: all of them")
    parser.add_argument("--false-alarms", type=float, default=0.005, help="setting of the rule")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if not 0 < options.unseen < 1:
        raise TailfillError(f"--unseen is {options.unseen}; wanted: a share between 0 and 1")
    return options


def draw_patients(patients: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """bool (n,): the images of a share of the patients, at least of one, drawn at random."""
    names = rng.permutation(np.unique(patients))
    return np.isin(patients, names[: max(1, round(share * len(names)))])


def as_images(pixels: np.ndarray, patients: np.ndarray | None) -> Images:
    """Images that nobody has read; each its own patient where None is given."""
    frame = pd.DataFrame(index=range(len(pixels)))
    names = np.array([f"made {i}" for i in range(len(pixels))]) if patients is None else patients
    return Images(labels=frame, patients=names, views=np.full(len(pixels), None), load=lambda rows: pixels[list(rows)],
                  readings={})


def read_all(reader: Reader, images: Images) -> np.ndarray:
    """What a reader reads of all images, float32 (n, width)."""
    starts = range(0, len(images), 64)
    return np.concatenate([reader.read(images.load(range(start, min(start + 64, len(images))))) for start in starts])


def collection_of(images: Images) -> Collection:
    """Images as others are searched among them."""
    readings = read_all(CopyReader(), images)
    return Collection(digests=pixel_digests(images.load(range(len(images)))), patients=images.patients,
                      readings=lambda: readings)


def with_matches(images: Images, searches: Sequence[MatchReader]) -> Images:
    """Images as the rule meets them, with what searches found."""
    return replace(images, readings={search.name: read_all(search, images) for search in searches})


def case(made: Images, *, train: Images, val: Images) -> Evidence:
    """Images before the rule."""
    return Evidence(made=made, charged_to=np.full(len(made), ""), scarce=[], train=train, val=val)


def _pixels(cohort: Cohort, frame: pd.DataFrame, options: argparse.Namespace) -> np.ndarray:
    """uint8 (n, size, size)."""
    paths = [cohort.roots[root] / path for root, path in zip(frame["root"], frame["path"], strict=True)]
    return load_images(paths, options.size, None, threads=options.threads)


if __name__ == "__main__":
    run_command(main)
