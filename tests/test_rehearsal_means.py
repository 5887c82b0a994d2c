"""Means of raising the recovered share: legal settings, nothing trained into the rehearsal, gains that are planted."""

import json
from pathlib import Path

import numpy as np
import pytest
import rehearsal_means
import yaml
from experiment_config import read_experiment
from rehearsal_means import BASE, MADE_ANEW, MEANS, arms_of, cells_of, config_of, link, measure, parse, tabulate
from rehearsal_runs import Rehearsal, open_rehearsal
from withheld_toys import toy_frame, write_toy

from cohort.errors import TailfillError
from cohort.tables import load_cohort
from cohort.withholding.cohorts import Thinning, write_thinned

FINDINGS = ("Effusion", "Nodule")
STRENGTH = {"duplicate": 1.0, "synthetic": 1.4, "oracle": 2.0, "better": 1.7}
"""How well the logits of an arm, or of the arm of a means, know the labels."""


@pytest.fixture
def rehearsal(repository: Path, tmp_path: Path) -> Rehearsal:
    cohort = write_toy(tmp_path / "cohort", toy_frame(500, seed=4))
    (tmp_path / "weights").touch()
    words = ["--run", str(tmp_path / "run"), "--cohort", str(cohort), "--prepare.root", str(tmp_path),
             "--train.pretrained", str(tmp_path / "weights"), "--rehearsal.findings", json.dumps(FINDINGS),
             "--rehearsal.levels", "[10, 20]", "--rehearsal.max_overlap", "0.9"]
    return open_rehearsal(read_experiment([str(repository / "configs" / "rehearse_nih128.yaml"), *words], doc=None))


def thinned(rehearsal: Rehearsal, *, level: int = 10) -> Path:
    """The first run at a level, as far as its cohorts."""
    cell = cells_of(rehearsal, level=level, n_seeds=None)[0]
    folder = rehearsal.folder / cell.name
    write_thinned(rehearsal.cohort_folder, Thinning(findings=cell.findings, level=level, seed=0),
                  thinned=folder / "cohort", withheld=folder / "oracle")
    return folder


@pytest.mark.parametrize("name", MEANS)
def test_a_means_is_a_legal_configuration_and_links_only_what_it_does_not_touch(
    name: str, rehearsal: Rehearsal
) -> None:
    source, means = thinned(rehearsal), MEANS[name]
    for place in ("cache", "plan", "generator", "images", "synthetic", "train/real/seed_1000",
                  *(f"{stage}/{arm}/seed_0" for stage in ("arms", "train") for arm in arms_of(means))):
        (source / place).mkdir(parents=True, exist_ok=True)
    (rehearsal.base / "generator" / "pipeline").mkdir(parents=True)
    cell = cells_of(rehearsal, level=None, n_seeds=None)[0]
    config = config_of(rehearsal, cell, name)
    folder = Path(config["run"])
    link(source, folder, means)
    plain = config_of(rehearsal, cell, BASE)
    assert {key for key in config if config[key] != plain.get(key)} - {"run", "arms", "compare"} == set(means.changes)
    linked = {place.relative_to(folder).as_posix() for place in folder.rglob("*") if place.is_symlink()}
    anew = {stage for section in means.changes for stage in MADE_ANEW.get(section, ())}
    folders = {"plan": "plan", "finetune": "generator", "generate": "images", "filter": "synthetic"}
    assert linked & set(folders.values()) == {place for stage, place in folders.items() if stage not in anew}
    trained = {place for place in linked if place.startswith("train/") and place != "train/real"}
    touched = set(means.changes) - MADE_ANEW.keys()  # then the very repeats and the oracle are other ones
    assert trained == (set() if touched else {"train/duplicate", "train/oracle"} | (
        set() if anew else {f"train/{means.arm}"}))
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    assert read_experiment([str(file)], doc=None).config["arm"] == config["arm"]


def test_planted_gains_come_out_measured_on_all_validation_images(
    rehearsal: Rehearsal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = load_cohort(rehearsal.cohort_folder)
    frame = cohort.split("val")

    def planted(folder: Path, cohort: object, arm: str) -> np.ndarray:
        strength = STRENGTH["better" if (folder.parent.name, arm) == ("guidance_4", "synthetic") else arm]
        rng = np.random.default_rng(int(folder.name))
        return (strength * frame[load_cohort(rehearsal.cohort_folder).labels].to_numpy(dtype=float)
                + rng.normal(size=(len(frame), 4))).astype(np.float32)

    monkeypatch.setattr(rehearsal_means, "logits_of", planted)
    names = [BASE, "guidance_4"]
    source = measure({name: [tmp_path / name / str(seed) for seed in range(3)] for name in names}, cohort, FINDINGS,
                     n_draws=60)
    assert len(source.scored.patients) == len(frame) > 100
    table = tabulate(source, names).set_index(["means", "finding"])
    assert set(table.index.get_level_values("finding")) == {"mean", *FINDINGS}
    base, better = table.loc[(BASE, "mean")], table.loc[("guidance_4", "mean")]
    assert 0 < base["gain"] < better["gain"] < better["oracle"]
    assert (base["against_base"], base["oracle"]) == (0, better["oracle"])
    assert better["against_base"] == pytest.approx(better["gain"] - base["gain"])
    assert better["share"] == pytest.approx(better["gain"] / better["oracle"])
    assert base["share_low"] < base["share"] < base["share_high"]


def test_what_the_rehearsal_does_not_have_is_refused(rehearsal: Rehearsal, tmp_path: Path) -> None:
    with pytest.raises(TailfillError, match="unknown means 'guidence_4'; did you mean 'guidance_4'"):
        parse(["x.yaml", "--means", "guidence_4"])
    with pytest.raises(TailfillError, match="--level 7: the rehearsal has 10, 20"):
        cells_of(rehearsal, level=7, n_seeds=None)
    with pytest.raises(TailfillError, match="--n-seeds is 9; wanted: 2 to 3"):
        cells_of(rehearsal, level=None, n_seeds=9)
    folder = thinned(rehearsal)
    (folder / "cache").mkdir()
    with pytest.raises(TailfillError, match="train/real: is missing; wanted: a complete rehearsal"):
        link(folder, tmp_path / "means", MEANS[BASE])


def test_the_lowest_level_is_asked_where_none_is_named(rehearsal: Rehearsal) -> None:
    assert {cell.level for cell in cells_of(rehearsal, level=None, n_seeds=2)} == {10}
    assert [cell.seed for cell in cells_of(rehearsal, level=20, n_seeds=2)] == [0, 1]
