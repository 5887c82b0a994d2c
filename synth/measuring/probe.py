"""The probe for origin: can a linear probe tell synthetic from real images, and would that betray the scarce findings?

If only images of scarce findings are synthetic, a classifier may learn "looks synthetic" in place of the finding (rule
3 of the design). The table ``probe.parquet`` has one row per setting, each an AUROC of out-of-fold scores with its
interval, .5 = no trace:

- ``tail against all real``: kept images charged to a scarce finding, against all real train images. It also holds the
  difference that the finding itself makes.
- ``carriers``, and ``carriers of <label>``: the same against real *carriers* of a scarce finding. What is left is
  origin: texture, sharpness, and what the generator makes of the finding.
- ``shortcut without negatives`` and ``shortcut with negatives``: among real train and kept synthetic images, how well
  the probe's score *for origin* ranks the images that show a scarce finding above those that do not. Without matched
  negatives whatever betrays the origin betrays the finding; each negative is an image that looks as synthetic and does
  not show it. What a probe without error would reach is (TPR + TNR) / 2, TPR the synthetic share of the images with a
  scarce finding, TNR the real share of those without: many real images without a finding keep it high, and it is the
  fall from one row to the other that the negatives have earned.

An AUROC near 1 does not say that a classifier takes the shortcut, only that it could; one near .5 says that *this*
encoder sees no trace. The mix is all that was kept, in equal weights; an arm's slots weigh it otherwise. The probe is
Fisher's discriminant with a shrunk covariance; the folds keep a patient's images together, real ones as well as those
drawn from a real one, but not a positive and its negative, which share their noise.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.linalg import cho_solve
from sklearn.model_selection import StratifiedGroupKFold

from synth.judging.critic import auroc_interval
from synth.judging.evidence import Evidence
from synth.judging.reading import BLOCK
from synth.judging.realism import Gaussian, features, thinned

FOLDS = 5
LEAST_IMAGES, LEAST_PATIENTS = 20, 10
"""On each side, below which a setting is null; two patients per fold, and a fit that has seen more than a handful."""
AT_MOST = 6_000
"""Images of a setting at most, evenly over the rows: an AUROC is then known to about a hundredth."""
COLUMNS = ("setting", "auroc", "ci_low", "ci_high", "n_real", "n_synthetic", "reason")


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """Fisher's discriminant between two classes, with Ledoit and Wolf's covariance of what is left within them."""

    direction: np.ndarray
    """float64 (d,)"""
    middle: np.ndarray
    """float64 (d,): where both classes are equally likely."""

    @classmethod
    def fit(cls, samples: np.ndarray, positive: np.ndarray) -> "LinearProbe":
        """Learn from float (n, d) and bool (n,), two images of either class at least."""
        samples = samples.astype(np.float64)
        means = [samples[positive == side].mean(axis=0) for side in (False, True)]
        within = Gaussian.fit(samples - np.where(positive[:, None], means[1], means[0]))
        return cls(direction=cho_solve((within.root, True), means[1] - means[0]), middle=(means[0] + means[1]) / 2)

    def log_odds(self, samples: np.ndarray) -> np.ndarray:
        """Of the positive class at equal priors, if both are normal: float (n, d) to float64 (n,).

        ``samples`` may lie on disk: no more than ``BLOCK`` rows are held at a time, as a product of float32 with the
        direction is one of float64 copies.
        """
        found = np.empty(len(samples))
        for start in range(0, len(found), BLOCK):
            found[start: start + BLOCK] = samples[start: start + BLOCK] @ self.direction
        return np.asarray(found - self.middle @ self.direction)


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """Images of which the origin is to be told: n rows throughout, the real ones first."""

    sources: tuple[np.ndarray, np.ndarray]
    """Features of all real and of all synthetic images, float32."""
    rows: np.ndarray
    """int (n,): which row of its source each image is."""
    synthetic: np.ndarray
    """bool (n,)"""
    patients: np.ndarray
    """(n,)"""
    shows: np.ndarray
    """1 where an image shows a scarce finding, 0 where it shows none, -1 where that is unknown; (n,)."""

    @property
    def samples(self) -> np.ndarray:
        """Features, float32 (n, d)."""
        return np.concatenate([source[self.rows[self.synthetic == side]] for side, source in enumerate(self.sources)])

    def take(self, chosen: np.ndarray) -> "Crowd":
        """Only these images, in ascending order."""
        return replace(self, rows=self.rows[chosen], synthetic=self.synthetic[chosen], patients=self.patients[chosen],
                       shows=self.shows[chosen])

    def objection(self) -> str | None:
        """Why the origin cannot be probed, or None."""
        for name, side in (("real", ~self.synthetic), ("synthetic", self.synthetic)):
            images, patients = int(side.sum()), len(set(self.patients[side]))
            if images < LEAST_IMAGES or patients < LEAST_PATIENTS:
                return (f"{images} {name} images of {patients} patients; wanted: {LEAST_IMAGES} of {LEAST_PATIENTS} "
                        "at least")
        return None


def probe_origin(evidence: Evidence, *, keep: np.ndarray) -> pd.DataFrame:
    """The rows of ``probe.parquet``; an AUROC that cannot be told is null, with its reason.

    Args:
        evidence: with an encoder's features of images made and of train.
        keep: bool (n,), the images made that the filter kept.

    Returns:
        Columns ``COLUMNS``, one row per setting; ``n_real`` and ``n_synthetic`` count the images that were compared.
    """
    everyone, n_real = _crowd(evidence), len(evidence.train)
    real, positive, negative = ~everyone.synthetic, everyone.synthetic.copy(), everyone.synthetic.copy()
    positive[n_real:] &= keep & ~evidence.negatives
    negative[n_real:] &= keep & evidence.negatives
    charged_to = np.concatenate([np.full(n_real, ""), evidence.charged_to.astype(str)])
    rows = [_origin("tail against all real", everyone, real=real, synthetic=positive),
            _origin("carriers", everyone, real=real & (everyone.shows == 1), synthetic=positive)]
    for label in evidence.scarce:
        carriers = np.pad(evidence.train.carriers(label), (0, len(keep)))
        rows.append(_origin(f"carriers of {label}", everyone, real=carriers,
                            synthetic=positive & (charged_to == label)))
    rows.append(_shortcut("shortcut without negatives", everyone.take(_spread(real | positive))))
    if negative.any():
        rows.append(_shortcut("shortcut with negatives", everyone.take(_spread(real | positive | negative))))
    else:
        rows.append({"setting": "shortcut with negatives", "n_real": n_real, "n_synthetic": int(positive.sum()),
                     "reason": "no matched negative was kept"})
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype({"auroc": "float64", "ci_low": "float64", "ci_high": "float64", "reason": "str"})


def _crowd(evidence: Evidence) -> Crowd:
    """All real train images, then all images made."""
    sets = (evidence.train, evidence.made)
    known = [np.where(images.without(evidence.scarce), 0, -1) for images in sets]
    for label in evidence.scarce:
        known = [np.where(images.carriers(label), 1, shows) for images, shows in zip(sets, known, strict=True)]
    return Crowd(
        sources=(features(evidence, evidence.train), features(evidence, evidence.made)),
        rows=np.concatenate([np.arange(len(images)) for images in sets]),
        patients=np.concatenate([images.patients.astype(str) for images in sets]),
        synthetic=np.repeat([False, True], [len(images) for images in sets]), shows=np.concatenate(known),
    )


def _spread(mask: np.ndarray) -> np.ndarray:
    return thinned(np.flatnonzero(mask), at_most=AT_MOST)


def _origin(setting: str, everyone: Crowd, *, real: np.ndarray, synthetic: np.ndarray) -> dict[str, object]:
    """How well the probe tells synthetic images from real ones, each side thinned to half of ``AT_MOST``."""
    sides = [thinned(np.flatnonzero(mask), at_most=AT_MOST // 2) for mask in (real, synthetic)]
    crowd = everyone.take(np.concatenate(sides))
    return _row(setting, crowd, crowd.synthetic)


def _shortcut(setting: str, crowd: Crowd) -> dict[str, object]:
    """How well the probe's score for origin tells who shows a scarce finding."""
    return _row(setting, crowd, crowd.shows)


def _row(setting: str, crowd: Crowd, targets: np.ndarray) -> dict[str, object]:
    """AUROC of the out-of-fold score for origin against targets, where these are known."""
    row: dict[str, object] = {"setting": setting, "n_real": int((~crowd.synthetic).sum()),
                              "n_synthetic": int(crowd.synthetic.sum()), "reason": crowd.objection()}
    known = targets >= 0
    if row["reason"] is None and len(set(targets[known].tolist())) < 2:
        row["reason"] = "all images show a scarce finding, or none does"
    if row["reason"] is not None:
        return row
    auroc, low, high = auroc_interval(logits=_out_of_fold(crowd)[known], targets=targets[known].astype(np.int64),
                                      patients=crowd.patients[known])
    return row | {"auroc": auroc, "ci_low": low, "ci_high": high}


def _out_of_fold(crowd: Crowd) -> np.ndarray:
    """float64 (n,): each image's log odds of being synthetic, by a probe that has not seen its patient."""
    samples, scores = crowd.samples, np.empty(len(crowd.rows))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    for learn, judge in folds.split(samples, crowd.synthetic, crowd.patients):
        scores[judge] = LinearProbe.fit(samples[learn], crowd.synthetic[learn]).log_odds(samples[judge])
    return scores
