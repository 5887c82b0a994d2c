"""The challenge's score against scikit-learn, through both kinds of files, and what is refused."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from make_cxr_lt_tables import write_tables
from scipy.special import expit
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from classify.score import main, read_stage, read_submission
from cohort.errors import TailfillError, run_command
from cohort.prepare import main as prepare
from cohort.tables import Cohort, load_cohort
from cohort.vocabulary.labels import CXR_LT_2024, UNSEEN


def run(entry: object, *argv: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command", *map(str, argv)])
        try:
            run_command(entry)  # type: ignore[arg-type]
        except SystemExit as left:
            return int(left.code or 0)
    return 0


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    base = tmp_path_factory.mktemp("score")
    write_tables(base / "tables", 900)
    for task in (1, 3):
        assert run(prepare, "cxr-lt", "--labels", base / "tables", "--images", base / "tables", "--check", "none",
                   "--task", task, "--out", base / str(task)) == 0
    return {task: base / str(task) for task in (1, 3)}


def write_predictions(cohort: Cohort, labels: list[str], folder: Path) -> tuple[pd.DataFrame, np.ndarray, Path, Path]:
    """The test images, their logits, and the same as a stage's table (shuffled) and as a submission."""
    images = cohort.split("test").sort_values("image_id", ignore_index=True)
    truth = images[labels].to_numpy(np.float64, na_value=0)
    logits = np.random.default_rng(0).normal(truth * 1.5 - 1, 1.0).astype(np.float32)
    table = images.assign(**{f"logit_{label}": logits[:, at] for at, label in enumerate(labels)})
    both = pd.concat([table.assign(weights="ema"), table.assign(weights="raw")]).sample(frac=1, random_state=0)
    both.to_parquet(folder / "p.parquet")
    named = pd.DataFrame(expit(logits.astype(np.float64)), columns=labels).assign(dicom_id=images["image_id"])
    named[["dicom_id", *labels[::-1]]].sample(frac=1, random_state=1).to_csv(folder / "s.csv", index=False)
    return images, logits.astype(np.float64), folder / "p.parquet", folder / "s.csv"


def test_the_scores_are_scikit_learns_from_either_file(folders: dict[int, Path], tmp_path: Path) -> None:
    cohort = load_cohort(folders[1])
    images, logits, stage, named = write_predictions(cohort, cohort.labels, tmp_path)
    for file in (stage, named):
        out = tmp_path / file.stem
        assert run(main, "--task", 1, "--cohort", folders[1], "--predictions", file, "--out", out) == 0
        found = pd.read_parquet(out / "scores.parquet").set_index(["label", "metric"])["value"]
        aps = []
        for at, label in enumerate(cohort.labels):
            truth = images[label].to_numpy(int)
            if not truth.any():
                assert np.isnan(found[label, "AP"])
                continue
            aps.append(average_precision_score(truth, logits[:, at]))
            assert found[label, "AP"] == pytest.approx(aps[-1], abs=1e-6)
            assert found[label, "AUROC"] == pytest.approx(roc_auc_score(truth, logits[:, at]), abs=1e-6)
            assert found[label, "F1"] == pytest.approx(f1_score(truth, logits[:, at] >= 0), abs=1e-6)
        assert found["all", "AP"] == pytest.approx(np.mean(aps), abs=1e-6)
        tail = [found[label, "AP"] for label in cohort.in_group("tail")]
        assert found["tail", "AP"] == pytest.approx(np.nanmean(tail), abs=1e-9)


def test_a_submission_written_is_a_submission_read(folders: dict[int, Path], tmp_path: Path) -> None:
    cohort = load_cohort(folders[1])
    _, _, stage, _ = write_predictions(cohort, cohort.labels, tmp_path)
    common = ("--task", 1, "--cohort", folders[1])
    assert run(main, *common, "--predictions", stage, "--out", tmp_path / "a") == 0
    assert run(main, *common, "--predictions", tmp_path / "a" / "submission.csv", "--out", tmp_path / "b") == 0
    first, second = (pd.read_parquet(tmp_path / name / "scores.parquet")["value"] for name in "ab")
    np.testing.assert_allclose(first, second, atol=1e-6)
    header = pd.read_csv(tmp_path / "a" / "submission.csv", nrows=1).columns
    assert list(header) == ["dicom_id", *CXR_LT_2024.labels]


