"""Label agreement: whole real images pass at the stated share; a finding is judged, or is not and a reason is told."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from evidence_cases import case_of, images_of

from synth.judging.agreement import entropy, joint_level, label_agreement
from synth.judging.critic import fit_temperature, fold_gauges, validation_gauges
from synth.judging.evidence import Evidence, Images
from synth.judging.rules import Criterion, worst_margin

LABELS = ["Effusion", "Edema", "Hernia", "Mass"]
SCARCE = ["Edema", "Hernia", "Mass"]
GAP = 3.0


def draw(
    n: int, rng: np.random.Generator, *, shares: Sequence[float] = (0.4, 0.15, 0.15, 0.15), gap: float = GAP,
    per_patient: int = 1, critics: int = 1,
) -> Images:
    """``n`` images whose logits are noise, ``gap`` higher for a finding that is there."""
    there = np.repeat(rng.random((n // per_patient, len(LABELS))) < shares, per_patient, axis=0)
    logits = {f"critic_{1000 + k}": rng.normal(size=there.shape) + gap * there for k in range(critics)}
    return images_of({label: there[:, at].astype(int).tolist() for at, label in enumerate(LABELS)}, readings=logits,
                     patients=[f"p{i // per_patient}" for i in range(n)])


def asked(*rows: Sequence[float], labels: Sequence[Sequence[int]]) -> Images:
    """Images made with given logits, asked to show given findings."""
    return images_of({label: [row[at] for row in labels] for at, label in enumerate(LABELS)},
                     readings={"critic_1000": np.array(rows)})


def case(made: Images, val: Images, scarce: Sequence[str] = SCARCE) -> Evidence:
    """Charged to the first scarce finding asked for, or to none."""
    charged = [next((label for label in scarce if row[label] == 1), "negative") for _, row in made.labels.iterrows()]
    return case_of(made=made, charged_to=charged, train=val, val=val, scarce=scarce, critics=sorted(val.readings))


def criterion(criteria: Sequence[Criterion], label: str, *, at_least: bool) -> Criterion:
    found = [c for c in criteria if c.label == label and c.at_least == at_least]
    assert len(found) == 1
    return found[0]


def test_the_stated_share_of_whole_real_images_passes() -> None:
    """Of each kind: of the images that it was set on hardly more than that share, of new ones about."""
    rng = np.random.default_rng(0)
    val, new = draw(3000, rng), draw(3000, rng)
    for share in (0.8, 0.95):
        for images, slack in ((val, 5e-3), (new, 0.025)):
            passed = worst_margin(label_agreement(case(images, val), pass_share=share), len(images)) >= 0
            kinds = images.labels[SCARCE].to_numpy(dtype=bool).any(axis=1)
            worst = min(passed[kinds].mean(), passed[~kinds].mean())
            assert share - slack <= worst <= share + slack
    joint = joint_level(list(validation_gauges(case(val, val)).values()), SCARCE, pass_share=0.8)
    assert joint.level < 0.1  # four labels at a level of .2 would keep .8 ** 4
    for within, crossed, _ in joint.shares.values():
        assert within >= 0.8
        assert abs(crossed - within) < 0.03


def test_the_share_holds_for_new_patients_where_validation_is_small() -> None:
    """Among themselves, few images find themselves typical: a level fitted so lets .87 of new ones pass, not .9."""
    shares = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        val, new = draw(240, rng, per_patient=2), draw(600, rng)
        passed = worst_margin(label_agreement(case(new, val), pass_share=0.9), len(new)) >= 0
        shares.append(passed[new.labels[SCARCE].to_numpy(dtype=bool).any(axis=1)].mean())
    assert 0.88 < np.mean(shares) < 0.94


def test_right_wrong_and_missing_findings_and_those_in_excess() -> None:
    """Asked for Hernia and Effusion: only with both, and without Edema or Mass, an image passes; negatives likewise."""
    rng = np.random.default_rng(1)
    high, low = GAP, 0.0
    made = asked((high, low, high, low), (high, high, low, low), (high, low, low, low), (low, low, high, low),
                 (high, high + 1, high, low), (low, low, low, low), (low, low, low, high + 1), (high, low, low, low),
                 labels=[(1, 0, 1, 0)] * 5 + [(0, 0, 0, 0)] * 3)
    margins = worst_margin(label_agreement(case(made, draw(2000, rng))), 8)
    # the last shows Effusion unasked: it is not scarce, so nothing is in its way
    assert (margins >= 0).tolist() == [True, False, False, False, False, True, False, True]


def test_where_positives_are_few_the_threshold_is_one_of_negatives() -> None:
    rng = np.random.default_rng(2)
    val = draw(400, rng, shares=(0.4, 0.04, 0.3, 0.3))
    assert 5 <= val.carriers("Edema").sum() < 20
    criteria = label_agreement(case(draw(10, rng), val), false_positive_rate=0.02)
    floor, ceiling = (criterion(criteria, "Edema", at_least=side) for side in (True, False))
    logits = val.read("critic_1000")[:, 1] / fit_temperature(val.read("critic_1000"), val.labels.to_numpy(dtype=float))
    assert ceiling.threshold != floor.threshold
    assert "joint level" in ceiling.source
    assert (logits[~val.carriers("Edema")] > floor.threshold).mean() == pytest.approx(0.02, abs=0.003)
    assert "false-positive rate 0.02" in floor.source
    assert f"of {val.carriers('Edema').sum()} real positives" in floor.source
    assert "joint level" in criterion(criteria, "Hernia", at_least=True).source


def test_rare_findings_that_nobody_pays_for_must_not_show_either() -> None:
    """Edema unasked passes where it is neither paid for nor watched."""
    made = asked((0, GAP + 1, GAP, 0), (0, 0, GAP, 0), labels=[(0, 0, 1, 0)] * 2)
    evidence = case(made, draw(2000, np.random.default_rng(12)), scarce=["Hernia"])
    for watched, passes in (((), [True, True]), (("Edema",), [False, True])):
        margins = worst_margin(label_agreement(replace(evidence, watched=watched)), 2)
        assert (margins >= 0).tolist() == passes


def test_findings_with_few_positives_are_inside_the_level() -> None:
    """Twelve of them: at 1 % each, set apart, a tenth of the right images without any would fail beside the rest."""
    labels = [f"finding {at}" for at in range(12)]

    def some(n: int, rng: np.random.Generator) -> Images:
        there = rng.random((n, 12)) < 0.012
        return images_of({label: there[:, at].astype(int).tolist() for at, label in enumerate(labels)},
                         readings={"critic_1000": rng.normal(size=there.shape) + GAP * there})

    shares = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        val, new = some(900, rng), some(1500, rng)
        evidence = case_of(made=new, charged_to=["negative"] * 1500, train=val, val=val, critics=["critic_1000"])
        plain = ~new.labels.to_numpy(dtype=bool).any(axis=1)
        criteria = label_agreement(evidence, pass_share=0.95)
        assert any("with the floors of findings with few positives" in c.source for c in criteria)
        shares.append((worst_margin(criteria, 1500) >= 0)[plain].mean())
    assert np.mean(shares) >= 0.93


def test_out_of_fold_scores_of_validation_images_keep_their_order() -> None:
    """Each validation image's score is that of the one fold that has not learnt from its patient."""
    rng = np.random.default_rng(13)
    val, train = draw(60, rng), draw(40, rng)
    train.patients[:] = [f"t{i}" for i in range(40)]
    folds = {}
    for k in range(2):
        rows = {name: np.arange(k, len(part), 2) for name, part in (("train", train), ("val", val))}
        labels = pd.concat([train.labels.iloc[rows["train"]], val.labels.iloc[rows["val"]]], ignore_index=True)
        logits = np.concatenate([train.read("critic_1000")[rows["train"]], val.read("critic_1000")[rows["val"]]])
        folds[f"fold_{k}"] = replace(val, labels=labels, readings={f"fold_{k}": logits}, patients=np.concatenate(
            [train.patients[rows["train"]], val.patients[rows["val"]]]))
    made = asked((0, 0, 0, 0), labels=[(0, 0, 0, 0)])
    made = replace(made, readings={**made.readings, "fold_0": np.zeros((1, 4)), "fold_1": np.zeros((1, 4))})
    gauges = fold_gauges(replace(case(made, val), folds=folds), false_positive_rate=0.1)
    for at, label in enumerate(LABELS):
        scores, targets = gauges[label].in_validation()
        np.testing.assert_array_equal(targets, val.labels[label].to_numpy(dtype=float))
        for k in range(2):
            ours, theirs = scores[k::2], val.read("critic_1000")[k::2, at]
            np.testing.assert_allclose(np.corrcoef(ours, theirs)[0, 1], 1, atol=1e-6)


