"""``classify.predict --images``: the command that predicts a folder of one's own images with trained weights."""

import argparse
import io
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from classify.exporting.bundle import CONFIG, MODEL, Bundle, load_bundle
from classify.exporting.measured import trained_bundle
from classify.exporting.own_images import find_images, predict_images
from classify.learning.models import CARD, WEIGHTS, load_classifier
from cohort.checking.reading import hash_listing
from cohort.errors import TailfillError
from cohort.pipeline import STAMP
from cohort.stage import Stage, verify, write_atomically
from cohort.tables import write_table

log = logging.getLogger(__name__)

TABLE = "predictions.parquet"
COPY = "predictions.csv"


def load_weights_folder(folder: Path, *, weights: str) -> tuple[nn.Module, Bundle, dict[str, Path]]:
    """The model of an export, or of a training run, in evaluation mode; and the files that decide its answers.

    Raises ``TailfillError`` for a folder that is neither, and for weights that do not fit together.
    """
    if (folder / CONFIG).is_file():
        model, bundle = load_bundle(folder)
        return model, bundle, {"weights": folder / MODEL, "config": folder / CONFIG}
    if not (folder / CARD).is_file() or not (folder / STAMP).is_file():
        raise TailfillError(f"{folder}: is neither an exported classifier ({CONFIG}) nor a finished training run "
                            f"({CARD}, {STAMP}); wanted: the one or the other")
    bundle, scored = trained_bundle(folder, weights=weights)
    file = verify(folder, "train", f"{weights}.safetensors")
    model, _ = load_classifier(folder, weights=weights)
    if scored is None:
        log.warning("predict: %s has no predictions of its validation split, so probabilities are not calibrated and "
                    "nothing is decided", folder)
    return model, bundle, {"weights": file, "config": folder / CARD}


def read_arguments(argv: Sequence[str], *, doc: str | None) -> argparse.Namespace:
    """The command line; argparse leaves with code 2 on a mistake, ``TailfillError`` for a number out of range."""
    parser = argparse.ArgumentParser(prog="python -m classify.predict", description=doc, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of the images, any depth")
    parser.add_argument("--weights", type=Path, required=True, help="an exported classifier, or RUN/train/ARM/seed_N")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; new, or of the same settings")
    parser.add_argument("--kind", choices=WEIGHTS, default="ema", help="which weights of a training run")
    parser.add_argument("--batch-size", type=int, default=64, help="images per forward pass, 1 or more")
    parser.add_argument("--threads", type=int, default=2, help="threads that decode images, 1 or more")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, and do nothing")
    options = parser.parse_args(argv)
    for name in ("batch_size", "threads"):
        if getattr(options, name) < 1:
            raise TailfillError(f"--{name.replace('_', '-')} is {getattr(options, name)}; wanted: 1 or more")
    return options


def predict_own(argv: Sequence[str], *, doc: str | None) -> None:
    """Predict every image of a folder, unless that is done; raises ``TailfillError`` when none can be predicted."""
    options = read_arguments(argv, doc=doc)
    images, others = find_images(options.images)
    model, bundle, files = load_weights_folder(options.weights, weights=options.kind)
    stage = Stage("own images", options.out, inputs=files, config={
        "images": str(options.images.resolve()), "listing": hash_listing(images),
        "decisions": asdict(bundle.decisions)})
    if options.dry_run:
        sys.stdout.write(stage.describe(images=len(images), other_files=others) + "\n")
        return
    if stage.is_complete():
        log.info("predict: complete, nothing to do")
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    table = predict_images(model, bundle, images, options.images, batch_size=options.batch_size,
                           threads=options.threads, device=device)
    counts = count_rows(table, others)
    if not counts["predicted"]:
        raise TailfillError(f"{options.images}: none of its {len(images)} images can be predicted; the first, "
                            f"{table['image_id'].iloc[0]}: {table['error'].iloc[0]}")
    write(stage, table, bundle, counts)


def count_rows(table: pd.DataFrame, others: int) -> dict[str, int]:
    """images = predicted + failed; how many of them carry a caution; files of other kinds."""
    ok = table["status"] == "ok"
    return {"images": len(table), "predicted": int(ok.sum()), "failed": int((~ok).sum()),
            "cautioned": int(table["caution"].notna().sum()), "other_files": others}


def write(stage: Stage, table: pd.DataFrame, bundle: Bundle, counts: dict[str, int]) -> None:
    """The table, the same as CSV, and the stamp."""
    buffer = io.StringIO()
    table.to_csv(buffer, index=False)
    stage.begin()
    write_table(table, stage.folder / TABLE)
    write_atomically(stage.folder / COPY, buffer.getvalue().encode())
    stage.finish(outputs=[TABLE, COPY], counts=counts, extra={"labels": list(bundle.card.labels)})
    undecided = [label for label, threshold in bundle.decisions.thresholds.items() if threshold is None]
    if undecided:
        log.warning("predict: no threshold, hence no decision, for %s", ", ".join(undecided))
    log.info("predict: %s; %s", " ".join(f"{key}={value:,}" for key, value in counts.items()), stage.folder / TABLE)
