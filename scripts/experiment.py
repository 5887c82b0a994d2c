"""A whole experiment: every stage, all arms and seeds, in order. Safe to run again at any time.

Each stage is a process of its own that reads ``RUN/config.yaml``, the resolved configuration, which is written first.
Beside it ``RUN/endpoint.json`` fixes what will be compared before any test prediction exists; a configuration that says
otherwise later is refused. Complete stages are not started again, unfinished ones go on, and the first that fails ends
the experiment with its own one-line error and exit code. What a stage prints is in ``RUN/logs``.

Not promised: that the time left is right. It is the mean time of this run's stages of the same kind or, for a kind that
has not run yet, what the configuration expects of it at the pace of this machine. ``--dry-run`` shows the stages, and
what they will cost (``experiment_costs``), also before the images are there.

::

    python scripts/experiment.py configs/debug.yaml [--train.steps 50] [--dry-run] [--processes 2]
"""

import logging
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment_config import FURTHER, SCHEMAS, Experiment, fix_endpoint, read_experiment
from experiment_costs import Job, check_disk, print_costs
from experiment_processes import run_forked, run_interruptible, run_launched, sole_owner

from cohort.errors import TailfillError
from cohort.pipeline import FOLDERS, arm_steps, critics_of, is_made_from, read_stamp

log = logging.getLogger(__name__)

LAUNCHED = ("autoencoder", "finetune", "generate", "filter", "train", "predict")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One stage, of one arm and seed where it has them."""

    stage: str
    folder: Path
    arm: str | None = None
    seed: int | None = None

    @property
    def kind(self) -> str:
        """The name in ``STAGES``: steps of one kind take about the same time."""
        return "critic" if self.stage == "train" and self.seed is not None and self.seed >= 1000 else self.stage

    def __str__(self) -> str:
        return self.stage if self.arm is None else f"{self.stage} {self.arm} seed {self.seed}"


def list_steps(config: dict[str, Any]) -> Iterator[Step]:
    """The stages in order: what all arms share, then all the arms, seed by seed."""
    run = Path(config["run"])

    def step(stage: str, arm: str | None = None, seed: int | None = None) -> Step:
        folder = FOLDERS[stage].replace("ARM", str(arm)).replace("SEED", str(seed))
        return Step(stage=stage, folder=run / folder, arm=arm, seed=seed)

    if "prepare" in config:
        yield Step(stage="prepare", folder=Path(config["cohort"] or run / "cohort"))
    fills = "fill" in config
    for stage in ("oracle", "external", *(() if fills else ("plan",))):
        if stage in config:
            yield step(stage)
    for arm, seed in critics_of(config):
        yield step("train", arm, seed)
    for stage in ("autoencoder", "finetune", "reconstruct", *(("fill",) if fills else ("generate", "filter"))):
        if stage in config:
            yield step(stage)
    for stage, arm, seed in arm_steps(config):
        yield step(stage, arm, seed)
    yield step("compare")
    yield step("report")


def is_done(step: Step, experiment: Experiment) -> bool:
    """Whether a step's stamp is there, fresh and of its settings; a member's training has some of its own."""
    settings = experiment.config[step.stage]
    if step.stage == "train" and step.arm is not None:
        settings = settings | experiment.config["members"].get(step.arm.partition("@")[2], {})
        if isinstance(settings["pretrained"], str):  # a stamp's settings hold whether, its inputs which
            file = (read_stamp(step.folder) or {"inputs": {}})["inputs"].get("pretrained", {}).get("path")
            settings = settings | {"pretrained": file == str(Path(settings["pretrained"]).resolve())}
    return is_made_from(step.folder, settings)


def words_of(step: Step, experiment: Experiment) -> list[str]:
    """The module of a step and its arguments."""
    arm = [] if step.arm is None else ["--arm", step.arm, "--arm-seed", str(step.seed)]
    more = ["--role", step.stage] if step.stage in FURTHER else (
        ["--processes", str(experiment.processes)] if step.stage == "fill" else [])
    return [SCHEMAS[step.stage].partition(":")[0], "--config", str(experiment.folder / "config.yaml"), *more, *arm]


def run_step(step: Step, experiment: Experiment, file: Path) -> None:
    """Run one stage, its output appended to ``file``; a failure ends the program with the stage's error and code."""
    start = file.stat().st_size if file.exists() else 0
    words = words_of(step, experiment)
    shared = experiment.processes > 1 and step.stage in LAUNCHED
    code = run_launched(words, experiment.processes, file) if shared else run_forked(words, file)
    if code:
        lines = [line for line in file.read_bytes()[start:].decode(errors="replace").splitlines() if line.strip()]
        told = next((line for line in reversed(lines) if line.startswith("error: ")), (lines or ["no output"])[-1])
        sys.stderr.write(f"error: {step}: {told.removeprefix('error: ')} (see {file})\n")
        if told.startswith("error: "):  # bad input; accelerate's launcher would turn its exit code 2 into a 1
            raise SystemExit(2)
        raise SystemExit(code if code > 0 else 128 - code)


