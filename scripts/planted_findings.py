"""Does label agreement tell right images from wrong ones? Asked of images whose truth is known, class by class.

New patients of a prepared phantom cohort's hospital who have a scarce finding are drawn four times, and every time the
same is asked for, which is what they have:

    right      as they are
    missing    the same chest and company, the finding taken away
    wrong      another scarce finding in its place
    excess     another scarce finding beside it

They pass through the filter's own rule with the run's own critics. They are better than a generator's, so this says
what the critics can see at best. With ``--drawn`` the run's generated images take their place, asked for anew:

    right      what was asked for
    missing    the matched negative, from the same noise, asked for with the finding
    wrong      an image made for another scarce finding, asked for with this one instead

Whether a finding that was asked for has been drawn nobody knows, so there *right* is what the generator took for it.
Findings without a sign (controls) are left out. Of the run only its cache grows.

::

    python scripts/planted_findings.py --run runs/demo --out runs/planted [--per-class 40] [--folds 5] [--drawn]
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cohort.errors import TailfillError, run_command
from cohort.phantom.cases import Case, draw_cases
from cohort.phantom.exam import Exam, Sign
from cohort.phantom.settings import PhantomConfig
from cohort.sources.phantom import image_path, write_images
from cohort.stage import hash_file, require, verify
from cohort.tables import Cohort, load_cohort
from prompts.rows import NEGATIVE
from synth.judging.agreement import label_agreement
from synth.judging.critic import Critic, critic_folders, fold_critics
from synth.judging.gathering import Gatherer
from synth.judging.reading import Reader, Share
from synth.judging.rules import Criterion, worst_margin

KINDS = ("right", "missing", "wrong", "excess")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a run with a phantom cohort and trained critics")
    parser.add_argument("--out", type=Path, required=True, help="folder for the images; safe to run again")
    parser.add_argument("--per-class", type=int, default=40, help="images of each kind and class, 1 or more")
    parser.add_argument("--drawn", action="store_true", help="judge the images that the run has generated")
    parser.add_argument("--seed", type=int, default=4242, help="of the new patients; none that the run has used")
    parser.add_argument("--critic-seeds", type=int, nargs="+", default=[1000], help="as filter.critic_seeds")
    parser.add_argument("--folds", type=int, default=0, help="as filter.folds")
    parser.add_argument("--scarce", nargs="+", help="labels to treat as the scarce ones; the cohort's where left out")
    parser.add_argument("--select", default="confident", help="as the rule's setting")
    parser.add_argument("--pass-share", type=float, default=0.9, help="likewise")
    parser.add_argument("--quantile-from", type=int, default=20, help="likewise; 1000 makes every finding a rare one")
    return parser.parse_args(arguments)


def phantom_of(cohort: Cohort, seed: int) -> PhantomConfig:
    """The settings of the cohort for new patients, all in one split; raises ``TailfillError`` for another cohort."""
    settings: dict[str, Any] | None = require(cohort.folder, "cohort")["config"].get("phantom")
    if settings is None:
        raise TailfillError(f"{cohort.folder}: was not made by the phantom, so nobody can take a finding away from it")
    if settings["seed"] == seed:
        raise TailfillError(f"--seed is {seed}, the cohort's own; wanted: another one, for patients of their own")
    lists = {key: tuple(value) for key, value in settings.items() if isinstance(value, list)}
    return PhantomConfig(**settings | lists | {"seed": seed, "val_share": 0.0, "test_share": 0.0, "label_noise": 0.0})


def plant(case: Case, label: str, others: Sequence[str], number: int) -> Iterator[tuple[str, Exam]]:
    """The four exams of a case that has ``label``; ``number`` chooses which of ``others`` comes instead of it."""
    own = next(sign for sign in case.exam.signs if sign.label == label)
    rest = tuple(sign for sign in case.exam.signs if sign.label != label)
    absent = [name for name in others if name not in {sign.label for sign in case.exam.signs}]
    other = Sign(label=absent[number % len(absent)], severity=own.severity, seed=own.seed)
    signs = {"right": case.exam.signs, "missing": rest, "wrong": (*rest, other), "excess": (*case.exam.signs, other)}
    for kind in KINDS:
        yield kind, replace(case.exam, image_id=f"{case.exam.image_id}-{label.replace(' ', '_')}-{kind}",
                            signs=signs[kind])


def draw(scarce: Sequence[str], config: PhantomConfig, folder: Path, per_class: int) -> pd.DataFrame:
    """Draw all images into ``folder``; their rows as the filter has them, with ``kind``."""
    visible = [label for label in scarce if label in config.drawn]
    if len(visible) < 2:
        raise TailfillError(f"{len(visible)} scarce findings of {list(scarce)} have a sign; wanted: two or more")
    rows, exams = [], []
    for label in visible:
        for number, case in enumerate(draw_cases(replace(config, images=per_class, only_with=(label,)))):
            for kind, exam in plant(case, label, visible, number):
                exams.append(exam)
                rows.append({"sample_id": exam.image_id, "path": image_path(exam.image_id), "kind": kind,
                             "view": exam.view, "height": config.size, "width": config.size, "charged_to": label,
                             **dict(zip(config.labels, case.labels.astype(int).tolist(), strict=True))})
    write_images(exams, folder, config.size, processes=1)
    return pd.DataFrame(rows).assign(  # they began from no noise, and from no real image
        sha256=[hash_file(folder / row["path"]) for row in rows], init_image_id=None, seed=-1)


def ask_anew(run: Path, labels: Sequence[str], visible: Sequence[str], per_class: int) -> pd.DataFrame:
    """The same of at most ``per_class`` generated images of each of ``visible`` that have a matched negative."""
    plan = pd.read_parquet(verify(run / "plan", "plan", "plan.parquet"))
    images = pd.read_parquet(verify(run / "images", "generate", "images.parquet"))
    made = plan.merge(images[images["status"] == "ok"].drop(columns="status"), on="sample_id", validate="1:1")
    negatives = made[made["charged_to"] == NEGATIVE].set_index("seed")  # a negative shares its positive's noise
    rows = []
    for at, label in enumerate(visible):
        own = made[(made["charged_to"] == label) & made["seed"].isin(negatives.index)].head(per_class)
        rest = [name for name in visible if name != label]
        others = made[made["charged_to"].isin(rest) & (made[label] == 0)].groupby("charged_to", sort=False)
        instead = others.head(math.ceil(len(own) / max(1, len(rest)))).sample(frac=1, random_state=at).head(len(own))
        asked = instead.assign(**{name: instead[name].where(instead["charged_to"] != name, 0) for name in rest})
        rows += [own.assign(kind="right"), asked.assign(kind="wrong", charged_to=label, **{label: 1}),
                 negatives.loc[own["seed"]].reset_index().assign(
                     kind="missing", charged_to=label, **{name: own[name].to_numpy() for name in labels})]
    return pd.concat(rows, ignore_index=True)


def judge(cohort: Cohort, made: pd.DataFrame, scarce: list[str], folder: Path,
          options: argparse.Namespace) -> list[Criterion]:
    """What the filter's rule says of all images, whose paths are below ``folder``."""
    run: Path = options.run
    critics = critic_folders(run, options.critic_seeds, cohort)
    folds = {f"fold_{seed}": fold for seed, fold in fold_critics(run, options.folds, cohort).items()}
    cpu = torch.device("cpu")
    readers: dict[str, list[Reader]] = {
        "critic": [Critic(folder, cohort.labels, name=f"critic_{seed}", device=cpu)
                   for seed, folder in critics.items()],
        "fold": [Critic(fold.folder, cohort.labels, name=name, device=cpu) for name, fold in folds.items()],
    }
    gatherer = Gatherer(cohort=cohort, made=made, folder=folder, readers=readers, run=run, threads=1,
                        held_out={name: fold.held_out for name, fold in folds.items()})
    sources = gatherer.sources()
    gatherer.read(sources, share=Share())
    evidence = gatherer.evidence(sources, scarce=scarce)
    return label_agreement(evidence, select=options.select, pass_share=options.pass_share,
                           quantile_from=options.quantile_from)


