"""The whole configuration of an experiment: every section checked before any work, resolved, and fixed in its run.

A stage reads only its own section; what a later one would refuse after hours is refused here, by the same dataclasses.
``RUN/config.yaml`` and ``RUN/endpoint.json`` are written once; another configuration needs another run folder, even if
it differs in nothing that a stage's fingerprint holds. Not promised: that settings which only the data can refuse fit.
"""

import importlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import jsonargparse
import yaml
from experiment_costs import PER_IMAGE, RATED

from classify.arm import check_arm, check_phases
from classify.arms.rivals import ARMS
from classify.compare import CompareConfig, registration
from classify.comparison.pairs import HARMONISED_ARM
from classify.ensembling.members import member_config
from classify.learning.settings import TrainConfig
from classify.learning.training import share_batch
from cohort.config import Run, check_keys, load_yaml, resolve_members, resolve_paths
from cohort.errors import TailfillError, fail, nearest
from cohort.pipeline import OPTIONAL, STAGES, read_stamp
from cohort.stage import write_atomically

SCHEMAS = {
    "prepare": "cohort.prepare:PrepareConfig", "oracle": "cohort.prepare:PrepareConfig",
    "external": "cohort.prepare:PrepareConfig", "plan": "prompts.plan:PlanConfig",
    "autoencoder": "synth.autoencoder:AutoencoderConfig", "finetune": "synth.finetune:FinetuneConfig",
    "generate": "synth.generate:GenerateConfig", "filter": "synth.filter:FilterConfig",
    "fill": "synth.fill:FillConfig", "reconstruct": "synth.reconstruct:ReconstructConfig",
    "pretrain": "classify.pretrain:PretrainConfig",
    "arm": "classify.arm:ArmConfig", "train": "classify.train:TrainConfig",
    "predict": "classify.predict:PredictConfig", "ensemble": "classify.ensemble:EnsembleConfig",
    "compare": "classify.compare:CompareConfig", "report": "classify.report:ReportConfig",
    "rehearsal": "classify.rehearsal.settings:RehearsalConfig",
}
FURTHER = ("oracle", "external")
"""Sections of cohorts that only an arm of their name needs."""
ON_DEMAND = (*FURTHER, "reconstruct")
"""Sections that stand in a configuration if, and only if, one of its arms needs them, or ``filter.reconstructed``."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A checked command line; ``config`` is the resolved configuration in plain types, its paths absolute.

    ``endpoint`` is what will be compared, with its hash.
    """

    config: dict[str, Any]
    endpoint: dict[str, Any]
    processes: int
    dry_run: bool

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.config["run"])


def read_experiment(argv: list[str], *, doc: str | None) -> Experiment:
    """The configuration file that ``argv`` starts with, and overrides; every section is checked before any work."""
    file = Path(argv[0]) if argv and not argv[0].startswith("-") else None
    content = load_yaml(file) if file else {}
    left_out = {*OPTIONAL, "rehearsal", "pretrain", *(["prepare"] if content.get("cohort") else [])} - content.keys()
    schemas = {name: _import(place) for name, place in SCHEMAS.items() if name not in left_out}
    parser = jsonargparse.ArgumentParser(description=doc, exit_on_error=False, usage="%(prog)s CONFIG [options]")
    parser.add_argument("--config", action="config", help="the experiment's YAML; the first argument stands for it")
    parser.add_argument("--processes", type=int, default=1, help="processes of the stages that share work, 1 or more")
    parser.add_argument("--dry-run", action="store_true", help="print the stages, where they stand and what they "
                        "cost, and do nothing")
    parser.add_class_arguments(Run)
    for name, schema in schemas.items():
        parser.add_class_arguments(schema, name)
    for name, schema in schemas.items():
        check_keys(content.get(name) or {}, schema, where=f"config {file}: {name}")
    if file:
        argv = ["--config", json.dumps(_resolve(content, schemas, file.resolve().parent)), *argv[1:]]
    try:
        built = parser.instantiate(parser.parse_args(argv))
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        fail(str(error))
    if built.processes < 1:
        raise TailfillError(f"--processes is {built.processes}; wanted: 1 or more")
    if "finetune" not in content and built["generate"].pipeline:  # a generator that is taken as it is
        del schemas["finetune"], built["finetune"]
    run = Run(**{f.name: built[f.name] for f in fields(Run)})
    needed = {"reconstruct"} if built["filter"].reconstructed else set()
    for member in run.members or [""]:
        check_arms(run, built["compare"], member_config(run, built["train"], member), sections=content,
                   needed=needed)
    check_together(run, built, content, file)
    plain = json.loads(json.dumps(asdict(run) | {name: asdict(built[name]) for name in schemas}, default=str))
    return Experiment(config=_resolve(plain, schemas, Path.cwd()), endpoint=registration(run, built["compare"]),
                      processes=built.processes, dry_run=built.dry_run)


