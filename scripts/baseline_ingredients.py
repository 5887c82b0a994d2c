"""What each ingredient gives a baseline of real images alone: loss, sampler, resolution, head, initial weights.

Synthetic images are worth what they add to the best that real ones can do, so that comes first. Every recipe is a run
of the stages ``arm`` and ``train`` (two start from ``pretrain``) on one prepared cohort, with one seed, judged on the
*validation* split alone: the test split is not read. An ensemble is the mean of its recipes' probabilities. The table
gives mAP over all classes and AUROC of head, medium and tail with percentile intervals over 1,000 resamples of
validation patients, and the paired difference in mAP from the first recipe.

Not promised: an interval over seeds (there is one), or that a handful of validation positives in the tail can tell
recipes apart. The best of many recipes looks better than it is.

::

    python scripts/baseline_ingredients.py --config configs/nih128.yaml --out runs/ingredients [--only NAME ...]

Safe to run again: what is trained stays. ``--only`` takes beginnings of names. The ImageNet weights are those of the
fidelity encoder (synth/measuring/encoders.py): a classifier that starts from them shares its origin with the encoder,
and is no independent judge beside it.
"""

import argparse
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from classify.arm import ArmConfig, write_arm
from classify.comparison.intervals import bootstrap, mean_over_classes, patient_draws
from classify.comparison.measuring import groups_of
from classify.comparison.metrics import METRICS, ClassMetrics
from classify.ensembling.averaging import average
from classify.learning.features import load_features, logits_of_features
from classify.learning.models import load_classifier, predict_logits, save_weights
from classify.slots import label_matrix
from cohort.config import Run
from cohort.errors import TailfillError, run_command
from cohort.pixels import load_images
from cohort.stage import require, write_atomically
from cohort.tables import Cohort, load_cohort
from synth.measuring.encoders import load_lite0

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = {"mAP": ("AP", "all"), **{f"AUROC {group}": ("AUROC", group) for group in ("head", "medium", "tail")}}
"""Column of the table to metric and group."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to train; ``train`` holds what differs from ``COMMON``, and a word in braces is one of ``STARTS``."""

    arm: str = "real"
    train: Mapping[str, Any] = field(default_factory=dict)


COMMON: dict[str, Any] = {"init_seed": "null", "model": "convnext_femto", "image_size": 128, "steps": 600,
                          "batch_size": 32, "lr": 1e-3, "precision": "bf16", "loss": "weighted_asl"}
LITE0 = {"model": "tf_efficientnet_lite0", "pretrained": "{lite0}", "precision": "no"}
FROZEN = LITE0 | {"head_only": "true", "batch_size": 64, "steps": 300}
STARTS = ("{lite0}", "{vicreg}")
"""ImageNet's weights, and a backbone that the cohort's own training images have taught without labels."""
VICREG = {"model": COMMON["model"], "image_size": 128, "steps": 400, "batch_size": 64, "lr": 1e-3, "precision": "bf16"}
"""Of ``classify.pretrain``: half an hour of one core, three times as long as the training that starts from it."""
PHANTOM = {"model": "convnext_atto", "backbone": str(ROOT / "models" / "backbone")}

