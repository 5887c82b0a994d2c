"""CXR-LT on invented tables: tasks, years, views, laterals, people, and the defects that such tables have."""

from pathlib import Path

import pandas as pd
import pytest
from cohort_toys import run_as_command
from make_cxr_lt_tables import write_tables

from cohort.prepare import main
from cohort.stage import read_stamp
from cohort.tables import Cohort, load_cohort
from cohort.vocabulary.labels import CXR_LT_2023, CXR_LT_2024, CXR_LT_2024_GOLD, UNSEEN

CLASSES = Path(__file__).parents[3] / "shared" / "reference" / "cxr_lt_2024_classes.csv"
N = 600


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    write_tables(folder, N, year=2024)
    write_tables(folder, N, year=2023)
    return folder


def command(tables: Path, out: Path, *flags: object) -> list[object]:
    return ["cxr-lt", "--labels", tables, "--images", tables, "--check", "none", "--out", out, *flags]


def prepared(tables: Path, out: Path, *flags: object) -> Cohort:
    assert run_as_command(main, *command(tables, out, *flags)) == 0
    return load_cohort(out)


def written(tables: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(tables / "cxr-lt-2024" / name, dtype=str, keep_default_na=False).set_index("dicom_id")


@pytest.fixture(scope="module")
def cohort(tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return prepared(tables, tmp_path_factory.mktemp("out") / "cohort", "--patients", tables / "patients.csv",
                    "--metadata", tables / "mimic-cxr-2.0.0-metadata.csv")


def test_every_cell_of_task_1_arrives_under_its_own_name(tables: Path, cohort: Cohort) -> None:
    assert cohort.labels == list(CXR_LT_2024.labels)
    frame = cohort.frame.set_index("image_id")
    for split, name in (("train", "train_labeled.csv"), ("val", "development_labeled_task1.csv"),
                        ("test", "test_labeled_task1.csv")):
        source = written(tables, name)
        part = frame[frame["split"] == split].loc[source.index]
        assert len(part) == (frame["split"] == split).sum()
        for label in cohort.labels:
            assert part[label].tolist() == source[label].astype(int).tolist()
        assert part["patient_id"].tolist() == source["subject_id"].tolist()
        assert part["path"].tolist() == source["fpath"].tolist()
    assert "Round(ed) Atelectasis" in cohort.labels
    assert (frame["view"] == "LATERAL").sum() == written(tables, "train_labeled.csv")["ViewPosition"].isin(
        ["LATERAL", "LL"]).sum() + sum(written(tables, f"{part}_labeled_task1.csv")["ViewPosition"].isin(
            ["LATERAL", "LL"]).sum() for part in ("development", "test"))


def test_sex_and_age_come_from_the_patients_and_the_dates(tables: Path, cohort: Cohort) -> None:
    people = pd.read_csv(tables / "patients.csv", dtype={"subject_id": str}).set_index("subject_id")
    dates = pd.read_csv(tables / "mimic-cxr-2.0.0-metadata.csv").set_index("dicom_id")["StudyDate"]
    for row in cohort.frame.sample(50, random_state=0).itertuples():
        person = people.loc[row.patient_id]
        assert row.sex == person["gender"]
        assert row.age == person["anchor_age"] + dates[row.image_id] // 10000 - person["anchor_year"]


def test_task_2_selects_by_name_from_files_in_another_order(tables: Path, tmp_path: Path) -> None:
    gold = prepared(tables, tmp_path / "gold", "--task", 2)
    assert gold.labels == list(CXR_LT_2024_GOLD.labels)
    source, part = written(tables, "test_labeled_task2.csv"), gold.split("test").set_index("image_id")
    assert list(source.columns).index("Normal") > list(source.columns).index("Nodule")
    assert list(gold.labels).index("Normal") > list(gold.labels).index("Nodule")
    for label in gold.labels:
        assert part.loc[source.index, label].tolist() == source[label].astype(int).tolist()


def test_task_3_knows_nothing_of_the_unseen_in_train(tables: Path, tmp_path: Path) -> None:
    cohort = prepared(tables, tmp_path / "unseen", "--task", 3)
    assert cohort.split("train")[list(UNSEEN)].isna().all(axis=None)
    assert cohort.split("val", "test")[list(UNSEEN)].notna().all(axis=None)
    assert cohort.split("test")[list(CXR_LT_2024.labels)].isna().all(axis=None)
    assert {cohort.groups[label] for label in UNSEEN} == {"tail"}


def test_2023_has_no_finding_where_2024_has_normal(tables: Path, tmp_path: Path) -> None:
    cohort = prepared(tables, tmp_path / "2023", "--year", 2023)
    assert cohort.labels == list(CXR_LT_2023.labels)
    assert "No Finding" in cohort.labels
    assert "Normal" not in cohort.labels
    assert run_as_command(main, *command(tables, tmp_path / "x", "--year", 2023, "--task", 2)) == 2


@pytest.mark.parametrize("policy", ["drop", "one_per_study"])
def test_laterals_by_policy_and_nothing_disappears(tables: Path, tmp_path: Path, cohort: Cohort, policy: str) -> None:
    other = prepared(tables, tmp_path / policy, "--laterals", policy)
    aside = pd.read_parquet(tmp_path / policy / "set_aside.parquet")
    counts = (read_stamp(tmp_path / policy) or {})["counts"]
    assert counts["read"] == counts["kept"] + counts["rejected"] + counts["set_aside"] == N
    assert sorted([*other.frame["image_id"], *aside["image_id"]]) == sorted(cohort.frame["image_id"])
    whole = cohort.frame
    if policy == "drop":
        assert set(other.frame["image_id"]) == set(whole["image_id"][whole["view"] != "LATERAL"])
    else:
        assert not other.frame.duplicated("study_id").any()
        assert set(other.frame["study_id"]) == set(whole["study_id"])
        order = {"PA": 0, "AP": 1, "LATERAL": 3}
        best = whole["view"].map(order).fillna(2).groupby(whole["study_id"]).min()
        found = other.frame.set_index("study_id")["view"].map(order).fillna(2)
        assert (found == best.loc[found.index]).all()


@pytest.mark.skipif(not CLASSES.is_file(), reason="the challenge's table of classes is not here")
def test_the_tasks_have_the_challenges_labels() -> None:
    classes = pd.read_csv(CLASSES)
    for column, labels in (("task1", CXR_LT_2024.labels), ("task2_gold", CXR_LT_2024_GOLD.labels),
                           ("task3_unseen", UNSEEN)):
        assert set(classes["label"][classes[column] == 1]) == set(labels)


def spoil(tables: Path, to: Path, line: int, old: str, new: str) -> Path:
    """A copy of the tables with text replaced in a line of train_labeled.csv, the header being line 1; 0: the whole."""
    write_tables(to, N)
    file = to / "cxr-lt-2024" / "train_labeled.csv"
    lines = file.read_text().splitlines()
    subject = lines[4].split(",")[1].strip('"')
    old, new = old.format(subject=subject), new.format(subject=subject, line=lines[3])
    assert any(old in text for text in lines)
    lines = [text.replace(old, new) if line in (0, at) else text for at, text in enumerate(lines, start=1)]
    file.write_text("\n".join(lines) + "\n")
    return to


BAD: dict[str, tuple[int, str, str, str]] = {
    "float id that lost digits": (5, '"{subject}"', '"1.0000039e+07"', "row 5: patient id is '1.0000039e+07'"),
    "label typo": (1, "Pneumoperitoneum", "Pneumoperitonium", "did you mean 'Pneumoperitonium'"),
    "missing column": (1, "subject_id", "subject", "has no column 'subject_id'; did you mean 'subject"),
    "absolute path": (5, "files/p10/", "/data/files/p10/", "row 5: path '/data/files/p10/"),
    "climbing path": (5, "files/p10/", "files/../../p10/", "leaves the root"),
    "mixed case suffix": (5, ".jpg", ".JPG", "row 5: path names another patient, study or image"),
    "another patient's path": (5, "/p{subject}/", "/p10999999/", "row 5: path names another patient"),
    "torn row": (5, ".jpg", '.jpg",0,0,"', "fields; wanted: 46"),
    "no patient": (5, '"{subject}"', '""', "row 5: no patient id given"),
    "uncertain label": (5, ",0,", ",-1,", "row 5: label 'Adenopathy' is '-1'; wanted: 1 or 0"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_defect_is_named_with_its_place(
    tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    line, old, new, told = BAD[kind]
    folder = spoil(tables, tmp_path / "tables", line, old, new)
    assert run_as_command(main, *command(folder, tmp_path / "cohort")) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert told in error
    assert not (tmp_path / "cohort").exists()
    skipped = run_as_command(main, *command(folder, tmp_path / "cohort", "--on-bad", "skip"))
    assert skipped == (2 if line == 1 else 0)
    if line > 1:
        assert len(pd.read_parquet(tmp_path / "cohort" / "rejected.parquet")) == 1


def test_a_mark_crlf_and_float_ids_change_nothing(tables: Path, tmp_path: Path, cohort: Cohort) -> None:
    write_tables(tmp_path, N)
    for file in (tmp_path / "cxr-lt-2024").iterdir():
        frame = pd.read_csv(file, dtype=str, keep_default_na=False)
        frame["subject_id"] += ".0"
        file.write_bytes(b"\xef\xbb\xbf" + frame.to_csv(index=False, lineterminator="\r\n").encode())
    other = prepared(tmp_path, tmp_path / "cohort")
    columns = ["image_id", "patient_id", "study_id", "path", "view", "split", *cohort.labels]
    pd.testing.assert_frame_equal(other.frame[columns], cohort.frame[columns])
