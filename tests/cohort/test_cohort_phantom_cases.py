"""Phantom patients before any drawing: frequencies, company, persistence, splits, noise, and what depends on what."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from scipy.stats import hypergeom

from cohort.errors import TailfillError
from cohort.phantom.cases import Case, draw_cases
from cohort.phantom.prevalence import CONTROLS, CORE, FINDINGS, LABELS, NORMAL, base_prevalence, nominal_group
from cohort.phantom.settings import PhantomConfig
from cohort.phantom.sites import CASE_MIXES, SITES
from cohort.vocabulary.labels import CONTROL

TAIL = [label for label in LABELS if nominal_group(label) == "tail"]
N = 40_000


def to_table(cases: list[Case], config: PhantomConfig) -> pd.DataFrame:
    """One row per case: its labels, split, patient, study and view."""
    table = pd.DataFrame(np.array([case.labels for case in cases]), columns=list(config.labels))
    exams = [case.exam for case in cases]
    return table.assign(split=[case.split for case in cases], patient_id=[exam.patient.patient_id for exam in exams],
                        study_id=[exam.study_id for exam in exams], view=[exam.view for exam in exams],
                        image_id=[exam.image_id for exam in exams])


def table_of(**settings: object) -> pd.DataFrame:
    config = PhantomConfig(**settings)  # type: ignore[arg-type]
    return to_table(list(draw_cases(config)), config)


@pytest.fixture(scope="module")
def many() -> tuple[list[Case], pd.DataFrame]:
    """A cohort of site A that is large enough for rare findings."""
    config = PhantomConfig(images=N, seed=4)
    cases = list(draw_cases(config))
    return cases, to_table(cases, config)


def deviation(table: pd.DataFrame, label: str, share: float) -> float:
    """How many standard errors the label's frequency lies from ``share``, images of a patient being one draw."""
    rest = (table[label] - share).groupby(table["patient_id"]).sum()
    return float(rest.sum() / np.sqrt((rest**2).sum()))


def test_the_first_n_cases_are_the_same_for_any_number() -> None:
    few, more = (list(draw_cases(PhantomConfig(images=n, seed=2, only_with=("medium",)))) for n in (300, 700))
    for one, other in zip(few, more[:300], strict=True):
        assert one.exam == other.exam
        assert one.split == other.split
        assert (one.labels == other.labels).all()
    assert more[300].exam.image_id not in {case.exam.image_id for case in few}


@pytest.mark.parametrize("change", [
    {"findings": "core"}, {"val_share": 0.3, "test_share": 0.4}, {"label_noise": 0.2}, {"size": 256},
])
def test_the_people_do_not_depend_on_the_other_settings(change: dict[str, object]) -> None:
    config = PhantomConfig(images=500, seed=2)
    kept = {label for label in replace(config, **change).labels if label in FINDINGS}  # type: ignore[arg-type]
    for one, other in zip(draw_cases(config), draw_cases(replace(config, **change)), strict=True):  # type: ignore[arg-type]
        assert other.exam == replace(one.exam, signs=tuple(sign for sign in one.exam.signs if sign.label in kept))


def test_labels_are_the_signs_and_what_follows_from_them(many: tuple[list[Case], pd.DataFrame]) -> None:
    for case, row in zip(many[0][:3000], many[1].to_dict("records"), strict=False):
        signs = {sign.label for sign in case.exam.signs}
        assert {label for label in FINDINGS if row[label]} == signs
        assert row[NORMAL] == (not signs)


@pytest.mark.parametrize("label", [*FINDINGS, *CONTROLS])
def test_every_frequency_is_met_whatever_the_company(many: tuple[list[Case], pd.DataFrame], label: str) -> None:
    assert abs(deviation(many[1], label, base_prevalence(label))) < 4


def test_the_tail_is_compressed_in_its_order_and_stays_tail() -> None:
    real = sorted((FINDINGS[label].percent, base_prevalence(label)) for label in TAIL)
    assert all(one[1] < other[1] for one, other in pairwise(real))
    assert 0.0025 < real[0][1] < real[-1][1] < 0.0065  # 10 to 27 of 4,200 train images
    usual = [label for label in FINDINGS if label not in TAIL]
    assert [base_prevalence(label) * 100 for label in usual] == pytest.approx([FINDINGS[x].percent for x in usual])


