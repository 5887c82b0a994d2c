"""From an arm's slots to batches: which slots make up step t, what they look like, and how they are distorted.

Every random choice is a function of (seed, step, place in the global batch) and nothing else, so a resumed run, or one
on eight processes, sees the very batches of an uninterrupted one on one. Two arms with the same slots and the same seed
meet the same slots at the same steps with the same distortions: only what stands in the slot differs. The least real
share of a batch does not break that: it is about the slots that were *added* to each real image once, not about what
fills them, so a batch of `synthetic` and one of `duplicate` are corrected alike.

Distortions are small, as positions differ between radiographs of one patient. There is no horizontal flip: the heart
is on the left, a mirrored film is situs inversus, and the sides of findings (Hernia, Cardiomegaly) are information.
Not promised: bit-equal pixels on another device type.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from cohort.errors import TailfillError
from cohort.pixels import load_images
from cohort.stage import require, verify
from cohort.tables import Cohort, cohort_schema, load_further, read_table, synthetic_schema

ROTATION_DEGREES, TRANSLATION, SCALE = 7.0, 0.04, 0.08  # positioning on the detector; chosen to stay anatomical
CONTRAST, BRIGHTNESS = 0.15, 0.08  # exposure and window; factor and offset on grey values of 0 to 1
AUGMENT_STREAM, BASE_STREAM = 1, 3  # apart from the stream of orders (0), and torch's own (2, see learning/fitting.py)


@dataclass(frozen=True, kw_only=True)
class Slots:
    """An arm's slots in memory, sorted by slot_id; ``images`` may be memory maps."""

    images: Sequence[np.ndarray]
    """uint8 (n, size, size) each: the real images, then the synthetic ones; or their features, float32 (n, n_features).

    One slot points into their sequence."""
    index: np.ndarray
    """int64 (n_slots,): place of the slot's image in the sequence of all ``images``."""
    targets: np.ndarray
    """float32 (n_slots, n_labels): 1, 0, or NaN for unknown."""
    weights: np.ndarray
    """float32 (n_slots,): loss weight."""
    phase: np.ndarray
    """int64 (n_slots,): 1 or 2."""
    added: np.ndarray
    """bool (n_slots,): whether the slot was added for the balance of labels, beside each real image once."""

    def inputs(self, places: np.ndarray) -> np.ndarray:
        """The images, or features, of some slots: (len(places), ...), in the dtype and shape of ``images``."""
        out = np.empty((len(places), *self.images[0].shape[1:]), dtype=self.images[0].dtype)
        index, start = self.index[places], 0
        for part in self.images:
            inside = (index >= start) & (index < start + len(part))
            out[inside] = part[index[inside] - start]
            start += len(part)
        return out


def label_matrix(frame: pd.DataFrame, labels: list[str]) -> np.ndarray:
    """The label columns as float32 (n, n_labels), NaN where unknown."""
    return frame[labels].to_numpy(dtype=np.float32, na_value=np.nan)


def prevalence(targets: np.ndarray) -> np.ndarray:
    """Share of positives among the known labels, float32 (n_labels,); 0 for a label that is known nowhere."""
    known = np.maximum((targets >= 0).sum(axis=0), 1)
    return ((targets == 1).sum(axis=0) / known).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Images that slots may name beside the cohort's own."""

    frame: pd.DataFrame
    """One row per image, in the cohort's columns; the filter's table has its own beside them."""
    roots: dict[str, Path]
    """The folder behind each name in the column ``root``."""

    def paths(self) -> list[Path]:
        """The absolute path of each row's image file."""
        return [self.roots[root] / path for root, path in zip(self.frame["root"], self.frame["path"], strict=True)]


def load_pools(folders: Mapping[str, Path], cohort: Cohort) -> dict[str, Pool]:
    """The images behind an arm's inputs, by stage: all that ``filter`` judged, what was reconstructed, or a further
    cohort's training images.

    Raises ``TailfillError`` for a table that is missing, changed or invalid, and for a further cohort of other labels
    or of patients that the experiment's own cohort has too.
    """
    readers = {"filter": _load_synthetic, "reconstruct": _load_reconstructed}
    return {name: readers.get(name, _load_further)(folder, cohort) for name, folder in folders.items()}


