"""Finished batches on disk: a process may be killed at any moment, and nothing is lost, doubled or half written.

A batch is finished when its PNGs and then its part file, ``parts/batch_000012.parquet``, have been renamed into place.
Starting again scans the parts once and draws the batches that have none. Temporary names are fixed per file, so that
the batch that is drawn again overwrites what a killed process left. PNGs are encoded in threads behind a bounded queue:
the sampler does not wait for the disk, and memory stays flat.

When every planned id is accounted for, the parts become two tables: ``images.parquet`` says what was made, and is the
same for equal runs; ``batches.parquet`` says who drew it on what and how long that took, which never is. The parts are
removed once both are in place, ``images.parquet`` last: where it stands, nothing is left to draw.

Not promised: anything when the machine itself goes down, since nothing is forced to the disk before it is renamed; and
that a batch that was drawn is drawn again because its PNGs were removed (the filter notices by their hashes).
"""

import io
import os
import re
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from cohort.errors import TailfillError
from cohort.stage import hash_bytes, write_atomically
from cohort.tables import batches_schema, images_schema, read_table, write_table
from synth.drawing.sampling import Drawn

IMAGES, BATCHES, PARTS = "images.parquet", "batches.parquet", "parts"
PENDING_BATCHES = 2
"""Batches whose PNGs may wait to be written; more would only cost memory."""
PART = pa.schema(
    [(name, pa.string()) for name in ("sample_id", "status", "error", "path", "sha256", "device", "attention")]
    + [(name, pa.int64()) for name in ("height", "width", "micro_batch", "batch", "rank", "world_size")]
    + [("seconds", pa.float64())]
)
"""A part: the columns of both tables, one row per image; the seconds are each image's share of its micro-batch."""


@dataclass(frozen=True, kw_only=True)
class Drawer:
    """Who draws, and on what."""

    rank: int
    world_size: int
    device: str
    attention: str


def image_path(sample_id: str) -> str:
    """Where a sample's PNG stands below the stage's folder: 256 folders, so that none holds too many."""
    return f"images/{sample_id[:2]}/{sample_id}.png"


def part_file(folder: Path, batch: int) -> Path:
    """The part file of a logical batch."""
    return folder / PARTS / f"batch_{batch:06d}.parquet"


def finished_batches(folder: Path) -> set[int]:
    """The logical batches that have a part file: one listing of one folder."""
    names = os.listdir(folder / PARTS) if (folder / PARTS).is_dir() else []
    return {int(found[1]) for name in names if (found := re.fullmatch(r"batch_(\d+)\.parquet", name))}


def is_assembled(folder: Path) -> bool:
    """Whether every planned image is accounted for in the tables, so that the parts have served."""
    return (folder / IMAGES).is_file()


def encode_png(pixels: np.ndarray) -> bytes:
    """A PNG of uint8 pixels, (height, width) or (height, width, 3): no metadata, equal bytes for equal pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def write_part(folder: Path, batch: int, rows: Sequence[dict[str, Any]]) -> None:
    """Put the part file of a batch in place: it is finished."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=PART), buffer)
    write_atomically(part_file(folder, batch), buffer.getvalue(), owned=True)


class BatchWriter:
    """Writes batches in the order of their arrival; leave its context to wait for the last ones, after errors too.

    Raises ``TailfillError`` when the disk is full or the folder cannot be written; what was finished stays.
    """

    def __init__(self, folder: Path, *, threads: int, drawer: Drawer) -> None:
        self.folder, self.drawer = folder, asdict(drawer)
        self.pool = ThreadPoolExecutor(threads)
        self.pending: deque[tuple[int, list[Future[dict[str, Any]]]]] = deque()

    def __enter__(self) -> "BatchWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        try:
            while self.pending:
                self._finish_oldest()
        except TailfillError:
            if kind is None:  # else the error that came first is the one to tell
                raise
        finally:
            self.pool.shutdown(cancel_futures=True)

    def add(self, batch: int, drawn: Sequence[Drawn]) -> None:
        """Queue a drawn batch; waits while more than ``PENDING_BATCHES`` are being written."""
        self.pending.append((batch, [self.pool.submit(self._write_image, image) for image in drawn]))
        while len(self.pending) > PENDING_BATCHES or (self.pending and all(f.done() for f in self.pending[0][1])):
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        batch, futures = self.pending.popleft()
        write_part(self.folder, batch, [{**self.drawer, "batch": batch, **future.result()} for future in futures])

    def _write_image(self, image: Drawn) -> dict[str, Any]:
        row: dict[str, Any] = {"sample_id": image.sample_id, "status": "ok", "error": None, "path": None,
                               "sha256": None, "height": None, "width": None, "micro_batch": image.micro_batch,
                               "seconds": image.seconds}
        if image.pixels is None:
            return row | {"status": "error", "error": image.error}
        content, path = encode_png(image.pixels), image_path(image.sample_id)
        write_atomically(self.folder / path, content, owned=True)
        height, width = image.pixels.shape[:2]
        return row | {"path": path, "sha256": hash_bytes(content), "height": height, "width": width}


def read_parts(folder: Path, batches: Iterable[int]) -> pd.DataFrame:
    """The rows of some batches' parts; raises ``TailfillError`` naming a part that is missing or none."""
    tables = []
    for batch in batches:
        file = part_file(folder, batch)
        try:
            with pq.ParquetFile(file) as part:
                tables.append(part.read(use_threads=False).cast(PART))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise TailfillError(f"{file}: is no readable part: {' '.join(str(error).split())[:200]}; remove it to have "
                                "its batch drawn again") from error
    frame: pd.DataFrame = pa.concat_tables(tables).to_pandas()
    return frame


def account_for(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the parts, batch by batch, as ``batches_schema`` has them."""
    return rows.assign(failed=rows["status"] == "error").groupby("batch", sort=True).agg(
        images=("sample_id", "size"), failed=("failed", "sum"), micro_batch=("micro_batch", "min"),
        rank=("rank", "first"), world_size=("world_size", "first"), device=("device", "first"),
        attention=("attention", "first"), seconds=("seconds", "sum"),
    ).reset_index()


def assemble(folder: Path, *, sample_ids: Sequence[str], batches: Iterable[int]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write both tables from the parts, unless that is done; read them back, remove the parts, return the tables.

    ``images.parquet`` has one row per planned id, in the plan's order. Raises ``TailfillError`` when an id is missing,
    doubled or was not planned.
    """
    planned = pd.Index(sample_ids)
    if not is_assembled(folder):
        rows = read_parts(folder, sorted(set(batches)))
        check_ids(rows["sample_id"], planned, where=folder / PARTS)
        write_table(account_for(rows), folder / BATCHES, batches_schema())
        write_table(rows.set_index("sample_id").loc[planned].reset_index(), folder / IMAGES, images_schema())
    images = read_table(folder / IMAGES, images_schema())
    check_ids(images["sample_id"], planned, where=folder / IMAGES)
    account = read_table(folder / BATCHES, batches_schema())
    for file in (folder / PARTS).glob("*"):
        file.unlink()
    if (folder / PARTS).is_dir():
        (folder / PARTS).rmdir()
    return images, account


def check_ids(made: pd.Series, planned: pd.Index, *, where: Path) -> None:
    """Raise ``TailfillError`` unless ``made`` holds each planned id once and nothing else."""
    strange = [*made[made.duplicated()], *made[~made.isin(planned)], *planned[~planned.isin(made)]]
    if strange:
        raise TailfillError(f"{where}: {len(strange)} of {len(planned)} planned ids are missing, doubled or unknown, "
                            f"first {strange[0]}; move the folder away")
