"""The plan as generation sees it: which rows there are, and which logical batches are left to draw.

Nothing here costs more per row where there are more of them (``scripts/bench/plan_rows.py`` measures it).
"""

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import pandas as pd

from cohort.config import Run
from cohort.errors import TailfillError
from cohort.stage import verify
from cohort.tables import plan_schema, read_table
from synth.drawing.parts import finished_batches, is_assembled
from synth.drawing.sampling import Row


def read_plan(run: Run, labels: Sequence[str], limit: int | None) -> pd.DataFrame:
    """The plan's rows, only the first ``limit`` if it is given; raises ``TailfillError`` when there are none."""
    plan = read_table(verify(run.folder / "plan", "plan", "plan.parquet"), plan_schema(labels)).iloc[:limit]
    if plan.empty:
        raise TailfillError(f"{run.folder / 'plan' / 'plan.parquet'}: holds no rows; nothing can be generated")
    return plan


def asked_texts(plan: pd.DataFrame) -> dict[str, str]:
    """Each distinct text of the plan, to the id of a sample that asks for it."""
    return {text: sample_id for name in ("prompt", "negative_prompt")
            for text, sample_id in zip(plan[name], plan["sample_id"], strict=True)}


def to_rows(frame: pd.DataFrame) -> list[Row]:
    """Rows of the plan as sampling takes them."""
    columns = [frame[name] for name in ("sample_id", "prompt", "negative_prompt", "seed")]
    starts = [frame[name].astype(object).where(frame[name].notna(), None) for name in ("init_image_id", "strength")]
    return [Row(sample_id=sample_id, prompt=prompt, negative_prompt=negative, seed=int(seed), init_image_id=source,
                strength=strength)
            for sample_id, prompt, negative, seed, source, strength in zip(*columns, *starts, strict=True)]


def batches_left(plan: pd.DataFrame, folder: Path) -> list[int]:
    """The logical batches that have not been drawn, in order."""
    if is_assembled(folder):
        return []
    return sorted({int(batch) for batch in plan["batch"].unique()} - finished_batches(folder))


def rows_by_batch(plan: pd.DataFrame, batches: Sequence[int]) -> list[tuple[int, list[Row]]]:
    """The rows of some logical batches, batch by batch, each batch in the plan's order."""
    chosen = plan[plan["batch"].isin(batches)].sort_values("batch", kind="stable")
    numbered = zip(chosen["batch"].tolist(), to_rows(chosen), strict=True)
    return [(batch, [row for _, row in rows]) for batch, rows in groupby(numbered, key=itemgetter(0))]
