"""From criteria to decisions: the tables that the filter writes, and one image's case in words.

An image is kept when no rule that drops has a negative margin; a null margin, *not judged*, fails nothing. The margin
is in the rule's own unit (grey levels, a share, logits), so margins of different rules are not comparable.
"""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cohort.errors import TailfillError
from cohort.stage import verify
from cohort.tables import Cohort, read_table, synthetic_schema
from synth.judging.rules import Criterion, fails, worst_margin

SCORE_COLUMNS = ["sample_id", "rule", "label", "direction", "score", "threshold", "passed"]
THRESHOLD_COLUMNS = ["rule", "label", "direction", "threshold", "source", "n_positive", "n_judged", "n_failed", "drops",
                     "reason"]


def decide(made: pd.DataFrame, cohort: Cohort, verdicts: Mapping[str, list[Criterion]]) -> pd.DataFrame:
    """The rows of ``synthetic.parquet``: every image made, with margins, keep and the first failing rule as reason.

    ``made`` holds the plan's columns and ``path`` of each image made, in the order of the criteria's scores. An image
    that was drawn from a real one belongs to that one's patient; raises ``TailfillError`` for one that is not of train.
    """
    margins = pd.DataFrame({name: worst_margin(criteria, len(made)) for name, criteria in verdicts.items()},
                           index=made.index)
    failed = pd.DataFrame({name: fails(criteria, len(made)) for name, criteria in verdicts.items()}, index=made.index)
    reason = failed.idxmax(axis=1).where(failed.any(axis=1)) if len(margins.columns) else pd.Series(None, made.index)
    identity = "synthetic:" + made["sample_id"]
    owner = cohort.split("train").set_index("image_id")["patient_id"]
    strange = made["init_image_id"].dropna().loc[lambda source: ~source.isin(owner.index)]
    if len(strange):
        raise TailfillError(f"plan: an image was drawn from '{strange.iloc[0]}', which is no train image of "
                            f"{cohort.folder}")
    frame = made.assign(
        image_id=identity, root="synthetic", study_id=None, split="train",
        patient_id=made["init_image_id"].map(owner).fillna(identity), **margins,
        keep=~failed.any(axis=1), reason=reason,
    )
    return frame[list(synthetic_schema(cohort.labels, list(verdicts)).columns)]


def list_thresholds(verdicts: Mapping[str, list[Criterion]]) -> pd.DataFrame:
    """The rows of ``thresholds.parquet``; ``direction`` tells whether a score must reach or may not exceed it."""
    rows = [
        {"rule": name, "label": c.label, "direction": _direction(c), "threshold": c.threshold, "source": c.source,
         "n_positive": c.n_positive, "n_judged": int(c.applies.sum()) if c.threshold is not None else 0,
         "n_failed": int((c.margin() < 0).sum()), "drops": c.drops, "reason": c.reason}
        for name, criteria in verdicts.items() for c in criteria
    ]
    return pd.DataFrame(rows, columns=THRESHOLD_COLUMNS).astype(
        {"label": "str", "threshold": "float64", "n_positive": "Int64", "reason": "str"})


def list_scores(sample_ids: pd.Series, verdicts: Mapping[str, list[Criterion]]) -> pd.DataFrame:
    """The rows of ``scores.parquet``: for each image the criteria that apply to it; ``passed`` null = not judged."""
    parts = []
    for name, criteria in verdicts.items():
        for criterion in criteria:
            margin = criterion.margin()
            part = pd.DataFrame({
                "sample_id": sample_ids.to_numpy(), "rule": name, "label": criterion.label,
                "direction": _direction(criterion), "score": criterion.score, "threshold": criterion.threshold,
                "passed": pd.arrays.BooleanArray(margin >= 0, np.isnan(margin)),
            })
            parts.append(part[criterion.applies])
    scores = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=SCORE_COLUMNS)
    return scores.astype({"label": "str", "score": "float64", "threshold": "float64", "passed": "boolean"})


def explain(folder: Path, sample_id: str) -> str:
    """One image's case in words, from a complete folder; raises ``TailfillError`` for an id that is not there."""
    synthetic = read_table(verify(folder, "filter", "synthetic.parquet")).set_index("sample_id")
    if sample_id not in synthetic.index:
        raise TailfillError(f"{folder}: no image with sample_id '{sample_id}' was made")
    row = synthetic.loc[sample_id]
    reasons = read_table(verify(folder, "filter", "thresholds.parquet"))
    scores = read_table(verify(folder, "filter", "scores.parquet"))
    cases = scores[scores["sample_id"] == sample_id].merge(
        reasons, on=["rule", "label", "direction", "threshold"], how="left")
    verdict = "kept" if row["keep"] else f"dropped by {row['reason']}"
    lines = [f"{sample_id}: {verdict}; charged to {row['charged_to']}; {row['path']}"]
    for case in cases.to_dict("records"):
        name = case["rule"] if pd.isna(case["label"]) else f"{case['rule']}, {case['label']}"
        if pd.isna(case["passed"]):
            lines.append(f"  {name}: score {case['score']:.4g}; {case['reason']}")
        else:
            lines.append(f"  {name}: score {case['score']:.4g}, {_word(case)} "
                         f"{case['direction']} {case['threshold']:.4g} ({case['source']})")
    return "\n".join(lines) + "\n"


def _word(case: Mapping[Hashable, Any]) -> str:
    """What became of an image under a criterion that judged it."""
    return "passes" if case["passed"] else "FAILS" if case["drops"] else "fails, which drops nothing,"


def _direction(criterion: Criterion) -> str:
    return "at least" if criterion.at_least else "at most"
