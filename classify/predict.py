"""What a trained arm says of the validation and test images: one row of logits per image and set of weights.

Logits, never probabilities: thresholds, calibration and metrics are other stages' business. A model that has learnt
from a test patient is refused, whether itself or through a stage that it builds on. Both the last weights (``raw``)
and their moving average (``ema``) are written; which one counts is fixed by the experiment's endpoint before this
command is run. Of runs that trained the head alone, the images' features are computed once for all arms and seeds.
Not promised: bit-equal logits at another batch size; they agree to about 1e-5.

    accelerate launch classify/predict.py --config C --arm real --arm-seed 0
"""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from classify.arm import check_arm
from classify.arms.rivals import ARMS
from classify.learning.features import load_features, logits_of_features
from classify.learning.models import WEIGHTS, load_card, load_classifier, predict_logits
from classify.train import train_folder
from cohort.config import Run, parse
from cohort.errors import TailfillError, run_command
from cohort.pixels import load_images
from cohort.provenance import FILE, check_no_overlap
from cohort.stage import Stage, require, verify
from cohort.tables import Cohort, load_cohort, predictions_schema, write_table

log = logging.getLogger(__name__)

SPLITS = ("val", "test")
TABLE = "predictions.parquet"


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """How predictions are made; nothing here changes them."""

    batch_size: int = 64
    """Images per forward pass and process, 1 or more."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise TailfillError(f"predict.batch_size is {self.batch_size}; wanted: 1 or more")


def predict_frame(
    images: np.ndarray, frame: pd.DataFrame, cohort: Cohort, folder: Path, *, arm: str, seed: int, batch_size: int,
    cache: Path, accelerator: Accelerator,
) -> pd.DataFrame:
    """The rows of ``predictions.parquet`` for ``frame``'s images, uint8 (n, size, size), in its order, raw then ema.

    Every process computes its own stretch of the images; all return the whole. Raises ``TailfillError`` when the
    classifier was trained on other labels.
    """
    own = np.array_split(np.arange(len(frame)), accelerator.num_processes)[accelerator.process_index]
    head_only = require(folder, "train")["config"].get("head_only", False)
    parts = []
    for weights in WEIGHTS:
        verify(folder, "train", f"{weights}.safetensors")
        model, card = load_classifier(folder, weights=weights)
        card.require_labels(cohort.labels, where=folder)
        if head_only:
            with accelerator.main_process_first():
                features = load_features(model, images, card, cache=cache, device=accelerator.device)
            logits = logits_of_features(model, features[own])
        else:
            logits = predict_logits(model, images[own], card, batch_size=batch_size, device=accelerator.device)
        logits = np.concatenate(gather_object([logits]))
        columns = pd.DataFrame(logits, columns=[f"logit_{label}" for label in cohort.labels])
        about = frame[["image_id", "split", "patient_id", "study_id", "view", "sex", *cohort.labels]]
        parts.append(pd.concat([about.assign(fold=0, arm=arm, seed=seed, weights=weights), columns], axis=1))
    return pd.concat(parts, ignore_index=True)[list(predictions_schema(cohort.labels).columns)]


def predict_stage(run: Run, *, arm: str, seed: int) -> Stage:
    """The stage of one arm and seed."""
    return Stage("predict", run.folder / "predictions" / arm / f"seed_{seed}", config={"arm": arm, "arm_seed": seed},
                 inputs={"cohort": run.cohort_folder, "train": train_folder(run, arm, seed)})


def predict(run: Run, config: PredictConfig, *, arm: str, seed: int) -> None:
    """Write the predictions of one arm and seed, unless they are complete; called by every process."""
    torch.set_num_threads(run.threads)
    cohort, stage, accelerator = load_cohort(run.cohort_folder), predict_stage(run, arm=arm, seed=seed), Accelerator()
    folder = train_folder(run, arm, seed)
    if "val" in ARMS[arm].splits:
        raise TailfillError(f"arm '{arm}': has learnt from validation images, so nothing is predicted with it")
    complete = stage.is_complete()
    accelerator.wait_for_everyone()
    if complete:
        log.info("predict %s, seed %d: complete, nothing to do", arm, seed)
        return
    verify(folder, "train", FILE)
    check_no_overlap(folder, cohort)
    frame = cohort.split(*SPLITS)
    if accelerator.is_main_process:
        stage.begin()
    card, cache = load_card(folder), run.folder / "cache"
    with accelerator.main_process_first():  # the first writes the cache of pixels, the others read it
        images = load_images(cohort.image_paths(frame), card.image_size, cache, threads=run.threads)
    table = predict_frame(images, frame, cohort, folder, arm=arm, seed=seed, batch_size=config.batch_size,
                          cache=cache, accelerator=accelerator)
    if accelerator.is_main_process:
        write_table(table, stage.folder / TABLE, predictions_schema(cohort.labels))
        counts = {"rows": len(table), **{name: int((frame["split"] == name).sum()) for name in SPLITS}}
        stage.finish(outputs=[TABLE], counts=counts)
        log.info("predict %s, seed %d: %d images, raw and ema", arm, seed, len(frame))
    accelerator.wait_for_everyone()


def main() -> None:
    """One arm, one seed."""
    options = parse("predict", PredictConfig, doc=__doc__, extra={"arm": (str, ...), "arm-seed": (int, ...)})
    run, arm, seed = options.run, options.extra["arm"], options.extra["arm-seed"]
    check_arm(run, arm, seed)
    if options.dry_run:
        n_images = len(load_cohort(run.cohort_folder).split(*SPLITS))
        sys.stdout.write(predict_stage(run, arm=arm, seed=seed).describe(images=n_images) + "\n")
        return
    predict(run, options.section, arm=arm, seed=seed)


if __name__ == "__main__":
    run_command(main)
