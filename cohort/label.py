"""Radiology reports to labels, by rules or by a language model, and either scored against labels by hand.

::

    python -m cohort.label rules --reports FILE --out DIR
    python -m cohort.label transformers --model FOLDER_OR_HUB_ID --style direct --reports FILE --out DIR
    python -m cohort.label endpoint --url http://localhost:8000/v1 --model NAME --style nli --reports FILE --out DIR
    python -m cohort.label score --labels DIR --truth FILE --out DIR
    python -m cohort.label openi --archive NLMCXR_reports.tgz --out DIR      (reports and labels by hand to try it on)

FILE of reports: a CSV with ``report_id`` and ``text``, or a folder of ``.txt`` files. Each command's ``--help`` has its
keys; ``--config YAML`` reads them from a file. A language model is asked in one of three styles (``--style direct``,
``nli``, ``cot``); the endpoint's key is read from the environment variable that ``--api_key_variable`` names.

Writes ``labels.parquet`` (a row per report: ``report_id, text_sha256, status, reason``, ``uncertain``, the doubted
findings joined by ``|``, and a column per label: 1, 0 or null), ``mentions.parquet`` (a row per finding and place: the
words, their sentence, present, negated, uncertain or absent, and the rule), ``labels.csv`` and the stamp. A report that
cannot be labelled is a row with status ``failed``, its reason, and unknown labels. Run again after a kill, it asks only
what has not been answered.

``labels.csv`` is what ``cohort.prepare`` reads; it has a row per image where the images are known (``--images FILE``: a
CSV with ``report_id``, ``path``, ``patient_id`` and so on; or such columns beside the reports' text)::

    python -m cohort.prepare csv --csv DIR/labels.csv --root IMAGES --label_space cxr_lt_2024 --out RUN/cohort

Not promised: the truth. A label says what a report says, and a report leaves out what its writer took for granted.
Reports of patients stay where they are: no text is written but the words of the mentions, and answers in the cache.
"""

import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import jsonargparse
import pandas as pd
import yaml

from cohort.config import HelpFormatter, resolve_paths
from cohort.errors import TailfillError, fail, nearest, run_command
from cohort.labelling import openi
from cohort.labelling.asking import NOTHING_TO_READ, Model, ask_reports
from cohort.labelling.deriving import asked_findings, overall_status, to_labels
from cohort.labelling.reports import Reports, read_reports
from cohort.labelling.rules import Mention, find_mentions
from cohort.labelling.scoring import METRICS, read_truth, score_labels
from cohort.labelling.settings import (
    EndpointConfig,
    PromptConfig,
    ReportsConfig,
    RulesConfig,
    TransformersConfig,
)
from cohort.stage import Stage, hash_bytes, require, verify, write_atomically
from cohort.tables import read_table, write_table
from cohort.vocabulary.findings import canonical_names
from cohort.vocabulary.phrases import wordings_of_reports

log = logging.getLogger(__name__)

METHODS: dict[str, type] = {"rules": RulesConfig, "transformers": TransformersConfig, "endpoint": EndpointConfig}
"""The labellers by name, and what each is told."""
PATHS = {"score": ("labels", "truth", "out"), "openi": ("archive", "out")}
"""What the other commands are told: paths, all of them required."""
COLUMNS = ("report_id", "text_sha256", "status", "reason", "uncertain")
"""labels.parquet's columns beside the labels."""


def label(config: ReportsConfig, method: Any, folder: Path, *, dry_run: bool = False) -> None:
    """Label the reports of ``config`` into ``folder`` by the labeller that ``method`` sets.

    Raises ``TailfillError`` for reports, a model or an endpoint that cannot be used.
    """
    name = next(name for name, kind in METHODS.items() if isinstance(method, kind))
    reports = read_reports(config)
    model = None if isinstance(method, RulesConfig) or dry_run else load_model(method)
    identity = {} if model is None else {"model": dict(model.identity)}
    settings = config.settings() | {"method": name, **method.settings(), **reports.settings}
    if dry_run:
        stage = Stage("label", folder, config=settings, inputs=reports.inputs)
        sys.stdout.write(json.dumps({"stage": "label", "folder": str(folder), "reports": len(reports.texts),
                                     "rows_of_images": len(reports.images), "config": stage.config}, indent=2) + "\n")
        return
    stage = Stage("label", folder, config=settings | identity, inputs=reports.inputs)
    if stage.is_complete():
        log.info("label: complete, nothing to do")
        return
    stage.begin()
    names = asked_findings(config.labels)
    if model is None:
        found = {report_id: find_mentions(text, names) for report_id, text in reports.texts.items()}
        answers = {key: NOTHING_TO_READ if mentions is None else mentions for key, mentions in found.items()}
        silent = [label for label in config.labels if label != "No Finding"
                  and canonical_names().get(label, label) not in wordings_of_reports()]
    else:
        cache = Path(method.cache) if method.cache else folder.resolve().parent / "cache" / "labels"
        answers, silent = ask_reports(reports.texts, names, model, config=method, cache=cache), []
    write_labels(stage, reports, answers, config, silent=silent)


