"""What to ask for again: from the filter's verdict on all rounds so far to the rows of the next one.

::

    budget of a class, less what was accepted of it, plus one standard deviation --> images still wanted
    the ordinary allocation of these over combinations of findings --> images wanted of each combination
    divided by the share of such images that was accepted so far --> images to ask for

A share is smoothed: with few images of a combination it leans on its class's share, and that on the share of all. It is
never taken for less than 1 / ``over_provision``. A class, or a combination, is given up when the upper confidence bound
of its share lies below ``min_acceptance``. What is asked again has another seed, and its words are dealt in proportion
to how each phrasing has fared for the class. A matched negative that was dropped while its positive was kept is asked
again alone: same noise, same patient, in words that were not tried.

Not promised: that the share stays what it was, or that a class whose images fail for a reason of their own is filled.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import beta

from cohort.config import require_values
from prompts.allocate import Allocation, Limits, allocate, combination_limits
from prompts.phrases import N_VARIANTS, phrase
from prompts.plan import Plan, Reality, make_rows, plan_of
from prompts.rows import NEGATIVE, sample_id
from prompts.scarcity import share_out
from prompts.settings import PlanConfig

PRIOR = 4.0
"""Images that the wider share counts for when a narrower one is smoothed."""
CONFIDENCE = 0.95
"""Of the one-sided upper bound on a share."""
MET, OPEN, SHORT, GIVEN_UP = "met", "open", "short", "given up"
"""What a class can be: accepted as budgeted; to be asked again; at the limit of rounds, or nothing left; hopeless."""
NOTHING_LEFT = "nothing is left to ask for: every combination with it has failed too often, or was asked for max_repeat"
"""Why a class is short before the last round."""


@dataclass(frozen=True, kw_only=True)
class FillConfig:
    """How long to go on asking for what the filter has not accepted yet."""

    rounds: int = 4
    """Rounds at most, the first one included; 1 to 100."""
    over_provision: float = 4.0
    """Images asked for per image that is still wanted, at most, in one round; 1 or more."""
    min_acceptance: float = 0.05
    """A class is given up when at most this share of its images passes with 95 % confidence; 0 (never) to below 1."""

    def __post_init__(self) -> None:
        """Raise ``TailfillError`` for the first value out of range."""
        require_values("fill", rounds=(self.rounds, 1 <= self.rounds <= 100, "1 to 100"),
                over_provision=(self.over_provision, self.over_provision >= 1, "1 or more"),
                min_acceptance=(self.min_acceptance, 0 <= self.min_acceptance < 1, "0 or more and below 1"))


def join_verdicts(plan: pd.DataFrame, synthetic: pd.DataFrame) -> pd.DataFrame:
    """The rows of all rounds with ``made`` and ``keep``, bool: an image that was not made was not accepted either."""
    keep = plan["sample_id"].map(synthetic.set_index("sample_id")["keep"])
    return plan.assign(made=keep.notna(), keep=keep.eq(True).fillna(False).astype(bool))


def smooth(accepted: ArrayLike, asked: ArrayLike, wider: ArrayLike) -> np.ndarray:
    """Shares that lean on a wider share as if ``PRIOR`` images had shown it; float64, above 0 where that is."""
    return np.asarray((np.asarray(accepted) + PRIOR * np.asarray(wider)) / (np.asarray(asked) + PRIOR), np.float64)


def upper_bound(accepted: int, asked: int) -> float:
    """Clopper and Pearson's one-sided upper bound on a share; 1 where nothing was asked, or all was accepted."""
    return 1.0 if accepted >= asked else float(beta.ppf(CONFIDENCE, accepted + 1, asked - accepted))


def overall_share(seen: pd.DataFrame) -> float:
    """The share of the images asked for that was accepted, never 0."""
    return float((seen["keep"].sum() + 0.5) / (len(seen) + 1))


def take_stock(seen: pd.DataFrame, budget: Mapping[str, int], config: FillConfig, *, round_: int) -> pd.DataFrame:
    """Where each class stands after a round: the rows of ``fill.parquet`` for it.

    ``seen`` as :func:`join_verdicts` has it, rounds 0 to ``round_``; ``budget``: accepted images wanted per class. An
    image counts for every class that it carries. Last comes ``negative``: its budget is one for each accepted positive
    that was asked with a negative.
    """
    positives = seen[seen["charged_to"] != NEGATIVE]
    pairs = pair_up(seen)
    rows = []
    for label, wanted in budget.items():
        own = positives[positives[label] == 1]
        rows.append(_standing(label, wanted, int(own["keep"].sum()), own, config, round_))
    negatives = seen[seen["charged_to"] == NEGATIVE]
    if len(negatives):
        paired = pairs[pairs["positive"] & pairs["asked"]]
        rows.append(_standing(NEGATIVE, len(paired), int(paired["negative"].sum()), negatives, config, round_))
    return pd.DataFrame(rows)


