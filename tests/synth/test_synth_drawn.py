"""Whether what was asked for can be read in the images made: planted generators, unskilled critics, few of either."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evidence_cases import case_of, images_of
from sklearn.metrics import roc_auc_score

from cohort.tables import read_table
from synth.judging.evidence import NEGATIVE, Evidence, Images
from synth.judging.rules import apply_rules, fails
from synth.measuring.drawn import FILE, drawn, matched_pairs, read_drawn, write_drawn

LABELS = ["Edema", "Hernia"]
CRITIC, FOLD = "critic_1000", "fold_2000"


def draw(n: int, *, gap: float, seed: int, share: float = 0.3, name: str = CRITIC) -> Images:
    """``n`` real images of a patient each, findings by chance, and logits that know them by ``gap``."""
    rng = np.random.default_rng(seed)
    there = rng.random((n, len(LABELS))) < share
    return images_of({label: there[:, at].astype(int).tolist() for at, label in enumerate(LABELS)},
                     readings={name: rng.normal(size=there.shape) + gap * there},
                     patients=[f"p{seed}.{i}" for i in range(n)])


def case(
    real: Images, *, gap: float, n_pairs: int = 150, seed: int = 1, alike: float = 0.9, name: str = CRITIC
) -> Evidence:
    """Half the pairs are asked for Edema, half for Hernia; pairs have most of a score in common, the positive ``gap``
    more of what it was asked for."""
    rng = np.random.default_rng(seed)
    asked = np.arange(n_pairs) % 2 == np.arange(len(LABELS))[:, None]
    shared = rng.normal(size=(n_pairs, len(LABELS)))
    each = alike * shared + (1 - alike) * rng.normal(size=(2, n_pairs, len(LABELS)))
    logits = np.concatenate([each[0] + gap * asked.T, each[1]])
    made = images_of({label: [*asked[at].astype(int), *[0] * n_pairs] for at, label in enumerate(LABELS)},
                     readings={name: logits}, patients=[f"synthetic:{i}" for i in range(2 * n_pairs)])
    charged = [*np.where(asked[0], *LABELS), *[NEGATIVE] * n_pairs]
    evidence = case_of(made=made, charged_to=charged, train=real, val=real, scarce=LABELS, critics=[name])
    return replace(evidence, noise=np.tile(np.arange(n_pairs), 2))


def row_of(evidence: Evidence, label: str = "Edema") -> dict[str, object]:
    return read_drawn(evidence).set_index("label").to_dict("index")[label]


@pytest.mark.parametrize(("gap", "says"), [(0.5, "drawn"), (0.0, "hardly drawn")])
def test_a_generator_that_knows_the_finding_and_one_that_does_not(gap: float, says: str) -> None:
    real = draw(300, gap=1.5, seed=2)
    evidence = case(real, gap=gap)
    row = row_of(evidence)
    assert (row["says"], row["reason"], row["n_pairs"]) == (says, None, 75)
    rows = np.r_[np.arange(0, 150, 2), 150 + np.arange(0, 150, 2)]  # of Edema: its positives and their negatives alone
    assert row["auroc"] == pytest.approx(roc_auc_score(np.repeat([1, 0], 75), evidence.made.read(CRITIC)[rows, 0]))
    assert row["real_auroc"] == pytest.approx(roc_auc_score(real.carriers("Edema"), real.read(CRITIC)[:, 0]))
    margin = (0.5 + row["real_auroc"]) / 2
    assert row["ci_low"] > 0.5 if says == "drawn" else row["ci_high"] < margin


def test_a_trace_is_hardly_drawn() -> None:
    row = row_of(case(draw(300, gap=1.5, seed=2), gap=0.15, n_pairs=400))
    assert row["says"] == "hardly drawn"
    assert 0.5 < row["ci_low"] < row["ci_high"] < (0.5 + row["real_auroc"]) / 2


def test_what_else_prompts_have_more_often_does_not_count() -> None:
    """Edema goes with a company that scores higher: against all others it seems drawn, against its negatives not."""
    evidence = case(draw(300, gap=1.5, seed=2), gap=0.0)
    logits = evidence.made.read(CRITIC).copy()
    company = np.tile(np.arange(150) % 2 == 0, 2)
    logits[company, 0] += 1.0
    made = replace(evidence.made, readings={CRITIC: logits})
    assert roc_auc_score(made.carriers("Edema"), logits[:, 0]) > 0.6
    assert row_of(replace(evidence, made=made))["says"] == "hardly drawn"


def test_the_interval_of_chance_lies_above_a_half_no_more_often_than_it_may() -> None:
    real = draw(200, gap=1.5, seed=0)
    above = sum(row_of(case(real, gap=0.0, n_pairs=60, seed=seed))["ci_low"] > 0.5 for seed in range(200))
    assert 1 <= above <= 12  # 2.5 % of 200 are 5; fewer or more have a chance of a hundredth


def test_what_pairs_have_in_common_narrows_the_interval() -> None:
    real = draw(300, gap=1.5, seed=2)
    alike, apart = row_of(case(real, gap=0.1)), row_of(case(real, gap=0.1, alike=0.0))
    assert 2 * (alike["ci_high"] - alike["ci_low"]) < apart["ci_high"] - apart["ci_low"]


def test_a_negative_that_is_asked_for_again_counts_once() -> None:
    """The critics' dislikes come again, in other words: they would make every negative look like the finding."""
    evidence = case(draw(300, gap=1.5, seed=2), gap=0.0)
    scores = evidence.made.read(CRITIC)[:, 0]
    disliked = 150 + np.flatnonzero(scores[150:] > np.quantile(scores[150:], 0.7))
    rows = np.r_[np.arange(300), np.repeat(disliked, 5)]
    made = images_of({label: evidence.made.labels[label].iloc[rows].tolist() for label in LABELS},
                     readings={CRITIC: evidence.made.read(CRITIC)[rows]}, patients=list(map(str, range(len(rows)))))
    again = replace(evidence, made=made, charged_to=evidence.charged_to[rows], noise=evidence.noise[rows])
    assert row_of(again) == row_of(evidence)


