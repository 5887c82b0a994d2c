"""The rivals by name, each a function from the same draw to its slots.

::

    duplicate   all real images | hernia A       hernia B  ... | real image like A, no hernia       ...
    synthetic   all real images | made from A    hernia B  ... | made from A's labels less hernia   ...
    oracle      all real images | new hernia ~ A hernia B  ... | real image like A, no hernia       ...

`real` and `oversample` (repeat factors of LVIS) ask whether the tail needs help at all. `duplicate` repeats its real
images, and every arm below has its very slots, a share of them filled with something else: `synthetic` with kept
images; `unfiltered` with as many of the first round whatever the filter said; `permuted` with those of `synthetic`,
their labels shuffled (is it content or regularisation?); `oracle` with new real images of the same site, the most that
any generator could be worth; `external` with real ones of the site that the generator learnt from.
`X-reconstructed` has the images of these slots encoded and decoded by the generator's autoencoder. `X-harmonised` has
as large a share of the real images so: whatever a generator draws bears its decoder's look, and here that look says
nothing; its rival has reconstructed repeats in the slots of `synthetic`. `X-then-real` ends on the real images alone.
`X-2x` has twice as many slots per class (``amounts``). `fold` is no rival: it may hold validation images, so critics
alone learn from it. Not promised: that the pool of new images reaches; what is missing is counted as unfilled.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from classify.arms.amounts import WithAmounts
from classify.arms.filling import (
    assign,
    borrows_company,
    charge_to_rarest,
    cost_of_equals,
    cost_of_new,
    deal,
    fill_slots,
    surer_half,
)
from classify.arms.layout import HARMONISED, NEGATIVE, ArmConfig, balanced_slots, real_slots, tail_slots
from classify.slots import label_matrix, prevalence
from cohort.preparing.splits import deal_folds
from cohort.tables import RECONSTRUCTED, Cohort


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What an arm is built from."""

    cohort: Cohort
    config: ArmConfig
    rng: np.random.Generator
    """The same for all arms of a seed, so that they share the layout of slots: whatever draws, draws that first."""
    frames: Mapping[str, pd.DataFrame]
    """The tables that the arm needs beside the cohort, by stage."""
    seed: int
    n_seeds: int

    def deal(self, frame: pd.DataFrame, *by: str) -> pd.DataFrame:
        """The rows that this seed gets."""
        return deal(frame, seed=self.seed, n_seeds=self.n_seeds, by=by)


def real(draw: Draw) -> pd.DataFrame:
    """Each real training image once."""
    return real_slots(draw.cohort.split("train")["image_id"], "real")


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
    return pd.concat([real(draw), real_slots(extra, "duplicate")], ignore_index=True)


def fold(draw: Draw) -> pd.DataFrame:
    """Seed 1000 n + k: the train and validation images of all but the k-th of n folds of patients, each once.

    The folds are the same in every experiment on the cohort.
    """
    n_folds, held_out = divmod(draw.seed, 1000)
    images = draw.cohort.split("train", "val")
    folds = deal_folds(images, draw.cohort.labels, n_folds=n_folds, seed=n_folds)
    return real_slots(images["image_id"][folds != held_out], "real")


def duplicate(draw: Draw) -> pd.DataFrame:
    """The real images, then the added slots of ``tail_slots``, all filled with repeats of real images."""
    return pd.concat([real(draw), tail_slots(draw.cohort, draw.config, draw.rng)], ignore_index=True)


def synthetic(draw: Draw) -> pd.DataFrame:
    """The slots of ``duplicate``, a share of them holding kept synthetic images, each in a slot of its source."""
    return _with_synthetic(duplicate(draw), draw)


def unfiltered(draw: Draw) -> pd.DataFrame:
    """The slots of ``synthetic``, each synthetic image replaced by one of the first round, kept or not.

    The stand-in is charged to the same label and has the same label vector; of its slot's source where there is one.
    Where company was borrowed, vectors hardly agree, and the charged label is enough.
    """
    made, repeats = draw.frames["filter"], duplicate(draw)
    slots = _with_synthetic(repeats, draw)
    rows = slots.index[slots["sample_id"].notna()]
    images = draw.deal(made[made["round"] == made["round"].min()], "label_source_id", "sample_id")
    images = images.sample(frac=1, random_state=draw.rng)
    placed = made.set_index("image_id").loc[slots.loc[rows, "image_id"]]
    served, chosen = assign(cost_of_equals(slots.loc[rows], placed, images, draw.cohort))
    slots.loc[rows[served], ["image_id", "sample_id"]] = images.iloc[chosen][["image_id", "sample_id"]].to_numpy()
    missing = rows.delete(served)
    slots.loc[missing] = repeats.loc[missing].assign(unfilled=True)
    return slots


