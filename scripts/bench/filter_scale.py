"""What the filter costs at one number of images: seconds and memory, apart from files and networks.

Memory is what the process holds for itself (``RssAnon`` of proc(5), looked at every 10 ms). What was read lies on disk
and passes through the page cache, which the system takes back when it needs it: no part of it is counted.
"""

import re
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from synth.judging.copies import PATIENTS
from synth.judging.evidence import Evidence, Images
from synth.judging.gathering import SEARCHING, SETS
from synth.judging.memorisation import MatchReader, nearer_to_train
from synth.judging.reading import Reader, Source, collect, read
from synth.judging.rules import RULES, apply_rules
from synth.judging.sanity import PixelStatistics

SIZE, N_REAL, LABELS = 128, 2000, ("Hernia", "Edema")


class Averages:
    """Stands for an encoder: means of blocks, as many as EfficientNet-Lite0 has features."""

    name, key, width = "averages", "1", 1280

    def read(self, images: np.ndarray) -> np.ndarray:
        """uint8 (b, 128, 128) to float32 (b, 1280)."""
        blocks = images[:, :, :120].reshape(len(images), 32, 4, 40, 3).mean(axis=(2, 4))
        return blocks.reshape(len(images), -1).astype(np.float32)


class Guess:
    """Stands for a critic: two contrasts."""

    name, key, width = "guess", "1", len(LABELS)

    def read(self, images: np.ndarray) -> np.ndarray:
        """uint8 (b, 128, 128) to float32 (b, 2)."""
        corner = images[:, :16, :32].mean(axis=(1, 2)) - images[:, 16:32, :32].mean(axis=(1, 2))
        return np.stack([corner, -corner], axis=1).astype(np.float32) / 10


class Held:
    """The most that this process has held for itself while the ``with`` block ran, in MiB above what it held before."""

    def __enter__(self) -> "Held":
        self.before, self.most, self.over = self._now(), 0.0, threading.Event()
        self.watch = threading.Thread(target=self._look, daemon=True)
        self.watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.watch.join()

    def _look(self) -> None:
        while not self.over.wait(0.01):
            self.most = max(self.most, self._now() - self.before)

    @staticmethod
    def _now() -> float:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
        return int(found[1]) / 2**10 if found else float("nan")


def draw(rows: Sequence[int]) -> np.ndarray:
    """Smooth noise, each image from its own number, uint8 (k, 128, 128)."""
    images = np.empty((len(rows), SIZE, SIZE), dtype=np.uint8)
    for at, row in enumerate(rows):
        coarse = np.random.default_rng(row).integers(60, 200, (SIZE // 8, SIZE // 8))
        images[at] = np.kron(coarse, np.ones((8, 8))) + np.random.default_rng(row).integers(-20, 20, (SIZE, SIZE))
    return images


class Found:
    """Stands for a search for copies, which takes tens of milliseconds an image (scripts/planted_copies.py tells) and
    holds one image made at a time beside the training images."""

    key, width = "1", MatchReader.width

    def __init__(self, name: str) -> None:
        self.name = name

    def read(self, images: np.ndarray) -> np.ndarray:
        """uint8 (b, 128, 128) to float32 (b, 56): rows and an NCC of 0 to 1, nearest first, drawn from the pixels."""
        matches = np.zeros((len(images), PATIENTS, self.width // PATIENTS), dtype=np.float32)
        for image, match in zip(images, matches, strict=True):
            rng = np.random.default_rng(image[0, :16].astype(int))
            match[:, 0], match[:, 1] = rng.integers(0, N_REAL, PATIENTS), np.sort(rng.random(PATIENTS))[::-1]
        return matches.reshape(len(images), -1)


def tell_scale(n: int) -> None:
    """Read and judge ``n`` images made against ``N_REAL`` real ones; one line of seconds and memory."""
    kinds: dict[str, list[Reader]] = {"pixels": [PixelStatistics()], "encoder": [Averages()], "critic": [Guess()]}
    starts, sizes = {"made": 10**6, "train": 0, "val": N_REAL}, {"made": n, "train": N_REAL, "val": N_REAL}
    with tempfile.TemporaryDirectory(prefix="tailfill_bench_") as folder, Held() as held:
        begin = time.perf_counter()
        images = {name: _gather(name, starts[name], sizes[name], kinds, Path(folder)) for name in starts}
        between = time.perf_counter()
        charged = np.array([LABELS[i % 2] for i in range(n)], dtype=object)
        evidence = Evidence(made=images["made"], charged_to=charged, scarce=list(LABELS), train=images["train"],
                            val=images["val"], critics=("guess",), encoders=("averages",))
        apply_rules(dict.fromkeys(RULES), evidence)
        nearer_to_train(evidence)
        end = time.perf_counter()
        sys.stdout.write(f"{n:7,} images: reading {1000 * (between - begin) / (n + 2 * N_REAL):.2f} ms each, judging "
                         f"{1000 * (end - between) / n:.2f} ms each, {held.most:,.0f} MiB more "
                         f"than before\n")


def _gather(name: str, start: int, n: int, kinds: dict[str, list[Reader]], cache: Path) -> Images:
    readers = [reader for kind, found in kinds.items() if name in SETS[kind] for reader in found]
    readers += [Found(search) for search in SEARCHING.get(name, ())]
    digests = np.array([(start + row).to_bytes(32, "big") for row in range(n)], dtype="V32")
    source = Source(name=name, digests=digests, load=lambda rows: draw([start + row for row in rows]))
    read(source, readers, cache)
    rng = np.random.default_rng(start)
    labels = pd.DataFrame({label: pd.array(rng.integers(0, 2, n), dtype="Int8") for label in LABELS})
    return Images(labels=labels, patients=np.array([f"{name}{row}" for row in range(n)], dtype=object),
                  views=np.resize(np.array(["PA", "AP"], dtype=object), n), load=source.load,
                  readings=collect(source, readers, cache))
