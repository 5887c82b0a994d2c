"""Out-of-fold critics in the filter: each reads the images made and what it has not learnt from, and nothing else."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cohort.errors import TailfillError
from cohort.pipeline import fold_seeds
from cohort.provenance import FILE, write_patients
from cohort.stage import Stage, hash_file
from cohort.tables import Cohort
from synth.filter import FilterConfig
from synth.judging.critic import critic_folders, fold_critics
from synth.judging.gathering import Gatherer
from synth.judging.reading import Share

SALT, SIZE, N = "pepper", 8, 24


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    """24 grey images of 12 patients, of train, validation and test by turns."""
    (tmp_path / "pixels").mkdir()
    for i in range(N):
        Image.fromarray(np.full((SIZE, SIZE), 10 * i, np.uint8)).save(tmp_path / "pixels" / f"{i}.png")
    frame = pd.DataFrame({
        "image_id": [f"i{i}" for i in range(N)], "root": "r", "path": [f"{i}.png" for i in range(N)],
        "patient_id": [f"p{i // 2}" for i in range(N)], "view": "PA",
        "split": [("train", "val", "train", "test")[i // 2 % 4] for i in range(N)], "Hernia": [i % 2 for i in range(N)],
    }).astype({"Hernia": "Int8"})
    return Cohort(frame=frame, labels=["Hernia"], groups={"Hernia": "tail"}, roots={"r": tmp_path / "pixels"},
                  salt=SALT, folder=tmp_path)


def learn(folder: Path, patients: list[str]) -> None:
    """A complete training that has learnt from some patients."""
    stage = Stage("train", folder, config={}, inputs={})
    stage.begin()
    write_patients(folder, patients, salt=SALT)
    stage.finish(outputs=[FILE], counts={})


def write_folds(run: Path, cohort: Cohort) -> dict[str, set[str]]:
    """Two trained folds; what each was not to learn from, by the name of its reading."""
    images = cohort.split("train", "val")
    patients = sorted(images["patient_id"].unique())
    held_out = {}
    for k, seed in enumerate(fold_seeds(2)):
        learn(run / "train" / "fold" / f"seed_{seed}", [p for i, p in enumerate(patients) if i % 2 != k])
        held_out[f"fold_{seed}"] = set(images.loc[images["patient_id"].isin(patients[k::2]), "image_id"])
    return held_out


@dataclass
class Grey:
    """A reader for tests: the mean grey, and which greys it was shown."""

    name: str
    key: str = "1"
    width: int = 1

    def __post_init__(self) -> None:
        self.seen: list[int] = []

    def read(self, images: np.ndarray) -> np.ndarray:
        self.seen += images[:, 0, 0].tolist()
        return images.mean(axis=(1, 2), dtype=np.float64)[:, None].astype(np.float32)


def test_each_reads_what_was_held_out_and_what_was_made(cohort: Cohort, tmp_path: Path) -> None:
    expected = write_folds(tmp_path, cohort)
    folds = fold_critics(tmp_path, 2, cohort)
    held_out = {f"fold_{seed}": fold.held_out for seed, fold in folds.items()}
    assert held_out == expected
    file = tmp_path / "made.png"
    Image.fromarray(np.full((SIZE, SIZE), 255, np.uint8)).save(file)
    made = pd.DataFrame({"sample_id": ["s"], "path": ["made.png"], "sha256": [hash_file(file)], "height": SIZE,
                         "width": SIZE, "view": "PA", "charged_to": "Hernia", "Hernia": 1,
                         "seed": 7, "init_image_id": [cohort.split("train")["image_id"].iloc[0]]})
    readers = [Grey(name) for name in held_out]
    gatherer = Gatherer(cohort=cohort, made=made, folder=tmp_path, readers={"fold": readers}, run=tmp_path, threads=1,
                        held_out=held_out)
    sources = gatherer.sources()
    gatherer.read(sources, share=Share())
    evidence = gatherer.evidence(sources, scarce=["Hernia"])
    assert evidence.noise is not None
    assert evidence.noise.tolist() == [-1]  # and from no noise alone
    frame = cohort.frame.set_index("image_id")
    assert evidence.made.patients.tolist() == [cohort.split("train")["patient_id"].iloc[0]]  # it was drawn from that
    for reader in readers:
        images = evidence.folds[reader.name]
        greys = images.read(reader.name)[:, 0]
        assert {f"i{grey / 10:.0f}" for grey in greys} == held_out[reader.name]
        told = frame.loc[[f"i{grey / 10:.0f}" for grey in greys]]
        assert images.patients.tolist() == told["patient_id"].tolist()
        assert images.labels["Hernia"].tolist() == told["Hernia"].tolist()
        assert (images.load([1, 0])[:, 0, 0] == greys[[1, 0]]).all()
        assert sorted(reader.seen) == sorted([*greys.astype(int), 255])
        assert evidence.made.read(reader.name).tolist() == [[255.0]]
    assert evidence.critics == ()


def test_what_has_learnt_too_much_is_refused(cohort: Cohort, tmp_path: Path) -> None:
    """A fold that holds nothing out, one that knows a test patient, and a plain critic that knows validation."""
    write_folds(tmp_path, cohort)
    with pytest.raises(TailfillError, match="no complete 'critic' stage"):
        fold_critics(tmp_path, 3, cohort)
    for seed, patients, message in ((2, cohort.split("train", "val")["patient_id"], "wanted: one fold less"),
                                    (3, cohort.split("test")["patient_id"], "patients of the splits test")):
        run = tmp_path / str(seed)
        write_folds(run, cohort)
        for file in (run / "train" / "fold" / "seed_2000").iterdir():
            file.unlink()
        learn(run / "train" / "fold" / "seed_2000", list(patients))
        with pytest.raises(TailfillError, match=message):
            fold_critics(run, 2, cohort)
    learn(tmp_path / "train" / "real" / "seed_1000", ["p0", "p1"])
    with pytest.raises(TailfillError, match="1 patients of the splits val, test"):
        critic_folders(tmp_path, [1000], cohort)


@pytest.mark.parametrize("folds", [1, -1, 21])
def test_the_number_of_folds_is_checked(folds: int) -> None:
    with pytest.raises(TailfillError, match=f"filter.folds is {folds}; wanted: 0 for none, or 2 to 20"):
        FilterConfig(folds=folds)
