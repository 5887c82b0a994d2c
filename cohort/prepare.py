"""A folder of radiographs and its labels to a cohort: one table, every image decoded once, every bad row accounted for.

::

    python -m cohort.prepare nih --root DIR --out RUN/cohort
    python -m cohort.prepare csv --csv FILE --root DIR --out RUN/cohort

Writes ``cohort.parquet`` (a row per image), ``counts.parquet`` (positives per label and split), with ``--on-bad skip`` also
``rejected.parquet``, and the stamp with labels, groups and the root. The default refuses bad rows and writes nothing.

Not promised: that the pixels stay the same. The label file and the split lists are hashed, the images are only decoded.
"""

import logging
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import jsonargparse
import pandas as pd

from cohort.config import path
from cohort.errors import TailfillError, fail, run_command
from cohort.labels import LABEL_SPACES, LabelSpace, assign_groups, count_labels
from cohort.pixels import find_unreadable
from cohort.sources import nih
from cohort.sources.rows import BadRow, SourceTable
from cohort.splits import split_patients
from cohort.stage import Stage, hash_bytes, hash_file
from cohort.tables import cohort_schema, write_table

log = logging.getLogger(__name__)

N_LISTED = 5
"""Bad rows that an error message lists before it only counts them."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """The ``prepare:`` section."""

    source: Literal["nih"] = "nih"
    """Layout of the folder: ``nih`` for the ChestX-ray14 release."""
    root: str = path()
    """Folder of the images."""
    csv: str | None = path(None)
    """The label file; for ``nih`` the default is the release's own in ``root``."""
    label_space: str = "nih_14"
    """Name of the label space that the source's labels are mapped to."""
    val_fraction: float = 0.15
    """Share of the images outside test that validation takes where none is given; in (0, .5]."""
    test_fraction: float = 0.2
    """Share of all images that test takes where no test split is given; in (0, .5]."""
    seed: int = 0
    """Seed of the splits that are drawn; 0 or more."""
    on_bad: Literal["refuse", "skip"] = "refuse"
    """What to do with bad rows: refuse all, or write them to rejected.parquet and go on."""

    def __post_init__(self) -> None:
        for name in ("val_fraction", "test_fraction"):
            if not 0 < getattr(self, name) <= 0.5:
                raise TailfillError(f"prepare.{name} is {getattr(self, name)}; wanted: above 0, .5 at most")
        if self.seed < 0:
            raise TailfillError(f"prepare.seed is {self.seed}; wanted: 0 or more")
        if self.label_space not in LABEL_SPACES:
            raise TailfillError(f"prepare.label_space is '{self.label_space}'; wanted: {', '.join(LABEL_SPACES)}")


def prepare(config: PrepareConfig, folder: Path, *, threads: int = 2, dry_run: bool = False) -> None:
    """Make the cohort of ``config`` in ``folder``; raises ``TailfillError`` when it cannot be."""
    config = replace(config, root=str(Path(config.root).resolve()))
    root = Path(config.root)
    files = nih.find_files(root, Path(config.csv) if config.csv else None)
    settings = {key: value for key, value in asdict(config).items() if key != "csv"}
    stage = Stage("prepare", folder, config=settings, inputs=files)
    if dry_run:
        sys.stdout.write(stage.describe() + "\n")
        return
    if stage.is_complete():
        log.info("prepare: complete, nothing to do")
        return
    table = nih.read(files, root=root, space=LABEL_SPACES[config.label_space])
    reject_duplicates(table)
    reject_shared_patients(table)
    reject_unreadable(table, root, threads=threads)
    if table.bad and config.on_bad == "refuse":
        raise TailfillError(describe_bad(table.bad))
    frame = draw_splits(table.frame.sort_values("image_id").reset_index(drop=True), table.space, config)
    write_cohort(stage, table, frame, root)


def reject_duplicates(table: SourceTable) -> None:
    """Move every row whose image id came before to ``table.bad``."""
    first = {}
    for line, name in table.frame["image_id"].items():
        first.setdefault(name, line)
    _reject(table, {line: f"image id is already in row {first[name]}"
                    for line, name in table.frame["image_id"].items() if first[name] != line})


def reject_shared_patients(table: SourceTable) -> None:
    """Move every row of a patient who is in more than one split to ``table.bad``: none of them can be trusted."""
    splits = table.frame.groupby("patient_id")["split"].agg(lambda names: " and ".join(sorted(set(names.dropna()))))
    shared = splits[splits.str.contains(" and ", regex=False)]
    _reject(table, {line: f"patient '{patient}' is in {shared[patient]}"
                    for line, patient in table.frame["patient_id"].items() if patient in shared.index})


