"""Does a cohort leak? Pictures and patients in two splits, unseen classes in training, and what else is wrong with it.

::

    python -m cohort.check --run RUN             (its cohort, oracle, external and plan)
    python -m cohort.check --run COHORT_FOLDER --out DIR

Writes ``checks.parquet``, a row per finding (``cohort.checking.found``), ``images.parquet``, a row per image (sha256 of
its pixels, contrast, error), ``checks.txt``, which is printed too, and the stamp; default folder: RUN/check, or beside
a cohort's folder. Exit code 0 where nothing leaks, 1 where something does, 2 for what cannot be checked. Changes
nothing. Pictures are compared by what survives a crop, a window and a compression; ``scripts/planted_duplicates.py``
measures what is found of planted copies, and how often two films of different patients are taken for one.

``--unseen`` names classes that nothing may have learnt; by default those of CXR-LT's task 3, in a cohort of that task.
``--reports`` is a CSV with ``image_id`` or ``study_id`` and ``report``: texts of training that name such a class.

Not promised: a patient under two ids who was never filmed twice at once: another film of him is another picture.
"""

import argparse
import logging
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cohort.checking.found import CHECKS, LEAK, SCHEMA, SEVERITIES, Found, as_table
from cohort.checking.images import check_files, check_pairs, least_ncc
from cohort.checking.labels import (
    LEARNT,
    check_labels,
    check_patients,
    check_plan,
    check_texts,
    read_reports,
    unseen_of,
)
from cohort.checking.reading import Readings, hash_listing, read_images
from cohort.config import load_yaml
from cohort.errors import TailfillError, run_command
from cohort.pipeline import read_stamp
from cohort.stage import PARTIAL, Stage, require, write_atomically
from cohort.tables import Cohort, load_cohort, read_table, write_table

log = logging.getLogger(__name__)

TABLE, IMAGES, TEXT = "checks.parquet", "images.parquet", "checks.txt"
BLOCKS = f"readings{PARTIAL}"
"""What was read, for a run that is killed; counts as half a file, and is gone when the check is complete."""
FURTHER = ("oracle", "external")
LISTED = 5
"""Findings of a check that the text lists before it only counts them."""


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """What is checked, and how strictly."""

    unseen: tuple[str, ...] = ()
    """Classes that nothing may have learnt; none: task 3's, in a cohort of its label space."""
    images: bool = True
    """Whether images are read; without, only tables are checked."""
    least_ncc: float | None = None
    """Correlation from which on two pictures are one; .5 to 1. None: .9, or more where patients resemble one another
    as much (``cohort.checking.resemblance``)."""
    threads: int = 2
    """Threads that decode images, 1 or more; no part of the result."""

    def __post_init__(self) -> None:
        if self.least_ncc is not None and not 0.5 <= self.least_ncc <= 1:
            raise TailfillError(f"--least-ncc is {self.least_ncc}; wanted: .5 to 1")
        if self.threads < 1:
            raise TailfillError(f"--threads is {self.threads}; wanted: 1 or more")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What there is to check."""

    folders: dict[str, Path]
    """Role (cohort, oracle, external) to the cohort's folder."""
    plan: Path | None
    reports: Path | None
    out: Path

    def inputs(self) -> dict[str, Path]:
        """The stage's inputs."""
        more = {"plan": self.plan, "reports": self.reports}
        return self.folders | {name: path for name, path in more.items() if path is not None}


def find_subject(folder: Path, *, out: Path | None, reports: Path | None) -> Subject:
    """The cohorts and the plan of a run, or a cohort by itself; raises ``TailfillError`` when there is none."""
    if not folder.is_dir():
        raise TailfillError(f"{folder}: is no folder; wanted: a run, or a prepared cohort")
    if reports is not None and not reports.is_file():
        raise TailfillError(f"{reports}: no such file; wanted: a CSV of reports")
    if (folder / "cohort.parquet").is_file():
        return Subject(folders={"cohort": folder}, plan=None, reports=reports,
                       out=out or folder.absolute().with_name(f"{folder.absolute().name}_check"))
    file = folder / "config.yaml"
    config = load_yaml(file) if file.is_file() else {}
    folders = {"cohort": folder / (config.get("cohort") or "cohort")}
    folders |= {role: folder / role for role in FURTHER if read_stamp(folder / role) is not None}
    plan = folder / "plan" if read_stamp(folder / "plan") is not None else None
    return Subject(folders=folders, plan=plan, reports=reports, out=out or folder / "check")


def check_tables(subject: Subject, cohorts: dict[str, Cohort], config: CheckConfig) -> list[Found]:
    """All that needs no image."""
    extra = require(cohorts["cohort"].folder, "cohort")["extra"]
    unseen = unseen_of(cohorts["cohort"], extra.get("label_space"), config.unseen)
    found: list[Found] = []
    for role, cohort in cohorts.items():
        kind = require(cohort.folder, "cohort")["extra"].get("patient_ids")
        found += check_patients(cohort, role, kind) + check_labels(cohort, role, unseen)
    if subject.plan is not None:
        found += check_plan(subject.plan, cohorts["cohort"].labels, unseen)
    if subject.reports is not None:
        texts = read_reports(subject.reports, cohorts["cohort"])
        for split in LEARNT:
            own = texts[texts.index.isin(cohorts["cohort"].split(split)["image_id"])]
            found += check_texts(own, unseen, what=f"reports of {split}", split=split)
    return found


