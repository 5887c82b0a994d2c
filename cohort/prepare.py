"""A folder of radiographs and its labels to a cohort: one table, every image decoded once, every bad row accounted for.

::

    python -m cohort.prepare nih --root DIR --out RUN/cohort
    python -m cohort.prepare csv --csv FILE --root DIR --out RUN/cohort
    python -m cohort.prepare phantom --images N --seed S --out RUN/cohort      (makes its own images, in that folder)
    python -m cohort.prepare --config C      (the ``prepare:`` section of an experiment's YAML, to its cohort folder)
    python -m cohort.prepare --config C --role oracle      (its ``oracle:`` section, to RUN/oracle; external likewise)

Writes ``cohort.parquet`` (a row per image), ``counts.parquet`` (positives per label and split), with ``--on-bad skip``
also ``rejected.parquet``, and the stamp with labels, groups and the root. The default refuses bad rows and writes
nothing.

Not promised: that the pixels stay the same. The label file and the split lists are hashed, the images are only decoded
(those of the phantom are hashed too).
"""

import logging
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import jsonargparse
import pandas as pd

from cohort.config import HelpFormatter, parse, path
from cohort.errors import TailfillError, fail, nearest, run_command
from cohort.labels import LABEL_SPACES, MIN_POSITIVE_PATIENTS, LabelSpace, assign_groups, count_labels
from cohort.phantom.settings import PhantomConfig
from cohort.sources import csv_folder, nih, phantom
from cohort.sources.checks import describe_bad, reject_duplicates, reject_shared_patients, reject_unreadable
from cohort.sources.phantom import PHANTOM_VERSION
from cohort.sources.rows import SourceTable
from cohort.splits import split_patients
from cohort.stage import Stage, hash_bytes
from cohort.tables import SPLITS, cohort_schema, write_table

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """The ``prepare:`` section."""

    source: Literal["nih", "csv", "phantom"] = "nih"
    """``nih`` for a folder as the ChestX-ray14 release, ``csv`` for any with a CSV, ``phantom`` to make the images."""
    root: str | None = path(None)
    """Folder of the images; for the phantom none, since its images are written beside the table."""
    csv: str | None = path(None)
    """The label file; for ``nih`` the default is the release's own in root."""
    columns: csv_folder.CsvColumns = field(default_factory=csv_folder.CsvColumns)
    """Names of the CSV's columns; only for source ``csv``."""
    phantom: PhantomConfig = field(default_factory=PhantomConfig)
    """Patients, findings and machine; only for source ``phantom``, and all that counts there."""
    label_space: str = "nih_14"
    """The label space that the source's labels are mapped to: nih_14, or ``own`` for those of columns.labels."""
    val_fraction: float = 0.15
    """Share of the images outside test that validation takes where none is given; in (0, .5]."""
    test_fraction: float = 0.2
    """Share of the images outside validation that test takes where none is given; in (0, .5]."""
    seed: int = 0
    """Seed of the splits that are drawn; 0 or more."""
    on_bad: Literal["refuse", "skip"] = "refuse"
    """What to do with bad rows: refuse all, or write them to rejected.parquet and go on."""

    def __post_init__(self) -> None:
        if (self.root is None) != (self.source == "phantom"):
            wanted = "none, the images are made" if self.source == "phantom" else "the folder of the images"
            raise TailfillError(f"prepare.root is {self.root!r} with source '{self.source}'; wanted: {wanted}")
        for name in ("val_fraction", "test_fraction"):
            if not 0 < getattr(self, name) <= 0.5:
                raise TailfillError(f"prepare.{name} is {getattr(self, name)}; wanted: above 0, .5 at most")
        if self.seed < 0:
            raise TailfillError(f"prepare.seed is {self.seed}; wanted: 0 or more")
        legal = [*LABEL_SPACES, *([csv_folder.OWN] if self.source == "csv" else [])]
        if self.label_space not in legal:
            raise TailfillError(f"prepare.label_space is '{self.label_space}'{nearest(self.label_space, legal)}")

    def settings(self) -> dict[str, object]:
        """What decides the cohort, the files apart, which enter by their hashes."""
        if self.source == "phantom":
            return {"source": "phantom", "version": PHANTOM_VERSION, "phantom": asdict(self.phantom)}
        unused = {"csv", "phantom"} if self.source == "csv" else {"csv", "columns", "phantom"}
        return {key: value for key, value in asdict(self).items() if key not in unused}


def _find_nih(config: PrepareConfig, root: Path) -> dict[str, Path]:
    return nih.find_files(root, Path(config.csv) if config.csv else None)


def _read_nih(config: PrepareConfig, root: Path, files: dict[str, Path]) -> SourceTable:
    return nih.read(files, root=root, space=LABEL_SPACES[config.label_space])


def _find_csv(config: PrepareConfig, root: Path) -> dict[str, Path]:
    return csv_folder.find_files(Path(config.csv) if config.csv else None)


