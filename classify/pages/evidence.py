"""What the report may speak of: the tables and stamps of one run, read once and checked.

Nothing is computed here but joins and counts. A required stage that is missing raises ``TailfillError`` with the
command that makes it; what is optional (the autoencoder, thresholds, histories, the endpoint's file) is empty when
absent, and the report leaves that part out and says so. Images themselves are not re-hashed: only tables are.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from classify.arms.amounts import plain_arms
from classify.comparison.measuring import groups_of
from classify.verdict.looks import LOOKS, looks_sentence, read_looks
from cohort.config import Run
from cohort.errors import TailfillError
from cohort.pipeline import STAGES, StageEntry, read_stamp, stage_folders
from cohort.stage import require, verify
from cohort.tables import (
    Cohort,
    comparison_schema,
    images_schema,
    load_cohort,
    plan_schema,
    read_table,
    synthetic_schema,
)
from cohort.vocabulary.labels import CONTROL

GROUPS = ("tail", "medium", "head", "under_200", "all")
"""The order in which groups are shown: what the tool is about comes first."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """One folder of one stage."""

    entry: StageEntry
    folder: Path
    stamp: Mapping[str, Any]

    @property
    def seed(self) -> int | None:
        """The seed of a folder ``.../ARM/seed_N``, else None."""
        name = self.folder.name
        return int(name.removeprefix("seed_")) if name.startswith("seed_") else None

    @property
    def arm(self) -> str | None:
        """The arm of a folder ``.../ARM/seed_N`` or ``.../ARM@MEMBER/seed_N``, else None."""
        return None if self.seed is None else self.folder.parent.name.partition("@")[0]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything that the report shows, as the stages wrote it."""

    run: Run
    cohort: Cohort
    cohort_extra: Mapping[str, Any]
    plan: pd.DataFrame
    budget: pd.DataFrame
    images: pd.DataFrame
    synthetic: pd.DataFrame
    thresholds: pd.DataFrame
    fidelity: pd.DataFrame
    nearest: pd.DataFrame
    memorised: pd.DataFrame
    probe: pd.DataFrame
    drawn: pd.DataFrame
    comparison: pd.DataFrame
    recovered: pd.DataFrame
    controls: pd.DataFrame
    amounts: pd.DataFrame
    subgroups: pd.DataFrame
    signatures: pd.DataFrame
    metrics: pd.DataFrame
    models: pd.DataFrame
    verdict: Mapping[str, Any]
    endpoint: Mapping[str, str]
    endpoint_hash: str | None
    looks: str
    """How often test was looked at, in words."""
    made: tuple[Made, ...]

    @property
    def arms(self) -> list[str]:
        """The arms that were compared, in the order of the experiment's settings, less those at other amounts.

        These have a chapter of their own.
        """
        every = set(self.comparison["arm"]) | set(self.comparison["rival"].dropna())
        present = set(plain_arms(sorted(every), self.endpoint["arm"], self.endpoint["rival"]))
        return [arm for arm in self.run.arms if arm in present] + sorted(present - set(self.run.arms))

    @property
    def labels(self) -> list[str]:
        """The labels, tail group first and negative controls last, the rarest first within a group."""
        count, order = self.budget.set_index("label")["n_real"], (*GROUPS, CONTROL)
        return sorted(self.cohort.labels, key=lambda x: (order.index(self.cohort.groups[x]), count.get(x, 0), x))

    @property
    def rows(self) -> list[str]:
        """The rows of every result table: groups that exist, then findings; negative controls have a chapter."""
        shown = set(self.comparison["label"]) - set(self.cohort.in_group(CONTROL))
        return [name for name in (*GROUPS, *self.labels) if name in shown]

    def stamps(self, stage: str) -> list[Made]:
        """The complete folders of one stage."""
        return [made for made in self.made if made.entry.name == stage]

    def result(self, *, arm: str, rival: str | None, label: str, metric: str) -> Mapping[str, Any] | None:
        """One row of the comparison, or None when it holds no such row."""
        table = self.comparison
        same_rival = table["rival"].isna() if rival is None else table["rival"] == rival
        found = table[(table["arm"] == arm) & same_rival & (table["label"] == label) & (table["metric"] == metric)]
        return None if found.empty else {str(key): value for key, value in found.iloc[0].items()}

    def difference(self, pair: tuple[str, str], label: str) -> Mapping[str, Any]:
        """The row of the comparison for an (arm, rival) pair in the endpoint's metric; empty when there is none."""
        return self.result(arm=pair[0], rival=pair[1], label=label, metric=self.endpoint["metric"]) or {}

    def members(self, group: str) -> tuple[list[str], list[str]]:
        """A group's labels with a value of the endpoint's metric, over which its mean runs, and the rest."""
        table, metric = self.comparison, self.endpoint["metric"]
        defined = set(table[(table["metric"] == metric) & table["rival"].isna() & table["value"].notna()]["label"])
        labels = [self.cohort.labels[at] for at in groups_of(self.cohort)[group]]
        return [label for label in labels if label in defined], [label for label in labels if label not in defined]

    def support(self, label: str) -> tuple[int, int] | None:
        """Positive test images and patients of a class or group, or None when nothing names them."""
        found = self.comparison[self.comparison["label"] == label]
        return None if found.empty else (int(found["n_positive_images"].iloc[0]),
                                         int(found["n_positive_patients"].iloc[0]))


