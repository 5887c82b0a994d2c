"""Which image takes which slot: kept synthetic images by their source, all others by the cheapest assignment.

No image stands in two slots of a seed, and none serves two seeds: a table is sorted so that like stands beside like,
and within a charged class its k-th row goes to seed k modulo n_seeds; a matched negative goes where the positive of the
same noise goes, so that no two seeds hold twins. Where no image is left for a slot, the repeat of a real one stays in
it and is counted as unfilled. Not promised: that a positive has its negative beside it, as the filter may have dropped
one of them; and that tables of a filter that did not write down the noise (``seed``) yet are dealt by pair.
"""

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from classify.arms.layout import NEGATIVE, ArmConfig
from classify.slots import label_matrix
from cohort.errors import TailfillError
from cohort.tables import Cohort

SUREST_BY = "label_agreement"
"""The rule whose margin says how sure the critics are that an image shows what was asked for, and nothing else."""
WEAK = 0.5  # what a wrong view or source costs beside 1 per wrong label: it decides between equals only


def deal(frame: pd.DataFrame, *, seed: int, n_seeds: int, by: tuple[str, ...]) -> pd.DataFrame:
    """The rows of one seed: disjoint between seeds, together all, even within a ``charged_to`` and along ``by``.

    Where ``frame`` has the noise that an image was drawn from (``seed``), matched negatives are as even as pairs allow.
    """
    ordered = frame.sort_values(["charged_to", *by])
    turn = ordered.groupby("charged_to").cumcount() % n_seeds
    if "seed" in ordered:
        turn = _beside_their_positives(turn, noise=ordered["seed"], negative=ordered["charged_to"] == NEGATIVE,
                                       n_seeds=n_seeds)
    return ordered[turn == seed % n_seeds]


def _beside_their_positives(turn: pd.Series, *, noise: pd.Series, negative: pd.Series, n_seeds: int) -> pd.Series:
    """``turn``, 0 to ``n_seeds`` - 1 per row, where each negative has that of the positive of the same noise.

    One whose positive is not there has the turn that fewest negatives have by then.
    """
    of_noise = turn[~negative].groupby(noise[~negative]).first()
    held = noise[negative].map(of_noise).value_counts().reindex(range(n_seeds), fill_value=0)
    single = noise[negative & ~noise.isin(of_noise.index)].unique()
    fewest_first = sorted((held[i] + k, i) for i in range(n_seeds) for k in range(len(single)))
    left = pd.Series([i for _, i in fewest_first[:len(single)]], index=single, dtype="int64")
    return turn.where(~negative, noise.map(pd.concat([of_noise, left])))


def charge_to_rarest(frame: pd.DataFrame, cohort: Cohort) -> pd.DataFrame:
    """The rows that carry a scarce label, with the one that fewest rows carry in a new column ``charged_to``."""
    by_rarity = frame[cohort.scarce].sum().sort_values(kind="stable").index
    carries = frame[by_rarity].eq(1).fillna(False).to_numpy(dtype=bool)
    charged = by_rarity.to_numpy(dtype=object)[carries.argmax(axis=1)] if len(by_rarity) else None
    return frame.assign(charged_to=charged).iloc[np.flatnonzero(carries.any(axis=1))]


def fill_slots(slots: pd.DataFrame, kept: pd.DataFrame, config: ArmConfig) -> pd.DataFrame:
    """Put kept synthetic images into their share of the added slots, each label and the negatives for themselves.

    An image that names its source only goes into a slot of that source; one that names none (an unseen combination)
    into any slot of its label. Slots are visited in order, which visits sources evenly. No image is used twice.
    """
    filled = slots.copy()
    taken: list[tuple[int, str, str]] = []
    for charged, group in slots.dropna(subset="charged_to").groupby("charged_to"):
        pool: dict[str, list[tuple[str, str]]] = {}
        own = kept[kept["charged_to"] == charged].sort_values("sample_id")
        for source, image, sample in zip(own["label_source_id"].fillna(""), own["image_id"], own["sample_id"],
                                         strict=True):
            pool.setdefault(source, []).append((image, sample))
        left, waiting = round(config.synthetic_share * len(group)), []
        for row, source in zip(group.index, group["source"], strict=True):
            stock = pool.get(source) or pool.get("")
            if left and stock:
                taken.append((row, *stock.pop(0)))
                left -= 1
            else:
                waiting.append(row)
        filled.loc[waiting[:left], "unfilled"] = True
    rows = [row for row, *_ in taken]
    filled.loc[rows, "image_id"] = [image for _, image, _ in taken]
    filled.loc[rows, "sample_id"] = [sample for *_, sample in taken]
    filled.loc[rows, "loss_weight"] = config.synthetic_loss_weight
    filled.loc[rows, "kind"] = np.where(slots.loc[rows, "charged_to"] == NEGATIVE, "synthetic_negative", "synthetic")
    return filled


