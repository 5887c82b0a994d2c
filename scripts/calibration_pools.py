"""What a calibration draws from: phantom images of site A as features of a frozen backbone, rendered once and kept.

::

    cohorts   real training cohorts (train and validation), each of its own seed: no patient is shared
    new       further images with a scarce finding: the oracle's
    without   the same chests with the finding that each is charged to taken away: what a wrong label looks like
    copies    images with a scarce finding of each training cohort, shifted, turned and re-exposed: memorised ones
    test      a large population of further patients, scarce findings enriched: test sets are drawn from it

Rows of ``features`` are what the tables name in their column ``row``. Everything rests in one folder and is made once:
images as files, pixels and features in caches that name themselves by content.

Not promised: anything about full-size images, or other backbones; statistics are what is calibrated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from classify.arms.filling import charge_to_rarest
from classify.learning.features import load_features
from classify.learning.models import Card, build_classifier, load_backbone, load_card
from classify.learning.start import WEIGHTS_FILE
from classify.slots import distort
from cohort.phantom.cases import draw_cases
from cohort.phantom.exam import Exam
from cohort.phantom.settings import PhantomConfig
from cohort.pixels import load_images
from cohort.sources.phantom import image_path, read, write_images
from cohort.tables import SPLITS, Cohort

SEEDS = {"cohorts": 9000, "new": 9098, "test": 9099}
"""Phantom seeds, those of cohorts one after the other; a hundred per seed of the calibration, and far above those of
configurations."""


@dataclass(frozen=True, kw_only=True)
class PoolSizes:
    """How many images of each kind."""

    cohorts: int = 4
    """Real training cohorts."""
    cohort_images: int = 2000
    """Images of each, a fifth of the patients in validation."""
    new_images: int = 2400
    """Further images with a scarce finding."""
    copies: int = 24
    """Altered copies of each training image with a scarce finding."""
    test_images: int = 8000
    """Images of the population that test sets are drawn from, less 5 % that the phantom puts in training."""
    enrichment: float = 8.0
    """Factor on scarce findings in validation and test."""


@dataclass(frozen=True, kw_only=True)
class Pools:
    """Everything that trials draw from."""

    features: np.ndarray
    """float32 (n_images, n_features)."""
    cohorts: Sequence[Cohort]
    """In memory; their frames, like all frames here, have the column ``row``."""
    new: pd.DataFrame
    """New images, with ``charged_to`` and, in ``row_without``, the row of the same chest without that finding."""
    copies: Sequence[pd.DataFrame]
    """Per cohort; ``label_source_id`` names the training image that each is an altered copy of."""
    test: pd.DataFrame

    @property
    def labels(self) -> list[str]:
        """The labels, in the order of their columns."""
        return self.cohorts[0].labels


@dataclass(kw_only=True)
class Studio:
    """Renders images and looks at them through the backbone."""

    folder: Path
    """Where everything is kept."""
    model: torch.nn.Module
    card: Card
    processes: int
    blocks: list[np.ndarray]
    """Features so far."""

    def shoot(self, exams: Sequence[Exam], name: str) -> tuple[np.ndarray, np.ndarray]:
        """Pixels, uint8 (n, size, size), and rows of the features of some exams."""
        root = self.folder / "phantom" / name
        write_images(list(exams), root, self.card.image_size, processes=self.processes)
        pixels = load_images([root / image_path(exam.image_id) for exam in exams], self.card.image_size,
                             self.folder / "cache")
        return pixels, self.look(pixels)

    def look(self, pixels: np.ndarray) -> np.ndarray:
        """The rows, int64 (n,), that the features of ``pixels`` take."""
        start = sum(map(len, self.blocks))
        self.blocks.append(load_features(self.model, pixels, self.card, cache=self.folder / "cache"))
        return np.arange(start, start + len(pixels))


def open_studio(folder: Path, backbone: Path, *, processes: int) -> Studio:
    """A studio with the backbone in the folder ``backbone``; ``TailfillError`` where there is none."""
    card = load_card(backbone)
    model = build_classifier(card.model, len(card.labels), image_size=card.image_size)
    load_backbone(model, backbone / WEIGHTS_FILE)
    return Studio(folder=folder, model=model, card=card, processes=processes, blocks=[])


def make_pools(studio: Studio, sizes: PoolSizes, *, seed: int) -> Pools:
    """Draw, render and look at everything."""
    phantom = partial(PhantomConfig, findings="core", size=studio.card.image_size, val_enrichment=sizes.enrichment,
                      test_enrichment=sizes.enrichment)
    seeds = {name: first + 100 * seed for name, first in SEEDS.items()}
    cohorts, copies = [], []
    for at in range(sizes.cohorts):
        config = phantom(images=sizes.cohort_images, seed=seeds["cohorts"] + at, val_share=0.2, test_share=0.0)
        frame, pixels = _draw(studio, config, f"cohort_{at}")
        cohorts.append(in_memory(frame, config))
        copies.append(_copies(studio, cohorts[-1], pixels, sizes.copies, seed=[seed, at]))
    new = _new_images(studio, phantom(images=sizes.new_images, seed=seeds["new"], val_share=0.0, test_share=0.0,
                                      only_with=("tail", "control")), cohorts[0])
    test, _ = _draw(studio, phantom(images=sizes.test_images, seed=seeds["test"], val_share=0.0, test_share=0.95),
                    "test", splits=("test",))
    return Pools(features=np.concatenate(studio.blocks), cohorts=cohorts, copies=copies, new=new, test=test)


def in_memory(frame: pd.DataFrame, config: PhantomConfig) -> Cohort:
    """A cohort that has no folder."""
    return Cohort(frame=frame, labels=list(config.labels), groups=config.groups, roots={}, salt="", folder=Path())


def _draw(
    studio: Studio, config: PhantomConfig, name: str, *, splits: Sequence[str] = SPLITS
) -> tuple[pd.DataFrame, np.ndarray]:
    """The table of some splits of a phantom cohort, with ``row``, and its pixels."""
    frame = read(config, studio.folder / "phantom" / name).frame
    frame = frame[frame["split"].isin(splits)].reset_index(drop=True)
    pixels, rows = studio.shoot([case.exam for case in draw_cases(config) if case.split in splits], name)
    return frame.assign(row=rows), pixels


def _new_images(studio: Studio, config: PhantomConfig, like: Cohort) -> pd.DataFrame:
    """New images, charged, and the same chests without the finding that they are charged to."""
    frame, _ = _draw(studio, config, "new")
    charged = charge_to_rarest(frame, like)
    exams = {case.exam.image_id: case.exam for case in draw_cases(config)}
    bare = [replace(exam, image_id=f"{image}-without", signs=tuple(s for s in exam.signs if s.label != label))
            for image, label in zip(charged["image_id"], charged["charged_to"], strict=True)
            for exam in [exams[image]]]
    _, rows = studio.shoot(bare, "without")
    return charged.assign(row_without=rows).reset_index(drop=True)


def _copies(studio: Studio, cohort: Cohort, pixels: np.ndarray, n: int, *, seed: Sequence[int]) -> pd.DataFrame:
    """``n`` altered copies of each training image with a scarce finding, charged as new images are."""
    frame = cohort.frame
    sources = charge_to_rarest(frame[frame["split"] == "train"], cohort)
    repeated = sources.loc[sources.index.repeat(n)]
    rng = np.random.default_rng([*seed, 1])
    images = torch.from_numpy(pixels[repeated.index.to_numpy()]).unsqueeze(1).float() / 255
    draws = torch.from_numpy(rng.uniform(-1, 1, size=(len(repeated), 6)).astype(np.float32))
    noisy = distort(images, draws).squeeze(1).numpy() * 255 + rng.normal(0, 3, (len(images), *pixels.shape[1:]))
    altered = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    names = [f"copy-{at}-{image}" for at, image in enumerate(repeated["image_id"])]
    return repeated.assign(label_source_id=repeated["image_id"], image_id=names,
                           row=studio.look(altered)).reset_index(drop=True)