def _load_synthetic(folder: Path, cohort: Cohort) -> Pool:
    extra = require(folder, "filter")["extra"]
    frame = read_table(verify(folder, "filter", "synthetic.parquet"), synthetic_schema(cohort.labels, extra["rules"]))
    return Pool(frame=frame, roots={name: Path(path) for name, path in extra["roots"].items()})


def _load_reconstructed(folder: Path, cohort: Cohort) -> Pool:
    extra = require(folder, "reconstruct")["extra"]
    frame = read_table(verify(folder, "reconstruct", "reconstructed.parquet"), cohort_schema(cohort.labels))
    return Pool(frame=frame, roots={name: Path(path) for name, path in extra["roots"].items()})


def _load_further(folder: Path, cohort: Cohort) -> Pool:
    further = load_further(folder, cohort)
    return Pool(frame=further.split("train"), roots=further.roots)


def load_slots(
    arm: pd.DataFrame, cohort: Cohort, pools: Mapping[str, Pool], *, size: int, cache: Path | None, threads: int = 2,
    splits: Sequence[str] = ("train",),
) -> Slots:
    """Read the images and labels behind an arm table.

    All real images of the ``splits`` that the arm may hold, and all of each pool that it draws on, are read, not only
    the arm's, so that every arm and seed shares the files in the folder ``cache``. A slot has its image's labels, or
    those of the image that ``labels_from`` names. Raises ``TailfillError`` for an image that is in none of the tables.
    """
    own = [Pool(frame=cohort.split(name), roots=cohort.roots) for name in splits]
    used = [*own, *(pool for pool in pools.values() if pool.frame["image_id"].isin(arm["image_id"]).any())]
    known = pd.Index([image for pool in used for image in pool.frame["image_id"]])
    ordered = arm.sort_values("slot_id")
    index = known.get_indexer(pd.Index(ordered["image_id"]))
    labelled = known.get_indexer(pd.Index(ordered["labels_from"].fillna(ordered["image_id"])))
    for places, column in ((index, "image_id"), (labelled, "labels_from")):
        if (places < 0).any():
            lost = ordered[column].iloc[int(np.argmin(places))]
            raise TailfillError(f"arm: {column} '{lost}' is neither a {' or '.join(splits)} image of the cohort nor "
                                f"one of: {', '.join(pools) or '(no further table)'}")
    targets = np.concatenate([label_matrix(pool.frame, cohort.labels) for pool in used])
    return Slots(
        images=[load_images(pool.paths(), size, cache, threads=threads) for pool in used], index=index,
        targets=targets[labelled], weights=ordered["loss_weight"].to_numpy(dtype=np.float32),
        phase=ordered["phase"].to_numpy(dtype=np.int64), added=ordered["added"].to_numpy(dtype=bool),
    )


def places_in_order(places: np.ndarray, *, seed: Sequence[int], start: int, count: int) -> np.ndarray:
    """``count`` of ``places`` from position ``start`` of an endless sequence of seeded permutations, one per epoch."""
    out: list[np.ndarray] = []
    position, end = start, start + count
    while position < end:
        epoch, offset = divmod(position, len(places))
        out.append(places[_order((*seed, epoch), len(places))[offset:offset + end - position]])
        position += len(out[-1])
    return np.concatenate(out)


@lru_cache(maxsize=8)
def _order(seed: tuple[int, ...], count: int) -> np.ndarray:
    """One epoch's permutation; its steps follow one another, and a million places take 20 ms to shuffle."""
    return np.random.default_rng(seed).permutation(count)


def first_of_phase_2(steps: int, phase_2_share: float) -> int:
    """The first of the last ``phase_2_share`` of the steps; ``steps`` where there is none."""
    return steps - round(steps * phase_2_share)


