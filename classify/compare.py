"""What did each arm buy, and how sure is that? Metrics, paired crossed intervals, and one verdict.

Every arm and seed has predicted the same validation and test images; they are checked against the cohort, not trusted.
One set of patient resamples is shared by all arms, seeds, classes and metrics (``comparison.intervals``). Only the test
split and the endpoint's weights enter the comparison; the validation split gives F1 its thresholds. Written are

    comparison.parquet   class or group x metric x arm (value) and pair of arms (delta); p is Holm's over the classes of
                         one pair and metric, and plain for a group; intervals are 95 %, not adjusted
    intervals.parquet    the same rows with the parts of each interval, plain p, and draws that lost a class
    metrics.parquet      arm, seed, weights, split, class or group, metric
    seeds.parquet        the paired delta of each seed
    thresholds.parquet   the logit from which on F1 predicts a finding, its optimistic F1 on validation, and the
                         temperature of that training
    reliability.parquet  the calibration bins of each class
    amounts.parquet      where arms have amounts: the dose-response, and the amount that validation chose
    recovered.parquet    where there is an oracle: the share of its gain that each arm recovers
    controls.parquet     where the cohort has negative controls: what each arm gained on them
    subgroups.parquet    sex, age band and view: what the endpoint's arms score and miss there, and the difference
    members.parquet      where models are made one: what each scores by itself, and the ensemble
    signatures.parquet   known ways in which a good number means little, looked for in each arm and class

and the verdict in the stamp's ``extra``. If RUN/endpoint.json exists, endpoint, arms, seeds and margins must be those
that it fixed. RUN/looks.jsonl counts the looks at test (``verdict.looks``). Not promised: the spread between
generators, or that labels are right.

    python -m classify.compare --config C
"""

import json
import logging
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from classify.arms.amounts import plain_arms
from classify.comparison.amounts import amount_facts, amount_rows, amount_sentence, choose_amounts, shared_amounts
from classify.comparison.controls import control_rows, control_sentence
from classify.comparison.intervals import patient_draws
from classify.comparison.measuring import (
    UNDER_200,
    Scored,
    choose_thresholds,
    groups_of,
    metric_rows,
    reliability_rows,
    resample,
)
from classify.comparison.metrics import HIGHER_IS_BETTER, metrics_schema
from classify.comparison.pairing import Comparison, compare_arms
from classify.comparison.pairs import default_pairs, oracle_rival, rivals_of, slot_rivals
from classify.comparison.recovered import recovered_rows, recovered_sentence
from classify.comparison.signatures import signature_rows, signature_sentence
from classify.comparison.subgroups import subgroup_rows, subgroup_sentence
from classify.ensembling.models import EnsembleConfig, compared_folders, single_folders
from classify.ensembling.scores import model_scores
from classify.ensembling.studies import UNITS, read_units, unit_sentences
from classify.verdict.deciding import Case, judge, thin_classes
from classify.verdict.looks import LOOKS, agrees_with, looks_sentence, read_looks, record_look
from cohort.config import Run, parse
from cohort.errors import TailfillError, nearest, run_command
from cohort.stage import Stage, hash_bytes, require
from cohort.tables import Cohort, comparison_schema, load_cohort, write_table
from cohort.vocabulary.labels import CONTROL

log = logging.getLogger(__name__)

GROUPS = ("head", "medium", "tail", UNDER_200, "all")


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """The one delta that decides, fixed before any test prediction exists."""

    metric: str = "AP"
    """AP, AUROC or F1."""
    group: str = "tail"
    """head, medium, tail, under_200 (findings with fewer positive train images) or all."""
    arm: str = "synthetic"
    """The arm that has to prove itself."""
    rival: str = "duplicate"
    """The arm that it is measured against."""
    weights: str = "ema"
    """Weights that every comparison uses: raw or ema."""


