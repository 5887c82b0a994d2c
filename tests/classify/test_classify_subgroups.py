"""Sub-groups against scikit-learn, planted under-diagnosis, and what is too small to say."""

import numpy as np
import pandas as pd
import pytest
from fabricated_predictions import LABELS, Fake, fabricate
from sklearn.metrics import average_precision_score, recall_score, roc_auc_score

from classify.comparison.intervals import patient_draws
from classify.comparison.measuring import read_scored
from classify.comparison.subgroups import AGE_BANDS, subgroup_rows, subgroup_sentence, subgroups_of
from cohort.config import Run
from cohort.tables import load_cohort

ARMS = ("duplicate", "synthetic")
TAIL, ALL = ["Edema", "Hernia"], ["Effusion", "Nodule", "Edema", "Hernia"]
"""Classes that occur; Fibrosis never does."""


def make(folder, *, change=None) -> Fake:
    """Men and women by patient, ages from 15 to 84 with some unknown, one view."""
    fake = fabricate(folder)
    number = fake.frame["patient_id"].str[1:].astype(int)
    fake.frame["sex"] = np.where(number % 3 == 0, "F", "M")
    fake.frame["age"] = (15.0 + number % 70).where(number % 10 > 0)
    fake.arms = ARMS
    fake.write_cohort()
    return fake.predict(change=change)


def rows_of(fake: Fake, *, n_draws: int = 150) -> pd.DataFrame:
    run, cohort = Run(run=str(fake.run), arms=ARMS, n_seeds=3), load_cohort(fake.run / "cohort")
    folders = {(arm, seed): fake.run / "predictions" / arm / f"seed_{seed}" for arm in ARMS for seed in range(3)}
    scored = read_scored(folders, cohort, weights="ema")
    draws = patient_draws(scored["test"].n_patients, n_draws, np.random.default_rng(0))
    return subgroup_rows(scored, cohort, run, pair=("synthetic", "duplicate"), weights="ema", draws=draws)


@pytest.fixture(scope="module")
def fake(tmp_path_factory) -> Fake:
    return make(tmp_path_factory.mktemp("groups") / "run")


@pytest.fixture(scope="module")
def table(fake) -> pd.DataFrame:
    return rows_of(fake)


def best_cut(y: np.ndarray, z: np.ndarray) -> float:
    """The highest logit with the highest F1, 2 TP / (predicted + positive), by trying each."""
    f1 = {cut: 2 * y[z >= cut].sum() / ((z >= cut).sum() + y.sum()) for cut in z}
    return max(f1, key=lambda cut: (f1[cut], cut))


METRICS = ("AP", "AUROC", "AUROC gap", "FNR", "FNR gap")


def by_scikit_learn(fake: Fake, arm: str, *, sex: str) -> list[dict[str, float]]:
    """A seed each: mean over the tail's classes of each metric, within one sex and against the other."""
    seeds = []
    for seed in range(3):
        frame = fake.predictions(arm, seed).query("weights == 'ema'")
        val, test = (frame[frame["split"] == split] for split in ("val", "test"))
        parts = (test[test["sex"] == sex], test[test["sex"] != sex])
        rows = []
        for label in TAIL:
            cut = best_cut(val[label].to_numpy(int), val[f"logit_{label}"].to_numpy())
            (ap, auroc, fnr), others = [
                (average_precision_score(y, z), roc_auc_score(y, z), 1 - recall_score(y, z >= cut))
                for y, z in ((part[label].to_numpy(int), part[f"logit_{label}"].to_numpy()) for part in parts)]
            rows.append((ap, auroc, auroc - others[1], fnr, fnr - others[2]))
        seeds.append(dict(zip(METRICS, np.mean(rows, axis=0), strict=True)))
    return seeds


def test_values_and_differences_are_those_of_scikit_learn_within_the_sub_group(fake, table):
    for sex in ("F", "M"):
        ours, others = (by_scikit_learn(fake, arm, sex=sex) for arm in ("synthetic", "duplicate"))
        own = table[(table["subgroup"] == sex) & (table["arm"] == "synthetic") & (table["label"] == "tail")]
        for metric in METRICS:
            found = own[own["metric"] == metric].assign(rival=lambda rows: rows["rival"].fillna("")).set_index("rival")
            expected = {"": np.mean([one[metric] for one in ours]),
                        "duplicate": np.mean([one[metric] - other[metric] for one, other in
                                              zip(ours, others, strict=True)])}
            assert found["value"].to_dict() == pytest.approx(expected, abs=1e-12)
            assert ((found["ci_low"] <= found["value"]) & (found["value"] <= found["ci_high"])).all()
        assert (own["n_classes"] == 2).all()


def test_differences_come_from_the_same_draws_of_patients(tmp_path):
    twin = fabricate(tmp_path / "twins")

    def same_ranks(frame, arm, seed):
        other, scale = twin.predictions("duplicate", seed), 2 if arm == "synthetic" else 1
        return frame.assign(**{f"logit_{label}": scale * other[f"logit_{label}"] for label in LABELS})

    found = rows_of(make(tmp_path / "run", change=same_ranks), n_draws=100)
    ranked = found[(found["rival"] == "duplicate") & found["metric"].isin(["AP", "AUROC", "AUROC gap"])]
    known = ranked[ranked["ci_low"].notna()]
    assert len(known) > 10
    assert (known[["value", "ci_low", "ci_high"]] == 0).all(axis=None)


