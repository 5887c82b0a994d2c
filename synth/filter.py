"""Keep or drop each generated image, for a stated reason, and say how close the sets are to real images.

::

    accelerate launch synth/filter.py --config configs/nih128.yaml
    python -m synth.filter --config C --explain 0f3a96c1d2e4b587

Written are, in ``RUN/synthetic``:

    synthetic.parquet    every image made: the cohort's columns, one margin per rule (>= 0 passes; null where the rule
                         did not judge the image), keep, and the first failing rule as reason
    scores.parquet       every image x criterion: score, threshold, and whether it passed
    thresholds.parquet   every criterion: threshold, its source, the positives behind it, or why it does not judge
    fidelity.parquet     KID, FID, precision, recall, density and coverage of the images made and kept, per encoder,
                         with what real train images reach among themselves, and, with ``filter.reconstructed``,
                         through the generator's autoencoder
    nearest.parquet      every image made with its nearest training image, and memorised.parquet: the set as a whole
    drawn.parquet        whether what was asked for can be read in the images made, finding by finding, by the critics
    probe.parquet        how well a linear probe tells synthetic from real images, and what that would betray
    patients.parquet     whose images thresholds, critic and generator have learnt from

Images that failed to generate are counted and are no rows here. The labels are those asked for: a kept image is one
that the critic does not contradict, not one that a radiologist has read. Each image is decoded once, and what was read
of it, and which training images are nearest to it, is kept in ``RUN/cache/readings``: judging again costs a minute, and
a further round of images no more than its images. Processes of a launch share the reading; the main one judges.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from classify.learning.training import LONGEST_WAIT
from cohort.config import Run, parse, places
from cohort.errors import TailfillError, run_command
from cohort.pipeline import FOLDS
from cohort.provenance import FILE, check_no_overlap, write_patients
from cohort.stage import Stage, read_stamp, verify
from cohort.tables import (
    Cohort,
    images_schema,
    load_cohort,
    plan_schema,
    read_table,
    synthetic_schema,
    write_table,
)
from synth.judging.copies import CopyReader
from synth.judging.critic import FIRST_SEED, Critic, Fold, critic_folders, fold_critics
from synth.judging.evidence import NEGATIVE, Evidence
from synth.judging.gathering import Gatherer, find_reconstructed
from synth.judging.memorisation import nearer_to_train, nearest_pairs
from synth.judging.reading import Reader, Share
from synth.judging.rules import RULES, apply_rules, check_rules, read_by
from synth.judging.rules import own_files as rule_files
from synth.judging.sanity import PixelStatistics
from synth.judging.verdicts import decide, explain, list_scores, list_thresholds
from synth.measuring.drawn import write_drawn
from synth.measuring.encoders import check_encoder, make_encoders
from synth.measuring.encoders import own_files as encoder_files
from synth.measuring.fidelity import measure_sets
from synth.measuring.manifold import NEIGHBOURS
from synth.measuring.networks import Encoder
from synth.measuring.probe import probe_origin

log = logging.getLogger(__name__)

RANDOM_STREAM = 5
"""Set apart from the other stages' draws under the experiment's seed."""
OUTPUTS = ["synthetic.parquet", "scores.parquet", "thresholds.parquet", "fidelity.parquet", "probe.parquet", FILE]
COPIES = ["nearest.parquet", "memorised.parquet"]
"""Written where the rule against memorisation has read what copies keep."""


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """What judges the images, and how strictly."""

    encoders: tuple[str, ...] = places(("efficientnet_lite0",))
    """Spaces in which fidelity is measured, see synth/measuring/encoders.py; rules use the first. Never the critic."""
    critic_seeds: tuple[int, ...] = (1000,)
    """Seeds (1000 or more) of arm `real` whose mean logit is the critic's; read only if a rule needs the critic."""
    folds: int = 0
    """Out-of-fold critics (2 to 20 trainings of arm `fold`) for findings with few validation images; 0: none.

    They learn from train and validation less one fold of patients each, and judge that fold and all images made."""
    rules: dict[str, dict[str, int | float | str | bool] | None] = field(default_factory=lambda: dict.fromkeys(RULES))
    """Rules in the order in which they give the reason, each with its settings (null: defaults); see judging/rules."""
    reconstructed: bool = False
    """Whose fault a distance is: measure against the images of stage `reconstruct` as well, which must be complete."""
    fidelity_n: int = 1000
    """Images per side at most for the numbers of a whole set, 500 or more for FID to exist; larger sets are sampled."""
    kid_subset: int = 100
    """Images per side of KID's random subsets at most, 5 or more; half the smallest set where that is less."""
    neighbours: int = NEIGHBOURS
    """k of precision, recall, density and coverage; they need ten times as many images per side."""

    def __post_init__(self) -> None:
        if not self.encoders:
            raise TailfillError("filter.encoders is empty; wanted: one or more")
        for name in self.encoders:
            check_encoder(name)
        check_rules(self.rules)
        for key, least in (("fidelity_n", 2), ("kid_subset", 5), ("neighbours", 1)):
            if getattr(self, key) < least:
                raise TailfillError(f"filter.{key} is {getattr(self, key)}; wanted: {least} or more")
        if self.folds and self.folds not in FOLDS:
            raise TailfillError(f"filter.folds is {self.folds}; wanted: 0 for none, or {FOLDS[0]} to {FOLDS[-1]}")
        if "critic" in self.reads and (not self.critic_seeds or min(self.critic_seeds) < FIRST_SEED):
            raise TailfillError(f"filter.critic_seeds is {list(self.critic_seeds)}; wanted: one or more, each "
                                f"{FIRST_SEED} or more: those below are the arms'")

    @property
    def reads(self) -> set[str]:
        """Kinds of readers that the rules in use need, and the encoders of fidelity."""
        return read_by(self.rules) | {"encoder"}

    @property
    def own_files(self) -> dict[str, Path]:
        """The files of the user's own rules and encoders: the fingerprint holds their contents."""
        return rule_files(self.rules) | encoder_files(self.encoders)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the stage reads, checked."""

    cohort: Cohort
    images: pd.DataFrame
    """Every row of images.parquet with the plan's columns."""
    folder: Path
    """Of the images."""
    critics: dict[int, Path]
    folds: dict[int, Fold]
    """Out-of-fold critics."""
    learnt: list[Path]
    """Folders of the stages that learnt from patients: generator and critics."""
    reconstructed: list[Path]
    """Files of the train images through the autoencoder, in their order; empty where they are not asked for."""

    @property
    def made(self) -> pd.DataFrame:
        """The rows that have an image."""
        return self.images[self.images["status"] == "ok"].reset_index(drop=True)

    @property
    def scarce(self) -> list[str]:
        """The labels that the plan pays for, in column order."""
        return [label for label in self.cohort.labels if (self.images["charged_to"] == label).any()]


