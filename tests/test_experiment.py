"""The debug experiment from its first stage to the report; again, doing nothing; and interrupted, going on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

STAGES = ("cohort", "plan", "autoencoder", "generator", "images", "synthetic", "comparison", "report")


def command(repository: Path, data: Path, run: Path, *more: str) -> list[str]:
    """The debug experiment on ``data`` in ``run``."""
    return [sys.executable, str(repository / "scripts" / "experiment.py"), str(repository / "configs" / "debug.yaml"),
            "--prepare.root", str(data), "--run", str(run), *more]


def environment() -> dict[str, str]:
    """No hub, and one thread, as the gate's tests have it."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def written(run: Path) -> dict[str, int]:
    """When each file of a run was last written, logs and the lock apart."""
    return {str(path.relative_to(run)): path.stat().st_mtime_ns for path in sorted(run.rglob("*"))
            if path.is_file() and path.name != "lock" and path.parent.name != "logs"}


def wait_for(file: Path, process: subprocess.Popen[bytes]) -> None:
    """Until ``file`` exists; fails when the process ends before."""
    while not file.exists():
        assert process.poll() is None, f"ended before {file}"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, repository: Path, debug_data: Path) -> Path:
    """A run that was interrupted in its plan, killed in its training of the generator, and then went to its end."""
    run = tmp_path_factory.mktemp("experiment") / "run"
    words = command(repository, debug_data, run)
    for milestone, how, code in (("cohort/_stage.json", signal.SIGTERM, 130),
                                 ("generator/_begun.json", signal.SIGKILL, -signal.SIGKILL)):
        process = subprocess.Popen(words, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(run / milestone, process)
        process.send_signal(how)
        assert process.wait() == code
    owner = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    while "another experiment is at work" in owner.stderr:  # the stage of the killed one notices and ends
        time.sleep(0.2)
        owner = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    assert owner.returncode == 0, owner.stderr
    return run


def test_every_stage_is_complete(finished: Path) -> None:
    config = yaml.safe_load((finished / "config.yaml").read_text())
    per_arm = [f"{kind}/{arm}/seed_{seed}" for kind in ("arms", "train", "predictions") for arm in config["arms"]
               for seed in range(config["n_seeds"])]
    assert len(per_arm) == 3 * 4 * 3
    missing = [name for name in (*STAGES, *per_arm) if not (finished / name / "_stage.json").is_file()]
    assert missing == []
    assert (finished / "report" / "report.html").stat().st_size > 10_000


def test_counts_balance_from_plan_to_filter(finished: Path) -> None:
    plan, images, kept = (json.loads((finished / name / "_stage.json").read_text())["counts"]
                          for name in ("plan", "images", "synthetic"))
    assert plan["planned"] == images["planned"] == images["made"] + images["failed"]
    assert images["made"] == kept["made"] == kept["kept"] + kept["dropped"]


def test_the_endpoint_was_fixed_before_any_prediction(finished: Path) -> None:
    endpoint = finished / "endpoint.json"
    fixed = json.loads(endpoint.read_text())
    assert fixed["endpoint"] == {"metric": "AP", "group": "tail", "arm": "synthetic", "rival": "duplicate",
                                 "weights": "ema"}
    predictions = list(finished.glob("predictions/*/*/predictions.parquet"))
    assert len(predictions) == 12
    assert all(endpoint.stat().st_mtime_ns < file.stat().st_mtime_ns for file in predictions)


def test_again_it_does_nothing(finished: Path, repository: Path, debug_data: Path) -> None:
    before = written(finished)
    again = subprocess.run(command(repository, debug_data, finished), env=environment(), capture_output=True, text=True,
                           check=False)
    assert again.returncode == 0, again.stderr
    assert written(finished) == before
    assert " ..." not in again.stderr  # no stage was even started


def test_another_configuration_is_refused(finished: Path, repository: Path, debug_data: Path) -> None:
    before = written(finished)
    words = command(repository, debug_data, finished, "--train.steps", "11")
    refused = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "config.yaml: this run was fixed with 'steps: 10', now 'steps: 11'" in refused.stderr
    assert written(finished) == before


def test_a_failing_stage_ends_it_with_its_own_line(
    tmp_path: Path, repository: Path, debug_data: Path
) -> None:
    words = command(repository, debug_data, tmp_path / "run", "--plan.per_class", '{"Hernai": 4}')
    failed = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    last = failed.stderr.splitlines()[-1]
    assert last.startswith("error: plan: plan.per_class")
    assert "Hernai" in last
    assert last.endswith("plan.log)")
