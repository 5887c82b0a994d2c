"""What each rival trains on: one table of training slots per arm and seed, so that training knows one thing only.

Only the training data may differ between arms, hence the *slots* are compared, not the images: all arms of a seed but
`real` and `oversample` share their layout (``classify/arms/layout.py``), and differ in what stands in it
(``classify/arms/rivals.py``). Where an arm has too few images the repeat of a real one stays, and the stamp counts the
slot as unfilled. No synthetic and no new real image serves two seeds. Not promised: that a batch holds a tail slot, or
that a label without a positive can be helped.

    python -m classify.arm --config C --arm synthetic --arm-seed 0
"""

import logging
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from classify.arms.layout import HARMONISED, KINDS, ArmConfig
from classify.arms.rivals import ARMS, Draw
from classify.learning.settings import FIRST_EXTRA_SEED
from classify.slots import load_pools
from cohort.config import Run, parse
from cohort.errors import TailfillError, nearest, run_command
from cohort.pipeline import FOLDERS, FOLDS, fold_seeds
from cohort.stage import Stage
from cohort.tables import Cohort, arm_schema, load_cohort, write_table

log = logging.getLogger(__name__)

SEEDS_OF_FOLDS = frozenset(seed for n_folds in FOLDS for seed in fold_seeds(n_folds))


def count_slots(slots: pd.DataFrame) -> dict[str, int]:
    """Slots by what stands in them; they add up to ``slots``. ``unfilled`` are duplicates that wait for an image."""
    counts = {kind: int((slots["kind"] == kind).sum()) for kind in KINDS}
    return {"slots": len(slots), **counts, "unfilled": int(slots["unfilled"].sum())}


def tail_seen(slots: pd.DataFrame, cohort: Cohort, frames: Iterable[pd.DataFrame]) -> dict[str, dict[str, float]]:
    """Per scarce label: first-phase slots with a positive, how many of them synthetic, and their summed loss weights.

    ``frames`` holds the tables whose images the slots name.
    """
    known = pd.concat([part[["image_id", *cohort.labels]] for part in frames])
    first = slots[slots["phase"] == 1]
    labels_of = first["labels_from"].fillna(first["image_id"])
    targets = known.set_index("image_id").loc[labels_of].eq(1).fillna(False).to_numpy(dtype=bool)
    positives = {label: first[targets[:, cohort.labels.index(label)]] for label in cohort.scarce}
    return {label: {"slots": len(rows), "synthetic": int(rows["sample_id"].notna().sum()),
                    "weight": round(float(rows["loss_weight"].sum()), 6)} for label, rows in positives.items()}


def arm_folder(run: Run, arm: str, seed: int) -> Path:
    """Where an arm's table stands."""
    return run.folder / "arms" / arm / f"seed_{seed}"


def pool_folders(run: Run, arm: str) -> dict[str, Path]:
    """The stages, beside the cohort, whose images an arm uses, with their folders."""
    return {stage: run.folder / FOLDERS[stage] for stage in ARMS[arm].needs}


def check_arm(run: Run, arm: str, seed: int) -> None:
    """Raise ``TailfillError`` for an unknown arm, or a seed that the experiment does not have."""
    if arm not in ARMS:
        raise TailfillError(f"arm '{arm}': unknown{nearest(arm, list(ARMS))}")
    if arm == "fold":
        if seed not in SEEDS_OF_FOLDS:
            raise TailfillError(f"arm 'fold': is for critics alone, and arm-seed is {seed}; wanted: 1000 n + k for the "
                                f"k-th of n folds, n from {FOLDS[0]} to {FOLDS[-1]} (filter.folds), k from 0 on")
    elif not (0 <= seed < run.n_seeds or (seed >= FIRST_EXTRA_SEED and arm == "real")):
        raise TailfillError(f"arm-seed is {seed}; wanted: 0 to {run.n_seeds - 1} (n_seeds), or for arm 'real' also "
                            f"{FIRST_EXTRA_SEED} and above")


def check_phases(arm: str, *, phase_2_share: float, steps: int) -> None:
    """Raise ``TailfillError`` for an arm of two phases, one of which none of ``steps`` would reach."""
    if ARMS[arm].has_phase_2 and not 0 < round(steps * phase_2_share) < steps:
        raise TailfillError(f"train.phase_2_share is {phase_2_share:g}, and the arm '{arm}' has two phases; wanted: a "
                            f"share that leaves each some of the {steps} steps (train.steps), or no such arm")


def arm_stage(run: Run, config: ArmConfig, *, arm: str, seed: int) -> Stage:
    """The stage of one arm and seed; its fingerprint holds only what the arm's table depends on."""
    settings: dict[str, Any] = {key: asdict(config)[key] for key in ARMS[arm].settings}
    settings |= {"seed": run.seed} if settings or ARMS[arm].renews_head else {}  # where something is drawn
    settings |= {"n_seeds": run.n_seeds} if ARMS[arm].needs else {}
    return Stage("arm", arm_folder(run, arm, seed), config={"arm": arm, "arm_seed": seed, **settings},
                 inputs={"cohort": run.cohort_folder, **pool_folders(run, arm)})


def build_arm(
    run: Run, cohort: Cohort, config: ArmConfig, *, arm: str, seed: int
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The slots of an arm, numbered, and what its stamp says of the tail."""
    frames = {name: pool.frame for name, pool in load_pools(pool_folders(run, arm), cohort).items()}
    slots = ARMS[arm].build(Draw(cohort=cohort, config=config, rng=np.random.default_rng([run.seed, seed]),
                                 frames=frames, seed=seed, n_seeds=run.n_seeds))
    slots["slot_id"], slots["repeat"] = np.arange(len(slots)), slots.groupby("image_id").cumcount()
    slots["added"] = ~slots["kind"].isin(("real", HARMONISED))  # of the layout, whatever fills a slot later
    named = (cohort.split(*ARMS[arm].splits), *frames.values())
    return slots, {"tail_seen": tail_seen(slots, cohort, named)}


def write_arm(run: Run, config: ArmConfig, *, arm: str, seed: int) -> None:
    """Build and write an arm's table, unless it is complete."""
    check_arm(run, arm, seed)
    cohort, stage = load_cohort(run.cohort_folder), arm_stage(run, config, arm=arm, seed=seed)
    if stage.is_complete():
        log.info("arm %s, seed %d: complete, nothing to do", arm, seed)
        return
    slots, extra = build_arm(run, cohort, config, arm=arm, seed=seed)
    stage.begin()
    write_table(slots[list(arm_schema().columns)], stage.folder / "arm.parquet", arm_schema())
    counts = count_slots(slots)
    stage.finish(outputs=["arm.parquet"], counts=counts, extra=extra)
    log.info("arm %s, seed %d: %s", arm, seed, ", ".join(f"{key} {value:,}" for key, value in counts.items()))


def main() -> None:
    """One arm, one seed."""
    names = "\n".join(f"    {arm}" for arm in ARMS)
    options = parse("arm", ArmConfig, doc=f"{__doc__}\nArms::\n\n{names}\n",
                    extra={"arm": (str, ...), "arm-seed": (int, ...)})
    run, config, arm, seed = options.run, options.section, options.extra["arm"], options.extra["arm-seed"]
    if not options.dry_run:
        write_arm(run, config, arm=arm, seed=seed)
        return
    check_arm(run, arm, seed)
    slots, _ = build_arm(run, load_cohort(run.cohort_folder), config, arm=arm, seed=seed)
    sys.stdout.write(arm_stage(run, config, arm=arm, seed=seed).describe(counts=count_slots(slots)) + "\n")


if __name__ == "__main__":
    run_command(main)
