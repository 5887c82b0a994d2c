"""Sub-groups against scikit-learn, planted under-diagnosis, and what is too small to say."""

import numpy as np
import pandas as pd
import pytest
from fabricated_predictions import LABELS, Fake, fabricate
from sklearn.metrics import average_precision_score, f1_score, recall_score, roc_auc_score

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
    return subgroup_rows(scored, cohort, run, weights="ema", draws=draws)


@pytest.fixture(scope="module")
def fake(tmp_path_factory) -> Fake:
    return make(tmp_path_factory.mktemp("groups") / "run")


@pytest.fixture(scope="module")
def table(fake) -> pd.DataFrame:
    return rows_of(fake)


def best_cut(y: pd.Series, z: pd.Series) -> float:
    """The highest logit with the highest F1."""
    return max(z, key=lambda cut: (f1_score(y, z >= cut), cut))


def test_values_are_those_of_scikit_learn_within_the_sub_group(fake, table):
    by_seed = []
    for seed in range(3):
        frame = fake.predictions("synthetic", seed).query("weights == 'ema'")
        test, val = frame.query("split == 'test'"), frame.query("split == 'val'")
        women = test["sex"] == "F"
        found = {"AP": [], "AUROC": [], "FNR": [], "FNR gap": []}
        for label in TAIL:
            logit = f"logit_{label}"
            cut = best_cut(val[label].astype(int), val[logit])
            missed = [1 - recall_score(part[label].astype(int), part[logit] >= cut) for part in (test[women],
                                                                                                 test[~women])]
            y, z = test.loc[women, label].astype(int), test.loc[women, logit]
            values = (average_precision_score(y, z), roc_auc_score(y, z), missed[0], missed[0] - missed[1])
            for metric, value in zip(found, values, strict=True):
                found[metric].append(value)
        by_seed.append({metric: np.mean(values) for metric, values in found.items()})
    own = table.query("subgroup == 'F' and arm == 'synthetic' and label == 'tail'").set_index("metric")
    for metric in own.index:
        assert own.loc[metric, "value"] == pytest.approx(np.mean([one[metric] for one in by_seed]), abs=1e-12)
        assert own.loc[metric, "ci_low"] <= own.loc[metric, "value"] <= own.loc[metric, "ci_high"]
    assert (own["n_classes"] == 2).all()


def test_each_image_with_a_known_value_is_in_one_sub_group(fake, table):
    test = fake.frame.query("split == 'test'")
    once = table.query("arm == 'synthetic' and label == 'all' and metric == 'AP'")
    assert once.groupby("attribute")["n_images"].sum().to_dict() == {"sex": len(test), "age": test["age"].count()}
    parts = subgroups_of(pd.DataFrame({"sex": None, "view": "PA", "age": [0.0, 19.9, 20.0, 80.0, 120.0, np.nan]}))
    assert {band: rows.sum() for band, rows in parts["age"].items()} == {"under 20": 2, "20 to 39": 1, "80 and over": 2}
    assert list(parts) == ["age"]
    assert list(AGE_BANDS) == sorted(AGE_BANDS, key=AGE_BANDS.get)


def test_the_gap_of_one_sex_is_the_other_one_s_with_its_sign_turned(table):
    gaps = table[(table["metric"] == "FNR gap") & (table["attribute"] == "sex")].set_index(["subgroup", "label", "arm"])
    women, men = gaps.loc["F"], gaps.loc["M"]
    assert women["value"].to_numpy() == pytest.approx(-men["value"].to_numpy(), abs=1e-12)


def test_few_positives_are_marked_and_get_no_interval_under_ten(table):
    assert (table["few"] == (table["n_positive_patients"] < 20)).all()
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
    gap = spoilt.query("metric == 'FNR gap' and subgroup == 'F' and label == 'all'").set_index("arm")
    assert gap.loc["synthetic", "ci_low"] > 0.3
    assert "sex F (+" in subgroup_sentence(spoilt, arm="synthetic")
    assert "sex F (+" not in subgroup_sentence(spoilt, arm="duplicate")
    auroc = {name: t.query("metric == 'AUROC' and subgroup == 'F'")["value"].to_numpy() for name, t in
             (("before", table), ("after", spoilt))}
    assert auroc["after"] == pytest.approx(auroc["before"], abs=1e-6)  # float32 after the shift: no rank moves


def test_a_cohort_that_knows_nothing_of_its_people_says_so(tmp_path):
    fake = fabricate(tmp_path / "run")
    fake.arms = ARMS
    found = rows_of(fake.predict(), n_draws=100)
    assert found.empty
    assert subgroup_sentence(found, arm="synthetic").startswith("No sub-groups")
