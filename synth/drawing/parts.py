"""Finished batches on disk: a process may be killed at any moment, and nothing is lost, doubled or half written.

A batch is finished when its PNGs and then its part file, ``parts/batch_000012.parquet``, have been renamed into place.
Starting again scans the parts once and draws the batches that have none. Temporary names are fixed per file, so that
the batch that is drawn again overwrites what a killed process left. PNGs are encoded in threads behind a bounded queue:
the sampler does not wait for the disk, and memory stays flat.

Not promised: anything about two runs that write into one folder at the same time.
"""

import io
import re
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from cohort.errors import TailfillError
from cohort.stage import hash_bytes
from cohort.tables import check_table, images_schema, read_table, write_table
from synth.drawing.sampling import Drawn

PENDING_BATCHES = 2
"""Batches whose PNGs may wait to be written; more would only cost memory."""


def image_path(sample_id: str) -> str:
    """Where a sample's PNG stands below the stage's folder: 256 folders, so that none holds too many."""
    return f"images/{sample_id[:2]}/{sample_id}.png"


def part_file(folder: Path, batch: int) -> Path:
    """The part file of a logical batch."""
    return folder / "parts" / f"batch_{batch:06d}.parquet"


def finished_batches(folder: Path) -> set[int]:
    """The logical batches that have a part file: one listing of one folder."""
    parts = folder / "parts"
    names = [path.name for path in parts.iterdir()] if parts.is_dir() else []
    return {int(found[1]) for name in names if (found := re.fullmatch(r"batch_(\d+)\.parquet", name))}


def encode_png(pixels: np.ndarray) -> bytes:
    """A PNG of uint8 pixels, (height, width) or (height, width, 3): no metadata, equal bytes for equal pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def put_in_place(file: Path, content: bytes) -> None:
    """Write and rename, under a temporary name that whoever does this again will overwrite.

    Raises ``TailfillError`` when the disk is full or the folder cannot be written.
    """
    partial = file.with_name(f".{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(file)
    except OSError as error:
        raise TailfillError(f"{file}: cannot be written: {error.strerror}; the batches before it are kept, so mend "
                            "this and give the same command again") from error


class BatchWriter:
    """Writes batches in the order of their arrival; leave its context to wait for the last ones."""

    def __init__(self, folder: Path, *, threads: int, rank: int) -> None:
        self.folder, self.rank = folder, rank
        self.pool = ThreadPoolExecutor(threads)
        self.pending: deque[tuple[int, list[Future[dict[str, Any]]]]] = deque()

    def __enter__(self) -> "BatchWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        try:
            while self.pending and kind is None:
                self._finish_oldest()
        finally:
            self.pool.shutdown(cancel_futures=True)

    def add(self, batch: int, drawn: Sequence[Drawn]) -> None:
        """Queue a drawn batch; waits while more than ``PENDING_BATCHES`` are being written."""
        self.pending.append((batch, [self.pool.submit(self._write_image, image) for image in drawn]))
        while len(self.pending) > PENDING_BATCHES or (self.pending and all(f.done() for f in self.pending[0][1])):
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        batch, futures = self.pending.popleft()
        frame = check_table(pd.DataFrame([future.result() for future in futures]), images_schema(),
                            where=f"batch {batch}")
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False)
        put_in_place(part_file(self.folder, batch), buffer.getvalue())

    def _write_image(self, image: Drawn) -> dict[str, Any]:
        row: dict[str, Any] = {
            "sample_id": image.sample_id, "status": "ok", "error": None, "path": None, "sha256": None, "height": None,
            "width": None, "seconds": image.seconds, "rank": self.rank, "micro_batch": image.micro_batch,
        }
        if image.pixels is None:
            return row | {"status": "error", "error": image.error}
        content = encode_png(image.pixels)
        put_in_place(self.folder / image_path(image.sample_id), content)
        height, width = image.pixels.shape[:2]
        return row | {"path": image_path(image.sample_id), "sha256": hash_bytes(content), "height": height,
                      "width": width}


def assemble(folder: Path, *, sample_ids: Sequence[str], batches: Iterable[int]) -> pd.DataFrame:
    """Write ``images.parquet``, one row per planned id in the plan's order, from the parts, and return it.

    Raises ``TailfillError`` when an id is missing, doubled or was not planned.
    """
    parts = [read_table(part_file(folder, batch)) for batch in sorted(set(batches))]
    frame = pd.concat(parts, ignore_index=True)
    made, planned = frame["sample_id"], pd.Index(sample_ids)
    strange = [*made[made.duplicated()], *made[~made.isin(planned)], *planned[~planned.isin(made)]]
    if strange:
        raise TailfillError(f"{folder / 'parts'}: {len(strange)} of {len(planned)} planned ids are missing, doubled or "
                            f"unknown, first {strange[0]}; move the folder away")
    frame = frame.set_index("sample_id").loc[planned].reset_index()
    write_table(frame, folder / "images.parquet", images_schema())
    return frame
