"""The filter's critics: the project's own classifier, trained on real images only, from seeds that no arm uses.

Their logits say whether a generated image shows what was asked for; a critic is never the encoder that measures
fidelity, and a run that has learnt from a test patient is refused. A ``Gauge`` is what all critics together see of one
label, in the images made and in real ones that they have not learnt from:

**In validation**, the mean of the logits. Each critic's are divided by the one number that makes the known labels
likeliest (Guo et al. 2017, eq. 9, for independent labels), so that an overconfident seed has no louder voice.

**Out of fold**, where validation holds few images with a finding: critics that each held out one fold of train and
validation. Every real image is judged by the one that has not learnt from its patient. Each fold's own negatives put
its scores on one scale: 0 is what a stated share of them exceeds. An image made gets the mean of all folds; a mean
scatters less than its parts, so false positives are at most about that share.

A critic that cannot tell a finding from chance has no vote on it: ``auroc_interval`` decides, clustered by patient
because repeated images of one patient are not independent. Not promised: calibrated probabilities of a label, which
one number for all labels cannot give; thresholds are set on logits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import stats
from scipy.optimize import minimize_scalar
from sklearn.metrics import roc_auc_score

from classify.learning.models import CARD, load_classifier, predict_logits
from classify.slots import label_matrix
from cohort.errors import TailfillError
from cohort.pipeline import fold_seeds
from cohort.pixels import FILTER
from cohort.provenance import FILE, check_no_overlap, hash_patients
from cohort.stage import hash_file, require, verify
from cohort.tables import Cohort, read_table
from synth.judging.evidence import Evidence

FIRST_SEED = 1000
"""Seeds below are the experiment's own (see classify/train.py)."""
LOG_TEMPERATURES = (-4.0, 4.0)
"""Bounds of the search, natural logarithm; a critic without skill runs into the upper one."""


def critic_folders(run: Path, seeds: Sequence[int], cohort: Cohort) -> dict[int, Path]:
    """The trained runs of the critics, seed to folder.

    Raises ``TailfillError`` when a run is missing, or has learnt from a validation or test patient.
    """
    folders = {}
    for seed in seeds:
        folders[seed] = run / "train" / "real" / f"seed_{seed}"
        require(folders[seed], "critic")
        check_no_overlap(folders[seed], cohort, splits=("val", "test"))
    return folders


@dataclass(frozen=True, kw_only=True)
class Fold:
    """An out-of-fold critic."""

    folder: Path
    """Of its weights."""
    held_out: frozenset[str]
    """The image_id of each train or validation image that it may judge: those of patients it has not learnt from."""


def fold_critics(run: Path, n_folds: int, cohort: Cohort) -> dict[int, Fold]:
    """The trained runs of arm `fold`, by seed; ``n_folds`` 0 for none.

    Raises ``TailfillError`` when a run is missing, has learnt from a test patient, or holds nothing out.
    """
    images, folds = cohort.split("train", "val"), {}
    for seed in fold_seeds(n_folds):
        folder = run / "train" / "fold" / f"seed_{seed}"
        require(folder, "critic")
        check_no_overlap(folder, cohort)
        learnt = set(read_table(verify(folder, "train", FILE))["patient"])
        unseen = [patient for patient in images["patient_id"].unique()
                  if not learnt & hash_patients([patient], salt=cohort.salt)]
        held_out = frozenset(images.loc[images["patient_id"].isin(unseen), "image_id"])
        if not held_out:
            raise TailfillError(f"{folder}: has learnt from every train and validation patient; wanted: one fold less")
        folds[seed] = Fold(folder=folder, held_out=held_out)
    return folds


class Critic:
    """A reader: the logits of one trained run, in the order of the cohort's labels.

    Raises ``TailfillError`` when the run's labels are not the cohort's.
    """

    def __init__(self, folder: Path, labels: list[str], *, name: str, device: torch.device) -> None:
        self.model, self.card = load_classifier(folder, weights="ema")
        self.card.require_labels(labels, where=folder)
        self.name, self.width, self.device = name, len(labels), device
        self.key = f"{hash_file(folder / 'ema.safetensors')} {hash_file(folder / CARD)}"
        self.model.to(device)

    def read(self, images: np.ndarray) -> np.ndarray:
        """uint8 (b, size, size) of any size to float32 (b, n_labels)."""
        return predict_logits(self.model, resize_square(images, self.card.image_size), self.card, device=self.device)


