"""The runs of a rehearsal as experiments: one configuration each, made from the experiment's own.

A run differs from the experiment only in what a rehearsal is about: a thinned cohort, a seed of its own (plan, noise
and training follow from it), one seed per arm, the rehearsal's arms, and a plan for the thinned findings. ``quick``
trains heads on features of a frozen backbone and fine-tunes briefly.

What a run needs beforehand and the experiment does not bring, an autoencoder with a generator, or a backbone, is learnt
once for all runs, in ``RUN/rehearsal/base``: from the patients who have none of the thinned findings. Nobody whom any
run may withhold is among them, whatever is drawn, so that sharing it is sound; that is checked after each run like
everything else.

Not promised: that a setting which fits the whole cohort fits a thinned one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from experiment import Step, list_steps
from experiment_config import Experiment

from classify.arms.rivals import ARMS
from classify.compare import CompareConfig, Endpoint
from classify.rehearsal.choices import Cell
from classify.rehearsal.prevalence import REHEARSED
from classify.rehearsal.settings import RehearsalConfig
from classify.rehearsal.shares import NO_SHARE, RIVAL, rival_of
from cohort.config import Run, require_values
from cohort.errors import TailfillError
from cohort.tables import load_cohort
from prompts.scarcity import find_scarce

LEFT_OUT = ("prepare", "oracle", "external", "reconstruct", "rehearsal", "ensemble")
"""Sections that a run does not take over: its cohorts stand in its folder already, and what is reconstructed follows
from its arms."""
ONE_EACH: dict[str, Any] = {"n_seeds": 1, "tracker": "none", "members": {}, "amounts": []}
"""Of each arm there is one model, at one amount."""
HEAD_TRAINING = {"head_only": True, "init_seed": None, "steps": 400, "base_steps": 400, "lr": 1e-2, "base_lr": 1e-2}
"""How ``quick`` trains where the experiment itself trains all weights (classify/learning/settings.py: a learning rate
of .01 and 300 to 600 steps converge)."""
QUICK_SHARE = 0.25
"""Of ``finetune.steps`` in ``quick``; the runs start from a pipeline that knows radiographs."""
FIRST_START = 2000
"""Seed of the shared backbone where ``train.init_seed`` names none."""


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """A checked command line: the experiment, and its rehearsal section."""

    experiment: Experiment
    section: RehearsalConfig

    @property
    def config(self) -> dict[str, Any]:
        """The experiment's resolved configuration."""
        return self.experiment.config

    @property
    def run(self) -> Run:
        """The experiment's own run."""
        return Run(**{f.name: self.config[f.name] for f in fields(Run) if f.name in self.config})

    @property
    def processes(self) -> int:
        """Processes of the stages that share work."""
        return self.experiment.processes

    @property
    def folder(self) -> Path:
        """Where all of it goes."""
        return self.experiment.folder / "rehearsal"

    @property
    def base(self) -> Path:
        """What all runs share."""
        return self.folder / "base"

    @property
    def cohort_folder(self) -> Path:
        """The cohort that is thinned."""
        return self.run.cohort_folder

    @property
    def truth(self) -> Path | None:
        """New patients of the actual tail, where the experiment has some."""
        return self.experiment.folder / "oracle" if "oracle" in self.config else None

    @property
    def compare(self) -> CompareConfig:
        """How arms are compared: draws, weights and metric are the experiment's."""
        section = self.config["compare"]
        return CompareConfig(n_draws=section["n_draws"], endpoint=Endpoint(**section["endpoint"]))

    @property
    def needs_base(self) -> bool:
        """Whether the runs start from something that has to be learnt first."""
        return "autoencoder" in self.config or self.needs_backbone

    @property
    def needs_backbone(self) -> bool:
        """Whether heads are to be trained on a backbone that is neither there nor given as pre-trained weights."""
        train = self.config["train"]
        return self.section.quick and train["backbone"] is None and not train["pretrained"]

    @property
    def start_seed(self) -> int:
        """The seed of the shared backbone."""
        return int(self.config["train"]["init_seed"] or FIRST_START)

    def seed_of(self, cell: Cell) -> int:
        """A run's seed: the same at every level, so that levels are paired."""
        return int(self.config["seed"]) + cell.seed


def open_rehearsal(experiment: Experiment) -> Rehearsal:
    """A configuration's rehearsal; ``TailfillError`` where there is no such section, or its endpoint has no share."""
    if "rehearsal" not in experiment.config:
        raise TailfillError("the configuration has no section rehearsal; wanted: one, if only 'rehearsal: {}'")
    if "finetune" not in experiment.config:
        raise TailfillError("generate.pipeline is given and no section finetune; wanted: one in a rehearsal, whose "
                            "generators learn from each thinning")
    section, tuples = experiment.config["rehearsal"], ("findings", "levels", "arms")
    given: dict[str, Any] = {key: tuple(value) if key in tuples else value for key, value in section.items()}
    rehearsal = Rehearsal(experiment=experiment, section=RehearsalConfig(**given))
    end, unit = rehearsal.compare.endpoint, experiment.config["compare"]["unit"]
    candidates = [arm for arm in rehearsal.section.arms if arm not in (RIVAL, *NO_SHARE)]
    require_values(  # important: before hours of runs that could not be told
        "compare", **{
            "endpoint.arm": (end.arm, end.arm in candidates, f"{', '.join(candidates)} (of rehearsal.arms)"),
            "endpoint.rival": (end.rival, end.rival == rival_of(end.arm), f"{rival_of(end.arm)}, for this arm"),
            "endpoint.metric": (end.metric, end.metric in REHEARSED, "AP or AUROC in a rehearsal"),
            "unit": (unit, unit == "image", "image in a rehearsal")})
    return rehearsal


