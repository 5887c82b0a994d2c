"""What does each means of raising the recovered share give? Asked of a finished rehearsal, on validation images alone.

A means is one change of settings: how strongly words guide the generator, where an image starts, how long fine-tuning
lasts, which images are kept, how they are weighted. Each is tried on the very thinnings of the rehearsal: what it does
not touch is linked, what it touches is made anew by the same stages, below ``RUN/rehearsal/means``, and proved free of
withheld patients, but for the two that ask what knowing them would bring (scripts/rehearsal_changes.py). Its arms are
compared with their repeats and with the oracle on the *whole* validation split: at a tail's rarity the images that
stayed could not tell anything. The test split is not read. Interrupted, the same command goes on. Written at the end,
for each level::

    RUN/rehearsal/means/level_N.parquet    means x arm x finding: AP, gain over the rival, the oracle's, share, and
                                           how well the finding can be read in the images made

Not promised: that the best of many means is as good as it looks here, which is what the test split is kept for; and a
fair hearing for what learns from validation labels. Nobody but these two has learnt from withheld images, but the few
that stayed set the filter's thresholds, and critics of ``filter.folds`` learn from them.

::

    python scripts/rehearse.py configs/rehearse_nih128.yaml
    python scripts/rehearsal_means.py configs/rehearse_nih128.yaml --means base guidance_2.5 [--level 20] [--n-seeds 3]
"""

import logging
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from experiment import list_steps, run_all
from experiment_config import Experiment, read_experiment
from experiment_processes import run_interruptible, sole_owner
from rehearsal_changes import BASE, BOTH, MEANS, arms_of, merge, shown_arms, untouched
from rehearsal_gains import READER, drawn_in, measure, tabulate
from rehearsal_runs import Rehearsal, child_config, need_reconstruction, open_rehearsal

from classify.comparison.pairs import RIVALS
from classify.rehearsal.choices import Cell, choose_levels, list_cells
from classify.rehearsal.shares import RIVAL
from cohort.errors import TailfillError, nearest
from cohort.pipeline import read_stamp
from cohort.stage import require, write_atomically
from cohort.tables import load_cohort, write_table
from cohort.withholding.proof import prove_apart

log = logging.getLogger(__name__)

LEARNT = ("plan", "train", "finetune", "reconstruct", "generate", "filter", "arm")
"""Stages before predictions, which would be of the test split."""


def parse(arguments: Sequence[str] | None = None) -> tuple[Namespace, list[str]]:
    """The command line, and the words that change the configuration; raises ``TailfillError`` for a value out of range.
    """
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("config", type=Path, help="the rehearsal's YAML, whose runs are complete")
    parser.add_argument("--means", nargs="+", default=list(MEANS), help="some of them; all where left out")
    parser.add_argument("--level", type=int, help="positives that stay; the lowest level where left out")
    parser.add_argument("--n-seeds", type=int, help="thinnings, 2 or more; all where left out")
    parser.add_argument("--n-draws", type=int, default=1000, help="resamples of the validation patients, 100 or more")
    options, words = parser.parse_known_args(arguments)
    for name in options.means:
        if name not in MEANS:
            raise TailfillError(f"--means: unknown means '{name}'{nearest(name, list(MEANS))}")
    if options.n_draws < 100:
        raise TailfillError(f"--n-draws is {options.n_draws}; wanted: 100 or more")
    if "--dry-run" in words:
        raise TailfillError("--dry-run: nothing to show here; wanted: without it, or of scripts/rehearse.py")
    return options, [str(options.config), *words]


def cells_of(rehearsal: Rehearsal, *, level: int | None, n_seeds: int | None) -> list[Cell]:
    """The runs at one level; raises ``TailfillError`` for a level or number that the rehearsal lacks."""
    cohort = load_cohort(rehearsal.cohort_folder)
    levels, seeds = choose_levels(cohort, rehearsal.section), rehearsal.section.seeds
    if level is not None and level not in levels:
        raise TailfillError(f"--level {level}: the rehearsal has {', '.join(map(str, levels))}")
    if n_seeds is not None and not 2 <= n_seeds <= seeds:
        raise TailfillError(f"--n-seeds is {n_seeds}; wanted: 2 to {seeds}, the rehearsal's thinnings")
    chosen = levels[0] if level is None else level
    return [cell for cell in list_cells(cohort, rehearsal.section)
            if cell.level == chosen and cell.seed < (n_seeds or seeds)]


def config_of(rehearsal: Rehearsal, cell: Cell, name: str) -> dict[str, Any]:
    """One thinning's configuration with the changes of a means, and a run folder of its own."""
    config, arms, shown = child_config(rehearsal, cell), arms_of(name, rehearsal), MEANS[name].arms[0]
    endpoint = {"compare": {"endpoint": {"arm": shown, "rival": RIVALS[shown]}}}
    folder = rehearsal.folder / "means" / name / cell.name
    merged = merge(config, MEANS[name].changes | endpoint) | {"run": str(folder), "arms": list(arms)}
    if "finetune" in merged["expected_seconds"]:
        merged["expected_seconds"]["finetune"] *= merged["finetune"]["steps"] / config["finetune"]["steps"]
    return {key: value for key, value in merged.items() if key != "reconstruct" or need_reconstruction(arms)}