def test_tail_images_keep_the_company_that_cxr_lt_reports(many: tuple[list[Case], pd.DataFrame]) -> None:
    table = many[1]
    tail = table[TAIL].any(axis=1)
    for label, lift in (("Pneumothorax", 3.0), ("Emphysema", 2.4), ("Mass", 2.2)):
        assert table.loc[tail, label].mean() / table[label].mean() == pytest.approx(lift, abs=0.6)
    assert not table.loc[tail, NORMAL].any()
    for label in ("Subcutaneous Emphysema", "Pneumomediastinum"):
        assert table.loc[table[label], "Pneumothorax"].mean() > 5 * table["Pneumothorax"].mean()
        assert table.loc[table[label], "Support Devices"].mean() > 1.4 * table["Support Devices"].mean()
    ap = table["view"] == "AP"
    assert ap.mean() == pytest.approx(CASE_MIXES["A"].ap, abs=0.02)
    assert ap[table["Support Devices"]].mean() > 1.3 * ap.mean() > 1.3 * 1.3 * ap[table[NORMAL]].mean()


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_is_a_coin_flip_per_patient(many: tuple[list[Case], pd.DataFrame], control: str) -> None:
    table = many[1]
    assert (table.groupby("patient_id")[control].nunique() == 1).all()
    others = [label for label in table.columns[: len(LABELS)] if label not in CONTROLS]
    first = table.drop_duplicates("patient_id")
    for label in others:  # were they independent, the coincidences would be hypergeometric
        chance = hypergeom(len(first), int(first[control].sum()), int(first[label].sum()))
        both = int((first[control] & first[label]).sum())
        assert min(chance.cdf(both), chance.sf(both - 1)) > 1e-4, label
    assert first.loc[first[control], NORMAL].any()


def test_findings_persist_and_some_come_and_go(many: tuple[list[Case], pd.DataFrame]) -> None:
    studies = many[1].drop_duplicates("study_id")
    order = studies.groupby("patient_id").cumcount()
    pair = studies[order == 0].set_index("patient_id").join(studies[order == 1].set_index("patient_id"), how="inner",
                                                            lsuffix=" before", rsuffix=" after")
    for label, least in (("Cardiomegaly", 0.8), ("Calcification of the Aorta", 0.75), ("Support Devices", 0.55),
                         ("Edema", 0.25), ("Pneumothorax", 0.25)):
        before, after = pair[f"{label} before"].astype(bool), pair[f"{label} after"].astype(bool)
        assert after[before].mean() > least > after[~before].mean(), label
        assert (before & ~after).any()
        assert (~before & after).any()


