"""Failure signatures: known ways in which a good number means little, looked for in every class and said in words.

    AP near prevalence      AUROC of .8 or more, and AP hardly above what chance gives: the ranking is right on
                            average, and yet hardly any image that it points to has the finding (Saito 2015)
    metadata alone          view, sex or age rank the test images about as well as the arm does; their rates are taken
                            from the train split, so that test chooses nothing (shortcuts: Zech 2018, DeGrave 2021)
    validation above test   AUROC falls by more than .05 from validation to test, and by more than two standard errors
    gain on a control       a significant gain on a label that leaves no visible sign (``controls``)

The first three are looked at per arm, on the mean over seeds, for classes with 10 positive patients or more; below, a
null with its reason. Not promised: that a flag proves a fault, or that no flag excludes one.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from classify.comparison.intervals import Array
from classify.comparison.measuring import Scored, groups_of
from classify.comparison.metrics import support
from classify.comparison.subgroups import subgroups_of
from cohort.tables import Cohort
from cohort.vocabulary.labels import CONTROL, MIN_POSITIVE_PATIENTS

NEAR_PREVALENCE, METADATA, OVERFIT, CONTROL_GAIN = (
    "AP near prevalence", "metadata alone", "validation above test", "gain on a control")
HIGH_AUROC, LIFT, AS_WELL, FALL = 0.8, 0.05, 0.02, 0.05
"""AUROC that passes for good; share of the way from prevalence to 1 that AP must go; AUROC by which the arm must beat
metadata; fall of AUROC from validation to test. All chosen by hand, before any run was looked at."""
COLUMNS = ("signature", "arm", "label", "flagged", "value", "reference", "words", "reason")


def signature_rows(metrics: pd.DataFrame, scored: Mapping[str, Scored], cohort: Cohort, *, weights: str,
                   controls: pd.DataFrame | None) -> pd.DataFrame:
    """The table ``signatures``: every arm and class with ``flagged`` (null: could not be looked at) and ``words``.

    ``metrics``: the table of ``measuring.metric_rows``; ``controls``: that of ``controls.control_rows``, if any.
    """
    chosen = metrics[(metrics["weights"] == weights) & metrics["metric"].isin(("AP", "AUROC"))]
    means = chosen.groupby(["arm", "label", "split", "metric"], sort=False)["value"].mean().to_dict()
    arms, rows = list(dict.fromkeys(chosen["arm"])), []
    shortcuts = _Shortcuts(cohort)
    for at in groups_of(cohort)["all"]:
        label, counts = cohort.labels[at], {split: _counts(part, at) for split, part in scored.items()}
        test = scored["test"].labels[:, at]
        best = shortcuts.best(label, test) if counts["test"][0] >= MIN_POSITIVE_PATIENTS else None
        for arm in arms:
            ap, auroc, val = (float(means[arm, label, *key]) for key in (("test", "AP"), ("test", "AUROC"),
                                                                         ("val", "AUROC")))
            rows += [{"arm": arm, "label": label, **row} for row in (
                _near_prevalence(ap, auroc, counts["test"]),
                _metadata(auroc, best, counts["test"]),
                _overfit(val, auroc, counts),
            )]
    rows += [] if controls is None else _control_gains(controls)
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"flagged": "boolean", "value": "float64",
                                                             "reference": "float64"})


class _Shortcuts:
    """What sex, age band and view alone say of a label: its rate in the train split, and no image."""

    def __init__(self, cohort: Cohort) -> None:
        self.train = cohort.split("train")
        test = cohort.split("test").sort_values("image_id", ignore_index=True)
        self.parts = [(attribute, value, rows, subgroups_of(self.train).get(attribute, {}).get(value))
                      for attribute, parts in subgroups_of(test).items() for value, rows in parts.items()]

    def best(self, label: str, labels: Array) -> tuple[str, float] | None:
        """The attribute that ranks the test images best, and its AUROC; None where none is known or can be ranked.

        ``labels``: float64 (n_test_images,), sorted by image_id.
        """
        known = ~np.isnan(labels)
        truth, overall = self.train[label].to_numpy(dtype=np.float64, na_value=np.nan), float("nan")
        if not (truth == 1).any() or len(np.unique(labels[known])) < 2:
            return None
        overall = float(np.nanmean(truth))
        scores: dict[str, NDArray[np.float64]] = {}
        for attribute, _, rows, then in self.parts:
            score = scores.setdefault(attribute, np.full(len(labels), overall))
            seen = truth[then] if then is not None else np.zeros(0)
            score[rows] = np.nanmean(seen) if (~np.isnan(seen)).any() else overall
        found = {name: float(roc_auc_score(labels[known], score[known])) for name, score in scores.items()}
        return max(found.items(), key=lambda item: item[1]) if found else None


def _counts(part: Scored, at: int) -> tuple[int, int, int]:
    """Positive patients, positive images and negative images of a class."""
    images, patients = support(part.labels[:, [at]], part.patients)
    return patients, images, int((part.labels[:, at] == 0).sum())


def _row(signature: str, *, value: float, reference: float, flagged: bool, words: str) -> dict[str, Any]:
    """One check; NaN for what is undefined."""
    if np.isnan(value) or np.isnan(reference):
        return _unseen(signature, "undefined on one of the splits")
    return {"signature": signature, "value": value, "reference": reference, "flagged": flagged,
            "words": words if flagged else None, "reason": None}


def _unseen(signature: str, reason: str) -> dict[str, Any]:
    return {"signature": signature, "flagged": None, "value": np.nan, "reference": np.nan, "words": None,
            "reason": reason}


def _few(split: str) -> str:
    return f"fewer than {MIN_POSITIVE_PATIENTS} positive patients in {split}"


def _near_prevalence(ap: float, auroc: float, counts: tuple[int, int, int]) -> dict[str, Any]:
    patients, positive, negative = counts
    if patients < MIN_POSITIVE_PATIENTS:
        return _unseen(NEAR_PREVALENCE, _few("test"))
    prevalence = positive / (positive + negative)
    lift = (ap - prevalence) / (1 - prevalence) if negative else float("nan")
    return _row(NEAR_PREVALENCE, value=ap, reference=prevalence, flagged=auroc >= HIGH_AUROC and lift < LIFT,
                words=f"AUROC {auroc:.2f}, but AP {ap:.3f} at a prevalence of {prevalence:.3f}: hardly any image that "
                      "it points to has the finding")


def _metadata(auroc: float, best: tuple[str, float] | None, counts: tuple[int, int, int]) -> dict[str, Any]:
    if counts[0] < MIN_POSITIVE_PATIENTS:
        return _unseen(METADATA, _few("test"))
    if best is None:
        return _unseen(METADATA, "no view, sex or age that differs, or no train positives")
    return _row(METADATA, value=auroc, reference=best[1], flagged=best[1] >= auroc - AS_WELL,
                words=f"{best[0]} alone ranks about as well: AUROC {best[1]:.2f}, the arm's {auroc:.2f}")


def _overfit(val: float, test: float, counts: Mapping[str, tuple[int, int, int]]) -> dict[str, Any]:
    thin = [split for split, (patients, _, _) in counts.items() if patients < MIN_POSITIVE_PATIENTS]
    if thin:
        return _unseen(OVERFIT, _few(thin[0]))
    error = math.hypot(*(auroc_error(auroc, *counts[split][1:]) for split, auroc in (("val", val), ("test", test))))
    return _row(OVERFIT, value=val, reference=test, flagged=val - test > max(FALL, 2 * error),
                words=f"AUROC {val:.2f} on validation, {test:.2f} on test")


def auroc_error(auroc: float, n_positive: int, n_negative: int) -> float:
    """Standard error of an AUROC (Hanley and McNeil 1982, their formula for exponential scores)."""
    one, two = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    variance = auroc * (1 - auroc) + (n_positive - 1) * (one - auroc**2) + (n_negative - 1) * (two - auroc**2)
    return float(np.sqrt(max(0.0, variance) / (n_positive * n_negative))) if n_positive and n_negative else float("nan")


def _control_gains(controls: pd.DataFrame) -> list[dict[str, Any]]:
    """Every control of every arm."""
    rows = []
    for row in controls[controls["label"] != CONTROL].to_dict("records"):
        words = f"a gain of {row['delta']:+.3f} over {row['rival']} where no image shows a sign"
        seen = _unseen(CONTROL_GAIN, str(row["reason"])) if pd.isna(row["p"]) else _row(
            CONTROL_GAIN, value=row["delta"], reference=0.0, flagged=bool(row["significant"]) and row["delta"] > 0,
            words=words)
        rows.append({"arm": row["arm"], "label": row["label"], **seen})
    return rows


def signature_sentence(table: pd.DataFrame, *, arm: str) -> str:
    """What is flagged of one arm, in words."""
    own = table[table["arm"] == arm]
    looked, found = own[own["flagged"].notna()], own[own["flagged"].fillna(False)]
    not_looked = f"; {len(own) - len(looked)} could not be looked at" if len(looked) < len(own) else ""
    if found.empty:
        return f"Failure signatures of {arm}: none in {len(looked)} checks{not_looked}."
    named = "; ".join(f"{signature} ({', '.join(part['label'])})" for signature, part in
                      found.groupby("signature", sort=False))
    return f"Failure signatures of {arm}, {len(found)} in {len(looked)} checks{not_looked}: {named}."