def test_each_image_with_a_known_value_is_in_one_sub_group(fake, table):
    test = fake.frame.query("split == 'test'")
    once = table[table["rival"].isna()].query("arm == 'synthetic' and label == 'all' and metric == 'AP'")
    assert once.groupby("attribute")["n_images"].sum().to_dict() == {"sex": len(test), "age": test["age"].count()}
    parts = subgroups_of(pd.DataFrame({"sex": None, "view": "PA", "age": [0.0, 19.9, 20.0, 80.0, 120.0, np.nan]}))
    assert {band: rows.sum() for band, rows in parts["age"].items()} == {"under 20": 2, "20 to 39": 1, "80 and over": 2}
    assert list(parts) == ["age"]
    assert list(AGE_BANDS) == sorted(AGE_BANDS, key=AGE_BANDS.get)


def test_the_gap_of_one_sex_is_the_other_one_s_with_its_sign_turned(table):
    gaps = table[table["metric"].isin(["FNR gap", "AUROC gap"]) & (table["attribute"] == "sex")]
    assert len(gaps) == 2 * 2 * 2 * 3  # metrics, sexes, groups; two arms and their difference
    women, men = gaps[gaps["subgroup"] == "F"], gaps[gaps["subgroup"] == "M"]
    assert women["value"].to_numpy() == pytest.approx(-men["value"].to_numpy(), abs=1e-12)


def test_a_gap_is_known_no_better_than_its_smaller_side(tmp_path):
    """Many men against hardly any women: the gap of either is as uncertain, and named for neither."""
    fake = make(tmp_path / "run")
    positive = fake.frame["patient_id"][(fake.frame["split"] == "test") & (fake.frame[TAIL] == 1).any(axis=1)].unique()
    fake.frame["sex"] = np.where(fake.frame["patient_id"].isin(positive[:8]), "F", "M")
    fake.write_cohort()
    fake.predict()
    table = rows_of(fake)
    tail = table[(table["label"] == "tail") & (table["attribute"] == "sex")]
    assert (tail["n_positive_patients"][tail["subgroup"] == "M"] >= 20).all()
    gaps = tail[tail["metric"].str.endswith("gap")]
    assert set(gaps["subgroup"]) == {"F", "M"}
    assert gaps["value"].notna().all()
    assert gaps["ci_low"].isna().all()
    assert gaps["few"].all()
    assert set(gaps["reason"]) == {"fewer than 10 positive patients"}


def test_few_positives_are_marked_and_get_no_interval_under_ten(table):
    whole = table[~table["metric"].str.endswith("gap")]
    assert (whole["few"] == (whole["n_positive_patients"] < 20)).all()
    thin = table[table["n_positive_patients"] < 10]
    assert len(thin)
    assert thin["ci_low"].isna().all()
    assert not (table["ci_low"].isna() & table["reason"].isna()).any()


def test_planted_under_diagnosis_is_found_and_named(tmp_path, table):
    def miss_women(frame, arm, seed):
        shift = np.where((frame["sex"] == "F") & (arm == "synthetic") & (frame["split"] == "test"), 3.0, 0.0)
        return frame.assign(**{f"logit_{label}": (frame[f"logit_{label}"] - shift).astype("float32")
                               for label in LABELS})

    spoilt = rows_of(make(tmp_path / "run", change=miss_women))
    gaps = spoilt.query("subgroup == 'F' and label == 'all' and metric == 'FNR gap' and arm == 'synthetic'")
    assert len(gaps) == 2  # the arm's own, and its difference from the rival
    assert (gaps["ci_low"] > 0.3).all()
    said = subgroup_sentence(spoilt, arm="synthetic", rival="duplicate")
    assert said.count("sex F (+") == 2  # under-diagnosed, and more so than with the rival
    assert "sex F (+" not in subgroup_sentence(spoilt, arm="duplicate", rival="real")
    auroc = {name: t.query("metric == 'AUROC' and subgroup == 'F'")["value"].to_numpy() for name, t in
             (("before", table), ("after", spoilt))}
    assert auroc["after"] == pytest.approx(auroc["before"], abs=1e-6)  # float32 after the shift: no rank moves


def test_a_gain_of_one_sex_alone_is_told(tmp_path):
    def help_women(frame, arm, seed):
        if arm != "synthetic":
            return frame
        women = (frame["sex"] == "F") & (frame["split"] == "test")
        return frame.assign(**{f"logit_{label}": (frame[f"logit_{label}"] + 3.0 * (women & (frame[label] == 1).fillna(
            False))).astype("float32") for label in LABELS})

    found = rows_of(make(tmp_path / "run", change=help_women))
    change = found[found["rival"] == "duplicate"].query("label == 'all'").set_index(["subgroup", "metric"])
    assert change.loc[("F", "AUROC"), "ci_low"] > 0.02
    assert change.loc[("F", "AUROC gap"), "ci_low"] > 0.02
    assert change.loc[("M", "AUROC gap"), "ci_high"] < -0.02
    said = subgroup_sentence(found, arm="synthetic", rival="duplicate")
    assert "less what the others gained: sex F (+" in said


def test_a_cohort_that_knows_nothing_of_its_people_says_so(tmp_path):
    fake = fabricate(tmp_path / "run")
    fake.arms = ARMS
    found = rows_of(fake.predict(), n_draws=100)
    assert found.empty
    assert subgroup_sentence(found, arm="synthetic", rival="duplicate").startswith("No sub-groups")
