"""What all sources share: label files read as columns of text, and what people write in them made uniform.

A file of four million rows has a few thousand different words, so each word of a column is looked at once
(:meth:`Rows.translate`) by an ordinary function of one string, and its answer, or its error, goes to all its rows. No
value is guessed by a parser: ids stay the text that they were (``00012`` is not 12, and a patient is never a float).

A row's number is its line in the file, the header being line 1, so that an editor finds it (where a quoted field holds
a line break, records are counted instead). Rows that cannot be used are collected with their reason, never dropped in
silence.
"""

import csv
import gzip
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from cohort.errors import TailfillError, nearest
from cohort.vocabulary.labels import LabelSpace

T = TypeVar("T")
LINES = 1 << 32
"""A row's place in one number: file x LINES + line; no label file has four billion lines."""
BLOCK_BYTES = 1 << 24
"""What pyarrow parses at a time; the longest row must fit."""


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that cannot be used: where it stands and why."""

    file: Path
    row: int
    image_id: str | None
    reason: str


@dataclass(kw_only=True)
class SourceTable:
    """What a source read: the cohort's columns, indexed by place; ``split`` is null where not given."""

    files: Sequence[Path]
    """The label files whose lines the index of ``frame`` counts, ``LINES`` apart."""
    space: LabelSpace
    frame: pd.DataFrame
    n_read: int
    patient_ids: str
    """``given``; ``image`` when the source has no patients and each image stands for its own; ``some``: it has some."""
    bad: list[BadRow] = field(default_factory=list)
    set_aside: list[BadRow] = field(default_factory=list)
    """Good rows that a policy leaves out (laterals, say), with the policy as reason."""
    nulled: dict[str, pd.Index] = field(default_factory=dict)
    """Places where a view, age or sex was implausible or not understood, and became null."""
    groups: Mapping[str, str] = field(default_factory=dict)
    """Groups that the source knows, by label; those of other labels follow from the train images."""
    about: Mapping[str, object] = field(default_factory=dict)
    """What else the stamp is to say of the source."""
    source: str | None = None
    """What the stamp calls the source; None: the name of the rows' root."""
    roots: Mapping[str, Path] = field(default_factory=dict)
    """The image roots, for a source that has several."""
    write_images: Callable[..., None] | None = None
    """For a source that makes its images, called with ``processes=``; its rows need no check, and have their splits."""

    def place(self, position: int) -> tuple[Path, int]:
        """File and line of an entry of the frame's index."""
        return self.files[position // LINES], position % LINES


@dataclass(kw_only=True)
class Rows:
    """The rows of one label file: text by column, and why some of them cannot be used."""

    file: Path
    number: int
    """Which of its source's files this is, from 0 on."""
    header: list[str]
    table: pa.Table
    lines: np.ndarray
    """int64 (n,): the line of each row."""
    bad: dict[int, str] = field(default_factory=dict)
    """Line to reason, the first one found."""
    torn: dict[int, str] = field(default_factory=dict)
    """Line to id of the bad rows that have another number of fields than the header: they are not in ``table``."""

    @property
    def n_read(self) -> int:
        """Rows of the file, bad ones included."""
        return len(self.lines) + len(self.torn)

    def text(self, column: str) -> pd.Series:
        """A column as it stands, outer spaces removed; pandas' ``str``, indexed by line."""
        return pd.Series(self.table[column].to_pandas().astype("str").to_numpy(), index=self.lines, dtype="str")

    def reject(self, wrong: np.ndarray, reason: Callable[[int], str]) -> None:
        """Mark rows as bad: ``wrong``, bool (n,); ``reason`` of a row's position."""
        for position in np.flatnonzero(wrong):
            self.bad.setdefault(int(self.lines[position]), reason(int(position)))

    def translate(self, column: str, function: Callable[[str], T | None]) -> tuple[np.ndarray, list[T | None]]:
        """``function`` of each different word: codes, int (n,), into the answers; rows of words that raise are bad."""
        encoded = self.table[column].combine_chunks().dictionary_encode()
        codes = encoded.indices.to_numpy()
        answers: list[T | None] = []
        reasons: dict[int, str] = {}
        for code, word in enumerate(encoded.dictionary.to_pylist()):
            try:
                answers.append(function(word))
            except TailfillError as error:
                answers.append(None)
                reasons[code] = str(error)
        if reasons:
            self.reject(np.isin(codes, list(reasons)), lambda position: reasons[int(codes[position])])
        return codes, answers

    def strings(self, column: str, function: Callable[[str], str | None]) -> pd.Series:
        """``function`` of a column of text, as pandas' ``str`` indexed by line; None becomes null."""
        codes, answers = self.translate(column, function)
        return pd.Series(pd.array(answers, dtype="str").take(codes), index=self.lines)

    def labels(
        self, space: LabelSpace, columns: Mapping[str, str], function: Callable[[str], int | None]
    ) -> pd.DataFrame:
        """One Int8 column per label of ``space`` from the column that carries it; a label without one is unknown."""
        found = {}
        for label in space.labels:
            if label in columns:
                naming = partial(_named, label=label, function=function)
                codes, answers = self.translate(columns[label], naming)
                found[label] = int8(answers, codes)
            else:
                found[label] = int8([None], np.zeros(len(self.lines), dtype=np.intp))
        return pd.DataFrame(found, index=self.lines)

    def vectors(self, column: str, function: Callable[[str], Mapping[str, int]], space: LabelSpace) -> pd.DataFrame:
        """The same from one column whose text names all the labels, as ``space.vector`` reads it."""
        codes, answers = self.translate(column, function)
        return pd.DataFrame({label: int8([None if answer is None else answer[label] for answer in answers], codes)
                             for label in space.labels}, index=self.lines)

    def only(self, lines: pd.Index) -> "Rows":
        """The same file with these lines alone."""
        chosen = np.isin(self.lines, lines)
        return replace(self, table=self.table.filter(pa.array(chosen)), lines=self.lines[chosen])

    def require_all(self, *, unique: pd.Series | None = None) -> None:
        """Raise ``TailfillError`` for the first bad row, or an id in ``unique`` that stands twice.

        For a table that is joined to others: its rows are no images that could be skipped.
        """
        if self.bad:
            line = min(self.bad)
            more = f"; and {len(self.bad) - 1} more" if len(self.bad) > 1 else ""
            raise TailfillError(f"{self.file} row {line}: {self.bad[line]}{more}")
        if unique is not None and unique.duplicated().any():
            raise TailfillError(f"{self.file}: '{unique[unique.duplicated()].iloc[0]}' stands there twice")

    def bad_rows(self, ids: pd.Series) -> list[BadRow]:
        """The bad rows in the order of their lines; ``ids``: the image's id by line, null where unknown."""
        names = self.torn | ids[ids.index.isin(list(self.bad))].dropna().to_dict()
        return [BadRow(file=self.file, row=line, image_id=names.get(line) or None, reason=self.bad[line])
                for line in sorted(self.bad)]


def _named(word: str, *, label: str, function: Callable[[str], int | None]) -> int | None:
    try:
        return function(word)
    except TailfillError as error:
        raise TailfillError(f"label '{label}' is {error}") from error


def int8(answers: Sequence[int | None], codes: np.ndarray) -> pd.arrays.IntegerArray:
    """Int8 (n,): ``answers`` (1, 0 or None) taken at ``codes``, int (n,)."""
    values = np.array([answer or 0 for answer in answers], dtype=np.int8)
    unknown = np.array([answer is None for answer in answers], dtype=bool)
    return pd.arrays.IntegerArray(values[codes], unknown[codes])


def read_header(file: Path) -> list[str]:
    """The names in the first line, a byte-order mark and outer spaces removed.

    Raises ``TailfillError`` when the file cannot be read, or ends there.
    """
    try:
        with (gzip.open(file) if file.suffix == ".gz" else file.open("rb")) as stream:
            reader = csv.reader(TextIOWrapper(stream, encoding="utf-8-sig", newline=""))
            header, first = [name.strip() for name in next(reader, [])], next(reader, None)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise TailfillError(f"{file}: cannot be read as a CSV: {error}") from error
    if not any(header) or first is None:
        raise TailfillError(f"{file}: is empty; wanted: a header and at least one row")
    return header


def read_rows(file: Path, columns: Sequence[str], *, number: int = 0, optional: Sequence[str] = ()) -> Rows:
    """The named ``columns`` of a CSV (gzip by its suffix), the image's id first, and the ``optional`` ones that it has.

    Any line ends, a byte-order mark, quotes. A row with another number of fields than the header is a bad one; blank
    lines are none. Raises ``TailfillError`` for a file without rows, that is no UTF-8, or lacks a column.
    """
    header = read_header(file)
    wanted = [*columns, *(name for name in optional if name in header and name not in columns)]
    at = positions(header, wanted, file=file)
    broken: dict[int, str] = {}
    torn: dict[int, str] = {}

    def note(row: pyarrow.csv.InvalidRow) -> str:
        broken[row.number] = f"has {row.actual_columns} fields; wanted: {row.expected_columns}, as in the header"
        fields = next(csv.reader([row.text]), [])[at[columns[0]] :]
        torn[row.number] = fields[0].strip() if fields else ""
        return "skip"

    names = [str(position) for position in range(len(header))]
    chosen = [str(position) for position in at.values()]
    try:
        table = pyarrow.csv.read_csv(
            file, pyarrow.csv.ReadOptions(column_names=names, skip_rows=1, use_threads=False, block_size=BLOCK_BYTES),
            pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=note, ignore_empty_lines=False),
            pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(chosen, pa.string()), include_columns=chosen),
        )
    except (OSError, pa.ArrowInvalid) as error:
        empty = "Empty CSV" in str(error)
        raise TailfillError(f"{file}: is empty; wanted: a header and at least one row" if empty else
                            f"{file}: cannot be read as a CSV: {error}") from error
    table = pa.table([pc.utf8_trim_whitespace(table[name]) for name in chosen], names=list(at))
    lines = np.setdiff1d(np.arange(2, 2 + len(table) + len(broken)), list(broken))
    blank = np.ones(len(table), dtype=bool)
    for column in table.columns:
        blank &= pc.equal(column, "").to_numpy()
    table, lines = table.filter(pa.array(~blank)), lines[~blank]
    if not len(lines) and not broken:
        raise TailfillError(f"{file}: is empty; wanted: a header and at least one row")
    return Rows(file=file, number=number, header=header, table=table, lines=lines, bad=broken, torn=torn)