def test_images_that_ask_for_another_scarce_finding_too_do_not_count() -> None:
    """Hernia comes with every Edema and is drawn; the critic of Edema leans on it."""
    evidence = case(draw(300, gap=1.5, seed=2), gap=0.0)
    logits, labels = evidence.made.read(CRITIC).copy(), evidence.made.labels.copy()
    both = np.arange(0, 100, 2)
    labels.loc[both, "Hernia"] = 1
    logits[both, 0] += 2.0
    row = row_of(replace(evidence, made=replace(evidence.made, labels=labels, readings={CRITIC: logits})))
    assert (row["says"], row["n_pairs"]) == ("hardly drawn", 25)


def test_images_that_start_from_real_ones_do_not_count() -> None:
    evidence = case(draw(300, gap=1.5, seed=2), gap=1.0)
    noise = np.where(np.tile(np.arange(150) < 140, 2), -1, evidence.noise)
    row = row_of(replace(evidence, noise=noise))
    assert (row["says"], row["n_pairs"]) == ("not judged", 5)


@pytest.mark.parametrize(("real", "n_pairs", "why"), [
    (draw(300, gap=0.0, seed=8), 150, "may be chance"),
    (draw(60, gap=1.5, seed=4, share=0.05), 150, "real patients with the finding"),
    (draw(300, gap=1.5, seed=2), 12, "6 pairs of an image asked for it alone and a matched negative; wanted: 10"),
])
def test_what_nobody_can_tell_is_not_judged(real: Images, n_pairs: int, why: str) -> None:
    row = row_of(case(real, gap=1.0, n_pairs=n_pairs))
    assert row["says"] == "not judged"
    assert why in str(row["reason"])


def test_every_reason_is_told() -> None:
    row = row_of(case(draw(60, gap=1.5, seed=4, share=0.05), gap=1.0, n_pairs=12))
    assert all(why in str(row["reason"]) for why in ("6 pairs", "real patients with the finding"))


def test_too_few_pairs_to_say_are_no_proof_of_absence() -> None:
    real = draw(300, gap=1.5, seed=2)
    row = row_of(case(real, gap=0.4, n_pairs=24, alike=0.0, seed=5))
    assert (row["says"], row["n_pairs"]) == ("not judged", 12)
    assert row["ci_low"] < 0.5 < (0.5 + row["real_auroc"]) / 2 < row["ci_high"]
    assert "neither chance nor half of what is seen in real images" in str(row["reason"])


