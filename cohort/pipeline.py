"""The stages in order: name, command, folder; and what the stamp in a folder says.

Stages meet only in folders of a run; this table is the one place that names them.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cohort.errors import TailfillError

STAMP = "_stage.json"
BEGUN = "_begun.json"


@dataclass(frozen=True, kw_only=True)
class StageEntry:
    """One line of the pipeline: its name, the command to type, the folder that it writes below the run's.

    In folder and command, ARM stands for any arm, SEED for an arm's seed (below 1000), CRITIC for one from 1000 on,
    which only the arms `real` and `fold` have. With members of an ensemble, ARM@MEMBER is one of an arm's models.
    """

    name: str
    command: str
    folder: str
    row: str


STAGES: tuple[StageEntry, ...] = (
    StageEntry(
        name="prepare", command="python -m cohort.prepare --config C", folder="cohort",
        row="a real image",
    ),
    StageEntry(
        name="oracle", command="python -m cohort.prepare --config C --role oracle", folder="oracle",
        row="(a new real image; only for the arm oracle)",
    ),
    StageEntry(
        name="external", command="python -m cohort.prepare --config C --role external", folder="external",
        row="(a real image of another site; only for the arm external)",
    ),
    StageEntry(name="plan", command="python -m prompts.plan --config C", folder="plan", row="an image to make"),
    StageEntry(
        name="autoencoder", command="accelerate launch synth/autoencoder.py --config C", folder="autoencoder",
        row="(weights; only for a generator from nothing, or one whose autoencoder is trained on)",
    ),
    StageEntry(
        name="finetune", command="accelerate launch synth/finetune.py --config C", folder="generator",
        row="(a diffusers pipeline)",
    ),
    StageEntry(
        name="generate", command="accelerate launch synth/generate.py --config C", folder="images",
        row="an image made, or its error",
    ),
    StageEntry(
        name="critic", command="accelerate launch classify/train.py --config C --arm ARM --arm-seed CRITIC",
        folder="train/ARM/seed_CRITIC", row="(weights of the filter's critics, and of the start that the arms share)",
    ),
    StageEntry(
        name="filter", command="accelerate launch synth/filter.py --config C", folder="synthetic",
        row="an image made: labels, scores, keep, reason",
    ),
    StageEntry(
        name="fill", command="python -m synth.fill --config C", folder="fill",
        row="(a class and round: budget, asked, accepted; plan, generate and filter, round after round)",
    ),
    StageEntry(
        name="reconstruct", command="accelerate launch synth/reconstruct.py --config C", folder="reconstructed",
        row="(a real image through the generator's autoencoder; only for arms -reconstructed and -harmonised)",
    ),
    StageEntry(
        name="arm", command="python -m classify.arm --config C --arm ARM --arm-seed SEED", folder="arms/ARM/seed_SEED",
        row="a training slot",
    ),
    StageEntry(
        name="train", command="accelerate launch classify/train.py --config C --arm ARM --arm-seed SEED",
        folder="train/ARM/seed_SEED", row="(weights)",
    ),
    StageEntry(
        name="predict", command="accelerate launch classify/predict.py --config C --arm ARM --arm-seed SEED",
        folder="predictions/ARM/seed_SEED", row="an image x label set: logits",
    ),
    StageEntry(
        name="ensemble", command="python -m classify.ensemble --config C --arm ARM --arm-seed SEED",
        folder="ensemble/ARM/seed_SEED", row="(the same, of several models made one; only with members or folds)",
    ),
    StageEntry(
        name="compare", command="python -m classify.compare --config C", folder="comparison",
        row="a class or group x metric x pair of arms",
    ),
    StageEntry(name="report", command="python -m classify.report --config C", folder="report", row="report.html"),
)

FOLDERS: dict[str, str] = {stage.name: stage.folder for stage in STAGES}
"""Stage name to its folder below the run's."""

OPTIONAL: tuple[str, ...] = ("oracle", "external", "autoencoder", "fill", "reconstruct")
"""Stages that only a run whose configuration has their section needs."""

FILLED: tuple[str, ...] = ("plan", "generate", "filter")
"""Stages that ``fill`` runs, where a configuration has it: nobody else may."""

FOLDS = range(2, 21)
"""Into how many folds train and validation can be dealt for critics that have not seen what they judge."""


def fold_seeds(n_folds: int) -> list[int]:
    """The seeds of arm `fold` for ``n_folds``, 0 for none: 1000 n + k learns from all of n folds but the k-th."""
    return [1000 * n_folds + k for k in range(n_folds)]


