"""The filter's tables: whose patient an image is that was drawn from a real one, and a case told from them in words."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cohort.errors import TailfillError
from cohort.provenance import hash_patients
from cohort.stage import Stage
from cohort.tables import Cohort, synthetic_schema, write_table
from synth.judging.rules import Criterion
from synth.judging.verdicts import decide, explain, list_scores, list_thresholds

LABELS = ["Hernia"]


@pytest.fixture
def cohort() -> Cohort:
    frame = pd.DataFrame({
        "image_id": ["a", "b", "c", "d"], "root": "r", "path": "x.png", "patient_id": ["1", "1", "2", "3"],
        "study_id": None, "view": "PA", "age": 50.0, "sex": "F", "split": ["train", "train", "val", "test"],
        "Hernia": [1, 0, 1, 1],
    })
    return Cohort(frame=frame, labels=LABELS, groups={"Hernia": "tail"}, roots={}, salt="s", folder=Path("."))


def made(sources: list[str | None]) -> pd.DataFrame:
    """Rows as the filter joins them from the plan and the table of images."""
    n = len(sources)
    return pd.DataFrame({
        "sample_id": [f"{i:016x}" for i in range(n)], "path": [f"images/{i}.png" for i in range(n)], "Hernia": 1,
        "view": "PA", "age": 50.0, "sex": "F", "charged_to": "Hernia", "label_source_id": "a", "round": 0,
        "init_image_id": pd.array(sources, dtype="str"), "strength": [0.5 if source else None for source in sources],
        "seed": range(n),
    })


def test_an_image_drawn_from_a_real_one_is_its_patients_and_the_others_are_nobodys(cohort: Cohort) -> None:
    table = synthetic_schema(LABELS, []).validate(decide(made(["a", None, "b"]), cohort, {}))
    assert table["patient_id"].tolist() == ["1", "synthetic:" + f"{1:016x}", "1"]
    assert table["image_id"].str.startswith("synthetic:").all()
    assert set(table["split"]) == {"train"}
    held_out = hash_patients(cohort.split("val", "test")["patient_id"], salt=cohort.salt)
    assert not held_out & hash_patients(table["patient_id"], salt=cohort.salt)


@pytest.mark.parametrize("source", ["c", "d", "nobody"])
def test_one_drawn_from_a_held_out_or_unknown_image_is_refused(cohort: Cohort, source: str) -> None:
    with pytest.raises(TailfillError, match=f"drawn from '{source}', which is no train image"):
        decide(made(["a", source]), cohort, {})


def test_each_bound_of_a_label_is_told_once(cohort: Cohort, tmp_path: Path) -> None:
    """Two upper bounds on one finding, for those asked and those not, and one that is not judged: a line each."""
    frame, every = made([None, None]), np.ones(2, dtype=bool)
    verdicts = {"agreement": [
        Criterion(label="Hernia", score=np.array([2.0, 3.0]), applies=every, threshold=threshold, at_least=at_least,
                  source=source, reason=reason)
        for threshold, at_least, source, reason in ((1.0, True, "floor", None), (2.5, False, "band", None),
                                                    (4.0, False, "ceiling", None), (None, False, "", "too few"))]}
    stage = Stage("filter", tmp_path / "synthetic", config={}, inputs={})
    stage.begin()
    write_table(decide(frame, cohort, verdicts), stage.folder / "synthetic.parquet")
    write_table(list_scores(frame["sample_id"], verdicts), stage.folder / "scores.parquet")
    write_table(list_thresholds(verdicts), stage.folder / "thresholds.parquet")
    stage.finish(outputs=["synthetic.parquet", "scores.parquet", "thresholds.parquet"], counts={})
    told = explain(stage.folder, frame["sample_id"][1]).splitlines()
    assert "dropped by agreement" in told[0]
    assert [line.split("score 3")[1] for line in told[1:]] == [
        ", passes at least 1 (floor)", ", FAILS at most 2.5 (band)", ", passes at most 4 (ceiling)", "; too few"]
