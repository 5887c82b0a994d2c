"""Rules: who is denied, doubted or only asked for; what is read of a report; the tables, and a cohort made of them."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cohort_toys import run_as_command, write_image
from label_toys import write_reports

from cohort.errors import TailfillError
from cohort.label import main
from cohort.labelling.cues import find_cues
from cohort.labelling.deriving import asked_findings, overall_status, to_labels
from cohort.labelling.rules import Mention, find_mentions
from cohort.labelling.sections import LONGEST, read_sentences, split_sections
from cohort.prepare import main as prepare
from cohort.tables import load_cohort
from cohort.vocabulary.findings import findings
from cohort.vocabulary.labels import CXR_LT_2024, LABEL_SPACES
from cohort.vocabulary.phrases import compile_phrase, wordings_of_reports

ALL = tuple(wordings_of_reports())
OWN_SENTENCES = (
    ("There is a small left pleural effusion.", "Pleural Effusion", "present"),
    ("No pleural effusion or pneumothorax.", "Pneumothorax", "negated"),
    ("No effusion, but mild cardiomegaly.", "Cardiomegaly", "present"),
    ("The heart is not enlarged.", "Cardiomegaly", "negated"),
    ("Heart size is within normal limits.", "Cardiomegaly", "negated"),
    ("No change in the right pneumothorax.", "Pneumothorax", "present"),
    ("The pneumothorax has resolved.", "Pneumothorax", "negated"),
    ("Pneumothorax is not seen.", "Pneumothorax", "negated"),
    ("Pneumonia cannot be excluded.", "Pneumonia", "uncertain"),
    ("Cannot exclude pneumonia.", "Pneumonia", "uncertain"),
    ("Opacity that may represent atelectasis or infiltrate.", "Infiltration", "uncertain"),
    ("Atelectasis versus consolidation.", "Atelectasis", "uncertain"),
    ("Findings suspicious for a mass.", "Mass", "uncertain"),
    ("History of tuberculosis.", "Tuberculosis", "absent"),
    ("Subcutaneous emphysema along the right chest wall.", "Subcutaneous Emphysema", "present"),
    ("Collapse of the T8 vertebra.", "Atelectasis", None),
    ("Subcutaneous emphysema along the right chest wall.", "Emphysema", None),
    ("Small pericardial effusion.", "Pleural Effusion", None),
    ("Lungs are not clear.", "Lung Opacity", None),
    ("Lungs are clear.", "Lung Opacity", "negated"),
    ("Healed fracture of the left sixth rib.", "Rib Fracture", "present"),
    ("The thoracic aorta is tortuous and calcified.", "Calcification of the Aorta", "present"),
    ("Large hiatal hernia.", "Hernia", "present"),
    ("Right PICC with its tip in the SVC.", "Support Devices", "present"),
    ("PICC line removed.", "Support Devices", "negated"),
    ("Effusion has not resolved.", "Pleural Effusion", "present"),
    ("The pneumothorax has almost completely resolved.", "Pneumothorax", "present"),
    ("The effusion is now gone.", "Pleural Effusion", "negated"),
    ("Non-displaced fracture of the left seventh rib.", "Rib Fracture", "present"),
    ("Non-calcified nodule.", "Calcification", None),
    ("No findings consistent with pneumonia.", "Pneumonia", "negated"),
    ("No pneumothorax and small effusion.", "Pleural Effusion", "present"),
    ("No fracture of rib 7. Small effusion.", "Pleural Effusion", "present"),
    ("Pneumonia is unlikely.", "Pneumonia", "uncertain"),
    ("Opacity favoring atelectasis over pneumonia.", "Pneumonia", "uncertain"),
    ("Right base: ? pneumonia.", "Pneumonia", "uncertain"),
    ("Pneumothorax without tension or mediastinal shift.", "Pneumothorax", "present"),
    ("Borderline heart size.", "Cardiomegaly", "uncertain"),
    ("One or two nodules.", "Nodule", "present"),
    ("In the absence of prior films, pneumonia is possible.", "Pneumonia", "uncertain"),
    ("Right airspace disease.", "Lung Opacity", "present"),
    ("Pleural spaces: No effusion.", "Pleural Effusion", "negated"),
    ("HEART: Mildly enlarged.", "Cardiomegaly", "present"),
    ("PLEURAL EFFUSION: None.", "Pleural Effusion", "negated"),
    ("No effusion\nMild cardiomegaly\nSmall nodule", "Cardiomegaly", "present"),
)


@pytest.mark.parametrize(("sentence", "finding", "status"), OWN_SENTENCES)
def test_a_sentence_of_our_own(sentence: str, finding: str, status: str | None) -> None:
    found = [mention for mention in find_mentions(sentence, ALL) or [] if mention.finding == finding]
    assert [mention.status for mention in found] == ([status] if status else [])
    assert all(sentence[m.start:m.end] == m.phrase for m in found)


@pytest.mark.parametrize("finding", [name for name in ALL if name != "Normal"])
def test_the_vocabularys_own_wording_is_found_denied_and_doubted(finding: str) -> None:
    """The words that prompts use for a finding are understood in reports too."""
    words = findings()[finding].wordings[0]
    for frame, status in (("There is {}.", "present"), ("There is no {}.", "negated"), ("Possible {}.", "uncertain")):
        said = overall_status(find_mentions(frame.format(words), (finding,)) or [])
        assert said.get(finding) == status, frame.format(words)


def test_every_cxr_lt_finding_has_rules_and_unknown_names_are_none() -> None:
    assert set(LABEL_SPACES["cxr_lt_2024_unseen"].labels) <= set(ALL)
    assert set(ALL) <= set(findings())


def test_sections_cover_the_text_and_only_what_speaks_of_the_picture_is_read() -> None:
    text = ("FINAL REPORT\n EXAMINATION: Chest\n\n INDICATION: Pneumonia?\n\n COMPARISON: None. \n\n"
            "FINDINGS: Dr. Roe saw 1.5 cm of fluid. LUNGS: Clear.\n\nIMPRESSION:\n 1. Effusion.\n 2. No mass.\n")
    parts = split_sections(text)
    assert all(a.end <= b.start for a, b in pairwise(parts))
    sentences = read_sentences(text)
    assert all(text[entry.start:entry.end] == entry.text for entry in sentences)
    assert [entry.text for entry in sentences if entry.section == "findings"] == ["Dr. Roe saw 1.5 cm of fluid."]
    assert {entry.section for entry in sentences} == {"findings", "lungs", "impression"}
    assert "pneumonia" not in " ".join(entry.text for entry in sentences).lower()


def test_a_body_without_heading_is_read_after_a_blank_line() -> None:
    assert [entry.text for entry in read_sentences("INDICATION: Cough.\n\nSmall effusion.")] == ["Small effusion."]
    assert [entry.text for entry in read_sentences("Small effusion.")] == ["Small effusion."]
    assert find_mentions("INDICATION: Pneumonia.", ALL) is None


def test_a_history_under_any_heading_is_not_read() -> None:
    for heading in ("PAST MEDICAL HISTORY", "Chief complaint", "INDICATION FOR EXAM", "ORDERING DIAGNOSIS"):
        assert find_mentions(f"{heading}: Pneumonia.\n\nFINDINGS: Scoliosis.", ("Pneumonia",)) == []


def test_a_report_without_full_stops_is_read_in_time_that_grows_with_its_length() -> None:
    text = "no effusion or pneumothorax, possible atelectasis and " * 100
    sentences = read_sentences(text + "x" * 5000)
    assert all(len(entry.text) <= LONGEST and text.startswith(entry.text, entry.start) for entry in sentences[:6])
    assert "".join(entry.text.replace(" ", "") for entry in sentences) == text.replace(" ", "") + "x" * 5000
    found = find_mentions(text, ("Pneumothorax",)) or []
    assert len(found) == 100
    assert sum(entry.status == "negated" for entry in found) >= 90  # a cut may part a cue from its finding


def test_cues_never_overlap_unless_they_are_the_same_words() -> None:
    for sentence, _, _ in OWN_SENTENCES:
        spans = [(hit.start, hit.end) for hit in find_cues(sentence)]
        assert all(a == b or a[1] <= b[0] or b[1] <= a[0] for a in spans for b in spans)


def mention(finding: str, status: str) -> Mention:
    return Mention(finding=finding, status=status, phrase=None, section=None, start=None, end=None,
                   sentence_start=None, sentence_end=None, rule="a test")


def test_the_strongest_mention_counts_in_any_order_and_children_imply_their_parents() -> None:
    rng = np.random.default_rng(0)
    said = [mention("Mass", status) for status in ("negated", "uncertain", "absent", "present")]
    for _ in range(10):
        order = [said[at] for at in rng.permutation(4)]
        status = overall_status(order)
        assert status["Mass"] == status["Lung Lesion"] == "present"
    assert overall_status([mention("Rib Fracture", "negated")]).get("Fracture") is None
    both = [mention("Rib Fracture", "uncertain"), mention("Fracture", "negated")]
    assert overall_status(both)["Fracture"] == "uncertain"


@pytest.mark.parametrize(("policy", "value", "no_finding"),
                         [("u-ignore", None, None), ("u-ones", 1, 0), ("u-zeros", 0, 1)])
def test_policies_for_the_uncertain(policy: str, value: int | None, no_finding: int | None) -> None:
    labels = ("Pneumonia", "Edema", "No Finding")
    found, doubted = to_labels({"Pneumonia": "uncertain"}, labels, uncertain=policy, unmentioned="absent")
    assert found == {"Pneumonia": value, "Edema": 0, "No Finding": no_finding}
    assert doubted == ["Pneumonia", "No Finding"]


def test_no_finding_and_normal_follow_from_the_others() -> None:
    labels = ("Pleural Effusion", "Support Devices", "Normal", "No Finding")

    def derive(text: str) -> tuple[int | None, int | None]:
        found, _ = to_labels(overall_status(find_mentions(text, asked_findings(labels)) or []), labels,
                             uncertain="u-ignore", unmentioned="unknown")
        return found["Normal"], found["No Finding"]

    assert derive("Normal chest. Pacemaker in place.") == (1, 1)
    assert derive("Pacemaker in place.") == (0, 1)
    assert derive("Normal chest. Small effusion.") == (0, 0)
    assert derive("Normal chest. Possible small effusion.") == (None, None)


def test_a_label_under_its_sources_name_is_the_same_finding() -> None:
    text = "FINDINGS: Small left effusion."
    for space in ("nih_14", "cxr_lt_2024"):
        labels = LABEL_SPACES[space].labels
        found, _ = to_labels(overall_status(find_mentions(text, asked_findings(labels)) or []), labels,
                             uncertain="u-ignore", unmentioned="absent")
        name = "Effusion" if space == "nih_14" else "Pleural Effusion"
        assert [label for label, value in found.items() if value] == [name]


def test_a_phrase_that_is_no_expression_is_named() -> None:
    with pytest.raises(TailfillError, match=r"'a\('.*is no regular expression"):
        compile_phrase("a(", where="a test")


def toy_reports(n: int) -> dict[str, str]:
    texts = ("FINDINGS: Small left effusion. Possible pneumonia.",
             "FINDINGS: Clear lungs.\n\nIMPRESSION: Normal chest.", "INDICATION: Effusion?",
             "IMPRESSION: Cardiomegaly. No pneumothorax.")
    return {f"r{i:03d}": texts[i % 4] for i in range(n)}


def test_the_command_writes_labels_mentions_and_a_cohort_can_be_made_of_them(tmp_path: Path) -> None:
    texts = toy_reports(16)
    file = write_reports(tmp_path / "reports.csv", texts)
    images = pd.DataFrame({"report_id": [f"r{i // 2:03d}" for i in range(32)], "path": [f"{i}.png" for i in range(32)],
                           "patient_id": [f"p{i // 4}" for i in range(32)], "view": ["PA", "lateral"] * 16})
    images.to_csv(tmp_path / "images.csv", index=False)
    out = tmp_path / "labels"
    assert run_as_command(main, "rules", "--reports", file, "--images", tmp_path / "images.csv", "--out", out) == 0
    table = pd.read_parquet(out / "labels.parquet").set_index("report_id")
    assert list(table.index) == list(texts)
    assert table["status"].value_counts().to_dict() == {"ok": 12, "failed": 4}
    assert table.loc[table["status"] == "failed", list(CXR_LT_2024.labels)].isna().all(axis=None)
    assert table.loc["r000", "Pleural Effusion"] == 1
    assert pd.isna(table.loc["r000", "Pneumonia"])
    assert table.loc["r000", "uncertain"] == "Pneumonia"  # Normal is 0 anyhow: there is an effusion
    assert table.loc["r001", "Normal"] == 1
    mentions = pd.read_parquet(out / "mentions.parquet")
    for row in mentions.itertuples():
        assert texts[row.report_id][row.start:row.end] == row.phrase
        assert row.sentence_start <= row.start < row.end <= row.sentence_end
    stamp = json.loads((out / "_stage.json").read_text())
    assert stamp["counts"] == {"reports": 16, "ok": 12, "failed": 4, "mentions": len(mentions), "images": 32}
    assert not any(text in path.read_text(errors="replace") for path in out.rglob("*") for text in texts.values())

    for i in range(32):
        write_image(tmp_path / "images" / f"{i}.png", seed=i)
    assert run_as_command(prepare, "csv", "--csv", out / "labels.csv", "--root", tmp_path / "images",
                          "--label_space", "cxr_lt_2024", "--out", tmp_path / "cohort") == 0
    cohort = load_cohort(tmp_path / "cohort")
    assert cohort.labels == list(CXR_LT_2024.labels)
    found = cohort.frame.set_index("image_id").loc[images["path"], cohort.labels]
    wanted = table.loc[images["report_id"], cohort.labels].set_axis(found.index)
    pd.testing.assert_frame_equal(found, wanted, check_index_type=False)


def test_again_is_nothing_to_do_and_other_policies_are_refused(tmp_path: Path) -> None:
    file = write_reports(tmp_path / "reports.csv", toy_reports(4))
    out = tmp_path / "labels"
    assert run_as_command(main, "rules", "--reports", file, "--out", out) == 0
    before = (out / "labels.parquet").read_bytes()
    assert run_as_command(main, "rules", "--reports", file, "--out", out) == 0
    assert run_as_command(main, "rules", "--reports", file, "--out", out, "--uncertain", "u-ones") == 2
    assert (out / "labels.parquet").read_bytes() == before


def test_the_order_of_reports_changes_nothing_and_a_folder_is_a_table(tmp_path: Path) -> None:
    texts = toy_reports(8)
    for report_id, text in texts.items():
        (tmp_path / "files" / report_id[:3]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / report_id[:3] / f"{report_id}.txt").write_text(f"\n {text}\n")
    reverse = write_reports(tmp_path / "reverse.csv", dict(reversed(texts.items())))
    for name, reports in (("a", tmp_path / "files"), ("b", reverse)):
        assert run_as_command(main, "rules", "--reports", reports, "--out", tmp_path / name) == 0
    a, b = (pd.read_parquet(tmp_path / name / "labels.parquet").set_index("report_id").sort_index() for name in "ab")
    pd.testing.assert_frame_equal(a, b)


BAD = {
    "no such file": ("--reports", "nowhere.csv"),
    "an id that stands twice": ("--reports", "twice.csv"),
    "a row without an id": ("--reports", "no_id.csv"),
    "no column of texts": ("--reports", "good.csv", "--text_column", "report"),
    "an unknown label space": ("--reports", "good.csv", "--label_space", "cxr_lt_2042"),
    "an unknown policy": ("--reports", "good.csv", "--uncertain", "u-maybe"),
    "an image of no report": ("--reports", "good.csv", "--images", "images.csv"),
    "an empty folder": ("--reports", "empty"),
    "two files of one name": ("--reports", "double"),
    "a text that is no UTF-8": ("--reports", "latin"),
    "an unknown key": ("--config", "unknown.yaml"),
    "images with labels": ("--reports", "good.csv", "--images", "labelled.csv"),
    "images with the reports' text": ("--reports", "good.csv", "--images", "good.csv"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_line_and_writes_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.csv").write_text("report_id,text\nr1,Small effusion.\n")
    Path("twice.csv").write_text("report_id,text\nr1,a b\nr1,c d\n")
    Path("no_id.csv").write_text("report_id,text\nr1,a b\n,c d\n")
    Path("images.csv").write_text("report_id,path\nr1,a.png\nr2,b.png\n")
    Path("labelled.csv").write_text("report_id,path,Edema\nr1,a.png,1\n")
    Path("unknown.yaml").write_text("reports: good.csv\nlabel_spaces: chexpert\n")
    for file, content in (("double/a/r1.txt", b"x"), ("double/b/r1.txt", b"y"), ("latin/r1.txt", b"\xe9t\xe9"),
                          ("empty/readme.md", b"")):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_bytes(content)
    assert run_as_command(main, "rules", *BAD[kind], "--out", "out") == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert not Path("out").exists()


def test_a_config_file_has_the_keys_and_its_paths_are_relative_to_it(tmp_path: Path) -> None:
    write_reports(tmp_path / "deep" / "reports.csv", toy_reports(4))
    config = tmp_path / "deep" / "label.yaml"
    config.write_text("reports: reports.csv\nlabel_space: chexpert\nunmentioned: unknown\n")
    assert run_as_command(main, "rules", "--config", config, "--out", tmp_path / "out") == 0
    table = pd.read_parquet(tmp_path / "out" / "labels.parquet").set_index("report_id")
    assert pd.isna(table.loc["r003", "Edema"])
    assert table.loc["r003", "Pneumothorax"] == 0
