"""How often the phantom has which finding, and in what company.

Labels and frequencies are those of CXR-LT 2024 (Lin et al., 2506.07984: share of the train images). Head and medium
signs keep their frequency. The tail's, .05 to .79 %, is compressed without changing its order to .26 to .60 %, so that
6,000 images, 70 % of them to train on, hold about 8 to 30 train positives of each.

Company is a Gaussian copula: every sign has a latent number, and is present where that exceeds the quantile of its
frequency. Latents share a few causes (being acutely ill, heart failure, air leaks, injury, age, smoking, tumour, old
scars), so single frequencies stay exact whatever the company. The loadings are chosen, not fitted: among images with a
tail finding pneumothorax, emphysema and mass come out about 3.0, 2.4 and 2.2 times as frequent as overall, as there.

One label is derived and has no frequency of its own: ``Normal`` (no visible sign). CXR-LT's parents ``Lung Opacity``
and ``Fracture`` are left out, for a finding that is taken away would leave its parent behind. Lobar and
Round(ed) Atelectasis do not imply Atelectasis, and Hydropneumothorax implies neither Pneumothorax nor Pleural Effusion:
in CXR-LT too they are labels of their own. Controls leave no sign.

Not promised: triples, or what depends on sex. Images that show nothing are more frequent than CXR-LT's 13 %, since
labels without a drawn sign (pneumonia, infiltration) are missing here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cohort.vocabulary.labels import CONTROL, TAIL_BELOW, group_of

CAUSES = ("acute", "failure", "leak", "injury", "age", "smoke", "tumour", "scar")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """How often a finding is seen, what it comes from, and how long it lasts."""

    percent: float
    """Percent of CXR-LT 2024's train images."""
    lasts: float
    """Correlation of its latent between two studies of a patient, in [0, 1]: 1 never changes."""
    causes: dict[str, float] = field(default_factory=dict)
    """Loadings on ``CAUSES``; their squares add up to 1 at most, the rest is the finding's own."""


FINDINGS: dict[str, Finding] = {
    "Support Devices": Finding(percent=33.252, lasts=0.7, causes={"acute": 0.75}),
    "Cardiomegaly": Finding(percent=28.871, lasts=0.95, causes={"failure": 0.6, "age": 0.25}),
    "Pleural Effusion": Finding(percent=25.650, lasts=0.7, causes={"failure": 0.5, "acute": 0.4}),
    "Atelectasis": Finding(percent=25.254, lasts=0.6, causes={"acute": 0.5, "failure": 0.2}),
    "Edema": Finding(percent=14.392, lasts=0.5, causes={"failure": 0.7, "acute": 0.3}),
    "Consolidation": Finding(percent=5.938, lasts=0.5, causes={"acute": 0.4}),
    "Pneumothorax": Finding(percent=5.353, lasts=0.6, causes={"leak": 0.63, "acute": 0.25}),
    "Rib Fracture": Finding(percent=3.445, lasts=0.95, causes={"injury": 0.7}),
    "Nodule": Finding(percent=2.909, lasts=0.95, causes={"tumour": 0.6}),
    "Mass": Finding(percent=2.043, lasts=0.97, causes={"tumour": 0.78}),
    "Calcification of the Aorta": Finding(percent=1.637, lasts=0.98, causes={"age": 0.7}),
    "Hernia": Finding(percent=1.540, lasts=0.98, causes={"age": 0.4}),
    "Scoliosis": Finding(percent=1.415, lasts=0.99),
    "Emphysema": Finding(percent=1.414, lasts=0.98, causes={"smoke": 0.52, "age": 0.2}),
    "Tortuous Aorta": Finding(percent=1.289, lasts=0.98, causes={"age": 0.7}),
    "Pleural Thickening": Finding(percent=1.264, lasts=0.95, causes={"scar": 0.5}),
    "Granuloma": Finding(percent=1.145, lasts=0.98, causes={"scar": 0.4}),
    "Subcutaneous Emphysema": Finding(percent=0.790, lasts=0.5, causes={"leak": 0.7, "acute": 0.35, "smoke": 0.3}),
    "Fibrosis": Finding(percent=0.452, lasts=0.97, causes={"scar": 0.5, "smoke": 0.6}),
    "Kyphosis": Finding(percent=0.301, lasts=0.99, causes={"age": 0.5, "smoke": 0.3}),
    "Pneumomediastinum": Finding(percent=0.272, lasts=0.5, causes={"leak": 0.65, "acute": 0.35, "smoke": 0.3}),
    "Hydropneumothorax": Finding(percent=0.250, lasts=0.6, causes={"leak": 0.45, "tumour": 0.35, "smoke": 0.25}),
    "Pneumoperitoneum": Finding(percent=0.199, lasts=0.5, causes={"acute": 0.5, "leak": 0.2}),
    "Azygos Lobe": Finding(percent=0.077, lasts=1.0),
    "Round(ed) Atelectasis": Finding(percent=0.066, lasts=0.95, causes={"scar": 0.4, "tumour": 0.4}),
    "Clavicle Fracture": Finding(percent=0.065, lasts=0.95, causes={"injury": 0.75}),
    "Lobar Atelectasis": Finding(percent=0.050, lasts=0.6, causes={"tumour": 0.6, "acute": 0.3, "smoke": 0.3}),
}
"""The visible signs; ``percent`` from the table of classes, ``lasts`` and ``causes`` chosen."""

