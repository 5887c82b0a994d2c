"""What each rival trains on: one table of training slots per arm and seed, so that training knows one thing only.

Only the training data may differ between arms, hence the *slots* are compared, not the images. `duplicate` adds to
the real images, for every tail finding, slots filled with repeats of its real images, and for every such slot one
without the finding. `synthetic` has the very same slots; in a share of them a kept synthetic image stands in the place
of the real image whose labels it was made from::

    duplicate   all real images | hernia A       hernia B  ... | real image like A, no hernia       ...
    synthetic   all real images | made from A    hernia B  ... | made from A's labels less hernia   ...

Negatives keep "looks synthetic" from meaning "is rare". Where too few images were kept the real one stays, and the
stamp counts the slot as unfilled. Each seed of `synthetic` is dealt its own kept images: within a charged class they
are sorted by source and sample id, and the k-th goes to seed k modulo n_seeds; no image serves two seeds.
`oversample` repeats images of rare labels by the repeat factor of LVIS (Gupta 2019). Arms of one seed share its layout.
Not promised: that a positive and the negative drawn from the same noise go to the same seed (they are dealt apart, and
the filter may keep only one), that a batch holds a tail slot, or that a label without a positive can be helped.

    python -m classify.arm --config C --arm synthetic --arm-seed 0
"""

import logging
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from classify.slots import label_matrix, load_synthetic, prevalence
from cohort.config import Run, parse
from cohort.errors import TailfillError, nearest, run_command
from cohort.stage import Stage
from cohort.tables import Cohort, arm_schema, load_cohort, write_table

log = logging.getLogger(__name__)

FIRST_EXTRA_SEED = 1000  # from here on no rivals: the filter's critics, and the start that all arms share
NEGATIVE = "negative"
KINDS = ("real", "duplicate", NEGATIVE, "synthetic", "synthetic_negative")


