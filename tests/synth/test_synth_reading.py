"""The one pass: each image decoded once for all readers, rows cached by content, killed or shared without harm."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from synth.judging.reading import BATCH, DIGEST, Share, Source, Store, collect, pixel_digests, read

N, SIZE = 150, 6


class Mean:
    """Mean and maximum of the pixels; counts the images that it has read."""

    width = 2

    def __init__(self, name: str = "mean", key: str = "1") -> None:
        self.name, self.key, self.seen = name, key, 0

    def read(self, images: np.ndarray) -> np.ndarray:
        self.seen += len(images)
        return np.stack([images.mean(axis=(1, 2)), images.max(axis=(1, 2))], axis=1).astype(np.float32)


class Pictures:
    """A source that counts what is decoded."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels, self.decoded = pixels, 0

    def load(self, rows: Sequence[int]) -> np.ndarray:
        self.decoded += len(rows)
        return self.pixels[list(rows)]

    @property
    def source(self) -> Source:
        return Source(name="pictures", digests=pixel_digests(self.pixels), load=self.load)


@pytest.fixture
def pictures() -> Pictures:
    return Pictures(np.random.default_rng(0).integers(0, 256, (N, SIZE, SIZE), dtype=np.uint8))


def test_every_reader_reads_every_image_and_each_is_decoded_once(pictures: Pictures, tmp_path: Path) -> None:
    readers = [Mean("a"), Mean("b")]
    read(pictures.source, readers, tmp_path)
    found = collect(pictures.source, readers, tmp_path)
    np.testing.assert_array_equal(found["a"], Mean().read(pictures.pixels))
    np.testing.assert_array_equal(found["a"], found["b"])
    assert pictures.decoded == N