RECIPES: dict[str, Recipe] = {
    "frozen ImageNet, 128 px": Recipe(train=FROZEN),
    "frozen ImageNet, 128 px, asl": Recipe(train=FROZEN | {"loss": "asl"}),
    "frozen ImageNet, 128 px, bce": Recipe(train=FROZEN | {"loss": "bce"}),
    "frozen ImageNet, 128 px, oversample": Recipe(arm="oversample", train=FROZEN),
    "frozen ImageNet, 128 px, longer": Recipe(train=FROZEN | {"lr": 0.01, "steps": 600}),
    "frozen ImageNet, 128 px, ml_decoder": Recipe(train=FROZEN | {"head": "ml_decoder", "lr": 1e-4}),
    "frozen ImageNet, 64 px": Recipe(train=FROZEN | {"image_size": 64}),
    "frozen ImageNet, 224 px": Recipe(train=FROZEN | {"image_size": 224}),
    "frozen ImageNet, 320 px": Recipe(train=FROZEN | {"image_size": 320}),
    "frozen phantom, 128 px": Recipe(train=PHANTOM | {"head_only": "true", "lr": 0.01, "batch_size": 64, "steps": 300}),
    "frozen VICReg of 400 steps, 128 px": Recipe(train={"backbone": "{vicreg}", "head_only": "true", "lr": 0.01,
                                                        "batch_size": 64, "steps": 300}),
    "whole from nothing, 128 px": Recipe(),
    "whole from VICReg of 400 steps, 128 px": Recipe(train={"backbone": "{vicreg}"}),
    "whole from phantom, 128 px": Recipe(train=PHANTOM),
    "whole from ImageNet, 128 px": Recipe(train=LITE0),
}
"""Name to recipe, the reference first."""
ENSEMBLES: dict[str, tuple[str, ...]] = {
    "ensemble of frozen ImageNet, 64, 128, 224 px": (
        "frozen ImageNet, 64 px", "frozen ImageNet, 128 px", "frozen ImageNet, 224 px"),
    "ensemble of frozen ImageNet, 128, 224, 320 px": (
        "frozen ImageNet, 128 px", "frozen ImageNet, 224 px", "frozen ImageNet, 320 px"),
    "ensemble of frozen ImageNet, 224 px, and whole": (
        "frozen ImageNet, 224 px", "whole from phantom, 128 px", "whole from ImageNet, 128 px"),
}
"""Name to the recipes that are averaged; it stands in the table when all of them do."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="its section prepare makes the cohort")
    parser.add_argument("--out", type=Path, required=True, help="folder of all runs and of the table")
    parser.add_argument("--only", nargs="+", default=[""], help="beginnings of the names of the recipes to run; "
                        "an ensemble is told when all of its recipes are")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of the training")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="train keys set for every recipe")
    parser.add_argument("--list", action="store_true", help="print the recipes, and do nothing")
    return parser.parse_args(arguments)


def call(module: str, *words: object) -> None:
    """Run a command of this project in a process of its own; ``TailfillError`` when it fails."""
    done = subprocess.run([sys.executable, "-m", module, *map(str, words)], cwd=ROOT, check=False)
    if done.returncode:
        raise TailfillError(f"{module} ended with code {done.returncode}; its own words stand above")


def fixed_keys(words: Sequence[str]) -> dict[str, str]:
    """``KEY=VALUE`` words as a dict; raises ``TailfillError`` for one that is none."""
    for word in words:
        if not word.partition("=")[0] or "=" not in word:
            raise TailfillError(f"--set {word}: is no setting; wanted: KEY=VALUE, such as steps=100")
    return dict(word.split("=", 1) for word in words)


def find_start(word: str, run: Run, config: Path, *, fixed: Mapping[str, str]) -> Path:
    """What a word in braces stands for: weights or a backbone in the run, made unless it is there."""
    if word == "{lite0}":
        file = run.folder / "lite0.safetensors"
        if not file.is_file():
            save_weights(load_lite0().state_dict(), file)
        return file
    settings = VICREG | {key: value for key, value in fixed.items() if key in ("model", "image_size")}
    call("classify.pretrain", "--config", config.resolve(), *shared_words(run),
         *(f"--pretrain.{key}={value}" for key, value in settings.items()))
    return run.folder / "pretrain"


def shared_words(run: Run) -> list[str]:
    """A run as words of a command line."""
    return [f"--{key}={getattr(run, key)}" for key in ("run", "cohort", "threads", "tracker", "n_seeds")]


def settings_of(recipe: Recipe, fixed: Mapping[str, str], find: Callable[[str], Path]) -> dict[str, Any]:
    """The keys of the section ``train``, as words of a command line or numbers; ``fixed`` wins. ``find``: a start."""
    settings = COMMON | dict(recipe.train) | dict(fixed)
    return {key: str(find(value)) if value in STARTS else value for key, value in settings.items()}


def train(recipe: Recipe, run: Run, config: Path, settings: Mapping[str, Any]) -> Path:
    """The folder of the recipe's weights, trained unless they are there."""
    write_arm(run, ArmConfig(), arm=recipe.arm, seed=0)
    options = [f"--train.{key}={value}" for key, value in settings.items()]
    call("classify.train", "--config", config.resolve(), *shared_words(run), *options, "--arm", recipe.arm,
         "--arm-seed", 0)
    return run.folder / "train" / recipe.arm / "seed_0"


def pretraining(recipe: Recipe, out: Path) -> float:
    """Seconds of the training without labels that a recipe starts from."""
    return float(require(out / "pretrain", "pretrain")["seconds"]) if "{vicreg}" in recipe.train.values() else 0.0


def validation_logits(folder: Path, cohort: Cohort, cache: Path) -> np.ndarray:
    """EMA logits of the validation images, float32 (n, n_labels), computed once for these very weights."""
    weights = require(folder, "train")["outputs"]["ema.safetensors"]
    file = folder.parent.parent.parent / f"validation_{weights[:16]}.npy"
    if not file.is_file():
        model, card = load_classifier(folder)
        card.require_labels(cohort.labels, where=folder)
        images = load_images(cohort.image_paths(cohort.split("val")), card.image_size, cache)
        is_frozen = require(folder, "train")["config"].get("head_only", False)
        logits = (logits_of_features(model, load_features(model, images, card, cache=cache)) if is_frozen else
                  predict_logits(model, images, card))
        partial = file.with_name(".validation.partial.npy")
        np.save(partial, logits)
        partial.replace(file)
    stored: np.ndarray = np.load(file)
    return stored