def positions(header: Sequence[str], wanted: Sequence[str], *, file: Path) -> dict[str, int]:
    """Where each wanted column stands; raises ``TailfillError`` naming the missing ones."""
    repeated = [name for name in wanted if header.count(name) > 1]
    if repeated:
        raise TailfillError(f"{file}: column '{repeated[0]}' stands more than once in its header")
    missing = [name for name in wanted if name not in header]
    if missing:
        raise TailfillError(f"{file}: has no column {', '.join(repr(name) for name in missing)}"
                            f"{nearest(missing[0], list(header))}")
    return {name: header.index(name) for name in wanted}


def assemble(rows: Rows, cells: Mapping[str, object], labels: pd.DataFrame) -> pd.DataFrame:
    """The cohort's columns of the good rows of a file, indexed by place.

    ``cells``: a series by line, or one value for all, per column of the cohort; a column that is not given is null.
    """
    frame = pd.DataFrame({column: cells.get(column) for column in PERSONAL}, index=rows.lines)
    kinds = {column: "float64" if column == "age" else "str" for column in PERSONAL}
    frame = pd.concat([frame.astype(kinds), labels], axis=1)
    frame = frame[~frame.index.isin(list(rows.bad))]
    return frame.set_axis(frame.index + rows.number * LINES, axis=0)