def findings_of(cells: Sequence[Cell]) -> tuple[str, ...]:
    """Every finding that some run thins, in the order of the sets."""
    return tuple(dict.fromkeys(finding for cell in cells for finding in cell.findings))


def need_reconstruction(arms: Sequence[str]) -> bool:
    """Whether one of them holds real images that went through the autoencoder."""
    return any("reconstruct" in ARMS[arm].needs for arm in arms)


def child_config(rehearsal: Rehearsal, cell: Cell) -> dict[str, Any]:
    """The configuration of one run, in plain types."""
    section, config, folder = rehearsal.section, rehearsal.config, rehearsal.folder / cell.name
    child = {key: value for key, value in config.items() if key not in LEFT_OUT}
    child |= {"run": str(folder), "cohort": str(folder / "cohort"), "seed": rehearsal.seed_of(cell),
              "arms": list(section.arms), **ONE_EACH}
    child["plan"], child["compare"] = plan_of(rehearsal, cell), {**config["compare"], "pairs": None}
    child["filter"] = {**config["filter"], "reconstructed": False}
    if need_reconstruction(section.arms):
        source = {key: config["generate"][key] for key in ("pipeline", "revision")}  # that of the images made
        child["reconstruct"] = {**config.get("reconstruct", {}), **source, "oracle": False}
    child["finetune"] = {**config["finetune"], "steps": finetune_steps(rehearsal)}
    if "autoencoder" in child:
        del child["autoencoder"]
        child["finetune"] |= {"pipeline": str(rehearsal.base / "generator" / "pipeline"), "revision": None,
                              "new_autoencoder": False}
    if section.quick:
        child["train"] = {**config["train"], **({} if config["train"]["head_only"] else HEAD_TRAINING),
                          "head_only": True, "init_seed": None}
        if rehearsal.needs_backbone:
            child["train"]["backbone"] = str(rehearsal.base / "train" / "real" / f"seed_{rehearsal.start_seed}")
    child["expected_seconds"] = expected_seconds(config, child)
    return child


def finetune_steps(rehearsal: Rehearsal) -> int:
    """Optimiser steps of a run's fine-tuning."""
    given, whole = rehearsal.section.finetune_steps, int(rehearsal.config["finetune"]["steps"])
    return given or (max(1, round(QUICK_SHARE * whole)) if rehearsal.section.quick else whole)


def plan_of(rehearsal: Rehearsal, cell: Cell) -> dict[str, Any]:
    """The plan of a run: images for the thinned findings, and for the actual tail where that can be checked."""
    plan = rehearsal.config["plan"]
    cohort = load_cohort(rehearsal.cohort_folder)
    known = find_scarce([*plan["scarce"], *cell.findings], labels=cohort.labels, groups=cohort.groups,
                        per_class=plan["per_class"])
    scarce = [label for label in known if label not in cell.findings] or known  # the cohort may be without a tail
    wanted = [*cell.findings, *(scarce if rehearsal.truth else [])]
    per_finding = rehearsal.section.images_per_finding
    if per_finding is None and plan["total"] is not None:
        per_finding = max(1, round(plan["total"] / len(scarce)))
    total = plan["total"] if per_finding is None else per_finding * len(wanted)
    return {**plan, "scarce": wanted, "per_class": {}, "total": total}


def expected_seconds(config: dict[str, Any], child: dict[str, Any]) -> dict[str, float]:
    """What the experiment expects of its stages, for a run: in proportion to steps and images."""
    expected = dict(config["expected_seconds"])
    images = (child["plan"]["total"] or 1) / (config["plan"]["total"] or child["plan"]["total"] or 1)
    steps = child["finetune"]["steps"] / config["finetune"]["steps"]
    ratios = {"finetune": steps, "generate": images, "filter": images}
    return {stage: seconds * ratios.get(stage, 1.0) for stage, seconds in expected.items()}


def base_config(rehearsal: Rehearsal) -> dict[str, Any]:
    """The configuration of what all runs share, in plain types."""
    config, folder = rehearsal.config, rehearsal.base
    base = {key: value for key, value in config.items() if key not in LEFT_OUT}
    return base | {
        "run": str(folder), "cohort": str(folder / "cohort"), **ONE_EACH,
        "train": {**config["train"], "head_only": False, "init_seed": rehearsal.start_seed},
    }


def steps_of(config: dict[str, Any], rehearsal: Rehearsal, *, base: bool = False) -> list[Step]:
    """The stages of a run, in order; of the shared ``base`` those that somebody needs."""
    steps = list(list_steps(config))
    if not base:
        return steps
    kinds = (*(["autoencoder", "finetune"] if "autoencoder" in config else []),)
    return [step for step in steps if step.stage in kinds or (
        rehearsal.needs_backbone and step.stage == "train" and (step.arm, step.seed) == ("real", rehearsal.start_seed))]