def load_model(method: PromptConfig) -> Model:
    """The language model that a section names; raises ``TailfillError`` where it cannot be had."""
    if isinstance(method, TransformersConfig):
        from cohort.labelling.generation import LocalModel  # important: torch, which rules and endpoints do without

        return LocalModel(method)
    from cohort.labelling.endpoint import Endpoint

    return Endpoint(method)  # type: ignore[arg-type]


def write_labels(
    stage: Stage, reports: Reports, answers: Mapping[str, list[Mention] | str], config: ReportsConfig, *,
    silent: list[str],
) -> None:
    """Write the tables and the stamp; ``answers``: mentions or the reason of failure, by report."""
    labels, rows, mentions = list(config.labels), [], []
    for report_id, text in reports.texts.items():
        answer = answers[report_id]
        failed = isinstance(answer, str)
        values, doubted = (dict.fromkeys(labels), []) if isinstance(answer, str) else to_labels(
            overall_status(answer), labels, uncertain=config.uncertain, unmentioned=config.unmentioned, silent=silent)
        rows.append({"report_id": report_id, "text_sha256": hash_bytes(text.encode()), "uncertain": "|".join(doubted),
                     "status": "failed" if failed else "ok", "reason": answer if failed else None, **values})
        mentions += [] if isinstance(answer, str) else [{"report_id": report_id, **asdict(entry)} for entry in answer]
    table = pd.DataFrame(rows, columns=[*COLUMNS, *labels]).astype(
        dict.fromkeys(COLUMNS, "str") | dict.fromkeys(labels, "Int8"))
    found = pd.DataFrame(mentions, columns=["report_id", *(f.name for f in fields(Mention))])
    found = found.astype({name: "Int64" if name.endswith(("start", "end")) else "str" for name in found.columns})
    write_table(table, stage.folder / "labels.parquet")
    write_table(found, stage.folder / "mentions.parquet")
    beside = reports.images.merge(table[["report_id", *labels]], on="report_id", how="left", validate="many_to_one")
    write_atomically(stage.folder / "labels.csv", beside.to_csv(index=False).encode())
    bad = table[table["status"] == "failed"]
    counts = {"reports": len(table), "ok": len(table) - len(bad), "failed": len(bad), "mentions": len(found),
              "images": len(beside)}
    stage.finish(outputs=["labels.parquet", "mentions.parquet", "labels.csv"], counts=counts,
                 extra={"labels": labels, "label_space": config.label_space, "without_rules": silent})
    if silent:
        log.warning("label: no rule looks for %s, which are unknown everywhere", ", ".join(silent))
    if len(bad):
        log.warning("label: %d reports failed, '%s' first: %s", len(bad), *bad[["report_id", "reason"]].iloc[0])
    log.info("label: %s", " ".join(f"{key}={value:,}" for key, value in counts.items()))


def score(labels: Path, truth: Path, folder: Path, *, id_column: str, split: str | None, seed: int) -> None:
    """Score the labels of a complete labelling against a table by hand, a CSV of 1, 0 and empty, into ``folder``.

    ``split``: only the truth's rows whose column ``split`` says so. Raises ``TailfillError`` for unfitting tables.
    """
    if seed < 0:
        raise TailfillError(f"seed is {seed}; wanted: 0 or more")
    own = require(labels, "labels")["extra"].get("labels")
    if not own:
        raise TailfillError(f"{labels}: is no folder that python -m cohort.label has labelled into")
    if not truth.is_file():
        raise TailfillError(f"truth is '{truth}', which does not exist; wanted: a CSV with {id_column} and labels")
    stage = Stage("label-score", folder, config={"id_column": id_column, "split": split, "seed": seed},
                  inputs={"labels": labels, "truth": truth})
    if stage.is_complete():
        log.info("label: complete, nothing to do")
        return
    table = read_table(verify(labels, "labels", "labels.parquet")).set_index("report_id")
    by_hand = read_truth(truth, own, id_column=id_column, split=split)
    missing = by_hand.index.difference(table.index)
    if len(missing):
        raise TailfillError(f"{truth}: {len(missing):,} of {len(by_hand):,} reports have no row in {labels}, "
                            f"'{missing[0]}' first")
    shared = [name for name in own if name in by_hand]
    scores = score_labels(table.loc[by_hand.index], by_hand, shared, seed=seed)
    stage.begin()
    write_table(scores, folder / "scores.parquet")
    failed = int((table.loc[by_hand.index, "status"] == "failed").sum())
    stage.finish(outputs=["scores.parquet"], extra={"labels": shared},
                 counts={"reports": len(by_hand), "ok": len(by_hand) - failed, "failed": failed})
    wide = scores.pivot(index="label", columns="metric", values="value").loc[[*shared, "all"], list(METRICS)]
    supports = scores.drop_duplicates("label").set_index("label")[["n_positive", "n_found", "n_unknown"]]
    sys.stdout.write(wide.join(supports).to_string(float_format="%.3f", na_rep="-") + "\n")


