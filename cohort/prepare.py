"""A dataset of radiographs and its labels to a cohort: one table, every image decoded, every bad row accounted for.

::

    python -m cohort.prepare nih --root DIR --out RUN/cohort
    python -m cohort.prepare cxr-lt --labels DIR --images DIR --year 2024 --task 1 --out RUN/cohort
    python -m cohort.prepare csv --csv FILE --root DIR --out RUN/cohort
    python -m cohort.prepare phantom --images N --seed S --out RUN/cohort      (makes its own images, in that folder)
    python -m cohort.prepare --config C      (the ``prepare:`` section of an experiment's YAML, to its cohort folder)
    python -m cohort.prepare --config C --role oracle      (its ``oracle:`` section, to RUN/oracle; external likewise)

``python -m cohort.prepare --help`` lists the sources; a source's own ``--help`` shows its layout, and what is known of
its labels. Writes ``cohort.parquet`` (a row per image), ``counts.parquet`` (positives per label and split), with
``--on-bad skip`` also ``rejected.parquet``, under a policy that leaves images out ``set_aside.parquet``, and the stamp
with labels, groups and the root. The default refuses bad rows and writes nothing. Run again after a kill, it decodes
only the images that it has not seen.

Not promised: that the pixels stay the same. The label files are hashed, the images are only decoded (those of the
phantom are hashed too).
"""

import logging
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd

from cohort.config import parse
from cohort.errors import TailfillError, run_command
from cohort.preparing.arguments import find_role, read_arguments
from cohort.preparing.decoding import JOURNAL
from cohort.preparing.registry import SOURCES
from cohort.preparing.settings import PrepareConfig
from cohort.preparing.splits import split_patients
from cohort.sources.checks import (
    describe_bad,
    reject_duplicates,
    reject_shared_patients,
    reject_unreadable,
    set_laterals_aside,
)
from cohort.sources.rows import BadRow, SourceTable
from cohort.stage import Stage, hash_bytes
from cohort.tables import SPLITS, cohort_schema, write_table
from cohort.vocabulary.labels import MIN_POSITIVE_PATIENTS, LabelSpace, assign_groups, count_labels

log = logging.getLogger(__name__)


ROLES = {"cohort": "prepare", "oracle": "oracle", "external": "external"}
"""The cohorts that an experiment can have, and their sections: its own; new patients of the same site; another site."""

def prepare(config: PrepareConfig, folder: Path, *, threads: int = 2, dry_run: bool = False) -> None:
    """Make the cohort of ``config`` in ``folder``; raises ``TailfillError`` with nothing written if it cannot be.

    Images are decoded by ``threads`` threads, or made by as many processes.
    """
    if threads < 1:
        workers = "processes" if config.source == "phantom" else "threads"
        raise TailfillError(f"{workers} is {threads}; wanted: 1 or more")
    root = (Path(config.root) if config.root else folder).resolve()
    config = replace(config, root=str(root) if config.root else None)
    source = SOURCES[config.source]
    files = source.find(config, root)
    stage = Stage("prepare", folder, config=config.settings(), inputs=files)
    if not dry_run and stage.is_complete():
        log.info("prepare: complete, nothing to do")
        return
    table = source.read(config, root, files)
    if dry_run:
        images = "not yet made" if table.write_images else "not yet decoded"
        sys.stdout.write(stage.describe(rows=table.n_read, bad_rows=len(table.bad), images=images) + "\n")
        return
    if table.write_images is None:
        good = keep_good(table, config, root, threads=threads, journal=folder / JOURNAL)
        frame = draw_splits(good, table.space, config)
    else:
        stage.begin()  # so that the same command completes what a kill has left
        table.write_images(processes=threads)
        frame = table.frame
    write_cohort(stage, table, frame, root)


def keep_good(
    table: SourceTable, config: PrepareConfig, root: Path, *, threads: int, journal: Path | None = None
) -> pd.DataFrame:
    """The usable rows in the order of their ids; raises ``TailfillError`` on bad ones unless they are to be skipped."""
    reject_duplicates(table)
    reject_shared_patients(table)
    set_laterals_aside(table, config.laterals)
    if table.bad and config.on_bad == "refuse":  # important: before the hour that decoding may take
        raise TailfillError(describe_bad(table.bad))
    reject_unreadable(table, root, check=config.check, threads=threads, journal=journal)
    if table.bad and config.on_bad == "refuse":
        raise TailfillError(describe_bad(table.bad))
    if table.frame.empty:
        raise TailfillError(f"{table.files[0]}: none of its {table.n_read} rows can be used; {describe_bad(table.bad)}")
    return table.frame.sort_values("image_id").reset_index(drop=True)


