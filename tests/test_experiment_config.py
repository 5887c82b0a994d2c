"""An autoencoder and the generator that takes it have to fit, before any work."""

from pathlib import Path

import pytest
from experiment_config import read_experiment

from cohort.errors import TailfillError

HERE = "models/generator"


@pytest.mark.parametrize(("name", "words", "told"), [
    ("phantom.yaml", ["--finetune.new_autoencoder", "true"], "new_autoencoder is true and no section autoencoder"),
    ("debug.yaml", ["--finetune.pipeline", HERE], "new_autoencoder is false and a section autoencoder"),
    ("debug.yaml", ["--finetune.pipeline", HERE, "--finetune.new_autoencoder", "true"],
     r"autoencoder\.pipeline is None .*finetune\.pipeline is .*; wanted: the same"),
    ("debug.yaml", ["--autoencoder.pipeline", HERE], r"autoencoder\.pipeline is .*finetune\.pipeline is None"),
    ("debug.yaml", ["--autoencoder.pipeline", "a/b/c", "--finetune.pipeline", "a/b/c", "--finetune.new_autoencoder",
                    "true"], r"autoencoder\.pipeline: .*a/b/c is no folder"),
])
def test_an_autoencoder_that_nobody_can_use_is_refused(
    repository: Path, debug_data: Path, tmp_path: Path, name: str, words: list[str], told: str
) -> None:
    placed = [str(repository / word) if word == HERE else word for word in words]
    root = ["--prepare.root", str(debug_data)] if name == "debug.yaml" else []
    with pytest.raises(TailfillError, match=told):
        read_experiment([str(repository / "configs" / name), "--run", str(tmp_path), *root, *placed], doc=None)


def test_one_that_is_trained_on_from_the_same_pipeline_is_taken(
    repository: Path, debug_data: Path, tmp_path: Path
) -> None:
    words = ["--prepare.root", str(debug_data), "--autoencoder.pipeline", str(repository / HERE),
             "--finetune.pipeline", str(repository / HERE), "--finetune.new_autoencoder", "true"]
    config = read_experiment([str(repository / "configs" / "debug.yaml"), "--run", str(tmp_path), *words],
                             doc=None).config
    assert config["finetune"]["new_autoencoder"] is True
