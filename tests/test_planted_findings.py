"""Planted findings: each kind differs from the right image in the one sign that it says; shares are counted right."""

import numpy as np
import pandas as pd
import pytest
from planted_findings import KINDS, ask_anew, draw, parse, phantom_of, plant, tabulate

from cohort.errors import TailfillError
from cohort.phantom.cases import draw_cases
from cohort.phantom.settings import PhantomConfig
from cohort.stage import Stage
from cohort.tables import Cohort
from synth.judging.rules import Criterion

SCARCE = ("Hydropneumothorax", "Pneumoperitoneum", "Subcutaneous Emphysema")


def test_a_kind_differs_in_the_sign_that_it_says_and_in_nothing_else():
    config = PhantomConfig(images=12, seed=5, findings="core", only_with=SCARCE[:1], val_share=0, test_share=0)
    others = []
    for number, case in enumerate(draw_cases(config)):
        exams = dict(plant(case, SCARCE[0], SCARCE, number))
        assert tuple(exams) == KINDS
        has = {kind: {sign.label for sign in exam.signs} for kind, exam in exams.items()}
        assert has["right"] == {sign.label for sign in case.exam.signs}
        assert has["missing"] == has["right"] - {SCARCE[0]}
        (other,) = has["excess"] - has["right"]
        assert other in SCARCE
        assert has["wrong"] == has["missing"] | {other}
        assert len({exam.image_id for exam in exams.values()}) == len(KINDS)
        assert {(exam.patient, exam.seed, exam.view) for exam in exams.values()} == {
            (case.exam.patient, case.exam.seed, case.exam.view)}
        others.append(other)
    assert set(others) == set(SCARCE[1:])


def test_new_phantoms_are_rows_as_the_evidence_reads_them(tmp_path):
    config = PhantomConfig(size=64, images=12, seed=5, findings="core", val_share=0, test_share=0)
    rows = draw(SCARCE[:2], config, tmp_path, per_class=1)
    assert {"path", "sha256", "height", "view", "charged_to", *config.labels} <= set(rows)
    assert rows["init_image_id"].isna().all()
    assert set(rows["seed"]) == {-1}  # no noise, so no pairs


def test_generated_images_are_asked_for_anew(tmp_path):
    asked = pd.DataFrame({  # a b: findings; c: company; every second row the matched negative of the one before
        "sample_id": list("pqrstuv"), "a": [1, 0, 1, 0, 0, 0, 1], "b": [0, 0, 0, 0, 1, 0, 0],
        "c": [1, 1, 0, 0, 1, 1, 1], "charged_to": ["a", "negative", "a", "negative", "b", "negative", "a"],
        "seed": [1, 1, 2, 2, 3, 3, 4]})
    made = pd.DataFrame({"sample_id": list("pqrstuv"), "status": ["ok"] * 5 + ["failed", "ok"],
                         "path": [f"{name}.png" for name in "pqrstuv"]})
    for stage, folder, table in (("plan", "plan", asked), ("generate", "images", made)):
        place = Stage(stage, tmp_path / folder, config={}, inputs={})
        place.begin()
        table.to_parquet(place.folder / f"{folder}.parquet")
        place.finish(outputs=[f"{folder}.parquet"], counts={})
    found = ask_anew(tmp_path, ["a", "b", "c"], ["a", "b"], per_class=5)
    assert set(found["charged_to"]) == {"a"}  # nobody drew a negative beside the only b, nor beside the last a
    rows = {kind: part.set_index("path")[["a", "b", "c"]].to_numpy().tolist() for kind, part in found.groupby("kind")}
    assert rows == {"right": [[1, 0, 1], [1, 0, 0]], "missing": [[1, 0, 1], [1, 0, 0]], "wrong": [[1, 0, 1]]}
    assert found.loc[found["kind"] != "right", "path"].tolist() == ["t.png", "q.png", "s.png"]


def test_shares_by_class_and_kind():
    made = pd.DataFrame({"charged_to": ["a"] * 8 + ["b"] * 4, "kind": [*KINDS, *KINDS, *KINDS]})
    score = np.array([1, 1, -1, -1, 1, -1, -1, -1, 1, 1, 1, 1], dtype=float)
    about = {"score": score, "at_least": True, "source": "test"}
    criteria = [Criterion(label="a", applies=np.arange(12) < 8, threshold=0.0, **about),
                Criterion(label="b", applies=np.arange(12) >= 8, threshold=None, reason="not judged", **about)]
    table = tabulate(made, criteria)
    assert table.loc["a", list(KINDS)].tolist() == [1, 0.5, 0, 0]
    assert table.loc["b", list(KINDS)].tolist() == [1, 1, 1, 1]
    assert table["judged"].tolist() == ["yes", "not judged", ""]
    assert table["n"].tolist() == [2, 1, 2]
    assert table["seen"].tolist()[:2] == [pytest.approx(1 / np.sqrt(0.5)), 0]  # a: 1, 1 against 1, -1; b: 1 against 1
    assert table.loc["mean of judged", "missing"] == 0.5


def test_only_another_people_of_a_phantom_will_do(tmp_path):
    for name, settings, message in (("csv", {}, "was not made by the phantom"),
                                    ("own", {"phantom": {"seed": 7}}, "--seed is 7, the cohort's own")):
        stage = Stage("prepare", tmp_path / name, config=settings, inputs={})
        stage.begin()
        stage.finish(outputs=[], counts={})
        cohort = Cohort(frame=pd.DataFrame(), labels=[], groups={}, roots={}, salt="", folder=tmp_path / name)
        with pytest.raises(TailfillError, match=message):
            phantom_of(cohort, 7)
    assert parse(["--run", "r", "--out", "o"]).seed == 4242
