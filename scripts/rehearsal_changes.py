"""The means of raising a rehearsal's recovered share: what each changes, which arms show it, what it leaves as it is.

``scripts/rehearsal_means.py`` tries them. Numbers fit ``configs/rehearse_nih128.yaml``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rehearsal_runs import Rehearsal, need_reconstruction

from classify.arms.rivals import ARMS
from classify.comparison.pairs import HARMONISED_ARM, RIVALS
from classify.comparison.recovered import ORACLE
from classify.rehearsal.shares import RIVAL
from cohort.pipeline import FOLDERS

BASE = "base"
BOTH = ("synthetic", f"synthetic{HARMONISED_ARM}")
"""Added to real images as they are, and among real images of which as many have the decoder's look."""


@dataclass(frozen=True, kw_only=True)
class Means:
    """One change of settings, by section, and which arms show it."""

    changes: dict[str, dict[str, Any]] = field(default_factory=dict)
    arms: tuple[str, ...] = ("synthetic",)
    """Harmonised ones only where the rehearsal has them."""
    informed: bool = False
    """Whether the generator learns from the whole cohort, withheld patients too: no means, but a question.

    One generator for all thinnings, so the interval does not hold how generators differ; copies of withheld images are
    not looked for. ``finetune.steps`` differ from the base's as well."""

    @property
    def knows_withheld(self) -> bool:
        """Whether withheld patients stand behind its images by intention."""
        return self.informed or bool(self.changes.get("reconstruct", {}).get("oracle"))


MEANS: dict[str, Means] = {
    BASE: Means(arms=BOTH),
    "guidance_2.5": Means(changes={"generate": {"guidance_scale": 2.5, "guidance_interval": [0.2, 0.8]}}, arms=BOTH),
    "guidance_4": Means(changes={"generate": {"guidance_scale": 4.0, "guidance_interval": [0.2, 0.8]}}, arms=BOTH),
    "from_real": Means(changes={"plan": {"company_prior": None, "image_conditioned": 1.0, "strength": 0.7}}, arms=BOTH),
    "finetuning_50": Means(changes={"finetune": {"steps": 50}}, arms=BOTH),
    "finetuning_400": Means(changes={"finetune": {"steps": 400}}, arms=BOTH),
    "unfiltered": Means(arms=("unfiltered",)),
    "folds": Means(changes={"filter": {"folds": 5}}, arms=BOTH),
    "folds_band": Means(changes={"filter": {"folds": 5, "rules": {"label_agreement": {"select": "band"}}}}, arms=BOTH),
    "folds_entropy": Means(changes={"filter": {"folds": 5, "rules": {"label_agreement": {"select": "entropy"}}}},
                           arms=BOTH),
    "loss_weight_0.3": Means(changes={"arm": {"synthetic_loss_weight": 0.3}}),
    "all_added_slots": Means(changes={"arm": {"synthetic_share": 1.0}}),
    "slots_30": Means(changes={"arm": {"slots_per_class": 30}}),
    "slots_150": Means(changes={"arm": {"slots_per_class": 150}}),
    "real_finish": Means(changes={"train": {"phase_2_share": 0.3}}, arms=("synthetic-then-real",)),
    "informed": Means(changes={"finetune": {"steps": 1600}}, arms=BOTH, informed=True),
    "reconstructed_oracle": Means(changes={"reconstruct": {"oracle": True}},
                                  arms=("oracle-reconstructed", f"oracle-reconstructed{HARMONISED_ARM}")),
}
"""Name to means. The last two know withheld patients, and tell why a share is small: what a generator brings that has
learnt from them, as one from a larger hospital has, and what its autoencoder lets through."""
MADE_ANEW = {"plan": ("plan", "generate", "filter"), "finetune": ("finetune", "generate", "filter"),
             "generate": ("generate", "filter"), "filter": ("filter",), "reconstruct": ("reconstruct",)}
"""Changed section to the stages that it changes; any other section changes arms only."""
LINKED = ("plan", "finetune", "generate", "filter")


def shown_arms(name: str, rehearsal: Rehearsal) -> list[str]:
    """The arms that show a means: harmonised ones only where the rehearsal has its own."""
    harmonised = BOTH[1] in rehearsal.section.arms
    return [arm for arm in MEANS[name].arms if harmonised or not arm.endswith(HARMONISED_ARM)]


def arms_of(name: str, rehearsal: Rehearsal) -> tuple[str, ...]:
    """The means' arms, what they are measured against, and the oracle."""
    arms = shown_arms(name, rehearsal)
    return tuple(dict.fromkeys((RIVAL, *(RIVALS[arm] for arm in arms), *arms, ORACLE)))


def merge(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` with ``changes``, which may be nested as they are."""
    return {**settings, **{key: merge(settings.get(key) or {}, value) if isinstance(value, Mapping) else value
                           for key, value in changes.items()}}


def untouched(name: str, rehearsal: Rehearsal) -> list[str]:
    """Folders of a run, relative to it, that a means leaves as they are."""
    means, arms = MEANS[name], arms_of(name, rehearsal)
    anew = {stage for section in means.changes for stage in MADE_ANEW.get(section, ())}
    linked = (*LINKED, *(["reconstruct"] if need_reconstruction(arms) else []))
    names = ["cache", "cohort", "oracle", *(FOLDERS[stage] for stage in linked if stage not in anew)]
    if "train" not in means.changes:
        names += [f"train/real/seed_{seed}" for seed in rehearsal.config["filter"]["critic_seeds"]]
    if not means.changes.keys() - MADE_ANEW.keys():  # important: nothing may train into the rehearsal's own folders
        kept = [arm for arm in arms if anew.isdisjoint(ARMS[arm].needs)]  # slots of others follow from what is made
        names += [f"{stage}/{arm}/seed_0" for arm in kept for stage in ("arms", "train")]
    return names