def test_images_without_matched_negatives_have_no_pairs() -> None:
    evidence = case(draw(300, gap=1.5, seed=2), gap=1.0)
    for lone in (replace(evidence, noise=None), replace(evidence, charged_to=np.full(300, "Edema", dtype=object))):
        assert "0 pairs" in str(row_of(lone)["reason"])
    asked, negative = np.array([True, True, False, False]), np.array([False, False, True, True])
    pairs = matched_pairs(asked=asked, negative=negative, noise=np.array([1, 2, 2, 3]))
    assert pairs.tolist() == [False, True, True, False]


def test_where_validation_has_few_the_critics_of_folds_are_asked() -> None:
    few, fold = draw(60, gap=1.5, seed=12, share=0.15), draw(300, gap=2.0, seed=13, name=FOLD)
    evidence = case(few, gap=0.0)
    assert few.carriers("Edema").sum() < 20
    assert row_of(evidence)["says"] == "hardly drawn"
    knowing = case(few, gap=1.5, name=FOLD).made.read(FOLD)
    made = replace(evidence.made, readings={**evidence.made.readings, FOLD: knowing})
    row = row_of(replace(evidence, made=made, folds={FOLD: fold}))
    assert (row["says"], row["n_real_patients"]) == ("drawn", fold.carriers("Edema").sum())


def test_the_log_warns_of_what_cannot_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    evidence = case(draw(300, gap=1.5, seed=2), gap=0.0)
    knowing = case(evidence.val, gap=1.0).made.read(CRITIC)
    logits = np.column_stack([knowing[:, 0], evidence.made.read(CRITIC)[:, 1]])
    made = replace(evidence.made, readings={CRITIC: logits})
    with caplog.at_level(logging.WARNING):
        assert write_drawn(replace(evidence, made=made), tmp_path) == FILE
    assert "is hardly drawn in the images made: Hernia (AUROC 0." in caplog.text
    assert "Edema" not in caplog.text
    assert read_table(tmp_path / FILE)["says"].tolist() == ["drawn", "hardly drawn"]


def test_all_images_of_a_finding_that_is_hardly_drawn_are_dropped_and_no_others() -> None:
    real = draw(300, gap=1.5, seed=2)
    evidence = case(real, gap=0.5)
    none = case(real, gap=0.0)
    logits = evidence.made.read(CRITIC).copy()
    logits[:, 1] = none.made.read(CRITIC)[:, 1]  # Hernia is not drawn
    evidence = replace(evidence, made=replace(evidence.made, readings={CRITIC: logits}))
    assert read_drawn(evidence)["says"].tolist() == ["drawn", "hardly drawn"]
    (criteria,) = apply_rules({"drawn": None}, evidence).values()
    assert np.array_equal(fails(criteria, len(evidence.made)), np.asarray(evidence.charged_to) == "Hernia")


def test_a_control_is_kept_though_it_has_no_sign() -> None:
    evidence = case(draw(300, gap=1.5, seed=2), gap=0.0)
    for controls, dropped in (((), ["Edema", "Hernia"]), (("Edema",), ["Hernia"])):
        fallen = fails(drawn(replace(evidence, controls=controls)), len(evidence.made))
        assert sorted(set(np.asarray(evidence.charged_to)[fallen])) == dropped


def test_what_forty_patients_leave_open_warns_and_drops_nothing() -> None:
    """The critics' skill is known to a tenth: below half of it, and not below half of the least that it may be."""
    for gap, drops in ((0.02, True), (0.12, False)):
        evidence = case(draw(40, gap=1.0, seed=5), gap=gap)
        row, (criterion, _) = row_of(evidence), drawn(evidence)
        assert row["says"] == "hardly drawn"
        assert criterion.threshold == pytest.approx((0.5 + row["real_low"]) / 2)
        assert fails([criterion], len(evidence.made)).any() == drops


def test_a_finding_that_is_not_judged_drops_nothing() -> None:
    evidence = case(draw(300, gap=0.0, seed=2), gap=0.0)  # critics that see nothing in real images either
    criteria = {criterion.label: criterion for criterion in drawn(evidence)}
    assert [criteria[label].threshold for label in LABELS] == [None, None]
    assert "may be chance" in str(criteria["Edema"].reason)
    assert not fails(list(criteria.values()), len(evidence.made)).any()
