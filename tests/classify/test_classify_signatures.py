"""Failure signatures: each planted fault is flagged by name, in its class and arm only; honest predictions are not."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from classify.comparison.measuring import Scored
from classify.comparison.metrics import METRICS, ClassMetrics
from classify.comparison.signatures import (
    METADATA,
    NEAR_PREVALENCE,
    OVERFIT,
    auroc_error,
    signature_rows,
    signature_sentence,
)

LABELS = ["Effusion", "Hernia", "Mass"]
N = 3000


class World:
    """Train, validation and test images, one per patient; two arms with one seed, spoilt by a test."""

    def __init__(self, seed: int = 0) -> None:
        rng = self.rng = np.random.default_rng(seed)
        self.frame = pd.DataFrame({
            "image_id": [f"i{n:05}" for n in range(3 * N)], "split": np.repeat(["train", "val", "test"], N),
            "sex": rng.choice(["M", "F"], 3 * N), "view": rng.choice(["PA", "AP"], 3 * N),
            "age": rng.uniform(20, 90, 3 * N), **{label: (rng.random(3 * N) < 0.1).astype(float) for label in LABELS}})
        self.signal = dict.fromkeys([(arm, split) for arm in ("a", "b") for split in ("val", "test")], 2.5)
        self.level: dict[str, float] = {}

    def table(self, *, controls: pd.DataFrame | None = None) -> pd.DataFrame:
        scored, rows = {}, []
        for split in ("val", "test"):
            part = self.frame[self.frame["split"] == split]
            truth = part[LABELS].to_numpy(dtype=float)
            logits = {(arm, 0, "ema"): self.signal[arm, split] * truth + self.rng.normal(size=truth.shape)
                      for arm in ("a", "b")}
            for label, level in self.level.items():
                for one in logits.values():
                    one[truth[:, LABELS.index(label)] == 1, LABELS.index(label)] = level
            scored[split] = Scored(labels=truth, patients=np.arange(N), logits=logits)
            for (arm, seed, weights), one in logits.items():
                for at, label in enumerate(LABELS):
                    values = ClassMetrics(labels=truth[:, at], logits=one[:, at])(np.ones((N, 1)))[:, 0]
                    rows += [{"arm": arm, "seed": seed, "weights": weights, "split": split, "label": label,
                              "metric": metric, "value": value} for metric, value in zip(METRICS, values, strict=True)]
        cohort = SimpleNamespace(labels=LABELS, split=lambda name: self.frame[self.frame["split"] == name].reset_index(
            drop=True), in_group=lambda group: LABELS if group == "tail" else [])
        return signature_rows(pd.DataFrame(rows), scored, cohort, weights="ema", controls=controls)


def flagged(table: pd.DataFrame) -> set[tuple[str, str, str]]:
    return set(table.loc[table["flagged"].fillna(False), ["signature", "arm", "label"]].itertuples(index=False))


@pytest.mark.parametrize("seed", range(3))
def test_honest_predictions_have_no_signature(seed):
    table = World(seed).table()
    assert flagged(table) == set()
    assert len(table) == 2 * len(LABELS) * 3
    assert table["flagged"].notna().all()
    assert signature_sentence(table, arm="a") == "Failure signatures of a: none in 9 checks."


def test_ranking_well_and_pointing_at_nothing():
    world = World()
    world.frame["Hernia"] = (world.rng.random(3 * N) < 0.006).astype(float)
    world.level = {"Hernia": 1.0}  # every positive just above 84 % of the negatives, none near the top
    table = world.table()
    assert flagged(table) == {(NEAR_PREVALENCE, arm, "Hernia") for arm in "ab"}
    words = table.loc[table["flagged"].fillna(False), "words"].iloc[0]
    assert "AUROC 0.8" in words
    assert "prevalence of 0.00" in words


def test_what_the_view_alone_tells_is_named_by_rates_of_the_train_split():
    world = World()
    share = np.where(world.frame["view"] == "AP", 0.19, 0.01)
    world.frame["Mass"] = (world.rng.random(3 * N) < share).astype(float)
    world.signal["a", "test"] = world.signal["a", "val"] = 0.9  # AUROC .74; the view alone reaches .73
    table = world.table()
    assert flagged(table) == {(METADATA, "a", "Mass")}
    row = table.query("signature == @METADATA and arm == 'a' and label == 'Mass'").iloc[0]
    assert row["words"].startswith("view alone")
    test = world.frame.query("split == 'test'")
    assert row["reference"] == pytest.approx(roc_auc_score(test["Mass"], test["view"] == "AP"))
    assert "metadata alone (Mass)" in signature_sentence(table, arm="a")
    world.frame.loc[world.frame["split"] == "train", "view"] = "PA"  # a train split that knows no AP tells nothing
    assert (METADATA, "a", "Mass") not in flagged(world.table())


def test_validation_far_above_test():
    world = World()
    world.signal["b", "test"] = 1.0
    assert flagged(world.table()) == {(OVERFIT, "b", label) for label in LABELS}


def test_few_positives_are_not_judged():
    world = World()
    world.frame["Hernia"] = 0.0
    for split in ("val", "test"):
        at = world.frame.index[world.frame["split"] == split][:9]
        world.frame.loc[at, "Hernia"] = 1.0
    table = world.table()
    thin = table[table["label"] == "Hernia"]
    assert thin["flagged"].isna().all()
    assert thin["reason"].str.startswith("fewer than 10 positive patients").all()
    assert "3 could not be looked at" in signature_sentence(table, arm="a")


def test_a_control_is_flagged_for_a_significant_gain_only():
    row = {"arm": "a", "rival": "b", "label": "Infarction", "metric": "AP", "ci_low": 0.0, "ci_high": 0.1, "p": 0.01,
           "reason": None}
    controls = pd.DataFrame([row | {"delta": 0.05, "significant": True}, row | {"delta": -0.05, "significant": True},
                             row | {"delta": 0.05, "significant": False}, row | {"label": "control", "delta": 0.05,
                                                                                 "significant": True}])
    found = World().table(controls=controls).query("signature == 'gain on a control'")
    assert found["flagged"].tolist() == [True, False, False]


def test_standard_error_of_an_auroc_is_that_of_many_samples():
    rng = np.random.default_rng(0)
    labels = np.repeat([1, 0], [40, 400])
    found = [roc_auc_score(labels, rng.exponential(np.where(labels == 1, 4.0, 1.0))) for _ in range(600)]
    assert auroc_error(float(np.mean(found)), 40, 400) == pytest.approx(np.std(found), rel=0.15)
