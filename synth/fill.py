"""Plan, generate and filter, round after round, until what the filter has accepted meets each class's budget.

::

    python -m synth.fill --config configs/nih128.yaml [--processes 8]

::

    RUN/round_00/ plan, images           the ordinary plan and its images
                  pool/synthetic         the filter's verdict on all images of rounds 0 to 0
    RUN/round_01/ plan, images           what that left missing (prompts/topping.py), other seeds, other words
                  pool/ plan, images     rounds 0 and 1 as one (synth/filling/pooling.py)
                  pool/synthetic         the verdict on them: near duplicates of an earlier round are seen too
    ...
    RUN/ plan, images, synthetic         all rounds as one, in the form that a single round has
    RUN/fill/ fill.parquet               per class and round: budget, asked, made, accepted, and why there is no more

A round is a run of its own that shares the cohort, the generator, the critics and the cache of what was read, so its
stages are the ordinary ones, with their stamps: whenever this is killed, the same command goes on where it was. A class
ends as met, given up, or short at the last round; none of that is an error, nor is a round of which every image failed.
Given again with more ``fill.rounds``, a finished fill goes on (synth/filling/raising.py). Not promised: that every
class is filled, and no more images of a class than its budget, as one image may carry several.
"""

import json
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from cohort.config import Run, parse
from cohort.errors import TailfillError, run_command
from cohort.pipeline import critics_of, is_made_from, read_stamp
from cohort.stage import Stage, hash_file, require, verify, write_atomically
from cohort.tables import Cohort, fill_schema, images_schema, load_cohort, plan_schema, read_table, write_table
from prompts.plan import Plan, Reality, build_plan, look
from prompts.settings import PlanConfig
from prompts.topping import NOTHING_LEFT, OPEN, SHORT, FillConfig, join_verdicts, plan_round, take_stock
from synth.drawing.pipelines import Weights, find_weights
from synth.filling.launching import run_launched
from synth.filling.pooling import pool_images, pool_plans
from synth.filling.raising import has_ended_earlier, put_end_aside
from synth.filter import FilterConfig
from synth.generate import PLACES, RUNTIME, GenerateConfig

log = logging.getLogger(__name__)

SHARED = ("generator", "train", "cache")
"""Folders of the run that every round uses."""
FOLDERS = {"generate": "images", "filter": "synthetic"}
"""The launched stages of a round, and where they write."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is filled, and how."""

    run: Run
    config: FillConfig
    plan: PlanConfig
    sections: Mapping[str, Mapping[str, Any]]
    """Settings of the launched stages, in plain types."""
    cohort: Cohort
    reality: Reality
    processes: int
    weights: Mapping[str, str] = field(default_factory=dict)
    """Hashes of a pipeline or LoRA weights that the configuration names; those of the run are inputs of the stages."""

    def round(self, number: int) -> Path:
        """The folder of a round."""
        return self.run.folder / f"round_{number:02d}"

    def pool(self, number: int) -> Path:
        """The folder in which all rounds up to this one are judged together."""
        return self.round(number) / "pool"


def open_run(job: Job, folder: Path) -> Path:
    """Make ``folder`` a run that shares what the whole run has; returns its configuration."""
    content = asdict(replace(job.run, run=str(folder.resolve()), cohort=str(job.run.cohort_folder.resolve())))
    text = yaml.safe_dump(json.loads(json.dumps(content | dict(job.sections), default=str)), sort_keys=False)
    file = folder / "config.yaml"
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        write_atomically(file, text.encode())
    (job.run.folder / "cache").mkdir(exist_ok=True)
    for name in SHARED:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(os.path.relpath(job.run.folder / name, folder))
    return file


def launch(job: Job, stage: str, folder: Path, *, config: Path) -> None:
    """Run a stage of the run in ``folder``, unless its stamp says that it is done; ends the program when it fails."""
    settings = {**job.sections[stage], "seed": job.run.seed, **(job.weights if stage == "generate" else {})}
    if stage == "filter":
        settings |= {"rule_order": list(settings["rules"])}
    if not (is_made_from(folder / FOLDERS[stage], settings) and has_its_files(folder / FOLDERS[stage])):
        log.info("fill: %s in %s ...", stage, folder)
        code = run_launched([f"synth.{stage}", "--config", str(config), "--run", str(folder)], job.processes)
        if code:
            raise SystemExit(code)


def has_its_files(folder: Path) -> bool:
    """Whether the files that a complete stage was made from, such as a rule's source, are what they were."""
    files = [entry for entry in (read_stamp(folder) or {})["inputs"].values() if entry["kind"] == "file"]
    return all(Path(entry["path"]).is_file() and hash_file(Path(entry["path"])) == entry["hash"] for entry in files)


