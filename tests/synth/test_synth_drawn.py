"""Whether what was asked for can be read in the images made: planted generators, unskilled critics, few of either."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from evidence_cases import case_of, images_of
from sklearn.metrics import roc_auc_score

from cohort.tables import read_table
from synth.judging.evidence import Evidence, Images
from synth.measuring.drawn import FILE, read_drawn, write_drawn

LABELS = ["Edema", "Hernia"]
CRITIC = "critic_1000"


def draw(n: int, *, gap: float, seed: int, share: float = 0.3, per_patient: int = 1, name: str = CRITIC) -> Images:
    """``n`` images with findings by chance, of a patient each or of several, and logits that know them by ``gap``."""
    rng = np.random.default_rng(seed)
    there = np.repeat(rng.random((n // per_patient, len(LABELS))) < share, per_patient, axis=0)
    logits = np.repeat(rng.normal(size=(n // per_patient, len(LABELS))), per_patient, axis=0) + gap * there
    return images_of({label: there[:, at].astype(int).tolist() for at, label in enumerate(LABELS)},
                     readings={name: logits}, patients=[f"p{seed}.{i // per_patient}" for i in range(n)])


def case(made: Images, real: Images) -> Evidence:
    return case_of(made=made, charged_to=["Edema"] * len(made), train=real, val=real, scarce=LABELS, critics=[CRITIC])


def row_of(evidence: Evidence, label: str = "Edema") -> dict[str, object]:
    return read_drawn(evidence).set_index("label").to_dict("index")[label]


@pytest.mark.parametrize(("gap", "says"), [(1.0, "drawn"), (0.0, "not shown")])
def test_a_generator_that_knows_the_finding_and_one_that_does_not(gap: float, says: str) -> None:
    made, real = draw(400, gap=gap, seed=1), draw(300, gap=1.5, seed=2)
    row = row_of(case(made, real))
    assert (row["says"], row["reason"]) == (says, None)
    asked = made.carriers("Edema")
    assert row["auroc"] == pytest.approx(roc_auc_score(asked, made.read(CRITIC)[:, 0]))
    assert row["real_auroc"] == pytest.approx(roc_auc_score(real.carriers("Edema"), real.read(CRITIC)[:, 0]))
    assert (row["n_asked"], row["n_not_asked"]) == (asked.sum(), 400 - asked.sum())
    assert (row["ci_low"] > 0.5) == (says == "drawn")


def test_chance_is_taken_for_a_drawn_finding_no_more_often_than_the_interval_allows() -> None:
    real = draw(200, gap=1.5, seed=0)
    says = [row_of(case(draw(120, gap=0.0, seed=seed), real))["says"] for seed in range(200)]
    assert says.count("drawn") <= 12  # 2.5 % of 200 are 5; 12 have a chance of .3 % there


@pytest.mark.parametrize(("made", "real", "why"), [
    (draw(400, gap=1.0, seed=3), draw(300, gap=0.0, seed=8), "may be chance"),
    (draw(400, gap=1.0, seed=3), draw(60, gap=1.5, seed=4, share=0.05), "real patients with the finding"),
    (draw(40, gap=1.0, seed=5, share=0.1), draw(300, gap=1.5, seed=2), "images made with the finding"),
])
def test_what_nobody_can_tell_is_not_judged(made: Images, real: Images, why: str) -> None:
    row = row_of(case(made, real))
    assert row["says"] == "not judged"
    assert why in str(row["reason"])


def test_images_of_one_patient_count_as_one() -> None:
    """Images that start from a real one come in families: twenty of a family are no twenty answers."""
    real = draw(300, gap=1.5, seed=2)
    single, families = draw(600, gap=0.5, seed=6), draw(600, gap=0.5, seed=6, per_patient=20)
    widths = [row["ci_high"] - row["ci_low"] for row in (row_of(case(made, real)) for made in (single, families))]
    assert widths[1] > 3 * widths[0]


def test_where_validation_has_few_the_critics_of_folds_are_asked() -> None:
    made, real = draw(400, gap=0.0, seed=1), draw(60, gap=1.5, seed=12, share=0.15)
    fold = draw(300, gap=2.0, seed=13, name="fold_2000")
    made = replace(made, readings={**made.readings, "fold_2000": draw(400, gap=1.0, seed=1).read(CRITIC)})
    evidence = case(made, real)
    assert len(real.labels) > 20 > real.carriers("Edema").sum()
    assert row_of(evidence)["says"] == "not shown"
    row = row_of(replace(evidence, folds={"fold_2000": fold}))
    assert (row["says"], row["n_real_patients"]) == ("drawn", fold.carriers("Edema").sum())


def test_the_log_warns_of_what_cannot_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    real = draw(300, gap=1.5, seed=2)
    readings = np.column_stack([draw(400, gap=gap, seed=1).read(CRITIC)[:, at] for at, gap in enumerate((1.0, 0.0))])
    made = replace(draw(400, gap=0.0, seed=1), readings={CRITIC: readings})
    with caplog.at_level(logging.WARNING):
        assert write_drawn(case(made, real), tmp_path) == FILE
    assert "cannot be read in the images made: Hernia (AUROC 0." in caplog.text
    assert "Edema" not in caplog.text
    table = read_table(tmp_path / FILE)
    assert isinstance(table, pd.DataFrame)
    assert table["says"].tolist() == ["drawn", "not shown"]
