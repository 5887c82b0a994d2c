"""An exported classifier answers as it did in its run, and a folder that does not fit together is refused."""

import json
import os
import pickle
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid
from safetensors.torch import load_file, save_file
from scipy.special import expit
from sklearn.metrics import average_precision_score, roc_auc_score
from tiny_classify import LABELS, write_cohort

from classify.arm import ArmConfig, write_arm
from classify.comparison.metrics import choose_threshold
from classify.export import export
from classify.exporting.bundle import load_bundle
from classify.learning.settings import TrainConfig
from classify.predict import PredictConfig, predict
from classify.train import Job, train
from cohort.config import Run
from cohort.errors import TailfillError
from cohort.stage import hash_file
from cohort.tables import load_cohort


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    write_cohort(folder)
    run = Run(run=str(folder), n_seeds=3, threads=1, tracker="none")
    write_arm(run, ArmConfig(), arm="real", seed=0)
    AcceleratorState._reset_state(True)
    train(Job(run=run, arm="real", seed=0, config=TrainConfig(
        model="test_convnext", image_size=32, steps=3, init_seed=None, batch_size=8)))
    predict(run, PredictConfig(), arm="real", seed=0)
    return run


@pytest.fixture(scope="module")
def trained(run):
    return run.folder / "train" / "real" / "seed_0"


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "classifier"
    export(trained, out, licence="CC BY 4.0")
    return out


@pytest.fixture
def copy(exported, tmp_path):
    """A copy of the export that may be spoilt."""
    return shutil.copytree(exported, tmp_path / "copy")


def own_table(invoke, weights, images, out):
    done = invoke("classify.predict", "--images", images, "--weights", weights, "--out", out)
    assert done.code == 0, done.stderr
    return pd.read_parquet(out / "predictions.parquet"), done


def test_export_and_run_give_the_probabilities_of_the_predictions(run, trained, exported, tmp_path, invoke):
    stage = pd.read_parquet(run.folder / "predictions" / "real" / "seed_0" / "predictions.parquet")
    stage = stage[stage["weights"] == "ema"].assign(file=lambda frame: frame["image_id"].str[1:] + ".png")
    temperature = json.loads((exported / "config.json").read_text())["decisions"]["temperature"]
    tables = [own_table(invoke, weights, run.folder / "pixels", tmp_path / f"own{at}")[0].set_index("image_id")
              for at, weights in enumerate((exported, trained))]
    for label in LABELS:
        expected = expit(stage[f"logit_{label}"].to_numpy(np.float64) / temperature)
        found = [table.loc[stage["file"]] for table in tables]
        np.testing.assert_allclose(found[0][f"probability_{label}"], expected, atol=1e-6)
        np.testing.assert_array_equal(found[0][f"probability_{label}"], found[1][f"probability_{label}"])
    assert len(tables[0]) == 60


def test_thresholds_and_metrics_are_the_references(run, exported):
    config, cohort = json.loads((exported / "config.json").read_text()), load_cohort(run.cohort_folder)
    table = pd.read_parquet(run.folder / "predictions" / "real" / "seed_0" / "predictions.parquet")
    val, test = (table[(table["weights"] == "ema") & (table["split"] == split)] for split in ("val", "test"))
    truth = val["Effusion"].to_numpy(float)
    assert config["decisions"]["thresholds"]["Effusion"] == choose_threshold(
        labels=truth, logits=val["logit_Effusion"].to_numpy(float))[0]
    assert config["decisions"]["thresholds"]["Hernia"] is None  # no validation image has it
    metrics = pd.read_parquet(exported / "metrics.parquet").set_index(["label", "metric"])
    for metric, reference in (("AP", average_precision_score), ("AUROC", roc_auc_score)):
        value = reference(test["Effusion"].to_numpy(int), test["logit_Effusion"])
        assert metrics.loc[("Effusion", metric), "value"] == pytest.approx(value)
    positive = cohort.split("test").query("Hernia == 1")["patient_id"].nunique()
    assert metrics.loc[("Hernia", "AP"), "n_positive_patients"] == positive == 1
    assert np.isnan(metrics.loc[("Hernia", "AP"), "ci_low"])
    assert "1 positive patients" in metrics.loc[("Hernia", "AP"), "reason"]