def _read_csv(config: PrepareConfig, root: Path, files: dict[str, Path]) -> SourceTable:
    space = csv_folder.choose_space(config.label_space, config.columns)
    return csv_folder.read(files["labels"], root=root, space=space, columns=config.columns)


ROLES = {"cohort": "prepare", "oracle": "oracle", "external": "external"}
"""The cohorts that an experiment can have, and their sections: its own; new patients of the same site; another site."""

Finder = Callable[[PrepareConfig, Path], dict[str, Path]]
Reader = Callable[[PrepareConfig, Path, dict[str, Path]], SourceTable]
SOURCES: dict[str, tuple[Finder, Reader]] = {
    "nih": (_find_nih, _read_nih), "csv": (_find_csv, _read_csv),
    "phantom": (lambda config, root: {}, lambda config, root, files: phantom.read(config.phantom, root)),
}
"""Per source: the files that it reads (they are hashed into the fingerprint), and its reader."""


def prepare(config: PrepareConfig, folder: Path, *, threads: int = 2, dry_run: bool = False) -> None:
    """Make the cohort of ``config`` in ``folder``; raises ``TailfillError`` with nothing written if it cannot be.

    Images are decoded by ``threads`` threads, or made by as many processes.
    """
    if threads < 1:
        workers = "processes" if config.source == "phantom" else "threads"
        raise TailfillError(f"{workers} is {threads}; wanted: 1 or more")
    root = (Path(config.root) if config.root else folder).resolve()
    config = replace(config, root=str(root) if config.root else None)
    find, read = SOURCES[config.source]
    files = find(config, root)
    stage = Stage("prepare", folder, config=config.settings(), inputs=files)
    if not dry_run and stage.is_complete():
        log.info("prepare: complete, nothing to do")
        return
    table = read(config, root, files)
    if dry_run:
        images = "not yet made" if table.write_images else "not yet decoded"
        sys.stdout.write(stage.describe(rows=table.n_read, bad_rows=len(table.bad), images=images) + "\n")
        return
    if table.write_images is None:
        frame = draw_splits(keep_good(table, config, root, threads=threads), table.space, config)
    else:
        stage.begin()  # so that the same command completes what a kill has left
        table.write_images(processes=threads)
        frame = table.frame
    write_cohort(stage, table, frame, root)


def keep_good(table: SourceTable, config: PrepareConfig, root: Path, *, threads: int) -> pd.DataFrame:
    """The usable rows in the order of their ids; raises ``TailfillError`` on bad ones unless they are to be skipped."""
    reject_duplicates(table)
    reject_shared_patients(table)
    reject_unreadable(table, root, threads=threads)
    if table.bad and config.on_bad == "refuse":
        raise TailfillError(describe_bad(table.bad))
    if table.frame.empty:
        raise TailfillError(f"{table.file}: none of its {table.n_read} rows can be used; {describe_bad(table.bad)}")
    return table.frame.sort_values("image_id").reset_index(drop=True)


def draw_splits(frame: pd.DataFrame, space: LabelSpace, config: PrepareConfig) -> pd.DataFrame:
    """Fill in what the source leaves open: test, then validation, by patient from the rows in no other split."""
    split = frame["split"].fillna("train")
    for name, fraction in (("test", config.test_fraction), ("val", config.val_fraction)):
        if name not in set(split):
            rest = frame[(split == "train").to_numpy()]
            split.loc[rest.index] = split_patients(rest, space.labels, fractions={name: fraction}, seed=config.seed)
    if "train" not in set(split):
        raise TailfillError("no image is in the split 'train'")
    return frame.assign(split=split)


def write_cohort(stage: Stage, table: SourceTable, frame: pd.DataFrame, root: Path) -> None:
    """Write the tables and the stamp."""
    labels = list(table.space.labels)
    groups = assign_groups(frame, labels, known=table.groups)
    counted = count_labels(frame, labels, groups)
    warn_of_scarcity(counted)
    outputs = {"cohort.parquet": frame, "counts.parquet": counted}
    if table.bad:
        outputs["rejected.parquet"] = pd.DataFrame(
            [{"file": str(e.file), "row": e.row, "image_id": e.image_id, "reason": e.reason} for e in table.bad]
        )
    stage.begin()
    for name, content in outputs.items():
        write_table(content, stage.folder / name, cohort_schema(labels) if name == "cohort.parquet" else None)
    made = ["images"] if table.write_images else []
    counts = count_rows(table, frame)
    # important: the salt follows from the patients alone, so that the same patients have the same hashes however they
    # are split, and a model that was trained on one split is refused beside another
    salt = hash_bytes(f"salt of {sorted(set(frame['patient_id']))}".encode())[:32]
    source = frame["root"].iloc[0]
    stage.finish(outputs=[*outputs, *made], counts=counts, extra={
        "labels": labels, "groups": groups, "roots": {source: str(root)}, "salt": salt,
        "patient_ids": table.patient_ids, "source": source, "label_space": table.space.name,
        **table.about,
    })
    log.info("prepare: %s", " ".join(f"{key}={value:,}" for key, value in counts.items()))


