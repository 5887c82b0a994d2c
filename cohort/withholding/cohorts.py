"""One cohort to two: the thinned one, which a whole pipeline sees, and the withheld one, which only the oracle sees.

Both keep the parent's labels, image files and salt, so that a patient has one hash in all three and an overlap can be
proved or excluded. The thinned findings are ``tail`` by decree, since at a high level their prevalence may be above
1 %; all other groups are the parent's. The withheld cohort is an ordinary cohort as the arm ``oracle`` takes it (its
training images); withheld validation images stand in it too, so that parent = thinned + withheld.

Where new patients of the tail exist as well (a phantom can make them), they join the withheld ones, and the oracle is
true for the actual tail too.

Not promised: anything about images that the parent does not have.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cohort.stage import Stage, require
from cohort.tables import SPLITS, Cohort, cohort_schema, load_cohort, load_further, write_table
from cohort.vocabulary.labels import count_labels
from cohort.withholding.thinning import thin, thinning_rows

log = logging.getLogger(__name__)

TRUTH = "truth:"
"""What stands before the name of an image root of the new patients that join the withheld ones."""


@dataclass(frozen=True, kw_only=True)
class Thinning:
    """Which findings, down to how many positive train images, in which draw."""

    findings: tuple[str, ...]
    level: int
    """Positive train images that stay; 0: none, and the cohort is what all thinnings of these findings share."""
    seed: int
    """Another one withholds other patients."""

    def rng(self) -> np.random.Generator:
        """The generator of the order in which patients are met; the same at every level."""
        return np.random.default_rng([self.seed, 7])


def write_thinned(
    parent: Path, thinning: Thinning, *, thinned: Path, withheld: Path, truth: Path | None = None
) -> None:
    """Write both cohorts unless they are complete; ``truth``: a cohort whose training images join the withheld ones.

    Raises ``TailfillError`` for a parent that is missing, a finding that cannot be thinned, a folder that holds
    something else, and new patients who are not new.
    """
    config = {"findings": thinning.findings, "level": thinning.level, "seed": thinning.seed}
    stage = Stage("thin", thinned, config=config, inputs={"cohort": parent})
    further = {} if truth is None else {"truth": truth}
    pool = Stage("withhold", withheld, config=config, inputs={"cohort": parent, **further})
    if stage.is_complete() and pool.is_complete():
        return
    cohort, extra = load_cohort(parent), require(parent, "cohort")["extra"]
    gone = thin(cohort.frame, thinning.findings, level=thinning.level, rng=thinning.rng())
    groups = {label: "tail" if label in thinning.findings else group for label, group in cohort.groups.items()}
    about = extra | {"groups": groups, "thinned": config}
    if not pool.is_complete():
        _write_withheld(pool, cohort, gone, about, truth)
    if not stage.is_complete():
        _write_kept(stage, cohort, gone, about, thinning.findings)


def _write_kept(
    stage: Stage, cohort: Cohort, gone: np.ndarray, about: dict[str, object], findings: Sequence[str]
) -> None:
    kept, groups = cohort.frame[~gone].reset_index(drop=True), dict(about["groups"])  # type: ignore[call-overload]
    told = thinning_rows(cohort.frame, gone, findings, groups)
    stage.begin()
    write_table(kept, stage.folder / "cohort.parquet", cohort_schema(cohort.labels))
    write_table(count_labels(kept, cohort.labels, groups), stage.folder / "counts.parquet")
    write_table(told, stage.folder / "thinning.parquet")
    stage.finish(outputs=["cohort.parquet", "counts.parquet", "thinning.parquet"], extra=about, counts={
        "parent": len(cohort.frame), "kept": len(kept), "withheld": int(gone.sum()),
        **{f"{split}_images": int((kept["split"] == split).sum()) for split in SPLITS}})
    left = told[told["thinned"] & (told["split"] == "train")]
    log.info("thin: %d of %d images stay; positives in train: %s", len(kept), len(cohort.frame),
             ", ".join(f"{label} {n}" for label, n in zip(left["label"], left["n_kept"], strict=True)))


def _write_withheld(
    stage: Stage, cohort: Cohort, gone: np.ndarray, about: dict[str, object], truth: Path | None
) -> None:
    frames, roots = [cohort.frame[gone]], {name: str(path) for name, path in cohort.roots.items()}
    if truth is not None:
        new = _new_patients(truth, cohort)
        frames.append(new.frame.assign(root=TRUTH + new.frame["root"]))
        roots |= {TRUTH + name: str(path) for name, path in new.roots.items()}
    frame = pd.concat(frames, ignore_index=True)
    stage.begin()
    write_table(frame, stage.folder / "cohort.parquet", cohort_schema(cohort.labels))
    stage.finish(outputs=["cohort.parquet"], extra=about | {"roots": roots}, counts={
        "withheld": int(gone.sum()), "new": len(frame) - int(gone.sum()),
        **{f"{split}_images": int((frame["split"] == split).sum()) for split in SPLITS}})


def _new_patients(truth: Path, cohort: Cohort) -> Cohort:
    """The training images of the cohort in ``truth``; ``TailfillError`` for other labels, or patients already here."""
    new = load_further(truth, cohort)
    return Cohort(frame=new.split("train"), labels=new.labels, groups=new.groups, roots=new.roots, salt=new.salt,
                  folder=truth)
