"""What a rehearsal found, as tables: shares, thinnings, prediction; and in words.

Written below ``RUN/rehearsal/results``::

    recovered.parquet    level x arm x finding x metric: gain over its repeats, and the recovered share (Fieller set)
    contrasts.parquet    level x finding x metric: the endpoint's arm against what else it must beat (`rivals_aside`)
    runs.parquet         level x seed x finding: positives before and after thinning, images made and kept, slots filled
    prediction.parquet   actual tail class: predicted share with its interval; where an oracle could be had, the
    measured

The endpoint's metric and weights are the experiment's. Not promised: that a share is more than the generator's; where
its weights may have seen the finding before, the share is optimistic, and the sentences say so.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from classify.compare import CompareConfig
from classify.comparison.intervals import patient_draws
from classify.rehearsal.choices import Cell
from classify.rehearsal.page import Findings, render
from classify.rehearsal.prediction import Forecast, forecast
from classify.rehearsal.settings import RehearsalConfig
from classify.rehearsal.shares import (
    ORACLE,
    REHEARSED_GROUP,
    RIVAL,
    TAIL_GROUP,
    Measured,
    contrast_table,
    measure,
    recovered_table,
    tail_table,
)
from cohort.config import Run
from cohort.pipeline import read_stamp
from cohort.stage import Stage, require, verify, write_atomically
from cohort.tables import Cohort, load_cohort, read_table, write_table

log = logging.getLogger(__name__)


def write_results(
    run: Run, config: RehearsalConfig, compare: CompareConfig, folders: Mapping[Cell, Path], *, has_truth: bool
) -> None:
    """Measure every run, join them, predict, and write tables, page and stamp, unless that is done.

    Raises ``TailfillError`` for a run that is not complete, or whose predictions are not its cohort's.
    """
    predictions = {f"predict {cell.name} {arm}": folder / "predictions" / arm / "seed_0"
                   for cell, folder in folders.items() for arm in config.arms}
    stage = Stage("rehearse", run.folder / "rehearsal" / "results",
                  config={"rehearsal": asdict(config), "n_draws": compare.n_draws, "endpoint": asdict(compare.endpoint),
                          "seed": run.seed, "has_truth": has_truth},
                  inputs={"cohort": run.cohort_folder, **predictions})
    if stage.is_complete():
        log.info("rehearsal: complete, nothing to do")
        return
    cohort = load_cohort(run.cohort_folder)
    cells = measure_all(run, config, compare, folders, cohort)
    recovered = recovered_table(cells, config.arms)
    tail = tail_table(cells, cohort, config.arms) if has_truth else None
    fitted = forecast(gains_for_forecast(recovered, arm=compare.endpoint.arm, metric=compare.endpoint.metric))
    prediction = prediction_table(fitted, cohort, tail, arm=compare.endpoint.arm, metric=compare.endpoint.metric)
    found = Findings(
        run=run, cohort=cohort, config=config, endpoint=compare.endpoint, folders=folders, recovered=recovered,
        contrasts=contrast_table(cells, config.arms, arm=compare.endpoint.arm),
        runs=pd.concat([run_rows(cell, folder) for cell, folder in folders.items()], ignore_index=True),
        prediction=prediction, forecast=fitted, provenance=provenance_of(folders),
    )
    stage.begin()
    outputs = ["recovered.parquet", "contrasts.parquet", "runs.parquet", "prediction.parquet"]
    joined = recovered if tail is None else pd.concat([recovered, tail], ignore_index=True)
    for name, table in zip(outputs, (joined, found.contrasts, found.runs, prediction), strict=True):
        write_table(table, stage.folder / name)
    for name, text in render(found).items():
        write_atomically(stage.folder / name, text.encode("utf-8"))
        outputs.append(name)
    defined = int(recovered["share"].notna().sum())
    stage.finish(outputs=outputs, counts={"rows": len(recovered), "with_share": defined, "runs": len(cells)},
                 extra={"forecast": asdict(fitted)})


def measure_all(
    run: Run, config: RehearsalConfig, compare: CompareConfig, folders: Mapping[Cell, Path], cohort: Cohort
) -> dict[Cell, Measured]:
    """Every run on the same draws of the same test patients."""
    made: dict[int, NDArray[np.uint16]] = {}

    def draws(n_patients: int) -> NDArray[np.uint16]:
        if n_patients not in made:
            made[n_patients] = patient_draws(n_patients, compare.n_draws, np.random.default_rng(run.seed))
        return made[n_patients]

    tail = cohort.in_group("tail")
    return {cell: measure(folder, [*cell.findings, *tail], arms=config.arms, weights=compare.endpoint.weights,
                          make_draws=draws, threads=run.threads) for cell, folder in folders.items()}


def run_rows(cell: Cell, folder: Path) -> pd.DataFrame:
    """One row per thinned finding of a run: positives before and after in train and validation, images made and kept.

    ``made`` and ``kept``: images charged to the finding; ``synthetic`` and ``slots``: the slots of the arm `synthetic`
    with a positive of it; ``new_real``: slots of the oracle, over all findings, that hold a withheld image.
    """
    told = read_table(verify(folder / "cohort", "thin", "thinning.parquet"))
    made = read_table(folder / "synthetic" / "synthetic.parquet")
    stamps = {arm: read_stamp(folder / "arms" / arm / "seed_0") or {} for arm in ("synthetic", ORACLE)}
    seen = stamps["synthetic"].get("extra", {}).get("tail_seen", {})
    rows = []
    for finding in cell.findings:
        own = {str(row["split"]): row for row in told[told["label"] == finding].to_dict("records")}
        charged = made[made["charged_to"] == finding]
        rows.append({
            "level": cell.level, "seed": cell.seed, "set": cell.place, "finding": finding,
            **{f"{split}_{key}": int(own[split][key]) for split in ("train", "val")
               for key in ("n_before", "n_kept", "n_withheld")},
            "company_before": float(own["train"]["company_before"]),
            "company_after": float(own["train"]["company_after"]),
            "made": len(charged), "kept": int(charged["keep"].sum()), "slots": seen.get(finding, {}).get("slots", 0),
            "synthetic": seen.get(finding, {}).get("synthetic", 0),
            "new_real": stamps[ORACLE].get("counts", {}).get("new_real", 0),
            "unfilled": stamps[ORACLE].get("counts", {}).get("unfilled", 0),
        })
    return pd.DataFrame(rows)


def gains_for_forecast(recovered: pd.DataFrame, *, arm: str, metric: str) -> pd.DataFrame:
    """What ``prediction.forecast`` reads: every finding and level at which ``arm`` and oracle could be measured."""
    rows = recovered[recovered["metric"] == metric]
    oracle = rows[(rows["arm"] == ORACLE) & (rows["label"] == REHEARSED_GROUP)]
    told = oracle.loc[oracle["gain_low"] > 0, "level"]
    own = rows[(rows["arm"] == arm) & ~rows["is_group"]].dropna(subset=["n_real", "gain", "oracle_gain"])
    read = own[["label", "n_real", "gain", "oracle_gain"]].rename(columns={"label": "finding"})
    return read.assign(told=own["level"].isin(told)).reset_index(drop=True)


def prediction_table(
    fitted: Forecast, cohort: Cohort, tail: pd.DataFrame | None, *, arm: str, metric: str
) -> pd.DataFrame:
    """One row per actual tail class, and one for the group: predicted share and interval, and what was measured.

    ``inside``: whether the measured share lies in the predicted interval; null where either is missing.
    """
    train = cohort.split("train")
    counts = {label: int((train[label] == 1).sum()) for label in cohort.in_group("tail")}
    rows: list[dict[str, Any]] = []
    known = {label: n for label, n in counts.items() if n}
    group = {TAIL_GROUP: round(float(np.median(list(known.values()))))} if known else {}
    for label, n_real in (counts | group).items():
        told = fitted.predict(n_real)
        row: dict[str, Any] = {
            "label": label, "n_real": n_real, "predicted": told.share, "low": told.low, "high": told.high,
            "reason": told.reason, "measured": np.nan, "measured_low": np.nan, "measured_high": np.nan,
            "measured_reason": "nobody can supply new patients", "inside": None,
        }
        if tail is not None:
            row |= _measured(tail, label, arm=arm, metric=metric)
            if told.low is not None and told.high is not None and not pd.isna(row["measured"]):
                row["inside"] = bool(told.low <= row["measured"] <= told.high)
        rows.append(row)
    kinds = dict.fromkeys(("predicted", "low", "high", "measured", "measured_low", "measured_high"), "float64")
    return pd.DataFrame(rows, columns=list(rows[0]) if rows else ["label", "n_real", *kinds, "reason",
                                                                   "measured_reason", "inside"]).astype(
        kinds | {"inside": "boolean"})


def _measured(tail: pd.DataFrame, label: str, *, arm: str, metric: str) -> dict[str, Any]:
    found = tail[(tail["arm"] == arm) & (tail["label"] == label) & (tail["metric"] == metric)]
    if found.empty:
        return {"measured_reason": "no positive in train"}
    row = found.iloc[0]
    return {"measured": row["share"], "measured_low": row["ci_low"], "measured_high": row["ci_high"],
            "measured_reason": row["reason"]}


def provenance_of(folders: Mapping[Cell, Path]) -> str:
    """``known`` where the weights of every generator and classifier come from patients who can be compared."""
    for folder in folders.values():
        drawn = require(folder / "generator", "finetune")["extra"].get("provenance")
        trained = (read_stamp(folder / "train" / RIVAL / "seed_0") or {"extra": {}})["extra"].get("provenance")
        if drawn != "known" or trained != "this run":
            return "unknown"
    return "known"