def test_the_card_says_whom_it_is_for_and_what_lacks(exported):
    text = (exported / "README.md").read_text()
    for words in ("no medical device", "CC BY 4.0", "No validation image has Hernia", "32 x 32", "| train | 40 | 20 |",
                  "real images only", "(policy for laterals: keep)"):
        assert words in text
    assert {path.name for path in exported.iterdir()} == {"README.md", "config.json", "metrics.parquet",
                                                          "model.safetensors"}


def test_a_licence_is_one_line_and_brings_no_markup(trained, tmp_path):
    out = tmp_path / "out"
    for licence in ("", "two\nlines", "x" * 201):
        with pytest.raises(TailfillError, match="on one line"):
            export(trained, out, licence=licence)
    assert not out.exists()
    export(trained, out, licence="Ours <b>1</b>")
    text = (out / "README.md").read_text()
    assert "license: other\nlicense_name: ours-b-1-b\n" in text
    assert "Ours &lt;b&gt;1&lt;/b&gt;, as stated" in text
    with pytest.raises(TailfillError, match="File name too long"):
        export(trained, tmp_path / ("n" * 300), licence="mit")


def test_a_folder_that_is_there_and_a_run_without_predictions_are_refused(run, trained, tmp_path):
    with pytest.raises(TailfillError, match="is there already"):
        export(trained, tmp_path, licence="x")
    other = tmp_path / "train" / "real" / "seed_0"
    shutil.copytree(trained, other)
    with pytest.raises(TailfillError, match=r"classify/predict\.py"):
        export(other, tmp_path / "out", licence="x")
    assert not (tmp_path / "out").exists()


