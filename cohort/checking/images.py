"""From what was read of the images to what is wrong with them: unreadable, blank, the same twice, one patient as two.

Which pairs are a leak follows from splits: across two splits, always; within one, two ids for one patient are a warning
(folds and intervals deal by patient id), and a picture stored twice under one id is a note.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cohort.checking.found import LEAK, NOTE, WARNING, Found
from cohort.checking.reading import LOW_CONTRAST, Readings
from cohort.checking.resemblance import ordinary, threshold_above
from cohort.checking.twins import exact_groups, find_near

LEAST_NCC = 0.9
"""NCC from which on two pictures are one. Of 200 copies of each kind among 8,506 NIH images at 128 px all were found if
exact, JPEG, windowed, mirrored, or cropped to 94 to 100 % of a side, 197 cropped, windowed and compressed at once,
and 167 cropped to 88 to 94 %. Of the 8,506 themselves none was paired with another patient's, so .04 % at most (95 %);
13 s of CPU, 5 s for half of them (``scripts/planted_duplicates.py --copies 200``)."""
AGE_SLACK = 1.0
"""Years by which the ages of one patient may differ between two tables of the same picture."""


def check_files(frame: pd.DataFrame, readings: Readings) -> list[Found]:
    """Images that could not be read, or are blank; ``frame``: cohort rows with the column ``cohort``, in order."""
    found = []
    for at in np.flatnonzero(readings.errors != "").tolist():
        found.append(Found(check="unreadable_image", severity=WARNING, **_who(frame, at),
                           words=f"'{frame['path'].iloc[at]}': {readings.errors[at]}"))
    for at in np.flatnonzero(readings.contrast < LOW_CONTRAST).tolist():
        found.append(Found(check="blank_image", severity=WARNING, **_who(frame, at), words=(
            f"'{frame['path'].iloc[at]}' spans {readings.contrast[at]:.0f} of 255 grey levels")))
    return found


def least_ncc(frame: pd.DataFrame, readings: Readings) -> float:
    """NCC from which on two pictures of this cohort are one: ``LEAST_NCC``, or more where different patients reach it.

    ``frame`` as in ``check_files``.
    """
    seen = ordinary(readings.details, usable=readings.usable, groups=groups_of(frame, "patient_id"))
    return max(LEAST_NCC, threshold_above(seen))


def groups_of(frame: pd.DataFrame, *columns: str) -> NDArray[np.intp]:
    """int (n,): rows of one number agree in ``columns``."""
    keys = frame[list(columns)].agg("\t".join, axis=1)
    return np.unique(keys.to_numpy(dtype=str), return_inverse=True)[1]


def check_pairs(frame: pd.DataFrame, readings: Readings, *, least: float) -> list[Found]:
    """Exact and near-duplicates, and the patients that they show to have two ids.

    ``frame`` as in ``check_files``; ``least``: NCC from which on a pair is a near-duplicate, -1 to 1.
    """
    groups = groups_of(frame, "cohort", "patient_id", "split")
    pairs = [(a, b, 1.0, "exact_duplicate") for a, b in exact_pairs(frame, readings)]
    known = {(a, b) for a, b, *_ in pairs}
    same = first_of_equals(readings)
    twins = find_near(readings.details, usable=readings.usable & (same == np.arange(len(same))), groups=groups,
                      least=least)
    for a, b, ncc in zip(twins.first.tolist(), twins.second.tolist(), twins.ncc.tolist(), strict=True):
        if (a, b) not in known and (b, a) not in known:
            pairs.append((min(a, b), max(a, b), ncc, "near_duplicate"))
    return [*(_pair(frame, *pair) for pair in pairs), *two_ids(frame, pairs)]


def first_of_equals(readings: Readings) -> NDArray[np.intp]:
    """int (n,): the first image with the same pixels; pixels that are there twice are compared once."""
    first = np.arange(len(readings.sha256))
    for rows in exact_groups(readings.sha256):
        first[rows] = rows[0]
    return first


def exact_pairs(frame: pd.DataFrame, readings: Readings) -> Iterator[tuple[int, int]]:
    """Neighbouring rows of every group of equal pixels, so that n images are n - 1 pairs, not n (n - 1) / 2.

    They are ordered by sex, age, patient and split: two ids of one patient are neighbours. Blank images are left out:
    each is like every other one, and no copy of it.
    """
    for rows in exact_groups(np.where(readings.usable, readings.sha256, "")):
        ordered = frame.iloc[rows].assign(row=rows).sort_values(["sex", "age", "patient_id", "split"], kind="stable")
        for a, b in pairwise(ordered["row"].tolist()):
            yield min(a, b), max(a, b)


def two_ids(frame: pd.DataFrame, pairs: list[tuple[int, int, float, str]]) -> list[Found]:
    """One row per pair of patient ids that share a picture, and whose sex and age, where known, are the same."""
    best: dict[tuple[str, str], tuple[int, int, float, int]] = {}
    for a, b, ncc, _ in pairs:
        one, other = frame["patient_id"].iloc[a], frame["patient_id"].iloc[b]
        if one == other or not same_person(frame.iloc[a], frame.iloc[b]):
            continue
        key = (min(one, other), max(one, other))
        crosses = frame["split"].iloc[a] != frame["split"].iloc[b]
        held = best.get(key)
        n = 1 + (held[3] if held else 0)
        if held is None or (crosses, ncc) > (frame["split"].iloc[held[0]] != frame["split"].iloc[held[1]], held[2]):
            best[key] = (a, b, ncc, n)
        else:
            best[key] = (*held[:3], n)
    return [_found(frame, a, b, check="patient_under_two_ids", severity=_severity(frame, a, b), ncc=ncc, words=(
        f"patients '{frame['patient_id'].iloc[a]}' and '{frame['patient_id'].iloc[b]}' share {n} "
        f"picture{'s' if n > 1 else ''}, and neither sex nor age tells them apart"))
        for a, b, ncc, n in best.values()]


def same_person(one: pd.Series, other: pd.Series) -> bool:
    """Whether sex and age, where both are known, allow one patient."""
    sexes, ages = {one["sex"], other["sex"]}, (one["age"], other["age"])
    known_sexes = {sex for sex in sexes if isinstance(sex, str)}
    return len(known_sexes) < 2 and not abs(ages[0] - ages[1]) > AGE_SLACK


def _severity(frame: pd.DataFrame, a: int, b: int) -> str:
    if frame["split"].iloc[a] != frame["split"].iloc[b]:
        return LEAK
    return WARNING if frame["patient_id"].iloc[a] != frame["patient_id"].iloc[b] else NOTE


def _pair(frame: pd.DataFrame, a: int, b: int, ncc: float, check: str) -> Found:
    like = "has the pixels of" if check == "exact_duplicate" else f"shows the picture of (NCC {ncc:.3f})"
    names, splits = frame["image_id"], frame["split"]
    crosses = splits.iloc[a] != splits.iloc[b]
    where = f", {splits.iloc[a]} and {splits.iloc[b]}" if crosses else f", both {splits.iloc[a]}"
    return _found(frame, a, b, check=check, severity=_severity(frame, a, b), ncc=ncc,
                  words=f"'{names.iloc[a]}' {like} '{names.iloc[b]}'{where}")


def _found(frame: pd.DataFrame, a: int, b: int, *, check: str, severity: str, ncc: float, words: str) -> Found:
    other: dict[str, Any] = {f"other_{key}": value for key, value in _who(frame, b).items()}
    return Found(check=check, severity=severity, ncc=ncc, words=words, **_who(frame, a), **other)


def _who(frame: pd.DataFrame, at: int) -> dict[str, Any]:
    return {name: str(frame[name].iloc[at]) for name in ("cohort", "image_id", "patient_id", "split")}
