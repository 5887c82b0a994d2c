"""Scores against scikit-learn, intervals that hold what they promise, hand labels of OpenI's kind."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cohort_toys import run_as_command
from label_toys import write_reports
from sklearn.metrics import cohen_kappa_score, f1_score, precision_score, recall_score

from cohort.errors import TailfillError
from cohort.label import main
from cohort.labelling.openi import TERMS, UNKNOWN, code, read_report
from cohort.labelling.scoring import METRICS, MIN_POSITIVE, f1_of, kappa_of, score_labels, score_one
from cohort.vocabulary.findings import findings

REFERENCE = {"precision": precision_score, "recall": recall_score, "F1": f1_score, "kappa": cohen_kappa_score}


def toy_labels(n: int = 400, *, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What a labeller found, and the truth, with gaps on both sides."""
    rng = np.random.default_rng(seed)
    truth = pd.DataFrame({name: pd.array(rng.random(n) < share, dtype="Int8")
                          for name, share in (("Edema", 0.4), ("Mass", 0.1), ("Hernia", 0.005))})
    found = truth.copy()
    for name in found:
        wrong = rng.random(n) < 0.1
        found.loc[wrong, name] = 1 - found.loc[wrong, name]
        found.loc[rng.random(n) < 0.05, name] = pd.NA
        truth.loc[rng.random(n) < 0.03, name] = pd.NA
    return found, truth


def test_values_are_scikit_learns_and_intervals_hold_them() -> None:
    found, truth = toy_labels()
    scores = score_labels(found, truth, list(truth), seed=0)
    for row in scores[scores["label"] != "all"].itertuples():
        both = (found[row.label].notna() & truth[row.label].notna()).to_numpy()
        hand, machine = truth[row.label][both].astype(int), found[row.label][both].astype(int)
        assert row.value == pytest.approx(REFERENCE[row.metric](hand, machine))
        assert (row.n_reports, row.n_positive, row.n_found) == (both.sum(), hand.sum(), machine.sum())
        assert row.n_reports + row.n_unknown + row.n_unlabelled == len(truth)
        if not np.isnan(row.ci_low):
            assert 0 <= row.ci_low < row.value < row.ci_high <= 1
        elif row.metric in ("F1", "kappa"):
            assert row.n_positive < MIN_POSITIVE
            assert str(MIN_POSITIVE) in row.reason
    for metric in METRICS:
        part = scores[scores["metric"] == metric]
        assert part["value"].iloc[-1] == pytest.approx(part["value"].iloc[:-1].mean())


def test_the_formulas_of_the_bootstrap_are_scikit_learns() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        hand, machine = rng.integers(0, 2, (2, 30))
        both = hand & machine
        counts = np.array([[part.sum() for part in (both, machine & ~both, hand & ~both, (1 - hand) & (1 - machine))]])
        assert f1_of(counts)[0] == pytest.approx(f1_score(hand, machine))
        assert kappa_of(counts)[0] == pytest.approx(cohen_kappa_score(hand, machine))


@pytest.mark.parametrize("metric", METRICS)
def test_intervals_cover_the_truth_about_as_often_as_they_say(metric: str) -> None:
    """A labeller with sensitivity .8 and specificity .9 at prevalence .3, tried 60 times on 200 reports."""
    share, sensitivity, specificity = 0.3, 0.8, 0.9
    cells = np.array([share * sensitivity, (1 - share) * (1 - specificity), share * (1 - sensitivity),
                      (1 - share) * specificity])
    true = {"precision": cells[0] / (cells[0] + cells[1]), "recall": sensitivity, "F1": f1_of(cells[None])[0],
            "kappa": kappa_of(cells[None])[0]}[metric]
    rng, covered = np.random.default_rng(2), 0
    for counts in rng.multinomial(200, cells, size=60):
        hand, machine = np.repeat([1, 0, 1, 0], counts), np.repeat([1, 1, 0, 0], counts)
        one = score_one(metric, hand=hand, machine=machine, rng=rng)
        covered += float(str(one["ci_low"])) <= true <= float(str(one["ci_high"]))
    assert covered / 60 >= 0.88


