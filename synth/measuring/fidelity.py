"""How close a set of synthetic images is to a set of real ones: FID and KID, with what makes them believable.

- **FID** (Heusel 2017) is biased upward at small N, so it is never given alone: both sides have the same N, and the
  floor, real against real at that N, stands beside it. Below ``MIN_FID`` images it is null with a reason.
- **KID** (Binkowski 2018) is unbiased at any N and stands in for small classes. Its value is the estimate on all
  images; its spread is the standard deviation over random subsets, each smaller than the set.
- **The floor** compares two halves of the real images that share no patient.

A set is measured against the real train images that carry the same finding; ``all`` against all of them, so its value
also holds the difference in the mix of findings and views. None of this says whether a finding is *right*: the encoder
is not the critic. Sums are in float64.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.linalg

from synth.judging.evidence import NEGATIVE, Evidence
from synth.measuring.encoders import Encoder

MIN_FID = 500
"""Images per side below which FID is null: its bias outgrows what it measures (rule 9 of the design)."""
MIN_KID = 10
"""Images per side below which KID is null; chosen because subsets of half the set would hold fewer than five."""
N_SUBSETS = 50
"""Random subsets for KID's spread; its own relative error is then about 1 / sqrt(2 x 50) = 10 %."""
COLUMNS = ("name", "set", "metric", "value", "spread", "n_real", "n_synthetic", "subset", "reason")
FLOOR = "real floor"
Masks = dict[str, tuple[np.ndarray, np.ndarray]]
"""Name to which real and which synthetic images belong to it, bool."""


def frechet_distance(*, real: np.ndarray, fake: np.ndarray) -> float:
    """FID of two feature sets: |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), covariances with n - 1.

    With S = R^T R (R from the QR of the centred features), the eigenvalues of S1 S2 are the squared singular values
    of R1 R2^T: exact at any rank, and without the square root of a matrix.

    Args:
        real, fake: (n, d) and (m, d), n and m >= 2; need not be equal.

    Returns:
        The distance in squared feature units, >= 0 up to rounding. Symmetric.
    """
    _check(real=real, fake=fake, least=2)
    (mean_real, root_real), (mean_fake, root_fake) = _moments(real), _moments(fake)
    cross = np.linalg.svd(root_real @ root_fake.T, compute_uv=False).sum()
    return float(((mean_real - mean_fake) ** 2).sum() + (root_real**2).sum() + (root_fake**2).sum() - 2 * cross)


def kernel_distance(*, real: np.ndarray, fake: np.ndarray) -> float:
    """KID: the unbiased squared MMD with the kernel (x.y / d + 1)^3 (Binkowski 2018, section 4).

    Args:
        real, fake: (n, d) and (m, d), n and m >= 2.

    Returns:
        The estimate; may be negative, expectation 0 for equal distributions. Symmetric.
    """
    _check(real=real, fake=fake, least=2)
    real, fake = real.astype(np.float64), fake.astype(np.float64)
    return _mmd(_kernel(real, real), _kernel(fake, fake), _kernel(real, fake))


def kernel_spread(
    *, real: np.ndarray, fake: np.ndarray, subset: int, rng: np.random.Generator, n_subsets: int = N_SUBSETS
) -> float:
    """Standard deviation of KID over random subsets of ``subset`` images per side, drawn without replacement.

    Raises:
        ValueError: ``subset`` below 2, or not smaller than both sets: the subsets would all be the same.
    """
    if not 2 <= subset < min(len(real), len(fake)):
        raise ValueError(f"kernel_spread: subset {subset}; wanted: 2 to {min(len(real), len(fake)) - 1}")
    values = [
        kernel_distance(real=real[rng.choice(len(real), subset, replace=False)],
                        fake=fake[rng.choice(len(fake), subset, replace=False)])
        for _ in range(n_subsets)
    ]
    return float(np.std(values, ddof=1))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One name to measure: which real and which synthetic images belong to it, as boolean masks."""

    name: str
    real: np.ndarray
    sets: Mapping[str, np.ndarray]
    """Name of the set (``made``, ``kept``) to its mask over the synthetic images."""


def halve_patients(patients: pd.Series, *, rng: np.random.Generator) -> np.ndarray:
    """A mask that puts each patient's images on one side: patients in random order until half the images are in."""
    sizes = patients.value_counts()
    sizes = sizes.loc[rng.permutation(np.sort(sizes.index.to_numpy(dtype=str)))]
    first = set(sizes.index[sizes.cumsum() <= len(patients) / 2])
    return patients.isin(first).to_numpy()


