"""Do the images show what they were asked for? The critics' answer for the whole set, finding by finding.

A generator that has not learnt a finding draws chests that pass every rule and teach nothing, and no filter mends that.
So classifiers that were trained on real images read those made (GAN-test, Shmelkov et al. 2018, "How good is my
GAN?"): ``drawn.parquet`` has a row per scarce finding with the AUROC by which the critics' scores rank images that were
asked for it above their matched negatives, beside what the same critics reach on real images. A matched negative has
the noise of its positive, the view, age, sex and company, and no scarce finding, so that nothing but the words for it
can tell the two apart. All that was made is read, before any rule, for what a critic has chosen it finds again.

- ``drawn``: the interval lies above .5;
- ``not shown``: it does not, though critics tell the finding in real images. Training on such images is unlikely to
  help: train the generator for longer, or give its words more weight;
- ``not judged``: the critics cannot tell it in real images either, or there are too few pairs.

Not promised: that a finding with a high AUROC looks as varied as in real images, or that other scarce findings asked
for with it have no part in it. Pairs share their noise, so their AUROC is not that of two chests: what is to be read
is how far it lies from .5.
"""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cohort.tables import write_table
from synth.judging.critic import Gauge, auroc_interval, fold_gauges, validation_gauges
from synth.judging.evidence import Evidence

log = logging.getLogger(__name__)

FILE = "drawn.parquet"
DRAWN, NOT_SHOWN, NOT_JUDGED = "drawn", "not shown", "not judged"
LEAST_PAIRS = 10
"""Images made with a finding whose matched negative was made too, to ask at all."""
LEAST_PATIENTS = 5
"""Real patients with a finding to know the critics' skill; as label agreement asks (``judged_from``)."""
FOLDS_BELOW = 20
"""Validation images with a finding below which critics of folds are asked, where there are some (``quantile_from``)."""
RATE = 0.01
"""Of false positives, at which the scores of different folds are made comparable (``false_positive_rate``)."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One finding: AUROC with 95 % interval in images made and in real ones, NaN where nobody knows."""

    label: str
    says: str
    """``DRAWN``, ``NOT_SHOWN`` or ``NOT_JUDGED``."""
    auroc: float
    ci_low: float
    ci_high: float
    n_pairs: int
    real_auroc: float
    real_low: float
    real_high: float
    n_real_patients: int
    """With the finding, among the real images."""
    reason: str | None
    """Why it is not judged."""


def read_drawn(evidence: Evidence) -> pd.DataFrame:
    """One row per scarce finding, see ``Drawn``; raises ``ValueError`` without a critic."""
    in_validation, out_of_fold = validation_gauges(evidence), fold_gauges(evidence, false_positive_rate=RATE)
    rows = []
    for label in evidence.scarce:
        gauge = in_validation[label]
        if len(gauge.positives) < FOLDS_BELOW:
            gauge = out_of_fold.get(label, gauge)
        rows.append(asdict(_read(gauge, evidence)))
    return pd.DataFrame(rows, columns=list(Drawn.__dataclass_fields__))


def matched_pairs(*, asked: np.ndarray, negative: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """bool (n,): the images of a pair. ``asked``, ``negative``: bool (n,); ``noise``: int (n,), equal within a pair."""
    positive = asked & ~negative
    return np.asarray((positive | negative) & np.isin(noise, noise[positive]) & np.isin(noise, noise[negative]))


def _read(gauge: Gauge, evidence: Evidence) -> Drawn:
    """One finding."""
    asked, people, nobody = evidence.made.carriers(gauge.label), gauge.positive_patients, (np.nan,) * 3
    noise = np.arange(len(asked)) if evidence.noise is None else evidence.noise
    pairs = matched_pairs(asked=asked, negative=evidence.negatives, noise=noise)
    n_pairs, knows = int((asked & pairs).sum()), people >= LEAST_PATIENTS and len(gauge.negatives) > 0
    real, made = gauge.skill() if knows else nobody, nobody
    if n_pairs >= LEAST_PAIRS:
        made = auroc_interval(logits=gauge.made[pairs], targets=asked[pairs].astype(int),
                              patients=_clusters(evidence, noise)[pairs])
    reason = None
    if not knows:
        reason = (f"{people} real patients with the finding and {len(gauge.negatives)} images without; wanted: "
                  f"{LEAST_PATIENTS} and 1")
    elif real[1] <= 0.5:
        reason = f"the critics' AUROC in real images, {real[0]:.3f} ({real[1]:.3f} to {real[2]:.3f}), may be chance"
    elif n_pairs < LEAST_PAIRS:
        reason = f"{n_pairs} pairs with a matched negative; wanted: {LEAST_PAIRS} (plan.negatives_per_positive)"
    says = NOT_JUDGED if reason else DRAWN if made[1] > 0.5 else NOT_SHOWN
    return Drawn(label=gauge.label, says=says, auroc=made[0], ci_low=made[1], ci_high=made[2], n_pairs=n_pairs,
                 real_auroc=real[0], real_low=real[1], real_high=real[2], n_real_patients=people, reason=reason)


def _clusters(evidence: Evidence, noise: np.ndarray) -> np.ndarray:
    """What makes answers depend on one another: a real patient where several images start from one, else the noise."""
    patients = pd.Series(evidence.made.patients, dtype="str")
    return np.where(patients.duplicated(keep=False), patients, pd.Series(noise).astype("str"))


def write_drawn(evidence: Evidence, folder: Path) -> str:
    """Write the table, and warn of findings that were asked for and cannot be read; the file's name."""
    table = read_drawn(evidence)
    write_table(table, folder / FILE)
    told = [f"{row['label']} (AUROC {row['auroc']:.2f}, {row['ci_low']:.2f} to {row['ci_high']:.2f}; in real images "
            f"{row['real_auroc']:.2f})" for row in table[table["says"] == NOT_SHOWN].to_dict("records")]
    if told:
        log.warning("filter: what was asked for cannot be read in the images made: %s", ", ".join(told))
    return FILE
