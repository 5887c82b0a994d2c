"""The chapter that shows images: real, kept and dropped ones of each tail class, with what was asked for.

Which images are shown is drawn at random with the run's seed, never chosen: a hand-picked sheet proves nothing. Real
images are from the train split. Captions are text beside the picture, so they can be read, searched and escaped.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from classify.figures.sheets import data_uri
from classify.pages.blocks import Chapter, is_null
from classify.pages.evidence import Evidence
from cohort.pixels import read_grey


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One picture: its PNG as a data URI, its caption, and, when it was dropped, why."""

    picture: str
    caption: str
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Strip:
    """Samples of one kind; ``words`` says how many there are in all."""

    title: str
    words: str
    samples: tuple[Sample, ...]


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """The strips of one class."""

    title: str
    strips: tuple[Strip, ...]
    kind: str = field(default="sheet", init=False)


def samples_chapter(evidence: Evidence, *, n_samples: int, max_classes: int, picture_px: int) -> Chapter:
    """Contact sheets of the rarest tail classes, then of the matched negatives.

    ``n_samples`` pictures per strip, at most ``max_classes`` classes, pictures ``picture_px`` pixels wide.
    """
    tail = [label for label in evidence.labels if evidence.cohort.groups[label] == "tail"]
    synthetic = evidence.synthetic.merge(evidence.plan[["sample_id", "prompt"]], on="sample_id", how="left")
    sheets = []
    for i, name in enumerate([*tail[:max_classes], "negative"]):
        rng = np.random.default_rng([evidence.run.seed, i])
        sheets.append(_sheet(evidence, synthetic, name, rng=rng, n=n_samples, size=picture_px))
    left = f" {len(tail) - max_classes} more tail classes are not shown." if len(tail) > max_classes else ""
    return Chapter(
        anchor="samples", title="Real, kept, dropped", blocks=tuple(sheets),
        words=("Drawn at random with the run's seed, not chosen. Below a real image stands what its source says of it, "
               f"below a synthetic one the prompt that it was made from.{left}",),
        sources=("cohort/cohort.parquet", "synthetic/synthetic.parquet", "plan/plan.parquet"),
    )


def _sheet(evidence: Evidence, synthetic: pd.DataFrame, name: str, *, rng: np.random.Generator, n: int,
           size: int) -> Sheet:
    """Real, kept and dropped images of one class, or of the matched negatives."""
    train = evidence.cohort.split("train")
    tail = evidence.cohort.in_group("tail")
    real = train[(train[tail].fillna(0).sum(axis=1) == 0) if name == "negative" else train[name].eq(1).fillna(False)]
    charged = synthetic[synthetic["charged_to"] == name]
    kept, dropped = charged[charged["keep"]], charged[~charged["keep"]]
    shown = [_draw(frame, key, rng, n) for frame, key in
             ((real, "image_id"), (kept, "sample_id"), (dropped, "sample_id"))]
    made = evidence.run.folder / "images"
    real_words = f"{len(real):,} in train" + (" without a tail finding" if name == "negative" else "")
    pictured = zip(_records(shown[0]), evidence.cohort.image_paths(shown[0]), strict=True)
    return Sheet(
        title="Matched negatives" if name == "negative" else f"{name} (tail)",
        strips=(
            Strip(title="Real", words=real_words,
                  samples=tuple(Sample(picture=_picture(path, size), caption=_person(row, evidence.cohort.labels))
                                for row, path in pictured)),
            Strip(title="Kept", words=f"{len(kept):,} of {len(charged):,} made",
                  samples=_synthetic(shown[1], made, size)),
            Strip(title="Dropped", words=f"{len(dropped):,} of {len(charged):,} made",
                  samples=_synthetic(shown[2], made, size)),
        ),
    )


def _draw(frame: pd.DataFrame, key: str, rng: np.random.Generator, n: int) -> pd.DataFrame:
    """At most ``n`` rows at random; the draw does not depend on the order of the rows."""
    ordered = frame.sort_values(key).reset_index(drop=True)
    return ordered.iloc[rng.permutation(len(ordered))[:n]]


def _synthetic(frame: pd.DataFrame, made: Path, size: int) -> tuple[Sample, ...]:
    return tuple(
        Sample(picture=_picture(made / str(row["path"]), size),
               caption="(no such row in the plan)" if is_null(row["prompt"]) else str(row["prompt"]),
               reason="" if is_null(row["reason"]) else str(row["reason"]))
        for row in _records(frame)
    )


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def _picture(path: Path, size: int) -> str:
    return data_uri(read_grey(path, size))


def _person(row: dict[str, Any], labels: Sequence[str]) -> str:
    """Findings, view, sex and age of a real image, as far as its source tells them."""
    found = [label for label in labels if not is_null(row[label]) and row[label] == 1]
    person = [row["view"], row["sex"], None if is_null(row["age"]) else f"{row['age']:.0f}\u00a0y"]
    return f"{', '.join(found) or 'no finding'} · " + "\u00a0·\u00a0".join(str(p) for p in person if not is_null(p))
