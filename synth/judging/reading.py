"""One pass: each image is decoded once, every reader works on it while it is in memory, and what it read is kept.

A reader turns a batch of pixels into a row of numbers per image: an encoder's features, a critic's logits, a
descriptor, statistics of the grey levels. Rows are cached by the image's content and the reader's key (its weights'
hash and whatever else its numbers depend on), so the real side is read once and for all, and a new rule or another
threshold costs seconds. Memory holds one batch of pixels. What was read is handed
out as an array that lies on disk, so that judging takes as much memory for 50,000 images as for 1,000; a rule goes
over it in blocks of ``BLOCK`` rows.

The cache is a folder per reader with, for each process, one file of rows and one of digests, both only ever appended
to: a row counts when its digest is complete, so a killed process loses its last batch and nothing else. Processes of
a launch share the images out and meet in that folder. Runs may share a cache, by links too: a file is locked while it
is appended to.
"""

import fcntl
import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

log = logging.getLogger(__name__)

BATCH = 64
"""Images in memory at a time, and appended to the cache together."""
BLOCK = 1024
"""Rows that are taken from disk at a time: 10 MB of the widest reading."""
DIGEST = 32
"""Bytes of a sha256."""


class Reader(Protocol):
    """Pixels to numbers; the same images give the same row whatever else is in the batch, beyond rounding."""

    name: str
    """Of the reading, in ``Images.readings``."""
    key: str
    """All that the numbers depend on beside the pixels: hash of the weights, version of the formula."""
    width: int
    """Numbers per image."""

    def read(self, images: np.ndarray) -> np.ndarray:
        """uint8 (b, size, size) to float32 (b, width)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a set of images comes from."""

    name: str
    """For the progress bar."""
    digests: np.ndarray
    """Bytes (n,): sha256 of each image's content."""
    load: Callable[[Sequence[int]], np.ndarray]
    """Row numbers to pixels, uint8 (k, size, size)."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which part of the reading this process does: of every ``world`` blocks of ``BATCH`` images that of ``rank``."""

    rank: int = 0
    world: int = 1


def pixel_digests(pixels: np.ndarray) -> np.ndarray:
    """The sha256 of each image of uint8 (n, size, size), its size included; (n,) of 32 bytes."""
    size = str(pixels.shape[1:]).encode()
    return _bytes([hashlib.sha256(size + np.ascontiguousarray(image).tobytes()).digest() for image in pixels])


def file_digests(sha256: Sequence[str]) -> np.ndarray:
    """Hashes of files, given in hexadecimal, as (n,) of 32 bytes."""
    return _bytes([bytes.fromhex(text) for text in sha256])


