"""Tables refuse what they do not promise, in one line that names column and row."""

from pathlib import Path

import pandas as pd
import pytest

from cohort.errors import TailfillError
from cohort.stage import Stage
from cohort.tables import (
    Cohort,
    arm_schema,
    check_table,
    cohort_schema,
    images_schema,
    load_cohort,
    predictions_schema,
    read_table,
    write_table,
)

LABELS = ["Mass", "Pleural Thickening"]


def cohort_frame(n: int = 4) -> pd.DataFrame:
    return pd.DataFrame({
        "image_id": [f"i{k}" for k in range(n)], "root": "nih", "path": [f"{k}.png" for k in range(n)],
        "patient_id": [f"p{k}" for k in range(n)], "study_id": pd.Series([None] * n, dtype="str"),
        "view": ["PA", "AP", "LATERAL", None][:n], "age": [30.0, None, 0.0, 120.0][:n],
        "sex": ["M", "F", None, "M"][:n],
        "split": ["train", "val", "test", "train"][:n],
        **{label: pd.array([1, 0, None, 1][:n], dtype="Int8") for label in LABELS},
    })


def test_a_good_table_survives_the_round_trip(tmp_path: Path) -> None:
    write_table(cohort_frame(), tmp_path / "c.parquet", cohort_schema(LABELS))
    found = read_table(tmp_path / "c.parquet", cohort_schema(LABELS))
    pd.testing.assert_frame_equal(found, check_table(cohort_frame(), cohort_schema(LABELS), where="x"))
    assert found["Mass"].dtype == "Int8"
    assert found["Mass"].isna().tolist() == [False, False, True, False]


@pytest.mark.parametrize(("column", "value"), [
    ("view", "FRONTAL"), ("sex", "X"), ("split", "dev"), ("age", 121.0), ("age", -1.0), ("Mass", 2), ("Mass", -1),
    ("image_id", "i0"), ("image_id", None), ("patient_id", None), ("path", None),
])
def test_a_bad_value_is_named_with_its_column_and_row(tmp_path: Path, column: str, value: object) -> None:
    frame = cohort_frame()
    frame.loc[2, column] = value
    with pytest.raises(TailfillError) as told:
        write_table(frame, tmp_path / "c.parquet", cohort_schema(LABELS))
    message = str(told.value)
    assert "c.parquet" in message
    assert f"column '{column}', row " in message
    assert "\n" not in message
    assert not list(tmp_path.iterdir())


def test_missing_and_foreign_columns_are_named() -> None:
    with pytest.raises(TailfillError, match="'sex'"):
        check_table(cohort_frame().drop(columns="sex"), cohort_schema(LABELS), where="t")
    with pytest.raises(TailfillError, match="'extra'"):
        check_table(cohort_frame().assign(extra=1), cohort_schema(LABELS), where="t")
    with pytest.raises(TailfillError, match="'Mass'"):
        check_table(cohort_frame().drop(columns="Mass"), cohort_schema(LABELS), where="t")


def test_text_in_a_number_column_is_one_line() -> None:
    frame = cohort_frame().astype({"age": object})
    frame.loc[1, "age"] = "old"
    with pytest.raises(TailfillError, match="column 'age'") as told:
        check_table(frame, cohort_schema(LABELS), where="t")
    assert "\n" not in str(told.value)


def test_what_is_no_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(TailfillError, match="no such table"):
        read_table(tmp_path / "none.parquet")
    (tmp_path / "x.parquet").write_bytes(b"not parquet")
    with pytest.raises(TailfillError, match=r"x\.parquet: is no readable Parquet"):
        read_table(tmp_path / "x.parquet")


def test_other_tables_hold_to_their_rules() -> None:
    slot = {"slot_id": 0, "image_id": "i", "sample_id": None, "repeat": 0, "loss_weight": 1.0, "phase": 1,
            "added": False}
    check_table(pd.DataFrame([slot, slot | {"slot_id": 1, "repeat": 1}]), arm_schema(), where="arm")
    for change in ({"loss_weight": 0.0}, {"phase": 3}, {"repeat": -1}):
        with pytest.raises(TailfillError, match=next(iter(change))):
            check_table(pd.DataFrame([slot | change]), arm_schema(), where="arm")
    with pytest.raises(TailfillError):
        check_table(pd.DataFrame([slot, slot]), arm_schema(), where="arm")
    image = {"sample_id": "a", "status": "lost", "error": None, "path": None, "sha256": None, "height": None,
             "width": None, "micro_batch": 1}
    with pytest.raises(TailfillError, match="column 'status'"):
        check_table(pd.DataFrame([image]), images_schema(), where="images")


def test_predictions_have_a_logit_per_label_and_none_twice() -> None:
    row = {"image_id": "i", "split": "test", "patient_id": "p", "study_id": None, "view": "PA", "sex": "F", "fold": 0,
           "arm": "real", "seed": 0, "weights": "ema", **dict.fromkeys(LABELS, 1),
           **{f"logit_{label}": 0.5 for label in LABELS}}
    frame = pd.DataFrame([row, row | {"weights": "raw"}]).astype({f"logit_{label}": "float32" for label in LABELS})
    check_table(frame, predictions_schema(LABELS), where="p")
    with pytest.raises(TailfillError):
        check_table(frame.assign(weights="ema"), predictions_schema(LABELS), where="p")
    with pytest.raises(TailfillError, match="logit_Mass"):
        check_table(frame.drop(columns="logit_Mass"), predictions_schema(LABELS), where="p")


def test_a_cohort_answers_by_split_group_and_file() -> None:
    cohort = Cohort(frame=cohort_frame(), labels=LABELS, groups={"Mass": "tail", "Pleural Thickening": "head"},
                    roots={"nih": Path("/data")}, salt="s", folder=Path("/x"))
    assert cohort.split("train", "val")["image_id"].tolist() == ["i0", "i1", "i3"]
    assert cohort.in_group("tail") == ["Mass"]
    assert cohort.image_paths(cohort.split("test")) == [Path("/data/2.png")]


def test_another_stages_folder_is_no_cohort(tmp_path: Path) -> None:
    stage = Stage("plan", tmp_path / "plan", config={}, inputs={})
    stage.begin()
    stage.finish(outputs=[], counts={})
    with pytest.raises(TailfillError, match="holds a stage 'plan'; wanted: a prepared cohort"):
        load_cohort(tmp_path / "plan")
    with pytest.raises(TailfillError, match=r"no complete 'cohort' stage"):
        load_cohort(tmp_path / "cohort")
