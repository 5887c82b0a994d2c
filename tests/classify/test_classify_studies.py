"""From images to studies, and single models beside an ensemble: by brute force, and through the compare command."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from fabricated_predictions import LABELS, fabricate
from scipy.special import expit

from classify.compare import CompareConfig, registration
from classify.comparison.measuring import groups_of, read_scored
from classify.comparison.metrics import ClassMetrics
from classify.ensembling.averaging import average_tables
from classify.ensembling.scores import COLUMNS, ENSEMBLE
from classify.ensembling.studies import any_positive, pool_studies, study_shares
from cohort.config import Run
from cohort.errors import TailfillError
from cohort.stage import Stage
from cohort.tables import load_cohort, predictions_schema, read_table, write_table

VIEWS = ["PA", "LATERAL", "AP", None]


def with_studies(folder, **sizes):
    """A run in which patients have one study of two images, two studies, or images without a study."""
    made = fabricate(folder)
    frame = made.frame
    number = frame.index // 2
    frame["study_id"] = np.where(number % 3 == 0, "s" + number.astype(str),
                                 np.where(number % 3 == 1, "s" + frame.index.astype(str), None))
    frame["view"] = [VIEWS[i % 4] for i in range(len(frame))]
    made.write_cohort()
    return replace(made, **sizes).predict(gain=0.5)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return with_studies(tmp_path_factory.mktemp("studies"), arms=("real",), n_seeds=1)


def brute_force(images: pd.DataFrame, logits: np.ndarray) -> dict[str, tuple[np.ndarray, list]]:
    """First image of each study to its probabilities and labels, one study after the other."""
    keys = [(one.patient_id, one.study_id) if isinstance(one.study_id, str) else one.image_id
            for one in images.itertuples()]
    found = {}
    for key in dict.fromkeys(keys):
        rows = [at for at, other in enumerate(keys) if other == key]
        lateral = [at for at in rows if images["view"].iloc[at] == "LATERAL"]
        sides = [side for side in (lateral, [at for at in rows if at not in lateral]) if side]
        probability = np.mean([np.mean(expit(logits[side]), axis=0) for side in sides], axis=0)
        labels = []
        for label in LABELS:
            values = [images[label].iloc[at] for at in rows]
            known = [value for value in values if not pd.isna(value)]
            labels.append(1 if 1 in known else None if len(known) < len(values) else 0)
        found[images["image_id"].iloc[rows[0]]] = (probability, labels)
    return found


def test_a_study_has_the_mean_probability_of_its_sides_and_any_positive_label(made):
    cohort = load_cohort(made.run / "cohort")
    scored = read_scored({("real", 0): made.run / "predictions" / "real" / "seed_0"}, cohort, weights="ema")
    pooled, studies = pool_studies(scored, cohort)
    assert groups_of(studies) == groups_of(cohort)
    for split, part in pooled.items():
        images = cohort.split(split).sort_values("image_id", ignore_index=True)
        wanted = brute_force(images, scored[split].logits["real", 0, "ema"])
        rows = studies.split(split)
        assert len(rows) < len(images)
        assert list(rows["image_id"]) == sorted(wanted)
        for at, name in enumerate(rows["image_id"]):
            probability, labels = wanted[name]
            np.testing.assert_allclose(expit(part.logits["real", 0, "ema"][at]), probability, atol=1e-12)
            assert [None if np.isnan(v) else int(v) for v in part.labels[at]] == labels
            assert [None if pd.isna(v) else int(v) for v in rows[LABELS].iloc[at]] == labels
        assert part.n_patients == scored[split].n_patients


def test_a_study_has_a_view_where_all_its_images_have_one(made):
    cohort = load_cohort(made.run / "cohort")
    scored = read_scored({("real", 0): made.run / "predictions" / "real" / "seed_0"}, cohort, weights="ema")
    studies = pool_studies(scored, cohort)[1].split("test").set_index("image_id")
    for name, view in cohort.split("test").set_index("image_id")["view"].items():
        if name in studies.index:
            study = studies.loc[name]
            same = cohort.frame[["patient_id", "study_id"]].eq(study[["patient_id", "study_id"]]).all(axis=1)
            alone = not isinstance(study["study_id"], str) or same.sum() == 1
            assert (study["view"] if isinstance(study["view"], str) else None) == (
                view if alone and isinstance(view, str) else None)


def test_shares_sum_to_one_and_a_single_image_is_unchanged(made):
    images = made.frame[made.frame["split"] == "test"]
    shares = study_shares(images).toarray()
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert ((shares > 0).sum(axis=0) == 1).all()
    alone = images.assign(study_id=None)
    np.testing.assert_array_equal(study_shares(alone).toarray(), np.eye(len(images)))


def test_any_positive_is_the_or_of_values_that_may_be_unknown():
    values = [(1, np.nan, 1), (np.nan, 0, np.nan), (0, 0, 0), (1, 0, 1)]
    labels = np.array([value[:2] for value in values], dtype=float).reshape(-1, 1)
    found = any_positive(labels, np.repeat(np.arange(4), 2))[:, 0]
    np.testing.assert_array_equal(found, [value[2] for value in values])


def test_compare_by_study_counts_studies_and_fixes_the_unit(tmp_path, monkeypatch):
    made = with_studies(tmp_path)
    run = Run(run=str(tmp_path), arms=made.arms)
    plain, studies = registration(run, CompareConfig()), registration(run, CompareConfig(unit="study"))
    assert "unit" not in plain
    assert studies["unit"] == "study"
    assert registration(replace(run, members={"r96": {}, "r64": {}}), CompareConfig())["members"] == ["r64", "r96"]
    (tmp_path / "endpoint.json").write_text(json.dumps(plain | {"n_seeds": 3}))
    with pytest.raises(SystemExit):
        made.compare(monkeypatch, "--compare.unit", "study")
    (tmp_path / "endpoint.json").write_text(json.dumps(studies | {"n_seeds": 3}))
    stamp = made.compare(monkeypatch, "--compare.unit", "study")
    cohort = load_cohort(tmp_path / "cohort")
    folders = {(arm, seed): tmp_path / "predictions" / arm / f"seed_{seed}" for arm in made.arms for seed in range(3)}
    pooled, _ = pool_studies(read_scored(folders, cohort, weights="ema"), cohort)
    test = pooled["test"]
    assert f"Scored by study: {len(test.patients)} test studies of 240 images" in " ".join(
        stamp["extra"]["verdict"]["sentences"])
    assert stamp["counts"]["test_images"] == len(test.patients) < (cohort.frame["split"] == "test").sum()
    table = made.table("comparison")
    value = table[(table["arm"] == "real") & table["rival"].isna() & (table["label"] == "Effusion")
                  & (table["metric"] == "AP")]["value"].item()
    each = [ClassMetrics(labels=test.labels[:, 0], logits=test.logits["real", seed, "ema"][:, 0])(
        np.ones((len(test.patients), 1)))[0, 0] for seed in range(3)]
    assert value == pytest.approx(np.mean(each), abs=1e-12)


def test_an_unknown_unit_is_refused():
    with pytest.raises(TailfillError, match=r"compare\.unit is 'patient'; wanted: image, study"):
        CompareConfig(unit="patient")


def test_compare_reads_the_ensemble_and_shows_each_member_beside_it(tmp_path, monkeypatch):
    made = replace(fabricate(tmp_path), n_seeds=2)
    schema = predictions_schema(LABELS)
    for arm in made.arms:
        for seed in range(made.n_seeds):
            single = [made.predictions(arm, seed + 10 * at).assign(arm=f"{arm}@{member}", seed=seed)
                      for at, member in enumerate("ab")]
            joined = average_tables(single).assign(arm=arm)
            places = {f"predictions/{arm}@a": single[0], f"predictions/{arm}@b": single[1], f"ensemble/{arm}": joined}
            for place, table in places.items():
                stage = Stage(place.split("/", maxsplit=1)[0], tmp_path / place / f"seed_{seed}", config={}, inputs={})
                stage.begin()
                write_table(table, stage.folder / "predictions.parquet", schema)
                stage.finish(outputs=["predictions.parquet"], counts={"rows": len(table)})
    stamp = made.compare(monkeypatch, "--members", '{"a": {}, "b": {"image_size": 64}}')
    table = made.table("members")
    assert list(table.columns) == list(COLUMNS)
    shown = table[(table["split"] == "test") & (table["label"] == "all") & (table["metric"] == "AP")]
    assert set(shown["arm"]) == set(made.arms)
    for _, part in shown.groupby(["arm", "seed"]):
        assert list(part["model"]) == ["a", "b", ENSEMBLE]
    values = shown.groupby(["arm", "model"])["value"].mean()
    compared = made.table("comparison")
    plain = compared[compared["rival"].isna() & (compared["label"] == "all") & (compared["metric"] == "AP")]
    for arm, value in plain.set_index("arm")["value"].items():
        assert values[arm, ENSEMBLE] == pytest.approx(value)
        assert values[arm, ENSEMBLE] > values[arm][["a", "b"]].max()  # two independent errors: an average helps
    assert "Each model of synthetic by itself" in stamp["extra"]["verdict"]["members"]
    assert {"predict real@a seed 0", "predict real seed 0"} <= stamp["inputs"].keys()


def test_compare_wants_every_ensemble_where_there_are_members(tmp_path, monkeypatch, capsys):
    made = replace(fabricate(tmp_path), n_seeds=1)
    with pytest.raises(SystemExit):
        made.compare(monkeypatch, "--members", '{"a": {}, "b": {}}')
    assert "run: python -m classify.ensemble" in capsys.readouterr().err


def test_folds_are_shown_on_test_and_out_of_fold(tmp_path, monkeypatch):
    made = replace(fabricate(tmp_path), arms=("duplicate", "synthetic"), n_seeds=2).predict()
    frame, folds = made.frame, np.array([0, 1])
    number = np.where(frame["split"] == "test", 2, (frame.index // 2) % 2)
    tables = []
    for at in folds:
        own = made.predictions("real", int(at)).assign(arm="fold", seed=2000 + at, fold=at)
        keep = np.tile((number == at) | (number == 2), 2)
        tables.append(own[keep].reset_index(drop=True))
    test = [one[one["split"] == "test"].reset_index(drop=True) for one in tables]
    joined = pd.concat([one[one["split"] != "test"] for one in tables] + [average_tables(test).assign(fold=2)])
    for place, seed, table in (("predictions", 2000, tables[0]), ("predictions", 2001, tables[1]),
                               ("ensemble", 2000, joined.assign(seed=2000))):
        stage = Stage("predict", tmp_path / place / "fold" / f"seed_{seed}", config={}, inputs={})
        stage.begin()
        write_table(table, stage.folder / "predictions.parquet", predictions_schema(LABELS))
        stage.finish(outputs=["predictions.parquet"], counts={"rows": len(table)})
    made.compare(monkeypatch, "--ensemble.folds", "2")
    shown = made.table("members")
    shown = shown[(shown["label"] == "all") & (shown["metric"] == "AUROC")]
    rows = dict(zip(zip(shown["split"], shown["model"], strict=True), shown["value"], strict=True))
    assert set(rows) == {("test", "fold 0"), ("test", "fold 1"), ("test", ENSEMBLE), ("out of fold", ENSEMBLE)}
    part = read_table(tmp_path / "ensemble" / "fold" / "seed_2000" / "predictions.parquet")
    part = part[(part["weights"] == "ema") & (part["split"] != "test")]
    each = [ClassMetrics(labels=part[label].to_numpy(dtype=float, na_value=np.nan),
                         logits=part[f"logit_{label}"].to_numpy(dtype=float))(np.ones((len(part), 1)))[1, 0]
            for label in LABELS]
    assert rows["out of fold", ENSEMBLE] == pytest.approx(np.nanmean(each))