def respell(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def test_wrong_labels_thresholds_and_numbers_are_refused(copy):
    config = json.loads((copy / "config.json").read_text())
    decisions = config["decisions"]
    for changes, words in (
        ({"labels": [*LABELS, "Nodule"]}, "differ in Nodule"),
        ({"labels": ["Effusion", "Effusion", "Hernia"]}, "different names"),
        ({"decisions": decisions | {"temperature": 0}}, "decisions.temperature is 0"),
        ({"decisions": decisions | {"thresholds": {**decisions["thresholds"], "Mass": "high"}}}, "'high'"),
        ({"preprocessing": {"image_size": 32}}, "no key 'mean'"),
        ({"format": "other"}, "format is 'other'"),
        ({"head": "liner"}, "did you mean 'linear'"),
        ({"head": ["linear"]}, "wanted: a name each"),
        ({"model": 5}, "model is 5"),
        ({"views": 3}, "views are 3"),
    ):
        respell(copy, **(config | changes))
        with pytest.raises(TailfillError, match=words):
            load_bundle(copy)
    (copy / "config.json").write_text("{")
    with pytest.raises(TailfillError, match="cannot be read as the config"):
        load_bundle(copy)


def test_a_head_of_other_labels_is_refused_by_its_shape(copy):
    config = json.loads((copy / "config.json").read_text())
    thresholds = config["decisions"]["thresholds"] | {"Nodule": None}
    respell(copy, labels=[*LABELS, "Nodule"], decisions=config["decisions"] | {"thresholds": thresholds})
    with pytest.raises(TailfillError, match=r"tensor 'head\.fc\.bias' is \(3,\); wanted: \(4,\), for a model of 4"):
        load_bundle(copy)


def test_pickles_and_changed_weights_are_refused(copy):
    file = copy / "model.safetensors"
    state = load_file(file)
    save_file({name: value + 1 for name, value in state.items()}, file)
    with pytest.raises(TailfillError, match="its sha256 is"):
        load_bundle(copy)
    for content in (pickle.dumps({"a": 1}), None):
        if content is None:
            torch.save(state, file)
        else:
            file.write_bytes(content)
        respell(copy, weights={"sha256": hash_file(file)})
        with pytest.raises(TailfillError, match="begins like a pickle"):
            load_bundle(copy)
    file.rename(copy / "pytorch_model.bin")
    with pytest.raises(TailfillError, match=r"pytorch_model\.bin is a pickle"):
        load_bundle(copy)


def write_dicom(path, pixels, *, modality="DX", view="PA"):
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPClassUID, dataset.SOPInstanceUID = DigitalXRayImageStorageForPresentation, generate_uid()
    dataset.PatientName, dataset.PatientID = "Doe^Jane", "1234567"
    dataset.Modality, dataset.ViewPosition = modality, view
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelData = pixels.astype("<u2").tobytes()
    dcmwrite(path, dataset, enforce_file_format=True)


def test_every_kind_of_image_and_every_bad_file_has_its_row(exported, tmp_path, invoke):
    folder, rng = tmp_path / "mine", np.random.default_rng(0)
    (folder / "sub").mkdir(parents=True)
    grey = rng.integers(0, 256, (40, 50), dtype=np.uint8)
    Image.fromarray(grey).save(folder / "a.png")
    Image.fromarray(grey).save(folder / "sub" / "B.JPG", "JPEG")
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "wide.png")
    Image.fromarray(grey.astype(np.uint16) * 16).save(folder / "twelve.png")
    Image.fromarray(grey[:20, :20]).save(folder / "small.png")
    write_dicom(folder / "d.dcm", grey.astype(np.uint16) * 16, view="LL")
    write_dicom(folder / "ct.dcm", grey.astype(np.uint16), modality="CT")
    (folder / "torn.png").write_bytes((folder / "a.png").read_bytes()[:200])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    table, done = own_table(invoke, exported, folder, tmp_path / "out")
    rows = table.set_index("image_id")
    assert sorted(rows.index[rows["status"] == "error"]) == ["ct.dcm", "empty.jpg", "torn.png"]
    assert all(name in done.stderr for name in ("ct.dcm", "empty.jpg", "torn.png"))
    assert len(rows) == 9
    assert "other_files=1" in done.stderr
    bad, good = rows[rows["status"] == "error"], rows[rows["status"] == "ok"]
    assert bad["probability_Mass"].isna().all()
    assert bad["error"].notna().all()
    assert good["probability_Mass"].between(0, 1).all()
    assert good["decision_Hernia"].isna().all()  # it has no threshold
    assert good["decision_Effusion"].isin([0, 1]).all()
    assert rows.loc["a.png", "probability_Mass"] == pytest.approx(rows.loc["wide.png", "probability_Mass"], abs=1e-3)
    assert "hardly any contrast" in rows.loc["twelve.png", "caution"]
    assert "fewer than the 32" in rows.loc["small.png", "caution"]
    assert "seen none" in rows.loc["d.dcm", "caution"]
    assert "Doe" not in (tmp_path / "out" / "predictions.csv").read_text()
    _, again = own_table(invoke, exported, folder, tmp_path / "out")
    assert "nothing to do" in again.stderr


def test_names_that_are_no_text_and_pipes_cost_nobody_anything(exported, tmp_path, invoke):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("a.png", 'b,"c.png'):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)).save(folder / name)
    os.rename(folder / "a.png", os.fsencode(folder) + b"/\xff.png")
    (folder / "gone.png").symlink_to(folder / "nowhere")
    for name in ("pipe", "pipe.png"):
        os.mkfifo(folder / name)
    rows = own_table(invoke, exported, folder, tmp_path / "out")[0].set_index("image_id")
    assert rows["status"].to_dict() == {r"\xff.png": "ok", 'b,"c.png': "ok", "gone.png": "error"}
    written = pd.read_csv(tmp_path / "out" / "predictions.csv").set_index("image_id")
    assert list(written.index) == list(rows.index)


def test_bad_folders_are_refused_before_anything_is_written(exported, tmp_path, invoke):
    (tmp_path / "none").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no image")
    for images, weights, words in (
        ("missing", exported, "is no folder"), ("none", exported, "holds no image"),
        ("bad", exported, "none of its 1 images"), ("bad", tmp_path / "none", "is neither an exported classifier"),
    ):
        done = invoke("classify.predict", "--images", tmp_path / images, "--weights", weights, "--out",
                      tmp_path / "out")
        assert (done.code, words in done.stderr) == (2, True), done.stderr
        assert not (tmp_path / "out").exists()