def _standing(
    label: str, wanted: int, accepted: int, own: pd.DataFrame, config: FillConfig, round_: int
) -> dict[str, object]:
    asked, kept, now = len(own), int(own["keep"].sum()), own[own["round"] == round_]
    bound, status, reason = upper_bound(kept, asked), OPEN, None
    if accepted >= wanted:
        status = MET
    elif bound < config.min_acceptance:
        status = GIVEN_UP
        failed = asked - int(own["made"].sum())
        unmade = f" ({failed} could not be made)" if failed else ""
        reason = (f"{kept} of {asked} images accepted{unmade}: at {CONFIDENCE:.0%} confidence fewer than {bound:.1%} "
                  f"pass, and fill.min_acceptance is {config.min_acceptance:.1%}")
    elif round_ + 1 >= config.rounds:
        status, reason = SHORT, f"{wanted - accepted} are missing after {config.rounds} rounds (fill.rounds)"
    return {"label": label, "round": round_, "budget": wanted, "asked": len(now), "made": int(now["made"].sum()),
            "accepted": accepted, "acceptance": kept / asked if asked else np.nan, "upper_bound": bound,
            "status": status, "reason": reason}


def pair_up(seen: pd.DataFrame) -> pd.DataFrame:
    """Per positive, by its noise (index ``seed``): whether ``positive`` was accepted, a negative of it ``asked``, and
    one accepted (``negative``); all bool."""
    of_negative = seen["charged_to"] == NEGATIVE
    parts = seen.assign(positive=seen["keep"] & ~of_negative, asked=of_negative, negative=seen["keep"] & of_negative)
    pairs: pd.DataFrame = parts.groupby("seed", sort=False)[["positive", "asked", "negative"]].any()
    return pairs