def member_names(arm: str, members: Iterable[str]) -> list[str]:
    """The models of an arm: ARM@MEMBER for each member of its ensemble, the arm itself where there is none."""
    return [f"{arm}@{member}" for member in members] or [arm]


def critics_of(config: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Arm and seed of each run from seed 1000 on that an experiment needs.

    The start of every model, then the filter's critics, then what out-of-fold predictions are made with.
    """
    train, judges, members = config.get("train", {}), config.get("filter", {}), config.get("members", {})
    starts = {name: members.get(name.partition("@")[2], {}).get("init_seed", train.get("init_seed"))
              for name in member_names("real", members)}
    critics = dict.fromkeys([*((name, seed) for name, seed in starts.items() if seed is not None),
                             *(("real", seed) for seed in judges.get("critic_seeds", []))])
    folds = (judges.get("folds", 0), config.get("ensemble", {}).get("folds", 0))
    return list(critics) + [("fold", seed) for n_folds in dict.fromkeys(folds) for seed in fold_seeds(n_folds)]


def arm_steps(config: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """Stage, arm and seed of all between the filter and the comparison: the arms, seed by seed, then the folds."""
    steps, members = [], config.get("members", {})
    for seed in range(config.get("n_seeds", 0)):
        for arm in config.get("arms", []):
            steps.append(("arm", arm, seed))
            steps += [(stage, name, seed) for name in member_names(arm, members) for stage in ("train", "predict")]
            steps += [("ensemble", arm, seed)] if members else []
    if seeds := fold_seeds(config.get("ensemble", {}).get("folds", 0)):
        steps += [*(("predict", "fold", seed) for seed in seeds), ("ensemble", "fold", seeds[0])]
    return steps


SECTIONS: tuple[str, ...] = (
    "prepare", "pretrain", "oracle", "external", "plan", "autoencoder", "finetune", "generate", "filter", "fill",
    "reconstruct", "arm", "train", "predict", "ensemble", "compare", "report",
    "rehearsal",
)


def read_stamp(folder: Path) -> dict[str, Any] | None:
    """The stamp of a stage's folder, or None while it is not complete; a broken stamp raises ``TailfillError``."""
    file = folder / STAMP
    return read_stamp_file(file) if file.is_file() else None


def read_stamp_file(file: Path) -> dict[str, Any]:
    """A stamp, finished or begun; raises ``TailfillError`` when it is none."""
    try:
        stamp = json.loads(file.read_text(encoding="utf-8"))
        missing = [key for key in ("stage", "fingerprint", "config", "inputs") if key not in stamp]
    except (OSError, ValueError, TypeError) as error:
        raise TailfillError(f"{file}: is no readable stamp: {error}") from error
    if missing or not isinstance(stamp, dict):
        raise TailfillError(f"{file}: is no stamp of a stage: it has no '{(missing or ['stage'])[0]}'")
    return stamp


def is_stale(stamp: dict[str, Any]) -> bool:
    """Whether an input stage has changed, or vanished, since this stage was made."""
    for entry in stamp["inputs"].values():
        if entry["kind"] == "stage":
            source = read_stamp(Path(entry["path"]))
            if source is None or source["output_hash"] != entry["hash"]:
                return True
    return False


def is_made_from(folder: Path, section: Mapping[str, Any]) -> bool:
    """Whether a stage's stamp is there, fresh and of these settings; where in doubt, the stage itself is asked.

    What a section leaves null is the stage's to choose, and its stamp holds the choice.
    """
    stamp = read_stamp(folder)
    return stamp is not None and not is_stale(stamp) and all(
        section.get(key) in (None, value) for key, value in stamp["config"].items()
    )


def folder_state(folder: Path) -> str:
    """``complete``, ``stale``, ``begun`` or ``missing``."""
    stamp = read_stamp(folder)
    if stamp is None:
        return "begun" if (folder / BEGUN).is_file() else "missing"
    return "stale" if is_stale(stamp) else "complete"


def stage_folders(run: Path, entry: StageEntry) -> list[Path]:
    """The existing folders of a stage, one per arm and seed where it has several, sorted."""
    pattern = entry.folder.replace("ARM", "[^/]+").replace("SEED", "[0-9]{1,3}").replace("CRITIC", "[0-9]{4,}")
    depth = "/".join("*" * len(entry.folder.split("/")))
    return sorted(path for path in run.glob(depth) if path.is_dir() and
                  re.fullmatch(pattern, path.relative_to(run).as_posix()))
