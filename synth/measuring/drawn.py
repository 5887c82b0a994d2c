"""Do the images show what they were asked for? The critics' answer for the whole set, finding by finding.

A generator that has not learnt a finding draws chests that pass every rule and teach nothing, and no filter mends that.
So classifiers that were trained on real images read those made (GAN-test, Shmelkov et al. 2018, "How good is my
GAN?"): ``drawn.parquet`` has a row per scarce finding with the AUROC by which the critics' scores rank images that were
asked for it, and for no other scarce finding, above their matched negatives. A matched negative has the noise of its
positive, the view, age, sex and company, so that nothing but the words for the finding tells the two apart. All that
was made from noise is read, before any rule, for what a critic has chosen it finds again; of negatives that were asked
for again, the first.

- ``hardly drawn``: the interval lies below half of what the same critics have above .5 in real images. Such images say
  something else than the finding: train the generator for longer, or give its words more weight. Where it lies even
  below half of what these critics have *at least*, the lower end of their interval, the rule ``drawn`` drops all images
  charged to the finding, but for a control's, and its positive slots hold repeats of real images;
- ``drawn``: it does not, and lies above .5;
- ``not judged``: neither, or the critics cannot tell the finding in real images, or there are too few pairs.

Not promised: that it is the finding that is read and not that a chest is abnormal at all, for a negative without any
finding left says so; that findings look as varied as in real ones; or that the AUROC in real images is that of the
finding alone: there view, age and company help. A generator that has its training images by heart is read as one that
draws. Labels with few real patients are not judged, which in a tail is many. What the rule leaves are the matched
negatives, which show no scarce finding whoever asked for them, and images that carry the finding beside the one that
they are charged to.
"""

import logging
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd

from cohort.tables import write_table
from synth.judging.critic import Gauge, auroc_interval, fold_gauges, validation_gauges
from synth.judging.evidence import Evidence
from synth.judging.rules import Criterion, reads

log = logging.getLogger(__name__)

FILE = "drawn.parquet"
DRAWN, HARDLY, NOT_JUDGED = "drawn", "hardly drawn", "not judged"
LEAST_PAIRS = 10
"""Images asked for a finding alone whose matched negative was made too, to ask at all."""
LEAST_PATIENTS = 5
"""Real patients with a finding to know the critics' skill; the default of label agreement's ``judged_from``."""
FOLDS_BELOW = 20
"""Validation images with a finding below which critics of folds are asked; the default of its ``quantile_from``."""
RATE = 0.01
"""Of false positives, at which the scores of different folds are made comparable (``false_positive_rate``)."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One finding: AUROC with 95 % interval in images made and in real ones, NaN where nobody knows."""

    label: str
    says: str
    """``DRAWN``, ``HARDLY`` or ``NOT_JUDGED``."""
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
    return pd.DataFrame(rows, columns=[column.name for column in fields(Drawn)])


def matched_pairs(*, asked: np.ndarray, negative: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The images of a pair, one positive and one negative of each noise: bool (n,).

    ``asked``, ``negative``: bool (n,). ``noise``: int (n,), below 0 for an image that did not begin from noise alone.
    """
    chosen = np.zeros(len(noise), dtype=bool)
    for side in (asked & ~negative, negative):
        rows = np.flatnonzero(side & (noise >= 0))
        chosen[rows[np.unique(noise[rows], return_index=True)[1]]] = True
    both = np.intersect1d(noise[chosen & negative], noise[chosen & ~negative])
    return np.asarray(chosen & np.isin(noise, both))


def _read(gauge: Gauge, evidence: Evidence) -> Drawn:
    """One finding."""
    others = [label for label in evidence.scarce if label != gauge.label]
    alone = evidence.made.carriers(gauge.label) & evidence.made.without(others)
    noise = np.full(len(alone), -1) if evidence.noise is None else evidence.noise
    pairs = matched_pairs(asked=alone, negative=evidence.negatives, noise=noise)
    n_pairs, people, nobody = int((alone & pairs).sum()), gauge.positive_patients, (np.nan,) * 3
    knows = people >= LEAST_PATIENTS and len(gauge.negatives) > 0
    real, made = gauge.skill() if knows else nobody, nobody
    if n_pairs >= LEAST_PAIRS:
        made = auroc_interval(logits=gauge.made[pairs], targets=alone[pairs].astype(int), patients=noise[pairs])
    margin, reasons = (0.5 + real[0]) / 2, []
    if n_pairs < LEAST_PAIRS:
        reasons.append(f"{n_pairs} pairs of an image asked for it alone and a matched negative; wanted: {LEAST_PAIRS} "
                       "(plan.negatives_per_positive)")
    if not knows:
        reasons.append(f"{people} real patients with the finding and {len(gauge.negatives)} images without; wanted: "
                       f"{LEAST_PATIENTS} and 1")
    if real[1] <= 0.5:
        reasons.append(f"the critics' AUROC in real images, {real[0]:.3f} ({real[1]:.3f} to {real[2]:.3f}), may be "
                       "chance")
    if not reasons and made[1] <= 0.5 and made[2] >= margin:
        reasons.append(f"too few pairs: neither chance nor half of what is seen in real images ({margin:.3f}) is "
                       "excluded")
    reason = "; ".join(reasons) or None
    says = NOT_JUDGED if reason else HARDLY if made[2] < margin else DRAWN
    return Drawn(label=gauge.label, says=says, auroc=made[0], ci_low=made[1], ci_high=made[2], n_pairs=n_pairs,
                 real_auroc=real[0], real_low=real[1], real_high=real[2], n_real_patients=people, reason=reason)


@reads("critic", "fold")
def drawn(evidence: Evidence) -> list[Criterion]:
    """One criterion per scarce finding: images charged to one that is hardly drawn fail, all of them; see the module.

    Their score is the upper end of the AUROC's interval, the threshold half of what the critics have above .5 in real
    images at least.
    """
    criteria = []
    for row in read_drawn(evidence).to_dict("records"):
        reason = "a control has no sign to draw" if row["label"] in evidence.controls else row["reason"]
        criteria.append(Criterion(
            label=row["label"], score=np.full(len(evidence.made), row["ci_high"]),
            applies=np.asarray(evidence.charged_to == row["label"], dtype=bool), at_least=True,
            threshold=None if reason else (0.5 + row["real_low"]) / 2,
            source=f"upper end of the critics' AUROC over {row['n_pairs']} pairs; half of what they have above .5 at "
                   f"least in real images ({row['real_low']:.3f})",
            n_positive=row["n_real_patients"], reason=f"not judged: {reason}" if reason else None))
    return criteria


def write_drawn(evidence: Evidence, folder: Path) -> str:
    """Write the table, and warn of findings that were asked for and are hardly drawn; the file's name."""
    table = read_drawn(evidence)
    write_table(table, folder / FILE)
    told = [f"{row['label']} (AUROC {row['auroc']:.2f}, {row['ci_low']:.2f} to {row['ci_high']:.2f}; in real images "
            f"{row['real_auroc']:.2f})" for row in table[table["says"] == HARDLY].to_dict("records")]
    if told:
        log.warning("filter: what was asked for is hardly drawn in the images made: %s", ", ".join(told))
    return FILE
