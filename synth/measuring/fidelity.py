"""How close the images made, and those kept, are to real ones: the table ``fidelity.parquet``.

- **KID** first: unbiased at any N. Its value is the estimate on all images; its spread is the standard deviation over
  random subsets, each smaller than the set, of one size for all sets of a name.
- **FID** and the **manifold's** four numbers depend on N, so they are taken at one N for all sets of a name and for
  their floor. FID below ``MIN_FID`` images, and the others below ``PER_NEIGHBOUR`` images per neighbour, are null with
  a reason: what is left is noise and bias.
- **The floor** compares two halves of the real images that share no patient; nothing better can be asked of a fake.

A set is measured against the real train images that carry the same finding; ``all`` against all of them, so its value
also holds the difference in the mix of findings and views. Every encoder measures the same samples. None of this says
whether a finding is *right*: no encoder is the critic.

Where the run has real images as the generator's autoencoder draws them (stage ``reconstruct``), two more kinds of set
say whose fault a distance is. ``reconstructed`` is the autoencoder's share: real images against reconstructions of
other patients. ``made against reconstructed`` is the denoiser's: what was made against what no decoder stands between.
They do not add up to the whole, for a distance is no sum of its parts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from synth.judging.evidence import NEGATIVE, Evidence
from synth.measuring.distances import frechet_distance, kernel_distance, kernel_spread
from synth.measuring.manifold import NEIGHBOURS, manifold
from synth.measuring.networks import Encoder

MIN_FID = 500
"""Images per side below which FID is null: its bias outgrows what it measures (rule 9 of the design)."""
MIN_KID = 10
"""Images per side below which KID is null; chosen because subsets of half the set would hold fewer than five."""
PER_NEIGHBOUR = 10
"""Images per side and neighbour below which the manifold's numbers are null; chosen because a ball would else hold more
than a tenth of its set."""
MANIFOLD = ("precision", "recall", "density", "coverage")
COLUMNS = ("name", "set", "metric", "value", "spread", "n_real", "n_synthetic", "subset", "reason")
FLOOR, RECONSTRUCTED = "real floor", "reconstructed"
Masks = dict[str, tuple[np.ndarray, np.ndarray]]
"""Name to which real and which synthetic images belong to it, bool."""
Pair = tuple[np.ndarray, np.ndarray]
"""Features of a reference and of what is compared with it, float32 (n, d) and (m, d)."""
Pairs = Mapping[str, Pair]
"""By the name of the set that is compared."""


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
    *, real: np.ndarray, fake: np.ndarray, patients: pd.Series, comparisons: Sequence[Comparison], max_n: int,
    kid_subset: int, k: int = NEIGHBOURS, rng: np.random.Generator, reconstructed: np.ndarray | None = None,
) -> pd.DataFrame:
    """All metrics of every set of every comparison, and the real floor of each comparison.

    Args:
        real: features of the real images, float32 (n, d).
        fake: features of the synthetic images, float32 (m, d).
        patients: patient of each real image, length n.
        comparisons: what to compare; masks of lengths n and m.
        max_n: images per side at most; larger sets are sampled without replacement.
        kid_subset: images per KID subset at most; half the smallest set where that is less.
        k: neighbours of the manifold.
        rng: draws samples, halves and subsets.
        reconstructed: features of the real images through the autoencoder, row by row, float32 (n, d).

    Returns:
        One row per name, set (``real floor`` among them) and metric, columns ``COLUMNS``. ``n_real`` counts the images
        of the reference, ``n_synthetic`` those compared with it. ``value`` is null with a reason where a set is too
        small.
    """
    rows: list[dict[str, object]] = []
    for comparison in comparisons:
        pool = np.flatnonzero(comparison.real)
        half = halve_patients(patients.iloc[pool], rng=rng)
        first, second = _sample(pool[half], max_n, rng), _sample(pool[~half], max_n, rng)
        sets = {name: fake[_sample(np.flatnonzero(mask), max_n, rng)] for name, mask in comparison.sets.items()}
        whole, floor = _sample(pool, max_n, rng), {FLOOR: (real[first], real[second])}
        by_whole = {name: (real[whole], x) for name, x in sets.items()} | floor
        by_half = {name: (real[first], x) for name, x in sets.items()} | floor
        if reconstructed is not None:
            share = {RECONSTRUCTED: (real[first], reconstructed[second])}
            by_whole |= share | {against(name): (reconstructed[whole], x) for name, x in sets.items()}
            by_half |= share | {against(name): (reconstructed[first], x) for name, x in sets.items()}
        found = [
            *_kid_rows(by_whole, kid_subset, rng),
            *_rows_at_one_n(by_half, _fid, metrics=("FID",), least=MIN_FID),
            *_rows_at_one_n(by_half, lambda **two: manifold(**two, k=k), metrics=MANIFOLD, least=PER_NEIGHBOUR * k),
        ]
        rows += [{"name": comparison.name, **row} for row in found]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def against(name: str) -> str:
    """The name of a set where its reference are not real images but reconstructed ones."""
    return f"{name} against {RECONSTRUCTED}"


def measure_sets(
    evidence: Evidence, *, encoders: Sequence[Encoder], keep: np.ndarray, groups: Mapping[str, str], max_n: int,
    kid_subset: int, k: int = NEIGHBOURS, rng: np.random.Generator,
) -> pd.DataFrame:
    """The rows of ``fidelity.parquet``: ``all``, each scarce group, each scarce label and ``negative``, per encoder.

    Args:
        evidence: with each encoder's readings of the images made and of the real train images.
        encoders: what measures; their names, weights and ways to resize stand in every row.
        keep: bool (n,) over the images made.
        groups: label to its group.
        max_n, kid_subset, k: see ``measure``.
        rng: one draw of it seeds the samples, which are the same for every encoder.
    """
    seed = int(rng.integers(2**63))
    comparisons = list_comparisons(evidence, keep=keep, groups=groups)
    tables = [
        measure(
            real=evidence.train.read(encoder.name), fake=evidence.made.read(encoder.name), max_n=max_n, k=k,
            patients=pd.Series(evidence.train.patients), kid_subset=kid_subset, comparisons=comparisons,
            reconstructed=evidence.reconstructed.get(encoder.name), rng=np.random.default_rng(seed),
        ).assign(encoder=encoder.name, encoder_sha256=encoder.sha256, resize=encoder.resize)
        for encoder in encoders
    ]
    return pd.concat(tables, ignore_index=True).astype(
        {"value": "float64", "spread": "float64", "subset": "Int64", "reason": "str"})


def list_comparisons(evidence: Evidence, *, keep: np.ndarray, groups: Mapping[str, str]) -> list[Comparison]:
    """Who is compared with whom: per name the real carriers with the images that were asked to carry the same."""
    carries = np.stack([evidence.train.carriers(label) for label in evidence.scarce], axis=1)
    asked = np.stack([evidence.made.carriers(label) for label in evidence.scarce], axis=1)
    lacks, negative = evidence.train.without(evidence.scarce), evidence.negatives
    masks: Masks = {"all": (np.ones(len(lacks), dtype=bool), np.ones(len(keep), dtype=bool))}
    for group in dict.fromkeys(groups[label] for label in evidence.scarce):
        columns = [groups[label] == group for label in evidence.scarce]
        masks[group] = (_any(carries[:, columns]), _any(asked[:, columns]) & ~negative)
    for column, label in enumerate(evidence.scarce):
        masks[label] = (carries[:, column], asked[:, column] & ~negative)
    if negative.any():
        masks[NEGATIVE] = (lacks, negative)
    return [Comparison(name=name, real=real, sets={"made": fake, "kept": fake & keep})
            for name, (real, fake) in masks.items()]


def _rows_at_one_n(
    pairs: Pairs, compute: Callable[..., dict[str, float]], *, metrics: Sequence[str], least: int
) -> Iterator[dict[str, object]]:
    """All rows at one N, so that one floor serves them; sets below ``least`` have no say in that N."""
    smaller_half = min(len(half) for half in pairs[FLOOR])
    n = min([smaller_half, *(len(fake) for _, fake in pairs.values() if len(fake) >= least)])
    for name, (real, fake) in pairs.items():
        size = min(n, len(fake))
        values = compute(real=real[:n], fake=fake[:n]) if size >= least else {}
        for metric in metrics:
            row: dict[str, object] = {"set": name, "metric": metric, "n_real": min(n, smaller_half),
                                      "n_synthetic": size}
            yield row | ({"value": values[metric]} if values else {
                "reason": f"{size} images per side; {metric} needs {least}, see KID"})


def _fid(*, real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    return {"FID": frechet_distance(real=real, fake=fake)}


def _kid_rows(pairs: Pairs, kid_subset: int, rng: np.random.Generator) -> Iterator[dict[str, object]]:
    """One subset size for all sets of a name, so that their spreads are of one kind."""
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
