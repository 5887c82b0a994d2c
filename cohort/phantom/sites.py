"""Two hospitals: their machines, and whom they see.

Site A is a general hospital whose images are the cohort of an experiment. Site B is a referral centre with an older
machine: rare findings are eight times as frequent, more patients lie in bed, and the images are noisier, hazier and
framed differently. B stands for the other hospital that a generator is pre-trained on (as RoentGen's MIMIC is).

Not promised: that the two are any particular hospitals. The values are chosen so that a person sees the difference.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cohort.phantom.exam import Site


@dataclass(frozen=True, kw_only=True)
class CaseMix:
    """Whom a hospital sees."""

    scarce: float = 1.0
    """Factor on the prevalence of every tail and control label."""
    others: Mapping[str, float] = field(default_factory=dict)
    """Factor on the prevalence of single head and medium signs; 1 where none is given."""
    ap: float
    """Share of the studies that are taken in bed (AP), in (0, 1)."""
    mean_age: float
    """Years at the first study."""


SITES: dict[str, Site] = {
    "A": Site(name="A", photons=250_000, scatter=0.35, blur_mm=0.8, contrast=1.0, brightness=0.0, zoom=1.0),
    "B": Site(name="B", photons=90_000, scatter=0.55, blur_mm=1.3, contrast=0.85, brightness=0.04, zoom=1.06),
}
"""The machines, by the hospital's name."""

CASE_MIXES: dict[str, CaseMix] = {
    "A": CaseMix(ap=0.45, mean_age=62),
    "B": CaseMix(ap=0.65, mean_age=57, scarce=8.0, others={
        "Support Devices": 1.3, "Cardiomegaly": 0.8, "Pleural Effusion": 1.1, "Consolidation": 1.5, "Pneumothorax": 1.6,
        "Mass": 2.0, "Nodule": 1.5, "Emphysema": 1.5, "Hernia": 0.7,
    }),
}
"""The patients, by the hospital's name."""