def test_a_finding_keeps_its_seed_and_its_severity_drifts(many: tuple[list[Case], pd.DataFrame]) -> None:
    seeds: dict[tuple[str, str], set[int]] = {}
    severities: dict[str, list[float]] = {}
    by_patient: dict[tuple[str, str], dict[str, float]] = {}
    for case in many[0]:
        for sign in case.exam.signs:
            key = (case.exam.patient.patient_id, sign.label)
            seeds.setdefault(key, set()).add(sign.seed)
            severities.setdefault(sign.label, []).append(sign.severity)
            by_patient.setdefault(key, {})[case.exam.study_id] = sign.severity
    assert all(len(found) == 1 for found in seeds.values())
    assert len({next(iter(found)) for found in seeds.values()}) > 0.999 * len(seeds)
    for label in ("Cardiomegaly", "Edema", "Pneumothorax"):
        assert np.quantile(severities[label], [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.06)
    drift = [max(found.values()) - min(found.values()) for (_, label), found in by_patient.items()
             if label == "Cardiomegaly" and len(found) > 1]
    assert 0.01 < float(np.median(drift)) < 0.4


def test_splits_are_by_patient_and_of_the_wanted_size(many: tuple[list[Case], pd.DataFrame]) -> None:
    table = many[1]
    assert (table.groupby("patient_id")["split"].nunique() == 1).all()
    found = table.drop_duplicates("patient_id")["split"].value_counts(normalize=True)
    assert found.to_dict() == pytest.approx({"train": 0.7, "test": 0.2, "val": 0.1}, abs=0.01)
    assert table["image_id"].is_unique
    assert table.groupby("study_id")[["view", *LABELS]].nunique().max().max() == 1


def test_enrichment_multiplies_what_is_scarce_in_its_split_alone() -> None:
    table = table_of(images=N, seed=6, test_enrichment=10, val_enrichment=4, val_share=0.3, test_share=0.3)
    for label in (*TAIL, *CONTROLS, "Edema", "Hernia"):
        for split, factor in (("train", 1), ("val", 4), ("test", 10)):
            share = base_prevalence(label) * (factor if nominal_group(label) in ("tail", CONTROL) else 1)
            assert abs(deviation(table[table["split"] == split], label, share)) < 4, (label, split)


def test_site_b_is_a_referral_centre_with_other_patients() -> None:
    table, mix = table_of(images=N, seed=4, site="B"), CASE_MIXES["B"]
    for label in (*TAIL, *mix.others, "Edema"):
        factor = mix.scarce if label in TAIL else mix.others.get(label, 1.0)
        assert abs(deviation(table, label, base_prevalence(label) * factor)) < 4, label
    assert (table["view"] == "AP").mean() == pytest.approx(mix.ap, abs=0.02)
    assert set(SITES) == set(CASE_MIXES) == {"A", "B"}
    ours, theirs = (next(draw_cases(PhantomConfig(images=1, seed=4, site=site))).exam for site in ("A", "B"))  # type: ignore[arg-type]
    assert ours.patient != theirs.patient
    assert ours.site != theirs.site


def test_noise_flips_at_its_rate_keeps_frequencies_and_spares_the_test_split() -> None:
    clean, noisy = (table_of(images=20_000, seed=3, label_noise=noise) for noise in (0.0, {"Edema": 0.3, "Mass": 0.2}))
    learnt = clean["split"] != "test"
    for label, rate in (("Edema", 0.3), ("Mass", 0.2)):
        truth, told = clean.loc[learnt, label].astype(bool), noisy.loc[learnt, label].astype(bool)
        assert 1 - told[truth].mean() == pytest.approx(rate, abs=0.06)
        assert told.mean() == pytest.approx(truth.mean(), rel=0.12)
    pd.testing.assert_frame_equal(clean[~learnt], noisy[~learnt])
    assert (clean["Cardiomegaly"] == noisy["Cardiomegaly"]).all()
    assert (noisy[NORMAL] == ~noisy[list(FINDINGS)].any(axis=1)).all()


def test_a_pool_of_new_patients_holds_only_what_was_asked_for() -> None:
    wanted = ("tail", "Infarction")
    ours = table_of(images=3000, seed=7, findings="core")
    pool = table_of(images=800, seed=107, findings="core", only_with=wanted, val_share=0, test_share=0)
    assert not set(ours["patient_id"]) & set(pool["patient_id"])
    assert set(pool["split"]) == {"train"}
    assert pool[[label for label in CORE if nominal_group(label) == "tail" or label == "Infarction"]].any(axis=1).all()
    everyone = table_of(images=30_000, seed=107, findings="core", val_share=0, test_share=0)
    carriers = everyone[everyone[[*[x for x in TAIL if x in CORE], "Infarction"]].any(axis=1)]
    n = min(len(carriers), len(pool))
    assert carriers["image_id"].tolist()[:n] == pool["image_id"].tolist()[:n]


def test_groups_are_those_of_the_frequencies_whatever_the_seed() -> None:
    """What is enriched and pooled as the tail is scored as the tail, though a medium label may come out below 1 %."""
    for settings in ({}, {"findings": "core", "test_enrichment": 10.0}, {"label_noise": 0.2}):
        config = PhantomConfig(**settings)  # type: ignore[arg-type]
        assert config.groups == {label: nominal_group(label) for label in config.labels}
    referred = PhantomConfig(site="B").groups
    assert {referred[label] for label in TAIL} == {"medium"}
    assert {label for label in LABELS if referred[label] == CONTROL} == set(CONTROLS)


@pytest.mark.parametrize(("settings", "culprit"), [
    ({"images": 0}, "phantom.images is 0"), ({"seed": -1}, "phantom.seed is -1"), ({"size": 32}, "64 to 512"),
    ({"size": 100}, "phantom.size is 100; wanted: a multiple of 32 from 64 to 512"),
    ({"findings": ("Edema",), "only_with": ("tail", "medium")}, "phantom.only_with is tail, medium, to which none"),
    ({"site": "C"}, "phantom.site is 'C'"), ({"val_share": 0.5, "test_share": 0.5}, "phantom.val_share is 0.5"),
    ({"test_enrichment": 0.5}, "phantom.test_enrichment is 0.5"),
    ({"test_enrichment": 90.0}, "in 54% of the images; wanted: 50%"),
    ({"findings": ("Edma",)}, "did you mean 'Edema'"), ({"findings": ()}, "phantom.findings is empty"),
    ({"findings": ("Normal",)}, "'Normal' is derived"), ({"only_with": ("tails",)}, "did you mean 'tail'"),
    ({"findings": "core", "only_with": ("Fibrosis",)}, "phantom.only_with: 'Fibrosis'"),
    ({"label_noise": 0.6}, "phantom.label_noise is 0.6"), ({"label_noise": {"Mass": 2.0}}, "phantom.label_noise.Mass"),
    ({"label_noise": {"Normal": 0.1}}, "phantom.label_noise: 'Normal'"),
    ({"findings": "core", "only_with": ("medium",), "label_noise": {"Mass": 0.1}}, "phantom.label_noise: 'Mass'"),
])
def test_settings_that_make_no_sense_are_refused_by_name(settings: dict[str, object], culprit: str) -> None:
    with pytest.raises(TailfillError, match=culprit.replace(".", r"\.")):
        PhantomConfig(**settings)  # type: ignore[arg-type]