def gather(cohorts: dict[str, Cohort]) -> tuple[pd.DataFrame, list[Path]]:
    """The rows of all cohorts with the column ``cohort``, and their images' paths, in one order."""
    columns = ["image_id", "path", "patient_id", "split", "sex", "age"]
    frame = pd.concat([cohort.frame[columns].assign(cohort=role) for role, cohort in cohorts.items()],
                      ignore_index=True)
    return frame, [path for cohort in cohorts.values() for path in cohort.image_paths(cohort.frame)]


def image_table(frame: pd.DataFrame, readings: Readings) -> pd.DataFrame:
    """The rows of ``images.parquet``."""
    texts = {"sha256": readings.sha256, "error": readings.errors}
    return frame[["cohort", "image_id"]].assign(contrast=readings.contrast, **{
        name: pd.array([text or None for text in values.tolist()], dtype="str") for name, values in texts.items()})


def require_some(frame: pd.DataFrame, readings: Readings, folder: Path) -> int:
    """How many images can be compared; raises ``TailfillError`` for none, which would pass for a clean cohort."""
    compared = int(readings.usable.sum())
    if not compared:
        why = readings.errors[0] or "it is blank"
        raise TailfillError(f"{folder}: none of its {len(frame):,} images can be compared; the first, "
                            f"'{frame['path'].iloc[0]}': {why}; --no-images checks the tables alone")
    return compared


def describe(table: pd.DataFrame, cohorts: dict[str, Cohort], images: str) -> str:
    """``checks.txt``: what was looked at (``images``: how they were), then each check with its first findings."""
    sizes = ", ".join(f"{role} {len(cohort.frame):,} images of {cohort.frame['patient_id'].nunique():,} patients"
                      for role, cohort in cohorts.items())
    lines = [f"{sizes}; {images}"]
    for check, meaning in CHECKS.items():
        part = table[table["check"] == check]
        if part.empty:
            continue
        counts = ", ".join(f"{n:,} {severity}{'s' if n > 1 else ''}" for severity in SEVERITIES
                           if (n := int((part["severity"] == severity).sum())))
        lines += ["", f"{check}: {counts} ({meaning})", *(f"  {row.severity}: {row.words}"
                                                           for row in part.head(LISTED).itertuples())]
        lines += [f"  and {len(part) - LISTED:,} more in {TABLE}"] if len(part) > LISTED else []
    leaks = int((table["severity"] == LEAK).sum())
    return "\n".join([*lines, "", f"{leaks:,} leaks" if leaks else "no leak found"]) + "\n"


def check(subject: Subject, config: CheckConfig) -> int:
    """Check, write and print, unless that is done; the number of leaks."""
    cohorts = {role: load_cohort(folder) for role, folder in subject.folders.items()}
    frame, paths = gather(cohorts)
    stage = Stage("check", subject.out, inputs=subject.inputs(), config={
        "unseen": list(config.unseen), "least_ncc": config.least_ncc,
        "images": hash_listing(paths) if config.images else None})
    if not stage.is_complete():
        found, said = check_tables(subject, cohorts, config), "not read"
        stage.begin()
        outputs = [TABLE, TEXT]
        if config.images:
            readings = read_images(paths, threads=config.threads, blocks=subject.out / BLOCKS)
            compared = require_some(frame, readings, subject.folders["cohort"])
            least = config.least_ncc or least_ncc(frame, readings)
            said = f"{compared:,} of them compared, one picture from NCC {least:.3f} on"
            found += check_files(frame, readings) + check_pairs(frame, readings, least=least)
            write_table(image_table(frame, readings), subject.out / IMAGES)
            outputs.append(IMAGES)
        table = as_table(found)
        write_table(table, subject.out / TABLE, SCHEMA)
        write_atomically(subject.out / TEXT, describe(table, cohorts, f"images: {said}").encode())
        counts = {severity: int((table["severity"] == severity).sum()) for severity in SEVERITIES}
        stage.finish(outputs=outputs, counts={"found": len(table), **counts})
        shutil.rmtree(subject.out / BLOCKS, ignore_errors=True)
    sys.stdout.write((subject.out / TEXT).read_text(encoding="utf-8"))
    return int((read_table(subject.out / TABLE, SCHEMA)["severity"] == LEAK).sum())


def read_arguments(argv: Sequence[str]) -> tuple[Subject, CheckConfig]:
    """The command line; argparse leaves with code 2 on a mistake."""
    parser = argparse.ArgumentParser(prog="python -m cohort.check", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a run's folder, or a prepared cohort's")
    parser.add_argument("--out", type=Path, help="folder to write")
    parser.add_argument("--unseen", nargs="+", default=[], metavar="LABEL", help="classes that nothing may have learnt")
    parser.add_argument("--reports", type=Path, help="CSV of reports by image_id or study_id")
    parser.add_argument("--least-ncc", type=float, help="from which on two pictures are one; default: as is ordinary")
    parser.add_argument("--threads", type=int, default=2, help="threads that decode images")
    parser.add_argument("--no-images", action="store_true", help="check tables only")
    options = parser.parse_args(argv)
    config = CheckConfig(unseen=tuple(options.unseen), images=not options.no_images, least_ncc=options.least_ncc,
                         threads=options.threads)
    return find_subject(options.run, out=options.out, reports=options.reports), config


def main() -> None:
    """Leave with code 1 where something leaks."""
    if check(*read_arguments(sys.argv[1:])):
        raise SystemExit(1)


if __name__ == "__main__":
    run_command(main)