def resize_square(images: np.ndarray, size: int) -> np.ndarray:
    """uint8 (n, s, s) to (n, size, size) with the filter by which files are read; unchanged when s = size."""
    if images.shape[1:] == (size, size):
        return images
    resized = np.empty((len(images), size, size), dtype=np.uint8)
    for i, image in enumerate(images):
        resized[i] = np.asarray(Image.fromarray(image).resize((size, size), FILTER))
    return resized


def auroc_interval(
    *, logits: np.ndarray, targets: np.ndarray, patients: np.ndarray, level: float = 0.95
) -> tuple[float, float, float]:
    """AUROC, its interval clustered by patient (Obuchowski 1997; DeLong 1988 when each patient has one image).

    The quantile is Student's t with the smaller number of patients minus one: with a handful of positive patients the
    normal one would promise too much.

    Args:
        logits: float (n,), larger = more likely present.
        targets: 0 or 1, (n,), both present; unknown labels are left out by the caller.
        patients: the patient of each image, (n,).
        level: coverage of the interval.

    Returns:
        AUROC, low, high. The interval has width 0 when the classes are separated without error, and is all of 0 to 1
        when a class comes from a single patient, whose variance nobody knows.

    Raises:
        ValueError: a class is missing.
    """
    positive = targets == 1
    m, n = int(positive.sum()), int((~positive).sum())
    if m == 0 or n == 0:
        raise ValueError(f"auroc_interval: {m} positives and {n} negatives; wanted: at least one of each")
    auroc = float(roc_auc_score(positive, logits))
    # Rank differences give, for each image, the share of the other class that it beats, ties counted as a half.
    ranks = stats.rankdata(logits)
    beaten = np.empty(len(logits))
    beaten[positive] = (ranks[positive] - stats.rankdata(logits[positive])) / n
    beaten[~positive] = 1 - (ranks[~positive] - stats.rankdata(logits[~positive])) / m
    _, cluster = np.unique(patients, return_inverse=True)
    excess = beaten - auroc
    of_positives = np.bincount(cluster, weights=excess * positive)
    of_negatives = np.bincount(cluster, weights=excess * ~positive)
    clusters = [len(of_positives), len(set(cluster[positive])), len(set(cluster[~positive]))]
    if min(clusters) < 2:
        return auroc, 0.0, 1.0
    both, only_positive, only_negative = (k / (k - 1) for k in clusters)
    variance = (
        only_positive * (of_positives**2).sum() / m**2
        + only_negative * (of_negatives**2).sum() / n**2
        + 2 * both * (of_positives * of_negatives).sum() / (m * n)
    )
    half = stats.t.ppf(0.5 + level / 2, min(clusters[1:]) - 1) * np.sqrt(max(variance, 0.0))
    return auroc, max(0.0, auroc - half), min(1.0, auroc + half)