def measure(logits: np.ndarray, cohort: Cohort, draws: np.ndarray) -> dict[str, np.ndarray]:
    """Column of the table to its values in each draw, float64 (n_draws,); the first draw is the set as it is."""
    frame = cohort.split("val")
    targets = label_matrix(frame, cohort.labels).astype(np.float64)
    evaluators = [ClassMetrics(labels=targets[:, k], logits=logits[:, k].astype(np.float64))
                  for k in range(len(cohort.labels))]
    values = bootstrap(evaluators, patients=pd.factorize(frame["patient_id"])[0], draws=draws)
    return {name: mean_over_classes(values[groups_of(cohort)[group], METRICS.index(metric)], axis=0)
            for name, (metric, group) in COLUMNS.items()}


def interval(values: np.ndarray) -> str:
    """The first value, and between which 95 % of the others lie."""
    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
    return f"{values[0]:.3f} ({low:.3f} to {high:.3f})"


def table_of(measured: Mapping[str, dict[str, np.ndarray]], minutes: Mapping[str, float]) -> pd.DataFrame:
    """One row per recipe: values, the difference of mAP from the first one, and minutes of training."""
    first = next(iter(measured.values()))["mAP"]
    return pd.DataFrame([{"recipe": name, **{column: interval(values[column]) for column in COLUMNS},
                          "difference of mAP": interval(values["mAP"] - first), "minutes": round(minutes[name], 1)}
                         for name, values in measured.items()])


def ensembles_of(logits: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Name to logits, float32 (n, n_labels), of each ensemble whose recipes are all among ``logits``."""
    return {name: average([logits[member] for member in members]) for name, members in ENSEMBLES.items()
            if set(members) <= logits.keys()}


def run_recipes(options: argparse.Namespace) -> pd.DataFrame:
    """Train what is left to train, and measure everything that was asked for."""
    out, fixed = options.out.resolve(), fixed_keys(options.set)
    cache = out / "cache"
    chosen = {name: recipe for name, recipe in RECIPES.items() if name.startswith(tuple(options.only))}
    if not chosen:
        raise TailfillError(f"--only {' '.join(options.only)}: no recipe's name begins so; see --list")
    call("cohort.prepare", "--config", options.config.resolve(), f"--run={out}")
    cohort = load_cohort(out / "cohort")
    common: dict[str, Any] = {"cohort": str(cohort.folder), "threads": options.threads, "n_seeds": 1, "tracker": "none"}
    find = partial(find_start, run=Run(run=str(out), **common), config=options.config, fixed=fixed)
    rows = patient_draws(cohort.split("val")["patient_id"].nunique(), 1000, np.random.default_rng(0))
    draws = np.concatenate([np.ones((len(rows), 1), dtype=np.uint16), rows], axis=1)
    measured, minutes, logits = {}, {}, {}
    for name, recipe in chosen.items():
        run = Run(run=str(out / name.replace(", ", "_").replace(" ", "-")), **common)
        run.folder.mkdir(exist_ok=True)
        cache.mkdir(exist_ok=True)
        if not (run.folder / "cache").exists():
            (run.folder / "cache").symlink_to(cache)
        folder = train(recipe, run, options.config, settings_of(recipe, fixed, find))
        minutes[name] = (require(folder, "train")["seconds"] + pretraining(recipe, out)) / 60
        logits[name] = validation_logits(folder, cohort, cache)
        measured[name] = measure(logits[name], cohort, draws)
        log.info("%s: %s", name, {key: interval(value) for key, value in measured[name].items()})
    for name, averaged in ensembles_of(logits).items():
        minutes[name] = sum(minutes[member] for member in ENSEMBLES[name])
        measured[name] = measure(averaged, cohort, draws)
    return table_of(measured, minutes)


def main() -> None:
    """All recipes, or some of them."""
    options = parse()
    if options.list:
        shown = [f"{name}: {recipe.arm}, {json.dumps(dict(recipe.train))}" for name, recipe in RECIPES.items()]
        shown += [f"{name}: mean of {'; '.join(members)}" for name, members in ENSEMBLES.items()]
        sys.stdout.write("\n".join(shown) + "\n")
        return
    table = run_recipes(options)
    write_atomically(options.out / "ingredients.csv", table.to_csv(index=False).encode())
    lines = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    sys.stdout.write("".join(f"| {' | '.join(cells)} |\n" for cells in lines))


if __name__ == "__main__":
    run_command(main)
