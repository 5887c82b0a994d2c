"""What leaves a run: the images that were accepted and no other, a card that the hub reads, and nothing halfway."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from diffusers import DiffusionPipeline
from export_world import build, export
from filter_world import LABELS
from huggingface_hub import DatasetCard, ModelCard

from cohort.stage import hash_file, read_stamp
from cohort.tables import SPLITS, load_cohort, read_table


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Do not write into it."""
    return build(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def images(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "images"
    assert export(run, out) == 0
    return out


def test_datasets_reads_the_accepted_images_and_no_other(run: Path, images: Path, tmp_path: Path) -> None:
    loaded = datasets.load_dataset("imagefolder", data_dir=str(images), split="train", cache_dir=str(tmp_path))
    synthetic = read_table(run / "synthetic" / "synthetic.parquet").set_index("sample_id")
    plan = read_table(run / "plan" / "plan.parquet")
    kept = synthetic[synthetic["keep"]]
    assert sorted(loaded["sample_id"]) == sorted(kept.index)
    for row in loaded:
        asked = plan.iloc[row["plan_row"]]
        assert asked["sample_id"] == row["sample_id"]
        assert [row[key] for key in ("prompt", "seed", "charged_to", "view", "age", "sex", *LABELS)] == [
            asked[key] for key in ("prompt", "seed", "charged_to", "view", "age", "sex", *LABELS)]
        assert row["score_blank"] == 1.5
        assert row["score_memorisation"] is None
        assert row["image"].size == (row["width"], row["height"])
        assert hash_file(images / "train" / f"{row['sample_id']}.png") == row["sha256"]


def test_no_id_of_a_real_image_and_no_path_leaves(run: Path, images: Path) -> None:
    real = set(load_cohort(run / "cohort").frame["image_id"])
    table = pd.read_parquet(images / "train" / "metadata.parquet")
    assert not real & {str(value) for value in table.to_numpy().ravel()}
    for file in ("README.md", "export.json"):
        assert str(run.parent) not in (images / file).read_text()


def test_tailfill_itself_reads_them_as_a_cohort(images: Path, tmp_path: Path, invoke: Callable[..., Any]) -> None:
    columns = ["--columns.labels", json.dumps(LABELS)]
    done = invoke("cohort.prepare", "images", "--root", images, "--out", tmp_path / "cohort", "--label-space", "own",
                  *columns)
    assert done.code == 0, done.stderr
    frame = load_cohort(tmp_path / "cohort").frame
    assert len(frame) == len(list((images / "train").glob("*.png")))
    assert set(frame["split"]) <= set(SPLITS)


def test_the_card_of_the_images_says_what_it_must(run: Path, images: Path) -> None:
    card = DatasetCard.load(images / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.size_categories == ["n<1K"]
    assert set(card.data.task_categories) == {"image-classification", "text-to-image"}
    text = card.text
    weights = (read_stamp(run / "generator") or {})["outputs"]["pipeline"]
    for needed in (weights, "trained from nothing", "80 training images, 40 patients", "0.125", "0.001",
                   "none: too few", "50.0 % lie nearer", "Not for** diagnosis", "not for diagnosis", "Hernia (tail)"):
        assert needed in text
    synthetic = read_table(run / "synthetic" / "synthetic.parquet")
    plan = read_table(run / "plan" / "plan.parquet")
    for name in ("Hernia", "negative"):
        part = synthetic[synthetic["charged_to"] == name]
        asked, kept = int((plan["charged_to"] == name).sum()), int(part["keep"].sum())
        assert f"| {name} | {asked} | {len(part)} | {kept} | {100 * kept / len(part):.1f} % |" in text
    kept = int(synthetic["keep"].sum())
    assert f"| realism | 0 | {kept} |" in text  # it only scores
    assert f"| blank | {len(synthetic) - kept} | 0 |" in text


def test_the_generator_leaves_as_a_pipeline_that_loads(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "generator"
    assert export(run, out, "--generator") == 0
    assert type(DiffusionPipeline.from_pretrained(out, use_safetensors=True)).__name__ == "StableDiffusionPipeline"
    assert not list(out.rglob("*.bin"))
    assert "_name_or_path" not in "".join(file.read_text() for file in out.rglob("*.json"))
    card = ModelCard.load(out / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag, card.data.license) == ("diffusers", "text-to-image",
                                                                                  "apache-2.0")


def test_again_it_writes_nothing_and_another_export_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "images"
    assert export(run, out) == 0
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    assert export(run, out) == 0
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before
    assert export(run, out, "--licence", "mit") == 2
    assert "under other settings" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert export(run, tmp_path / "full") == 2
    assert "is not empty" in capsys.readouterr().err
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"


def test_a_killed_export_leaves_nothing_that_looks_whole(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "images"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("synth.exporting.image_folder.write_table", killed)
        with pytest.raises(KeyboardInterrupt):
            export(run, out)
    assert not out.exists()
    left = tmp_path / ".images.exporting"  # what a SIGKILL would leave
    left.mkdir()
    (left / "half.png").write_bytes(b"")
    assert export(run, out) == 0
    assert not left.exists()
    assert not (out / "half.png").exists()