def plan_round(
    reality: Reality, config: PlanConfig, fill: FillConfig, *, seen: pd.DataFrame, stock: pd.DataFrame, seed: int,
    round_: int,
) -> Plan:
    """The next round; without rows where nothing of what is missing can be asked for.

    ``stock`` as :func:`take_stock` has it after the round before. The same arguments give the same plan.
    """
    left = stock[stock["status"] == OPEN].set_index("label")
    missing = left["budget"] - left["accepted"]
    wanted = {label: math.ceil(missing[label] + math.sqrt(missing[label] * (1 - left["acceptance"][label])))
              if label in left.index else 0 for label in reality.scarce}
    targets = np.array([wanted[label] for label in reality.scarce], np.int64)
    shares = shares_of_combinations(reality, seen)
    allocation = _allocate(reality, config, fill, shares=shares, targets=targets)
    asked = inflate(allocation.counts, np.maximum(shares["share"].to_numpy(), 1 / fill.over_provision))
    parts = []
    if asked.any():
        parts.append(make_rows(reality, config, asked, targets, seed=seed, round_=round_,
                               phrasings=fared(reality, seen)))
    if NEGATIVE in left.index:
        n = len(parts[0]) if parts else 0
        share = overall_share(seen[seen["charged_to"] == NEGATIVE])
        times = min(math.floor(fill.over_provision), math.ceil(1 / share))
        again = negatives_again(seen, reality.cohort.labels, times=times, seed=seed, round_=round_, first=n)
        parts.append(again.assign(batch=(n + np.arange(len(again))) // config.batch_size))
    rows = pd.concat(parts, ignore_index=True) if parts else seen.iloc[:0].drop(columns=["made", "keep"])
    return plan_of(rows, reality, wanted=wanted, reasons={}, combinations=int((asked > 0).sum()))


def shares_of_combinations(reality: Reality, seen: pd.DataFrame) -> pd.DataFrame:
    """Per candidate combination (K rows): positives ``asked`` and ``accepted`` so far, and its smoothed ``share``.

    A combination's wider share is the mean of those of its scarce classes, and theirs that of all images.
    """
    labels, columns = reality.cohort.labels, reality.columns
    positives = seen[seen["charged_to"] != NEGATIVE]
    matrix, keep = positives[labels].to_numpy(bool), positives["keep"].to_numpy()
    order = {vector.tobytes(): k for k, vector in enumerate(reality.combinations.vectors)}
    which = np.array([order[row.tobytes()] for row in reality.told_apart(matrix)], np.int64)
    n = len(order)
    asked, accepted = np.bincount(which, minlength=n), np.bincount(which, weights=keep, minlength=n)
    of_class = smooth(matrix[keep][:, columns].sum(axis=0), matrix[:, columns].sum(axis=0), overall_share(seen))
    carries = reality.combinations.vectors[:, columns]
    wider = (carries * of_class).sum(axis=1) / carries.sum(axis=1)
    return pd.DataFrame({"asked": asked, "accepted": accepted.astype(np.int64),
                         "share": smooth(accepted, asked, wider)})


def _allocate(
    reality: Reality, config: PlanConfig, fill: FillConfig, *, shares: pd.DataFrame, targets: np.ndarray
) -> Allocation:
    """Accepted images wanted of each combination, none of one that is hopeless."""
    combinations, columns = reality.combinations, reality.columns
    limits = combination_limits(combinations, columns, targets, spread=config.spread, max_repeat=config.max_repeat)
    high = limits.high
    if config.max_repeat is not None:
        high = np.minimum(high, np.maximum(np.floor(config.max_repeat * combinations.weight) - shares["accepted"], 0))
    hopeless = [upper_bound(int(kept), int(asked)) < fill.min_acceptance
                for kept, asked in zip(shares["accepted"], shares["asked"], strict=True)]
    high = np.where(hopeless, 0, high).astype(np.int64)
    return allocate(combinations.vectors, scarce=columns, targets=targets, weight=combinations.weight,
                    limits=Limits(low=np.minimum(limits.low, high), high=high))


def inflate(counts: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """How many to ask for so that ``counts`` (K,) are accepted at ``shares`` (K,), above 0; the sum rounded up."""
    asks = counts / shares
    return share_out(int(np.ceil(asks.sum() - 1e-9)), weights=asks, caps=np.full(len(asks), np.inf))


def fared(reality: Reality, seen: pd.DataFrame) -> dict[int, np.ndarray]:
    """For each scarce column the smoothed share of accepted images per phrasing, (N_VARIANTS,)."""
    labels, positives = reality.cohort.labels, seen[seen["charged_to"] != NEGATIVE]
    variant = np.array([phrased_as(row, phrasings_of(row, labels)) for row in positives.to_dict("records")], np.int64)
    keep, charged = positives["keep"].to_numpy(), positives["charged_to"].to_numpy()
    found = {}
    for column in reality.columns:
        own = charged == labels[column]
        asked = np.bincount(variant[own], minlength=N_VARIANTS)
        accepted = np.bincount(variant[own & keep], minlength=N_VARIANTS)
        found[column] = smooth(accepted, asked, smooth(accepted.sum(), asked.sum(), overall_share(seen)))
    return found


def phrased_as(row: Mapping[Any, Any], phrasings: list[str]) -> int:
    """Which of the phrasings a row's prompt is; 0 where it is none, as words may have changed since."""
    return phrasings.index(row["prompt"]) if row["prompt"] in phrasings else 0


def phrasings_of(row: Mapping[Any, Any], labels: list[str]) -> list[str]:
    """The prompts of a row in all phrasings."""
    present = [label for label in labels if row[label] == 1]
    view, sex = (row[key] if isinstance(row[key], str) else None for key in ("view", "sex"))
    return [phrase(present, view=view, age=float(row["age"]), sex=sex, variant=v) for v in range(N_VARIANTS)]


def negatives_again(
    seen: pd.DataFrame, labels: list[str], *, times: int, seed: int, round_: int, first: int
) -> pd.DataFrame:
    """The negative of each accepted positive that has no accepted one, ``times`` over, each time in words not tried.

    Their numbers in the round begin with ``first``. Where all words were tried there is none.
    """
    pairs = pair_up(seen)
    missing = pairs.index[pairs["positive"] & pairs["asked"] & ~pairs["negative"]]
    negatives = seen[(seen["charged_to"] == NEGATIVE) & seen["seed"].isin(missing)].drop(columns=["made", "keep"])
    rows: list[dict[Any, Any]] = []
    for _, tried in negatives.groupby("seed", sort=False):
        row = tried.to_dict("records")[-1]
        phrasings = phrasings_of(row, labels)
        at = phrased_as(row, phrasings)
        fresh = [text for text in dict.fromkeys(phrasings[at:] + phrasings[:at]) if text not in set(tried["prompt"])]
        rows += [{**row, "prompt": text, "sample_id": sample_id(seed, round_, first + len(rows) + i), "round": round_}
                 for i, text in enumerate(fresh[:times])]
    return pd.DataFrame(rows, columns=negatives.columns)
