"""The compare command on made-up predictions: tables, checks, registration, verdict."""

import json

import pandas as pd
import pytest
from fabricated_predictions import ARMS, LABELS, Fake, fabricate
from sklearn.metrics import average_precision_score, roc_auc_score

from classify.compare import CompareConfig, Endpoint, Margins, check_registration, pairs_of, registration
from classify.comparison.metrics import METRICS, metrics_schema
from cohort.config import Run
from cohort.errors import TailfillError
from cohort.tables import comparison_schema


@pytest.fixture
def fake(tmp_path) -> Fake:
    return fabricate(tmp_path / "run")


def test_tables_are_complete_and_agree_with_scikit_learn(fake, monkeypatch):
    fake.arms = ARMS[:4]
    stamp = fake.predict(gain=2.0).compare(monkeypatch)
    comparison, metrics = fake.table("comparison"), fake.table("metrics")
    comparison_schema().validate(comparison)
    metrics_schema().validate(metrics)
    pairs = [tuple(pair) for pair in stamp["extra"]["pairs"]]
    assert set(pairs) == {("oversample", "real"), ("duplicate", "real"), ("synthetic", "real"),
                          ("synthetic", "oversample"), ("synthetic", "duplicate")}
    n_rows = len(METRICS) * (len(LABELS) + 5)
    assert len(comparison) == n_rows * (len(fake.arms) + len(pairs)) == stamp["counts"]["rows"]
    assert len(metrics) == n_rows * len(fake.arms) * 3 * 2 * 2
    test = fake.predictions("duplicate", 1).query("split == 'test' and weights == 'ema'")
    known = test["Nodule"].notna()
    y, z = test.loc[known, "Nodule"].astype(int), test.loc[known, "logit_Nodule"]
    for metric, function in (("AP", average_precision_score), ("AUROC", roc_auc_score)):
        found = metrics.query("arm == 'duplicate' and seed == 1 and weights == 'ema' and split == 'test' and "
                              f"label == 'Nodule' and metric == '{metric}'")
        assert found["value"].item() == pytest.approx(function(y, z), abs=1e-12)
    thresholds = fake.table("thresholds")
    assert set(thresholds.loc[thresholds["threshold"].isna(), "label"]) == {"Fibrosis"}


def test_a_group_of_findings_with_few_train_images_cuts_across_the_others(fake, monkeypatch):
    train = fake.frame.assign(image_id=[f"t{n:04}" for n in range(len(fake.frame))], split="train",
                              patient_id=[f"q{n}" for n in range(len(fake.frame))], **dict.fromkeys(LABELS, 0))
    many = pd.DataFrame({"Effusion": [1] * 200 + [0] * 120, "Edema": [1] * 199 + [0] * 121})
    fake.frame = pd.concat([fake.frame, train.assign(**many)], ignore_index=True)
    fake.write_cohort()
    fake.frame = fake.frame[fake.frame["split"] != "train"].reset_index(drop=True)
    fake.predict().compare(monkeypatch)
    rows = fake.table("comparison").query("arm == 'synthetic' and rival == 'duplicate'")
    for metric in METRICS:
        delta = rows[rows["metric"] == metric].set_index("label")["delta"]
        assert delta["under_200"] == pytest.approx(delta[["Nodule", "Edema", "Hernia", "Fibrosis"]].mean())
    thresholds = fake.table("thresholds")
    assert (thresholds.groupby(["arm", "seed", "weights"])["temperature"].nunique() == 1).all()


def test_deltas_and_groups_add_up(fake, monkeypatch):
    fake.predict(gain=2.0).compare(monkeypatch)
    table = fake.table("comparison").query("metric == 'AP' and arm == 'synthetic' and rival == 'duplicate'")
    pair = table.set_index("label")
    assert pair.loc["tail", "delta"] == pytest.approx(pair.loc[["Edema", "Hernia"], "delta"].mean())
    assert (pair["delta"] - (pair["value"] - pair["rival_value"])).abs().max() < 1e-12
    seeds = fake.table("seeds").query("arm == 'synthetic' and rival == 'duplicate' and metric == 'AP'")
    means = seeds.groupby("label")["delta"].mean()
    assert (means.drop("Fibrosis") - pair["delta"].drop("Fibrosis")).abs().max() < 1e-12
    intervals = fake.table("intervals").query("arm == 'synthetic' and rival == 'duplicate' and metric == 'AP'")
    assert intervals.set_index("label").loc["tail", "n_classes"] == 2
    family = intervals[intervals["label"].isin(LABELS)].dropna(subset="p_plain")
    assert (family["p"] >= family["p_plain"]).all()
    assert family["p"].min() == pytest.approx(len(family) * family["p_plain"].min())


