"""What each model of an ensemble scores by itself, beside the ensemble: a gain must be seen to be one.

The members of every arm and seed, and the folds of a cross-validation. Test predictions of members are turned into
numbers only here, as part of a comparison, which counts as a look at test.

Not promised: intervals; the ensemble itself has them, being what is compared.
"""

from collections.abc import Hashable, Mapping

import numpy as np
import pandas as pd

from classify.comparison.measuring import Scored, groups_of, metric_rows
from classify.ensembling.folds import FOLD, TEST
from classify.ensembling.models import TABLE, ensemble_folder, model_folder, models_of, single_folders
from classify.ensembling.studies import read_units
from cohort.config import Run
from cohort.stage import verify
from cohort.tables import Cohort, predictions_schema, read_table

ENSEMBLE = "ensemble"
"""What stands in the column ``model`` for all of them together."""
METRICS = ("AP", "AUROC")
COLUMNS = ("arm", "seed", "model", "split", "label", "metric", "value", "n_positive_images", "n_positive_patients",
           "reason")
OUT_OF_FOLD = "out of fold"
"""In the column ``split``: the train and validation images, each by the fold that has left it out."""


def model_scores(
    run: Run, cohort: Cohort, metrics: pd.DataFrame, end: Mapping[str, str], *, unit: str, n_folds: int
) -> dict[str, tuple[pd.DataFrame, str]]:
    """``members`` to the table of ``model_rows`` and its sentence; empty where nothing was made one.

    ``end``: the comparison's endpoint (``compare.endpoint``).
    """
    if not run.members and not n_folds:
        return {}
    table = model_rows(run, cohort, metrics, weights=end["weights"], unit=unit, n_folds=n_folds)
    metric = end["metric"] if end["metric"] in METRICS else METRICS[0]
    arm = end["arm"] if run.members else FOLD
    return {"members": (table, model_sentence(table, arm=arm, group=end["group"], metric=metric))}


def model_rows(
    run: Run, cohort: Cohort, metrics: pd.DataFrame, *, weights: str, unit: str, n_folds: int
) -> pd.DataFrame:
    """The table ``members``: each model, then the ensemble, on validation and test, by group; see ``COLUMNS``.

    ``metrics``: the table of ``measuring.metric_rows`` of the arms, by ``unit``, ``image`` or ``study``. ``cohort``
    holds images. Of folds, validation is ``out of fold``, and there are images only.
    """
    parts = []
    if run.members:
        found = metric_rows(*read_units(single_folders(run, 0), cohort, weights=weights, unit=unit))
        split = found["arm"].str.rsplit("@", n=1, expand=True)
        parts += [found.assign(arm=split[0], model=split[1]), metrics.assign(model=ENSEMBLE)]
    if n_folds:
        parts.append(fold_rows(run, cohort, n_folds=n_folds, weights=weights))
    table = pd.concat(parts, ignore_index=True)
    chosen = (table["weights"] == weights) & table["label"].isin(groups_of(cohort)) & table["metric"].isin(METRICS)
    return table.loc[chosen, list(COLUMNS)].reset_index(drop=True)


def fold_rows(run: Run, cohort: Cohort, *, n_folds: int, weights: str) -> pd.DataFrame:
    """The rows of ``measuring.metric_rows`` for n folds on test, and for all together there and out of fold."""
    test, models, schema = {}, {}, predictions_schema(cohort.labels)
    folders = [model_folder(run, *one) for one in models_of(run, FOLD, 1000 * n_folds)]
    for number, folder in enumerate([*folders, ensemble_folder(run, FOLD, 1000 * n_folds)]):
        table = read_table(verify(folder, "predict" if number < n_folds else "ensemble", TABLE), schema)
        table = table[table["weights"] == weights].sort_values("image_id", ignore_index=True)
        inside = table["split"] == TEST
        test[FOLD, number, weights] = _logits(table[inside], cohort)
        models[number] = f"fold {number}" if number < n_folds else ENSEMBLE
    out = table[~inside]  # of the last folder: all folds together
    unseen = Scored(labels=_labels(out, cohort), patients=_patients(out),
                    logits=dict.fromkeys(test, _logits(out, cohort)))
    tested = Scored(labels=_labels(table[inside], cohort), patients=_patients(table[inside]), logits=test)
    rows = metric_rows({"val": unseen, "test": tested}, cohort)
    rows = rows[(rows["split"] == TEST) | (rows["seed"] == n_folds)]  # out of fold there is one opinion, not n
    return rows.assign(model=rows["seed"].map(models), seed=0, split=rows["split"].replace("val", OUT_OF_FOLD))


def model_sentence(table: pd.DataFrame, *, arm: str, group: str, metric: str) -> str:
    """The ensemble's score on test beside its best and its worst member's, in words."""
    own = table[(table["arm"] == arm) & (table["label"] == group) & (table["metric"] == metric)
                & (table["split"] == TEST)]
    means: Mapping[Hashable, float] = own.groupby("model", sort=False)["value"].mean().to_dict()
    single = {model: value for model, value in means.items() if model != ENSEMBLE}
    if own["value"].isna().all():
        return f"Members: {metric} of the group {group} is undefined on test."
    best, worst = max(single, key=lambda one: single[one]), min(single, key=lambda one: single[one])
    return (f"Each model of {arm} by itself has a mean {metric} over the {group} group of {single[worst]:.3f} "
            f"({worst}) to {single[best]:.3f} ({best}) on test; their ensemble has {means[ENSEMBLE]:.3f}.")


def _logits(table: pd.DataFrame, cohort: Cohort) -> np.ndarray:
    return table[[f"logit_{label}" for label in cohort.labels]].to_numpy(dtype=np.float64)


def _labels(table: pd.DataFrame, cohort: Cohort) -> np.ndarray:
    return table[cohort.labels].to_numpy(dtype=np.float64, na_value=np.nan)


def _patients(table: pd.DataFrame) -> np.ndarray:
    return np.unique(table["patient_id"].to_numpy(dtype=str), return_inverse=True)[1]
