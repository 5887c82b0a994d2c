"""From the rows of all trials to what a reader wants to know: coverage, verdicts right and wrong, controls.

A truth is the mean delta over the seeds of the trials on the population, per cohort, arm and label; for an arm against
itself it is 0. ``wrong`` is a verdict that the truth contradicts: *helps* where the truth is 0 or less, *hurts* where
it is 0 or more, *no difference larger than X* where it is larger than X. *Cannot say* is never wrong, and never right.

Not promised: independence of the classes of one trial, whose coverage is counted as if it were.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from calibration_cases import FILTERED
from calibration_trials import AGAIN
from scipy.stats import binomtest

from classify.comparison.recovered import ORACLE
from classify.verdict.deciding import HELPS, HURTS

GOAL = (0.93, 0.97)
CONTROLS_GOAL = 0.05
COVERAGE = ("part", "arm", "n_seeds", "label")


def with_truth(rows: pd.DataFrame, truth: pd.DataFrame) -> pd.DataFrame:
    """``rows`` with the columns ``truth`` and ``truth_se``; rows of unknown truth are left out."""
    by = ["cohort", "arm", "label"]
    known = truth.groupby(by)["delta"].agg(truth="mean", truth_se="sem").reset_index()
    joined = rows.merge(known, on=by, how="left")
    joined.loc[joined["arm"] == AGAIN, ["truth", "truth_se"]] = 0.0
    return joined.dropna(subset="truth")


def share(hits: pd.Series) -> dict[str, float]:
    """n, the share of True, and its 95 % interval (Clopper and Pearson 1934)."""
    low, high = binomtest(int(hits.sum()), len(hits)).proportion_ci(0.95)
    return {"n": len(hits), "share": float(hits.mean()), "ci_low": float(low), "ci_high": float(high)}


def coverage(intervals: pd.DataFrame, truth: pd.DataFrame) -> pd.DataFrame:
    """Coverage per part, arm, seeds and label (the classes together as ``classes``), with what an interval is made of.

    ``se_ratio``: the root mean square of the standard errors over the standard deviation of the errors; 1 is right.
    """
    known = with_truth(intervals, truth).dropna(subset="low")
    alone = ~known["label"].isin(("tail", "control"))
    known = pd.concat([known, known[alone].assign(label="classes")])
    known["error"] = known["estimate"] - known["truth"]
    known["covered"] = (known["low"] <= known["truth"]) & (known["truth"] <= known["high"])
    rows = []
    for key, part in known.groupby(list(COVERAGE), sort=False):
        rows.append(dict(zip(COVERAGE, key, strict=True)) | share(part["covered"]) | {
            "truth": part["truth"].mean(), "truth_se": part["truth_se"].mean(), "bias": part["error"].mean(),
            "half_width": (part["high"] - part["low"]).mean() / 2, "df": part["df"].median(),
            "se_ratio": np.sqrt((part["standard_error"]**2).mean()) / (part["error"].std() or np.nan),
            **{name: part[name].mean() for name in ("variance_patients", "variance_seeds", "variance_interaction")},
        })
    return pd.DataFrame(rows)


def verdicts(rows: pd.DataFrame, truth: pd.DataFrame) -> pd.DataFrame:
    """How often each answer was given per part, arm and number of seeds, and how often it was wrong."""
    known = with_truth(rows.assign(label="tail"), truth)
    helps, hurts = known["answer"] == HELPS, known["answer"] == HURTS
    none = known["largest"].notna()
    wrong = (helps & (known["truth"] <= 0)) | (hurts & (known["truth"] >= 0)) | (
        none & (known["truth"].abs() > known["largest"]))
    known = known.assign(helps=helps, hurts=hurts, no_difference=none, cannot_say=~(helps | hurts | none), wrong=wrong)
    answers = ["helps", "hurts", "no_difference", "cannot_say", "wrong"]
    found = known.groupby(["part", "arm", "n_seeds"], sort=False)
    return found[answers].mean().assign(n=found.size(), truth=found["truth"].mean()).reset_index()


def recovered(rows: pd.DataFrame, truth: pd.DataFrame) -> pd.DataFrame:
    """Coverage of the recovered share's interval, per arm and number of seeds, where there is one."""
    means = truth[truth["label"] == "tail"].groupby(["cohort", "arm"])["delta"].mean()
    shares = (means / means.xs(ORACLE, level="arm")).rename("truth").reset_index()
    known = rows.merge(shares, on=["cohort", "arm"]).dropna(subset="low")
    known["covered"] = (known["low"] <= known["truth"]) & (known["truth"] <= known["high"])
    found = known.groupby(["arm", "n_seeds"], sort=False)
    return pd.DataFrame([
        {"arm": arm, "n_seeds": n_seeds} | share(part["covered"]) | {
            "truth": part["truth"].mean(), "median_share": part["share"].median()}
        for (arm, n_seeds), part in found])


def controls(rows: pd.DataFrame) -> pd.DataFrame:
    """Per part and number of seeds: the share of trials in which any control is significant, and shows a gain."""
    marked = rows.assign(gain=rows["significant"] & (rows["delta"] > 0))
    trials = marked.groupby(["part", "n_seeds", "cohort", "trial"])[["significant", "gain"]].any().reset_index()
    return pd.DataFrame([
        {"part": part, "n_seeds": n_seeds, "found": kind, **share(group[kind])}
        for (part, n_seeds), group in trials.groupby(["part", "n_seeds"], sort=False)
        for kind in ("gain", "significant")])


def filtering(sets: Sequence[Mapping[str, pd.DataFrame]]) -> pd.DataFrame:
    """What the filter's label agreement made of the planted sets: shares over all cohorts of images it could judge."""
    rows = []
    for name in (name for name in sets[0] if not name.endswith(FILTERED)):
        made = pd.concat([planted[name] for planted in sets])
        judged = made[made["judged"]]
        bad, good = judged[judged["wrong"]], judged[~judged["wrong"]]
        rows.append({"set": name, "images": len(made), "judged": float(made["judged"].mean()),
                     "wrong_dropped": float((~bad["agrees"]).mean()) if len(bad) else np.nan,
                     "others_kept": float(good["agrees"].mean()) if len(good) else np.nan})
    return pd.DataFrame(rows)


def as_markdown(table: pd.DataFrame) -> str:
    """A table in Markdown; shares and differences with three decimals, small variances in powers of ten."""
    def text(value: object) -> str:
        if isinstance(value, float):
            return "" if np.isnan(value) else f"{value:.2g}" if 0 < abs(value) < 1e-3 else f"{value:.3f}"
        return str(value)

    lines = [table.columns.tolist(), ["---"] * len(table.columns), *table.values.tolist()]
    return "\n".join("| " + " | ".join(text(cell) for cell in line) + " |" for line in lines)