def draw_splits(frame: pd.DataFrame, space: LabelSpace, config: PrepareConfig) -> pd.DataFrame:
    """Fill in what the source leaves open: test, then validation, by patient from the rows in no other split."""
    split, given = frame["split"].fillna("train"), set(frame["split"].dropna().unique())
    for name, fraction in (("test", config.test_fraction), ("val", config.val_fraction)):
        if name not in given:
            rest = frame[(split == "train").to_numpy()]
            split.loc[rest.index] = split_patients(rest, space.labels, fractions={name: fraction}, seed=config.seed)
    if not (split == "train").any():
        raise TailfillError("no image is in the split 'train'")
    return frame.assign(split=split)


def write_cohort(stage: Stage, table: SourceTable, frame: pd.DataFrame, root: Path) -> None:
    """Write the tables and the stamp."""
    labels = list(table.space.labels)
    groups = assign_groups(frame, labels, known=table.groups)
    counted = count_labels(frame, labels, groups)
    warn_of_scarcity(counted)
    outputs = {"cohort.parquet": frame, "counts.parquet": counted}
    outputs |= {name: list_rows(rows) for name, rows in (("rejected.parquet", table.bad),
                                                         ("set_aside.parquet", table.set_aside)) if rows}
    stage.begin()
    for name, content in outputs.items():
        write_table(content, stage.folder / name, cohort_schema(labels) if name == "cohort.parquet" else None)
    made = ["images"] if table.write_images else []
    counts = count_rows(table, frame)
    # important: the salt follows from the patients alone, so that the same patients have the same hashes however they
    # are split, and a model that was trained on one split is refused beside another
    salt = hash_bytes(f"salt of {sorted(frame['patient_id'].unique())}".encode())[:32]
    source = table.source or frame["root"].iloc[0]
    stage.finish(outputs=[*outputs, *made], counts=counts, extra={
        "labels": labels, "groups": groups, "salt": salt,
        "roots": {name: str(path) for name, path in (table.roots or {source: root}).items()},
        "patient_ids": table.patient_ids, "source": source, "label_space": table.space.name,
        **table.about,
    })
    log.info("prepare: %s", " ".join(f"{key}={value:,}" for key, value in counts.items()))


def list_rows(rows: list[BadRow]) -> pd.DataFrame:
    """File, row, image_id and reason of rows that are not in the cohort."""
    return pd.DataFrame({"file": [str(entry.file) for entry in rows], "row": [entry.row for entry in rows],
                         "image_id": pd.array([entry.image_id for entry in rows], dtype="str"),
                         "reason": [entry.reason for entry in rows]})


def warn_of_scarcity(counted: pd.DataFrame) -> None:
    """Log which tail labels have too few positive test patients for ``compare`` to give an interval of their own."""
    tested = counted[(counted["group"] == "tail") & (counted["split"] == "test")]
    few = tested[tested["n_patients"] < MIN_POSITIVE_PATIENTS]
    if len(few):
        counts = ", ".join(f"{label} {n}" for label, n in zip(few["label"], few["n_patients"], strict=True))
        log.warning("prepare: under %d positive test patients, so no interval of their own: %s", MIN_POSITIVE_PATIENTS,
                    counts)


def count_rows(table: SourceTable, frame: pd.DataFrame) -> dict[str, int]:
    """read = kept + rejected + set aside, the kept rows by split, how many of them lost an implausible value."""
    nulled = {key: int(lines.isin(table.frame.index).sum()) for key, lines in table.nulled.items()}
    return {
        "read": table.n_read, "kept": len(frame), "rejected": len(table.bad),
        **({"set_aside": len(table.set_aside)} if table.set_aside else {}),
        **{f"{key}_nulled": nulled.get(key, 0) for key in ("view", "age", "sex")},
        **{f"{split}_images": int((frame["split"] == split).sum()) for split in SPLITS},
    }


def prepare_role(role: str) -> None:
    """Make one of an experiment's cohorts, from the section of its role in the configuration on the command line."""
    options = parse(ROLES[role], PrepareConfig, doc=__doc__, extra={"role": (str, "cohort")})
    folder = options.run.cohort_folder if role == "cohort" else options.run.folder / role
    prepare(options.section, folder, threads=options.run.threads, dry_run=options.dry_run)


def main() -> None:
    """``python -m cohort.prepare SOURCE --root DIR --out DIR``, or ``--config C`` as every other stage."""
    if any(word.partition("=")[0] == "--config" for word in sys.argv[1:]):
        prepare_role(find_role(sys.argv[1:], ROLES))
        return
    config, folder, threads, dry_run = read_arguments(sys.argv[1:], doc=__doc__)
    prepare(config, folder, threads=threads, dry_run=dry_run)


if __name__ == "__main__":
    run_command(main)
