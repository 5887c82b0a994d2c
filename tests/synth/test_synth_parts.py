"""Parts and tables: conservation, equal bytes for equal images whoever drew them, nothing left behind."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cohort.errors import TailfillError
from cohort.stage import hash_file
from synth.drawing import parts
from synth.drawing.sampling import Drawn

N_BATCHES, BATCH = 5, 3


def ids_of(batch: int) -> list[str]:
    return [f"{(batch * 7 + i) % 16:x}{batch:x}{i:014x}" for i in range(BATCH)]


def draw(batch: int, *, seconds: float = 0.5, failing: Sequence[int] = ()) -> list[Drawn]:
    """Noise images that are functions of batch and place; those of ``failing`` are errors."""
    pixels = np.random.default_rng(batch).integers(0, 256, (BATCH, 4, 4), dtype=np.uint8)
    return [Drawn(sample_id=name, pixels=None if i in failing else pixels[i], error="NaN" if i in failing else None,
                  seconds=seconds, micro_batch=BATCH) for i, name in enumerate(ids_of(batch))]


def write(folder: Path, batches: Sequence[int], *, rank: int = 0, world_size: int = 1, seconds: float = 0.5) -> None:
    drawer = parts.Drawer(rank=rank, world_size=world_size, device="cpu", attention="sdpa")
    with parts.BatchWriter(folder, threads=2, drawer=drawer) as writer:
        for batch in batches:
            writer.add(batch, draw(batch, seconds=seconds, failing=[1] if batch == 2 else []))


def planned(order: Sequence[int] = range(N_BATCHES)) -> list[str]:
    return [name for batch in order for name in ids_of(batch)]


def test_tables_hold_every_planned_row_once_and_the_parts_are_gone(tmp_path: Path) -> None:
    write(tmp_path, range(N_BATCHES))
    assert parts.finished_batches(tmp_path) == set(range(N_BATCHES))
    order = planned([3, 0, 4, 1, 2])
    images, account = parts.assemble(tmp_path, sample_ids=order, batches=range(N_BATCHES))
    assert images["sample_id"].tolist() == order
    assert (images["status"] == "error").sum() == account["failed"].sum() == 1
    assert account["images"].tolist() == [BATCH] * N_BATCHES
    assert account["seconds"].tolist() == pytest.approx([0.5 * BATCH] * N_BATCHES)
    made = images[images["status"] == "ok"]
    assert [hash_file(tmp_path / path) for path in made["path"]] == made["sha256"].tolist()
    assert sorted(file.name for file in tmp_path.iterdir()) == [parts.BATCHES, "images", parts.IMAGES]


def test_who_drew_and_how_long_it_took_changes_no_byte_of_images(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write(one, range(N_BATCHES))
    write(two, [4, 0], rank=1, world_size=2, seconds=9.0)
    write(two, [2, 1, 3], rank=0, world_size=3)
    for folder in (one, two):
        parts.assemble(folder, sample_ids=planned(), batches=range(N_BATCHES))
    assert (one / parts.IMAGES).read_bytes() == (two / parts.IMAGES).read_bytes()
    assert (one / parts.BATCHES).read_bytes() != (two / parts.BATCHES).read_bytes()


def test_assembling_again_after_a_kill_reads_the_tables(tmp_path: Path) -> None:
    write(tmp_path, range(N_BATCHES))
    first = parts.assemble(tmp_path, sample_ids=planned(), batches=range(N_BATCHES))
    (tmp_path / parts.PARTS).mkdir()
    (tmp_path / parts.PARTS / "batch_000003.parquet").write_bytes(b"left behind")
    again = parts.assemble(tmp_path, sample_ids=planned(), batches=range(N_BATCHES))
    assert first[0].equals(again[0])
    assert first[1].equals(again[1])
    assert not (tmp_path / parts.PARTS).exists()


@pytest.mark.parametrize(("names", "words"), [
    (planned()[1:], "1 of 14 planned ids are missing, doubled or unknown, first 00"),
    ([*planned(), "ff"], "1 of 16 planned ids are missing, doubled or unknown, first ff"),
])
def test_ids_that_are_not_the_plans_are_refused(tmp_path: Path, names: list[str], words: str) -> None:
    write(tmp_path, range(N_BATCHES))
    with pytest.raises(TailfillError, match=words):
        parts.assemble(tmp_path, sample_ids=names, batches=range(N_BATCHES))
    assert len(parts.finished_batches(tmp_path)) == N_BATCHES
    assert not parts.is_assembled(tmp_path)


def test_doubled_ids_are_refused(tmp_path: Path) -> None:
    write(tmp_path, range(N_BATCHES))
    parts.part_file(tmp_path, 5).write_bytes(parts.part_file(tmp_path, 0).read_bytes())
    with pytest.raises(TailfillError, match="3 of 15 planned ids are missing, doubled"):
        parts.assemble(tmp_path, sample_ids=planned(), batches=range(6))


@pytest.mark.parametrize("content", [b"", b"PAR1 torn", None])
def test_a_part_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    write(tmp_path, range(N_BATCHES))
    file = parts.part_file(tmp_path, 3)
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(TailfillError, match=r"batch_000003\.parquet: is no readable part"):
        parts.assemble(tmp_path, sample_ids=planned(), batches=range(N_BATCHES))


def test_what_a_kill_left_half_written_is_overwritten(tmp_path: Path) -> None:
    write(tmp_path, [0])
    whole = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    for file in whole:
        file.unlink()
        file.with_name(f".{file.name}.partial").write_bytes(b"half")
    assert parts.finished_batches(tmp_path) == set()
    write(tmp_path, [0])
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == whole
