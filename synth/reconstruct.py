"""Real images as the generator's decoder would draw them: how much of a gain its autoencoder alone costs.

A latent diffusion model can make no image that its decoder cannot draw. So the training images (and those of the
oracle, where there is one) are encoded and decoded again, nothing being generated in between, and the arms
``duplicate-reconstructed`` and ``oracle-reconstructed`` train on them in the slots that ``synthetic`` fills: the second
is the ceiling for any generator around this autoencoder. Arms ``-harmonised`` hold as many of their real images so as
of their added slots, that the decoder's look, which all synthetic images have, tells nothing. Interrupted, the same
command goes on.

What it does not promise: autoencoders other than diffusers' ``AutoencoderKL`` (the latent's mean is what is decoded),
nor images of the validation and test splits, which are never touched.

    accelerate launch synth/reconstruct.py --config configs/phantom.yaml
"""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from tqdm import tqdm

from classify.slots import Pool, load_pools
from cohort.config import Run, hub_or_path, parse, require_values
from cohort.errors import run_command
from cohort.pixels import load_images
from cohort.provenance import FILE, write_patients
from cohort.stage import Stage, hash_bytes, write_atomically
from cohort.tables import RECONSTRUCTED, Cohort, cohort_schema, load_cohort, write_table
from synth.drawing.parts import encode_png
from synth.drawing.pipelines import find_pipeline, owning_stage, weights_hash
from synth.learning.reconstruction import load_autoencoder, reconstruct

log = logging.getLogger(__name__)

BATCHES = 16
"""Batches between two lines of the progress bar; what is held in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig:
    """The ``reconstruct`` section; give an empty one, ``{}``, for the run's own generator."""

    pipeline: str | None = hub_or_path(None)
    """A diffusers pipeline whose ``vae`` is used: folder or hub id; default: what ``finetune`` wrote in this run."""
    revision: str | None = None
    """Commit, tag or branch of a pipeline on the hub."""
    image_size: int | None = None
    """Pixels per side, a multiple of 8; default: the size that the autoencoder was built for."""
    batch_size: int = 32
    """Images per pass, 1 or more."""
    oracle: bool = True
    """Whether the images of the run's oracle are reconstructed too; only arms ``oracle-reconstructed`` need them."""

    def __post_init__(self) -> None:
        """Raise ``TailfillError`` for the first value out of range."""
        size, batch = self.image_size, self.batch_size
        require_values("reconstruct", batch_size=(batch, batch >= 1, "1 or more"),
                       image_size=(size, size is None or (size >= 8 and size % 8 == 0), "a multiple of 8"))


def oracle_folders(run: Run, config: ReconstructConfig) -> dict[str, Path]:
    """The folder of the run's oracle by its name, where there is one to reconstruct."""
    folder = run.folder / "oracle"
    return {"oracle": folder} if config.oracle and folder.is_dir() else {}


def read_pools(run: Run, config: ReconstructConfig, cohort: Cohort) -> list[Pool]:
    """The images to reconstruct: the cohort's training images, and the oracle's where they are wanted."""
    further = load_pools(oracle_folders(run, config), cohort)
    return [Pool(frame=cohort.split("train"), roots=cohort.roots), *further.values()]


def image_path(image_id: str) -> str:
    """Where a reconstruction stands below the stage's folder, by a hash of its id: ids may hold any character."""
    name = hash_bytes(image_id.encode())[:24]
    return f"images/{name[:2]}/{name}.png"


def describe(pools: list[Pool]) -> pd.DataFrame:
    """One row per reconstruction in the cohort's columns: its own id and path, the labels and patient of its source."""
    frame = pd.concat([pool.frame for pool in pools], ignore_index=True)
    paths = [image_path(image) for image in frame["image_id"]]
    return frame.assign(image_id=RECONSTRUCTED + frame["image_id"], root="reconstructed", path=paths)


def write_images(vae: AutoencoderKL, pool: Pool, folder: Path, *, size: int, config: ReconstructConfig,
                 cache: Path) -> None:
    """Encode, decode and write the images of ``pool`` that are not there yet."""
    files = [folder / image_path(image) for image in pool.frame["image_id"]]
    pixels, step = load_images(pool.paths(), size, cache), config.batch_size * BATCHES
    for start in tqdm(range(0, len(files), step), desc="reconstruct", unit="chunk"):
        todo = [place for place in range(start, min(start + step, len(files))) if not files[place].is_file()]
        if todo:
            again = reconstruct(vae, np.asarray(pixels[todo]), batch_size=config.batch_size)
            for place, image in zip(todo, again, strict=True):
                write_atomically(files[place], encode_png(image))


def make_stage(run: Run, config: ReconstructConfig, pipeline: Path) -> Stage:
    """The stage; what identifies the autoencoder are its weights, not where they lie."""
    owner = owning_stage(pipeline)
    inputs = {"cohort": run.cohort_folder, **({"generator": owner} if owner else {}), **oracle_folders(run, config)}
    settings: dict[str, Any] = {"weights": weights_hash(pipeline / "vae"), "image_size": config.image_size}
    return Stage("reconstruct", run.folder / "reconstructed", config=settings, inputs=inputs)


def run_stage(run: Run, config: ReconstructConfig, cohort: Cohort, stage: Stage, pipeline: Path,
              device: torch.device) -> None:
    """Reconstruct what is left to do, write the table and the stamp."""
    vae = load_autoencoder(pipeline).to(device)
    size = config.image_size or int(vae.config.sample_size)
    pools = read_pools(run, config, cohort)
    stage.begin()
    for pool in pools:
        write_images(vae, pool, stage.folder, size=size, config=config, cache=run.folder / "cache")
    frame = describe(pools)
    write_table(frame, stage.folder / "reconstructed.parquet", cohort_schema(cohort.labels))
    n_train = len(pools[0].frame)
    owner = owning_stage(pipeline)
    known = [owner] if owner is not None and (owner / FILE).is_file() else []
    if known:  # whom the autoencoder has learnt from; a foreign one does not say
        write_patients(stage.folder, [], salt=cohort.salt, inherited=known)
    stage.finish(outputs=["reconstructed.parquet", "images", *([FILE] if known else [])],
                 counts={"images": len(frame), "train": n_train, "oracle": len(frame) - n_train},
                 extra={"roots": {"reconstructed": str(stage.folder.resolve())}, "size": size})
    log.info("reconstruct: %d images of %d px", len(frame), size)


def main() -> None:
    """Parse, check, reconstruct."""
    options = parse("reconstruct", ReconstructConfig, doc=__doc__)
    run, config = options.run, options.section
    accelerator = Accelerator()
    if not accelerator.is_main_process:
        return
    torch.set_num_threads(run.threads)
    cohort = load_cohort(run.cohort_folder)
    pipeline = find_pipeline(run.folder, config.pipeline, config.revision)
    stage = make_stage(run, config, pipeline)
    if options.dry_run:
        sys.stdout.write(stage.describe(images=sum(len(pool.frame) for pool in read_pools(run, config, cohort))) + "\n")
    elif stage.is_complete():
        log.info("reconstruct: complete, nothing to do")
    else:
        run_stage(run, config, cohort, stage, pipeline, accelerator.device)


if __name__ == "__main__":
    run_command(main)
