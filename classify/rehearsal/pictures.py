"""What was left, what was taken away, and what was made in its place: images side by side.

They are drawn at random, never chosen: a hand-picked sheet proves nothing. Not promised: that six images say what a
number does not. Whoever shares the page shares images of patients.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from classify.figures.sheets import data_uri
from classify.pages.blocks import Chapter, is_null
from classify.pages.samples import Sample, Sheet, Strip
from classify.rehearsal.choices import Cell
from cohort.pixels import read_grey
from cohort.tables import load_cohort, read_table

SHOWN, PICTURE = 6, 128
"""Images per strip, and their width, px."""


def images_chapter(folders: Mapping[Cell, Path], *, level: int, seed: int) -> Chapter:
    """Real images left in training, withheld ones, and generated ones, of each finding's first run at ``level``.

    ``folders``: each run's; ``seed``: of the draw, which does not depend on what the images show.
    """
    sheets = []
    for cell in [one for one in folders if one.level == level and one.seed == 0]:
        folder = folders[cell]
        kept, withheld = load_cohort(folder / "cohort"), load_cohort(folder / "oracle")
        made = read_table(folder / "synthetic" / "synthetic.parquet")
        for finding in cell.findings:
            rng, strips = np.random.default_rng([seed, 11]), []
            for title, cohort in (("Real, left in training", kept), ("Real, withheld", withheld)):
                train = cohort.split("train")
                rows = train.loc[train[finding].eq(1).fillna(False)]
                strips.append(_strip(title, rows, cohort.image_paths(rows), rng, cohort.labels))
            charged = made.loc[made["charged_to"] == finding]
            for title, rows in (("Generated, kept", charged.loc[charged["keep"]]),
                                ("Generated, dropped", charged.loc[~charged["keep"]])):
                strips.append(_strip(title, rows, [folder / "images" / str(path) for path in rows["path"]], rng,
                                     kept.labels))
            sheets.append(Sheet(title=f"{finding}, {cell.level} positives", strips=tuple(strips)))
    return Chapter(anchor="images", title="Left, withheld, generated", blocks=tuple(sheets), words=(
        "Drawn at random, not chosen. The withheld images are what the synthetic ones stand in for.",),
        sources=("set_*/level_*/seed_0/synthetic",))


def _strip(title: str, rows: pd.DataFrame, paths: list[Path], rng: np.random.Generator, labels: list[str]) -> Strip:
    chosen = rng.permutation(len(rows))[:SHOWN]
    samples = []
    for at in chosen:
        row = rows.iloc[int(at)]
        names = ", ".join(label for label in labels if not is_null(row[label]) and row[label] == 1) or "no finding"
        reason = row.get("reason")
        samples.append(Sample(picture=data_uri(read_grey(paths[int(at)], PICTURE)), caption=names,
                              reason="" if is_null(reason) else str(reason)))
    return Strip(title=title, words=f"{len(rows):,}", samples=tuple(samples))
