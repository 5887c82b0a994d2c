"""Who is withheld when plentiful findings are made rare?

A rehearsal takes a finding with many positives down to the rarity of the tail, in training *and* validation, because a
real tail has a poor validation set too. Patients leave whole: a second film of the same person would give the finding
away. Test stays as it is, so that intervals are narrow.

Several findings can be thinned at once. Patients with any of them are met in random order, and one stays while there is
room for every finding that he has. Comorbidities fall as they may. What that cannot keep is the company among the
thinned findings themselves: where half of A's patients also have B, and B is thinned as well, those who remain of A
have it less often. ``overlap`` says how often, ``sets_apart`` puts findings that meet too often into different sets,
each thinned by itself; below the bound one cohort, hence one generator, serves them all. It is sound there because
everyone withheld for any of them leaves every arm.

Not promised: exactly ``level`` positives; a patient with several may not fit, so a few less can remain, never more.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cohort.errors import TailfillError, nearest

THINNED = ("train", "val")
"""The splits that are thinned."""


def thin(
    frame: pd.DataFrame, findings: Sequence[str], *, level: int, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Which rows of a cohort's ``frame`` are withheld: bool (n_rows,), all rows of a patient alike.

    Train keeps at most ``level`` positive images (0 or more; 0 withholds every patient with one of the findings),
    validation as large a share of its own, one at least. The same ``rng`` meets patients in the same order at every
    level. Raises ``TailfillError`` for a finding that has no more positives in train than ``level``.
    """
    withheld = np.zeros(len(frame), dtype=bool)
    patients = frame["patient_id"].to_numpy(dtype=object)
    rooms = {split: np.array(list(room_of(frame, findings, level=level)[split].values())) for split in THINNED}
    for split in THINNED:
        inside = (frame["split"] == split).to_numpy()
        positive = frame.loc[inside, list(findings)].eq(1).fillna(False).astype(np.int64)
        counts = positive.groupby(patients[inside]).sum()
        counts = counts[counts.sum(axis=1) > 0]
        order, room = rng.permutation(len(counts)), rooms[split]
        gone = []
        for place in order:
            needs = counts.to_numpy()[place]
            if (needs <= room).all():
                room = room - needs
            else:
                gone.append(counts.index[place])
        withheld |= inside & np.isin(patients, np.array(gone, dtype=object))
    return withheld


def room_of(frame: pd.DataFrame, findings: Sequence[str], *, level: int) -> dict[str, dict[str, int]]:
    """Split to finding to the most positive images that stay.

    Raises ``TailfillError`` for no finding, an unknown one, and one of which there is nothing to withhold.
    """
    if not findings or level < 0:
        raise TailfillError(f"thinning {list(findings)} to {level} positives: wanted: one finding or more, and 0 or "
                            "more positives")
    rooms: dict[str, dict[str, int]] = {split: {} for split in THINNED}
    for finding in findings:
        if finding not in frame:
            raise TailfillError(f"thinning: no label '{finding}'{nearest(finding, list(frame.columns))}")
        n = {split: int((frame.loc[frame["split"] == split, finding] == 1).sum()) for split in THINNED}
        if n["train"] <= level:
            raise TailfillError(f"thinning '{finding}' to {level} positives: train has {n['train']}; wanted: a lower "
                                "level, or a finding with more")
        rooms["train"][finding] = level
        rooms["val"][finding] = max(1, round(level * n["val"] / n["train"])) if level else 0
    return rooms


def overlap(frame: pd.DataFrame, findings: Sequence[str]) -> pd.DataFrame:
    """Share of the train positives of the row's finding that carry the column's too: float64, 0 to 1, diagonal 0."""
    positive = frame.loc[frame["split"] == "train", list(findings)].eq(1).fillna(False).to_numpy(dtype=np.float64)
    both, own = positive.T @ positive, positive.sum(axis=0)
    shares = both / np.maximum(own, 1)[:, None]
    np.fill_diagonal(shares, 0.0)
    return pd.DataFrame(shares, index=list(findings), columns=list(findings))


def sets_apart(frame: pd.DataFrame, findings: Sequence[str], *, max_overlap: float) -> list[list[str]]:
    """The findings in sets that may be thinned together: no pair meets in more than ``max_overlap`` (0 to 1) of either.

    Each goes into the first set that it may join, in the order given.
    """
    shares = overlap(frame, findings).to_numpy()
    meets = np.maximum(shares, shares.T)
    place = {finding: at for at, finding in enumerate(findings)}
    sets: list[list[str]] = []
    for finding in findings:
        free = (one for one in sets if all(meets[place[finding], place[other]] <= max_overlap for other in one))
        chosen = next(free, None)
        if chosen is None:
            sets.append([finding])
        else:
            chosen.append(finding)
    return sets


def thinning_rows(
    frame: pd.DataFrame, withheld: NDArray[np.bool_], findings: Sequence[str], groups: Mapping[str, str]
) -> pd.DataFrame:
    """What a thinning did to every label: label, group (the thinned cohort's), thinned, split, and images positive.

    ``n_before`` = ``n_kept`` + ``n_withheld``, images; ``company_before`` and ``company_after``: share of the positives
    with another thinned finding beside it, null where there is no positive.
    """
    rows = []
    for label in groups:
        others = [finding for finding in findings if finding != label]
        for split in THINNED:
            positive = ((frame["split"] == split) & (frame[label] == 1)).fillna(False).to_numpy(dtype=bool)
            beside = frame[others].eq(1).fillna(False).any(axis=1).to_numpy(dtype=bool)
            kept = positive & ~withheld
            rows.append({
                "label": label, "group": groups[label], "thinned": label in findings, "split": split,
                "n_before": int(positive.sum()), "n_kept": int(kept.sum()),
                "n_withheld": int((positive & withheld).sum()),
                "company_before": float(beside[positive].mean()) if positive.any() else np.nan,
                "company_after": float(beside[kept].mean()) if kept.any() else np.nan,
            })
    return pd.DataFrame(rows)
