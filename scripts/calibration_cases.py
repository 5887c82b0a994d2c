"""Planted sets of "synthetic" images whose worth is known, and whether the filter would have caught the bad ones.

    helpful      new real images: as good as a generator can be
    useless      repeats of the training images under another name
    half wrong   new images, half of them replaced by other people's without any scarce finding, labelled with one
    all wrong    the same for all of them
    only wrong   the same, in all added slots instead of every second one, so that no repeat of a right one is left
    taken away   new images, the finding that they are charged to taken away, its company and the label left
    memorised    altered copies of training images: moved, turned, re-exposed, noisy

Each set comes as made, and as what the filter's rule ``label_agreement`` keeps of it, with a critic that is the arm
``real``'s head from seeds of its own. Not promised: that other rules or a memorisation gate would not catch more.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from calibration_pools import Pools

from cohort.phantom.prevalence import NORMAL
from cohort.tables import Cohort
from synth.judging.agreement import label_agreement
from synth.judging.evidence import Evidence, Images
from synth.judging.rules import worst_margin

Planted = Callable[[Pools, int, np.random.Generator], pd.DataFrame]
"""From the pools, the cohort's number and a generator to images: the cohort's columns, charged_to, label_source_id and
row."""
FILTERED = ", filtered"
CRITIC = "critic"


def helpful(pools: Pools, cohort: int, rng: np.random.Generator) -> pd.DataFrame:
    """New images."""
    return pools.new.assign(label_source_id=None)


def useless(pools: Pools, cohort: int, rng: np.random.Generator) -> pd.DataFrame:
    """The training images that the copies were made of."""
    row_of = pools.cohorts[cohort].frame.set_index("image_id")["row"]
    copies = pools.copies[cohort]
    return copies.assign(row=row_of.loc[copies["label_source_id"]].to_numpy(), label_source_id=None)


def half_wrong(pools: Pools, cohort: int, rng: np.random.Generator) -> pd.DataFrame:
    """New images, every second one of each label, in random order, replaced by a wrong one."""
    order = pools.new.iloc[rng.permutation(len(pools.new))]
    is_odd = (order.groupby("charged_to").cumcount() % 2 == 1).to_numpy()
    return pd.concat([helpful(pools, cohort, rng).loc[order.index[is_odd]].assign(wrong=False),
                      all_wrong(pools, cohort, rng).loc[order.index[~is_odd]]], ignore_index=True)


def all_wrong(pools: Pools, cohort: int, rng: np.random.Generator) -> pd.DataFrame:
    """Images of the other cohorts without any scarce finding, each labelled with one; one per new image."""
    scarce = pools.cohorts[cohort].scarce
    others = pd.concat([one.split("train") for at, one in enumerate(pools.cohorts) if at != cohort], ignore_index=True)
    plain = others[(others[scarce] == 0).all(axis=1)]
    made = plain.iloc[rng.permutation(len(plain))[:len(pools.new)]].reset_index(drop=True)
    made["charged_to"] = pools.new["charged_to"].iloc[:len(made)]
    for label in scarce:
        made.loc[made["charged_to"] == label, label] = 1
    return made.assign(label_source_id=None, wrong=True, **{NORMAL: 0})


def taken_away(pools: Pools, cohort: int, rng: np.random.Generator) -> pd.DataFrame:
    """New images without the finding that they are charged to."""
    return pools.new.assign(label_source_id=None, wrong=True, row=pools.new["row_without"])


def memorised(pools: Pools, cohort: int, rng: np.random.Generator) -> pd.DataFrame:
    """Altered copies, each in a slot of its source."""
    return pools.copies[cohort]


PLANTED: dict[str, Planted] = {"helpful": helpful, "useless": useless, "half wrong": half_wrong,
                               "all wrong": all_wrong, "only wrong": all_wrong, "taken away": taken_away,
                               "memorised": memorised}
SHARES = {name: 1.0 if name == "only wrong" else 0.5 for name in PLANTED}
"""Share of the added slots that a set takes, as ``arm.synthetic_share``."""


def plant(pools: Pools, cohort: int, critic: np.ndarray, *, seed: Sequence[int]) -> dict[str, pd.DataFrame]:
    """Every planted set of a cohort, filtered or not: name to images with ``keep``.

    ``critic``: float (n_images, n_labels), its logits of all rows of the pools' features.
    """
    sets = {}
    for at, (name, make) in enumerate(PLANTED.items()):
        made = make(pools, cohort, np.random.default_rng([*seed, at]))
        made = made if "wrong" in made else made.assign(wrong=False)
        margin = agreement(made, pools.cohorts[cohort], critic)
        sets[name] = made.assign(keep=True, judged=~np.isnan(margin), agrees=~(margin < 0))
        sets[name + FILTERED] = sets[name].assign(keep=sets[name]["agrees"])
    return sets


def agreement(made: pd.DataFrame, cohort: Cohort, critic: np.ndarray) -> np.ndarray:
    """Each image's margin under ``label_agreement``, float64 (n,): below 0 it is dropped, NaN where nothing judges it.
    """
    train, val = (images_of(cohort.split(split), cohort, critic) for split in ("train", "val"))
    criteria = label_agreement(Evidence(
        made=images_of(made, cohort, critic), charged_to=made["charged_to"].to_numpy(dtype=object),
        scarce=cohort.scarce, train=train, val=val, critics=(CRITIC,),
    ))
    return worst_margin(criteria, len(made))


def images_of(frame: pd.DataFrame, cohort: Cohort, critic: np.ndarray) -> Images:
    """Some rows of a pool as a rule sees them, with the critic's logits and without pixels."""
    return Images(labels=frame[cohort.labels], patients=frame["patient_id"].to_numpy(dtype=object),
                  views=frame["view"].to_numpy(dtype=object), readings={CRITIC: critic[frame["row"]]}, load=_no_pixels)


def _no_pixels(rows: Sequence[int]) -> np.ndarray:
    raise ValueError(f"pixels of {len(rows)} rows were asked for; a pool has features only")
