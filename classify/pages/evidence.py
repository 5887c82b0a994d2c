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

from cohort.config import Run
from cohort.errors import TailfillError
from cohort.pipeline import STAGES, StageEntry, is_stale, read_stamp, stage_folders
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

GROUPS = ("tail", "medium", "head", "all")
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
        """The arm of a folder ``.../ARM/seed_N``, else None."""
        return None if self.seed is None else self.folder.parent.name


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
    comparison: pd.DataFrame
    metrics: pd.DataFrame
    verdict: Mapping[str, Any]
    endpoint: Mapping[str, str]
    endpoint_hash: str | None
    made: tuple[Made, ...]

    @property
    def arms(self) -> list[str]:
        """The arms that were compared, in the order of the experiment's settings."""
        present = set(self.comparison["arm"]) | set(self.comparison["rival"].dropna())
        return [arm for arm in self.run.arms if arm in present] + sorted(present - set(self.run.arms))

    @property
    def labels(self) -> list[str]:
        """The labels, tail group first, the rarest first within a group."""
        count = self.budget.set_index("label")["n_real"]
        return sorted(self.cohort.labels, key=lambda x: (GROUPS.index(self.cohort.groups[x]), count.get(x, 0), x))

    @property
    def rows(self) -> list[str]:
        """The rows of every result table: groups that exist, then labels."""
        present = set(self.comparison["label"])
        return [name for name in (*GROUPS, *self.labels) if name in present]

    def stamps(self, stage: str) -> list[Made]:
        """The complete folders of one stage."""
        return [made for made in self.made if made.entry.name == stage]

    def result(self, *, arm: str, rival: str | None, label: str, metric: str) -> Mapping[str, Any] | None:
        """One row of the comparison, or None when it holds no such row."""
        table = self.comparison
        same_rival = table["rival"].isna() if rival is None else table["rival"] == rival
        found = table[(table["arm"] == arm) & same_rival & (table["label"] == label) & (table["metric"] == metric)]
        return None if found.empty else {str(key): value for key, value in found.iloc[0].items()}

    def members(self, group: str) -> tuple[list[str], list[str]]:
        """A group's labels with a value of the endpoint's metric, over which its mean runs, and the rest."""
        table, metric = self.comparison, self.endpoint["metric"]
        defined = set(table[(table["metric"] == metric) & table["rival"].isna() & table["value"].notna()]["label"])
        labels = self.cohort.labels if group == "all" else self.cohort.in_group(group)
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
    verdict = require(folders["compare"], "compare")["extra"].get("verdict")
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
        comparison=read_table(verify(folders["compare"], "compare", "comparison.parquet"), comparison_schema()),
        metrics=optional_table(folders["compare"] / "metrics.parquet"),
        verdict=verdict, endpoint=endpoint, endpoint_hash=endpoint_hash, made=_all_stages(run),
    )


def optional_table(file: Path) -> pd.DataFrame:
    """A table that may be absent: empty then."""
    return read_table(file) if file.is_file() else pd.DataFrame()


def histories(evidence: Evidence, stage: str) -> list[tuple[Made, pd.DataFrame]]:
    """The training history of each folder of a stage that has one."""
    found = [(made, optional_table(made.folder / "history.parquet")) for made in evidence.stamps(stage)]
    return [(made, table) for made, table in found if "step" in table and len(table)]


def limits(evidence: Evidence) -> list[str]:
    """What this run cannot say, derived from what it holds."""
    found = [*_limits_of_support(evidence), *_limits_of_slots(evidence), *_limits_of_design(evidence),
             *_limits_of_provenance(evidence)]
    stale = [made.folder.relative_to(evidence.run.folder).as_posix() for made in evidence.made
             if made.folder.is_relative_to(evidence.run.folder) and is_stale(dict(made.stamp))]
    if stale:
        found.append(f"An input has changed since these folders were made, so they may not belong together: "
                     f"{', '.join(stale[:8])}{' …' if len(stale) > 8 else ''}.")
    return found


def _limits_of_support(evidence: Evidence) -> list[str]:
    few = [(label, evidence.support(label)) for label in evidence.labels]
    named = [f"{label} ({s[0]} images of {s[1]} patients)" for label, s in few if s is not None and s[1] < 10]
    if not named:
        return []
    return ["With fewer than 10 positive test patients no interval is given for a class: " + ", ".join(named) +
            ". A number shown for such a class describes these few patients and no others."]


def _limits_of_design(evidence: Evidence) -> list[str]:
    found = ["All arms share one fine-tuned generator, one filter and, where train.init_seed is set, one classifier to "
             "start from, so the intervals are conditional on them: another training of these could give another "
             "answer, and that spread is not in the intervals."]
    if "oracle" not in evidence.arms:
        found.append("There is no oracle arm (new real images in the same slots), so the sensitivity of the experiment "
                     "is unknown: a result without gain does not show that better images would not have helped.")
    seeds = int(evidence.comparison["n_seeds"].min())
    if seeds < 5:
        found.append(f"{seeds} seeds per arm are too few for a claim (5 are wanted); the spread between trainings is "
                     "itself uncertain.")
    if evidence.cohort_extra.get("patient_ids") == "image":
        found.append("The source names no patients: each image counts as its own patient, so splits may share patients "
                     "and the intervals are too narrow.")
    found.append("Labels are taken as the source gives them; their errors are in every number, and nothing here has "
                 "been read by a radiologist. One test set of one source: no statement about other hospitals.")
    return found


def _limits_of_slots(evidence: Evidence) -> list[str]:
    """Slots that were meant for synthetic images and hold duplicates, since too few were kept."""
    found = []
    for arm in evidence.arms:
        counts = [made.stamp["counts"] for made in evidence.stamps("arm") if made.arm == arm]
        empty, held = (sum(int(c.get(key, 0)) for c in counts for key in keys)
                       for keys in (("unfilled",), ("synthetic", "synthetic_negative")))
        if empty:
            found.append(f"Too few images were kept for arm {arm}: over its seeds {empty:,} slots meant for synthetic "
                         f"images hold duplicates instead, {held:,} hold synthetic ones." +
                         (" It has therefore nothing to say about synthetic images." if not held else ""))
    return found


def _limits_of_provenance(evidence: Evidence) -> list[str]:
    unknown = sorted({made.entry.name for made in evidence.made if _says_unknown(made.stamp.get("extra", {}))})
    found = []
    if unknown:
        found.append("Weights of unknown provenance were used in " + ", ".join(unknown) + ": they may have been "
                     "trained on images of the test patients.")
    commits = {str(made.stamp.get("git_commit")) for made in evidence.made}
    if len(commits) > 1 or any(commit.endswith("-dirty") for commit in commits):
        found.append("The stages were not all made by one committed version of the code: the table of hashes names "
                     "each stage's commit, and -dirty marks uncommitted changes.")
    if any("imagenet" in str(made.stamp.get("extra", {})).lower() for made in evidence.stamps("filter")):
        found.append("Fidelity is measured by an encoder trained on photographs: it ranks sets of images, and does not "
                     "tell whether a finding is drawn correctly.")
    return found


def _says_unknown(tree: Any) -> bool:
    """Whether ``provenance: unknown`` stands anywhere in a stamp's extra."""
    if isinstance(tree, Mapping):
        return any((key == "provenance" and value == "unknown") or _says_unknown(value) for key, value in tree.items())
    return isinstance(tree, list) and any(_says_unknown(value) for value in tree)


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
