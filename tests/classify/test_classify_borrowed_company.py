"""Arms where the synthetic images' company was borrowed: no slot's source is theirs, and rivals are as free."""

import numpy as np
import pandas as pd
import pytest
from tiny_classify import LABELS, write_cohort, write_stages

from classify.arms.layout import ArmConfig
from classify.arms.rivals import ARMS, Draw
from classify.slots import load_pools

CONFIG = ArmConfig(slots_per_class=10)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("borrowed"))


@pytest.fixture(scope="module")
def run(cohort):
    return write_stages(cohort)


def frame_of(run, cohort, stage):
    return load_pools({stage: run.folder / ("synthetic" if stage == "filter" else stage)}, cohort)[stage].frame


def test_unfiltered_matches_the_charged_label_only_where_company_was_borrowed(run, cohort):
    """Every vector stands alone: with all labels equal, each kept image would be its own stand-in."""
    made = frame_of(run, cohort, "filter").assign(label_source_id=None)
    beside = [label for label in LABELS if label not in cohort.scarce]
    made[beside] = (np.arange(len(made))[:, None] >> np.arange(len(beside))) & 1
    draw = Draw(cohort=cohort, config=CONFIG, rng=np.random.default_rng(0), frames={"filter": made}, seed=0, n_seeds=1)
    again = Draw(cohort=cohort, config=CONFIG, rng=np.random.default_rng(0), frames={"filter": made}, seed=0, n_seeds=1)
    slots, mixed = ARMS["unfiltered"].build(draw), ARMS["synthetic"].build(again)
    placed = slots["sample_id"].notna()
    assert placed.sum() == mixed["sample_id"].notna().sum() >= 10
    ours, theirs = (made.set_index("image_id").loc[one.loc[placed, "image_id"]] for one in (slots, mixed))
    assert (ours["charged_to"].to_numpy() == theirs["charged_to"].to_numpy()).all()
    assert not ours["keep"].all()
    assert (ours.index != theirs.index).mean() > 0.5


def test_the_oracle_is_as_free_in_its_company_as_the_synthetic_images_are(run, cohort):
    """Images like their slots' sources are taken before others, but for images whose company was borrowed."""
    made, oracle = frame_of(run, cohort, "filter"), frame_of(run, cohort, "oracle")
    twins = cohort.split("train")
    twins = twins[twins["Hernia"].eq(1).fillna(False)]
    likes = pd.concat([twins.assign(image_id=[f"like-{n}-{i}" for i in twins["image_id"]]) for n in range(9)])
    unlike = likes.assign(image_id="un" + likes["image_id"], Mass=1 - likes["Mass"], Effusion=1 - likes["Effusion"])
    new = pd.concat([likes, unlike], ignore_index=True)[oracle.columns.intersection(likes.columns)]
    taken = {}
    for name, images in (("own", made), ("borrowed", made.assign(label_source_id=None))):
        slots = ARMS["oracle"].build(Draw(cohort=cohort, config=CONFIG, rng=np.random.default_rng(0), seed=0, n_seeds=1,
                                          frames={"filter": images, "oracle": new}))
        taken[name] = slots.loc[slots["kind"] == "new_real", "image_id"].str.startswith("unlike")
    assert len(taken["own"]) == len(taken["borrowed"]) >= 5
    assert not taken["own"].any()
    assert taken["borrowed"].any()
