"""What does each lever of the generator give? Asked where the answer is not lost in noise: a phantom's large test set.

A lever is one change of the settings that make images: how long the generator is fine-tuned, how strongly the words
guide it, where an image starts. Each gets a run folder of its own, which shares what the lever does not touch with the
base, and draws its images. Then linear heads are trained on cached features as ``train`` trains them, each lever's
images in the very slots that the duplicates and the oracle have, and compared on the test split. No filter: what is
asked is what the generator is worth; ``--perfect`` asks what a perfect one would be, with the same plan. Interrupted,
the same command goes on.

What asks for less of real people (``prompts_*``, ``from_real``) has to keep each finding's own company, so its fair
base is ``own_company``. A lever's oracle is as free in its other findings as the lever's images are.

A choice made here has looked at this test set many times, so its people must be no experiment's: give seeds that no
other configuration has. Not promised: anything about trainings of all weights, or about images that a filter keeps.

::

    python scripts/levers.py configs/phantom_levers.yaml [--levers guidance_2.5 from_real] [--perfect]
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from calibration_heads import Task, train_heads
from calibration_pools import Pools, Studio, open_studio
from calibration_slots import Dealer
from calibration_trials import METRIC
from experiment_config import read_experiment
from planned_phantoms import exams_of

from classify.arms.filling import borrows_company, charge_to_rarest
from classify.arms.layout import ArmConfig
from classify.comparison.intervals import bootstrap, patient_draws
from classify.comparison.measuring import Scored
from classify.comparison.metrics import METRICS, ClassMetrics
from classify.comparison.pairing import Source
from classify.comparison.recovered import ORACLE, fieller_set
from classify.learning.fitting import Recipe
from classify.slots import label_matrix
from cohort.errors import TailfillError, nearest, run_command
from cohort.pixels import load_images
from cohort.stage import verify, write_atomically
from cohort.tables import Cohort, load_cohort, load_further, write_table
from cohort.vocabulary.labels import CONTROL

BASE, RIVAL = "base", "duplicate"
GIVEN = "finetune.pipeline"
"""Stands for the pipeline that the base fine-tunes."""
LEVERS: dict[str, dict[str, dict[str, Any]]] = {
    BASE: {},
    "no_finetuning": {"generate": {"pipeline": GIVEN}},
    "finetuning_2x": {"finetune": {"steps": 1200}},
    "finetuning_uniform": {"finetune": {"scarcity_cap": 1.0}},
    "guidance_2.5": {"generate": {"guidance_scale": 2.5, "guidance_interval": [0.2, 0.8]}},
    "guidance_4": {"generate": {"guidance_scale": 4.0, "guidance_interval": [0.2, 0.8]}},
    "guidance_2.5_to_the_end": {"generate": {"guidance_scale": 2.5, "guidance_interval": [0.2, 1.0]}},
    "guidance_4_to_the_end": {"generate": {"guidance_scale": 4.0, "guidance_interval": [0.2, 1.0]}},
    "steps_2x": {"generate": {"num_inference_steps": 30}},
    "from_real": {"plan": {"image_conditioned": 1.0, "strength": 0.7, "company_prior": None}},
    "own_company": {"plan": {"company_prior": None}},
    "company_prior_10": {"plan": {"company_prior": 10.0}},
    "company_prior_30": {"plan": {"company_prior": 30.0}},
    "prompts_as_real": {"plan": {"company_prior": None, "spread": 1.0, "age_jitter": 0}},
    "prompts_freer": {"plan": {"company_prior": None, "spread": 8.0, "age_jitter": 20}},
    "loss_weight_0.3": {"arm": {"synthetic_loss_weight": 0.3}},
    "all_added_slots": {"arm": {"synthetic_share": 1.0}},
    "no_negatives": {"arm": {"negatives": 0.0}},
    "slots_0.25x": {"arm": {"slots_per_class": 10}},
    "slots_2.5x": {"arm": {"slots_per_class": 100}},
}
"""Name to what it changes, by section."""
STAGES = {"plan": ("prompts.plan", "plan"), "finetune": ("synth.finetune", "generator"),
          "generate": ("synth.generate", "images")}
"""Section to module and folder, in the order of the pipeline."""
MADE_ANEW = {"plan": {"plan", "generate"}, "finetune": {"finetune", "generate"}, "generate": {"generate"}, "arm": set()}
"""Changed section to the stages that it changes."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A lever's images, and the arms that they stand in."""

    name: str
    images: pd.DataFrame
    """The plan's columns of every image that was made, with ``image_id``, ``row`` and ``keep``."""
    config: ArmConfig


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="an experiment's YAML; its run is the base")
    parser.add_argument("--levers", nargs="+", default=list(LEVERS), help="some of them; all where left out")
    parser.add_argument("--perfect", action="store_true",
                        help="also what the phantom itself draws for each plan, as LEVER_perfect")
    parser.add_argument("--n-seeds", type=int, default=8, help="seeds of every arm, 2 or more")
    parser.add_argument("--n-draws", type=int, default=400, help="resamples of the test patients")
    options = parser.parse_args(arguments)
    for name in options.levers:
        if name not in LEVERS:
            raise TailfillError(f"--levers: unknown lever '{name}'{nearest(name, list(LEVERS))}")
    if options.n_seeds < 2:
        raise TailfillError(f"--n-seeds is {options.n_seeds}; wanted: 2 or more")
    return options


