"""The filter as a command on a fabricated run: every image accounted for, thresholds obeyed, sources checked."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from filter_world import (
    FLAT,
    HIDDEN,
    LABELS,
    ORDER,
    SALT,
    SHOWN,
    SIZE,
    Patch,
    Pixels,
    build_run,
    write_learnt,
    write_reconstructed,
)
from PIL import Image

from cohort.provenance import hash_patients
from cohort.tables import read_table, synthetic_schema
from synth import filter as command
from synth.judging.verdicts import decide
from synth.measuring import encoders
from synth.measuring.fidelity import FLOOR


@pytest.fixture(scope="module", autouse=True)
def _light_models() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(encoders.ENCODERS, "pixels", Pixels)
        patch.setattr(command, "Critic", Patch)
        yield


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a run that nobody changes."""
    return build_run(tmp_path_factory.mktemp("template"))


@pytest.fixture
def config(template: Path, tmp_path: Path) -> Path:
    """The config of a run of its own, to change."""
    shutil.copytree(template.parent, tmp_path / "own")
    return tmp_path / "own" / template.name


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, invoke: Callable) -> Path:
    """The config of a run that has been filtered; do not change it."""
    config = build_run(tmp_path_factory.mktemp("finished"))
    outcome = invoke("synth.filter", "--config", config)
    assert outcome.code == 0, outcome.stderr
    return config


@pytest.fixture(scope="module")
def filtered(finished: Path) -> Path:
    """Its folder."""
    return finished.parent / "run" / "synthetic"


def cases(folder: Path) -> pd.DataFrame:
    """The synthetic table with the fabricated case of each image."""
    plan = read_table(folder.parent / "plan" / "plan.parquet")[["sample_id", "prompt"]]
    return read_table(folder / "synthetic.parquet").merge(plan, on="sample_id")


def test_right_images_are_kept_and_wrong_ones_dropped_with_their_reason(filtered: Path) -> None:
    frame = cases(filtered)
    right = frame[((frame["charged_to"] == "Hernia") & (frame["prompt"] == SHOWN))
                  | ((frame["charged_to"] == "negative") & (frame["prompt"] == HIDDEN))]
    wrong = frame.drop(right.index)
    assert right["keep"].mean() > 0.8  # each threshold lets 5 % of right ones go
    assert not wrong["keep"].any()
    assert set(wrong[wrong["prompt"] == FLAT]["reason"]) == {"blank"}
    assert set(wrong[wrong["prompt"] != FLAT]["reason"]) == {"label_agreement"}
    assert frame.loc[frame["keep"], "reason"].isna().all()
    assert (frame.loc[frame["keep"], ["blank", "saturated", "label_agreement"]] >= 0).all(axis=None)


def test_every_image_is_accounted_for(filtered: Path) -> None:
    stamp = json.loads((filtered / "_stage.json").read_text())
    counts, extra = stamp["counts"], stamp["extra"]
    assert counts["planned"] == 41 == counts["made"] + counts["failed"]
    assert counts["made"] == counts["kept"] + counts["dropped"] == len(read_table(filtered / "synthetic.parquet"))
    assert counts["dropped"] == sum(n for key, n in counts.items() if key.startswith("dropped_"))
    assert extra["rules"] == ORDER
    assert extra["scarce"] == ["Hernia"]
    assert extra["provenance"] == "checked"


def test_rows_are_those_of_the_plan_and_open_as_images(filtered: Path) -> None:
    schema = synthetic_schema(LABELS, ["blank", "saturated", "label_agreement"])
    frame = read_table(filtered / "synthetic.parquet", schema)
    plan = read_table(filtered.parent / "plan" / "plan.parquet").set_index("sample_id").loc[frame["sample_id"]]
    for column in (*LABELS, "view", "age", "sex", "charged_to", "label_source_id", "seed"):
        assert frame[column].tolist() == plan[column].tolist()
    roots = json.loads((filtered / "_stage.json").read_text())["extra"]["roots"]
    assert all((Path(roots[root]) / path).is_file() for root, path in zip(frame["root"], frame["path"], strict=True))
    assert set(frame["split"]) == {"train"}
    assert (frame["patient_id"] == frame["image_id"]).all()
    assert (frame["image_id"] == "synthetic:" + frame["sample_id"]).all()


def test_scores_and_thresholds_explain_the_decisions(filtered: Path) -> None:
    """Recomputed from scores.parquet alone: keep = nothing failed."""
    scores, frame = read_table(filtered / "scores.parquet"), read_table(filtered / "synthetic.parquet")
    failed = set(scores.loc[scores["passed"].eq(False).fillna(False), "sample_id"])
    assert failed == set(frame.loc[~frame["keep"], "sample_id"])
    high = scores["direction"] == "at least"
    passed = np.where(high, scores["score"] >= scores["threshold"], scores["score"] <= scores["threshold"])
    assert (passed == scores["passed"]).all()
    thresholds = read_table(filtered / "thresholds.parquet")
    assert list(thresholds["rule"]) == ["blank", "saturated", "label_agreement", "label_agreement"]
    assert thresholds["source"].str.len().min() > 20
    assert (thresholds.loc[thresholds["label"] == "Hernia", "n_positive"] == 30).all()


