"""Means of raising the recovered share: legal settings, nothing trained into the rehearsal, gains that are planted."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rehearsal_gains
import rehearsal_means
from experiment import is_done, list_steps
from experiment_config import read_experiment
from rehearsal_changes import BASE, MADE_ANEW, MEANS, arms_of, shown_arms
from rehearsal_gains import READER, drawn_in, measure, tabulate
from rehearsal_means import LEARNT, cells_of, check, config_of, link, parse, run_means
from rehearsal_runs import Rehearsal, child_config, open_rehearsal
from withheld_toys import toy_frame, write_toy

from classify.arms.rivals import ARMS
from classify.learning.models import Card
from classify.rehearsal.choices import Cell
from cohort.errors import TailfillError
from cohort.stage import Stage
from cohort.tables import load_cohort
from cohort.withholding.cohorts import Thinning, write_thinned
from synth.judging.evidence import NEGATIVE

FINDINGS = ("Effusion", "Nodule")
STRENGTH = {"duplicate": 1.0, "synthetic": 1.4, "oracle": 2.0, "better": 1.7, "duplicate-harmonised": 1.0,
            "synthetic-harmonised": 1.2}
"""How well the logits of an arm, or of the arm of a means, know the labels."""


@pytest.fixture
def rehearsal(repository: Path, tmp_path: Path) -> Rehearsal:
    cohort = write_toy(tmp_path / "cohort", toy_frame(500, seed=4))
    (tmp_path / "weights").touch()
    words = ["--run", str(tmp_path / "run"), "--cohort", str(cohort), "--prepare.root", str(tmp_path),
             "--train.pretrained", str(tmp_path / "weights"), "--rehearsal.findings", json.dumps(FINDINGS),
             "--rehearsal.levels", "[10, 20]", "--rehearsal.max_overlap", "0.9"]
    return open_rehearsal(read_experiment([str(repository / "configs" / "rehearse_nih128.yaml"), *words], doc=None))


def finished(rehearsal: Rehearsal, cell: Cell | None = None) -> Path:
    """A run, the first where none is named, with stamps of its stages as their settings would have them, nothing else.
    """
    cell = cell or cells_of(rehearsal, level=10, n_seeds=None)[0]
    folder = rehearsal.folder / cell.name
    write_thinned(rehearsal.cohort_folder, Thinning(findings=cell.findings, level=10, seed=cell.seed),
                  thinned=folder / "cohort", withheld=folder / "oracle")
    (folder / "cache").mkdir()
    config = child_config(rehearsal, cell)
    for step in [step for step in list_steps(config) if step.stage in LEARNT]:
        weights = {"pretrained": Path(config["train"]["pretrained"])} if step.stage == "train" else {}
        settings = config[step.stage] | dict.fromkeys(weights, True)
        stage = Stage(step.stage, step.folder, config=settings, inputs=weights)
        stage.begin()
        stage.finish(outputs=[], counts={})
    (rehearsal.base / "generator" / "pipeline").mkdir(parents=True, exist_ok=True)
    return folder


NONE, SLOTS = frozenset[str](), frozenset({"arm", "train"})
IMAGES, CRITICS = SLOTS | {"generate", "filter"}, SLOTS | {"critic", "filter"}
LEFT = {
    BASE: NONE, "unfiltered": NONE, "guidance_2.5": IMAGES, "guidance_4": IMAGES, "from_real": IMAGES | {"plan"},
    "finetuning_50": IMAGES | {"finetune"}, "finetuning_400": IMAGES | {"finetune"}, "informed": IMAGES | {"finetune"},
    "folds": CRITICS, "folds_band": CRITICS, "folds_entropy": CRITICS, "loss_weight_0.3": SLOTS,
    "all_added_slots": SLOTS, "slots_30": SLOTS, "slots_150": SLOTS, "real_finish": SLOTS | {"critic"},
    "reconstructed_oracle": SLOTS | {"reconstruct"},
}
"""Kinds of the stages that a means makes anew."""


@pytest.mark.parametrize("name", MEANS)
def test_a_means_is_legal_and_makes_nothing_in_the_folders_of_the_rehearsal(name: str, rehearsal: Rehearsal) -> None:
    source, cell = finished(rehearsal), cells_of(rehearsal, level=None, n_seeds=None)[0]
    for _ in range(2):  # a second call finds its links
        check(rehearsal, [cell], [name])
    config = config_of(rehearsal, cell, name)
    experiment = read_experiment([str(Path(config["run"]) / "config.yaml")], doc=None)
    left = [step for step in list_steps(experiment.config) if step.stage in LEARNT and not is_done(step, experiment)]
    assert not [step for step in left if step.folder.resolve().is_relative_to(source)]
    assert {step.kind for step in left} == LEFT[name]
    anew = {stage for section in MEANS[name].changes for stage in MADE_ANEW.get(section, ())}
    assert {step.arm for step in left if step.kind == "train"} >= {
        arm for arm in config["arms"] if anew & set(ARMS[arm].needs)}  # their slots are others
    plain = config_of(rehearsal, cell, BASE)
    changed = {key for key in config if config[key] != plain.get(key)}
    other = {"run", "arms", "compare", "reconstruct", "expected_seconds"}
    assert changed - other == set(MEANS[name].changes) - {"reconstruct"}


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

    monkeypatch.setattr(rehearsal_gains, "logits_of", planted)
    names = [BASE, "guidance_4"]
    arms, shown = ({name: of(name, rehearsal) for name in names} for of in (arms_of, shown_arms))
    source = measure({name: [tmp_path / name / str(seed) for seed in range(3)] for name in names}, arms, cohort,
                     FINDINGS, n_draws=60)
    assert len(source.scored.patients) == len(frame) > 100
    drawn = {BASE: {"mean": (0.5, 0.8)}, "guidance_4": {}}
    table = tabulate(source, shown, drawn).set_index(["means", "arm", "finding"])
    assert table.loc[(BASE, "synthetic", "mean"), ["drawn", "drawn_if_real"]].tolist() == [0.5, 0.8]
    assert table.loc["guidance_4", "drawn"].isna().all()
    assert set(table.index.get_level_values("finding")) == {"mean", *FINDINGS}
    base, better = (table.loc[(name, "synthetic", "mean")] for name in names)
    assert 0 < base["gain"] < better["gain"] < better["oracle"]
    assert (base["against_base"], base["oracle"]) == (0, better["oracle"])
    assert better["against_base"] == pytest.approx(better["gain"] - base["gain"])
    assert better["share"] == pytest.approx(better["gain"] / better["oracle"])
    assert base["ci_low"] < base["share"] < base["ci_high"]
    harmonised = [table.loc[(name, "synthetic-harmonised", "mean")] for name in names]
    assert [row["against_base"] for row in harmonised] == [0, 0]  # the same plant, against the base's own look
    assert 0 < harmonised[1]["gain"] < base["gain"]


def test_what_cannot_be_tried_is_refused_before_anything_is_made(rehearsal: Rehearsal, tmp_path: Path) -> None:
    with pytest.raises(TailfillError, match="unknown means 'guidence_4'; did you mean 'guidance_4'"):
        parse(["x.yaml", "--means", "guidence_4"])
    with pytest.raises(TailfillError, match="--n-draws is 1; wanted: 100 or more"):
        parse(["x.yaml", "--n-draws", "1"])
    with pytest.raises(TailfillError, match="--dry-run"):
        parse(["x.yaml", "--dry-run"])
    with pytest.raises(TailfillError, match="--level 7: the rehearsal has 10, 20"):
        cells_of(rehearsal, level=7, n_seeds=None)
    with pytest.raises(TailfillError, match="--n-seeds is 9; wanted: 2 to 3"):
        cells_of(rehearsal, level=None, n_seeds=9)
    source, cells = finished(rehearsal), cells_of(rehearsal, level=None, n_seeds=None)
    with pytest.raises(TailfillError, match=r"seed_1/cohort: is no complete stage, which 'base' needs"):
        check(rehearsal, cells, [BASE])
    rehearsal.config["fill"] = {}
    with pytest.raises(TailfillError, match="a section fill; wanted: heads"):
        check(rehearsal, cells[:1], [BASE])
    link({"cohort": source / "cohort"}, folder=tmp_path / "means")
    with pytest.raises(TailfillError, match="means/cohort: is a link of other settings; wanted: remove"):
        link({"plan": source / "plan"}, folder=tmp_path / "means")


def test_the_lowest_level_is_asked_where_none_is_named(rehearsal: Rehearsal) -> None:
    assert {cell.level for cell in cells_of(rehearsal, level=None, n_seeds=2)} == {10}
    assert [cell.seed for cell in cells_of(rehearsal, level=20, n_seeds=2)] == [0, 1]


def test_who_asks_what_a_knowing_generator_brings_gets_one_of_the_whole_cohort_for_all_thinnings(
    rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = cells_of(rehearsal, level=10, n_seeds=2)
    for cell in cells:
        finished(rehearsal, cell)
    ran: list[tuple[Path, Path, set[str]]] = []
    monkeypatch.setattr(rehearsal_means, "run_all", lambda experiment, steps: ran.append(
        (experiment.folder, Path(experiment.config["cohort"]), {step.stage for step in steps})))
    proved: list[Path] = []
    monkeypatch.setattr(rehearsal_means, "prove_apart", lambda folders, **_: proved.extend(folders))
    folders = [run_means(rehearsal, cell, "informed") for cell in cells]
    known = ran[0][0]
    assert ran[0] == ran[2] == (known, rehearsal.cohort_folder, {"finetune"})
    for folder, cell, (thinning, cohort, stages) in zip(folders, cells, ran[1::2], strict=True):
        assert (folder / "generator").resolve() == (known / "generator").resolve()
        assert (thinning, cohort) == (folder, rehearsal.folder / cell.name / "cohort")
        assert stages >= {"generate", "filter", "arm", "train"}
        assert "finetune" not in stages
    run_means(rehearsal, cells[0], "reconstructed_oracle")
    assert not proved  # the proof would have to fail
    assert run_means(rehearsal, cells[0], "finetuning_50") in proved
    assert "finetune" in ran[-1][2]


def test_rehearsals_without_harmonised_arms_show_none(rehearsal: Rehearsal) -> None:
    assert shown_arms("informed", rehearsal) == ["synthetic", "synthetic-harmonised"]
    plain = replace(rehearsal, section=replace(rehearsal.section, arms=("real", "duplicate", "synthetic", "oracle")))
    assert shown_arms("informed", plain) == ["synthetic"]
    assert arms_of("informed", plain) == ("duplicate", "synthetic", "oracle")
    repeats = replace(rehearsal.section, arms=("duplicate", "synthetic", "oracle", "duplicate-harmonised"))
    assert shown_arms("informed", replace(rehearsal, section=repeats)) == ["synthetic"]


def test_what_was_asked_for_is_read_by_the_arm_that_knows_every_real_image(
    rehearsal: Rehearsal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mean of one finding that is drawn and one that is not; images that failed are left out."""
    cohort, cells = load_cohort(rehearsal.cohort_folder), cells_of(rehearsal, level=10, n_seeds=2)
    n, rng = 2000, np.random.default_rng(5)
    asked = pd.DataFrame(0, index=range(2 * n), columns=cohort.labels, dtype="Int8")
    asked.loc[: n - 1, FINDINGS] = (rng.random((n, 2)) < 0.5).astype(int)  # the rest: negatives
    pairs = {"charged_to": [FINDINGS[0]] * n + [NEGATIVE] * n, "seed": [*range(n), *range(n)], "init_image_id": None}
    rows = range(2 * n)
    made = pd.DataFrame({"sample_id": [f"{row:016x}" for row in rows], "status": ["error"] + ["ok"] * (2 * n - 1),
                         "path": [f"images/{row}.png" for row in rows]})
    tables = {"images.parquet": made, "plan.parquet": asked.assign(sample_id=made["sample_id"], **pairs)}
    val = cohort.split("val")
    known = {2 * n - 1: asked[1:], len(val): val}
    seen: list[Path] = []

    def read(model: object, features: int) -> np.ndarray:
        truth = known[features][cohort.labels].to_numpy(dtype=float)
        truth[:, cohort.labels.index(FINDINGS[1])] *= features == len(val)  # drawn in no image made
        return truth + np.random.default_rng(features).normal(size=truth.shape)

    monkeypatch.setattr(rehearsal_gains, "read_table", lambda file, schema: tables[file.name])
    monkeypatch.setattr(rehearsal_gains, "load_classifier", lambda stage: seen.append(stage) or (None, Card(
        model="test_convnext", labels=tuple(cohort.labels), image_size=32, mean=0.5, std=0.2)))
    monkeypatch.setattr(rehearsal_gains, "load_images", lambda paths, size, cache: len(paths))
    monkeypatch.setattr(rehearsal_gains, "load_features", lambda model, images, card, cache: images)
    monkeypatch.setattr(rehearsal_gains, "logits_of_features", read)
    found = drawn_in([tmp_path, tmp_path], cells, rehearsal, cohort)
    drawn, missing = (found[finding] for finding in FINDINGS)
    assert drawn[0] == pytest.approx(0.76, abs=0.04)  # a standard deviation apart
    assert missing[0] == pytest.approx(0.5, abs=0.05)
    assert min(drawn[1], missing[1]) > 0.65
    assert found["mean"] == pytest.approx(tuple(np.mean([drawn, missing], axis=0)))
    assert {stage.parent.name for stage in seen} == {READER}
    plain = replace(rehearsal, section=replace(rehearsal.section, arms=("real", "duplicate", "synthetic", "oracle")))
    assert drawn_in([tmp_path], cells[:1], plain, cohort) == {}
