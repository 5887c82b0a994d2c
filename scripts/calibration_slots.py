"""What the heads of a trial train on: the project's own arms, their images replaced by rows of shared features.

A cohort's slots are laid out in ``LAYOUTS`` ways; a seed takes one of them at random, and draws its images, planted or
new, from the whole pool, so that seeds are independent given the pool, which stands for one generator. The arms of a
seed share its layout. Not promised: arms with a second phase.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd
from calibration_cases import FILTERED, SHARES
from calibration_pools import Pools

from classify.arms.layout import ArmConfig
from classify.arms.rivals import ARMS, Draw
from classify.slots import Slots, label_matrix, prevalence
from cohort.tables import Cohort

LAYOUTS = 100
"""Ways in which the slots of a cohort are laid out; chosen so that tables are not the most of the work."""
RIVAL = "duplicate"


@dataclass(frozen=True, kw_only=True)
class Dealer:
    """Builds slots."""

    pools: Pools
    sets: Sequence[Mapping[str, pd.DataFrame]]
    """Per cohort, the planted sets by name, with ``keep``."""
    config: ArmConfig
    """The layout of every arm; a planted set may have another share of it."""
    seed: int
    repeats: dict[tuple[int, int], Slots] = field(default_factory=dict)
    """The arm ``duplicate`` by cohort and layout, filled as it is asked for."""

    @cached_property
    def train(self) -> list[Cohort]:
        """The cohorts without their validation split, which no arm looks at."""
        return [replace(cohort, frame=cohort.split("train")) for cohort in self.pools.cohorts]

    @cached_property
    def shares(self) -> list[np.ndarray]:
        """The real training prevalence of each cohort, float32 (n_labels,)."""
        return [prevalence(label_matrix(cohort.frame, cohort.labels)) for cohort in self.train]

    def deal(self, arm: str, cohort: int, *, stream: Sequence[int]) -> Slots:
        """The slots of one seed, which ``stream`` stands for; ``arm``: duplicate, oracle or a planted set's name."""
        rng = np.random.default_rng([*stream, 1])
        layout = int(rng.integers(LAYOUTS))
        if arm != RIVAL:
            return self._build(arm, cohort, layout, rng)
        if (cohort, layout) not in self.repeats:
            self.repeats[cohort, layout] = self._build(arm, cohort, layout, rng)
        return self.repeats[cohort, layout]

    def _build(self, arm: str, at: int, layout: int, rng: np.random.Generator) -> Slots:
        cohort, new = self.train[at], self.pools.new
        made = self.sets[at].get(arm, new.iloc[:0].assign(keep=True, label_source_id=None))
        names = [f"{place:06d}" for place in rng.permutation(len(made))]
        made = made.assign(sample_id=names, image_id=[f"synthetic-{name}" for name in names])
        new = new[rng.random(len(new)) < 0.5]  # else every seed would find the same nearest image for a slot
        table = ARMS[arm if arm in ARMS else "synthetic"].build(Draw(
            cohort=cohort, rng=np.random.default_rng([self.seed, at, layout]), seed=0, n_seeds=1,
            frames={"filter": made, "oracle": new},
            config=replace(self.config, synthetic_share=SHARES.get(arm.removesuffix(FILTERED),
                                                                   self.config.synthetic_share))))
        used = made[made["image_id"].isin(table["image_id"])]
        known = pd.concat([frame[["image_id", "row", *cohort.labels]] for frame in (cohort.frame, used, new)])
        found = known.iloc[pd.Index(known["image_id"]).get_indexer(pd.Index(table["image_id"]))]
        return Slots(images=[self.pools.features], index=found["row"].to_numpy(dtype=np.int64),
                     targets=label_matrix(found, cohort.labels), phase=table["phase"].to_numpy(dtype=np.int64),
                     added=table["kind"].ne("real").to_numpy(),
                     weights=table["loss_weight"].to_numpy(dtype=np.float32))
