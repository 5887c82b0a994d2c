"""What is done, and the time left: from this run's own stages, for other kinds from what was expected of them."""

import json
from pathlib import Path

import pytest
from experiment import Step, is_done, time_left
from experiment_config import Experiment

from cohort.stage import Stage

EXPECTED = {"prepare": 60.0, "generate": 120.0, "train": 30.0}


def finished(folder: Path, stage: str, seconds: float, seed: int | None = None) -> Step:
    """A step whose stamp says how long it took."""
    place = folder / f"{stage}{seed}"
    place.mkdir()
    (place / "_stage.json").write_text(json.dumps(
        {"stage": stage, "fingerprint": "", "config": {}, "inputs": {}, "seconds": seconds}))
    return Step(stage=stage, folder=place, arm=None if seed is None else "real", seed=seed)


def to_do(*stages: str) -> list[Step]:
    return [Step(stage=stage, folder=Path("nowhere")) for stage in stages]


def test_a_kind_that_has_run_takes_its_own_mean_whatever_was_expected(tmp_path):
    done = [finished(tmp_path, "train", 60, 0), finished(tmp_path, "train", 180, 1)]
    assert time_left(to_do("train", "train"), done, EXPECTED) == "about 4 min left"


@pytest.mark.parametrize("pace", [0.5, 1, 3])
def test_a_kind_to_come_takes_what_was_expected_at_this_machine_s_pace(tmp_path, pace):
    done = [finished(tmp_path, "prepare", 60 * pace), finished(tmp_path, "plan", 500)]  # nothing was expected of plan
    assert time_left(to_do("generate", "generate"), done, EXPECTED) == f"about {4 * pace:.0f} min left"


def test_what_nobody_knows_is_counted_and_not_guessed(tmp_path):
    done = [finished(tmp_path, "train", 60, 1000)]  # a critic: another kind than an arm's training
    assert time_left(to_do("train", "filter"), done, EXPECTED) == (
        "about 0 min left, 1 stages of unknown length not counted")


def test_a_training_is_done_for_the_very_weights_that_it_started_from(tmp_path: Path) -> None:
    files = [tmp_path / "first", tmp_path / "second"]
    for file in files:
        file.write_bytes(b"weights")
    stage = Stage("train", tmp_path / "seed_0", config={"pretrained": True, "steps": 9},
                  inputs={"pretrained": files[0]})
    stage.begin()
    stage.finish(outputs=[], counts={})
    step = Step(stage="train", folder=stage.folder, arm="real", seed=0)
    told = [is_done(step, Experiment(config={"train": {"pretrained": given, "steps": 9}, "members": {}}, endpoint={},
                                     processes=1, dry_run=False)) for given in (*map(str, files), True)]
    assert told == [True, False, True]