def _import(place: str) -> type:
    module, _, name = place.partition(":")
    schema: type = getattr(importlib.import_module(module), name)
    return schema


def _resolve(content: dict[str, Any], schemas: dict[str, type], base: Path) -> dict[str, Any]:
    """``content`` with relative paths made absolute against ``base``, in every section."""
    top = {key: value for key, value in content.items() if key not in SCHEMAS}
    top = resolve_members(top, schemas, base, where="config")
    return resolve_paths(top, Run, base) | {
        name: resolve_paths(content.get(name) or {}, schema, base) for name, schema in schemas.items()
    }


def fix(file: Path, content: bytes) -> None:
    """Write ``content`` once; raises ``TailfillError`` naming the first line that differs from an earlier one."""
    if not file.exists():
        write_atomically(file, content)
    elif (fixed := file.read_bytes()) != content:
        then, now = fixed.decode().splitlines(), content.decode().splitlines()
        was, wanted = next(((a, b) for a, b in zip(then, now, strict=False) if a != b), ("another length", "this one"))
        raise TailfillError(f"{file}: this run was fixed with '{was.strip()}', now '{wanted.strip()}'; "
                            "give another run folder")


def check_arms(run: Run, compare: CompareConfig, train: TrainConfig, *, sections: Collection[str],
               needed: Collection[str] = ()) -> None:
    """Raise ``TailfillError`` for an arm that is unknown or lacks something, and for a section that no arm needs.

    Likewise for an endpoint about an arm that is not in the experiment. Stages, not arms, need the sections ``needed``.
    """
    for arm in run.arms:
        check_arm(run, arm, 0)
        check_phases(arm, phase_2_share=train.phase_2_share, steps=train.steps)
    for section in ON_DEMAND:
        users = [f"arms: '{arm}'" for arm in run.arms if section in ARMS[arm].needs]
        users += ["filter: it"] * (section in needed)
        if section in FURTHER and section not in sections and read_stamp(run.folder / section):
            continue  # it stands in the run already, made by a rehearsal
        if bool(users) != (section in sections):
            raise TailfillError(f"{users[0]} needs a section {section}, and there is none" if users else
                                f"{section}: no arm needs this section; wanted: an arm that does, or no such section")
    for role, arm in (("arm", compare.endpoint.arm), ("rival", compare.endpoint.rival)):
        if arm not in run.arms:
            raise TailfillError(f"compare.endpoint.{role} is '{arm}'; wanted: one of the arms {', '.join(run.arms)}")