@dataclass(frozen=True, kw_only=True)
class Margins:
    """Differences that count as none, in units of the endpoint's metric; each above 0 to 1."""

    head: float = 0.01
    """Loss tolerated in the head group; .01 is about what CXR-LT's whole test set can resolve."""
    medium: float = 0.01
    """Loss tolerated in the medium group."""
    no_difference: float = 0.02
    """Endpoint's margin for "no difference", both ways."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """How arms are compared."""

    n_draws: int = 2000
    """Patient resamples, 100 or more; 2,000 give a standard error to 2 %."""
    endpoint: Endpoint = Endpoint()
    """The primary endpoint."""
    margins: Margins = Margins()
    """Margins for the guards and for "no difference"."""
    unit: str = "image"
    """What is scored: image, or study, whose images' probabilities are averaged (``ensembling.studies``)."""
    pairs: list[tuple[str, str]] | None = None
    """(arm, rival) pairs; default: each arm against real and against its own rival (``comparison.pairs``), and the
    endpoint's arm against each other. The endpoint's pair is always compared."""

    def __post_init__(self) -> None:
        legal = {"metric": HIGHER_IS_BETTER, "group": GROUPS, "weights": ("raw", "ema")}
        for key, values in legal.items():
            value = getattr(self.endpoint, key)
            if value not in values:
                raise TailfillError(f"compare.endpoint.{key} is '{value}'; wanted: {', '.join(values)}")
        if self.unit not in UNITS:
            raise TailfillError(f"compare.unit is '{self.unit}'; wanted: {', '.join(UNITS)}")
        if self.endpoint.arm == self.endpoint.rival:
            raise TailfillError(f"compare.endpoint.rival is '{self.endpoint.rival}', the arm itself; wanted: another")
        for margin in fields(self.margins):
            if not 0 < getattr(self.margins, margin.name) <= 1:
                raise TailfillError(f"compare.margins.{margin.name} is {getattr(self.margins, margin.name)}; "
                                    "wanted: above 0, at most 1")
        if self.n_draws < 100:
            raise TailfillError(f"compare.n_draws is {self.n_draws}; wanted: 100 or more")


def registration(run: Run, config: CompareConfig) -> dict[str, Any]:
    """What RUN/endpoint.json holds: endpoint, arms, n_seeds, margins, and their sha256.

    Beside them a unit other than image, and the names of an ensemble's members, where there are any.
    """
    fixed = {"endpoint": asdict(config.endpoint), "arms": list(run.arms), "n_seeds": run.n_seeds,
             "margins": asdict(config.margins), **({"unit": config.unit} if config.unit != "image" else {}),
             **({"members": sorted(run.members)} if run.members else {})}
    return fixed | {"sha256": hash_bytes(json.dumps(fixed, sort_keys=True).encode())}


def check_registration(file: Path, run: Run, config: CompareConfig) -> bool:
    """Whether ``file`` fixed the endpoint beforehand; raises ``TailfillError`` naming the key that differs from it."""
    return agrees_with(file, registration(run, config))


def pairs_of(run: Run, config: CompareConfig) -> list[tuple[str, str]]:
    """The (arm, rival) pairs to compare; raises ``TailfillError`` for an arm that the experiment does not have."""
    end = config.endpoint
    for key, arm in (("arm", end.arm), ("rival", end.rival)):
        if arm not in run.arms:
            raise TailfillError(f"compare.endpoint.{key} is '{arm}', no arm of this run{nearest(arm, list(run.arms))}")
    usual = default_pairs(run.arms, arm=end.arm, rival=end.rival)
    chosen = usual if config.pairs is None else [(str(arm), str(rival)) for arm, rival in config.pairs]
    for arm in (arm for pair in chosen for arm in pair):
        if arm not in run.arms:
            raise TailfillError(f"compare.pairs names '{arm}', no arm of this run{nearest(arm, list(run.arms))}")
    return [pair for pair in dict.fromkeys([(end.arm, end.rival), *chosen]) if pair[0] != pair[1]]