def permuted(draw: Draw) -> pd.DataFrame:
    """The slots of ``synthetic``, each synthetic image with the labels of another, along one random circle of all."""
    slots = synthetic(draw)
    circle = draw.rng.permutation(np.flatnonzero(slots["sample_id"].notna()))
    slots.loc[circle, "labels_from"] = np.roll(slots.loc[circle, "image_id"].to_numpy(dtype=object), 1)
    return slots


def new_real(draw: Draw, stage: str) -> pd.DataFrame:
    """The slots of ``duplicate``; where ``synthetic`` has, or was to have, a positive one, a new image of ``stage``.

    It is positive for the slot's label, and in its other labels and its view nearest to the slot's source. Where the
    synthetic images' company was borrowed, new images have theirs free, too, but for the view; negatives stay those of
    ``duplicate``.
    """
    slots = duplicate(draw)
    meant = _with_synthetic(slots, draw)
    rows = slots.index[(meant["kind"] == "synthetic") | (meant["unfilled"] & (meant["charged_to"] != NEGATIVE))]
    images = charge_to_rarest(draw.frames[stage], draw.cohort)
    images = draw.deal(images, *draw.cohort.labels, "view", "image_id").sample(frac=1, random_state=draw.rng)
    served, chosen = assign(cost_of_new(slots.loc[rows], images, draw.cohort,
                                        nearest=not borrows_company(draw.frames["filter"])))
    slots.loc[rows[served], "image_id"] = images["image_id"].to_numpy()[chosen]
    slots.loc[rows[served], "kind"] = "new_real"
    slots.loc[rows.delete(served), "unfilled"] = True
    return slots


def all_new(draw: Draw, stage: str) -> pd.DataFrame:
    """The slots of ``new_real``, and every new image of ``stage`` once beside the real ones: the oracle in full."""
    images = draw.frames[stage]
    charged = charge_to_rarest(images, draw.cohort)
    others = images.drop(index=charged.index).assign(charged_to="")
    new = draw.deal(pd.concat([charged, others]), *draw.cohort.labels, "view", "image_id")
    return pd.concat([new_real(draw, stage), real_slots(new["image_id"], "new_real")], ignore_index=True)


def reconstructed(draw: Draw, first: Callable[[Draw], pd.DataFrame]) -> pd.DataFrame:
    """The slots of another arm; where ``synthetic`` fills them, or was to, their images come out of its decoder."""
    slots = first(draw)
    meant = _with_synthetic(slots.assign(unfilled=False), draw)
    rows = slots.index[meant["sample_id"].notna() | meant["unfilled"]]
    slots.loc[rows, "image_id"] = RECONSTRUCTED + slots.loc[rows, "image_id"]
    slots.loc[rows, "kind"], slots.loc[rows, "unfilled"] = "reconstructed", False
    return slots


def repeats_reconstructed(draw: Draw) -> pd.DataFrame:
    """``duplicate``, reconstructed."""
    return reconstructed(draw, duplicate)


def oracle_reconstructed(draw: Draw) -> pd.DataFrame:
    """The oracle's slots, reconstructed."""
    return reconstructed(draw, lambda same: new_real(same, "oracle"))


def harmonised(draw: Draw, first: Callable[[Draw], pd.DataFrame]) -> pd.DataFrame:
    """The slots of another arm, as many of its real images out of the generator's decoder as of its added slots are.

    That is ``synthetic_share``; they are drawn by chance among the slots that each real image has once, the same ones
    in all arms of a seed. Not promised: the same share where slots stay unfilled.
    """
    chance = draw.rng.spawn(1)[0]  # important: beside the arm's own draws, which decide its layout
    slots = first(draw)
    base = slots.index[slots["kind"] == "real"]
    rows = base[chance.permutation(len(base)) < round(draw.config.synthetic_share * len(base))]
    slots.loc[rows, "image_id"] = RECONSTRUCTED + slots.loc[rows, "image_id"]
    slots.loc[rows, "kind"] = HARMONISED
    return slots


def then_real(draw: Draw, first: Callable[[Draw], pd.DataFrame]) -> pd.DataFrame:
    """The slots of another arm, and for the second phase the real images alone."""
    return pd.concat([first(draw), real(draw).assign(phase=2)], ignore_index=True)