def test_what_the_images_show_of_what_they_were_asked_for(filtered: Path) -> None:
    """Of all pairs that were made, whatever the rules dropped."""
    assert "drawn.parquet" in json.loads((filtered / "_stage.json").read_text())["outputs"]
    (row,) = read_table(filtered / "drawn.parquet").to_dict("records")
    frame = read_table(filtered / "synthetic.parquet")
    noise = [set(frame.loc[frame["charged_to"] == kind, "seed"]) for kind in ("Hernia", "negative")]
    assert (row["label"], row["says"], row["n_pairs"]) == ("Hernia", "drawn", len(noise[0] & noise[1]))
    assert 0.5 < row["ci_low"] < row["auroc"] < row["real_auroc"]


def test_fidelity_table(filtered: Path) -> None:
    frame = read_table(filtered / "fidelity.parquet")
    assert set(frame["name"]) == {"all", "tail", "Hernia", "negative"}
    assert not frame.duplicated(["name", "set", "metric"]).any()
    assert (frame["value"].isna() == frame["reason"].notna()).all()
    assert set(frame["encoder"]) == {"pixels"}
    kid = frame[frame["metric"] == "KID"].set_index(["name", "set"])["value"]
    assert kid["Hernia", "made"] > kid["Hernia", "kept"]  # the dropped ones lacked the finding


def test_patients_of_thresholds_critic_and_generator_are_passed_on(filtered: Path) -> None:
    known = set(read_table(filtered / "patients.parquet")["patient"])
    learnt = [f"train-{i}" for i in range(40)] + [f"val-{i}" for i in range(30)]
    assert known == hash_patients(learnt, salt=SALT)


def test_again_does_nothing_and_other_settings_are_refused(filtered: Path, finished: Path, invoke: Callable) -> None:
    stamp = (filtered / "_stage.json").read_bytes()
    assert "nothing to do" in invoke("synth.filter", "--config", finished).stderr
    outcome = invoke("synth.filter", "--config", finished, "--filter.kid_subset", "7")
    assert outcome.code == 2
    assert "kid_subset was 100, now 7" in outcome.stderr
    assert (filtered / "_stage.json").read_bytes() == stamp


def test_explain(filtered: Path, finished: Path, invoke: Callable) -> None:
    frame = cases(filtered)
    dropped = frame[frame["reason"] == "label_agreement"].iloc[0]
    text = invoke("synth.filter", "--config", finished, "--explain", dropped["sample_id"]).stdout
    assert "dropped by label_agreement" in text
    assert "FAILS" in text
    assert "validation" in text
    outcome = invoke("synth.filter", "--config", finished, "--explain", "nosuchimage")
    assert (outcome.code, outcome.stderr.count("\n")) == (2, 1)
    assert "nosuchimage" in outcome.stderr


def test_an_empty_id_is_not_taken_for_no_question(config: Path, invoke: Callable) -> None:
    outcome = invoke("synth.filter", "--config", config, "--explain", "")
    assert (outcome.code, outcome.stderr.count("\n")) == (2, 1)
    assert not (config.parent / "run" / "synthetic").exists()


def test_same_seed_same_tables(filtered: Path, config: Path, invoke: Callable) -> None:
    """From the same files in another folder come the same bytes."""
    assert invoke("synth.filter", "--config", config).code == 0
    again = config.parent / "run" / "synthetic"
    first, second = (json.loads((folder / "_stage.json").read_text())["outputs"] for folder in (filtered, again))
    assert first == second


def test_rules_can_be_left_out(config: Path, invoke: Callable) -> None:
    """Without a rule that needs it, no critic is read; the one rule left is the only column."""
    text = yaml.safe_load(config.read_text())
    text["filter"]["rules"] = {"blank": {"quantile": 0.01}}
    config.write_text(yaml.safe_dump(text))
    shutil.rmtree(config.parent / "run" / "train")
    outcome = invoke("synth.filter", "--config", config)
    assert outcome.code == 0, outcome.stderr
    frame = read_table(config.parent / "run" / "synthetic" / "synthetic.parquet", synthetic_schema(LABELS, ["blank"]))
    assert set(frame["reason"].dropna()) == {"blank"}


def test_settings_of_a_rule_and_the_view_asked_for_survive(config: Path, invoke: Callable) -> None:
    """A count in the configuration stays a whole number; the margin of the rule on views has a column of its own."""
    text = yaml.safe_load(config.read_text())
    text["filter"]["rules"] = {"view": None, "neighbourhood": {"k": 2}}
    config.write_text(yaml.safe_dump(text))
    outcome = invoke("synth.filter", "--config", config)
    assert outcome.code == 0, outcome.stderr
    frame = read_table(config.parent / "run" / "synthetic" / "synthetic.parquet",
                       synthetic_schema(LABELS, ["view_rule", "neighbourhood"]))
    assert set(frame["view"]) == {"PA"}
    assert frame["neighbourhood"].notna().any()