def read_arguments(argv: list[str]) -> jsonargparse.Namespace:
    """The command line as a namespace of namespaces; exits with code 2 and one line on any mistake."""
    parser = jsonargparse.ArgumentParser(prog="python -m cohort.label", description=__doc__, exit_on_error=False,
                                         formatter_class=HelpFormatter)
    commands = parser.add_subcommands(dest="command")
    for name, kind in METHODS.items():
        command = _new_parser(kind.__doc__)
        commands.add_subcommand(name, command, help=(kind.__doc__ or "").splitlines()[0])
        if argv[:1] != [name]:  # its keys are not asked for, and reading them from the classes takes longest
            continue
        command.add_argument("--config", action="config", help="a YAML file of these keys")
        command.add_class_arguments(ReportsConfig)
        if fields(kind):
            command.add_class_arguments(kind)
        command.add_argument("--out", type=str, required=True, help="folder to write; new, or of the same settings")
        command.add_argument("--dry_run", action="store_true", help="print what would be done, and do nothing")
    for name, about in (("score", score.__doc__), ("openi", openi.__doc__)):
        command = _new_parser(about)
        for path in PATHS[name]:
            command.add_argument(f"--{path}", type=str, required=True, help="a path")
        if name == "score":
            command.add_argument("--id_column", type=str, default="report_id", help="the report's id in the truth")
            command.add_argument("--split", type=str, default=None, help="only the truth's rows of this split")
            command.add_argument("--seed", type=int, default=0, help="seed of the bootstrap, 0 or more")
        commands.add_subcommand(name, command, help=(about or "").splitlines()[0])
    try:
        parsed = parser.parse_args(_spell(argv))
        return parser.instantiate(parsed) if parsed.command else fail("no command given; see --help")
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        fail(str(error))


def _new_parser(about: str | None) -> jsonargparse.ArgumentParser:
    return jsonargparse.ArgumentParser(description=about, exit_on_error=False, formatter_class=HelpFormatter)


def _spell(argv: list[str]) -> list[str]:
    """``--label-space=x`` as ``--label_space=x``, each ``--config FILE`` with its keys checked and paths absolute."""
    out, rest = [], list(argv)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        flag = f"--{flag[2:].replace('-', '_')}" if flag.startswith("--") else flag
        if flag == "--config" and (value or rest):
            value, equals = json.dumps(read_config(Path(value or rest.pop(0)), method=argv[0])), "="
        out.append(f"{flag}{equals}{value}")
    return out


def read_config(file: Path, *, method: str) -> dict[str, Any]:
    """The keys of a labeller in a YAML file; raises ``TailfillError`` for one that it does not have."""
    schemas = [ReportsConfig, METHODS.get(method, RulesConfig)]
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TailfillError(f"config {file}: cannot be read: {error}") from error
    legal = ["out", *(f.name for schema in schemas for f in fields(schema))]
    for key in content if isinstance(content, dict) else [str(content)]:
        if key not in legal:
            raise TailfillError(f"config {file}: unknown key '{key}'{nearest(str(key), legal)}")
    for schema in schemas:
        content = resolve_paths(content, schema, file.resolve().parent)
    return content


def main() -> None:
    """``python -m cohort.label rules|transformers|endpoint|score|openi ...``."""
    options = read_arguments(sys.argv[1:])
    given = dict(vars(options[options.command]))
    given.pop("config", None)
    out = Path(given.pop("out"))
    if options.command == "openi":
        openi.make_tables(Path(given["archive"]), out)
    elif options.command == "score":
        score(Path(given.pop("labels")), Path(given.pop("truth")), out, **given)
    else:
        dry_run, kind = given.pop("dry_run"), METHODS[options.command]
        own = {f.name: given.pop(f.name) for f in fields(kind)}
        label(ReportsConfig(**given), kind(**own), out, dry_run=dry_run)


if __name__ == "__main__":
    run_command(main)
