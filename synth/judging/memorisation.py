"""The memorisation gate: an image that is a copy of a training image is not synthetic.

Per image, the question is how far its nearest training image stands out from those that are near it anyway::

    score = (1 - NCC of the nearest training image) / (1 - median NCC of the nearest images of the next 7 patients)

0 is a copy, 1 is an image whose nearest is as near as the rest (a ratio of squared distances; the calibrated form of
the test in Carlini et al. 2023, "Extracting Training Data from Diffusion Models", section 4.2). Other *patients*:
a patient's follow-ups resemble one another, and next to a copy of one the others would look typical. The threshold is
a low quantile of the same score of validation images, real ones of patients whom nobody has copied. An image drawn from
a real one (``init_image_id``) is judged by the same rule: its source is a training image like any other.

As a set, ``nearer_to_train`` counts how many images lie nearer to training images than to as many held-out ones, one
image per patient on either side, because many images of few patients lie less densely than as many of many. One half
is what a generator that memorises nothing must give. Images that share their nearest patient all fall on that one's
side, so they are one witness, and so are those drawn from one patient: ``clustered_interval`` counts them so. It is a
coarse instrument: see ``Share.if_all_copied``.

Searching is what costs: tens of milliseconds an image, growing with the training images. So a search is a reader like
an encoder: processes share it, and what it found is kept as long as the images searched are the same ones.

Not promised: what retrieval and alignment do not see (synth/judging/copies.py), a copied detail in a new chest, or a
right threshold where validation itself holds copies of training images under another patient's name.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from scipy import stats

from synth.judging.copies import PATIENTS, SEARCH_KEY, SHORTLIST, CopyReader, Gallery, Matches
from synth.judging.evidence import Evidence
from synth.judging.rules import Criterion, reads

MIN_HELD_OUT = 20
"""Validation images below which no threshold is set: one in 21 false alarms would be the least it could promise."""
MIN_PATIENTS = 4
"""Training patients below which there is no typical distance."""
NEAREST, TRAIN_SIDE, HELD_OUT_SIDE = "nearest", "nearest of the train side", "nearest of the held-out side"
"""Readings of ``MatchReader``: among all training images, and among one image each of as many patients of train and of
validation."""
SIDE_SHORTLIST = 16
"""Images aligned for each in a search of one side, where only the nearest one counts."""
NO_PATIENT = -2.0
"""Stands for the NaN of ``Matches.ncc`` in a reading."""


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Images among which others are searched; n rows throughout."""

    digests: np.ndarray
    """sha256 of each image's content, bytes (n,)."""
    patients: np.ndarray
    """(n,)."""
    readings: Callable[[], np.ndarray]
    """Gives ``CopyReader``'s readings, float32 (n, 2304), when they are needed."""


class MatchReader:
    """A reader (synth/judging/reading.py) of each image's nearest images in a collection, as a search finds them."""

    width = PATIENTS * 7

    def __init__(self, name: str, collection: Collection, *, rows: np.ndarray | None = None, shortlist: int = SHORTLIST
                 ) -> None:
        """Search a collection, or those of it in ``rows``, int (k,); for ``shortlist`` see ``Gallery.search``."""
        self.name, self.collection, self.rows, self.shortlist = name, collection, rows, shortlist
        digests, patients = (values if rows is None else values[rows]
                             for values in (collection.digests, collection.patients))
        codes = np.unique(patients.astype(str), return_inverse=True)[1].astype("<i8")
        content = hashlib.sha256(digests.tobytes() + codes.tobytes()).hexdigest()
        self.key = f"{SEARCH_KEY} {CopyReader.key} shortlist={shortlist} {content}"

    def read(self, images: np.ndarray) -> np.ndarray:
        """uint8 (b, size, size) to float32 (b, 56): row, NCC, mirrored or not and warp of each of 8, nearest first."""
        found = self.gallery.search(CopyReader().read(images), shortlist=self.shortlist)
        parts = found.rows[..., None], np.nan_to_num(found.ncc, nan=NO_PATIENT)[..., None], found.flipped[..., None]
        return np.concatenate([*parts, found.warps], axis=2, dtype=np.float32).reshape(len(images), -1)

    @cached_property
    def gallery(self) -> Gallery:
        """Built when the first image is searched."""
        readings, patients = self.collection.readings(), self.collection.patients
        return Gallery(readings, patients) if self.rows is None else Gallery(readings[self.rows], patients[self.rows])