def test_undefined_is_null_with_a_reason_in_every_arm_alike(fake, monkeypatch):
    fake.predict().compare(monkeypatch)
    for name in ("comparison", "metrics"):
        table = fake.table(name).query("label == 'Fibrosis' and metric in ['AP', 'AUROC', 'F1']")
        assert table["value"].isna().all()
        assert table["reason"].notna().all()
    table = fake.table("comparison")
    assert not (table["ci_low"].isna() & table["reason"].isna()).any()
    assert (table.query("label == 'Fibrosis'")["n_positive_patients"] == 0).all()


def test_few_positive_patients_get_no_interval_and_no_verdict(fake, monkeypatch):
    few = fake.frame["patient_id"].isin([f"p{n}" for n in range(9)] + [f"p{n}" for n in range(120, 130)])
    fake.frame["Hernia"] = few.astype("Int8")
    fake.frame["Fibrosis"] = fake.frame["Edema"]
    fake.write_cohort()
    verdict = fake.predict(gain=2.0).compare(monkeypatch)["extra"]["verdict"]
    table = fake.table("comparison").query("label == 'Hernia'")
    assert table["ci_low"].isna().all()
    assert set(table["reason"]) == {"fewer than 10 positive patients"}
    assert verdict["verdict"] == "cannot say (too few positives)"
    assert verdict["thin_classes"] == {"Hernia": 9}
    assert verdict["supported"]["ci_low"] is not None


def test_verdict_finds_a_large_gain_and_no_gain(fake, monkeypatch):
    fake.frame["Fibrosis"] = fake.frame["Edema"]
    fake.write_cohort()
    verdict = fake.predict(gain=3.0).compare(monkeypatch)["extra"]["verdict"]
    assert verdict["verdict"] == "helps"
    assert verdict["numbers"]["ci_low"] > 0
    assert set(verdict["guards"]) == {"head", "medium"}
    assert verdict["preregistered"] is False
    assert json.loads((fake.run / "comparison" / "_stage.json").read_text())["extra"]["preregistered"] is False


def test_identical_arms_differ_by_exactly_nothing(fake, monkeypatch):
    def same(frame, arm, seed):
        return fake.predictions("real", seed).assign(arm=arm)

    fake.predict(change=same).compare(monkeypatch)
    deltas = fake.table("comparison").dropna(subset=["rival", "ci_low"])
    assert len(deltas) > 0
    assert (deltas[["delta", "ci_low", "ci_high"]] == 0).all(axis=None)


def test_order_of_rows_does_not_matter(fake, monkeypatch, tmp_path):
    fake.arms = ("duplicate", "synthetic")
    fake.predict().compare(monkeypatch)
    other = Fake(run=tmp_path / "other", frame=fake.frame, arms=fake.arms)
    (tmp_path / "other").mkdir()
    (fake.run / "cohort").rename(other.run / "cohort")
    other.predict(change=lambda frame, arm, seed: frame.sample(frac=1, random_state=seed)).compare(monkeypatch)
    pd.testing.assert_frame_equal(fake.table("intervals"), other.table("intervals"), check_exact=True)


def swap_labels(frame):
    frame["Edema"] = 1 - frame["Edema"]
    return frame


