"""What is known of a run when something leaves it: its stamps and tables, read once and checked.

A stage that is missing, unfinished, or older than what it was made from raises ``TailfillError``: nothing leaves a run
that is still at work. Numbers come from the stages' own tables; nothing is measured here. Where a stage has not
measured something, its table is empty and a card says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cohort.config import load_yaml
from cohort.errors import TailfillError
from cohort.pipeline import is_stale, read_stamp
from cohort.stage import require, verify
from cohort.tables import Cohort, images_schema, load_cohort, plan_schema, read_table, synthetic_schema
from synth.exporting.rights import Rights, licence_of_card, rights_of

Stamp = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Generator:
    """What drew the images, as far as the run knows."""

    sha256: str
    """Of its weights."""
    base: str | None
    """Hub id, or folder name, of the pipeline that it started from; None where it was trained from nothing."""
    base_licence: str | None
    """As the pipeline's own card states it; None where it has none."""
    training: Stamp | None
    """The stamp of ``finetune``; None for a pipeline from elsewhere that has learnt nothing here."""
    provenance: str
    """``known`` where all patients are known whom it and its parents have learnt from, else ``unknown``."""

    @property
    def from_nothing(self) -> bool:
        """Whether no weights from elsewhere are in it."""
        return self.base is None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A finished run, for a card."""

    run: Path
    cohort: Cohort
    cohort_stamp: Stamp
    rights: Sequence[Rights]
    generator: Generator
    plan: pd.DataFrame
    images: pd.DataFrame
    synthetic: pd.DataFrame
    rules: Sequence[str]
    """In the order in which they give the reason."""
    fidelity: pd.DataFrame
    memorised: pd.DataFrame
    stamps: Mapping[str, Stamp]
    """Stage to stamp: prepare, plan, generate, filter."""

    @property
    def kept(self) -> pd.DataFrame:
        """The accepted images, by their ids."""
        return self.synthetic[self.synthetic["keep"]].sort_values("sample_id", ignore_index=True)

    @property
    def n_train(self) -> tuple[int, int | None]:
        """Training images of the cohort and their patients, None where the source has no patient ids."""
        train = self.cohort.split("train")
        given = self.cohort_stamp["extra"].get("patient_ids", "given") == "given"
        return len(train), int(train["patient_id"].nunique()) if given else None


def finished(folder: Path, name: str) -> Stamp:
    """The stamp of a complete stage; raises ``TailfillError`` while it is not, or when an input has changed since."""
    stamp = require(folder, name)
    if is_stale(stamp):
        raise TailfillError(f"{folder}: an input of stage '{name}' has changed, or is gone, since it was made; wanted: "
                            f"a finished run (tailfill status {folder.parent} says what is left)")
    return stamp


def read_sections(run: Path) -> dict[str, Any]:
    """The run's resolved configuration, empty where its stages were run by hand; ``TailfillError`` for a spoilt one."""
    file = run / "config.yaml"
    return load_yaml(file) if file.is_file() else {}


def read_generator(run: Path) -> Generator:
    """What drew, or will draw, the images of a run; raises ``TailfillError`` when that is not complete."""
    sections, drawn = read_sections(run), read_stamp(run / "images")
    elsewhere = (sections.get("generate") or {}).get("pipeline")
    training = None if elsewhere else finished(run / "generator", "finetune")
    base = elsewhere or (sections.get("finetune") or {}).get("pipeline")
    if base is None and training is not None and "weights" in training["config"]:
        base = "a pipeline that the run does not name"
    weights = (drawn or {}).get("extra", {}).get("weights") or (training or {"outputs": {}})["outputs"].get("pipeline")
    return Generator(
        sha256=str(weights or "unknown"), base=None if base is None else public_name(str(base)), training=training,
        base_licence=licence_of_card(Path(base)) if base is not None and Path(base).is_dir() else None,
        provenance=str((drawn or training or {}).get("extra", {}).get("provenance", "unknown")),
    )


def public_name(place: str) -> str:
    """A hub id as it is, of a path the last name: where something lay on this machine is nobody's business."""
    path = Path(place)
    return place if not path.is_absolute() and place.count("/") == 1 and not path.exists() else path.name


def cohort_folder(run: Path, stamp: Stamp) -> Path:
    """Where the cohort of a stage lies: in the run, or where it lay when the stage was made."""
    return run / "cohort" if read_stamp(run / "cohort") else Path(stamp["inputs"]["cohort"]["path"])


def read_facts(run: Path) -> Facts:
    """Read and check everything; raises ``TailfillError`` naming the stage or table at fault."""
    if not run.is_dir():
        raise TailfillError(f"{run}: is no folder; wanted: the folder of a run")
    if "fill" in read_sections(run):
        finished(run / "fill", "fill")
    stamps = {name: finished(run / folder, name) for name, folder in
              (("filter", "synthetic"), ("generate", "images"), ("plan", "plan"))}
    place = cohort_folder(run, stamps["plan"])
    cohort = load_cohort(place)
    stamps["prepare"] = finished(place, "prepare")
    rules = list(stamps["filter"]["extra"].get("rules", []))
    folder = run / "synthetic"
    optional = {name: read_table(verify(folder, "filter", f"{name}.parquet"))
                if f"{name}.parquet" in stamps["filter"]["outputs"] else pd.DataFrame()
                for name in ("fidelity", "memorised")}
    return Facts(
        run=run, cohort=cohort, cohort_stamp=stamps["prepare"], rights=rights_of(place), rules=rules, stamps=stamps,
        generator=read_generator(run),
        plan=read_table(verify(run / "plan", "plan", "plan.parquet"), plan_schema(cohort.labels)),
        images=read_table(verify(run / "images", "generate", "images.parquet"), images_schema()),
        synthetic=read_table(verify(folder, "filter", "synthetic.parquet"), synthetic_schema(cohort.labels, rules)),
        fidelity=optional["fidelity"], memorised=optional["memorised"],
    )