def reject_unreadable(table: SourceTable, root: Path, *, threads: int) -> None:
    """Decode every image; move the rows whose file cannot be read to ``table.bad``."""
    found = find_unreadable([root / name for name in table.frame["path"]], threads=threads)
    _reject(table, {table.frame.index[position]: f"'{table.frame['path'].iloc[position]}': {reason}"
                    for position, reason in found.items()})


def _reject(table: SourceTable, reasons: dict[int, str]) -> None:
    table.bad += [BadRow(file=table.file, row=line, image_id=table.frame.at[line, "image_id"], reason=reason)
                  for line, reason in reasons.items()]
    table.frame = table.frame.drop(index=list(reasons))


def describe_bad(bad: list[BadRow]) -> str:
    """The first bad rows and how many there are, as one line."""
    listed = "; ".join(f"{entry.file.name} row {entry.row}: {entry.reason}" for entry in bad[:N_LISTED])
    more = f"; and {len(bad) - N_LISTED} more" if len(bad) > N_LISTED else ""
    return f"{len(bad)} bad rows: {listed}{more}. Mend them, or give --on-bad skip. Nothing was written"


def draw_splits(frame: pd.DataFrame, space: LabelSpace, config: PrepareConfig) -> pd.DataFrame:
    """Fill in what the source leaves open: test where there is none, validation by patient from what is not test."""
    given = set(frame["split"].dropna())
    split = frame["split"].fillna("train")
    if "test" not in given:
        split = split_patients(frame, space.labels, fractions={"test": config.test_fraction}, seed=config.seed)
    if "val" not in given:
        rest = frame[(split == "train").to_numpy()]
        split.loc[rest.index] = split_patients(rest, space.labels, fractions={"val": config.val_fraction},
                                               seed=config.seed)
    return frame.assign(split=split)


def write_cohort(stage: Stage, table: SourceTable, frame: pd.DataFrame, root: Path) -> None:
    """Write the tables and the stamp."""
    labels = list(table.space.labels)
    groups = assign_groups(frame, labels)
    outputs = {"cohort.parquet": frame, "counts.parquet": count_labels(frame, labels, groups)}
    if table.bad:
        outputs["rejected.parquet"] = pd.DataFrame(
            [{"file": str(e.file), "row": e.row, "image_id": e.image_id, "reason": e.reason} for e in table.bad]
        )
    stage.begin()
    for name, content in outputs.items():
        write_table(content, stage.folder / name, cohort_schema(labels) if name == "cohort.parquet" else None)
    n_images = frame["split"].value_counts()
    counts = {"read": table.n_read, "kept": len(frame), "rejected": len(table.bad), **table.nulled,
              **{f"{split}_images": int(n_images.get(split, 0)) for split in ("train", "val", "test")}}
    # important: the salt follows from the table's bytes, so that equal cohorts have equal patient hashes wherever they
    # were made, and a model trained on one is still refused beside the other
    salt = hash_bytes(f"salt of {hash_file(stage.folder / 'cohort.parquet')}".encode())[:32]
    stage.finish(outputs=list(outputs), counts=counts, extra={
        "labels": labels, "groups": groups, "roots": {frame["root"].iloc[0]: str(root)}, "salt": salt,
        "patient_ids": table.patient_ids, "source": frame["root"].iloc[0], "label_space": table.space.name,
    })
    log.info("prepare: %s", " ".join(f"{key}={value:,}" for key, value in counts.items()))


def read_arguments(argv: list[str]) -> jsonargparse.Namespace:
    """The parsed command line; exits with code 2 and one line on any mistake."""
    parser = jsonargparse.ArgumentParser(prog="python -m cohort.prepare", description=__doc__, exit_on_error=False)
    sources = parser.add_subcommands(dest="source")
    command = jsonargparse.ArgumentParser(exit_on_error=False)
    command.add_class_arguments(PrepareConfig, skip={"source"})
    command.add_argument("--out", type=str, required=True, help="folder to write; new or of the same settings")
    command.add_argument("--threads", type=int, default=2, help="threads that decode images, 1 or more")
    command.add_argument("--dry-run", action="store_true", help="print what would be done, and do nothing")
    sources.add_subcommand("nih", command, help="the NIH ChestX-ray14 release's own layout")
    try:
        return parser.parse_args(argv)
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        fail(" ".join(line.strip() for line in str(error).splitlines() if line.strip()))


def main() -> None:
    """``python -m cohort.prepare SOURCE --root DIR --out DIR``."""
    parsed = read_arguments(sys.argv[1:])
    own = dict(parsed[parsed.source].items())
    out, threads, dry_run = own.pop("out"), own.pop("threads"), own.pop("dry_run")
    prepare(PrepareConfig(source=parsed.source, **own), Path(out), threads=threads, dry_run=dry_run)


if __name__ == "__main__":
    run_command(main)
