"""The filter's critic: the project's own classifier, trained on real images only, from seeds that no arm uses.

Its logits say whether a generated image shows what was asked for. It is never the encoder that measures fidelity, and
a run that has learnt from a test patient is refused. A critic that cannot tell a finding from chance has no vote on
it: ``auroc_interval`` decides, on validation images, clustered by patient because repeated images of one patient are
not independent. Not promised: calibrated probabilities; thresholds are set on logits.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import stats
from sklearn.metrics import roc_auc_score

from classify.learning.models import CARD, load_classifier, predict_logits
from cohort.pixels import FILTER
from cohort.provenance import check_no_overlap
from cohort.stage import hash_file, require
from cohort.tables import Cohort

FIRST_SEED = 1000
"""Seeds below are the experiment's own (see classify/train.py)."""


def critic_folders(run: Path, seeds: Sequence[int], cohort: Cohort) -> dict[int, Path]:
    """The trained runs of the critics, seed to folder.

    Raises ``TailfillError`` when a run is missing, or has learnt from a test patient.
    """
    folders = {}
    for seed in seeds:
        folders[seed] = run / "train" / "real" / f"seed_{seed}"
        require(folders[seed], "critic")
        check_no_overlap(folders[seed], cohort)
    return folders


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

