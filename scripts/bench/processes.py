"""What several processes cost: their throughput against one process with the same total of CPU threads.

As in ``accelerate launch synth/generate.py``, rank r of w draws every w-th logical batch. One process with all threads
and several with their share each draw the same batches in turns, round by round; all processes stand loaded and warmed
up before the first one. ``efficiency`` is the ratio of the throughputs in a round: 1 says that processes cost nothing.
``imbalance`` is the time between the first rank's end and the last one's, in batches of that rank.

::

    python scripts/bench/processes.py --processes 2 --threads 2 --batches 6

Not promised: anything about loading, which each process does for itself, nor about GPUs.
"""

import argparse
import itertools
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from generate_inputs import plan_rows
from generate_ways import Job, Tailfill

from synth.drawing.pipelines import DECODE_BATCH

GENERATOR = Path(__file__).parents[2] / "models" / "generator"
Span = tuple[float, float, int]
"""When a rank began and ended, in seconds of the machine's clock, and how many batches it drew."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", type=Path, default=GENERATOR, help="folder of a diffusers pipeline")
    parser.add_argument("--processes", type=int, default=2, help="processes that are compared with one")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of all processes together")
    parser.add_argument("--batches", type=int, default=4, help="logical batches of a round; a multiple is balanced")
    parser.add_argument("--batch", type=int, default=16, help="images of a logical batch")
    parser.add_argument("--steps", type=int, default=15, help="denoising steps")
    parser.add_argument("--rounds", type=int, default=3, help="rounds")
    return parser.parse_args(arguments)


def work(rank: int, world: int, options: argparse.Namespace, folder: Path, orders: Connection) -> None:
    """A process: load, warm up, then draw this rank's batches whenever told to, and tell when that was."""
    torch.set_num_threads(max(1, options.threads // world))
    rows = plan_rows(options.batches * options.batch)
    job = Job(folder=options.pipeline, device=torch.device("cpu"), scheduler="dpm++", steps=options.steps, scale=2.5,
              batch=options.batch, precision="no")
    way = Tailfill(name=str(rank), job=job, rows=rows, interval=(0.2, 0.8), options={
        "attention": "sdpa", "channels_last": True, "compiled": False, "decode_batch": DECODE_BATCH})
    way.draw(rows[:options.batch], folder / "warm_up")
    mine = [rows[start:start + options.batch] for start in range(0, len(rows), options.batch)][rank::world]
    orders.send(None)
    while orders.recv():
        began = time.monotonic()
        for batch in mine:
            way.draw(batch, folder)
        orders.send((began, time.monotonic(), len(mine)))


def draw(ranks: list[Connection]) -> list[Span]:
    """Have every rank draw its batches at once; when each began and ended."""
    for orders in ranks:
        orders.send(True)
    return [orders.recv() for orders in ranks]


def main(arguments: Sequence[str] | None = None) -> None:
    """Start all processes, let one and several draw in turns, tell the ratios."""
    options, start = parse(arguments), multiprocessing.get_context("spawn")
    groups: dict[int, list[Connection]] = {1: [], options.processes: []}
    running = []
    with tempfile.TemporaryDirectory() as out:
        for world, ranks in groups.items():
            for rank in range(world):
                here, there = start.Pipe()
                place = Path(out) / f"{rank}_of_{world}"
                running.append(start.Process(target=work, args=(rank, world, options, place, there), daemon=True))
                running[-1].start()
                here.recv()  # one after the other: memory and disk are shared while they load
                ranks.append(here)
        efficiencies, imbalances = [], []
        for _ in range(options.rounds):
            spans = {world: draw(ranks) for world, ranks in groups.items()}
            took = {world: max(end for _, end, _ in each) - min(began for began, _, _ in each)
                    for world, each in spans.items()}
            efficiencies.append(took[1] / took[options.processes])
            ends = sorted(spans[options.processes], key=lambda span: span[1])
            began, end, n_batches = ends[-1]
            imbalances.append((end - ends[0][1]) / ((end - began) / n_batches))
            n_images = options.batches * options.batch
            sys.stdout.write(f"one process {n_images / took[1]:.2f} images/s, {options.processes} processes "
                             f"{n_images / took[options.processes]:.2f}\n")
        for orders in itertools.chain(*groups.values()):
            orders.send(False)
        for process in running:
            process.join()
    sys.stdout.write(f"{options.processes} processes, {options.threads} threads in all: efficiency "
                     f"{statistics.median(efficiencies):.2f} [{min(efficiencies):.2f} to {max(efficiencies):.2f}], "
                     f"imbalance {statistics.median(imbalances):.2f} batches (at most {max(imbalances):.2f})\n")


if __name__ == "__main__":
    main()