def read_inputs(run: Run, config: FilterConfig) -> Inputs:
    """Read and check; raises ``TailfillError`` before any pixel is decoded or any model is loaded."""
    cohort = load_cohort(run.cohort_folder)
    folder = run.folder / "images"
    images = read_table(verify(folder, "generate", "images.parquet"), images_schema())
    plan = read_table(verify(run.folder / "plan", "plan", "plan.parquet"), plan_schema(cohort.labels))
    unplanned = set(images["sample_id"]) - set(plan["sample_id"])
    if unplanned:
        raise TailfillError(f"{folder / 'images.parquet'}: sample_id {min(unplanned)} is not in the plan")
    critics = critic_folders(run.folder, config.critic_seeds, cohort) if "critic" in config.reads else {}
    folds = fold_critics(run.folder, config.folds, cohort) if "fold" in config.reads else {}
    makers = [folder, *(Path(entry["path"]) for entry in (read_stamp(folder) or {})["inputs"].values())]
    makers = [maker for maker in makers if (maker / FILE).is_file()]
    for maker in makers:
        check_no_overlap(maker, cohort)
    joined = images.merge(plan.drop(columns="batch"), on="sample_id", validate="one_to_one")
    return Inputs(cohort=cohort, images=joined, folder=folder, critics=critics, folds=folds,
                  reconstructed=find_reconstructed(run, cohort) if config.reconstructed else [],
                  learnt=[*makers, *critics.values(), *(fold.folder for fold in folds.values())])


def make_stage(run: Run, config: FilterConfig, inputs: Inputs) -> Stage:
    """The stage; its fingerprint holds the rules' order, which decides the reasons."""
    folders = {"cohort": run.cohort_folder, "plan": run.folder / "plan", "generate": run.folder / "images"}
    folders |= {f"critic_{seed}": folder for seed, folder in inputs.critics.items()}
    folders |= {f"fold_{seed}": fold.folder for seed, fold in inputs.folds.items()}
    folders |= {"reconstruct": run.folder / "reconstructed"} if config.reconstructed else {}
    folders |= config.own_files
    settings = asdict(config) | {"rule_order": list(config.rules), "seed": run.seed}
    return Stage("filter", run.folder / "synthetic", config=settings, inputs=folders)


def make_gatherer(
    run: Run, config: FilterConfig, inputs: Inputs, *, encoders: Sequence[Encoder], device: torch.device
) -> Gatherer:
    """The sets of images with all that reads them; loads the models."""
    labels = inputs.cohort.labels
    readers: dict[str, Sequence[Reader]] = {
        "pixels": [PixelStatistics()],
        "encoder": encoders,
        "critic": [Critic(folder, labels, name=f"critic_{seed}", device=device)
                   for seed, folder in inputs.critics.items()],
        "copies": [CopyReader()],
        "fold": [Critic(fold.folder, labels, name=f"fold_{seed}", device=device)
                 for seed, fold in inputs.folds.items()],
    }
    return Gatherer(cohort=inputs.cohort, made=inputs.made, folder=inputs.folder, run=run.folder, threads=run.threads,
                    readers={kind: readers[kind] for kind in readers if kind in config.reads},
                    reconstructed=inputs.reconstructed,
                    held_out={f"fold_{seed}": fold.held_out for seed, fold in inputs.folds.items()})