def test_dry_run_writes_nothing(config: Path, invoke: Callable) -> None:
    outcome = invoke("synth.filter", "--config", config, "--dry-run")
    assert json.loads(outcome.stdout)["rows"] == 40
    assert not (config.parent / "run" / "synthetic").exists()


@pytest.mark.parametrize(("section", "message"), [
    ({"rules": {"blnk": None}}, "unknown rule 'blnk'; did you mean 'blank'"),
    ({"rules": {"blank": {"quantil": 0.1}}}, "did you mean 'quantile'"),
    ({"encoders": ["inception"]}, "no encoder 'inception'"),
    ({"critic_seeds": [0]}, "critic_seeds is [0]; wanted: one or more, each 1000 or more"),
    ({"critic_seeds": []}, "critic_seeds is []; wanted"),
    ({"critic_seeds": [1001]}, "seed_1001: no complete 'critic' stage"),
    ({"fidelity_n": 0}, "fidelity_n is 0"),
    ({"kid_subsets": 9}, "did you mean 'kid_subset'"),
])
def test_mistakes_in_the_config(config: Path, invoke: Callable, section: dict[str, object], message: str) -> None:
    config.write_text(yaml.safe_dump({"run": "run", "filter": {"encoders": ["pixels"], **section}}))
    outcome = invoke("synth.filter", "--config", config)
    assert (outcome.code, outcome.stderr.count("\n")) == (2, 1), outcome.stderr
    assert message in outcome.stderr
    assert not (config.parent / "run" / "synthetic").exists()


def test_a_critic_that_saw_test_patients_is_refused(config: Path, invoke: Callable) -> None:
    critic = config.parent / "run" / "train" / "real" / "seed_1000"
    shutil.rmtree(critic)
    write_learnt(critic, "train", ["train-1", "test-0"])
    outcome = invoke("synth.filter", "--config", config)
    assert outcome.code == 2
    assert "has learnt from 1 patients of the splits val, test" in outcome.stderr
    assert not (config.parent / "run" / "synthetic").exists()


def test_a_changed_image_is_refused(config: Path, invoke: Callable) -> None:
    file = sorted((config.parent / "run" / "images" / "images").glob("*.png"))[3]
    Image.fromarray(np.zeros((SIZE, SIZE), np.uint8)).save(file)
    outcome = invoke("synth.filter", "--config", config)
    assert outcome.code == 2
    assert file.name in outcome.stderr
    assert "was changed" in outcome.stderr
    assert not (config.parent / "run" / "synthetic" / "synthetic.parquet").exists()


def test_an_image_drawn_from_a_real_one_belongs_to_its_patient(config: Path) -> None:
    cohort = command.load_cohort(config.parent / "run" / "cohort")
    plan = read_table(config.parent / "run" / "plan" / "plan.parquet").head(2).assign(path="p.png")
    plan["init_image_id"] = pd.Series(["train3", None], dtype="str")
    assert decide(plan, cohort, {})["patient_id"].tolist() == ["train-1", "synthetic:" + plan["sample_id"][1]]


def test_against_reconstructed_images(config: Path, invoke: Callable) -> None:
    """Measured where it is asked for: the order of the reconstructions does not matter, their generator does."""
    section = {"encoders": ["pixels"], "rules": {"blank": None}, "reconstructed": True}
    config.write_text(yaml.safe_dump({"run": "run", "threads": 1, "filter": section}, sort_keys=False))
    outcome = invoke("synth.filter", "--config", str(config))
    assert outcome.code == 2
    assert "no complete 'reconstruct' stage" in outcome.stderr
    folder = write_reconstructed(config.parent / "run", config.parent / "run" / "generator")
    assert invoke("synth.filter", "--config", str(config)).code == 0
    frame = read_table(config.parent / "run" / "synthetic" / "fidelity.parquet")
    values = frame[frame["metric"] == "KID"].set_index(["name", "set"])["value"]
    # the reconstructions are the images themselves, darkened: their distance is found only if rows belong together
    assert values["all", "reconstructed"] > 10 * abs(values["all", FLOOR])
    assert values["all", "made"] < values["all", "reconstructed"]
    assert {"made against reconstructed", "kept against reconstructed"} <= set(frame["set"])
    shutil.rmtree(folder)
    shutil.rmtree(config.parent / "run" / "synthetic")
    write_reconstructed(config.parent / "run", config.parent / "run" / "train" / "real" / "seed_1000")
    outcome = invoke("synth.filter", "--config", str(config))
    assert outcome.code == 2
    assert "another generator" in outcome.stderr