def read(source: Source, readers: Sequence[Reader], cache: Path, *, share: Share | None = None) -> None:
    """Read what the cache lacks of this process's share of the images.

    Args:
        source: the images; equal content is read once.
        readers: what to read; each image is decoded once for all readers that lack it.
        cache: folder that holds one folder per reader.
        share: of several processes.
    """
    share = share or Share()
    stores = [Store(cache, reader) for reader in readers]
    lacking = [store.lacks(source.digests) for store in stores]
    rows = np.flatnonzero(np.any(lacking, axis=0)) if stores else np.array([], dtype=int)
    rows = rows[rows // BATCH % share.world == share.rank]  # important: not by what is lacking, which others change
    batches = [rows[start: start + BATCH] for start in range(0, len(rows), BATCH)]
    with tqdm(total=sum(map(len, batches)), desc=f"read {source.name}", unit="image", disable=None) as progress:
        for batch, pixels in _ahead(batches, source.load):
            for reader, store, missing in zip(readers, stores, lacking, strict=True):
                mine = missing[batch]
                if mine.any():
                    store.append(source.digests[batch[mine]], reader.read(pixels[mine]), rank=share.rank)
            progress.update(len(batch))


def collect(source: Source, readers: Sequence[Reader], cache: Path) -> dict[str, np.ndarray]:
    """Reader's name to float32 (n, width), from the cache alone; raises ``KeyError`` for an image that was not read."""
    return {reader.name: Store(cache, reader).rows(source.digests) for reader in readers}


class Store:
    """The cached rows of one reader."""

    def __init__(self, cache: Path, reader: Reader) -> None:
        named = f"{reader.name}\n{reader.key}\n{reader.width}".encode()
        self.folder = cache / f"{''.join(c if c.isalnum() else '_' for c in reader.name)}-" \
                              f"{hashlib.sha256(named).hexdigest()[:16]}"
        self.width = reader.width

    def lacks(self, digests: np.ndarray) -> np.ndarray:
        """bool (n,): images without a row; of several with one content, all but the first count as there."""
        known, first = set(self._index()), ~_repeated(digests)
        return np.array([digest not in known for digest in digests.tolist()], dtype=bool) & first

    def append(self, digests: np.ndarray, rows: np.ndarray, *, rank: int) -> None:
        """Add rows, float32 (b, width), to this process's files; raises ``ValueError`` for another shape or NaN."""
        if rows.shape != (len(digests), self.width) or not np.isfinite(rows).all():
            raise ValueError(f"{self.folder.name}: rows of shape {rows.shape}, finite: {np.isfinite(rows).all()}; "
                             f"wanted: ({len(digests)}, {self.width}), all finite")
        self.folder.mkdir(parents=True, exist_ok=True)
        kept, known = self.folder / f"{rank}.rows", self.folder / f"{rank}.digests"
        with known.open("a+b") as of_digests, kept.open("a+b") as of_rows:
            fcntl.flock(of_digests, fcntl.LOCK_EX)  # holds through symbolic and hard links; closing lets go
            n = self._complete(known)
            for stream, width, content in ((of_rows, self.width * 4, rows.astype("<f4").tobytes()),
                                           (of_digests, DIGEST, digests.tobytes())):
                stream.truncate(n * width)  # what a killed process left half written
                stream.write(content)
                stream.flush()

    def rows(self, digests: np.ndarray) -> np.ndarray:
        """float32 (n, width), in a nameless file that goes with the array; ``KeyError`` for an image not read."""
        if not len(digests):
            return np.empty((0, self.width), dtype=np.float32)
        index = self._index()
        places = [index[digest] for digest in digests.tolist()]
        kept = {file: np.memmap(file, dtype="<f4", mode="r", shape=(_length(file, self.width * 4), self.width))
                for file in sorted({file for file, _ in places})}
        with tempfile.TemporaryFile(dir=self.folder) as nameless:
            found = np.memmap(nameless, dtype="<f4", mode="w+", shape=(len(digests), self.width))
        for start in range(0, len(places), BLOCK):
            block = places[start: start + BLOCK]
            for file, rows in kept.items():
                mine = [i for i, (where, _) in enumerate(block) if where == file]
                found[start + np.array(mine, dtype=int)] = rows[[block[i][1] for i in mine]]
        return np.asarray(found)

    def _complete(self, digests: Path) -> int:
        """Rows that both files of a process hold; after a power cut either may be the shorter one."""
        return min(_length(digests, DIGEST), _length(digests.with_suffix(".rows"), self.width * 4))

    def _index(self) -> dict[bytes, tuple[Path, int]]:
        index: dict[bytes, tuple[Path, int]] = {}
        for file in sorted(self.folder.glob("*.digests")):
            content = file.read_bytes()
            for row in range(self._complete(file)):
                index[content[row * DIGEST: (row + 1) * DIGEST]] = (file.with_suffix(".rows"), row)
        return index


def _ahead(
    batches: Sequence[np.ndarray], load: Callable[[Sequence[int]], np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each batch's rows with its pixels; the next batch is decoded while this one is being read."""
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(load, batch.tolist()) for batch in batches[:1]]
        for position, batch in enumerate(batches):
            pixels = waiting.pop().result()
            waiting += [pool.submit(load, following.tolist()) for following in batches[position + 1: position + 2]]
            yield batch, pixels


def _length(file: Path, width: int) -> int:
    """Complete records in a file; none where it does not exist."""
    return file.stat().st_size // width if file.exists() else 0


def _repeated(digests: np.ndarray) -> np.ndarray:
    """bool (n,): whether an earlier image has the same content."""
    repeated = np.ones(len(digests), dtype=bool)
    repeated[np.unique(digests, return_index=True)[1]] = False
    return repeated


def _bytes(digests: list[bytes]) -> np.ndarray:
    """Void, not ``S``: numpy's byte strings lose trailing zeros."""
    return np.array(digests, dtype=f"V{DIGEST}")
