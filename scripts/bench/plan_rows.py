"""What generation costs per image besides drawing it, for plans of 1,000 to 1,000,000 rows: it must not grow.

::

    python scripts/bench/plan_rows.py [--rows 1000 10000 100000 1000000]

Microseconds of processor time per row (of all threads and of the system, so that others on the machine do not count)
and, in brackets, the ratio to the shortest plan's. Parts are faked, so nothing is drawn; batches of 16.

    read       the plan, with its hash and schema
    texts      its distinct ones
    start      rows and batches of a fresh start
    restart    the same when all but one batch in a hundred are finished
    batch      PNGs (16 px) and part of one batch beside all the others: the only one that is paid while drawing
    assemble   parts to tables, checked, and the parts removed

Not promised: what waiting for a disk adds.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cohort.config import Run
from cohort.stage import Stage
from cohort.tables import plan_schema, write_table
from synth.drawing.parts import BatchWriter, Drawer, assemble, image_path, part_file, write_part
from synth.drawing.planned import asked_texts, batches_left, read_plan, rows_by_batch
from synth.drawing.sampling import Drawn

LABELS, BATCH, SIDE, LEFT, AGAIN = ["Hernia", "Effusion"], 16, 16, 100, 20
DRAWER = Drawer(rank=0, world_size=1, device="cpu", attention="sdpa")


def write_plan(run: Path, n_rows: int) -> None:
    """A complete plan stage of ``n_rows`` rows with 300 prompts."""
    row = np.arange(n_rows)
    plan = pd.DataFrame({
        "sample_id": [f"{i * 37 % 256:02x}{i:014x}" for i in row],
        "prompt": [f"chest radiograph {i % 300}" for i in row],
        "negative_prompt": "", "Hernia": 1, "Effusion": 0, "view": "PA", "age": 50.0, "sex": "F",
        "charged_to": "Hernia", "label_source_id": None, "init_image_id": None, "strength": None, "seed": row,
        "batch": row // BATCH, "round": 0,
    })
    stage = Stage("plan", run / "plan", config={}, inputs={})
    stage.begin()
    write_table(plan, run / "plan" / "plan.parquet", plan_schema(LABELS))
    stage.finish(outputs=["plan.parquet"], counts={"planned": n_rows})


def fake_part(folder: Path, batch: int, sample_ids: list[str]) -> None:
    """The part of a batch whose images nobody has drawn."""
    write_part(folder, batch, [
        {"sample_id": name, "status": "ok", "error": None, "path": image_path(name), "sha256": f"{batch:064x}",
         "height": SIDE, "width": SIDE, "micro_batch": BATCH, "batch": batch, "seconds": 1.0, "rank": 0,
         "world_size": 1, "device": "cpu", "attention": "sdpa"} for name in sample_ids
    ])


def write_batches(folder: Path, batches: dict[int, list[str]]) -> None:
    """Write some batches as drawing does."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    with BatchWriter(folder, threads=2, drawer=DRAWER) as writer:
        for batch, names in batches.items():
            writer.add(batch, [Drawn(sample_id=name, pixels=pixels, error=None, seconds=1.0, micro_batch=BATCH)
                               for name in names])


def microseconds(function: Callable[[], Any], n_rows: int, *, repeats: int = 1) -> tuple[float, Any]:
    """Median processor time of a call per row, and what it returned last."""
    took, result = [], None
    for _ in range(repeats):
        began = time.process_time()
        result = function()
        took.append(time.process_time() - began)
    return 1e6 * statistics.median(took) / n_rows, result


def measure(run: Path, n_rows: int) -> dict[str, float]:
    """Microseconds per row of each step, for a plan of ``n_rows``."""
    write_plan(run, n_rows)
    folder, repeats, found = run / "images", 5 if n_rows <= 10_000 else 1, {}
    found["read"], plan = microseconds(lambda: read_plan(Run(run=str(run)), LABELS, None), n_rows, repeats=repeats)
    found["texts"], _ = microseconds(lambda: asked_texts(plan), n_rows, repeats=repeats)
    found["start"], batches = microseconds(lambda: rows_by_batch(plan, batches_left(plan, folder)), n_rows,
                                           repeats=repeats)
    names = {batch: [row.sample_id for row in rows] for batch, rows in batches}
    for batch, ids in names.items():
        fake_part(folder, batch, ids)
    gone = list(names)[::LEFT]
    for batch in gone:
        part_file(folder, batch).unlink()
    found["restart"], _ = microseconds(lambda: rows_by_batch(plan, batches_left(plan, folder)), n_rows,
                                       repeats=repeats)
    for batch in gone:
        fake_part(folder, batch, names[batch])
    again = {batch: names[batch] for batch in list(names)[-AGAIN:]}
    found["batch"], _ = microseconds(lambda: write_batches(folder, again), sum(map(len, again.values())), repeats=5)
    found["assemble"], _ = microseconds(
        lambda: assemble(folder, sample_ids=plan["sample_id"].tolist(), batches=list(names)), n_rows)
    return found


def main() -> None:
    """Measure and print one line per length of plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    first: dict[str, float] = {}
    sizes = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), min(sizes))  # what is paid once in a process is not the shortest plan's
    for n_rows in sizes:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(Path(folder), n_rows)
        first = first or found
        told = ", ".join(f"{name} {value:.1f} ({value / first[name]:.2f})" for name, value in found.items())
        sys.stdout.write(f"{n_rows:>9,} rows, us per row: {told}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