def count(inputs: Inputs, synthetic: pd.DataFrame, rules: list[str]) -> dict[str, int]:
    """planned = made + failed, made = kept + dropped; dropped = the sum of dropped_<rule>."""
    kept = int(synthetic["keep"].sum())
    return {"planned": len(inputs.images), "made": len(synthetic), "failed": len(inputs.images) - len(synthetic),
            "kept": kept, "dropped": len(synthetic) - kept,
            **{f"dropped_{rule}": int((synthetic["reason"] == rule).sum()) for rule in rules}}


def gather(gatherer: Gatherer, inputs: Inputs, accelerator: Accelerator) -> Evidence | None:
    """Read all images, each process its share; the evidence, in the main process alone."""
    with accelerator.main_process_first():  # decodes the real images into their cache for all
        sources = gatherer.sources()
    gatherer.read(sources, share=Share(rank=accelerator.process_index, world=accelerator.num_processes),
                  wait=accelerator.wait_for_everyone)
    accelerator.wait_for_everyone()
    return gatherer.evidence(sources, scarce=inputs.scarce) if accelerator.is_main_process else None


def judge(
    run: Run, config: FilterConfig, inputs: Inputs, stage: Stage, *, evidence: Evidence, encoders: Sequence[Encoder]
) -> None:
    """Decide, measure, write."""
    cohort, made = inputs.cohort, inputs.made
    verdicts = apply_rules(config.rules, evidence)
    synthetic = decide(made, cohort, verdicts)
    keep, rng = synthetic["keep"].to_numpy(dtype=bool), np.random.default_rng([run.seed, RANDOM_STREAM])
    fidelity = measure_sets(
        evidence, encoders=encoders, keep=keep, groups=cohort.groups, max_n=config.fidelity_n,
        kid_subset=config.kid_subset, k=config.neighbours, rng=rng,
    )
    write_table(synthetic, stage.folder / OUTPUTS[0], synthetic_schema(cohort.labels, list(verdicts)))
    write_table(list_scores(made["sample_id"], verdicts), stage.folder / "scores.parquet")
    write_table(list_thresholds(verdicts), stage.folder / "thresholds.parquet")
    write_table(fidelity, stage.folder / "fidelity.parquet")
    write_table(probe_origin(evidence, keep=keep), stage.folder / "probe.parquet")
    outputs = [*OUTPUTS, *([write_drawn(evidence, stage.folder)] if "critic" in config.reads else [])]
    if "copies" in config.reads:
        write_copies(stage.folder, made, evidence, cohort)
        outputs += COPIES
    write_patients(stage.folder, cohort.split("train", "val")["patient_id"], salt=cohort.salt, inherited=inputs.learnt)
    counts = count(inputs, synthetic, list(verdicts))
    stage.finish(outputs=outputs, counts=counts, extra={
        "rules": list(verdicts), "roots": {"synthetic": str(inputs.folder.resolve())}, "scarce": inputs.scarce,
        "provenance": (read_stamp(inputs.folder) or {})["extra"].get("provenance", "unknown"),
    })
    log.info("filter: %s", ", ".join(f"{key} {value}" for key, value in counts.items()))


def write_copies(folder: Path, made: pd.DataFrame, evidence: Evidence, cohort: Cohort) -> None:
    """Each image's nearest training image by name, and what the set as a whole says of memorisation."""
    pairs = nearest_pairs(evidence)
    train = cohort.split("train")["image_id"].to_numpy()
    named = pairs.drop(columns=["row", "nearest"]).assign(
        sample_id=made["sample_id"].to_numpy()[pairs["row"]], image_id=train[pairs["nearest"]])
    write_table(named, folder / COPIES[0])
    write_table(pd.DataFrame([asdict(nearer_to_train(evidence))]), folder / COPIES[1])


def main() -> None:
    """Parse, check, judge; or explain one image of a finished folder."""
    options = parse("filter", FilterConfig, doc=__doc__, extra={"explain": (str, None)})
    run, config = options.run, options.section
    if options.extra["explain"] is not None:
        sys.stdout.write(explain(run.folder / "synthetic", options.extra["explain"]))
        return
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)])
    torch.set_num_threads(run.threads)
    inputs = read_inputs(run, config)
    stage = make_stage(run, config, inputs)
    if options.dry_run:
        if accelerator.is_main_process:
            sys.stdout.write(stage.describe(rows=len(inputs.made), charged_to_negatives=int(
                (inputs.made["charged_to"] == NEGATIVE).sum()), scarce=inputs.scarce) + "\n")
        return
    if stage.is_complete():
        log.info("filter: complete, nothing to do")
        return
    if inputs.made.empty:
        raise TailfillError(f"{inputs.folder / 'images.parquet'}: holds no image with status ok; nothing to filter")
    if accelerator.is_main_process:
        stage.begin()
    encoders = make_encoders(config.encoders, device=accelerator.device)
    gatherer = make_gatherer(run, config, inputs, encoders=encoders, device=accelerator.device)
    evidence = gather(gatherer, inputs, accelerator)
    if evidence is not None:
        judge(run, config, inputs, stage, evidence=evidence, encoders=encoders)


if __name__ == "__main__":
    run_command(main)