def time_left(steps: list[Step], done: list[Step], expected: Mapping[str, float]) -> str:
    """How long ``steps`` take if each takes the mean time of its kind in ``done``.

    A kind that has not run yet takes what is ``expected`` of it, times the pace of this machine: the seconds that
    stages took here by those that were expected of them.
    """
    spent: dict[str, list[float]] = {}
    for step in done:
        spent.setdefault(step.kind, []).append((read_stamp(step.folder) or {"seconds": 0.0})["seconds"])
    foreseen = [(seconds, expected[kind]) for kind, all_of in spent.items() if kind in expected for seconds in all_of]
    pace = sum(seconds for seconds, _ in foreseen) / sum(wanted for _, wanted in foreseen) if foreseen else 1.0
    each = {kind: pace * seconds for kind, seconds in expected.items()}
    each |= {kind: sum(all_of) / len(all_of) for kind, all_of in spent.items()}
    minutes = sum(each.get(step.kind, 0.0) for step in steps) / 60
    unknown = sum(step.kind not in each for step in steps)
    return f"about {minutes:.0f} min left" + (f", {unknown} stages of unknown length not counted" if unknown else "")


def print_steps(experiment: Experiment, steps: list[Step]) -> None:
    """What ``--dry-run`` shows: every stage with its command, and whether it is done."""
    for number, step in enumerate(steps, start=1):
        state = "done" if is_done(step, experiment) else "to do"
        command = shlex.join(["python", "-m", *words_of(step, experiment)])
        sys.stdout.write(f"[{number}/{len(steps)}] {state:5}  {command}\n")


def as_jobs(experiment: Experiment, steps: list[Step]) -> list[Job]:
    """The steps as what their costs follow from."""
    return [Job(kind=step.kind, stage=step.stage, folder=step.folder, arm=step.arm, done=is_done(step, experiment))
            for step in steps]


def show_plan(experiment: Experiment, steps: list[Step], missing: list[str]) -> None:
    """``--dry-run``: stages, costs, what is not there yet; raises ``TailfillError`` when the disk lacks the space."""
    print_steps(experiment, steps)
    jobs = as_jobs(experiment, steps)
    sys.stdout.write("\n" + print_costs(jobs, experiment.config, processes=experiment.processes))
    for line in missing:
        sys.stdout.write(f"not there yet: {line}\n")
    check_disk(jobs, experiment.config, processes=experiment.processes)


def find_missing(config: Mapping[str, Any]) -> list[str]:
    """What the run needs of the user and does not find, one line each."""
    lines = []
    for section in ("prepare", *FURTHER):
        root = config.get(section, {}).get("root")
        if root is not None and not Path(root).is_dir():
            lines.append(f"{section}.root: {root} is no folder; wanted: a copy of the dataset in its own layout, or "
                         "toy images from: python scripts/make_debug_data.py data/debug")
    return lines


def run_all(experiment: Experiment, steps: list[Step]) -> None:
    """Run what is not done, one line before and one after each stage."""
    logs = experiment.folder / "logs"
    logs.mkdir(exist_ok=True)
    done: list[Step] = []
    for number, step in enumerate(steps, start=1):
        place = f"[{number}/{len(steps)}] {step}"
        if is_done(step, experiment):
            log.info("%s: complete", place)
        else:
            log.info("%s ...", place)
            started = time.monotonic()
            run_step(step, experiment, logs / f"{str(step).replace(' ', '_')}.log")
            left = time_left(steps[number:], [*done, step], experiment.config["expected_seconds"])
            log.info("%s: %.0f s, %s", place, time.monotonic() - started, left)
        done.append(step)


def main() -> None:
    """Check everything, fix what is to be compared, run what is missing."""
    experiment = read_experiment(sys.argv[1:], doc=__doc__)
    steps = list(list_steps(experiment.config))
    missing = find_missing(experiment.config)
    if experiment.dry_run:
        show_plan(experiment, steps, missing)
        return
    if missing:
        raise TailfillError(missing[0])
    with sole_owner(experiment.folder):
        fix_endpoint(experiment)
        run_all(experiment, steps)
    sys.stdout.write("\n" + (experiment.folder / "report" / "summary.txt").read_text(encoding="utf-8"))


if __name__ == "__main__":
    run_interruptible(main)