def difference(made: pd.DataFrame, label: str, score: np.ndarray) -> float:
    """Cohen's d of the critics' score for ``label``, float64 (n,), between the images with it and those without it."""
    means, variances = [], []
    for kind in ("right", "missing"):
        own = score[((made["charged_to"] == label) & (made["kind"] == kind)).to_numpy()]
        means.append(own.mean())
        variances.append(own.var())
    return float((means[0] - means[1]) / max(np.sqrt(np.mean(variances)), 1e-12))


def tabulate(made: pd.DataFrame, criteria: list[Criterion]) -> pd.DataFrame:
    """One row per class: images asked for rightly, the share of each kind that passes, and whether it is judged.

    ``seen``: how far apart the critics' scores of the finding put *right* and *missing*, in standard deviations.
    """
    kinds = [kind for kind in KINDS if kind in set(made["kind"])]
    passed = made.assign(passed=~(worst_margin(criteria, len(made)) < 0))
    shares = passed.pivot_table(index="charged_to", columns="kind", values="passed", sort=False)[kinds]
    asking = {criterion.label: criterion for criterion in criteria if criterion.at_least}
    judged = {label: criterion.reason or "yes" for label, criterion in asking.items()}
    seen = {label: difference(made, label, asking[label].score) for label in shares.index}
    table = shares.assign(n=made[made["kind"] == "right"].groupby("charged_to").size(), seen=pd.Series(seen),
                          judged=shares.index.map(judged))
    sure = table[table["judged"] == "yes"]
    overall = sure[kinds].mean().to_frame("mean of judged").T.assign(n=sure["n"].sum(), judged="")
    return pd.concat([table, overall])[["n", *kinds, "seen", "judged"]]


def main() -> None:
    """Draw, judge, print."""
    options = parse()
    torch.set_num_threads(1)
    cohort = load_cohort(options.run / "cohort")
    scarce = options.scarce or cohort.scarce
    phantom = phantom_of(cohort, options.seed)
    if options.drawn:
        folder = options.run / "images"
        visible = [label for label in scarce if label in phantom.drawn]
        made = ask_anew(options.run, cohort.labels, visible, options.per_class)
    else:
        folder = options.out
        made = draw(scarce, phantom, folder, options.per_class)
    criteria = judge(cohort, made, scarce, folder, options)
    sys.stdout.write(tabulate(made, criteria).to_string(float_format=lambda share: f"{share:.2f}") + "\n\n")
    for criterion in criteria:
        if criterion.label in scarce and criterion.at_least:
            bound = "" if criterion.threshold is None else f"at least {criterion.threshold:.3f}, "
            sys.stdout.write(f"{criterion.label}: {bound}{criterion.reason or criterion.source}\n")


if __name__ == "__main__":
    run_command(main)