def report_inputs(run: Run) -> dict[str, Path]:
    """The stages that the report cannot do without, in the order in which their absence is reported."""
    return {"prepare": run.cohort_folder, "plan": run.folder / "plan", "generate": run.folder / "images",
            "filter": run.folder / "synthetic", "compare": run.folder / "comparison"}


def load_evidence(run: Run) -> Evidence:
    """Read a run; raises ``TailfillError`` naming the stage, its command or the table at fault."""
    cohort = load_cohort(run.cohort_folder)
    folders = report_inputs(run)
    extra = require(folders["filter"], "filter")["extra"]
    compared = require(folders["compare"], "compare")
    verdict = compared["extra"].get("verdict")
    if not isinstance(verdict, dict) or "verdict" not in verdict:
        raise TailfillError(f"{folders['compare']}: its stamp holds no extra.verdict; run: python -m classify.compare")
    endpoint, endpoint_hash = _endpoint(run, verdict)
    return Evidence(
        run=run, cohort=cohort, cohort_extra=require(run.cohort_folder, "prepare")["extra"],
        plan=read_table(verify(folders["plan"], "plan", "plan.parquet"), plan_schema(cohort.labels)),
        budget=read_table(verify(folders["plan"], "plan", "budget.parquet")),
        images=read_table(verify(folders["generate"], "generate", "images.parquet"), images_schema()),
        synthetic=read_table(verify(folders["filter"], "filter", "synthetic.parquet"),
                             synthetic_schema(cohort.labels, extra.get("rules", []))),
        thresholds=optional_table(folders["filter"] / "thresholds.parquet"),
        fidelity=optional_table(folders["filter"] / "fidelity.parquet"),
        nearest=optional_table(folders["filter"] / "nearest.parquet"),
        memorised=optional_table(folders["filter"] / "memorised.parquet"),
        probe=optional_table(folders["filter"] / "probe.parquet"),
        drawn=optional_table(folders["filter"] / "drawn.parquet"),
        comparison=read_table(verify(folders["compare"], "compare", "comparison.parquet"), comparison_schema()),
        recovered=optional_table(folders["compare"] / "recovered.parquet"),
        controls=optional_table(folders["compare"] / "controls.parquet"),
        amounts=optional_table(folders["compare"] / "amounts.parquet"),
        subgroups=optional_table(folders["compare"] / "subgroups.parquet"),
        signatures=optional_table(folders["compare"] / "signatures.parquet"),
        metrics=optional_table(folders["compare"] / "metrics.parquet"),
        models=optional_table(folders["compare"] / "members.parquet"),
        verdict=verdict, endpoint=endpoint, endpoint_hash=endpoint_hash, made=_all_stages(run),
        looks=looks_sentence(read_looks(run.folder / LOOKS), compared["fingerprint"], own_cohort=run.owns_cohort),
    )


def optional_table(file: Path) -> pd.DataFrame:
    """A table that may be absent: empty then; raises ``TailfillError`` for one that is not as its stamp says."""
    stamp = read_stamp(file.parent)
    if stamp is not None and file.name in stamp["outputs"]:
        return read_table(verify(file.parent, stamp["stage"], file.name))
    return read_table(file) if file.is_file() else pd.DataFrame()


def histories(evidence: Evidence, stage: str) -> list[tuple[Made, pd.DataFrame]]:
    """The training history of each folder of a stage that has one."""
    found = [(made, optional_table(made.folder / "history.parquet")) for made in evidence.stamps(stage)]
    return [(made, table) for made, table in found if "step" in table and len(table)]


def _endpoint(run: Run, verdict: Mapping[str, Any]) -> tuple[dict[str, str], str | None]:
    """The primary endpoint and the hash of the file that fixed it."""
    file = run.folder / "endpoint.json"
    fixed = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    endpoint = verdict.get("endpoint") or fixed.get("endpoint")
    wanted = ("metric", "group", "arm", "rival")
    if not isinstance(endpoint, dict) or any(key not in endpoint for key in wanted):
        raise TailfillError(f"{run.folder / 'comparison'}: its verdict names no endpoint; wanted: {', '.join(wanted)}")
    return {key: str(value) for key, value in endpoint.items()}, fixed.get("sha256")


def _all_stages(run: Run) -> tuple[Made, ...]:
    """Every complete folder of the run, in the order of the pipeline."""
    found = []
    for entry in STAGES:
        folders = [run.cohort_folder] if entry.name == "prepare" else stage_folders(run.folder, entry)
        for folder in folders:
            stamp = read_stamp(folder)
            if stamp is not None and entry.name != "report":
                found.append(Made(entry=entry, folder=folder, stamp=stamp))
    return tuple(found)
