"""What a trained arm says of the validation and test images: one row of logits per image and set of weights.

Logits, never probabilities: thresholds, calibration and metrics are other stages' business. A model that has learnt
from a test patient is refused, whether itself or through a stage that it builds on. Both the last weights (``raw``)
and their moving average (``ema``) are written; which one counts is fixed by the experiment's endpoint before this
command is run. Of runs that trained the head alone, the images' features are computed once for all arms and seeds.
A run of arm ``fold`` predicts the train and validation images that it has left out, and test (``ensembling.folds``).
Not promised: bit-equal logits at another batch size; they agree to about 1e-5.

    accelerate launch classify/predict.py --config C --arm real --arm-seed 0

A folder of one's own images, with an exported classifier (``classify.export``) or a training run's folder, is a command
of its own (see its ``--help``). It writes predictions.parquet and .csv, one row a file: probabilities, calibrated where
the weights have a temperature; decisions by the thresholds of validation; and what could not be read, with its reason.

    python -m classify.predict --images FOLDER --weights EXPORT_OR_RUN/train/ARM/seed_0 --out DIR
"""

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from classify.arm import check_arm
from classify.ensembling.averaging import average
from classify.ensembling.distorted import copy_of
from classify.ensembling.folds import FOLD, fold_images
from classify.ensembling.members import split_name
from classify.ensembling.models import TABLE, model_folder
from classify.exporting.own_predictions import predict_own
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
MOST_COPIES = 64


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """How predictions are made."""

    batch_size: int = 64
    """Images per forward pass and process, 1 or more; does not change the result."""
    tta: int = 1
    """Copies of each image over which probabilities are averaged: the image itself, and tta - 1 with the small
    distortions of training (test-time augmentation). 1 to 64."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise TailfillError(f"predict.batch_size is {self.batch_size}; wanted: 1 or more")
        if not 1 <= self.tta <= MOST_COPIES:
            raise TailfillError(f"predict.tta is {self.tta}; wanted: 1 to {MOST_COPIES}")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is predicted: one arm and seed."""

    run: Run
    config: PredictConfig
    arm: str
    """As it was named: ``ARM``, or ``ARM@MEMBER``."""
    seed: int

    @property
    def weights_folder(self) -> Path:
        """Where the trained weights stand."""
        return train_folder(self.run, self.arm, self.seed)

    @property
    def is_fold(self) -> bool:
        """Whether it has left out a fold of train and validation, and learnt from the others."""
        return self.arm == FOLD

    def frame(self, cohort: Cohort) -> pd.DataFrame:
        """The cohort's rows to predict; raises ``TailfillError`` when the weights have learnt from one's patient."""
        verify(self.weights_folder, "train", FILE)
        check_no_overlap(self.weights_folder, cohort)
        return (fold_images(cohort, self.seed, folder=self.weights_folder) if self.is_fold else
                cohort.split(*SPLITS))

    def stage(self) -> Stage:
        """The stage; copies count only where there are several, so that one is what it always was."""
        copies = {"tta": self.config.tta, "seed": self.run.seed} if self.config.tta > 1 else {}
        return Stage("predict", model_folder(self.run, self.arm, self.seed),
                     config={"arm": self.arm, "arm_seed": self.seed, **copies},
                     inputs={"cohort": self.run.cohort_folder, "train": self.weights_folder})