@pytest.mark.parametrize(("spoil", "words"), [
    (lambda f: f[f["image_id"] != "i0005"], "lacks 1 images, such as 'i0005'"),
    (lambda f: f.assign(image_id=f["image_id"].replace("i0005", "new")), "lacks 1 images, such as 'i0005'"),
    (lambda f: f.assign(patient_id=f["patient_id"].replace("p3", "p4")), "'i0006' has another patient"),
    (swap_labels, "label 'Edema' differs"),
    (lambda f: f.assign(arm="real"), "holds predictions of arm ['real']"),
    (lambda f: f[f["weights"] == "raw"], "no predictions by 'ema' weights"),
    (lambda f: pd.concat([f, f.head(1).assign(fold=1)]), "is predicted more than once"),
    (lambda f: f[f["split"] == "test"], "split val: lacks 80 images"),
])
def test_predictions_that_are_not_the_cohorts_are_refused(fake, monkeypatch, capsys, spoil, words):
    fake.arms = ("duplicate", "synthetic")
    fake.predict(change=lambda frame, arm, seed: spoil(frame) if (arm, seed) == ("synthetic", 2) else frame)
    with pytest.raises(SystemExit) as error:
        fake.compare(monkeypatch)
    assert error.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert words in message
    assert "seed_2" in message
    assert not (fake.run / "comparison").exists()


def test_an_incomplete_arm_is_refused_with_its_command(fake, monkeypatch, capsys):
    fake.predict()
    (fake.run / "predictions" / "duplicate" / "seed_1" / "_stage.json").unlink()
    with pytest.raises(SystemExit):
        fake.compare(monkeypatch)
    message = capsys.readouterr().err
    assert "duplicate/seed_1" in message
    assert "classify/predict.py" in message


def test_registration_is_kept(fake, monkeypatch, capsys):
    fake.predict()
    run, config = Run(run=str(fake.run), arms=fake.arms), CompareConfig()
    file = fake.run / "endpoint.json"
    file.write_text(json.dumps(registration(run, config)))
    assert check_registration(file, run, config)
    for other, words in ((("--compare.endpoint.metric", "AUROC"), "endpoint.metric was fixed as 'AP', now 'AUROC'"),
                         (("--compare.margins.no_difference", "0.03"), "margins.no_difference was fixed as 0.02"),
                         (("--n_seeds", "2"), "n_seeds was fixed as 3, now 2")):
        with pytest.raises(SystemExit):
            fake.compare(monkeypatch, *other)
        assert words in capsys.readouterr().err
    assert fake.compare(monkeypatch)["extra"]["preregistered"] is True
    file.write_text(json.dumps(registration(run, config) | {"sha256": "0"}))
    with pytest.raises(TailfillError, match="sha256"):
        check_registration(file, run, config)


@pytest.mark.parametrize(("make", "words"), [
    (lambda: CompareConfig(n_draws=10), "compare.n_draws is 10"),
    (lambda: CompareConfig(endpoint=Endpoint(metric="ECE")), "compare.endpoint.metric is 'ECE'"),
    (lambda: CompareConfig(endpoint=Endpoint(group="rare")), "compare.endpoint.group is 'rare'"),
    (lambda: CompareConfig(endpoint=Endpoint(rival="synthetic")), "the arm itself"),
    (lambda: CompareConfig(margins=Margins(head=0)), "compare.margins.head is 0"),
    (lambda: pairs_of(Run(run="x", arms=("real", "duplicate")), CompareConfig()), "did you mean|no arm of this run"),
    (lambda: pairs_of(Run(run="x"), CompareConfig(pairs=[("sintetic", "real")])), "did you mean 'synthetic'"),
])
def test_bad_settings_are_named(make, words):
    with pytest.raises(TailfillError, match=words):
        make()


def test_explicit_pairs_keep_the_endpoints(fake, monkeypatch):
    stamp = fake.predict().compare(monkeypatch, "--compare.pairs", '[["duplicate", "real"]]')
    assert stamp["extra"]["pairs"] == [["synthetic", "duplicate"], ["duplicate", "real"]]


def test_one_seed_has_no_interval(fake, monkeypatch):
    fake.n_seeds = 1
    verdict = fake.predict(gain=2.0).compare(monkeypatch)["extra"]["verdict"]
    assert verdict["verdict"] == "cannot say (too few seeds)"
    assert fake.table("comparison")["ci_low"].isna().all()


def test_a_second_run_does_nothing_and_other_settings_are_refused(fake, monkeypatch, capsys):
    fake.arms = ("duplicate", "synthetic")
    first = fake.predict().compare(monkeypatch)
    assert fake.compare(monkeypatch)["output_hash"] == first["output_hash"]
    with pytest.raises(SystemExit):
        fake.compare(monkeypatch, "--compare.endpoint.weights", "raw")
    assert "endpoint.weights" in capsys.readouterr().err