CONTROLS: dict[str, float] = {"Pulmonary Embolism": 0.630, "Infarction": 0.281}
"""Labels that leave no sign, with CXR-LT's percent: a coin flip per patient, so any gain on them is an artefact."""

NORMAL = "Normal"
"""The derived label that is positive where no sign is visible; controls do not unset it."""

VIEW_AP = Finding(percent=50.0, lasts=0.5, causes={"acute": 0.7})
"""The view follows the same model: the acutely ill, who have the support devices, are imaged in bed."""

LABELS: tuple[str, ...] = (NORMAL, *FINDINGS, *CONTROLS)
"""Every label of the phantom, in the order of its columns."""
CORE: tuple[str, ...] = (
    NORMAL, "Support Devices", "Cardiomegaly", "Pleural Effusion", "Edema", "Pneumothorax", "Subcutaneous Emphysema",
    "Pneumomediastinum", "Hydropneumothorax", "Pneumoperitoneum", "Lobar Atelectasis", *CONTROLS,
)
"""Twelve findings that 128 pixels show well (five of them tail, two controls), and ``Normal``."""


def base_prevalence(label: str) -> float:
    """Share of the images of site A with a sign or control, in (0, 1): CXR-LT's, in the tail .64 percent ** .3."""
    percent = FINDINGS[label].percent if label in FINDINGS else CONTROLS[label]
    return (percent if percent >= 100 * TAIL_BELOW else 0.64 * percent**0.3) / 100


def nominal_group(label: str) -> str:
    """``head``, ``medium``, ``tail`` or ``control`` by CXR-LT's frequency."""
    if label in CONTROLS:
        return CONTROL
    if label == NORMAL:
        return "head"
    return group_of(FINDINGS[label].percent / 100)


def loadings(findings: Sequence[Finding]) -> tuple[np.ndarray, np.ndarray]:
    """float64 (n, causes) loadings, and (n,) the weight of each latent's own part, so that its variance is 1."""
    shared = np.array([[finding.causes.get(cause, 0.0) for cause in CAUSES] for finding in findings])
    return shared, np.sqrt(1 - (shared**2).sum(axis=1))


def derive(present: dict[str, np.ndarray], labels: Sequence[str]) -> np.ndarray:
    """bool (..., labels), in order; ``present`` maps each drawn sign and control to bool (...)."""
    signs = [values for label, values in present.items() if label in FINDINGS]
    known = present | {NORMAL: ~np.any(signs, axis=0)}
    return np.stack([known[label] for label in labels], axis=-1)