@dataclass(frozen=True, kw_only=True)
class Gauge:
    """What critics see of one label: in n images made, and in m real ones that they have not learnt from."""

    label: str
    made: np.ndarray
    """float64 (n,)."""
    scores: np.ndarray
    """float64 (m,)."""
    targets: np.ndarray
    """float32 (m,): 1, 0, or NaN for unknown."""
    patients: np.ndarray
    """(m,)."""
    source: str
    """What a score is."""
    of_val: np.ndarray
    """int (n_val,): which of the m each validation image is; -1 for one that no critic may judge."""

    @property
    def positives(self) -> np.ndarray:
        """Scores of the images known to show it."""
        return self.scores[self.targets == 1]

    @property
    def negatives(self) -> np.ndarray:
        """Scores of the images known not to show it."""
        return self.scores[self.targets == 0]

    @property
    def positive_patients(self) -> int:
        """Patients with an image that shows it."""
        return len(set(self.patients[self.targets == 1].tolist()))

    def at(self, rows: np.ndarray) -> "Gauge":
        """With some of the real images only, by bool (m,)."""
        return replace(self, scores=self.scores[rows], targets=self.targets[rows], patients=self.patients[rows],
                       of_val=np.where(self.of_val >= 0, (np.cumsum(rows) - 1)[self.of_val], -1))

    def in_validation(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores and targets of the validation images, (n_val,) each; NaN for one that no critic may judge."""
        judged = self.of_val >= 0
        return np.where(judged, self.scores[self.of_val], np.nan), np.where(judged, self.targets[self.of_val], np.nan)

    def bounds(self, level: float) -> tuple[float, float]:
        """What all but less than a share ``level`` of the positives reach, and of the negatives do not exceed."""
        return reached(self.positives, level), -reached(-self.negatives, level)

    def skill(self) -> tuple[float, float, float]:
        """AUROC and its interval, see ``auroc_interval``."""
        known = ~np.isnan(self.targets)
        return auroc_interval(logits=self.scores[known], targets=self.targets[known], patients=self.patients[known])


def reached(scores: np.ndarray, level: float) -> float:
    """The highest of ``scores`` that all but less than a share ``level`` of them reach."""
    return float(np.sort(scores)[max(math.ceil(level * len(scores) - 1e-9) - 1, 0)])


def fit_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """The number by which to divide ``logits``, float (n, n_labels), for the best likelihood of ``targets``.

    Targets are 1, 0, or NaN for unknown; 1 where nothing is known.
    """
    known = ~np.isnan(targets)
    signed = np.where(targets[known] == 1, -1.0, 1.0) * logits[known].astype(np.float64)
    if not len(signed):
        return 1.0
    found = minimize_scalar(lambda log_t: np.logaddexp(0, signed / np.exp(log_t)).mean(), bounds=LOG_TEMPERATURES,
                            method="bounded")
    return float(np.exp(found.x))


def validation_gauges(evidence: Evidence) -> dict[str, Gauge]:
    """Each label as the mean critic sees it in validation; raises ``ValueError`` without a critic."""
    if not evidence.critics:
        raise ValueError("label_agreement: evidence holds no critic's logits")
    labels, val = list(evidence.val.labels.columns), evidence.val
    targets = label_matrix(val.labels, labels)
    temperatures = [fit_temperature(val.read(critic), targets) for critic in evidence.critics]
    scores, made = (
        np.mean([images.read(critic) / np.float64(t) for critic, t in zip(evidence.critics, temperatures, strict=True)],
                axis=0) for images in (val, evidence.made))
    source = f"mean logit of {len(temperatures)} critics, at temperature {', '.join(f'{t:.2f}' for t in temperatures)}"
    return {label: Gauge(label=label, made=made[:, at], scores=scores[:, at], targets=targets[:, at],
                         patients=val.patients, source=f"{source}, in validation", of_val=np.arange(len(val)))
            for at, label in enumerate(labels)}


def fold_gauges(evidence: Evidence, *, false_positive_rate: float) -> dict[str, Gauge]:
    """Each label as the out-of-fold critics see it in train and validation, 0 being what the stated share of a fold's
    negatives exceeds; none without folds."""
    labels = list(evidence.made.labels.columns)
    scores, made, targets, patients = [], [], [], []
    of_val, first = np.full(len(evidence.val), -1), 0
    for critic, held_out in evidence.folds.items():
        known = label_matrix(held_out.labels, labels)
        logits = held_out.read(critic)
        temperature = fit_temperature(logits, known)
        negatives = [logits[known[:, at] == 0, at] for at in range(len(labels))]
        zero = np.array([np.quantile(some, 1 - false_positive_rate) if len(some) else 0.0 for some in negatives])
        scores.append((logits - zero) / temperature)
        made.append((evidence.made.read(critic) - zero) / temperature)
        targets.append(known)
        patients.append(held_out.patients)
        # no patient is in two splits, and a fold has its images in the order of these
        of_val[np.isin(evidence.val.patients, held_out.patients)] = first + np.flatnonzero(
            np.isin(held_out.patients, evidence.val.patients))
        first += len(held_out)
    if not scores:
        return {}
    source = (f"mean logit of {len(scores)} out-of-fold critics of train and validation, above what "
              f"{false_positive_rate:g} of each fold's negatives exceed")
    pooled, known, people = np.concatenate(scores), np.concatenate(targets), np.concatenate(patients)
    return {label: Gauge(label=label, made=np.mean(made, axis=0)[:, at], scores=pooled[:, at], targets=known[:, at],
                         patients=people, source=source, of_val=of_val) for at, label in enumerate(labels)}
