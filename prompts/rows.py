"""From images per combination to the rows of a plan: source, patient, words, seed and matched negative of each image.

::

    combination --deal--> source image     evenly over the real images that carry it
    charged class --deal--> view, age, sex jointly from one real image of that class, the age moved a little
    lender (prompts.company), where asked for --> the findings that are not scarce, view, age, sex: no source image
    positive --remove scarce findings--> matched negative: same noise, view, age, sex, variant
    starting image (prompts.conditioned) --> view, age, sex are its own

Everything is dealt rather than drawn: shuffled once and used in turn, so that shares are those of reality to within one
image. Rows are interleaved so that any beginning of the plan is a fair sample of it, as a run may be cut short; each
negative follows its positive. It does not promise that the patient described is the source image's: the findings are
the source's, the patient is another one of the class, unless the row starts from a real image.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from prompts.allocate import Combinations, charge
from prompts.phrases import N_VARIANTS, phrase
from prompts.scarcity import share_out

NOTHING_LABELS = ("Normal", "No Finding")
"""Labels that say that there is no finding; a negative without any finding left carries them where they exist."""


NEGATIVE = "negative"
"""What a matched negative is charged to, in place of a label."""
NOBODY = -1
"""In place of the row number of the train image whose findings a positive copies."""
FROM_NOISE = -1
"""In place of the row number of the train image that a row of the plan starts from."""


@dataclass(frozen=True, kw_only=True)
class Positives:
    """One entry per positive row, all (P,): its combination, row of its source or ``NOBODY``, charged label column."""

    combination: np.ndarray
    source: np.ndarray
    charged: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Starts:
    """Rows of the train images that each positive and its negative start from, or ``FROM_NOISE``; int64 (P,) each."""

    positive: np.ndarray
    negative: np.ndarray


def make_positives(
    combinations: Combinations, counts: np.ndarray, targets: np.ndarray, *, scarce: list[int],
    rng: np.random.Generator,
) -> Positives:
    """Deal sources, charge classes and interleave; ``counts`` (K,) images per combination, ``targets`` (S,)."""
    carries = combinations.vectors[:, scarce]
    sources = [deal(members, int(n), rng) if len(members) else np.full(n, NOBODY)
               for members, n in zip(combinations.members, counts, strict=True)]
    positives = Positives(
        combination=np.repeat(np.arange(len(counts)), counts),
        source=np.concatenate([*sources, np.zeros(0, np.int64)]).astype(np.int64),
        charged=np.array(scarce)[charge(carries, counts, targets)],
    )
    order = interleave(positives.charged, rng)
    return Positives(combination=positives.combination[order], source=positives.source[order],
                     charged=positives.charged[order])


def deal(pool: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """``n`` entries of ``pool``, each as often as any other to within one, in random order."""
    rounds = -(-n // len(pool))
    return np.concatenate([rng.permutation(pool) for _ in range(rounds)] or [pool[:0]])[:n]


def interleave(charged: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An order of the rows whose every beginning holds each class in its share, to within one image per class.

    A class with n rows puts its i-th, in random order, somewhere in the i-th of n equal parts of the plan.
    """
    position = np.empty(len(charged))
    for label in np.unique(charged):
        rows = rng.permutation(np.flatnonzero(charged == label))
        position[rows] = (np.arange(len(rows)) + rng.random(len(rows))) / len(rows)
    return np.argsort(position, kind="stable")


def evenly(n: int, share: float) -> np.ndarray:
    """Which of ``n`` rows make up a ``share`` of them, 0 to 1, bool (n,): any stretch holds its share to within one."""
    return np.diff(np.floor(np.arange(n + 1) * share + 1e-9)).astype(bool)