def surer_half(made: pd.DataFrame) -> pd.DataFrame:
    """Of each ``charged_to`` the half, rounded up, of the kept images that passed ``SUREST_BY`` by most.

    A null margin, *not judged*, comes after all others. Raises ``TailfillError`` where the filter had no such rule.
    """
    if SUREST_BY not in made.columns:
        raise TailfillError(f"filter: synthetic.parquet has no column {SUREST_BY}, by which an arm chooses images; "
                            "wanted: that rule in filter.rules")
    kept = made[made["keep"]].sort_values([SUREST_BY, "sample_id"], ascending=[False, True], na_position="last")
    groups = kept.groupby("charged_to")["sample_id"]
    return kept[2 * groups.cumcount() < groups.transform("size")]


def assign(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns, int64 (n,) each, that go together: as many as can, at the least sum of costs.

    ``cost`` is float (n_slots, n_images), infinite where an image may not take a slot.
    """
    legal = np.isfinite(cost)
    if not legal.any():
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    prohibitive = (1.0 + cost[legal].max()) * (1 + min(cost.shape))
    rows, columns = linear_sum_assignment(np.where(legal, cost, prohibitive))
    served = legal[rows, columns]
    return rows[served], columns[served]


def borrows_company(made: pd.DataFrame) -> bool:
    """Whether synthetic images have a company that was borrowed from any image, so that no slot's source is theirs.

    Told by ``label_source_id``, which is null in all of them; so it is where all are of combinations that nobody has.
    """
    return bool(len(made) and made["label_source_id"].isna().all())


def cost_of_new(slots: pd.DataFrame, images: pd.DataFrame, cohort: Cohort, *, nearest: bool) -> np.ndarray:
    """How far new real images are from the sources of slots, float (n_slots, n_images).

    Half of one for another view, and, where the ``nearest`` is asked for, one per label in which both are known and
    differ. Infinite where an image is not positive for the label that the slot is charged to.
    """
    train = cohort.split("train").set_index("image_id").loc[slots["source"]]
    ours, theirs = label_matrix(train, cohort.labels), label_matrix(images, cohort.labels)
    pairs = [((ours == a).astype(np.float32), (theirs == 1 - a).astype(np.float32)) for a in (0, 1)]
    labels_apart = sum(left @ right.T for left, right in pairs)
    views_apart = train["view"].fillna("").to_numpy()[:, None] != images["view"].fillna("").to_numpy()[None]
    charged = [cohort.labels.index(label) for label in slots["charged_to"]]
    return np.where((theirs == 1).T[charged], nearest * labels_apart + WEAK * views_apart, np.inf)


def cost_of_equals(slots: pd.DataFrame, placed: pd.DataFrame, images: pd.DataFrame, cohort: Cohort) -> np.ndarray:
    """0, or a half for another source, where an image is charged to a slot's label and has the labels of the one that
    was ``placed`` there (a row per slot); infinite elsewhere. float (n_slots, n_images).

    Images whose company was borrowed need only be charged to the same label: hardly two are alike in all, and each
    would be its own only rival. So the filter's choice among companies belongs to what is then compared.
    """
    free = borrows_company(images)

    def keys(frame: pd.DataFrame) -> np.ndarray:
        if free:
            return frame["charged_to"].to_numpy(object)
        words = frame[["charged_to"]].join(frame[cohort.labels].astype("Int8")).astype("str").to_numpy(dtype=object)
        return np.array(["|".join(row) for row in words], dtype=object)

    elsewhere = slots["source"].to_numpy()[:, None] != images["label_source_id"].fillna("").to_numpy()[None]
    return np.where(keys(placed)[:, None] == keys(images)[None], WEAK * elsewhere, np.inf)
