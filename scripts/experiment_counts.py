"""How many images an experiment will handle, before its cohort or its plan is there.

From the prepared cohort and the plan where they are complete; else from what the settings say (a phantom) or the source
has published. What neither says is None, and stays unknown in every number that follows from it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cohort.phantom.settings import PhantomConfig
from cohort.pipeline import read_stamp
from cohort.tables import SPLITS, Cohort, load_cohort
from cohort.vocabulary.labels import CXR_LT_2024
from prompts.scarcity import find_scarce, set_targets, train_counts

CXR_LT_2024_TAIL = {
    "Lung Lesion": 2338, "Tuberculosis": 2078, "Subcutaneous Emphysema": 2046, "Pulmonary Embolism": 1631,
    "Fibrosis": 1169, "Pulmonary Hypertension": 903, "Kyphosis": 778, "Infarction": 727, "Pneumomediastinum": 704,
    "Hydropneumothorax": 646, "Pleural Other": 616, "Pneumoperitoneum": 516, "Azygos Lobe": 199,
    "Round(ed) Atelectasis": 172, "Clavicle Fracture": 168, "Lobar Atelectasis": 129,
}
"""Positive training images of task 1's tail labels (Lin et al. 2025, arXiv 2506.07984)."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Images of each split, labels, and images to make; None where unknown."""

    train: int | None = None
    val: int | None = None
    test: int | None = None
    labels: int | None = None
    planned: int | None = None
    source: str = "unknown until the cohort is prepared"
    """Where the splits' sizes come from."""
    planned_source: str = "unknown until the plan is made"

    @property
    def all(self) -> int | None:
        """Images of all splits."""
        return add(self.train, self.val, self.test)


def add(*numbers: int | None) -> int | None:
    """The sum, unknown where a part is."""
    return None if any(n is None for n in numbers) else sum(n for n in numbers if n is not None)


def times(*numbers: float | None) -> int | None:
    """The product, rounded up, unknown where a factor is."""
    product = 1.0
    for n in numbers:
        if n is None:
            return None
        product *= n
    return int(-(-product // 1))


def count_images(config: Mapping[str, Any]) -> Counts:
    """The counts of a resolved configuration; raises ``TailfillError`` for a cohort that cannot be read."""
    folder = Path(config["cohort"] or Path(config["run"]) / "cohort")
    plan = (read_stamp(Path(config["run"]) / "plan") or {}).get("counts", {}).get("planned")
    if read_stamp(folder):
        cohort = load_cohort(folder)
        train, val, test = (int((cohort.frame["split"] == split).sum()) for split in SPLITS)
        found = Counts(train=train, val=val, test=test, labels=len(cohort.labels), source="the prepared cohort",
                       **_ask(config, cohort))
    else:
        found = _published(config)
    return found if plan is None else Counts(**{**vars(found), "planned": plan, "planned_source": "the plan"})


def _ask(config: Mapping[str, Any], cohort: Cohort) -> dict[str, Any]:
    """What a plan of this cohort will ask for, at most."""
    scarce = find_scarce(config["plan"]["scarce"], labels=cohort.labels, groups=cohort.groups,
                         per_class=config["plan"]["per_class"])
    return _planned(config, train_counts(cohort.split("train"), cohort.labels), scarce, "the cohort's counts")


def _planned(config: Mapping[str, Any], counts: pd.DataFrame, scarce: list[str], source: str) -> dict[str, Any]:
    plan = config["plan"]
    targets = set_targets(counts, scarce, **{key: plan[key] for key in
                                             ("rule", "total", "floor", "max_ratio", "beta", "per_class")})
    positives = sum(targets.wanted.values())
    return {"planned": round(positives * (1 + plan["negatives_per_positive"])),
            "planned_source": f"at most, by {source}: {positives:,} positives and their negatives"}


def phantom_labels(findings: str | Sequence[str]) -> tuple[str, ...]:
    """The labels of a phantom with these ``findings``, as a resolved configuration has them."""
    chosen: Any = findings if isinstance(findings, str) else tuple(findings)
    return PhantomConfig(findings=chosen).labels


def _published(config: Mapping[str, Any]) -> Counts:
    """What is known of a cohort that is not prepared."""
    section, plan = config.get("prepare", {}), config["plan"]
    total = {} if plan["total"] is None else {
        "planned": round(plan["total"] * (1 + plan["negatives_per_positive"])),
        "planned_source": "at most: plan.total and the negatives"}
    if section.get("source") == "phantom":
        phantom, n = section["phantom"], section["phantom"]["images"]
        val, test = round(n * phantom["val_share"]), round(n * phantom["test_share"])
        return Counts(train=n - val - test, val=val, test=test, source="prepare.phantom", **total,
                      labels=len(phantom_labels(phantom["findings"])))
    if (section.get("source"), section.get("year"), section.get("task")) == ("cxr-lt", 2024, 1):
        positives = pd.DataFrame({"n_real": CXR_LT_2024_TAIL})
        asked = _planned(config, positives, list(CXR_LT_2024_TAIL), "arXiv 2506.07984's counts") if set(
            config["plan"]["scarce"]) == {"tail"} and not config["plan"]["per_class"] else {}
        return Counts(train=258_871, val=39_293, test=78_946, labels=len(CXR_LT_2024.labels),
                      source="arXiv 2506.07984", **(total or asked))
    return Counts(**total)
