"""How long will a rehearsal take? Told before it starts, from a measurement of this machine.

A configuration says what each stage took where it was measured (``expected_seconds``) and how long a reference
operation took there (``rehearsal.reference_seconds``). The same operation is timed here, and the stages that are left
are told in its proportion; where stages of its kind have already run in this rehearsal, their pace is taken. Right
within a factor of two where the machine's load does not change; not promised on a machine that is busy now and free
later.
"""

import statistics
import time
from collections import Counter
from collections.abc import Mapping

import torch
from experiment import is_done
from experiment_config import Experiment
from rehearsal_runs import Rehearsal, base_config, child_config, steps_of
from torch import nn

from classify.rehearsal.choices import list_cells
from cohort.errors import TailfillError
from cohort.pipeline import read_stamp
from cohort.tables import load_cohort

REPEATS = 5
"""Timings of the reference operation, of which the median counts."""
SHAPE = (16, 32, 32, 32)
"""Batch, channels, height and width: like a step of a small U-Net at 128 px."""


def time_reference(threads: int) -> float:
    """Seconds of ten forward and backward passes of three convolutions on ``threads`` threads: median of five."""
    torch.set_num_threads(threads)
    channels = SHAPE[1]
    network = nn.Sequential(*(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3)))
    images = torch.ones(SHAPE)
    seconds = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        for _ in range(10):
            network(images).square().mean().backward()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])  # the first one warms up


def foresee(
    left: Mapping[str, int], *, spent: Mapping[str, list[tuple[float, float | None]]], expected: Mapping[str, float],
    pace: float
) -> tuple[float, list[str]]:
    """Seconds of the steps that are ``left`` (kind to number), and the kinds of which nothing is known.

    ``spent``: kind to what finished steps of it took here and what was expected of them; ``expected``: seconds of a
    step elsewhere; ``pace``: this machine's seconds per second there, for kinds of which none is finished.
    """
    each = {kind: statistics.fmean(took for took, _ in steps) for kind, steps in spent.items()}
    for kind, seconds in expected.items():
        paces = [took / wanted for took, wanted in spent.get(kind, []) if wanted]
        each[kind] = seconds * (statistics.fmean(paces) if paces else pace)
    return (sum(n * each.get(kind, 0.0) for kind, n in left.items()),
            sorted(kind for kind, n in left.items() if n and kind not in each))


def tell_time(rehearsal: Rehearsal) -> str:
    """What ``--dry-run`` prints: the runs, where they stand, and the time left.

    Raises ``TailfillError`` when the cohort is not prepared: which findings are thinned follows from its counts.
    """
    try:
        cohort = load_cohort(rehearsal.cohort_folder)
    except TailfillError as error:
        raise TailfillError(f"{error} (the runs follow from the cohort's counts, so prepare it first)") from error
    cells = list_cells(cohort, rehearsal.section)
    plans = [(f"run {cell.name}: {', '.join(cell.findings)} at {cell.level} positives", child_config(rehearsal, cell))
             for cell in cells]
    if rehearsal.needs_base:
        plans.insert(0, ("what all runs share", base_config(rehearsal)))
    lines, spent = list[str](), dict[str, list[tuple[float, float | None]]]()
    left: list[tuple[dict[str, int], dict[str, float]]] = []
    for title, config in plans:
        experiment = Experiment(config=config, endpoint={}, processes=rehearsal.processes, dry_run=True)
        steps = steps_of(config, rehearsal, base=config["run"] == str(rehearsal.base))
        done = [step for step in steps if is_done(step, experiment)]
        expected = config["expected_seconds"]
        for step in done:
            seconds = float((read_stamp(step.folder) or {}).get("seconds", 0.0))
            spent.setdefault(step.kind, []).append((seconds, expected.get(step.kind)))
        left.append((Counter(step.kind for step in steps if step not in done), expected))
        lines.append(f"{title}: {len(done)} of {len(steps)} stages done")
    measured, reference = time_reference(int(rehearsal.config["threads"])), rehearsal.section.reference_seconds
    told = [foresee(kinds, spent=spent, expected=expected, pace=measured / reference if reference else 1.0)
            for kinds, expected in left]
    unknown = sorted({kind for _, kinds in told for kind in kinds})
    lines.append(f"reference operation: {measured:.3f} s here" + (f", {reference:.3f} s where expected_seconds were "
                                                                  "measured" if reference else ""))
    if unknown:
        lines.append(f"of unknown length, not counted: {', '.join(unknown)} (expected_seconds has no such key)")
    return "\n".join([*lines, f"about {sum(seconds for seconds, _ in told) / 60:.0f} minutes left"]) + "\n"