@dataclass(frozen=True, kw_only=True)
class ArmConfig:
    """How many slots the tail gets, and what stands in them."""

    slots_per_class: int = 100
    """Slots added for each tail label in `duplicate` and `synthetic`; 0 or more."""
    negatives: float = 1.0
    """Slots without the finding per added slot with it, 0 to 1 (0: none)."""
    synthetic_share: float = 0.5
    """Share of the added slots of each label, and of the negative ones, that hold a synthetic image, 0 to 1."""
    synthetic_loss_weight: float = 0.3
    """Loss weight of a slot with a synthetic image, above 0 (DiffuLT, NeurIPS 2024, uses .3); real ones have 1."""
    oversample_threshold: float = 0.05
    """`oversample`: labels rarer than this share of the training images are repeated, above 0 to 1."""

    def __post_init__(self) -> None:
        ranges = {"slots_per_class": (0, math.inf), "negatives": (0, 1), "synthetic_share": (0, 1),
                  "synthetic_loss_weight": (1e-6, math.inf), "oversample_threshold": (1e-6, 1)}
        for key, (low, high) in ranges.items():
            if not low <= getattr(self, key) <= high:
                raise TailfillError(f"arm.{key} is {getattr(self, key)}; wanted: {low:g} to {high:g}")


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What an arm is built from."""

    cohort: Cohort
    config: ArmConfig
    rng: np.random.Generator
    synthetic: pd.DataFrame
    """The kept synthetic images that this seed was dealt; empty for arms that use none."""


def real(draw: Draw) -> pd.DataFrame:
    """Each real training image once."""
    return _slots(draw.cohort.split("train")["image_id"], "real")


def oversample(draw: Draw) -> pd.DataFrame:
    """Repeat-factor sampling (LVIS, Gupta 2019, section 4): r_c = max(1, sqrt(t / f_c)), the largest of an image's.

    The fractional part of a factor is rounded up with its own probability.
    """
    train = draw.cohort.split("train")
    targets = label_matrix(train, draw.cohort.labels)
    frequency = np.maximum(prevalence(targets), 1e-12)  # a label that nobody has is nobody's reason to repeat
    factors = np.maximum(1.0, np.sqrt(draw.config.oversample_threshold / frequency))
    image_factors = np.where(targets == 1, factors, 1.0).max(axis=1)
    repeats = np.floor(image_factors + draw.rng.random(len(train))).astype(int)
    extra = np.repeat(train["image_id"].to_numpy(), repeats - 1)
    return pd.concat([real(draw), _slots(extra, "duplicate")], ignore_index=True)


def duplicate(draw: Draw) -> pd.DataFrame:
    """The real images, then the added slots of ``tail_slots``, all filled with repeats of real images."""
    return pd.concat([real(draw), tail_slots(draw.cohort, draw.config, draw.rng)], ignore_index=True)


def synthetic(draw: Draw) -> pd.DataFrame:
    """The slots of ``duplicate``, a share of them holding synthetic images."""
    return fill_slots(duplicate(draw), draw.synthetic, draw.config)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """How an arm is built, and what its table depends on."""

    build: Callable[[Draw], pd.DataFrame]
    settings: tuple[str, ...] = ()
    """The keys of ``ArmConfig`` that matter to it; others may change without making its table stale."""
    needs_synthetic: bool = False


ARMS: dict[str, Arm] = {
    "real": Arm(build=real),
    "oversample": Arm(build=oversample, settings=("oversample_threshold",)),
    "duplicate": Arm(build=duplicate, settings=("slots_per_class", "negatives")),
    "synthetic": Arm(
        build=synthetic, needs_synthetic=True,
        settings=("slots_per_class", "negatives", "synthetic_share", "synthetic_loss_weight"),
    ),
}


def tail_slots(cohort: Cohort, config: ArmConfig, rng: np.random.Generator) -> pd.DataFrame:
    """The slots added for the tail, filled with real images; the same for every arm that gets an equal ``rng``.

    Columns: image_id; kind (``duplicate`` or ``negative``); charged_to (the label, or ``negative``); source (the tail
    image that the slot stands for: itself, or for a negative the positive that it matches). A label's images are dealt
    evenly; a negative is a training image that carries its source's labels less the tail ones, of its source's view
    where there is one, dealt evenly too; where no image carries them there is no slot.
    """
    train = cohort.split("train")
    targets = label_matrix(train, cohort.labels)
    rows, charged = np.zeros(0, dtype=np.int64), list[str]()
    for label in cohort.in_group("tail"):
        images = np.flatnonzero(targets[:, cohort.labels.index(label)] == 1)
        dealt = np.resize(rng.permutation(images), config.slots_per_class if len(images) else 0)
        rows, charged = np.concatenate([rows, dealt]), charged + [label] * len(dealt)
    ids = train["image_id"].to_numpy()
    positives = _slots(ids[rows], "duplicate").assign(charged_to=charged, source=ids[rows])
    steps = np.floor(np.arange(len(rows) + 1) * config.negatives)  # a ratio of .5 asks for every second one
    pairs = _negatives(train, targets, rows[np.diff(steps) > 0], cohort, rng)
    negatives = _slots(ids[pairs[:, 1]], NEGATIVE).assign(charged_to=NEGATIVE, source=ids[pairs[:, 0]])
    return pd.concat([positives, negatives], ignore_index=True)


def _negatives(
    train: pd.DataFrame, targets: np.ndarray, sources: np.ndarray, cohort: Cohort, rng: np.random.Generator
) -> np.ndarray:
    """Pairs (source, training image with the source's labels less the tail ones), as row numbers, int64 (n, 2)."""
    tail = [cohort.labels.index(label) for label in cohort.in_group("tail")]
    vectors = np.nan_to_num(targets, nan=-1).astype(np.int8)
    views = train["view"].fillna("").tolist()
    candidates: dict[tuple[bytes, str | None], list[int]] = {}
    for row in rng.permutation(len(train)):
        for view in (views[row], None):
            candidates.setdefault((vectors[row].tobytes(), view), []).append(int(row))
    used: dict[tuple[bytes, str | None], int] = {}
    pairs: list[tuple[int, int]] = []
    for source in sources:
        wanted = vectors[source].copy()
        wanted[tail] = np.minimum(wanted[tail], 0)
        key: tuple[bytes, str | None] = (wanted.tobytes(), views[source])
        key = key if key in candidates else (wanted.tobytes(), None)
        if key in candidates:
            used[key] = used.get(key, -1) + 1
            pairs.append((int(source), candidates[key][used[key] % len(candidates[key])]))
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def deal(kept: pd.DataFrame, *, seed: int, n_seeds: int) -> pd.DataFrame:
    """The kept synthetic images of one seed: disjoint between seeds, together all of them, even within a class."""
    ordered = kept.sort_values(["charged_to", "label_source_id", "sample_id"])
    return ordered[ordered.groupby("charged_to").cumcount() % n_seeds == seed % n_seeds]


def fill_slots(slots: pd.DataFrame, kept: pd.DataFrame, config: ArmConfig) -> pd.DataFrame:
    """Put kept synthetic images into their share of the added slots, each label and the negatives for themselves.

    An image that names its source only goes into a slot of that source; one that names none (an unseen combination)
    into any slot of its label. Slots are visited in order, which visits sources evenly. No image is used twice.
    """
    filled = slots.copy()
    for charged, group in slots.dropna(subset="charged_to").groupby("charged_to"):
        pool: dict[str, list[tuple[str, str]]] = {}
        own = kept[kept["charged_to"] == charged].sort_values("sample_id")
        for source, image, sample in zip(own["label_source_id"].fillna(""), own["image_id"], own["sample_id"],
                                         strict=True):
            pool.setdefault(source, []).append((image, sample))
        left, waiting = round(config.synthetic_share * len(group)), []
        kind = "synthetic_negative" if charged == NEGATIVE else "synthetic"
        for row, source in zip(group.index, group["source"], strict=True):
            stock = pool.get(source) or pool.get("")
            if left and stock:
                filled.loc[row, ["image_id", "sample_id"]] = stock.pop(0)
                filled.loc[row, ["kind", "loss_weight"]] = kind, config.synthetic_loss_weight
                left -= 1
            else:
                waiting.append(row)
        filled.loc[waiting[:left], "unfilled"] = True
    return filled


def _slots(images: Any, kind: str) -> pd.DataFrame:
    """Slots that hold real images; ``kind``, ``charged_to``, ``source`` and ``unfilled`` are for counting only."""
    ids = pd.Series(np.asarray(images, dtype=object), dtype="str")
    blank = pd.Series([None] * len(ids), dtype="str")
    return pd.DataFrame({"image_id": ids, "sample_id": blank, "loss_weight": 1.0, "phase": 1, "kind": kind,
                         "charged_to": blank, "source": blank, "unfilled": False})


def count_slots(slots: pd.DataFrame) -> dict[str, int]:
    """Slots by what stands in them; they add up to ``slots``. ``unfilled`` are duplicates that wait for an image."""
    counts = {kind: int((slots["kind"] == kind).sum()) for kind in KINDS}
    return {"slots": len(slots), **counts, "unfilled": int(slots["unfilled"].sum())}


def tail_seen(slots: pd.DataFrame, cohort: Cohort, kept: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Per tail label: slots with a positive, how many of them synthetic, and the sum of their loss weights."""
    known = pd.concat([part[["image_id", *cohort.labels]] for part in (cohort.split("train"), kept)])
    merged = slots.merge(known, on="image_id", how="left")
    positives = {label: merged[merged[label].eq(1).fillna(False).astype(bool)] for label in cohort.in_group("tail")}
    return {label: {"slots": len(rows), "synthetic": int(rows["sample_id"].notna().sum()),
                    "weight": round(float(rows["loss_weight"].sum()), 6)} for label, rows in positives.items()}


def arm_folder(run: Run, arm: str, seed: int) -> Path:
    """Where an arm's table stands."""
    return run.folder / "arms" / arm / f"seed_{seed}"


def check_arm(run: Run, arm: str, seed: int) -> None:
    """Raise ``TailfillError`` for an unknown arm, or a seed that the experiment does not have."""
    if arm not in ARMS:
        raise TailfillError(f"arm '{arm}': unknown{nearest(arm, list(ARMS))}")
    if not (0 <= seed < run.n_seeds or (seed >= FIRST_EXTRA_SEED and arm == "real")):
        raise TailfillError(f"arm-seed is {seed}; wanted: 0 to {run.n_seeds - 1} (n_seeds), or for arm 'real' also "
                            f"{FIRST_EXTRA_SEED} and above")


def arm_stage(run: Run, config: ArmConfig, *, arm: str, seed: int) -> Stage:
    """The stage of one arm and seed; its fingerprint holds only what the arm's table depends on."""
    settings: dict[str, Any] = {key: asdict(config)[key] for key in ARMS[arm].settings}
    inputs = {"cohort": run.cohort_folder}
    settings |= {"seed": run.seed} if settings else {}
    if ARMS[arm].needs_synthetic:
        settings |= {"n_seeds": run.n_seeds}
        inputs |= {"filter": run.folder / "synthetic"}
    return Stage("arm", arm_folder(run, arm, seed), config={"arm": arm, "arm_seed": seed, **settings}, inputs=inputs)


def build_arm(
    run: Run, cohort: Cohort, config: ArmConfig, *, arm: str, seed: int
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The slots of an arm, numbered, and what its stamp says of the tail."""
    dealt = cohort.frame.iloc[:0]
    if ARMS[arm].needs_synthetic:
        frame, _ = load_synthetic(run.folder / "synthetic", cohort.labels)
        dealt = deal(frame[frame["keep"]], seed=seed, n_seeds=run.n_seeds)
    rng = np.random.default_rng([run.seed, seed])  # the same for all arms, so that they share the layout of slots
    slots = ARMS[arm].build(Draw(cohort=cohort, config=config, rng=rng, synthetic=dealt))
    slots["slot_id"], slots["repeat"] = np.arange(len(slots)), slots.groupby("image_id").cumcount()
    return slots, {"tail_seen": tail_seen(slots, cohort, dealt), "dealt": len(dealt)}


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
    options = parse("arm", ArmConfig, doc=__doc__, extra={"arm": (str, ...), "arm-seed": (int, ...)})
    run, config, arm, seed = options.run, options.section, options.extra["arm"], options.extra["arm-seed"]
    if not options.dry_run:
        write_arm(run, config, arm=arm, seed=seed)
        return
    check_arm(run, arm, seed)
    slots, _ = build_arm(run, load_cohort(run.cohort_folder), config, arm=arm, seed=seed)
    sys.stdout.write(arm_stage(run, config, arm=arm, seed=seed).describe(counts=count_slots(slots)) + "\n")


if __name__ == "__main__":
    run_command(main)