def has_images(folder: Path) -> bool:
    """Whether any image of a round, or of several, could be made."""
    return bool(require(folder / "images", "generate")["counts"]["made"])


def stage_of_plan(job: Job, number: int) -> Stage:
    """The plan of a round; that of the first one is the ordinary plan."""
    settings, inputs = job.plan.identity() | {"seed": job.run.seed}, {"cohort": job.cohort.folder}
    if number:
        own = {key: value for key, value in asdict(job.config).items() if key != "rounds"}
        settings |= {"round": number, "fill": own}
        pool = job.pool(number - 1)
        seen = {"filter": pool / "synthetic"} if has_images(pool) else {"generate": pool / "images"}
        inputs |= {"plan": pool / "plan", **seen}
    return Stage("plan", job.round(number) / "plan", config=settings, inputs=inputs)


def ask(job: Job, number: int) -> Plan:
    """What to ask for in a round, from the verdict on those before."""
    if not number:
        return build_plan(job.cohort, job.plan, seed=job.run.seed)
    return plan_round(job.reality, job.plan, job.config, seen=read_verdicts(job, number - 1),
                      stock=standing(job, number - 1), seed=job.run.seed, round_=number)


def write_plan(job: Job, number: int) -> bool:
    """Write a round's plan, unless it is complete; False when nothing can be asked for."""
    stage = stage_of_plan(job, number)
    if stage.is_complete():
        return True
    plan = ask(job, number)
    if plan.rows.empty:
        return False
    stage.begin()
    write_table(plan.rows, stage.folder / "plan.parquet", plan_schema(job.cohort.labels))
    write_table(plan.budget, stage.folder / "budget.parquet")
    stage.finish(outputs=["plan.parquet", "budget.parquet"], counts=plan.counts, extra=plan.extra)
    return True


def settle(job: Job, folder: Path, last: int, *, config: Path, reasons: Mapping[str, str]) -> None:
    """The rounds up to ``last`` as one in ``folder``, and the filter's verdict on it, where there is an image."""
    rounds = [job.round(number) for number in range(last + 1)]
    pool_plans(folder / "plan", rounds, job.cohort, reasons=reasons)
    pool_images(folder / "images", rounds)
    if has_images(folder):
        launch(job, "filter", folder, config=config)
    else:
        log.warning("fill: none of the images of %d rounds could be made: %s", last + 1, why_failed(folder))


def why_failed(folder: Path) -> str:
    """The most frequent error of images that could not be made."""
    images = read_table(verify(folder / "images", "generate", "images.parquet"), images_schema())
    return str(images["error"].value_counts().index[0])


def read_verdicts(job: Job, number: int) -> pd.DataFrame:
    """The rows of all rounds up to one, with what the filter said of them."""
    folder = job.pool(number)
    plan = read_table(verify(folder / "plan", "plan", "plan.parquet"), plan_schema(job.cohort.labels))
    if not has_images(folder):
        return join_verdicts(plan, plan.iloc[:0].assign(keep=False))
    return join_verdicts(plan, read_table(verify(folder / "synthetic", "filter", "synthetic.parquet")))


def standing(job: Job, number: int) -> pd.DataFrame:
    """Where each class stands after a round. A budget is no more than the first round could ask for."""
    budget = read_table(verify(job.round(0) / "plan", "plan", "budget.parquet")).set_index("label")
    wanted = budget[["target", "carried"]].min(axis=1)
    return take_stock(read_verdicts(job, number), {str(k): int(n) for k, n in wanted.items() if n}, job.config,
                      round_=number)


def run_rounds(job: Job) -> pd.DataFrame:
    """Round after round; returns the rows of ``fill.parquet``."""
    stocks: list[pd.DataFrame] = []
    for number in range(job.config.rounds):
        if not write_plan(job, number):
            rest = stocks[-1]["status"] == OPEN
            stocks[-1].loc[rest, ["status", "reason"]] = [SHORT, NOTHING_LEFT]
            break
        launch(job, "generate", job.round(number), config=open_run(job, job.round(number)))
        settle(job, job.pool(number), number, config=open_run(job, job.pool(number)), reasons={})
        stocks.append(standing(job, number))
        log.info("fill: round %d: %s", number, "; ".join(
            f"{label} {accepted}/{wanted} {status}" for label, accepted, wanted, status in
            stocks[-1][["label", "accepted", "budget", "status"]].itertuples(index=False)))
        if not (stocks[-1]["status"] == OPEN).any():
            break
    return pd.concat(stocks, ignore_index=True)


