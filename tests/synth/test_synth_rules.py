"""Rules: thresholds come from real images and hold what they promise; the critic has no vote where it has no skill."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from cohort.errors import TailfillError
from synth.judging.critic import auroc_interval, resize_square
from synth.judging.rules import (
    NEGATIVE,
    Criterion,
    Evidence,
    RealImages,
    apply_rules,
    blank,
    check_rules,
    label_agreement,
    saturated,
    worst_margin,
)

LABELS = ["Edema", "Hernia", "Mass"]


def evidence(
    images: np.ndarray | None = None, *, n_positive: int = 40, gap: float = 3.0, scores: tuple[float, ...] = (),
    charged: tuple[str, ...] = (),
) -> Evidence:
    """600 real validation images of 600 patients, ``n_positive`` with Edema, whose logit lies ``gap`` higher."""
    rng = np.random.default_rng(0)
    images = np.zeros((len(scores), 8, 8), np.uint8) if images is None else images
    asked = pd.DataFrame(0, index=range(len(images)), columns=LABELS, dtype="Int8")
    charged = charged or ("Edema",) * len(images)
    asked["Edema"] = [int(label == "Edema") for label in charged]
    targets = pd.DataFrame(0, index=range(600), columns=LABELS, dtype="Int8")
    targets.loc[: n_positive - 1, "Edema"] = 1
    targets.loc[599, "Edema"] = pd.NA
    val_logits = rng.normal(size=(600, 3))
    val_logits[:n_positive, 0] += gap
    logits = np.zeros((len(images), 3))
    logits[:, 0] = scores or 0
    real = rng.integers(20, 235, (400, 8, 8)).astype(np.uint8)
    patients = np.array([f"p{i}" for i in range(600)])
    return Evidence(
        images=images, asked=asked, charged_to=np.array(charged), scarce=["Edema"], logits=logits,
        train=RealImages(labels=targets[:400], patients=patients[:400], images=real),
        val=RealImages(labels=targets, patients=patients, logits=val_logits),
    )


def test_blank_and_saturated() -> None:
    """A flat image fails the one, a black-and-white one the other, real ones pass both."""
    rng = np.random.default_rng(1)
    flat = np.full((8, 8), 90, np.uint8)
    harsh = (rng.random((8, 8)) < 0.5).astype(np.uint8) * 255
    usual = rng.integers(20, 235, (8, 8)).astype(np.uint8)
    case = evidence(np.stack([flat, harsh, usual]))
    assert (worst_margin(blank(case), 3) >= 0).tolist() == [False, True, True]
    assert (worst_margin(saturated(case), 3) >= 0).tolist() == [True, False, True]


@pytest.mark.parametrize(("rule", "quantile", "passing"), [(blank, 0.1, 0.9), (saturated, 0.9, 0.9)])
def test_pixel_quantiles_hold_on_the_real_images(rule: object, quantile: float, passing: float) -> None:
    """The stated share of the real images that gave the threshold passes it (ties may let more pass)."""
    rng = np.random.default_rng(2)
    real = rng.integers(0, 256, (500, 8, 8)).astype(np.uint8)
    targets = pd.DataFrame(0, index=range(500), columns=LABELS, dtype="Int8")
    split = RealImages(labels=targets, patients=np.arange(500), images=real)
    case = Evidence(images=real, asked=targets, charged_to=np.array([NEGATIVE] * 500), scarce=[], logits=None,
                    train=split, val=split)
    passed = (worst_margin(rule(case, quantile=quantile), 500) >= 0).mean()  # type: ignore[operator]
    assert passing - 0.01 <= passed <= passing + 0.1


def by_direction(criteria: list[Criterion]) -> dict[bool, Criterion]:
    assert len(criteria) == 2
    return {criterion.at_least: criterion for criterion in criteria}


def test_threshold_is_the_positives_quantile_where_there_are_enough() -> None:
    case = evidence(scores=(5.0, -5.0))
    present = by_direction(label_agreement(case, positive_quantile=0.1))[True]
    assert case.val.logits is not None
    assert present.threshold == pytest.approx(np.quantile(case.val.logits[:40, 0], 0.1))
    assert "validation positives" in present.source
    assert present.n_positive == 40
    assert (worst_margin([present], 2) >= 0).tolist() == [True, False]


def test_threshold_is_the_negatives_quantile_where_positives_are_few() -> None:
    case = evidence(n_positive=12, scores=(5.0,))
    present = by_direction(label_agreement(case, false_positive_rate=0.2))[True]
    assert case.val.logits is not None
    negatives = case.val.logits[12:599, 0]  # the last label is unknown and counts for nothing
    assert (negatives > present.threshold).mean() == pytest.approx(0.2, abs=0.005)
    assert "false-positive rate 0.2" in present.source


def test_negatives_must_not_show_the_finding() -> None:
    case = evidence(scores=(4.0, -1.0, 4.0), charged=(NEGATIVE, NEGATIVE, "Edema"))
    criteria = label_agreement(case)
    assert (worst_margin(criteria, 3) >= 0).tolist() == [False, True, True]
    absent = by_direction(criteria)[False]
    assert absent.applies.tolist() == [True, True, False]


@pytest.mark.parametrize(("n_positive", "gap", "why"), [(4, 9.0, "4 positive validation images"), (40, 0.0, "chance")])
def test_a_critic_without_skill_does_not_judge(n_positive: int, gap: float, why: str) -> None:
    """Neither the positives nor the negatives are judged: null margin, reason given."""
    case = evidence(n_positive=n_positive, gap=gap, scores=(-9.0, 9.0), charged=("Edema", NEGATIVE))
    criteria = label_agreement(case)
    assert all(criterion.threshold is None and why in str(criterion.reason) for criterion in criteria)
    assert np.isnan(worst_margin(criteria, 2)).all()


def test_a_critic_worse_than_chance_does_not_judge() -> None:
    assert all(c.threshold is None for c in label_agreement(evidence(gap=-4.0, scores=(1.0,))))


def test_joint_negative_level() -> None:
    """With two judged findings, at least the stated share of real negatives passes both ceilings."""
    case = evidence(scores=(0.0,), charged=(NEGATIVE,))
    val = case.val.labels.copy()
    val.loc[100:139, "Mass"] = 1
    assert case.val.logits is not None
    case.val.logits[100:140, 2] += 3
    both = Evidence(**{**vars(case), "scarce": ["Edema", "Mass"],
                       "val": RealImages(labels=val, patients=case.val.patients, logits=case.val.logits)})
    ceilings = {c.label: c.threshold for c in label_agreement(both, negative_quantile=0.9) if not c.at_least}
    clean = case.val.logits[140:599]
    passes = (clean[:, 0] <= ceilings["Edema"]) & (clean[:, 2] <= ceilings["Mass"])
    assert passes.mean() >= 0.87


def test_margin_does_not_depend_on_the_other_images() -> None:
    scores = tuple(np.random.default_rng(3).normal(size=30) * 3)
    together = worst_margin(label_agreement(evidence(scores=scores)), 30)
    alone = [worst_margin(label_agreement(evidence(scores=(score,))), 1)[0] for score in scores[:5]]
    np.testing.assert_allclose(together[:5], alone)


def test_order_of_the_config_is_kept() -> None:
    case = evidence(np.zeros((2, 8, 8), np.uint8))
    rules = {"saturated": None, "blank": {"quantile": 0.01}}
    assert list(apply_rules(rules, case)) == ["saturated", "blank"]


@pytest.mark.parametrize(("rules", "message"), [
    ({"blnk": None}, "unknown rule 'blnk'; did you mean 'blank'"),
    ({"blank": {"quantle": 0.1}}, "unknown key 'quantle'; did you mean 'quantile'"),
    ({"blank": {"quantile": 1.5}}, "quantile is 1.5; wanted: a share"),
    ({"blank": {"quantile": True}}, "quantile is True"),
    ({"label_agreement": {"judged_from": 0.5}}, "judged_from is 0.5; wanted: a whole number"),
])
def test_mistakes_in_the_config(rules: dict[str, dict[str, float] | None], message: str) -> None:
    with pytest.raises(TailfillError, match=message):
        check_rules(rules)


def naive_delong(logits: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """AUROC and its DeLong variance by the definition, pair by pair."""
    x, y = logits[targets == 1], logits[targets == 0]
    wins = np.array([[float(a > b) + 0.5 * float(a == b) for b in y] for a in x])
    return wins.mean(), wins.mean(1).var(ddof=1) / len(x) + wins.mean(0).var(ddof=1) / len(y)


def test_auroc_interval_is_delong_for_single_images() -> None:
    """Value as scikit-learn's, ties included; variance as DeLong's, up to the cross term of the clustered form."""
    rng = np.random.default_rng(4)
    targets = (np.arange(300) < 60).astype(int)
    logits = np.round(rng.normal(size=300) + targets, 1)
    auroc, low, high = auroc_interval(logits=logits, targets=targets, patients=np.arange(300))
    expected, variance = naive_delong(logits, targets)
    assert auroc == pytest.approx(expected) == pytest.approx(roc_auc_score(targets, logits))
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, 59) * np.sqrt(variance), rel=1e-9)


def test_auroc_interval_of_repeated_images() -> None:
    """Ten copies of each image add no information: clustered by patient the interval stays, unclustered it shrinks."""
    rng = np.random.default_rng(5)
    targets = (np.arange(200) < 40).astype(int)
    logits = rng.normal(size=200) + targets
    once = auroc_interval(logits=logits, targets=targets, patients=np.arange(200))
    copies = {"logits": np.repeat(logits, 10), "targets": np.repeat(targets, 10)}
    clustered = auroc_interval(**copies, patients=np.repeat(np.arange(200), 10))
    naive = auroc_interval(**copies, patients=np.arange(2000))
    np.testing.assert_allclose(clustered, once, rtol=1e-9)
    assert naive[2] - naive[1] < 0.5 * (once[2] - once[1])


def test_auroc_interval_covers() -> None:
    """95 % intervals hold the true AUROC of a shift by 1, Phi(1 / sqrt 2) = .760, in 88 to 100 % of 120 draws."""
    rng, targets = np.random.default_rng(6), np.arange(120) < 12
    held = 0
    for _ in range(120):
        logits = rng.normal(size=120) + targets
        _, low, high = auroc_interval(logits=logits, targets=targets.astype(int), patients=np.arange(120))
        held += low <= 0.7602 <= high
    assert held / 120 >= 0.88


def test_auroc_interval_at_the_edges() -> None:
    logits, targets = np.arange(10.0), (np.arange(10) > 6).astype(int)
    assert auroc_interval(logits=logits, targets=targets, patients=np.arange(10)) == (1, 1, 1)
    one_patient = np.array([0, 1, 2, 3, 4, 5, 6, 9, 9, 9])
    assert auroc_interval(logits=logits, targets=targets, patients=one_patient) == (1, 0, 1)
    with pytest.raises(ValueError, match="at least one of each"):
        auroc_interval(logits=logits, targets=np.zeros(10, int), patients=np.arange(10))


def test_resize_keeps_what_needs_no_resize_and_a_constant() -> None:
    images = np.random.default_rng(7).integers(0, 256, (3, 16, 16), dtype=np.uint8)
    assert resize_square(images, 16) is images
    assert (resize_square(np.full((2, 16, 16), 77, np.uint8), 24) == 77).all()
    assert resize_square(images, 24).shape == (3, 24, 24)


def test_worst_margin_is_the_smallest() -> None:
    def criterion(score: list[float], applies: list[bool]) -> Criterion:
        return Criterion(label=None, score=np.array(score), applies=np.array(applies), threshold=0.0, at_least=True,
                         source="test")

    margins = worst_margin([criterion([1, 2, 3], [True, True, False]), criterion([5, -2, 3], [True, True, False])], 3)
    np.testing.assert_array_equal(margins, [1, -2, np.nan])
