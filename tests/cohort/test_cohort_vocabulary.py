"""The vocabulary knows every label of every space; cohorts merge, and nothing changes in silence."""

from pathlib import Path

import pandas as pd
import pytest
from cohort_toys import run_as_command
from source_toys import write_chexpert, write_long_tail

from cohort.prepare import main
from cohort.stage import read_stamp
from cohort.tables import load_cohort
from cohort.vocabulary.findings import SOURCES, canonical_names, findings, names_of, wordings
from cohort.vocabulary.labels import CHEXPERT, LABEL_SPACES, NIH_CXR_LT


def test_every_label_of_every_space_has_an_entry_and_words() -> None:
    for space in LABEL_SPACES.values():
        for label in space.labels:
            assert canonical_names()[label] in findings()
            assert wordings()[label]


def test_no_source_has_two_findings_of_one_name_but_padchest() -> None:
    for source in SOURCES:
        names = [name for owns in names_of(source).values() for name in owns]
        if source != "padchest":  # its lobar atelectasis is an atelectasis too
            assert len(set(names)) == len(names)
    assert {own for (own,) in names_of("chexpert").values()} == set(CHEXPERT.labels)
    assert {own for (own,) in names_of("nih").values()} == set(NIH_CXR_LT.labels)


def test_every_definition_is_a_sentence_with_a_source_that_the_head_explains() -> None:
    head = Path("cohort/vocabulary/findings.yaml").read_text(encoding="utf-8").split("\n\n")[0]
    for finding in findings().values():
        assert finding.definition.endswith(".")
        assert f"#   {finding.source} " in head


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("merge")
    for name, write in (("nih", write_long_tail), ("chexpert", write_chexpert)):
        assert run_as_command(main, *write(base / f"{name}_files")[0], "--out", base / name) == 0
    return {"nih": base / "nih", "chexpert": base / "chexpert"}


def merge(folders: dict[str, Path], out: Path, *flags: object) -> int:
    cohorts = "[" + ", ".join(f'"{folder}"' for folder in folders.values()) + "]"
    return run_as_command(main, "merge", "--cohorts", cohorts, "--out", out, *flags)


def test_cohorts_meet_under_canonical_names(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert merge(folders, tmp_path / "out") == 0
    told = capsys.readouterr().err
    assert "renamed: Effusion to Pleural Effusion" in told
    merged, parts = load_cohort(tmp_path / "out"), {name: load_cohort(folder) for name, folder in folders.items()}
    assert len(merged.frame) == sum(len(part.frame) for part in parts.values())
    assert set(merged.labels) == {canonical_names()[label] for part in parts.values() for label in part.labels}
    assert merged.frame["image_id"].is_unique
    for name, part in parts.items():
        rows = merged.frame[merged.frame["root"] == name].set_index("image_id")
        own = part.frame.set_index(name + ":" + part.frame["image_id"]).loc[rows.index]
        assert rows["split"].tolist() == own["split"].tolist()
        for label in merged.labels:
            source = [old for old in part.labels if canonical_names()[old] == label]
            if source:
                pd.testing.assert_series_equal(rows[label], own[source[0]], check_names=False)
            else:
                assert rows[label].isna().all()
        assert all(path.is_relative_to(part.roots[name]) for path in merged.image_paths(rows))
    changes = (read_stamp(tmp_path / "out") or {})["extra"]["changes"]
    assert changes[str(folders["chexpert"])]["unknown"] == [label for label in merged.labels
                                                            if label not in CHEXPERT.labels]


def test_a_label_space_drops_the_others_and_says_so(folders: dict[str, Path], tmp_path: Path) -> None:
    assert merge(folders, tmp_path / "out", "--label_space", "chexpert") == 0
    assert load_cohort(tmp_path / "out").labels == list(CHEXPERT.labels)
    changes = (read_stamp(tmp_path / "out") or {})["extra"]["changes"][str(folders["nih"])]
    assert "Emphysema" in changes["dropped"]
    assert "Support Devices" in changes["unknown"]


def test_what_cannot_be_merged_is_refused(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert merge({"a": folders["nih"], "b": folders["nih"]}, tmp_path / "out") == 2
    assert "two or more different folders" in capsys.readouterr().err
    assert run_as_command(main, *write_long_tail(tmp_path / "again")[0], "--out", tmp_path / "nih2") == 0
    assert merge({"a": folders["nih"], "b": tmp_path / "nih2"}, tmp_path / "out") == 2
    assert "both have root 'nih'" in capsys.readouterr().err
    assert merge({"a": folders["nih"], "b": tmp_path / "nothing"}, tmp_path / "out") == 2