def prediction_folders(run: Run) -> dict[tuple[str, int], Path]:
    """The folder of each arm and seed; raises ``TailfillError`` for the first that is not complete."""
    folders = compared_folders(run)
    for folder in folders.values():
        require(folder, "ensemble" if run.members else "predict")
    return folders


def decide_verdict(compared: Comparison, cohort: Cohort, config: CompareConfig, *, n_seeds: int,
                   preregistered: bool) -> dict[str, Any]:
    """The verdict on the endpoint from what was compared."""
    end = config.endpoint
    key = {"arm": end.arm, "rival": end.rival, "metric": end.metric}
    members = [cohort.labels[at] for at in groups_of(cohort)[end.group]]
    case = Case(
        endpoint=asdict(end), interval=compared.interval(label=end.group, **key), margin=config.margins.no_difference,
        guards={group: (compared.interval(label=group, **key), getattr(config.margins, group))
                for group in ("head", "medium") if group != end.group},
        positive_patients={label: compared.support[label][1] for label in members},
        n_patients=compared.support[end.group][1], n_seeds=n_seeds, preregistered=preregistered,
        oracle=compared.interval(arm="oracle", rival=oracle_rival(end.rival), metric=end.metric, label=end.group)
        if {"oracle", oracle_rival(end.rival)} <= {*compared.source.arms} and end.rival != "oracle" else None,
    )
    kept = [label for label in members if label not in thin_classes(case)]
    supported = compared.over(kept, **key) if kept and len(kept) < len(members) else None
    return judge(Case(**{f.name: getattr(case, f.name) for f in fields(Case)} | {"supported": supported}))


def beside_the_endpoint(compared: Comparison, scored: dict[str, Scored], cohort: Cohort, run: Run,
                        config: CompareConfig, *, metrics: pd.DataFrame, draws: NDArray[np.uint16]) -> dict[str, Any]:
    """What the verdict does not rest on, as far as the run has it: table name to (table, sentence).

    Arms at other amounts are in the dose-response alone.
    """
    end, controls = config.endpoint, cohort.in_group(CONTROL)
    plain = plain_arms(run.arms, end.arm, end.rival)
    slots = slot_rivals(plain)
    subgroups = subgroup_rows(scored, cohort, run, pair=(end.arm, end.rival), weights=end.weights, draws=draws)
    found: dict[str, tuple[pd.DataFrame, str]] = {
        "subgroups": (subgroups, subgroup_sentence(subgroups, arm=end.arm, rival=end.rival))}
    if "oracle" in slots:
        table = recovered_rows(compared, slots)
        found["recovered"] = (table, recovered_sentence(table, arm=end.arm, label=end.group, metric=end.metric))
    if controls:
        rivals = (slots or rivals_of(plain)) | {end.arm: end.rival}
        table = control_rows(compared, rivals, controls=controls, metric=end.metric)
        found["controls"] = (table, control_sentence(table))
    gains = found["controls"][0] if controls else None
    table = signature_rows(metrics[metrics["arm"].isin(plain)], scored, cohort, weights=end.weights, controls=gains)
    return found | {"signatures": (table, signature_sentence(table, arm=end.arm))}


def dose_response(compared: Comparison, metrics: pd.DataFrame, config: CompareConfig,
                  chosen: dict[str, float]) -> tuple[dict[str, Any], dict[str, tuple[pd.DataFrame, str]]]:
    """What the stamp says of the ``chosen`` amounts, and the table with its sentence; both empty without amounts."""
    end = asdict(config.endpoint)
    if not shared_amounts(compared.source.arms, end):
        return {}, {}
    facts, table = amount_facts(compared, end, chosen), amount_rows(compared, metrics, end, chosen)
    return facts, {"amounts": (table, amount_sentence(table, facts, end))}