def matches_of(reading: np.ndarray) -> Matches:
    """What ``MatchReader`` found, from its reading, float32 (n, 56)."""
    found = np.asarray(reading, dtype=np.float64).reshape(len(reading), PATIENTS, 7)
    return Matches(rows=found[..., 0].astype(np.int64), flipped=found[..., 2] == 1, warps=found[..., 3:],
                   ncc=np.where(found[..., 1] == NO_PATIENT, np.nan, found[..., 1]))


def make_searches(train: Collection, val: Collection) -> list[MatchReader]:
    """The searches that the gate needs: among ``train``, and among either side, unless it has no patient.

    A side is one image of each patient, and as many patients of one split as the other has: a draw by hashes, which
    depends on the images' content alone.
    """
    sides = [_one_per_patient(collection) for collection in (train, val)]
    n = min(map(len, sides))
    return [MatchReader(NEAREST, train), *(
        MatchReader(name, collection, rows=np.sort(rows[:n]), shortlist=SIDE_SHORTLIST)
        for name, collection, rows in zip((TRAIN_SIDE, HELD_OUT_SIDE), (train, val), sides, strict=True) if n)]


@reads(CopyReader.name)
def memorisation(evidence: Evidence, *, false_alarms: float = 0.005) -> list[Criterion]:
    """Whether an image stands out too little from its typical near distances to be a copy: its score as told above.

    Args:
        evidence: with the reading ``NEAREST`` of the images made and of validation.
        false_alarms: share of real images of unseen patients that may be taken for copies.

    Returns:
        One criterion that applies to every image with a score.
    """
    score, real = (stand_out(matches_of(images.read(NEAREST))) for images in (evidence.made, evidence.val))
    threshold, source, reason = copy_threshold(real, false_alarms=false_alarms)
    return [Criterion(label=None, score=score, applies=np.isfinite(score), threshold=threshold, at_least=True,
                      source=source, reason=reason)]


def nearest_pairs(evidence: Evidence) -> pd.DataFrame:
    """Every image made beside its nearest training image; one row each, in order.

    Columns: ``row`` and ``nearest`` (row numbers of ``evidence.made`` and ``evidence.train``), ``ncc`` (-1 to 1),
    ``score`` (see the module; NaN with fewer than 4 training patients), ``flipped`` (matches as its mirror image),
    ``scale_x``, ``shift_x``, ``scale_y``, ``shift_y`` (``Matches.warps``).
    """
    found = matches_of(evidence.made.read(NEAREST))
    warps = {name: found.warps[:, 0, i] for i, name in enumerate(("scale_x", "shift_x", "scale_y", "shift_y"))}
    return pd.DataFrame({"row": np.arange(len(found.rows)), "nearest": found.rows[:, 0], "ncc": found.ncc[:, 0],
                         "score": stand_out(found), "flipped": found.flipped[:, 0], **warps})


def stand_out(found: Matches) -> np.ndarray:
    """float64 (n,), 0 or more: how little the nearest image stands out; NaN with fewer than 4 training patients."""
    others = 1 - found.ncc[:, 1:]
    enough = np.isfinite(found.ncc[:, :MIN_PATIENTS]).all(axis=1)
    typical = np.full(len(others), np.nan)
    typical[enough] = np.nanmedian(others[enough], axis=1)
    return np.maximum(1 - found.ncc[:, 0], 0) / np.maximum(typical, 1e-6)


def copy_threshold(real: np.ndarray, *, false_alarms: float) -> tuple[float | None, str, str | None]:
    """The k-th lowest score of n real images, k = false_alarms (n + 1) rounded down, but at least the lowest.

    A further image of the same kind lies below it with a probability of at most k / (n + 1).

    Args:
        real: scores of real images of patients who are not in training, (n,); NaN is left out.
        false_alarms: share of such images that may be taken for copies, 0 to 1.

    Returns:
        The threshold, its source in words, and why there is none, where there is none.
    """
    real = np.sort(real[np.isfinite(real)])
    n = len(real)
    if n < MIN_HELD_OUT:
        return None, f"{n} validation images", f"{n} validation images with a score, fewer than {MIN_HELD_OUT}"
    k = max(1, int(false_alarms * (n + 1)))
    promise = f"at most {k / (n + 1):.2%} false alarms expected"
    if k / (n + 1) > false_alarms:
        promise += f", not {false_alarms:.2%}: too few for that"
    return float(real[k - 1]), f"number {k} from below of {n} validation images ({promise})", None


@dataclass(frozen=True, kw_only=True)
class Share:
    """Of the images made, those that lie nearer to training images than to as many held-out ones."""

    share: float | None
    """0 to 1, null expectation .5; None where no image is nearer to either side."""
    low: float | None
    high: float | None
    """95 % interval, clustered by nearest patient and by the patient drawn from; see ``clustered_interval``."""
    n: int
    """Images that are nearer to one side than to the other."""
    n_per_side: int
    """Images, each of another patient, on either side."""
    if_all_copied: float
    """What the share would be, had every image been copied from a training image drawn at random."""


