"""Real images through the generator's autoencoder: which, with whose labels, the same after an interruption."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from diffusers import AutoencoderKL
from tiny_pipeline import IMAGE_SIZE, save_tiny_pipeline

from cohort.pixels import load_images
from cohort.provenance import FILE, SCHEMA, hash_patients, write_patients
from cohort.stage import STAMP, Stage
from cohort.tables import RECONSTRUCTED, cohort_schema, load_cohort, read_table, write_table
from synth.drawing.parts import encode_png
from synth.learning.reconstruction import reconstruct

LABELS = ["Effusion", "Hernia"]
N = {"cohort": 9, "oracle": 4}


def write_images(run: Path, role: str) -> None:
    """A cohort of noise images, two thirds of them for training, and all of the oracle's."""
    rng, n, pixels = np.random.default_rng(len(role)), N[role], run / f"pixels of {role}"
    pixels.mkdir(parents=True)
    for i in range(n):
        (pixels / f"{i}.png").write_bytes(encode_png(rng.integers(0, 256, (40, 40), dtype=np.uint8)))
    splits = ["train", "train", "val" if role == "cohort" else "train"]
    frame = pd.DataFrame({
        "image_id": [f"{role}/{i}" for i in range(n)], "root": role, "path": [f"{i}.png" for i in range(n)],
        "patient_id": [f"{role}-p{i}" for i in range(n)], "study_id": None, "view": "PA", "age": 50.0, "sex": "F",
        "split": [splits[i % 3] for i in range(n)], "Effusion": rng.integers(0, 2, n), "Hernia": rng.integers(0, 2, n),
    }).astype(dict.fromkeys(LABELS, "Int8"))
    stage = Stage("prepare", run / role, config={}, inputs={})
    stage.begin()
    write_table(frame, stage.folder / "cohort.parquet", cohort_schema(LABELS))
    stage.finish(outputs=["cohort.parquet"], counts={"rows": n}, extra={
        "labels": LABELS, "groups": {"Effusion": "head", "Hernia": "tail"}, "roots": {role: str(pixels)}, "salt": role,
        "patient_ids": "given"})


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A run with a cohort and an oracle, a pipeline of colour images elsewhere, and the command's arguments."""
    for role in N:
        write_images(tmp_path / "run", role)
    pipeline = save_tiny_pipeline(tmp_path / "pipeline")
    config = tmp_path / "config.yaml"
    config.write_text(f"{{run: run, threads: 1, reconstruct: {{pipeline: {pipeline}, batch_size: 3}}}}")
    return ["--config", str(config)]


def test_each_training_image_is_there_with_its_source_s_labels_as_the_decoder_draws_it(words, tmp_path, invoke) -> None:
    assert invoke("synth.reconstruct", *words).code == 0
    run = tmp_path / "run"
    table = read_table(run / "reconstructed" / "reconstructed.parquet", cohort_schema(LABELS)).set_index("image_id")
    vae = AutoencoderKL.from_pretrained(tmp_path / "pipeline" / "vae").eval()
    for role in N:
        cohort = load_cohort(run / role)
        train = cohort.split("train")
        rows = table.loc[RECONSTRUCTED + train["image_id"]]
        pd.testing.assert_frame_equal(rows[LABELS].reset_index(drop=True), train[LABELS].reset_index(drop=True))
        assert list(rows["patient_id"]) == list(train["patient_id"])
        drawn = load_images([run / "reconstructed" / path for path in rows["path"]], IMAGE_SIZE, None)
        wanted = reconstruct(vae, load_images(cohort.image_paths(train), IMAGE_SIZE, None))
        assert np.abs(drawn.astype(int) - wanted.astype(int)).max() <= 1  # batches round differently
    assert len(table) == 6 + 4


def test_what_is_done_is_kept_and_a_second_call_ends_the_same(words, tmp_path, invoke) -> None:
    invoke("synth.reconstruct", *words)
    folder = tmp_path / "run" / "reconstructed"
    stamp = json.loads((folder / STAMP).read_text())
    files = sorted(folder.rglob("*.png"))
    (folder / STAMP).rename(folder / "_begun.json")
    files[0].unlink()
    kept = files[1].stat().st_mtime_ns
    assert invoke("synth.reconstruct", *words).code == 0
    assert files[1].stat().st_mtime_ns == kept
    assert json.loads((folder / STAMP).read_text())["counts"] == stamp["counts"]
    assert files[0].is_file()
    assert invoke("synth.reconstruct", *words).code == 0


def test_without_the_oracle_no_image_of_it_is_read_though_the_run_has_one(words, tmp_path, invoke) -> None:
    assert invoke("synth.reconstruct", *words, "--reconstruct.oracle=false").code == 0
    folder = tmp_path / "run" / "reconstructed"
    table = read_table(folder / "reconstructed.parquet", cohort_schema(LABELS))
    assert list(table["patient_id"].str.split("-").str[0].unique()) == ["cohort"]
    stamp = json.loads((folder / STAMP).read_text())
    assert (stamp["counts"]["oracle"], "oracle" in stamp["inputs"]) == (0, False)


def test_whoever_the_autoencoder_knows_is_written_down_and_nobody_else(words, tmp_path, invoke) -> None:
    run = tmp_path / "run"
    stage = Stage("finetune", run / "generator", config={}, inputs={})
    stage.begin()
    (tmp_path / "pipeline").rename(stage.folder / "pipeline")
    write_patients(stage.folder, ["somebody"], salt="cohort")
    stage.finish(outputs=["pipeline", FILE], counts={})
    assert invoke("synth.reconstruct", *words, f"--reconstruct.pipeline={stage.folder / 'pipeline'}").code == 0
    known = read_table(run / "reconstructed" / FILE, SCHEMA)["patient"]
    assert set(known) == hash_patients(["somebody"], salt="cohort")


def test_another_kind_of_autoencoder_is_one_line(words, tmp_path, invoke) -> None:
    config = tmp_path / "pipeline" / "vae" / "config.json"
    config.write_text(config.read_text().replace("AutoencoderKL", "AutoencoderDC").replace(
        '"latent_channels": 4', '"latent_channels": "four"'))
    outcome = invoke("synth.reconstruct", *words)
    assert outcome.code == 2
    assert "vae" in outcome.stderr
    assert "AutoencoderKL" in outcome.stderr
    assert not (tmp_path / "run" / "reconstructed").exists()
