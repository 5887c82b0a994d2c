"""A trained classifier leaves its run: weights, config, metrics and a model card in a folder of their own.

::

    python -m classify.export --trained RUN/train/ARM/seed_0 --out DIR --licence TEXT

The folder (its layout: ``classify.exporting.bundle``) is all that ``python -m classify.predict --weights DIR`` needs:
it gives the same probabilities without the run. Temperature, thresholds and metrics come from the run's own
predictions, so ``classify/predict.py`` has to have run. The licence is yours to state; the cohort's terms may bind you.
The folder appears whole or not at all, and one that is there already is never written into.

Not promised: an ensemble as one model (export its members one by one), or that a hub's own widget can run it.
"""

import argparse
import io
import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from classify.exporting.bundle import CONFIG, MODEL, Bundle, check_bundle, config_of
from classify.exporting.licences import check_licence
from classify.exporting.measured import cohort_of, decisions_of, metric_table, read_own, views_of
from classify.exporting.model_card import write_card
from classify.learning.models import WEIGHTS, load_card
from cohort.errors import TailfillError, run_command
from cohort.stage import hash_file, require, verify
from cohort.tables import arm_schema, read_table

log = logging.getLogger(__name__)


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; argparse leaves with code 2 on a mistake, ``TailfillError`` for a wrong licence or seed."""
    parser = argparse.ArgumentParser(prog="python -m classify.export", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trained", type=Path, required=True, help="the training run, RUN/train/ARM/seed_N")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
    parser.add_argument("--licence", required=True, help="of the weights, as the card will state it")
    parser.add_argument("--weights", choices=WEIGHTS, default="ema", help="which of its weights")
    parser.add_argument("--seed", type=int, default=0, help="of the resampled patients, 0 or more")
    options = parser.parse_args(argv)
    check_licence(options.licence)
    if options.seed < 0:
        raise TailfillError(f"--seed is {options.seed}; wanted: 0 or more")
    return options


def describe_training(trained: Path, *, weights: str) -> dict[str, Any]:
    """What the card and the config tell of the training: arm, seed, steps, slots, provenance, hashes."""
    stamp = require(trained, "train")
    arm = read_table(verify(Path(stamp["inputs"]["arm"]["path"]), "arm", "arm.parquet"), arm_schema())
    return {"arm": stamp["config"]["arm"], "seed": stamp["config"]["arm_seed"], "weights": weights,
            "steps": stamp["counts"]["steps"], "slots": len(arm),
            "synthetic_slots": int(arm["sample_id"].notna().sum()),
            "provenance": stamp["extra"].get("provenance", "unknown"), "loss": stamp["config"].get("loss"),
            "cohort_hash": stamp["inputs"]["cohort"]["hash"], "train_hash": stamp["output_hash"],
            "versions": stamp.get("versions", {}), "git_commit": stamp.get("git_commit")}


def export(trained: Path, out: Path, *, licence: str, weights: str = "ema", seed: int = 0) -> None:
    """Write the folder; raises ``TailfillError``, with nothing written, for whatever is missing or does not fit."""
    licence = check_licence(licence)
    if os.path.lexists(out):
        raise TailfillError(f"{out}: is there already; wanted: a folder that is not")
    cohort, card = cohort_of(trained), load_card(trained)
    card.require_labels(cohort.labels, where=trained)
    source = verify(trained, "train", f"{weights}.safetensors")
    scored = read_own(trained, cohort, weights=weights)
    decisions = decisions_of(scored["val"], cohort.labels, weights=weights)
    bundle = Bundle(card=card, decisions=decisions, views=views_of(cohort))
    check_bundle(bundle, where=trained)
    metrics = metric_table(scored, cohort, decisions, seed=seed)
    prepared = require(cohort.folder, "cohort")
    about = describe_training(trained, weights=weights) | {"laterals": prepared["config"].get("laterals", "keep")}
    text = write_card(bundle, cohort, prepared, metrics, licence=licence, about=about)
    config = config_of(bundle, sha256=hash_file(source), about=about | {"licence": licence})
    write_folder(out, source, config, metrics, text)
    log.info("export: %s of %s: %d labels, %s", weights, trained, len(card.labels), out)


def write_folder(out: Path, source: Path, config: dict[str, Any], metrics: pd.DataFrame, text: str) -> None:
    """All files in a hidden folder beside ``out``, which is then renamed; raises ``TailfillError`` for a full disk."""
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    buffer = io.BytesIO()
    metrics.to_parquet(buffer, index=False)
    try:
        partial.mkdir(parents=True)
        try:
            shutil.copyfile(source, partial / MODEL)
            (partial / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
            (partial / "metrics.parquet").write_bytes(buffer.getvalue())
            (partial / "README.md").write_text(text, encoding="utf-8")
            partial.rename(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise TailfillError(f"{out}: cannot be written: {error.strerror or error}") from error


def main() -> None:
    """Export one classifier."""
    options = read_arguments(sys.argv[1:])
    export(options.trained, options.out, licence=options.licence, weights=options.weights, seed=options.seed)


if __name__ == "__main__":
    run_command(main)
