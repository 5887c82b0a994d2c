"""The table of ingredients: weights that train accepts, references for its numbers, and recipes that are legal."""

from pathlib import Path

import baseline_ingredients as ingredients
import imagenet_weights
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.special import expit
from sklearn.metrics import average_precision_score, roc_auc_score

from classify.learning.models import Card, build_classifier, save_card, save_weights
from classify.learning.settings import TrainConfig
from classify.learning.start import WEIGHTS_FILE
from classify.pretrain import PretrainConfig
from cohort.config import Run
from cohort.errors import TailfillError
from cohort.stage import Stage
from cohort.tables import Cohort
from synth.measuring.encoders import load_lite0


@pytest.fixture(scope="module")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "lite0.safetensors"
    imagenet_weights.main([str(file)])
    return file


def test_the_file_makes_the_encoders_features_of_grey_images(lite0: Path) -> None:
    model, grey = build_classifier("tf_efficientnet_lite0", 3, pretrained=str(lite0)).eval(), torch.rand(2, 1, 64, 64)
    with torch.inference_mode():
        found, wanted = (network.forward_features(images) for network, images in
                         ((model, grey), (load_lite0(), grey.expand(-1, 3, -1, -1))))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ingredients.RECIPES)
def test_every_recipe_is_one_that_train_accepts(name: str, lite0: Path, tmp_path: Path) -> None:
    """As the command line passes them: words that the section's types read."""
    made = ingredients.VICREG
    save_card(Card(model=made["model"], image_size=made["image_size"], labels=[], mean=0.5, std=0.25), tmp_path)
    (tmp_path / WEIGHTS_FILE).touch()
    found = {"{lite0}": lite0, "{vicreg}": tmp_path}
    settings = ingredients.settings_of(ingredients.RECIPES[name], {}, found.__getitem__)
    assert not [value for value in settings.values() if str(value).startswith("{")]
    words = {"null": None, "true": True}
    TrainConfig(**{key: words.get(str(value), value) for key, value in settings.items()})


def test_a_start_is_made_when_a_recipe_names_it_of_the_size_that_is_set(
    lite0: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[object, ...]] = []
    monkeypatch.setattr(ingredients, "call", lambda *words: called.append(words))
    monkeypatch.setattr(ingredients, "load_lite0", lambda: pytest.fail("the file is there"))
    run = Run(run=str(tmp_path), cohort=str(tmp_path / "cohort"))
    (tmp_path / "lite0.safetensors").symlink_to(lite0)
    fixed = {"image_size": "64", "steps": "3"}
    assert ingredients.find_start("{lite0}", run, tmp_path, fixed=fixed) == tmp_path / "lite0.safetensors"
    assert not called
    assert ingredients.find_start("{vicreg}", run, tmp_path, fixed=fixed) == tmp_path / "pretrain"
    (words,) = called
    assert words[0] == "classify.pretrain"
    assert {f"--run={tmp_path}", "--pretrain.image_size=64", "--pretrain.steps=400"} <= set(words)
    PretrainConfig(**ingredients.VICREG)  # legal


def test_ensembles_are_of_recipes_and_no_recipe_bears_an_ensemble_s_name() -> None:
    assert {member for members in ingredients.ENSEMBLES.values() for member in members} <= ingredients.RECIPES.keys()
    assert not ingredients.ENSEMBLES.keys() & ingredients.RECIPES.keys()


def test_an_ensemble_is_the_mean_probability_of_recipes_that_were_all_run() -> None:
    name, members = next(iter(ingredients.ENSEMBLES.items()))
    rng = np.random.default_rng(7)
    logits = {member: rng.normal(size=(5, 2)).astype(np.float32) for member in members}
    found = ingredients.ensembles_of(logits)
    assert list(found) == [name]
    np.testing.assert_allclose(expit(found[name]), np.mean([expit(one) for one in logits.values()], axis=0), rtol=1e-5)
    assert not ingredients.ensembles_of({members[0]: logits[members[0]]})