def logits_by_weights(
    task: Task, images: np.ndarray, cohort: Cohort, accelerator: Accelerator
) -> dict[str, np.ndarray]:
    """Set of weights to the logits of images, uint8 (n, size, size) -> float32 (n, n_labels).

    Every process computes its own stretch of the images; all return the whole. Raises ``TailfillError`` when the
    classifier was trained on other labels.
    """
    folder, every = task.weights_folder, np.arange(len(images))
    own = np.array_split(every, accelerator.num_processes)[accelerator.process_index]
    head_only = require(folder, "train")["config"].get("head_only", False)
    found = {}
    for weights in WEIGHTS:
        verify(folder, "train", f"{weights}.safetensors")
        model, card = load_classifier(folder, weights=weights)
        card.require_labels(cohort.labels, where=folder)
        opinions = []
        for copy in range(task.config.tta):
            if head_only:
                with accelerator.main_process_first():
                    features = load_features(model, copy_of(images, copy=copy, seed=task.run.seed, rows=every), card,
                                             cache=task.run.folder / "cache", device=accelerator.device)
                opinions.append(logits_of_features(model, features[own]))
            else:
                opinions.append(predict_logits(model, copy_of(images, copy=copy, seed=task.run.seed, rows=own), card,
                                               batch_size=task.config.batch_size, device=accelerator.device))
        found[weights] = np.concatenate(gather_object([average(opinions)]))
    return found


def predictions_table(
    task: Task, frame: pd.DataFrame, logits: Mapping[str, np.ndarray], cohort: Cohort
) -> pd.DataFrame:
    """The rows of ``predictions.parquet``: ``frame``'s images in its order, raw then ema."""
    about = frame[["image_id", "split", "patient_id", "study_id", "view", "sex", *cohort.labels]]
    about = about.assign(fold=task.seed % 1000 if task.is_fold else 0, arm=task.arm, seed=task.seed)
    columns = [f"logit_{label}" for label in cohort.labels]
    parts = [pd.concat([about.assign(weights=weights), pd.DataFrame(values, columns=columns)], axis=1)
             for weights, values in logits.items()]
    return pd.concat(parts, ignore_index=True)[list(predictions_schema(cohort.labels).columns)]


def predict(run: Run, config: PredictConfig, *, arm: str, seed: int) -> None:
    """Write the predictions of one arm (or ARM@MEMBER) and seed, unless that is done; called by every process."""
    torch.set_num_threads(run.threads)
    task = Task(run=run, config=config, arm=arm, seed=seed)
    cohort, stage, accelerator = load_cohort(run.cohort_folder), task.stage(), Accelerator()
    complete = stage.is_complete()
    accelerator.wait_for_everyone()
    if complete:
        log.info("predict %s, seed %d: complete, nothing to do", arm, seed)
        return
    frame = task.frame(cohort)
    if accelerator.is_main_process:
        stage.begin()
    card = load_card(task.weights_folder)
    with accelerator.main_process_first():  # the first writes the cache of pixels, the others read it
        images = load_images(cohort.image_paths(frame), card.image_size, run.folder / "cache", threads=run.threads)
    table = predictions_table(task, frame, logits_by_weights(task, images, cohort, accelerator), cohort)
    if accelerator.is_main_process:
        write_table(table, stage.folder / TABLE, predictions_schema(cohort.labels))
        counts = {str(split): int(n) for split, n in frame["split"].value_counts().items()}
        stage.finish(outputs=[TABLE], counts={"rows": len(table), **counts})
        log.info("predict %s, seed %d: %d images, raw and ema", arm, seed, len(frame))
    accelerator.wait_for_everyone()


def main() -> None:
    """One arm, one seed; or a folder of images."""
    if any(word.partition("=")[0] == "--images" for word in sys.argv[1:]):
        predict_own(sys.argv[1:], doc=__doc__)
        return
    options = parse("predict", PredictConfig, doc=__doc__, extra={"arm": (str, ...), "arm-seed": (int, ...)})
    run, name, seed = options.run, options.extra["arm"], options.extra["arm-seed"]
    arm, _ = split_name(run, name, seed)
    check_arm(run, arm, seed)
    if not options.dry_run:
        predict(run, options.section, arm=name, seed=seed)
        return
    task = Task(run=run, config=options.section, arm=name, seed=seed)
    frame = task.frame(load_cohort(run.cohort_folder))
    sys.stdout.write(task.stage().describe(images=len(frame), copies=options.section.tta) + "\n")


if __name__ == "__main__":
    run_command(main)