def test_by_study_all_images_of_a_study_have_one_opinion(folders: dict[int, Path], tmp_path: Path) -> None:
    cohort = load_cohort(folders[1])
    images, _, stage, _ = write_predictions(cohort, cohort.labels, tmp_path)
    assert run(main, "--task", 1, "--cohort", folders[1], "--predictions", stage, "--by", "study", "--out",
               tmp_path / "a") == 0
    written = pd.read_csv(tmp_path / "a" / "submission.csv", dtype={"dicom_id": str}).set_index("dicom_id")
    spread = written.loc[images["image_id"]].groupby(images["study_id"].to_numpy()).std().max(axis=None)
    assert spread < 1e-9


def test_task_3_is_scored_on_the_unseen_alone(folders: dict[int, Path], tmp_path: Path) -> None:
    _, _, stage, _ = write_predictions(load_cohort(folders[3]), list(UNSEEN), tmp_path)
    assert run(main, "--task", 3, "--cohort", folders[3], "--predictions", stage, "--out", tmp_path / "a") == 0
    table = pd.read_parquet(tmp_path / "a" / "scores.parquet")
    assert set(table["label"]) == {*UNSEEN, "tail", "all"}


def test_a_submission_is_read_whatever_its_marks_and_spaces_and_a_torn_row_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "s.csv"
    file.write_text("\ufeffdicom_id, A,B\na,0.25,0.5\nb,0.75,1\n", encoding="utf-8")
    found = expit(read_submission(file, ["B", "A"]))
    np.testing.assert_allclose(found.loc[["a", "b"]].to_numpy(), [[0.5, 0.25], [1, 0.75]], atol=1e-6)
    file.write_text("dicom_id,A,B\na,0.25,0.5\nb,0.75,1,0.5\n")
    with pytest.raises(TailfillError, match="line 3: has 4 fields; wanted: 3"):
        read_submission(file, ["A", "B"])


def test_weights_that_were_not_predicted_are_named(tmp_path: Path) -> None:
    file = tmp_path / "p.parquet"
    pd.DataFrame({"image_id": ["a"], "weights": ["raw"], "logit_A": [0.5]}).to_parquet(file)
    assert read_stage(file, ["A"], weights="raw").loc["a", "logit_A"] == 0.5
    with pytest.raises(TailfillError, match="holds no predictions by 'ema' weights"):
        read_stage(file, ["A"], weights="ema")


@pytest.mark.parametrize(("kind", "told"), [
    ("missing image", "1 of"), ("twice", "is predicted more than once"), ("percent", "wanted: a probability"),
    ("no label", "has no column 'Mass'"), ("other task", "wanted: python -m cohort.prepare cxr-lt --task 2"),
])
def test_what_cannot_be_scored_is_refused(
    folders: dict[int, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, told: str
) -> None:
    cohort = load_cohort(folders[1])
    *_, named = write_predictions(cohort, cohort.labels, tmp_path)
    frame = pd.read_csv(named, dtype={"dicom_id": str})
    frame = {"missing image": lambda: frame.iloc[1:], "twice": lambda: pd.concat([frame, frame.iloc[:1]]),
             "percent": lambda: frame.assign(Mass=frame["Mass"] * 100), "no label": lambda: frame.drop(columns="Mass"),
             "other task": lambda: frame}[kind]()
    frame.to_csv(named, index=False)
    task = 2 if kind == "other task" else 1
    assert run(main, "--task", task, "--cohort", folders[1], "--predictions", named) == 2
    assert told in capsys.readouterr().err
