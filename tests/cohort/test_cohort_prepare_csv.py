"""Any folder with a CSV: label columns or a findings column, given or drawn splits, other column names."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cohort_toys import run_as_command, toy_rows, write_image
from PIL import Image

from cohort.prepare import main
from cohort.tables import Cohort, load_cohort
from cohort.vocabulary.labels import NIH_14

OWN = ("--label-space", "own", "--columns.labels", '["Scoliosis","Free air"]')


def write_folder(root: Path, frame: pd.DataFrame, *, path_column: str = "path") -> Path:
    """An image per row, and the CSV beside them."""
    for number, name in enumerate(frame[path_column]):
        write_image(root / name, seed=number)
    frame.to_csv(root / "labels.csv", index=False)
    return root


def own_frame(n: int = 60) -> pd.DataFrame:
    """Two labels of our own; the second is unknown in every fifth row."""
    return pd.DataFrame({
        "path": [f"sub/{i:03d}.png" for i in range(n)], "patient_id": [f"p{i // 2}" for i in range(n)],
        "Scoliosis": [int(i % 7 == 0) for i in range(n)], "Free air": [None if i % 5 == 0 else i % 2 for i in range(n)],
    })


def prepared(root: Path, *flags: object) -> Cohort:
    out = root.parent / "cohort"
    assert run_as_command(main, "csv", "--csv", root / "labels.csv", "--root", root, "--out", out, *flags) == 0
    return load_cohort(out)


def extra_of(cohort: Cohort) -> dict:
    return json.loads((cohort.folder / "_stage.json").read_text())["extra"]


def test_label_columns_keep_unknown_apart_from_absent(tmp_path: Path) -> None:
    frame = own_frame()
    cohort = prepared(write_folder(tmp_path / "data", frame), *OWN)
    assert cohort.labels == ["Scoliosis", "Free air"]
    assert extra_of(cohort)["label_space"] == "own"
    found = cohort.frame.set_index("image_id").loc[frame["path"]]  # the path stands for the missing id
    assert found["Free air"].isna().tolist() == frame["Free air"].isna().tolist()
    assert found["Free air"].sum() == frame["Free air"].sum()
    assert found["view"].isna().all()
    assert cohort.frame.groupby("patient_id")["split"].nunique().max() == 1
    assert set(cohort.frame["split"]) == {"train", "val", "test"}


def test_a_findings_column_under_other_names(tmp_path: Path) -> None:
    rows = toy_rows()
    frame = pd.DataFrame({"dicom": [row["name"][:-4] for row in rows], "file": [row["name"] for row in rows],
                          "text": [row["findings"] for row in rows], "subject": [row["patient"] for row in rows],
                          "position": ["postero-anterior" if row["view"] == "PA" else "ap" for row in rows],
                          "years": [row["age"] for row in rows],
                          "gender": ["male" if row["sex"] == "M" else "Female" for row in rows]})
    root = write_folder(tmp_path / "data", frame, path_column="file")
    names = {"image_id": "dicom", "path": "file", "findings": "text", "patient_id": "subject", "view": "position",
             "age": "years", "sex": "gender"}
    found = prepared(root, *(f"--columns.{role}={name}" for role, name in names.items())).frame
    found = found.set_index("image_id").loc[frame["dicom"]]
    assert found["view"].tolist() == [row["view"] for row in rows]
    assert found["sex"].tolist() == [row["sex"] for row in rows]
    assert found["age"].tolist() == [float(row["age"]) for row in rows]
    assert found["Pleural Thickening"].tolist() == ["Pleural_Thickening" in row["findings"] for row in rows]


def test_the_releases_spelling_of_a_label_column_is_known(tmp_path: Path) -> None:
    columns = {label.replace(" ", "_"): [int((i + n) % 9 == 0) for i in range(40)]
               for n, label in enumerate(NIH_14.labels)}
    frame = pd.DataFrame({"path": [f"{i}.png" for i in range(40)], **columns})
    cohort = prepared(write_folder(tmp_path / "data", frame))
    assert cohort.labels == list(NIH_14.labels)
    assert cohort.frame["Pleural Thickening"].sum() == frame["Pleural_Thickening"].sum()


def test_without_patients_each_image_is_its_own_and_the_stamp_says_so(tmp_path: Path) -> None:
    cohort = prepared(write_folder(tmp_path / "data", own_frame().drop(columns="patient_id")), *OWN)
    assert (cohort.frame["patient_id"] == cohort.frame["image_id"]).all()
    assert extra_of(cohort)["patient_ids"] == "image"


@pytest.mark.parametrize(("names", "drawn"), [
    (("train", "valid", "test"), set()), (("train_val", "train", "Test"), {"val"}),
    (("train", "train", "dev"), {"test"}),
])
def test_a_given_split_is_kept_and_only_the_missing_one_drawn(
    tmp_path: Path, names: tuple[str, ...], drawn: set[str]
) -> None:
    frame = own_frame()
    frame["split"] = [names[(i // 2) % 3] for i in range(len(frame))]
    found = prepared(write_folder(tmp_path / "data", frame), *OWN).frame.set_index("image_id").loc[frame["path"]]
    told = frame["split"].str.lower().replace({"valid": "val", "dev": "val", "train_val": "train"}).tolist()
    for now, then in zip(found["split"], told, strict=True):
        assert now == then or (then == "train" and now in drawn)
    assert set(found["split"]) == {"train", "val", "test"}
    assert found.groupby("patient_id")["split"].nunique().max() == 1


def test_a_16_bit_jpeg_and_palette_folder_is_accepted(tmp_path: Path) -> None:
    frame = own_frame()
    root = write_folder(tmp_path / "data", frame)
    Image.fromarray(np.full((9, 9), 40000, dtype=np.uint16)).save(root / "sub/000.png")
    Image.fromarray(np.full((9, 9), 40, dtype=np.uint8)).convert("P").save(root / "sub/001.png")
    frame.loc[2, "path"] = "sub/002.jpg"
    Image.fromarray(np.full((9, 9), 40, dtype=np.uint8)).save(root / "sub/002.jpg")
    frame.to_csv(root / "labels.csv", index=False)
    assert len(prepared(root, *OWN).frame) == len(frame)