def warn_of_scarcity(counted: pd.DataFrame) -> None:
    """Log which tail labels have too few positive test patients for ``compare`` to give an interval of their own."""
    tested = counted[(counted["group"] == "tail") & (counted["split"] == "test")]
    few = tested[tested["n_patients"] < MIN_POSITIVE_PATIENTS]
    if len(few):
        counts = ", ".join(f"{label} {n}" for label, n in zip(few["label"], few["n_patients"], strict=True))
        log.warning("prepare: under %d positive test patients, so no interval of their own: %s", MIN_POSITIVE_PATIENTS,
                    counts)


def count_rows(table: SourceTable, frame: pd.DataFrame) -> dict[str, int]:
    """read = kept + rejected, the kept rows by split, and how many of them lost an implausible value."""
    kept = set(table.frame.index)
    return {
        "read": table.n_read, "kept": len(frame), "rejected": len(table.bad),
        **{f"{key}_nulled": len(lines & kept) for key, lines in table.nulled.items()},
        **{f"{split}_images": int((frame["split"] == split).sum()) for split in SPLITS},
    }


def read_arguments(argv: list[str]) -> tuple[PrepareConfig, Path, int, bool]:
    """Config, folder to write, threads or processes, and dry run; exits with code 2 and one line on any mistake."""
    parser = jsonargparse.ArgumentParser(prog="python -m cohort.prepare", description=__doc__, exit_on_error=False,
                                         formatter_class=HelpFormatter)
    sources = parser.add_subcommands(dest="source")
    for name, module in (("nih", nih), ("csv", csv_folder), ("phantom", phantom)):
        command = jsonargparse.ArgumentParser(description=module.__doc__, exit_on_error=False,
                                              formatter_class=HelpFormatter)
        workers, work = ("processes", "draw the images") if name == "phantom" else ("threads", "decode images")
        if name == "phantom":
            command.add_class_arguments(PhantomConfig)
        else:
            unused = {"source", "phantom"} if name == "csv" else {"source", "phantom", "columns"}
            command.add_class_arguments(PrepareConfig, skip=unused)
        command.add_argument("--out", type=str, required=True, help="folder to write; new, or of the same settings")
        command.add_argument(f"--{workers}", type=int, default=2, help=f"{workers} that {work}, 1 or more")
        command.add_argument("--dry_run", action="store_true", help="print what would be done, and do nothing")
        sources.add_subcommand(name, command, help=(module.__doc__ or "").splitlines()[0])
    try:
        parsed = parser.instantiate(parser.parse_args([_underscore(word) for word in argv]))
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        fail(str(error))
    own = dict(vars(parsed[parsed.source]))
    out, dry_run = Path(own.pop("out")), own.pop("dry_run")
    if parsed.source == "phantom":
        processes = own.pop("processes")
        return PrepareConfig(source="phantom", phantom=PhantomConfig(**own)), out, processes, dry_run
    threads = own.pop("threads")
    return PrepareConfig(source=parsed.source, **own), out, threads, dry_run


def _underscore(word: str) -> str:
    """``--val-fraction=.1`` as ``--val_fraction=.1``: both spellings of a flag are the same."""
    flag, equals, value = word.partition("=")
    return f"--{flag[2:].replace('-', '_')}{equals}{value}" if flag.startswith("--") else word


def find_role(argv: list[str]) -> str:
    """The value of ``--role``: it says which section to read; raises ``TailfillError`` for an unknown one."""
    words = [part for word in argv for part in word.split("=", 1)]
    role = words[words.index("--role") + 1] if "--role" in words[:-1] else "cohort"
    if role not in ROLES:
        raise TailfillError(f"--role is '{role}'; wanted: {', '.join(ROLES)}")
    return role


def prepare_role(role: str) -> None:
    """Make one of an experiment's cohorts, from the section of its role in the configuration on the command line."""
    options = parse(ROLES[role], PrepareConfig, doc=__doc__, extra={"role": (str, "cohort")})
    folder = options.run.cohort_folder if role == "cohort" else options.run.folder / role
    prepare(options.section, folder, threads=options.run.threads, dry_run=options.dry_run)


def main() -> None:
    """``python -m cohort.prepare SOURCE --root DIR --out DIR``, or ``--config C`` as every other stage."""
    if any(word.partition("=")[0] == "--config" for word in sys.argv[1:]):
        prepare_role(find_role(sys.argv[1:]))
        return
    config, folder, threads, dry_run = read_arguments(sys.argv[1:])
    prepare(config, folder, threads=threads, dry_run=dry_run)


if __name__ == "__main__":
    run_command(main)
