"""The bootstrap of a whole CXR-LT test set against a loop over scikit-learn, on the same draws.

::

    python scripts/bench/bootstrap.py [--draws 2000] [--classes 40] [--images 78946] [--threads 2] [--loop-draws 2]

Made-up logits of two arms; prevalence falls from 30 % to .05 %, in equal ratios; 2.2 images a patient. Goal: 2,000
draws in less than 60 s and 2 GB on two quiet cores, at least 50 times as fast as the loop, values equal to 1e-10.

The loop calls ``average_precision_score`` and ``roc_auc_score`` with the draw's counts as weights, for a few draws
only: its time for all draws is that time, multiplied. Ours computes F1 and both calibration errors beside them, which
the loop is not charged for. The ratio is one of processor time (all threads, and the system's), so that others on the
machine count for neither. Not promised: the wall time on a machine that is shared.
"""

import argparse
import sys
import time

import numpy as np
import torch
from peak_memory import peak_mebibytes, reset_peak
from sklearn.metrics import average_precision_score, roc_auc_score

from classify.comparison.intervals import Array, bootstrap, patient_draws
from classify.comparison.metrics import ClassMetrics

N_ARMS, IMAGES_PER_PATIENT = 2, 2.2
PREVALENCE = (0.3, 0.0005)
Scores = list[tuple[Array, Array]]
"""(labels, logits) of each class of each arm, float64 (n_images,)."""


def make_scores(n_images: int, n_classes: int, rng: np.random.Generator) -> Scores:
    """Labels shared by the arms, logits that know a little of them."""
    labels = [(rng.random(n_images) < share).astype(np.float64) for share in np.geomspace(*PREVALENCE, n_classes)]
    return [(one, (rng.normal(size=n_images) + 1.5 * one).astype(np.float32).astype(np.float64))
            for _ in range(N_ARMS) for one in labels]


def measure_ours(scores: Scores, *, patients: np.ndarray, draws: np.ndarray,
                 threads: int) -> tuple[Array, dict[str, float]]:
    """Values (n_arms x n_classes, n_metrics, n_draws), and what they cost, sorting included."""
    reset_peak(torch.device("cpu"))
    wall, spent = time.perf_counter(), time.process_time()
    parts = []
    for start in range(0, len(scores), len(scores) // N_ARMS):  # arm by arm, as measuring.resample does
        prepared = [ClassMetrics(labels=labels, logits=logits, threshold=1.0, temperature=1.3)
                    for labels, logits in scores[start : start + len(scores) // N_ARMS]]
        parts.append(bootstrap(prepared, patients=patients, draws=draws, threads=threads))
    return np.concatenate(parts), {"wall": time.perf_counter() - wall, "processor": time.process_time() - spent,
                                   "mebibytes": peak_mebibytes(torch.device("cpu"))}


def measure_loop(scores: Scores, *, patients: np.ndarray, draws: np.ndarray) -> tuple[Array, float]:
    """AP and AUROC by scikit-learn: (n_arms x n_classes, 2, n_draws), and processor seconds per draw."""
    spent = time.process_time()
    values = np.full((len(scores), 2, draws.shape[1]), np.nan)
    for at, draw in enumerate(draws.T):
        weights = draw.astype(np.float64)[patients]
        for row, (labels, logits) in enumerate(scores):
            if weights[labels == 1].any():
                values[row, :, at] = (average_precision_score(labels, logits, sample_weight=weights),
                                      roc_auc_score(labels, logits, sample_weight=weights))
    return values, (time.process_time() - spent) / draws.shape[1]


def main() -> None:
    """Print both times, their ratio, the largest difference, and the memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("draws", 2000), ("classes", 40), ("images", 78_946), ("threads", 2), ("loop-draws", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    n_patients = max(1, int(given.images / IMAGES_PER_PATIENT))
    patients = np.unique(rng.integers(0, n_patients, given.images), return_inverse=True)[1]
    scores = make_scores(given.images, given.classes, rng)
    draws = patient_draws(int(patients.max()) + 1, given.draws, rng)
    values, cost = measure_ours(scores, patients=patients, draws=draws, threads=given.threads)
    loop, per_draw = measure_loop(scores, patients=patients, draws=draws[:, : given.loop_draws])
    apart = np.abs(values[:, :2, : loop.shape[-1]] - loop)
    undefined_alike = bool((np.isnan(values[:, :2, : loop.shape[-1]]) == np.isnan(loop)).all())
    sys.stdout.write(
        f"{given.draws} draws x {given.classes} classes x {given.images} images x {N_ARMS} arms, "
        f"{given.threads} threads\n"
        f"ours: {cost['wall']:.1f} s, {cost['processor']:.1f} s of processor time, {cost['mebibytes']:.0f} MiB\n"
        f"scikit-learn: {per_draw:.2f} s of processor time per draw over {given.loop_draws} draws, so "
        f"{per_draw * given.draws:.0f} s for all (extrapolated)\n"
        f"ratio: {per_draw * given.draws / cost['processor']:.0f}; largest difference {np.nanmax(apart):.1e}, "
        f"undefined alike: {undefined_alike}\n")


if __name__ == "__main__":
    main()