def informed_config(rehearsal: Rehearsal, name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The run of a generator that has seen whatever thinnings withhold, and serves them all."""
    return {key: value for key, value in config.items() if key != "reconstruct"} | {
        "run": str(rehearsal.folder / "means" / name / "known"), "cohort": str(rehearsal.cohort_folder),
        "seed": rehearsal.config["seed"], "arms": [RIVAL, BOTH[0]]}


def check(rehearsal: Rehearsal, cells: Sequence[Cell], names: Sequence[str]) -> None:
    """Lay out every run; raise ``TailfillError`` for what would fail hours later: missing stages, illegal settings."""
    if not rehearsal.section.quick or "fill" in rehearsal.config:
        raise TailfillError("rehearsal.quick is false, or there is a section fill; wanted: heads on features "
                            "(rehearsal.quick: true), and generate with filter")
    read = [f"train/{READER}/seed_0"] if READER in rehearsal.section.arms else []
    for name, cell in product(names, cells):
        for place in [*untouched(name, rehearsal), *read]:
            source = rehearsal.folder / cell.name / place
            if place != "cache" and read_stamp(source) is None:
                raise TailfillError(f"{source}: is no complete stage, which '{name}' needs; wanted: a complete "
                                    "rehearsal (scripts/rehearse.py) with this arm")
        lay_out(rehearsal, cell, name)


def link(targets: Mapping[str, Path], *, folder: Path) -> None:
    """Link each name below ``folder`` to its target; raises ``TailfillError`` for links to others."""
    wanted = {folder / name: target for name, target in targets.items()}
    for place in [place for place in folder.rglob("*") if place.is_symlink()]:
        if place not in wanted or place.resolve() != wanted[place].resolve():
            raise TailfillError(f"{place}: is a link of other settings; wanted: remove {folder} and run again")
    for place, target in wanted.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.is_symlink():
            place.symlink_to(target)


def write_config(config: Mapping[str, Any], processes: int) -> Experiment:
    """Write a configuration into its run folder and check it; raises ``TailfillError`` as an experiment would."""
    file = Path(config["run"]) / "config.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, yaml.safe_dump(dict(config), sort_keys=False).encode())
    return read_experiment([str(file), "--processes", str(processes)], doc=__doc__)


def lay_out(rehearsal: Rehearsal, cell: Cell, name: str) -> list[Experiment]:
    """Link what a means does not touch in one thinning; what is to run, the thinning's own experiment last."""
    config = config_of(rehearsal, cell, name)
    folder, source = Path(config["run"]), rehearsal.folder / cell.name
    configs, targets = [config], {place: source / place for place in untouched(name, rehearsal)}
    if MEANS[name].informed:
        configs.insert(0, informed_config(rehearsal, name, config))
        targets["generator"] = Path(configs[0]["run"]) / "generator"
    link(targets, folder=folder)
    return [write_config(one, rehearsal.processes) for one in configs]


def run_means(rehearsal: Rehearsal, cell: Cell, name: str) -> Path:
    """Make what a means changes in one thinning, and train its arms; the folder.

    Raises ``TailfillError`` where a withheld patient has reached it unasked.
    """
    *informed, experiment = lay_out(rehearsal, cell, name)
    for known in informed:
        run_all(known, [step for step in list_steps(known.config) if step.stage == "finetune"])
    wanted = [stage for stage in LEARNT if stage != "finetune" or not informed]
    run_all(experiment, [step for step in list_steps(experiment.config) if step.stage in wanted])
    if not MEANS[name].knows_withheld:
        source = rehearsal.folder / cell.name
        prove_apart([experiment.folder], thinned=load_cohort(source / "cohort"),
                    withheld=load_cohort(source / "oracle"),
                    thinned_hash=require(source / "cohort", "cohort")["output_hash"])
    return experiment.folder


def main() -> None:
    """Make, train, measure."""
    options, words = parse()
    rehearsal = open_rehearsal(read_experiment(words, doc=__doc__))
    names = list(dict.fromkeys([BASE, *options.means]))
    with sole_owner(rehearsal.folder):
        cells = cells_of(rehearsal, level=options.level, n_seeds=options.n_seeds)
        check(rehearsal, cells, names)
        folders: dict[tuple[str, ...], dict[str, list[Path]]] = {}
        for name in names:
            for cell in cells:
                log.info("%s, %s:", name, cell.name)
                folders.setdefault(cell.findings, {}).setdefault(name, []).append(run_means(rehearsal, cell, name))
        torch.set_num_threads(int(rehearsal.config["threads"]))  # not before: forks would lose torch's threads
        cohort = load_cohort(rehearsal.cohort_folder)
        arms, shown = ({name: of(name, rehearsal) for name in names} for of in (arms_of, shown_arms))
        tables = []
        for findings, one in folders.items():
            source = measure(one, arms, cohort, findings, n_draws=options.n_draws)
            drawn = {name: drawn_in(one[name], [cell for cell in cells if cell.findings == findings], rehearsal, cohort)
                     for name in names}
            tables.append(tabulate(source, shown, drawn).assign(findings=", ".join(findings)))
        table = pd.concat(tables, ignore_index=True)
        write_table(table, rehearsal.folder / "means" / f"level_{cells[0].level}.parquet")
    sys.stdout.write(table.to_string(index=False, float_format=lambda value: f"{value:+.4f}") + "\n")


if __name__ == "__main__":
    run_interruptible(main)
