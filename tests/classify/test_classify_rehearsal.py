"""A rehearsal's numbers: AP at another prevalence, which findings are thinned, and what is predicted of the tail."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_curve
from withheld_toys import toy_frame, write_toy

from classify.comparison.metrics import METRICS, ClassMetrics
from classify.rehearsal.choices import Cell, choose_findings, choose_levels, count_support, list_cells
from classify.rehearsal.prediction import FEWEST_FINDINGS, forecast
from classify.rehearsal.prevalence import rehearsed_metrics, reweighted
from classify.rehearsal.results import gains_for_forecast
from classify.rehearsal.settings import RehearsalConfig
from classify.rehearsal.shares import REHEARSED_GROUP
from cohort.errors import TailfillError
from cohort.tables import Cohort, load_cohort

# --- AP at another prevalence ----------------------------------------------------------------------------------------


def scored(n: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels, some unknown, and logits with ties that know a little of them."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.2).astype(float)
    logits = np.round(labels + rng.normal(size=n), 1)
    labels[rng.random(n) < 0.1] = np.nan
    return labels, logits


@pytest.mark.parametrize("prevalence", [0.002, 0.03, 0.2, 0.7])
def test_ap_at_a_prevalence_is_scikit_learns_with_weights_in_every_draw(prevalence: float) -> None:
    labels, logits = scored(400, seed=1)
    draws = np.random.default_rng(2).integers(0, 4, size=(400, 7)).astype(float)
    values = rehearsed_metrics(labels=labels, logits=logits, prevalence=prevalence)(draws)[2]
    known = ~np.isnan(labels)
    y, z = labels[known], logits[known]
    for draw, value in zip(draws.T, values, strict=True):
        weights = draw[known].copy()
        weights[y == 1] *= prevalence / (1 - prevalence) * weights[y == 0].sum() / weights[y == 1].sum()
        assert weights[y == 1].sum() / weights.sum() == pytest.approx(prevalence)
        assert value == pytest.approx(average_precision_score(y, z, sample_weight=weights), rel=1e-9)


def test_ap_at_a_prevalence_follows_bayes_rule_from_the_roc_curve() -> None:
    labels, logits = scored(500, seed=3)
    known = ~np.isnan(labels)
    y, z, share = labels[known], logits[known], 0.01
    false, true, _ = roc_curve(y, z, drop_intermediate=False)
    precision = share * true[1:] / (share * true[1:] + (1 - share) * false[1:])
    wanted = float((np.diff(true) * precision).sum())
    value = rehearsed_metrics(labels=labels, logits=logits, prevalence=share)(np.ones((500, 1)))[2, 0]
    assert value == pytest.approx(wanted, rel=1e-9)
    assert value < average_precision_score(y, z)
    assert len(precision_recall_curve(y, z)[0]) == len(true)  # the same thresholds


def test_at_its_own_prevalence_nothing_changes_and_auroc_never_does() -> None:
    labels, logits = scored(300, seed=4)
    ones = np.ones((300, 1))
    plain = ClassMetrics(labels=labels, logits=logits)(ones)[:, 0]
    own = np.nanmean(labels)
    found = rehearsed_metrics(labels=labels, logits=logits, prevalence=own)(ones)[:, 0]
    assert found[0] == plain[METRICS.index("AP")]
    assert found[2] == pytest.approx(found[0])
    assert found[1] == plain[METRICS.index("AUROC")]
    rare = reweighted(ones, positive=labels == 1, negative=labels == 0, prevalence=0.01)
    assert ClassMetrics(labels=labels, logits=logits)(rare)[METRICS.index("AUROC"), 0] == pytest.approx(found[1])


def test_a_draw_without_positives_has_no_value_and_a_prevalence_of_one_is_refused() -> None:
    labels, logits = scored(50, seed=5)
    weights = np.ones((50, 1))
    weights[labels == 1] = 0
    assert np.isnan(rehearsed_metrics(labels=labels, logits=logits, prevalence=0.1)(weights)).all()
    with pytest.raises(TailfillError, match="prevalence is 1"):
        rehearsed_metrics(labels=labels, logits=logits, prevalence=1)(weights)


# --- what is thinned -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return load_cohort(write_toy(tmp_path_factory.mktemp("toy") / "cohort", toy_frame(700, seed=3)))


def test_levels_follow_the_tail_and_findings_their_support(cohort: Cohort) -> None:
    support = count_support(cohort)
    assert support.loc["Hernia", "group"] == "tail"
    n = max(5, support.loc["Hernia", "n_train"])
    assert choose_levels(cohort, RehearsalConfig()) == [n, 2 * n, 4 * n]
    chosen = choose_findings(cohort, RehearsalConfig(min_test_patients=5), levels=[10])
    assert "Hernia" not in chosen
    assert list(support.loc[chosen, "test_patients"]) == sorted(support.loc[chosen, "test_patients"], reverse=True)
    assert choose_findings(cohort, RehearsalConfig(n_findings=1), levels=[10]) == chosen[:1]


def test_what_cannot_be_rehearsed_is_refused(cohort: Cohort) -> None:
    for config, levels, said in (
        (RehearsalConfig(findings=("Hernia",)), [5], "'Hernia' is tail"),
        (RehearsalConfig(findings=("Mas",)), [5], "no label 'Mas'.*Mass"),
        (RehearsalConfig(findings=("Mass",)), [10_000], "wanted: head or medium, and 20000"),
        (RehearsalConfig(min_test_patients=10_000), [5], "no finding outside the tail"),
    ):
        with pytest.raises(TailfillError, match=said):
            choose_findings(cohort, config, levels=levels)


@pytest.mark.parametrize("nothing", ["Normal", "No Finding"])
def test_the_absence_of_findings_is_never_chosen_by_itself(cohort: Cohort, nothing: str) -> None:
    names = {"Effusion": nothing}
    renamed = replace(cohort, frame=cohort.frame.rename(columns=names),
                      labels=[names.get(label, label) for label in cohort.labels],
                      groups={names.get(label, label): group for label, group in cohort.groups.items()})
    chosen = choose_findings(renamed, RehearsalConfig(min_test_patients=5), levels=[10])
    assert chosen == [label for label in choose_findings(cohort, RehearsalConfig(min_test_patients=5), levels=[10])
                      if label != "Effusion"]



@pytest.mark.parametrize(("keys", "said"), [
    ({"seeds": 1}, "seeds is 1"), ({"levels": (0,)}, "levels"), ({"levels": (5, 5)}, "different numbers"),
    ({"arms": ("real", "synthetic", "oracle")}, "lacks 'duplicate'"), ({"max_overlap": 2.0}, "0 to 1"),
    ({"arms": ("duplicate", "synthetic", "oracle", "external")}, "'external' cannot stand here"),
    ({"arms": ("duplicate", "synthetic", "oracle", "synthetic-harmonised")},
     "and duplicate-harmonised beside synthetic-harmonised"),
])
def test_bad_settings_are_refused(keys: dict[str, object], said: str) -> None:
    with pytest.raises(TailfillError, match=said):
        RehearsalConfig(**keys)  # type: ignore[arg-type]


def test_every_finding_is_in_one_run_per_level_and_seed(cohort: Cohort) -> None:
    config = RehearsalConfig(findings=("Effusion", "Mass", "Nodule"), levels=(8, 4), seeds=2, max_overlap=0.3)
    cells = list_cells(cohort, config)
    met = [(finding, cell.level, cell.seed) for cell in cells for finding in cell.findings]
    assert sorted(met) == sorted((f, level, seed) for f in config.findings for level in (4, 8) for seed in (0, 1))
    assert len({cell.name for cell in cells}) == len(cells) == 8  # Mass apart from Effusion


# --- what is predicted -----------------------------------------------------------------------------------------------


def gains(n_findings: int, *, rng: np.random.Generator, spread: float = 0.0, noise: float = 0.0, slope: float = 0.0,
          levels: tuple[int, ...] = (20, 40, 80)) -> pd.DataFrame:
    """Findings whose share is .5 + slope (log2 n - log2 20) + spread, the same at each level; noise in either gain."""
    rows = []
    for number in range(n_findings):
        own = rng.normal(0, spread) if spread else 0.0
        for level in levels:
            oracle = rng.uniform(0.02, 0.1)
            share = 0.5 + slope * np.log2(level / 20) + own
            missed = rng.normal(0, noise, 2) if noise else np.zeros(2)
            rows.append({"finding": f"f{number}", "n_real": level, "told": True, "oracle_gain": oracle + missed[0],
                         "gain": share * oracle + missed[1]})
    return pd.DataFrame(rows)


def test_without_a_slope_the_mean_is_the_ratio_of_mean_gains() -> None:
    rows = gains(7, rng=np.random.default_rng(0), spread=0.2, levels=(20,))
    found = forecast(rows)
    assert found.rule == "mean"
    assert found.coefficients[0] == pytest.approx(rows["gain"].mean() / rows["oracle_gain"].mean())
    missed = np.array([
        rows.drop(at)["gain"].sum() / rows.drop(at)["oracle_gain"].sum() * row["oracle_gain"] - row["gain"]
        for at, row in rows.iterrows()]) / rows["oracle_gain"].mean()
    assert found.errors["mean"] == pytest.approx(np.abs(missed).mean())
    assert found.spread == pytest.approx(np.sqrt(np.square(missed).mean()))


def test_a_share_that_moves_with_the_positives_is_found_and_beats_the_mean() -> None:
    found = forecast(gains(8, rng=np.random.default_rng(1), slope=-0.15))
    assert found.rule == "curve"
    assert found.errors["curve"] < 0.01 < found.errors["mean"]
    assert found.predict(40).share == pytest.approx(0.35)
    assert found.predict(400).reason == "400 positives lie outside what was rehearsed (20 to 80)"
    assert found.predict(0).reason == "no real positive"


def test_under_six_findings_there_is_no_prediction() -> None:
    found = forecast(gains(FEWEST_FINDINGS - 1, rng=np.random.default_rng(2)))
    assert found.rule is None
    assert found.errors == {}
    told = found.predict(20)
    assert told.share is None
    assert "5 findings measured; a prediction wants 6" in str(told.reason)
    assert forecast(pd.DataFrame(columns=["finding", "n_real", "gain", "oracle_gain", "told"])).rule is None


@pytest.mark.parametrize("noise", [0.0, 0.01])
@pytest.mark.parametrize("n_findings", [6, 12])
def test_the_interval_covers_another_finding(n_findings: int, noise: float) -> None:
    rng, hits, n, widths = np.random.default_rng(3), 0, 150, []
    for _ in range(n):
        told = forecast(gains(n_findings, rng=rng, spread=0.25, noise=noise, levels=(20,))).predict(20)
        assert told.low is not None
        assert told.high is not None
        hits += told.low <= 0.5 + rng.normal(0, 0.25) <= told.high
        widths.append(told.high - told.low)
    assert hits / n >= 0.88  # 95 % wanted; four standard errors are .07
    known = 2 * 1.96 * 0.25  # the width, were everything known but the next finding
    assert known < np.median(widths) < (1.5 if noise == 0 else 2.0) * known


def test_findings_whose_own_oracle_gains_nothing_take_part() -> None:
    rows = pd.DataFrame({"finding": list("abcdefg"), "n_real": 20, "gain": [0.02, 0.03, 0.03, 0.02, 0.04, 0.0, 0.004],
                         "oracle_gain": [0.06, 0.06, 0.04, 0.06, 0.05, -0.004, 0.0], "told": True})
    found = forecast(rows)
    assert found.n_findings == 7
    assert found.coefficients[0] == pytest.approx(rows["gain"].sum() / rows["oracle_gain"].sum())
    assert found.spread < 0.5  # one finding's .04 of .05 against half of the mean gain; no ratio of nearly nothing


def test_a_level_at_which_real_images_bring_nothing_clear_takes_no_part() -> None:
    rows = gains(8, rng=np.random.default_rng(5), levels=(20, 40))
    rows["told"] = rows["n_real"] == 20
    found = forecast(rows)
    assert found.levels == (20, 20)
    assert found.predict(100).reason == "100 positives lie outside what was rehearsed (20 to 20)"
    found = forecast(rows.assign(told=False))
    assert found.rule is None
    assert found.reason == "what real images bring on average to the findings is told from nothing at no level"


def test_what_is_predicted_from_is_every_finding_where_the_oracles_mean_gain_is_told_from_nothing() -> None:
    rows = [{"label": label, "level": level, "arm": arm, "metric": "AP", "is_group": label == REHEARSED_GROUP,
             "n_real": float(level), "gain": 0.01, "oracle_gain": 0.02, "gain_low": 0.02 - level / 1000,
             "share": np.nan}
            for label in ("Mass", "Nodule", REHEARSED_GROUP) for level in (10, 30) for arm in ("synthetic", "oracle")]
    found = gains_for_forecast(pd.DataFrame(rows), arm="synthetic", metric="AP")
    assert found.to_dict("list") == {"finding": ["Mass", "Mass", "Nodule", "Nodule"], "n_real": [10.0, 30.0] * 2,
                                     "gain": [0.01] * 4, "oracle_gain": [0.02] * 4, "told": [True, False] * 2}


def test_more_noise_makes_a_wider_interval() -> None:
    narrow, wide = (forecast(gains(8, rng=np.random.default_rng(4), noise=noise)).spread for noise in (1e-4, 1e-2))
    assert narrow < wide


def test_a_cells_name_is_a_folder_of_its_own() -> None:
    cell = Cell(findings=("Mass",), place=1, level=20, seed=2)
    assert Path(cell.name).parts == ("set_1", "level_20", "seed_2")