def make_stage(
    job: Job, *, judged_by_critics: bool, own_files: Mapping[str, Path], weights: Weights | None = None
) -> Stage:
    """The stage; its fingerprint holds all that decides what the rounds ask for, make and accept."""
    run, sections = job.run, job.sections
    inputs = {"cohort": run.cohort_folder, **own_files}
    inputs |= weights.inputs if weights else {"generator": run.folder / "generator"}
    if judged_by_critics:
        inputs |= {f"critic_{arm}_{seed}": run.folder / "train" / arm / f"seed_{seed}"
                   for arm, seed in critics_of(sections)}
    made = {key: value for key, value in sections["generate"].items() if key not in RUNTIME} | dict(job.weights)
    judged = {**sections["filter"], "rule_order": list(sections["filter"]["rules"])}
    return Stage("fill", run.folder / "fill", inputs=inputs, config=asdict(job.config) | {
        "seed": run.seed, "plan": job.plan.identity(), "generate": made, "filter": judged})


def foresee(job: Job) -> dict[str, Any]:
    """For ``--dry-run``: the rounds that are judged, and what the next one would ask for."""
    done = [number for number in range(job.config.rounds) if read_stamp(job.pool(number) / "images")
            and (read_stamp(job.pool(number) / "synthetic") or not has_images(job.pool(number)))]
    said: dict[str, Any] = {"rounds_judged": len(done)}
    if done:
        stock = standing(job, done[-1])
        said["standing"] = json.loads(stock.drop(columns=["round", "asked", "made"]).to_json(orient="records"))
        if not (stock["status"] == OPEN).any():
            return said | {"next_round": None}
    return said | {"next_round": ask(job, len(done)).counts}


def fill(job: Job, stage: Stage) -> None:
    """All rounds, then their last verdict in the run's own folders, and the account of it."""
    stocks = run_rounds(job)
    last, final = int(stocks["round"].max()), stocks.drop_duplicates("label", keep="last")
    reasons = {str(row["label"]): str(row["reason"]) for row in final.dropna(subset="reason").to_dict("records")}
    if not has_images(job.pool(last)):
        raise TailfillError(f"{job.run.folder}: none of the images of {last + 1} rounds could be made, most often: "
                            f"{why_failed(job.pool(last))}")
    settle(job, job.run.folder, last, config=job.pool(last) / "config.yaml", reasons=reasons)
    write_table(stocks, stage.folder / "fill.parquet", fill_schema(job.cohort.labels))
    judged = [read_stamp(job.pool(number) / "synthetic") or {} for number in range(last + 1)]
    stage.finish(outputs=["fill.parquet"], seconds=sum(stamp.get("seconds", 0.0) for stamp in judged), counts={
        "rounds": last + 1, **{str(status): int(n) for status, n in final["status"].value_counts().items()}})
    for label, reason in reasons.items():
        log.info("fill: %s: %s", label, reason)


def main() -> None:
    """Fill what is missing."""
    options = parse("fill", FillConfig, doc=__doc__, extra={"processes": (int, 1)},
                    beside={"plan": PlanConfig, "generate": GenerateConfig, "filter": FilterConfig})
    run, beside, processes = options.run, options.beside, options.extra["processes"]
    if processes < 1:
        raise TailfillError(f"--processes is {processes}; wanted: 1 or more")
    if beside["filter"].reconstructed:
        raise TailfillError("filter.reconstructed is true, and a round has no reconstruction; wanted: false with fill")
    cohort = load_cohort(run.cohort_folder)
    sections = {name: json.loads(json.dumps(asdict(beside[name]), default=str)) for name in FOLDERS}
    places = {key: sections["generate"][key] for key in PLACES}
    weights = find_weights(run.folder, **places) if any(places.values()) else None
    job = Job(run=run, config=options.section, plan=beside["plan"], sections=sections, cohort=cohort,
              reality=look(cohort, beside["plan"]), processes=processes, weights=weights.hashes if weights else {})
    stage = make_stage(job, judged_by_critics="critic" in beside["filter"].reads, weights=weights,
                       own_files=beside["filter"].own_files)
    if has_ended_earlier(stage):
        if options.dry_run:
            sys.stdout.write(json.dumps({"stage": "fill", "state": "more rounds", **foresee(job)}, indent=2) + "\n")
            return
        put_end_aside(stage, run.folder)
    if options.dry_run:
        sys.stdout.write(stage.describe(**foresee(job)) + "\n")
    elif stage.is_complete():
        log.info("fill: complete, nothing to do")
    else:
        stage.begin()
        fill(job, stage)


if __name__ == "__main__":
    run_command(main)