def cohort_of(n: int) -> Cohort:
    rng = np.random.default_rng(3)
    frame = pd.DataFrame({"patient_id": [f"p{i // 2}" for i in range(n)], "split": ["train", "val"] * (n // 2),
                          "A": (rng.random(n) < 0.4).astype(int), "B": (rng.random(n) < 0.1).astype(int)})
    frame = frame.astype({"A": "Int8", "B": "Int8"})
    frame.loc[3, "A"] = pd.NA
    return Cohort(folder=Path("unused"), frame=frame, labels=["A", "B"], groups={"A": "head", "B": "tail"}, roots={},
                  salt="s")


def test_values_are_scikit_learns_on_validation_images_alone() -> None:
    cohort = cohort_of(200)
    val, logits = cohort.split("val"), np.random.default_rng(4).normal(size=(100, 2)).astype(np.float32)
    draws = np.ones((val["patient_id"].nunique(), 1), dtype=np.uint16)
    found = ingredients.measure(logits, cohort, draws)
    known = val["A"].notna().to_numpy()
    y = [val["A"].to_numpy(dtype=float, na_value=np.nan)[known], val["B"].to_numpy(dtype=float)]
    z = [logits[known, 0], logits[:, 1]]
    assert found["AUROC head"][0] == pytest.approx(roc_auc_score(y[0], z[0]))
    assert found["AUROC tail"][0] == pytest.approx(roc_auc_score(y[1], z[1]))
    wanted = np.mean([average_precision_score(a, b) for a, b in zip(y, z, strict=True)])
    assert found["mAP"][0] == pytest.approx(wanted)
    assert np.isnan(found["AUROC medium"][0])  # the group has no class


def test_other_weights_in_the_same_folder_are_measured_anew(tmp_path: Path) -> None:
    paths, found = [f"{i}.png" for i in range(4)], []
    for path in paths:
        Image.fromarray(np.random.default_rng(6).integers(0, 256, (32, 32), dtype=np.uint8)).save(tmp_path / path)
    frame = pd.DataFrame({"root": "r", "path": paths, "split": "val"})
    cohort = Cohort(folder=tmp_path, frame=frame, labels=["A", "B"], groups={}, roots={"r": tmp_path}, salt="s")
    stage = Stage("train", tmp_path / "recipe" / "train" / "real" / "seed_0", config={}, inputs={})
    stage.begin()
    save_card(Card(model="test_convnext", labels=("A", "B"), image_size=32, mean=0.5, std=0.2), stage.folder)
    for seed in range(2):
        torch.manual_seed(seed)
        save_weights(build_classifier("test_convnext", 2).state_dict(), stage.folder / "ema.safetensors")
        stage.finish(outputs=["ema.safetensors"], counts={})
        found += [ingredients.validation_logits(stage.folder, cohort, tmp_path / "cache") for _ in range(2)]
    assert found[0].shape == (4, 2)
    assert (found[0] == found[1]).all()
    assert (found[2] == found[3]).all()
    assert not np.allclose(found[0], found[2])


def test_a_table_shows_the_paired_difference_from_the_first_recipe() -> None:
    rng = np.random.default_rng(5)
    first = {column: rng.random(200) for column in ingredients.COLUMNS}
    better = {column: values + 0.25 for column, values in first.items()}
    table = ingredients.table_of({"a": first, "b": better}, {"a": 1.0, "b": 2.04})
    assert list(table["difference of mAP"]) == ["0.000 (0.000 to 0.000)", "0.250 (0.250 to 0.250)"]
    assert list(table["minutes"]) == [1.0, 2.0]


@pytest.mark.parametrize("word", ["steps", "=3"])
def test_a_setting_without_key_or_value_is_refused_before_any_work(tmp_path: Path, word: str) -> None:
    options = ingredients.parse(["--config", "c.yaml", "--out", str(tmp_path / "out"), "--set", "lr=1e-3", word])
    with pytest.raises(TailfillError, match=f"--set {word}: is no setting"):
        ingredients.run_recipes(options)
    assert not (tmp_path / "out").exists()


def test_an_unknown_recipe_is_refused_before_any_work(tmp_path: Path) -> None:
    options = ingredients.parse(["--config", "c.yaml", "--out", str(tmp_path / "out"), "--only", "nonsense"])
    with pytest.raises(TailfillError, match="no recipe's name begins so"):
        ingredients.run_recipes(options)
    assert not (tmp_path / "out").exists()