def settings_of(base: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The base's configuration with a lever's changes and a run folder of its own, beside the base's."""
    config = {key: dict(value) if isinstance(value, dict) else value for key, value in base.items()}
    for section, keys in LEVERS[name].items():
        config[section] |= {key: base["finetune"]["pipeline"] if value is GIVEN else value
                            for key, value in keys.items()}
    return config | {"run": str(Path(base["run"]).with_name(name))}


def run_stage(module: str, file: Path, *words: str) -> None:
    """One stage, its output on the terminal; raises ``TailfillError`` where it fails, which has said why."""
    done = subprocess.run([sys.executable, "-m", module, "--config", str(file), *words], check=False)
    if done.returncode:
        raise TailfillError(f"{file}: {module} ended with {done.returncode}")


def draw(base: Mapping[str, Any], name: str) -> Path:
    """Make what the lever ``name`` changes, and link what it does not; the run folder of its images."""
    anew = set(STAGES) if name == BASE else set().union(*(MADE_ANEW[section] for section in LEVERS[name]))
    if not anew:
        return Path(base["run"])
    config = settings_of(base, name)
    run = Path(config["run"])
    file = run / "config.yaml"
    run.mkdir(parents=True, exist_ok=True)
    write_atomically(file, yaml.safe_dump(config, sort_keys=False).encode())
    if name == BASE:
        run_stage("cohort.prepare", file)
        run_stage("cohort.prepare", file, "--role", "oracle")
    for folder in ("cohort", *(folder for section, (_, folder) in STAGES.items() if section not in anew)):
        if not (run / folder).exists():
            (run / folder).unlink(missing_ok=True)  # a link from before the runs were moved
            (run / folder).symlink_to(os.path.relpath(Path(base["run"]) / folder, run))
    for module in (module for section, (module, _) in STAGES.items() if section in anew):
        run_stage(module, file)
    return run


def images_of(run: Path, studio: Studio) -> pd.DataFrame:
    """The images of a run with their plan, looked at; raises ``TailfillError`` for a table that is not complete."""
    plan = pd.read_parquet(verify(run / "plan", "plan", "plan.parquet"))
    made = pd.read_parquet(verify(run / "images", "generate", "images.parquet"))
    made = plan.merge(made.loc[made["status"] == "ok", ["sample_id", "path"]], on="sample_id", validate="1:1")
    pixels = load_images([run / "images" / path for path in made["path"]], studio.card.image_size, studio.folder)
    return made.assign(image_id=made["sample_id"], keep=True, row=studio.look(pixels))


def looked_at(frame: pd.DataFrame, cohort: Cohort, studio: Studio) -> pd.DataFrame:
    """Rows of a cohort with the column ``row``."""
    return frame.assign(row=studio.look(load_images(cohort.image_paths(frame), studio.card.image_size, studio.folder)))


def perfect_images(run: Path, base: Mapping[str, Any], cohort: Cohort, studio: Studio) -> pd.DataFrame:
    """The rows of a run's plan as the phantom draws them, as ``images_of`` has them."""
    plan = pd.read_parquet(verify(run / "plan", "plan", "plan.parquet"))
    exams = exams_of(plan, cohort.labels, site=base["prepare"]["phantom"].get("site", "A"))
    return plan.assign(image_id=plan["sample_id"], keep=True, row=studio.shoot(exams, "planned")[1])


def open_world(base: Mapping[str, Any], names: Sequence[str], *, perfect: bool) -> tuple[Pools, list[Drawn]]:
    """Everything drawn and looked at: what heads learn from, and what they are tested on."""
    runs = {name: draw(base, name) for name in (BASE, *names)}
    cohort = load_cohort(Path(base["run"]) / "cohort")
    oracle = load_further(Path(base["run"]) / "oracle", cohort)
    studio = open_studio(Path(base["run"]) / "cache", Path(base["train"]["backbone"]), processes=1)
    train = replace(cohort, frame=looked_at(cohort.split("train"), cohort, studio))
    new = charge_to_rarest(looked_at(oracle.split("train"), oracle, studio), cohort)
    test = looked_at(cohort.split("test"), cohort, studio)
    seen = {run: images_of(run, studio) for run in dict.fromkeys(runs.values())}
    keys = [field.name for field in fields(ArmConfig)]
    drawn = [Drawn(name=name, images=seen[runs[name]], config=ArmConfig(
        **{key: value for key, value in settings_of(base, name)["arm"].items() if key in keys})) for name in names]
    drawn += [replace(one, name=f"{one.name}_perfect", images=perfect_images(runs[one.name], base, cohort, studio))
              for one in drawn if perfect and (one.name == BASE or "plan" in LEVERS[one.name])]
    return Pools(features=np.concatenate(studio.blocks), cohorts=[train], copies=[], new=new, test=test), drawn


def layout_of(lever: Drawn) -> str:
    """What decides about the duplicates and the oracle that a lever is held against, in words."""
    return f"{lever.config!r}{' borrows' if borrows_company(lever.images) else ''}"


def list_heads(pools: Pools, drawn: Sequence[Drawn], n_seeds: int) -> dict[tuple[str, str], list[Task]]:
    """The heads to train, one per seed: (settings of the arms, arm or lever) to tasks."""
    dealers: dict[str, Dealer] = {}
    heads: dict[tuple[str, str], list[Task]] = {}
    for lever in drawn:
        key = layout_of(lever)
        dealer = dealers.setdefault(key, Dealer(pools=pools, sets=[{}], config=lever.config, seed=0))
        for arm in (RIVAL, ORACLE, lever.name):
            if (key, arm) not in heads:
                # important: by these the oracle knows whether company is borrowed, and so whether its own is free
                one = replace(dealer, sets=[{lever.name: lever.images, ORACLE: lever.images.assign(keep=False)}])
                heads[key, arm] = [Task(slots=one.deal(arm, 0, stream=(seed,)), shares=one.shares[0], seed=(seed,))
                                   for seed in range(n_seeds)]
    return heads


def recipe_of(base: Mapping[str, Any]) -> Recipe:
    """How a head is trained: as ``train`` does with these settings."""
    train = base["train"]
    return Recipe(name="levers", seed=(), checkpoint_every=train["steps"], phase_2_share=0.0, **{
        key: train[key] for key in ("steps", "batch_size", "lr", "warmup_share", "weight_decay", "ema_decay",
                                    "grad_clip")})


def score(pools: Pools, heads: Mapping[tuple[str, str], list[Task]], recipe: Recipe, n_draws: int) -> Source:
    """AP of every head, on the test set and on resamples of its patients, for tail and controls."""
    cohort = pools.cohorts[0]
    labels = [label for group in ("tail", CONTROL) for label in cohort.in_group(group)]
    columns, rows = [pools.labels.index(label) for label in labels], pools.test["row"].to_numpy()
    targets = label_matrix(pools.test, labels).astype(np.float64)
    patients = pd.factorize(pools.test["patient_id"], sort=True)[0]
    draws = patient_draws(patients.max() + 1, n_draws, np.random.default_rng(1))
    values, resampled = [], []
    for tasks in heads.values():
        weights, biases = train_heads(torch.from_numpy(pools.features), tasks, recipe)
        logits = (pools.features[rows] @ weights + biases)[:, :, columns].astype(np.float64)
        evaluators = [ClassMetrics(labels=targets[:, at], logits=one[:, at])
                      for one in logits for at in range(len(labels))]
        whole = np.stack([evaluate(np.ones((len(rows), 1)))[:, 0] for evaluate in evaluators])
        again = bootstrap(evaluators, patients=patients, draws=draws)
        at = METRICS.index(METRIC)
        values.append(whole.reshape(len(tasks), len(labels), -1)[..., at:at + 1])
        resampled.append(again.reshape(len(tasks), len(labels), len(METRICS), -1)[..., at:at + 1, :])
    members = {label: [at] for at, label in enumerate(labels)}
    members |= {group: [labels.index(label) for label in cohort.in_group(group)] for group in ("tail", CONTROL)}
    return Source(values=np.stack(values), resampled=np.stack(resampled), arms=[" ".join(key) for key in heads],
                  members=members, metrics=(METRIC,), scored=Scored(labels=targets, patients=patients, logits={}))


def tabulate(source: Source, drawn: Sequence[Drawn]) -> pd.DataFrame:
    """One row per lever and group or label: gains over the duplicates, and the share of the oracle's.

    ``against_base``: the lever's AP minus the base's, in the same slots; null for levers of the arms themselves.
    """
    rows = []
    first = next(lever for lever in drawn if lever.name == BASE)
    for lever in drawn:
        own, rival, oracle = (f"{layout_of(lever)} {arm}" for arm in (lever.name, RIVAL, ORACLE))
        for label, at in source.members.items():
            gain, bound = source.gain(own, rival, at, 0), source.gain(oracle, rival, at, 0)
            share = fieller_set(gain, bound)
            row = {"lever": lever.name, "label": label, "share": share.share, "share_low": share.low,
                   "share_high": share.high}
            for name, (arm, other) in {"gain": (own, rival), "oracle": (oracle, rival),
                                       "against_base": (own, f"{layout_of(first)} {BASE}")}.items():
                if name == "against_base" and lever.config != first.config:
                    continue
                one = source.interval(arm, other, at, 0)
                row |= {name: one.estimate, f"{name}_low": one.low, f"{name}_high": one.high}
            rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    """Draw, train, compare."""
    options = parse()
    torch.set_num_threads(1)
    base = read_experiment([str(options.config)], doc=__doc__).config
    if "finetune" not in base:
        raise TailfillError(f"{options.config}: generate.pipeline is given and no section finetune; wanted: one, as "
                            "levers change it")
    source = base.get("prepare", {}).get("source")
    if options.perfect and source != "phantom":
        raise TailfillError(f"--perfect: {options.config} has prepare.source {source}; wanted: phantom, which alone "
                            "can be drawn as planned")
    names = list(dict.fromkeys([BASE, *options.levers]))
    pools, drawn = open_world(base, names, perfect=options.perfect)
    source = score(pools, list_heads(pools, drawn, options.n_seeds), recipe_of(base), options.n_draws)
    table = tabulate(source, drawn)
    write_table(table, Path(base["run"]).with_name("levers.parquet"))
    shown = table[table["label"].isin(["tail", CONTROL])]
    sys.stdout.write(shown.to_string(index=False, float_format=lambda value: f"{value:+.4f}") + "\n")


if __name__ == "__main__":
    run_command(main)