def nearer_to_train(evidence: Evidence) -> Share:
    """The set-level test, from the readings ``TRAIN_SIDE`` and ``HELD_OUT_SIDE`` of the images made."""
    n = min(len(np.unique(images.patients.astype(str))) for images in (evidence.train, evidence.val))
    if n < 1:
        return Share(share=None, low=None, high=None, n=0, n_per_side=0, if_all_copied=0.5)
    found = [matches_of(evidence.made.read(name)) for name in (TRAIN_SIDE, HELD_OUT_SIDE)]
    near, nearest = [side.ncc[:, 0] for side in found], [found[0].rows[:, 0], found[1].rows[:, 0] + n]
    copied, decided = 0.5 + 0.5 * n / len(evidence.train), near[0] != near[1]
    if not decided.any():
        return Share(share=None, low=None, high=None, n=0, n_per_side=n, if_all_copied=copied)
    train = (near[0] > near[1])[decided]
    low, high = clustered_interval(train, nearest=np.where(near[0] > near[1], *nearest)[decided], n_per_side=n,
                                   owners=evidence.made.patients[decided])
    return Share(share=float(train.mean()), low=low, high=high, n=len(train), n_per_side=n, if_all_copied=copied)


def clustered_interval(
    train: np.ndarray, *, nearest: np.ndarray, owners: np.ndarray, n_per_side: int, level: float = 0.95
) -> tuple[float, float]:
    """Interval of the share of images nearer to train, which hang together by their nearest patient and by their own.

    The variance is that of two crossed clusterings (Cameron, Gelbach & Miller 2011, eq. 2.11: the one's plus the
    other's less their intersection's). That of the nearest patients is a ratio's over two strata of ``n_per_side``
    clusters (Cochran 1977, section 6.11), those that are nobody's nearest among them. The interval is Clopper and
    Pearson's at the number of independent images, at most n, that has this variance (Korn & Graubard 1998, with their
    factor for degrees of freedom: (sum n_c)^2 / sum n_c^2 - 1 over the clusters, the smaller one). Not promised: the
    narrowest such interval; where hardly any image shares its neighbour, it covers the truth in 98 % of draws.

    Args:
        train: whether the nearest patient is of train, bool (n,), n >= 1.
        nearest: name of that patient, (n,).
        owners: patient of the image itself, (n,).
        n_per_side: patients searched on either side.
        level: coverage.

    Returns:
        Low and high, 0 to 1; all of it where one cluster holds every image.
    """
    n, share = len(train), float(np.mean(train))
    codes = [np.unique(names.astype(str), return_inverse=True)[1] for names in (nearest, owners)]
    codes.append(np.unique(np.stack(codes, axis=1), axis=0, return_inverse=True)[1].ravel())
    of_nearest, of_owners, of_both = (float((np.bincount(code, train - share) ** 2).sum()) for code in codes)
    of_nearest -= 2 * (n * share * (1 - share)) ** 2 / n_per_side  # the sides' means
    variance = (of_nearest + max(of_owners - of_both, 0.0)) / n**2
    counting = min(n**2 / float((np.bincount(code) ** 2).sum()) for code in codes)
    if counting <= 1:
        return 0.0, 1.0
    independent = min(share * (1 - share) / variance, n) if variance > 1e-12 else counting
    independent *= float((stats.norm.ppf(0.5 + level / 2) / stats.t.ppf(0.5 + level / 2, counting - 1)) ** 2)
    k, tail = share * independent, 0.5 - level / 2
    low = stats.beta.ppf(tail, k, independent - k + 1) if share > 0 else 0.0
    high = stats.beta.ppf(1 - tail, k + 1, independent - k) if share < 1 else 1.0
    return float(low), float(high)


def exact_interval(k: int, n: int) -> tuple[float, float]:
    """Clopper-Pearson's 95 % interval of k of n."""
    found = stats.binomtest(k, n).proportion_ci(0.95, method="exact")
    return float(found.low), float(found.high)


def _one_per_patient(collection: Collection) -> np.ndarray:
    """Row numbers of one image of each patient, the one with the smallest digest, in random order.

    The order is that of another hash: the smallest of many digests is a small one, so whoever has many images would
    stand in front.
    """
    order = np.argsort(collection.digests)
    rows = order[np.unique(collection.patients.astype(str)[order], return_index=True)[1]]
    return rows[np.argsort([hashlib.sha256(digest).digest() for digest in collection.digests[rows].tolist()])]