def write_tables(stage: Stage, scored: dict[str, Scored], cohort: Cohort, compared: Comparison,
                 beside: dict[str, Any], *, metrics: pd.DataFrame) -> list[str]:
    """Write every table; returns their names, the main one first."""
    tables = {
        "intervals.parquet": compared.rows, "seeds.parquet": compared.seeds,
        "thresholds.parquet": choose_thresholds(scored["val"], cohort.labels),
        "reliability.parquet": reliability_rows(scored["test"], cohort.labels),
        **{f"{name}.parquet": table for name, (table, _) in beside.items()},
    }
    schema = comparison_schema()
    write_table(compared.rows[list(schema.columns)], stage.folder / "comparison.parquet", schema)
    write_table(metrics, stage.folder / "metrics.parquet", metrics_schema())
    for name, table in tables.items():
        write_table(table, stage.folder / name)
    return ["comparison.parquet", "metrics.parquet", *tables]


def main() -> None:
    """Read all predictions, compare, judge, write."""
    options = parse("compare", CompareConfig, doc=__doc__, beside={"ensemble": EnsembleConfig})
    run, config, n_folds = options.run, options.section, options.beside["ensemble"].folds
    pairs = pairs_of(run, config)
    cohort = load_cohort(run.cohort_folder)
    file = run.folder / "endpoint.json"
    preregistered = check_registration(file, run, config)
    folders = prediction_folders(run)
    stage = Stage(
        "compare", run.folder / "comparison",
        config={**asdict(config), "arms": run.arms, "n_seeds": run.n_seeds, "seed": run.seed},
        inputs={"cohort": run.cohort_folder, **({"endpoint": file} if preregistered else {}),
                **{f"predict {arm} seed {seed}": folder
                   for (arm, seed), folder in (folders | single_folders(run, n_folds)).items()}},
    )
    if options.dry_run:
        sys.stdout.write(stage.describe(pairs=pairs, preregistered=preregistered) + "\n")
        return
    if stage.is_complete():
        log.info("compare: complete, nothing to do")
        return
    images, (scored, cohort) = cohort, read_units(folders, cohort, weights=config.endpoint.weights, unit=config.unit)
    stage.begin()
    record_look(run.folder / LOOKS, fingerprint=stage.fingerprint, sha256=registration(run, config)["sha256"],
                fixed_beforehand=preregistered)
    metrics = metric_rows(scored, cohort)
    chosen = choose_amounts(metrics, run.arms, asdict(config.endpoint))  # by validation, before test is compared
    draws = patient_draws(scored["test"].n_patients, config.n_draws, np.random.default_rng(run.seed))
    values, resampled = resample(scored, cohort, run, weights=config.endpoint.weights, draws=draws)
    compared = compare_arms(values=values, resampled=resampled, scored=scored["test"], arms=run.arms, pairs=pairs,
                            labels=cohort.labels, groups=groups_of(cohort))
    verdict = decide_verdict(compared, cohort, config, n_seeds=run.n_seeds, preregistered=preregistered)
    verdict["sentences"] += unit_sentences(images, cohort)
    facts, doses = dose_response(compared, metrics, config, chosen)
    beside = doses | beside_the_endpoint(compared, scored, cohort, run, config, metrics=metrics, draws=draws)
    beside |= model_scores(run, images, metrics, asdict(config.endpoint), unit=config.unit, n_folds=n_folds)
    verdict |= {name: sentence for name, (_, sentence) in beside.items()}
    outputs = write_tables(stage, scored, cohort, compared, beside, metrics=metrics)
    null = int(pd.isna(compared.rows["ci_low"]).sum())
    stage.finish(outputs=outputs, counts={"rows": len(compared.rows), "with_interval": len(compared.rows) - null,
                                          "without_interval": null, "test_images": len(scored["test"].patients)},
                 extra={"verdict": verdict, "preregistered": preregistered, "pairs": pairs, "amounts": facts,
                        "f1_threshold": "highest F1 on validation", "p": "Holm over classes; plain for groups"})
    said = [*verdict["sentences"], *(sentence for _, sentence in beside.values()),
            looks_sentence(read_looks(run.folder / LOOKS), stage.fingerprint, own_cohort=run.owns_cohort)]
    sys.stdout.write("\n".join(said) + "\n")


if __name__ == "__main__":
    run_command(main)