def measure(
    *, real: np.ndarray, fake: np.ndarray, patients: pd.Series, comparisons: list[Comparison], max_n: int,
    kid_subset: int, rng: np.random.Generator,
) -> pd.DataFrame:
    """FID and KID of every set of every comparison, and the real floor of each comparison.

    Args:
        real: features of the real images, float32 (n, d).
        fake: features of the synthetic images, float32 (m, d).
        patients: patient of each real image, length n.
        comparisons: what to compare; masks of lengths n and m.
        max_n: images per side at most; larger sets are sampled without replacement.
        kid_subset: images per KID subset at most; half the smallest set where that is less.
        rng: draws samples, halves and subsets.

    Returns:
        One row per name, set (``real floor`` among them) and metric, columns ``COLUMNS``. In a floor's row both
        counts are of real images. ``value`` is null with a reason where a set is too small.
    """
    rows: list[dict[str, object]] = []
    for comparison in comparisons:
        pool = np.flatnonzero(comparison.real)
        half = halve_patients(patients.iloc[pool], rng=rng)
        halves = (real[_sample(pool[half], max_n, rng)], real[_sample(pool[~half], max_n, rng)])
        sets = {name: fake[_sample(np.flatnonzero(mask), max_n, rng)] for name, mask in comparison.sets.items()}
        whole = real[_sample(pool, max_n, rng)]
        for row in [*_fid_rows(halves, sets), *_kid_rows(whole, halves, sets, kid_subset, rng)]:
            rows.append({"name": comparison.name, **row})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def measure_sets(
    evidence: Evidence, *, encoders: Sequence[Encoder], keep: np.ndarray, groups: Mapping[str, str], max_n: int,
    kid_subset: int, rng: np.random.Generator,
) -> pd.DataFrame:
    """The rows of ``fidelity.parquet``: ``all``, each scarce group, each scarce label and ``negative``.

    ``keep`` is bool (n,) over the images made; ``groups`` maps a label to its group.
    """
    carries = np.stack([evidence.train.carriers(label) for label in evidence.scarce], axis=1)
    lacks = evidence.train.without(evidence.scarce)
    asked = np.stack([evidence.made.carriers(label) for label in evidence.scarce], axis=1)
    negative, everything = evidence.negatives, np.ones(len(keep), dtype=bool)
    kinds: Masks = {"all": (np.ones(len(lacks), dtype=bool), everything)}
    for group in dict.fromkeys(groups[label] for label in evidence.scarce):
        columns = [groups[label] == group for label in evidence.scarce]
        kinds[group] = (_any(carries[:, columns]), _any(asked[:, columns]) & ~negative)
    for column, label in enumerate(evidence.scarce):
        kinds[label] = (carries[:, column], asked[:, column] & ~negative)
    if negative.any():
        kinds[NEGATIVE] = (lacks, negative)
    comparisons = [Comparison(name=name, real=real, sets={"made": fake, "kept": fake & keep})
                   for name, (real, fake) in kinds.items()]
    tables = [
        measure(
            real=evidence.train.read(encoder.name), fake=evidence.made.read(encoder.name), max_n=max_n, rng=rng,
            patients=pd.Series(evidence.train.patients), kid_subset=kid_subset, comparisons=comparisons,
        ).assign(encoder=encoder.name, encoder_sha256=encoder.sha256, resize=encoder.resize)
        for encoder in encoders
    ]
    return pd.concat(tables, ignore_index=True).astype(
        {"value": "float64", "spread": "float64", "subset": "Int64", "reason": "str"})


def _fid_rows(halves: tuple[np.ndarray, np.ndarray], sets: Mapping[str, np.ndarray]) -> Iterator[dict[str, object]]:
    """All rows at one N, so that one floor serves them; sets below ``MIN_FID`` have no say in that N."""
    smaller_half = min(len(halves[0]), len(halves[1]))
    n = min([smaller_half, *(len(x) for x in sets.values() if len(x) >= MIN_FID)])
    for name, features in {**sets, FLOOR: halves[1]}.items():
        size = min(n, len(features))
        row: dict[str, object] = {"set": name, "metric": "FID", "n_real": min(n, smaller_half), "n_synthetic": size}
        if size < MIN_FID:
            yield row | {"reason": f"{size} images per side; FID needs {MIN_FID}, see KID"}
        else:
            yield row | {"value": frechet_distance(real=halves[0][:n], fake=features[:n])}


def _kid_rows(
    whole: np.ndarray, halves: tuple[np.ndarray, np.ndarray], sets: Mapping[str, np.ndarray], kid_subset: int,
    rng: np.random.Generator,
) -> Iterator[dict[str, object]]:
    """Sets against all real images of the name; the floor between the halves. One subset size for all of them."""
    pairs = {name: (whole, features) for name, features in sets.items()} | {FLOOR: halves}
    enough = [min(len(r), len(f)) for r, f in pairs.values() if min(len(r), len(f)) >= MIN_KID]
    subset = min([kid_subset, *(size // 2 for size in enough)])
    for name, (real, fake) in pairs.items():
        row: dict[str, object] = {"set": name, "metric": "KID", "n_real": len(real), "n_synthetic": len(fake)}
        if min(len(real), len(fake)) < MIN_KID:
            yield row | {"reason": f"{min(len(real), len(fake))} images on the smaller side; KID needs {MIN_KID}"}
        else:
            yield row | {"value": kernel_distance(real=real, fake=fake), "subset": subset,
                         "spread": kernel_spread(real=real, fake=fake, subset=subset, rng=rng)}


def _any(columns: np.ndarray) -> np.ndarray:
    """bool (n, k) to (n,): whether any column holds."""
    return np.asarray(columns.any(axis=1), dtype=bool)


def _sample(rows: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """At most ``n`` of the row numbers, in random order, so that a prefix is a sample too."""
    return rng.permutation(rows)[:n]


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and R (min(n, d), d) with R^T R = covariance."""
    features = features.astype(np.float64)
    mean = features.mean(axis=0)
    return mean, scipy.linalg.qr((features - mean) / np.sqrt(len(features) - 1), mode="r")[0][: len(features)]


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def _mmd(k_real: np.ndarray, k_fake: np.ndarray, k_cross: np.ndarray) -> float:
    n, m = len(k_real), len(k_fake)
    within_real = (k_real.sum() - np.trace(k_real)) / (n * (n - 1))
    within_fake = (k_fake.sum() - np.trace(k_fake)) / (m * (m - 1))
    return float(within_real + within_fake - 2 * k_cross.mean())


def _check(*, real: np.ndarray, fake: np.ndarray, least: int) -> None:
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1] or min(len(real), len(fake)) < least:
        raise ValueError(f"features are real {real.shape} and fake {fake.shape}; wanted: (n, d) and (m, d), "
                         f"n and m >= {least}")
