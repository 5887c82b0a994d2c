"""Is the instrument calibrated? The statistics of ``compare`` on thousands of experiments whose truth is known.

Everything happens on features of a frozen backbone, where a model is a linear head and costs a thirtieth of a second:
the statistics are what is tested, and they cannot tell. The project's own functions deal the slots, order and train the
heads, resample the patients, make the intervals and give the verdicts. Shown are

    A/A          the same arm twice, no model shared between comparisons: does the interval cover 0 in 93 to 97 %?
    oracle       new real images against repeats: does it cover the true, non-zero delta as often?
    planted      sets of images that help, do nothing, or are wrong: how often is the verdict right, and does the
                 filter catch the wrong ones?
    controls     labels without a visible sign: a significant gain in 5 % of the comparisons at most

OUT gets a table per question and one per kind of row (parquet), ``calibration.md`` with the former, and the phantom's
images and features, which are made once. Not promised: anything about a classifier that is trained whole, whose seeds
differ by more.

    python scripts/calibrate.py --out OUT [--backbone models/backbone] [--processes 2] [--quick]
"""

import argparse
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch
from calibration_cases import PLANTED
from calibration_pools import PoolSizes, make_pools, open_studio
from calibration_slots import RIVAL
from calibration_summary import as_markdown, controls, coverage, filtering, recovered, verdicts
from calibration_trials import AGAIN, Bench, Settings, Tables, Trial, make_bench
from tqdm import tqdm

from cohort.errors import run_command
from cohort.stage import write_atomically
from cohort.tables import write_table

log = logging.getLogger(__name__)

HEADS = 80
"""Models trained in one loop; more would leave a core's cache."""
_bench: list[Bench] = []  # what a process works with


@dataclass(frozen=True, kw_only=True)
class Repetitions:
    """How many trials of each kind."""

    same: int = 2000
    """The arm ``duplicate`` against itself."""
    same_filled: int = 200
    """The same for slots that hold other images with every seed."""
    oracle: int = 800
    planted: int = 40
    """Of every planted set, as made and filtered."""
    truth: int = 12
    """Per cohort, five seeds each, on the whole population."""


def plan_trials(repetitions: Repetitions, sets: Sequence[str], n_cohorts: int) -> list[Trial]:
    """Every trial; cohorts take turns."""
    everything = (RIVAL, "oracle", *sets)
    kinds = [("A/A", repetitions.same, (RIVAL, AGAIN), False),
             ("A/A, new images", repetitions.same_filled, (next(iter(PLANTED)), AGAIN), False),
             ("oracle", repetitions.oracle, (RIVAL, "oracle"), False),
             ("planted", repetitions.planted, everything, False),
             ("truth", repetitions.truth * n_cohorts, everything, True)]
    return [Trial(part=part, number=number, cohort=number % n_cohorts, arms=arms, on_population=truth)
            for part, count, arms, truth in kinds for number in range(count)]


def in_units(trials: Sequence[Trial]) -> Iterator[list[Trial]]:
    """Trials whose heads are trained together: of one kind, about ``HEADS`` heads."""
    unit: list[Trial] = []
    for trial in trials:
        if unit and (trial.part != unit[0].part or sum(one.heads for one in unit) + trial.heads > HEADS):
            yield unit
            unit = []
        unit.append(trial)
    if unit:
        yield unit


def run_trials(bench: Bench, trials: Sequence[Trial], *, processes: int) -> dict[str, pd.DataFrame]:
    """The tables of all trials."""
    units, tables = list(in_units(trials)), Tables()
    bar = tqdm(total=sum(trial.heads for trial in trials), desc="heads", unit="head", mininterval=1.0)
    with bar, ProcessPoolExecutor(processes, get_context("spawn"), initializer=_start, initargs=(bench,)) as pool:
        for unit, found in zip(units, pool.map(_run, units) if processes > 1 else map(bench.run, units), strict=True):
            for name, rows in found.items():
                tables.setdefault(name, []).extend(rows)
            bar.update(sum(trial.heads for trial in unit))
    return {name: pd.DataFrame(rows) for name, rows in tables.items()}


def _start(bench: Bench) -> None:
    torch.set_num_threads(1)
    _bench[:] = [bench]


def _run(unit: list[Trial]) -> Tables:
    return _bench[0].run(unit)


def summarise(tables: dict[str, pd.DataFrame], bench: Bench) -> dict[str, pd.DataFrame]:
    """What is shown, by name."""
    truth = tables["truth"]
    return {"coverage": coverage(tables["intervals"], truth), "verdicts": verdicts(tables["verdicts"], truth),
            "recovered": recovered(tables["recovered"], truth), "controls": controls(tables["controls"]),
            "filter": filtering(bench.dealer.sets)}


def write_tables(tables: dict[str, pd.DataFrame], folder: Path) -> None:
    """One Parquet file per table."""
    for name, table in tables.items():
        write_table(table, folder / f"{name}.parquet")


def main() -> None:
    """Make the pools, run all trials, summarise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for everything")
    parser.add_argument("--backbone", type=Path, default=Path("models/backbone"), help="folder of the frozen backbone")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="another one draws other people and other trials")
    parser.add_argument("--quick", action="store_true", help="a few of everything, to see that it runs")
    options = parser.parse_args()
    begun = time.monotonic()
    sizes, repetitions, settings = PoolSizes(), Repetitions(), Settings(seed=options.seed)
    if options.quick:
        sizes = PoolSizes(cohorts=2, cohort_images=400, new_images=80, copies=2, test_images=300)
        repetitions = Repetitions(same=4, same_filled=2, oracle=2, planted=1, truth=1)
        settings = Settings(seed=options.seed, steps=20, slots_per_class=6, test_patients=100, n_draws=100)
    pools = make_pools(open_studio(options.out, options.backbone, processes=options.processes), sizes,
                       seed=options.seed)
    log.info("calibrate: %d images after %.0f s", len(pools.features), time.monotonic() - begun)
    bench = make_bench(pools, settings)
    trials = plan_trials(repetitions, list(bench.dealer.sets[0]), sizes.cohorts)
    tables = run_trials(bench, trials, processes=options.processes)
    write_tables({f"trials_{name}": table for name, table in tables.items()}, options.out)
    shown = summarise(tables, bench)
    write_tables(shown, options.out)
    text = "\n\n".join(f"## {name}\n\n{as_markdown(table)}" for name, table in shown.items()) + "\n"
    write_atomically(options.out / "calibration.md", text.encode())
    sys.stdout.write(text)
    log.info("calibrate: %d heads, %.0f s", sum(trial.heads for trial in trials), time.monotonic() - begun)


if __name__ == "__main__":
    run_command(main)