PERSONAL = ("image_id", "root", "path", "patient_id", "study_id", "view", "age", "sex", "split")
"""The cohort's columns beside the labels, in order."""


def flag(rows: Rows, wrong: pd.Series, reason: str) -> None:
    """Mark the rows where ``wrong``, bool by line, as bad, all for one reason."""
    rows.reject(wrong.to_numpy(dtype=bool), lambda position: reason)


def by_line(values: pd.Series) -> list[tuple[int, str]]:
    """A series of text as (line or place, text), for the checker of types: pandas' ``items`` promises neither."""
    return [(int(line), str(value)) for line, value in zip(values.index.to_numpy(), values, strict=True)]


def find_one(folder: Path, *patterns: str) -> Path:
    """The one file of ``folder`` that matches a pattern, gzip or not; raises ``TailfillError`` for none or several."""
    found = sorted({file for pattern in patterns for ending in ("", ".gz") for file in folder.glob(pattern + ending)})
    if len(found) != 1:
        came = ", ".join(file.name for file in found) or "none"
        raise TailfillError(f"{folder}: {came} found; wanted: one file {' or '.join(patterns)}")
    return found[0]


def to_frame(records: Mapping[int, Mapping[str, object]], space: LabelSpace) -> pd.DataFrame:
    """Records by line as a frame with the cohort's columns and types."""
    frame = pd.DataFrame.from_dict(dict(records), orient="index", columns=[*PERSONAL, *space.labels])
    kinds = {"age": "float64"} | dict.fromkeys(space.labels, "Int8")
    return frame.astype({column: kinds.get(column, "str") for column in frame.columns})