def test_what_was_read_lies_on_disk(tmp_path: Path) -> None:
    """48 MB of rows, in another order and from two processes' files, take a fraction of that of the process's own."""
    reader = Mean()
    reader.width, n = 1000, 12_000
    store, rows = Store(tmp_path, reader), np.random.default_rng(0).random((n, 1000), dtype=np.float32)
    digests = np.array([row.to_bytes(DIGEST, "big") for row in range(n)], dtype=f"V{DIGEST}")
    for rank, half in enumerate((slice(0, n // 2), slice(n // 2, n))):
        store.append(digests[half], rows[half], rank=rank)
    order = np.random.default_rng(1).permutation(n)
    before = own_memory()
    found = store.rows(digests[order])
    assert own_memory() - before < 24
    np.testing.assert_array_equal(found, rows[order])
    assert sorted(path.suffix for path in store.folder.iterdir()) == [".digests"] * 2 + [".rows"] * 2


def own_memory() -> float:
    """Of this process, without pages of files, in MB."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found
    return int(found[1]) / 1000


def test_what_was_read_is_not_read_again(pictures: Pictures, tmp_path: Path) -> None:
    read(pictures.source, [Mean()], tmp_path)
    again, further = Mean(), Mean("further")
    read(pictures.source, [again, further], tmp_path)
    assert (again.seen, further.seen, pictures.decoded) == (0, N, 2 * N)


def test_another_key_is_another_reading(pictures: Pictures, tmp_path: Path) -> None:
    read(pictures.source, [Mean(key="1")], tmp_path)
    other = Mean(key="2")
    with pytest.raises(KeyError):
        collect(pictures.source, [other], tmp_path)
    read(pictures.source, [other], tmp_path)
    assert other.seen == N


def test_rows_belong_to_content_not_to_places(pictures: Pictures, tmp_path: Path) -> None:
    """Turned round, with an image twice and a new one: old rows are found, the new content is read once."""
    read(pictures.source, [Mean()], tmp_path)
    new = np.zeros((1, SIZE, SIZE), np.uint8)
    turned, reader = Pictures(np.concatenate([pictures.pixels[::-1], pictures.pixels[:1], new, new])), Mean()
    read(turned.source, [reader], tmp_path)
    assert reader.seen == 1
    np.testing.assert_array_equal(collect(turned.source, [reader], tmp_path)["mean"], reader.read(turned.pixels))


def test_size_is_part_of_the_content() -> None:
    flat = np.zeros((1, 4, 9), np.uint8)
    assert pixel_digests(flat) != pixel_digests(flat.reshape(1, 6, 6))


def test_digests_that_end_in_zero_bytes_stay_different(tmp_path: Path) -> None:
    digests = np.array([bytes(DIGEST), b"\1" + bytes(DIGEST - 1)], dtype=f"V{DIGEST}")
    store = Store(tmp_path, Mean())
    store.append(digests, np.array([[1, 2], [3, 4]], np.float32), rank=0)
    np.testing.assert_array_equal(store.rows(digests[::-1]), [[3, 4], [1, 2]])


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_images_out_and_meet_in_the_cache(
    pictures: Pictures, tmp_path: Path, world: int
) -> None:
    readers = [Mean() for _ in range(world)]
    for rank, reader in enumerate(readers):
        # each process has looked at the cache before the others wrote to it
        read(pictures.source, [reader], tmp_path / str(rank), share=Share(rank=rank, world=world))
        for file in (tmp_path / str(rank)).rglob("*.*"):
            target = tmp_path / "all" / file.relative_to(tmp_path / str(rank))
            target.parent.mkdir(parents=True, exist_ok=True)
            file.rename(target)
    assert sum(reader.seen for reader in readers) == N
    assert max(reader.seen for reader in readers) <= -(-N // (BATCH * world)) * BATCH
    np.testing.assert_array_equal(
        collect(pictures.source, readers[:1], tmp_path / "all")["mean"], Mean().read(pictures.pixels))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_process_that_comes_late_leaves_no_image_to_nobody(
    pictures: Pictures, tmp_path: Path, order: tuple[int, int]
) -> None:
    """The other one has filled the same cache by then; each reads its own share and no more."""
    readers = {rank: Mean() for rank in order}
    for rank, reader in readers.items():
        read(pictures.source, [reader], tmp_path, share=Share(rank=rank, world=2))
    assert sum(reader.seen for reader in readers.values()) == N
    np.testing.assert_array_equal(
        collect(pictures.source, [Mean()], tmp_path)["mean"], Mean().read(pictures.pixels))


@pytest.mark.parametrize("lost", [1, DIGEST - 1, DIGEST + 5])
def test_killed_while_it_wrote(pictures: Pictures, tmp_path: Path, lost: int) -> None:
    """Rows half written, or digests: the batch is read anew, and what stood before is found."""
    read(pictures.source, [Mean()], tmp_path)
    digests, rows = next(tmp_path.rglob("*.digests")), next(tmp_path.rglob("*.rows"))
    digests.write_bytes(digests.read_bytes()[:-lost])
    rows.write_bytes(rows.read_bytes() + b"half")
    reader = Mean()
    read(pictures.source, [reader], tmp_path)
    assert reader.seen == (1 if lost <= DIGEST else 2)
    np.testing.assert_array_equal(collect(pictures.source, [reader], tmp_path)["mean"], reader.read(pictures.pixels))


def test_rows_that_a_power_cut_has_taken_are_read_anew(pictures: Pictures, tmp_path: Path) -> None:
    read(pictures.source, [Mean()], tmp_path)
    rows = next(tmp_path.rglob("*.rows"))
    rows.write_bytes(rows.read_bytes()[:-12])  # one row and a half of two numbers, their digests complete
    reader = Mean()
    read(pictures.source, [reader], tmp_path)
    assert reader.seen == 2
    np.testing.assert_array_equal(collect(pictures.source, [reader], tmp_path)["mean"], reader.read(pictures.pixels))


def test_not_a_number_is_never_kept(pictures: Pictures, tmp_path: Path) -> None:
    class Broken(Mean):
        def read(self, images: np.ndarray) -> np.ndarray:
            return np.full((len(images), 2), np.nan, np.float32)

    with pytest.raises(ValueError, match="all finite"):
        read(pictures.source, [Broken()], tmp_path)
    assert not list(tmp_path.rglob("*.digests"))


def test_runs_that_share_a_cache_do_not_mix_their_rows(tmp_path: Path) -> None:
    """Two writers of one rank, as when a run's cache is linked into another's: each digest keeps its own row."""
    def write(first: int) -> None:
        for number in range(first, first + 150):
            digest = np.array([number.to_bytes(DIGEST, "big")], dtype=f"V{DIGEST}")
            Store(tmp_path, Mean()).append(digest, np.array([[number, number]], np.float32), rank=0)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(0, 600, 150)))
    digests = np.array([number.to_bytes(DIGEST, "big") for number in range(600)], dtype=f"V{DIGEST}")
    np.testing.assert_array_equal(Store(tmp_path, Mean()).rows(digests)[:, 0], np.arange(600))