def step_places(
    phase: np.ndarray, added: np.ndarray, *, step: int, steps: int, batch_size: int, phase_2_share: float,
    min_real_share: float, seed: Sequence[int],
) -> np.ndarray:
    """The slots (their places in slot_id order) of a step's global batch, int64 (batch_size,).

    Where there are slots of phase 2, the last ``phase_2_share`` of the steps draws from them, and all steps before
    from those of phase 1. A batch with fewer than ``min_real_share`` (0 to 1) of slots that were not ``added`` has its
    last added ones replaced by such; any other stays as it is, and so does a phase that has none. ``phase`` and
    ``added`` are those of ``Slots``. Raises ``TailfillError`` when there are no slots of phase 1.
    """
    first_of_2 = first_of_phase_2(steps, phase_2_share) if (phase == 2).any() else steps
    current, since = (1, 0) if step < first_of_2 else (2, first_of_2)
    places = np.flatnonzero(phase == current)
    if not len(places):
        raise TailfillError(f"arm: has no slots of phase {current}")
    batch = places_in_order(places, seed=[*seed, 0, current], start=(step - since) * batch_size, count=batch_size)
    base, wanted = places[~added[places]], math.ceil(min_real_share * batch_size - 1e-9)  # .1 * 30 is above 3
    at = np.flatnonzero(added[batch])
    missing = wanted - (batch_size - len(at))
    if missing > 0 and len(base):
        # every step has a stretch of its own of this sequence, so that no step needs to know those before
        batch[at[-missing:]] = places_in_order(base, seed=[*seed, BASE_STREAM, current],
                                               start=(step - since) * wanted, count=missing)
    return batch


def distortions(n: int, *, step: int, seed: Sequence[int]) -> np.ndarray:
    """Uniform draws in [-1, 1) of a step's global batch, float32 (n, 6).

    Columns: rotation, shift in x, shift in y, scale, contrast, brightness.
    """
    rng = np.random.default_rng([*seed, AUGMENT_STREAM, step])
    return rng.uniform(-1, 1, size=(n, 6)).astype(np.float32)


def distort(images: Tensor, draws: Tensor) -> Tensor:
    """Apply ``distortions`` to grey images (batch, 1, size, size) in 0 to 1; the result stays in that range.

    What comes in from outside the image is black, as outside a collimated field. Draws of 0 change nothing.
    """
    angle = draws[:, 0] * (ROTATION_DEGREES * np.pi / 180)
    shift = draws[:, 1:3] * (2 * TRANSLATION)  # affine_grid's coordinates run from -1 to 1
    zoom = 1 + draws[:, 3] * SCALE
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    matrix = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    contrast, brightness = (draws[:, column].view(-1, 1, 1, 1) for column in (4, 5))
    middle = moved.mean(dim=(1, 2, 3), keepdim=True)
    return ((moved - middle) * (1 + CONTRAST * contrast) + middle + BRIGHTNESS * brightness).clamp(0, 1)


def grey_statistics(images: np.ndarray, rows: np.ndarray | None = None) -> tuple[float, float]:
    """Mean and standard deviation of uint8 images (n, size, size), on grey values of 0 to 1; summed in float64.

    ``rows``, int64 (k,), are those that count; None: all. Raises ``TailfillError`` when all pixels are equal.
    """
    rows = np.arange(len(images)) if rows is None else rows
    total, squares, count = 0.0, 0.0, len(rows) * math.prod(images.shape[1:])
    for start in range(0, len(rows), 1024):
        part = np.asarray(images[rows[start:start + 1024]], dtype=np.float64) / 255
        total, squares = total + part.sum(), squares + np.square(part).sum()
    mean = total / count
    std = float(np.sqrt(max(squares / count - mean**2, 0.0)))
    if std < 1e-6:
        raise TailfillError(f"the {len(rows)} real training images have one grey value only ({mean:.3f})")
    return float(mean), std
