"""Several rounds as one: their plans and their images as the tables of one run, which every later stage can read.

Nothing is copied: the table of images names the files in their rounds' folders. The stamps are those of ``plan`` and
``generate``, with the rounds for inputs, so that an ordinary stage of that name refuses the folder, and the rounds'
counts and seconds added up. Not promised: that an image is found when its round's folder was moved.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cohort.stage import Stage, require, verify
from cohort.tables import Cohort, images_schema, plan_schema, read_table, write_table


def pool_plans(folder: Path, rounds: Sequence[Path], cohort: Cohort, *, reasons: Mapping[str, str]) -> None:
    """Write the stage folder ``folder`` from the plans of ``rounds``, unless it is complete.

    ``reasons``: why a class was not filled, added to why its budget is what it is. Batches are numbered on.
    Raises ``TailfillError`` when a plan was changed, or the folder was made from other rounds.
    """
    folders = [place / "plan" for place in rounds]
    stamps = [require(place, "plan") for place in folders]
    stage = Stage("plan", folder, config=stamps[0]["config"],
                  inputs={"cohort": cohort.folder, **{r.name: f for r, f in zip(rounds, folders, strict=True)}})
    if stage.is_complete():
        return
    plans = [read_table(verify(place, "plan", "plan.parquet"), plan_schema(cohort.labels)) for place in folders]
    first = 0
    for plan in plans:
        plan["batch"] += first
        first = int(plan["batch"].max()) + 1
    budgets = [read_table(verify(place, "plan", "budget.parquet")) for place in folders]
    budget = budgets[0].assign(**{key: sum(b[key] for b in budgets) for key in ("charged", "carried")})
    told = [[text for text in (own, reasons.get(label)) if isinstance(text, str)]
            for label, own in zip(budget["label"], budget["reason"], strict=True)]
    budget["reason"] = pd.array(["; ".join(texts) or None for texts in told], dtype="str")
    stage.begin()
    write_table(pd.concat(plans, ignore_index=True), folder / "plan.parquet", plan_schema(cohort.labels))
    write_table(budget, folder / "budget.parquet")
    stage.finish(outputs=["plan.parquet", "budget.parquet"], counts=_sum_counts(stamps), extra=stamps[0]["extra"],
                 seconds=_sum_seconds(stamps))


def pool_images(folder: Path, rounds: Sequence[Path]) -> None:
    """Write the stage folder ``folder`` from the images of ``rounds``, unless it is complete.

    Raises ``TailfillError`` when a table was changed, or the folder was made from other rounds.
    """
    folders = [place / "images" for place in rounds]
    stamps = [require(place, "generate") for place in folders]
    made_by = {key: Path(entry["path"]) for stamp in stamps for key, entry in stamp["inputs"].items() if key != "plan"}
    stage = Stage("generate", folder, config=stamps[0]["config"],
                  inputs=made_by | {r.name: f for r, f in zip(rounds, folders, strict=True)})
    if stage.is_complete():
        return
    tables = []
    for place in folders:
        table = read_table(verify(place, "generate", "images.parquet"), images_schema())
        tables.append(table.assign(path=f"{os.path.relpath(place, folder)}/" + table["path"]))
    stage.begin()
    write_table(pd.concat(tables, ignore_index=True), folder / "images.parquet", images_schema())
    stage.finish(outputs=["images.parquet"], counts=_sum_counts(stamps), extra=_join_extra(stamps),
                 seconds=_sum_seconds(stamps))


def _sum_counts(stamps: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for stamp in stamps:
        counts.update(stamp["counts"])
    return dict(counts)


def _sum_seconds(stamps: Sequence[Mapping[str, Any]]) -> float:
    return round(sum(float(stamp["seconds"]) for stamp in stamps), 1)


def _join_extra(stamps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the rounds' stamps say beside counts; where they differ, round by round in words."""
    joined: dict[str, Any] = {}
    for key in dict.fromkeys(key for stamp in stamps for key in stamp["extra"]):
        values = [stamp["extra"].get(key) for stamp in stamps]
        same = all(value == values[0] for value in values)
        joined[key] = values[0] if same else "; ".join(dict.fromkeys(str(value) for value in values))
    return joined