def folds_of(rng: np.random.Generator, made: np.ndarray) -> tuple[dict[str, Images], dict[str, np.ndarray]]:
    """Out-of-fold critics that each speak on a scale of their own, and what they say of images made."""
    held_out, said = {}, {}
    for k, (scale, shift) in enumerate(((1, 0), (5, 3), (0.2, -9))):
        part = draw(2000, rng, shares=(0.4, 0.01, 0.3, 0.3))
        held_out[f"fold_{k}"] = replace(part, readings={f"fold_{k}": scale * part.read("critic_1000") + shift})
        said[f"fold_{k}"] = scale * (made + rng.normal(size=made.shape)) + shift
    return held_out, said


def test_out_of_fold_critics_judge_what_validation_cannot() -> None:
    """Two validation patients with Edema, sixty out of fold: judged, and false positives are at most as stated."""
    rng = np.random.default_rng(3)
    n = 4000
    truth = np.zeros((n, len(LABELS)))
    truth[: n // 2, 1] = 2 * GAP
    held_out, said = folds_of(rng, truth)
    val = draw(600, rng, shares=(0.4, 0, 0.3, 0.3))
    val.labels.loc[:1, "Edema"] = 1
    made = images_of({label: [int(label == "Edema")] * n for label in LABELS},
                     readings=said | {"critic_1000": np.zeros((n, len(LABELS)))})
    without = criterion(label_agreement(case(made, val)), "Edema", at_least=True)
    assert without.threshold is None
    assert "2 patients with the finding" in str(without.reason)
    evidence = replace(case(made, val), folds=held_out)
    shown = criterion(label_agreement(evidence), "Edema", at_least=True)
    assert "3 out-of-fold critics" in shown.source
    assert shown.n_positive == sum(int(part.carriers("Edema").sum()) for part in held_out.values())
    passed = worst_margin([shown], n) >= 0
    assert passed[: n // 2].mean() > 0.95
    assert passed[n // 2:].mean() <= 0.013
    for label, gauge in fold_gauges(evidence, false_positive_rate=0.01).items():
        assert (gauge.negatives > 0).mean() == pytest.approx(0.01, abs=0.001), label


@pytest.mark.parametrize(("gap", "shares", "why"), [
    (GAP, (0.4, 0.002, 0.3, 0.3), "patients with the finding (wanted: 5)"),
    (0.0, (0.4, 0.2, 0.3, 0.3), "not above chance"), (-GAP, (0.4, 0.2, 0.3, 0.3), "not above chance"),
    (1.5, (0.4, 0.025, 0.3, 0.3), "real positives reach the floor of"),
])
def test_critics_without_skill_do_not_judge(gap: float, shares: tuple[float, ...], why: str) -> None:
    """Whether they know too few, nothing, the contrary, or too little for a floor on negatives: no threshold on either
    side, and the reason is told."""
    rng = np.random.default_rng(4)
    val = draw(600, rng, shares=shares, gap=gap)
    made = asked((0, -9, 0, 0), (0, 9, 0, 0), labels=[(0, 1, 0, 0), (0, 0, 0, 0)])
    criteria = [c for c in label_agreement(case(made, val)) if c.label == "Edema"]
    assert [c.applies.tolist() for c in criteria] == [[True, False], [False, True]]
    assert all(c.threshold is None and why in str(c.reason) for c in criteria)
    assert np.isnan(worst_margin(criteria, 2)).all()


def test_skill_is_counted_in_patients() -> None:
    """Forty images of four patients are no forty witnesses."""
    val = draw(1000, np.random.default_rng(11), shares=(0.4, 0, 0.3, 0.3))
    val.labels.loc[:39, "Edema"] = 1
    val.read("critic_1000")[:40, 1] += GAP
    made = asked((0, 0, 0, 0), labels=[(0, 1, 0, 0)])
    assert criterion(label_agreement(case(made, val)), "Edema", at_least=True).threshold is not None
    val.patients[:40] = [f"q{i // 10}" for i in range(40)]
    found = criterion(label_agreement(case(made, val)), "Edema", at_least=True)
    assert found.threshold is None
    assert "4 patients with the finding (wanted: 5)" in str(found.reason)


def test_the_scale_of_a_critic_does_not_matter() -> None:
    """Temperatures take it out: one that shouts three times as loud changes no margin."""
    rng = np.random.default_rng(5)
    val, made = draw(1000, rng, critics=2), draw(50, rng, critics=2)
    margins = worst_margin(label_agreement(case(made, val)), 50)
    loud_made, loud_val = (replace(images, readings={**images.readings, "critic_1001": 3 * images.read("critic_1001")})
                       for images in (made, val))
    np.testing.assert_allclose(worst_margin(label_agreement(case(loud_made, loud_val)), 50), margins, atol=2e-3)


def test_the_temperature_of_logits_that_are_too_large_is_found() -> None:
    rng = np.random.default_rng(6)
    logits = rng.normal(size=(20_000, 3)) * 2
    targets = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)
    targets[:50] = np.nan
    assert fit_temperature(logits * 2.5, targets) == pytest.approx(2.5, rel=0.05)
    assert fit_temperature(logits, np.full(logits.shape, np.nan)) == 1


def test_what_is_kept_on_purpose() -> None:
    """Band and entropy keep a part of what confident keeps: what scores low in the class, what is near one half."""
    rng = np.random.default_rng(7)
    val = draw(2000, rng)
    made = replace(draw(500, rng), labels=draw(500, rng, shares=(0.4, 1, 0, 0)).labels)
    evidence = case(made, val)
    score = criterion(label_agreement(evidence), "Edema", at_least=True).score
    kept = {select: worst_margin([c for c in label_agreement(evidence, select=select) if c.label == "Edema"], 500) >= 0
            for select in ("confident", "band", "entropy")}
    assert kept["band"].sum() > 0
    assert not (kept["band"] & ~kept["confident"]).any()
    assert not (kept["entropy"] & ~kept["confident"]).any()
    left_out = kept["confident"] & ~kept["band"]
    assert score[kept["band"]].max() <= score[left_out].min()
    assert entropy(score[kept["entropy"]]).min() >= entropy(score[kept["confident"] & ~kept["entropy"]]).max()


def test_entropy_against_its_definition() -> None:
    p = np.array([0.5, 0.9, 1e-4])
    np.testing.assert_allclose(entropy(np.log(p / (1 - p))), -(p * np.log(p) + (1 - p) * np.log(1 - p)))
    assert (entropy(np.array([-800.0, 800.0])) == 0).all()


def test_a_margin_does_not_depend_on_the_other_images() -> None:
    rng = np.random.default_rng(8)
    val, made = draw(800, rng), draw(40, rng)
    together = worst_margin(label_agreement(case(made, val)), 40)
    alone = [replace(made, labels=made.labels[at: at + 1].reset_index(drop=True),
                     readings={"critic_1000": made.read("critic_1000")[at: at + 1]}) for at in range(5)]
    np.testing.assert_allclose(together[:5], [worst_margin(label_agreement(case(one, val)), 1)[0] for one in alone])


def test_without_a_critic_there_is_nothing_to_say() -> None:
    made = images_of({"Hernia": [1]})
    with pytest.raises(ValueError, match="holds no critic"):
        label_agreement(case_of(made=made, charged_to=["Hernia"], train=made))
