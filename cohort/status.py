"""The ``tailfill`` command: the pipeline on one page, and where a run stands.

::

    tailfill                 the stages, one line each with its command
    tailfill status RUN      per stage: complete, stale, begun or missing; counts; time; the next command to type

What a run still needs is read from its ``config.yaml``, which ``scripts/experiment.py`` writes; without it, only the
folders that exist are known.
"""

import argparse
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from cohort.config import load_yaml
from cohort.errors import TailfillError, run_command
from cohort.pipeline import (
    FILLED,
    OPTIONAL,
    STAGES,
    StageEntry,
    arm_steps,
    critics_of,
    folder_state,
    read_stamp,
    stage_folders,
)


def needed_folders(run: Path, entry: StageEntry, config: dict[str, Any]) -> list[Path]:
    """The folders that a complete run has of a stage: those its configuration asks for, and any others that exist."""
    if "SEED" in entry.folder:
        wanted = [entry.folder.replace("ARM", arm).replace("SEED", str(seed))
                  for stage, arm, seed in arm_steps(config) if stage == entry.name]
    elif "CRITIC" in entry.folder:
        wanted = [entry.folder.replace("ARM", arm).replace("CRITIC", str(seed)) for arm, seed in critics_of(config)]
    elif entry.name in OPTIONAL:
        wanted = [entry.folder] if entry.name in config else []
    elif entry.name in FILLED and "fill" in config:
        wanted = []
    elif entry.name == "finetune" and entry.name not in config and (config.get("generate") or {}).get("pipeline"):
        wanted = []  # the generator is taken as it is
    else:
        wanted = [config.get("cohort") or entry.folder if entry.name == "prepare" else entry.folder]
    return list(dict.fromkeys([*(run / name for name in wanted), *stage_folders(run, entry)]))


def summarise(folders: list[Path], states: list[str]) -> tuple[str, str, float]:
    """State in words, counts and seconds of a stage's folders, added up where it has several."""
    stamps = [stamp for folder in folders if (stamp := read_stamp(folder)) is not None]
    counts: Counter[str] = Counter()
    for stamp in stamps:
        counts.update({key: value for key, value in stamp.get("counts", {}).items() if isinstance(value, int)})
    several = bool(folders) and folders[0].name.startswith("seed_")
    state = "".join(states) if not several else ", ".join(
        f"{n} {word}" if word != "complete" else f"{n}/{len(states)} complete" for word, n in Counter(states).items())
    shown = " ".join(f"{key}={value:,}" for key, value in counts.items())
    return state or "not needed", shown, sum(stamp.get("seconds", 0.0) for stamp in stamps)


def next_command(run: Path, entry: StageEntry, folder: Path, config: Path) -> str:
    """What to type to make ``folder``: the stage's command with its placeholders filled in."""
    *_, arm, seed = ("", *folder.parts)
    command = entry.command.replace("ARM", arm)
    command = re.sub("SEED|CRITIC", seed.removeprefix("seed_"), command)
    command = re.sub(r" C\b", lambda _: f" {config if config.is_file() else 'CONFIG.yaml'}", command)
    return command.replace("RUN", str(run))


def print_pipeline() -> None:
    """Print the stages in order, one line each."""
    width = max(len(stage.command) for stage in STAGES)
    sys.stdout.write("RUN: an experiment's folder; C: its YAML; ARM, SEED: of its arms, seeds; CRITIC: 1000 and up\n\n")
    for stage in STAGES:
        sys.stdout.write(f"{stage.name:12} {stage.command:{width}}  -> {stage.folder}: {stage.row}\n")
    sys.stdout.write("\nall of them  python scripts/experiment.py C\n")


def print_status(run: Path) -> None:
    """Print where ``run`` stands and the next command."""
    if not run.is_dir():
        raise TailfillError(f"{run}: is no folder; wanted: the folder of a run")
    file = run / "config.yaml"
    config = load_yaml(file) if file.is_file() else {}
    upcoming = ""
    for stage in STAGES:
        folders = needed_folders(run, stage, config)
        states = [folder_state(folder) for folder in folders]
        state, counts, seconds = summarise(folders, states)
        sys.stdout.write(f"{stage.name:12} {state:32} {seconds / 60:6.1f} min  {counts}\n")
        unmade = [(folder, state) for folder, state in zip(folders, states, strict=True) if state != "complete"]
        if unmade and not upcoming:
            folder, state = unmade[0]
            upcoming = next_command(run, stage, folder, file)
            if state == "stale":  # a stage never overwrites
                upcoming = f"an input of {folder} has changed: move it away, then {upcoming}"
    if not upcoming:
        sys.stdout.write(f"\ncomplete: open {run / 'report' / 'report.html'}\n")
        return
    name = file if file.is_file() else "CONFIG.yaml"
    sys.stdout.write(f"\nnext: {upcoming}\n  or: python scripts/experiment.py {name}\n")


def main() -> None:
    """``tailfill`` and ``tailfill status RUN``."""
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(prog="tailfill", description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("status", help="where a run stands").add_argument("run", type=Path)
    options = parser.parse_args()
    run_command(print_pipeline if options.command is None else lambda: print_status(options.run))


if __name__ == "__main__":
    main()