@pytest.mark.parametrize(("hand", "machine", "undefined"), [
    ([0, 0], [0, 0], set(METRICS)), ([], [], set(METRICS)), ([1, 0], [0, 0], {"precision"}),
    ([0, 0], [1, 0], {"recall"}), ([1, 1], [1, 1], {"kappa"}), ([1, 0], [1, 0], set()),
])
def test_undefined_is_null_with_a_reason(hand: list[int], machine: list[int], undefined: set[str]) -> None:
    arrays = {"hand": np.array(hand, dtype=np.int64), "machine": np.array(machine, dtype=np.int64)}
    for metric in METRICS:
        one = score_one(metric, **arrays, rng=np.random.default_rng(0))
        assert np.isnan(float(str(one["value"]))) == (metric in undefined)
        assert metric not in undefined or one["reason"]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of labels that several tests score, and none changes."""
    tmp_path = tmp_path_factory.mktemp("labelled")
    said = ("FINDINGS: Small effusion.", "FINDINGS: No effusion.", "INDICATION: Cough.")
    texts = {f"r{i}": said[i % 3] for i in range(30)}
    file = write_reports(tmp_path / "reports.csv", texts)
    assert run_as_command(main, "rules", "--reports", file, "--out", tmp_path / "labels") == 0
    return tmp_path / "labels"


def test_the_command_scores_one_split_under_a_sources_names(labelled: Path, tmp_path: Path) -> None:
    truth = pd.DataFrame({"id": [f"r{i}" for i in range(30)], "split": ["dev", "test"] * 15,
                          "Effusion": [int(i % 3 == 0) for i in range(30)], "Age": 5})
    truth.to_csv(tmp_path / "truth.csv", index=False)
    assert run_as_command(main, "score", "--labels", labelled, "--truth", tmp_path / "truth.csv", "--id-column", "id",
                          "--split", "test", "--out", tmp_path / "score") == 0
    scores = pd.read_parquet(tmp_path / "score" / "scores.parquet").set_index(["label", "metric"])
    assert set(scores.index.get_level_values(0)) == {"Pleural Effusion", "all"}
    own = scores.loc["Pleural Effusion"]
    assert own["value"].eq(1).all()
    assert own[["n_reports", "n_positive", "n_unknown"]].iloc[0].tolist() == [10, 5, 5]


BAD = {"no table": None, "an unknown report": "report_id,Edema\nr0,1\nr99,0\n", "no label": "report_id,Ache\nr0,1\n",
       "a cell of -1": "report_id,Edema\nr0,-1\n", "a report twice": "report_id,Edema\nr0,1\nr0,0\n",
       "one label twice": "report_id,Effusion,Pleural Effusion\nr0,1,1\n", "no id": "name,Edema\nr0,1\n",
       "a seed below 0": "report_id,Edema\nr0,1\n"}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_truth_is_one_line(
    kind: str, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = tmp_path / "truth.csv"
    if BAD[kind] is not None:
        truth.write_text(str(BAD[kind]))
    capsys.readouterr()
    seed = "-1" if kind == "a seed below 0" else "0"
    assert run_as_command(main, "score", "--labels", labelled, "--truth", truth, "--seed", seed,
                          "--out", tmp_path / "score") == 2
    assert capsys.readouterr().err.count("error: ") == 1
    assert not (tmp_path / "score").exists()


XML = """<eCitation><uId id="{}"/><Abstract><AbstractText Label="INDICATION">Cough</AbstractText>
<AbstractText Label="FINDINGS">{}</AbstractText></Abstract><MeSH>{}</MeSH></eCitation>"""


def openi_report(name: str, text: str, *terms: str) -> bytes:
    return XML.format(name, text, "".join(f"<major>{term}</major>" for term in terms)).encode()


def test_openis_archive_and_folder_make_the_same_tables_that_the_rules_can_be_scored_on(tmp_path: Path) -> None:
    reports = {f"CXR{i}": openi_report(f"CXR{i}", "Small effusion.", "Pleural Effusion/left/small") if i % 2 else
               openi_report(f"CXR{i}", "Clear lungs.", "normal") for i in range(20)}
    (tmp_path / "xml").mkdir()
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        for name, content in reports.items():
            (tmp_path / "xml" / f"{name}.xml").write_bytes(content)
            member = tarfile.TarInfo(f"x/{name}.xml")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    for place, out in (("a.tgz", "a"), ("xml", "b")):
        assert run_as_command(main, "openi", "--archive", tmp_path / place, "--out", tmp_path / out) == 0
    for name in ("reports.csv", "truth.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    truth = pd.read_csv(tmp_path / "a" / "truth.csv")
    assert truth["Pleural Effusion"].sum() == truth["Normal"].sum() == 10
    assert set(truth["split"]) == {"dev", "test"}
    assert run_as_command(main, "rules", "--reports", tmp_path / "a" / "reports.csv", "--out", tmp_path / "labels") == 0
    assert run_as_command(main, "score", "--labels", tmp_path / "labels", "--truth", tmp_path / "a" / "truth.csv",
                          "--out", tmp_path / "score") == 0
    scores = pd.read_parquet(tmp_path / "score" / "scores.parquet").set_index(["label", "metric"])["value"]
    assert scores["Pleural Effusion", "F1"] == 1


def test_terms_become_labels_and_what_lies_between_stays_open() -> None:
    assert {*TERMS, *UNKNOWN} <= set(findings())
    assert code([])["Edema"] is None
    assert code(["no indexing"])["Normal"] is None
    found = code(["cardiomegaly/borderline", "fractures, bone/ribs/left/healed", "calcinosis/aorta"])
    assert found["Cardiomegaly"] is None
    present = {name for name, value in found.items() if value}
    assert present == {"Fracture", "Rib Fracture", "Calcification of the Aorta"}
    assert code(["cardiomegaly/borderline", "cardiomegaly/mild"])["Cardiomegaly"] == 1
    assert code(["hernia, hiatal/large"])["Hernia"] == 1


@pytest.mark.parametrize("content", [b"<a>", b"<a/>", b"", b"\xff\xfe"])
def test_xml_that_is_no_report_is_named(content: bytes) -> None:
    with pytest.raises(TailfillError, match=r"x\.xml: (is no XML|has no uId)"):
        read_report(content, where="x.xml")


def test_archives_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "bad.tgz").write_bytes(b"\x1f\x8bnothing")
    (tmp_path / "empty").mkdir()
    for place in ("nowhere", "bad.tgz", "empty"):
        assert run_as_command(main, "openi", "--archive", tmp_path / place, "--out", tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()