def crt(draw: Draw) -> pd.DataFrame:
    """Classifier re-training (Kang et al. 2020, 1910.09217, section 4.1): ``real``, then balanced slots for a new head.

    No balance touches the backbone, which learns best without (their finding); it is the head that is biased.
    """
    return pd.concat([real(draw), balanced_slots(draw.cohort, draw.rng).assign(phase=2)], ignore_index=True)


def diverse_to_specific(draw: Draw) -> pd.DataFrame:
    """The slots of ``unfiltered``, and for the second phase those of ``synthetic`` with the surer half of what is kept.

    From diverse images to specific ones, as the curriculum of Liang et al. (ICCV 2025, 2410.13674) goes; what orders
    them there is the guidance by a real image, here how sure the critics are. Both phases have the layout of
    ``duplicate``, and draw on the same images, so that none serves two seeds.
    """
    made = draw.deal(draw.frames["filter"], "label_source_id", "sample_id")
    diverse = replace(draw, frames={"filter": made}, seed=0, n_seeds=1)
    specific = replace(diverse, frames={"filter": surer_half(made)}, rng=deepcopy(draw.rng))
    return pd.concat([unfiltered(diverse), synthetic(specific).assign(phase=2)], ignore_index=True)


def _with_synthetic(slots: pd.DataFrame, draw: Draw) -> pd.DataFrame:
    made = draw.frames["filter"]
    return fill_slots(slots, draw.deal(made[made["keep"]], "label_source_id", "sample_id"), draw.config)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """How an arm is built, and what its table depends on."""

    build: Callable[[Draw], pd.DataFrame]
    settings: tuple[str, ...] = ()
    """The keys of ``ArmConfig`` that matter to it; others may change without making its table stale."""
    needs: tuple[str, ...] = ()
    """The stages, beside the cohort, whose images it uses."""
    has_phase_2: bool = False
    """Whether it ends on slots of its own, for which train.phase_2_share must leave some of the steps."""
    renews_head: bool = False
    """Whether the second phase trains a new head alone."""
    splits: tuple[str, ...] = ("train",)
    """Splits of the cohort whose images it may hold; validation only for critics, never for what is compared."""


LAYOUT = ("slots_per_class", "negatives")
SHARE = (*LAYOUT, "synthetic_share")
FILLED = (*SHARE, "synthetic_loss_weight")

ARMS: Mapping[str, Arm] = WithAmounts({
    "real": Arm(build=real),
    "fold": Arm(build=fold, splits=("train", "val")),
    "oversample": Arm(build=oversample, settings=("oversample_threshold",)),
    "crt": Arm(build=crt, has_phase_2=True, renews_head=True),
    "duplicate": Arm(build=duplicate, settings=LAYOUT),
    "synthetic": Arm(build=synthetic, settings=FILLED, needs=("filter",)),
    "unfiltered": Arm(build=unfiltered, settings=FILLED, needs=("filter",)),
    "permuted": Arm(build=permuted, settings=FILLED, needs=("filter",)),
    "oracle": Arm(build=lambda draw: new_real(draw, "oracle"), settings=SHARE, needs=("filter", "oracle")),
    "oracle-full": Arm(build=lambda draw: all_new(draw, "oracle"), settings=SHARE, needs=("filter", "oracle")),
    "external": Arm(build=lambda draw: new_real(draw, "external"), settings=SHARE, needs=("filter", "external")),
    "duplicate-reconstructed": Arm(build=repeats_reconstructed, settings=SHARE, needs=("filter", "reconstruct")),
    "oracle-reconstructed": Arm(build=oracle_reconstructed, settings=SHARE,
                                needs=("filter", "oracle", "reconstruct")),
    "duplicate-harmonised": Arm(build=lambda draw: harmonised(draw, repeats_reconstructed), settings=SHARE,
                                needs=("filter", "reconstruct")),
    "synthetic-harmonised": Arm(build=lambda draw: harmonised(draw, synthetic), settings=FILLED,
                                needs=("filter", "reconstruct")),
    "permuted-harmonised": Arm(build=lambda draw: harmonised(draw, permuted), settings=FILLED,
                               needs=("filter", "reconstruct")),
    "oracle-reconstructed-harmonised": Arm(build=lambda draw: harmonised(draw, oracle_reconstructed), settings=SHARE,
                                           needs=("filter", "oracle", "reconstruct")),
    "synthetic-then-real": Arm(build=lambda draw: then_real(draw, synthetic), settings=FILLED, needs=("filter",),
                               has_phase_2=True),
    "duplicate-then-real": Arm(build=lambda draw: then_real(draw, duplicate), settings=LAYOUT, has_phase_2=True),
    "diverse-to-specific": Arm(build=diverse_to_specific, settings=FILLED, needs=("filter",), has_phase_2=True),
})
