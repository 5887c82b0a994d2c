"""The chapter that asks whether images are new, and whether they betray that they are synthetic.

Shown are the images made that stand out least from being a copy, each beside its nearest training image, laid as it
matches; they are chosen by the score, not by eye. Tables: ``nearest``, ``memorised`` and ``probe`` of the filter.
"""

import numpy as np
import pandas as pd

from classify.figures.sheets import data_uri
from classify.pages.blocks import Chapter, Notes, Table, count, is_null, number
from classify.pages.evidence import Evidence
from classify.pages.samples import Sample, Sheet, Strip
from cohort.pixels import read_grey


def originality_chapters(evidence: Evidence, *, n_samples: int, picture_px: int) -> list[Chapter]:
    """One chapter, or none for a run whose filter has looked at neither."""
    blocks: list[Sheet | Table] = []
    words: list[str] = []
    if len(evidence.nearest):
        words += _about_copies(evidence)
        blocks.append(_pairs(evidence, n=n_samples, size=picture_px))
    if len(evidence.probe):
        words.append("A probe is a linear classifier that tells synthetic from real images by the encoder's features. "
                     "At .5 there is no trace of the origin. Where it is high, a classifier could learn the origin "
                     "instead of a finding, and matched negatives are there to prevent that.")
        blocks.append(_probe_table(evidence.probe))
    chapter = Chapter(anchor="originality", title="Copies and traces of origin", words=tuple(words),
                      blocks=tuple(blocks),
                      sources=("synthetic/nearest.parquet", "synthetic/memorised.parquet", "synthetic/probe.parquet"))
    return [chapter] if blocks else []


def _about_copies(evidence: Evidence) -> list[str]:
    """What the gate did, and what the set as a whole says."""
    dropped = int(evidence.synthetic["reason"].eq("memorisation").sum())
    found = [f"{count(dropped)} of {count(len(evidence.nearest))} images made were dropped because they stand too near "
             "a training image. The score is the distance to the nearest one over the typical distance to the next "
             "patients' (0: a copy, 1: nearest by no more than the rest)."]
    for row in evidence.memorised.to_dict("records"):
        if not is_null(row["share"]):
            found.append(
                f"As a set, {number(100 * row['share'], 1)} % lie nearer to training images than to as many held-out "
                f"ones (95 % interval, those that share a nearest patient as one, {number(100 * row['low'], 1)} to "
                f"{number(100 * row['high'], 1)} %; 50 % without memorisation, "
                f"{number(100 * row['if_all_copied'], 1)} % if every image were a copy; "
                f"{count(row['n'])} images, {count(row['n_per_side'])} patients on either side).")
    return found


def _pairs(evidence: Evidence, *, n: int, size: int) -> Sheet:
    """The lowest scores, each image made followed by its nearest training image."""
    closest = evidence.nearest.sort_values(["score", "sample_id"]).head(n)
    decided = evidence.synthetic.set_index("sample_id")
    train = evidence.cohort.split("train").set_index("image_id", drop=False)
    samples: list[Sample] = []
    for row in closest.to_dict("records"):
        made, real = decided.loc[row["sample_id"]], train.loc[[row["image_id"]]]
        pixels = read_grey(evidence.cohort.image_paths(real)[0], size)
        fate = "kept" if made["keep"] else f"dropped by {made['reason']}"
        samples += [
            Sample(picture=data_uri(read_grey(evidence.run.folder / "images" / str(made["path"]), size)),
                   caption=f"made, {fate}: {row['sample_id']}"),
            Sample(picture=data_uri(np.ascontiguousarray(pixels[:, ::-1]) if row["flipped"] else pixels),
                   caption=f"nearest{', mirrored' if row['flipped'] else ''}: {row['image_id']}; score "
                           f"{number(row['score'])}, correlation {number(row['ncc'])}"),
        ]
    return Sheet(title="The least original images", strips=(
        Strip(title="Made, nearest", words="each beside its nearest training image, the lowest score first",
              samples=tuple(samples)),))


def _probe_table(probe: pd.DataFrame) -> Table:
    """One row per setting."""
    notes, rows = Notes(), []
    for row in probe.to_dict("records"):
        bare = is_null(row["auroc"])
        rows.append((
            str(row["setting"]), notes.dash(row["reason"]) if bare else number(row["auroc"]),
            notes.dash(row["reason"]) if bare else f"{number(row['ci_low'])} to {number(row['ci_high'])}",
            count(row["n_real"]), count(row["n_synthetic"]),
        ))
    return Table(title="Probe for origin", text=1, rows=tuple(rows), notes=notes.lines(),
                 columns=("Setting", "AUROC", "95 % interval", "Real images", "Synthetic images"))