def check_together(run: Run, built: Any, content: dict[str, Any], file: Path | None) -> None:
    """Raise ``TailfillError`` for sections that are right for themselves but not together."""
    start, pipelines = built["train"].init_seed, {
        section: built[section].pipeline for section in ("autoencoder", "finetune", "generate") if section in built}
    if "finetune" in built and pipelines["finetune"] is None and "autoencoder" not in content:
        raise TailfillError(f"config {file}: no section autoencoder, no finetune.pipeline, and no generate.pipeline "
                            "without a section finetune; wanted: one of them")
    if "autoencoder" in content or ("finetune" in built and built["finetune"].new_autoencoder):
        check_autoencoder(built, content, file)
    if "finetune" in built:
        share_batch(built["finetune"].batch_size, built["finetune"].gradient_accumulation * built.processes,
                    key="finetune.batch_size")
    for section, given in pipelines.items():
        if given is not None and not Path(given).is_dir() and (Path(given).is_absolute() or given.count("/") != 1):
            raise TailfillError(f"{section}.pipeline: {given} is no folder; wanted: a pipeline folder or a hub id")
    if "reconstruct" in content and "finetune" not in built and built["reconstruct"].pipeline is None:
        raise TailfillError("reconstruct.pipeline is null, and no section finetune makes a generator of the run's own; "
                            "wanted: the pipeline of generate.pipeline")
    if "reconstruct" in content:
        check_reconstruction(run, built["reconstruct"], built["generate"])
    kinds = [stage.name for stage in STAGES] + [kind + PER_IMAGE for kind in RATED]
    for name in built["expected_seconds"]:
        if name not in kinds:
            raise TailfillError(f"expected_seconds.{name}: is no stage, nor one with {PER_IMAGE}{nearest(name, kinds)}")
    if start in built["filter"].critic_seeds:
        raise TailfillError(f"filter.critic_seeds holds {start}, the start that all arms share (train.init_seed); "
                            "wanted: another seed, for a filter of its own")
    for member in ["", *run.members]:
        train = member_config(run, built["train"], member)
        share_batch(train.batch_size, train.gradient_accumulation * built.processes, key="train.batch_size")
    if "autoencoder" in content:
        share_batch(built["autoencoder"].batch_size, built.processes, key="autoencoder.batch_size")


def check_autoencoder(built: Any, content: dict[str, Any], file: Path | None) -> None:
    """Raise ``TailfillError`` where a trained autoencoder would serve no generator, or that of foreign latents."""
    if "finetune" not in built:
        raise TailfillError(f"config {file}: a section autoencoder and no finetune to take it; wanted: both")
    finetune, own = built["finetune"], "autoencoder" in content
    if finetune.pipeline is not None and finetune.new_autoencoder != own:
        raise TailfillError(f"config {file}: finetune.new_autoencoder is {str(finetune.new_autoencoder).lower()} and "
                            f"{'a' if own else 'no'} section autoencoder is there; wanted: both or neither")
    start = built["autoencoder"]
    if (start.pipeline, start.revision) != (finetune.pipeline, finetune.revision):
        raise TailfillError(f"autoencoder.pipeline is {start.pipeline} ({start.revision}), and finetune.pipeline is "
                            f"{finetune.pipeline} ({finetune.revision}); wanted: the same, whose latents are denoised")


def check_reconstruction(run: Run, reconstruct: Any, generate: Any) -> None:
    """Raise ``TailfillError`` for arms whose reconstructed images would be missing, or look otherwise than those made.
    """
    arms = [(arm, ARMS[arm].needs) for arm in run.arms if "reconstruct" in ARMS[arm].needs]
    for arm in [arm for arm, needs in arms if "oracle" in needs]:
        if not reconstruct.oracle:
            raise TailfillError(f"reconstruct.oracle is false, and the arm '{arm}' needs the oracle's images; wanted: "
                                "true, or no such arm")
    for key, theirs in (("pipeline", "pipeline"), ("revision", "revision"), ("image_size", "height")):
        given, made = getattr(reconstruct, key), getattr(generate, theirs)
        for arm in [arm for arm, _ in arms if arm.endswith(HARMONISED_ARM)]:
            if given != made:
                raise TailfillError(f"reconstruct.{key} is {given} and generate.{theirs} {made}; wanted: the same, as "
                                    f"real images are to look as those made do in the arm '{arm}'")


def fix_endpoint(experiment: Experiment) -> None:
    """Write the run's ``config.yaml``, and ``endpoint.json`` with the hash of what will be compared."""
    fix(experiment.folder / "config.yaml", yaml.safe_dump(experiment.config, sort_keys=False).encode())
    fix(experiment.folder / "endpoint.json", (json.dumps(experiment.endpoint, indent=1) + "\n").encode())