def deal_variants(charged: np.ndarray, shares: Mapping[int, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """The phrasing of each positive, 0 to ``N_VARIANTS`` - 1: dealt evenly where ``shares`` are empty.

    Else ``shares`` holds for each charged class, int (P,), the relative weights (N_VARIANTS,) of the phrasings among
    its positives.
    """
    if not shares:
        return deal(np.arange(N_VARIANTS), len(charged), rng)
    variant = np.empty(len(charged), np.int64)
    for label in np.unique(charged):
        rows = np.flatnonzero(charged == label)
        counts = share_out(len(rows), weights=shares[int(label)], caps=np.full(N_VARIANTS, np.inf))
        variant[rows] = rng.permutation(np.repeat(np.arange(N_VARIANTS), counts))
    return variant


def deal_donors(
    train: pd.DataFrame, matrix: np.ndarray, positives: Positives, rng: np.random.Generator
) -> np.ndarray:
    """The row of the train image whose patient each positive describes, int64 (P,).

    Dealt from the real train images of the charged class, laterals left out unless the class has nothing else; a
    class without any real image takes all of train.
    """
    frontal = train["view"].astype(object).to_numpy() != "LATERAL"
    donor = np.empty(len(positives.charged), np.int64)
    for label in np.unique(positives.charged):
        rows = np.flatnonzero(positives.charged == label)
        pools = (matrix[:, label] & frontal, matrix[:, label], frontal, np.ones(len(train), bool))
        donor[rows] = deal(np.flatnonzero(next(pool for pool in pools if pool.any())), len(rows), rng)
    return donor


def describe_patients(
    train: pd.DataFrame, donor: np.ndarray, positives: Positives, *, age_jitter: int, rng: np.random.Generator
) -> pd.DataFrame:
    """``view``, ``age`` (years, whole, 0 to 100), ``sex`` per positive; null where the donor, a row of train, has none.

    A row whose own source is a lateral is a lateral.
    """
    view = train["view"].astype(object).to_numpy()
    frontal = view != "LATERAL"
    age = np.floor(train["age"].to_numpy(np.float64)[donor])
    age = np.clip(age + rng.integers(-age_jitter, age_jitter + 1, len(age)), 0, 100)
    asked = view[donor]
    asked[(positives.source >= 0) & ~frontal[positives.source]] = "LATERAL"
    return pd.DataFrame({"view": asked, "age": age, "sex": train["sex"].astype(object).to_numpy()[donor]})


def describe_starts(train: pd.DataFrame, start: np.ndarray, patients: pd.DataFrame) -> pd.DataFrame:
    """``patients`` (n rows: view, age, sex), those of the images in ``start``, int64 (n,), in place of their own."""
    described, rows = patients.reset_index(drop=True), start != FROM_NOISE
    own = train.iloc[start[rows]]
    described.loc[rows, ["view", "sex"]] = own[["view", "sex"]].to_numpy(object)
    described.loc[rows, "age"] = np.clip(np.floor(own["age"].to_numpy(np.float64)), 0, 100)
    return described


def remove_scarce(vectors: np.ndarray, scarce: list[int], labels: list[str]) -> np.ndarray:
    """``vectors``, bool (P, L), without the scarce findings; where nothing is left, ``Normal`` becomes true.

    Real images without a finding carry that label, so an all-zero vector would be a rare and wrong one.
    """
    left = vectors.copy()
    left[:, scarce] = False
    for name in NOTHING_LABELS:
        if name in labels:
            left[:, labels.index(name)] |= ~left.any(axis=1)
    return left


def assemble(
    train: pd.DataFrame, labels: list[str], vectors: np.ndarray, positives: Positives, patients: pd.DataFrame, *,
    variant: np.ndarray, lender: np.ndarray, starts: Starts, strength: float, scarce: list[int],
    has_negative: np.ndarray, seed: int, round_: int, batch_size: int, negative_prompt: str,
) -> pd.DataFrame:
    """The plan: every positive, followed by its matched negative where ``has_negative``, bool (P,), says so.

    ``variant``: int (P,), the phrasing of each positive and of its negative. ``lender``: int64 (P,), the rows of the
    train images that lend them their company, or ``NOBODY``.
    """
    n = len(vectors)
    owner = np.repeat(np.arange(n), 1 + has_negative)
    is_negative = np.concatenate([[False], owner[1:] == owner[:-1]])
    asked = np.where(is_negative[:, None], remove_scarce(vectors, scarce, labels)[owner], vectors[owner])
    start = np.where(is_negative, starts.negative[owner], starts.positive[owner])
    patients = describe_starts(train, starts.positive, patients).iloc[owner]
    patients = describe_starts(train, start, patients)
    view, age, sex = (patients[key].to_numpy() for key in ("view", "age", "sex"))
    image_id = np.array([*train["image_id"], None], object)  # row -1: none
    columns: dict[str, object] = {
        "sample_id": [sample_id(seed, round_, i) for i in range(len(owner))],
        "prompt": _prompts(asked, labels, view, age, sex, variant[owner]), "negative_prompt": negative_prompt,
        **{label: asked[:, i].astype(np.int8) for i, label in enumerate(labels)},
        "view": view, "age": age, "sex": sex,
        "charged_to": np.where(is_negative, NEGATIVE, np.array(labels, object)[positives.charged[owner]]),
        "label_source_id": image_id[positives.source[owner]], "company_id": image_id[lender[owner]],
        "init_image_id": image_id[start],
        "strength": np.where(start == FROM_NOISE, np.nan, strength),
        "seed": _noise_seeds(seed, round_, owner), "batch": np.arange(len(owner)) // batch_size, "round": round_,
    }
    return pd.DataFrame(columns)


def sample_id(seed: int, round_: int, index: int) -> str:
    """The id of a row: a hash of the plan's seed, the round, and the row's number in it."""
    return _digest(seed, round_, index).hex()[:16]


def _prompts(
    asked: np.ndarray, labels: list[str], view: np.ndarray, age: np.ndarray, sex: np.ndarray, variant: np.ndarray
) -> list[str]:
    vectors, which = np.unique(asked, axis=0, return_inverse=True)
    said = [[labels[j] for j in np.flatnonzero(vector)] for vector in vectors]
    return [
        phrase(said[i], view=_or_none(v), age=float(a), sex=_or_none(s), variant=int(k))
        for i, v, a, s, k in zip(which.ravel(), view, age, sex, variant, strict=True)
    ]


def _or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _noise_seeds(seed: int, round_: int, owner: np.ndarray) -> np.ndarray:
    """One seed below 2^63 per positive, shared by its negative."""
    per_positive = [int.from_bytes(_digest(seed, round_, i, "noise")[:8], "big") >> 1 for i in range(owner[-1] + 1)]
    return np.array(per_positive, np.int64)[owner]


def _digest(*parts: object) -> bytes:
    return hashlib.sha256(":".join(map(str, parts)).encode()).digest()
