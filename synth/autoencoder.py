"""The autoencoder of a latent diffusion model: radiograph -> latent -> radiograph.

A latent diffusion model sees the world through its autoencoder, so ribs that are lost here are lost for good. This is
diffusers' ``AutoencoderKL``, from nothing (grey in and grey out) or, with ``autoencoder.pipeline``, trained on from
another pipeline's. It learns from the train split only, with an L1 loss, an L1 loss of image gradients at two scales
(edges: ribs, pleura), a small KL term, where a backbone of radiographs is given a loss in its features, which keep thin
signs that pixels hardly count, and, in the last part of training, a patch discriminator with VQGAN's adaptive weight
(Esser et al. 2021, eq. 7). With ``decoder_only`` latents stay what a denoiser has learnt. Whoever fine-tunes a pipeline
as it is skips this stage.

What it does not promise: a perceptual loss by ImageNet's features (they measure fidelity later).

    accelerate launch synth/autoencoder.py --config configs/nih128.yaml
"""

import logging
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from classify.figures.sheets import contact_sheet
from classify.learning.models import CARD
from classify.learning.start import WEIGHTS_FILE
from classify.learning.training import CHECKPOINT, load_checkpoint, save_checkpoint, start_accelerator
from cohort.config import Run, parse
from cohort.errors import run_command
from cohort.pixels import load_images
from cohort.provenance import FILE, is_known, write_patients
from cohort.stage import Stage, hash_file
from cohort.tables import Cohort, load_cohort, write_table
from synth.drawing.pipelines import owning_stage, resolve_pipeline, weights_hash
from synth.learning.coding import AutoencoderConfig, Trainer
from synth.learning.reconstruction import latent_scale, psnr, reconstruct

log = logging.getLogger(__name__)


def fit(trainer: Trainer, images: np.ndarray, folder: Path) -> None:
    """Train to the configured number of steps, going on from the last checkpoint; history is kept in it."""
    history: list[dict[str, float]] = []
    if state := load_checkpoint(folder / CHECKPOINT):
        trainer.load(state)
        history = state["history"]
    accelerator, config, begun = trainer.accelerator, trainer.config, time.monotonic()
    before = history[-1]["seconds"] if history else 0.0
    bar = tqdm(total=config.steps, initial=trainer.step, desc="autoencoder", disable=not accelerator.is_main_process)
    while trainer.step < config.steps:
        losses = trainer.train_step(images)
        bar.update()
        if trainer.step % 20 == 0 or trainer.step == config.steps:
            seconds = before + time.monotonic() - begun
            history.append({"step": trainer.step, **losses, "seconds": seconds})
            bar.set_postfix(losses)
            accelerator.log(losses, step=trainer.step)
        last = trainer.step == config.steps
        if accelerator.is_main_process and (trainer.step % config.checkpoint_every == 0 or last):
            save_checkpoint(folder / CHECKPOINT, step=trainer.step, history=history, **trainer.state())
    if accelerator.is_main_process:
        write_table(pd.DataFrame(history), folder / "history.parquet")


def finish(
    trainer: Trainer, cohort: Cohort, stage: Stage, *, cache: Path, owners: list[Path | None], known: bool
) -> None:
    """Set the latent scale of a new model; write it, a sheet of reconstructions, provenance, and the stamp.

    ``owners``: where other weights came from, see ``find_owners``; ``known``: whether all their images are.
    """
    parents = [owner for owner in owners if owner is not None and (owner / FILE).is_file()]
    vae, config = trainer.vae.eval(), trainer.config
    frames = {name: cohort.split(name) for name in ("train", "val")}
    images = {name: load_images(cohort.image_paths(frame), config.image_size, cache=cache)
              for name, frame in frames.items()}
    if config.pipeline is None:
        vae.register_to_config(scaling_factor=latent_scale(vae, images["train"][:512]))
    vae.save_pretrained(stage.folder / "model")
    sample = images["val"][:200]
    again = reconstruct(vae, sample)
    pairs = [image for pair in zip(sample[:12], again[:12], strict=True) for image in pair]
    contact_sheet(pairs, ["real", "reconstructed"] * (len(pairs) // 2), columns=8).save(stage.folder / "samples.png")
    write_patients(stage.folder, frames["train"]["patient_id"], salt=cohort.salt, inherited=parents)
    score = psnr(reconstructed=again, target=sample)
    log.info("autoencoder: %.2f dB on %d validation images", score, len(sample))
    seconds = pd.read_parquet(stage.folder / "history.parquet")["seconds"].max()
    stage.finish(outputs=["model", "history.parquet", "patients.parquet"], seconds=float(seconds),
                 counts={"train_images": len(images["train"]), "steps": trainer.step},
                 extra={"processes": trainer.accelerator.num_processes, "psnr_db": score, "psnr_images": len(sample),
                        "scaling_factor": vae.config.scaling_factor, "provenance": "known" if known else "unknown"})
    (stage.folder / CHECKPOINT).unlink(missing_ok=True)


def find_owners(config: AutoencoderConfig, folder: Path | None) -> list[Path | None]:
    """Where the weights come from that it starts from or is judged by; None for a pipeline that no stage has written.
    """
    backbone = config.perceptual.backbone
    return [*([owning_stage(folder)] if folder is not None else []), *([Path(backbone)] if backbone else [])]


def open_stage(config: AutoencoderConfig, run: Run, folder: Path | None) -> Stage:
    """The stage; what identifies weights that it starts from is their content, not where they lie."""
    inputs, settings = {"cohort": run.cohort_folder}, config.identity()
    if config.perceptual.backbone is not None:
        backbone = Path(config.perceptual.backbone)
        inputs |= {"perceptual": backbone / WEIGHTS_FILE, "perceptual_card": backbone / CARD}
    if folder is not None:
        settings["weights"] = weights_hash(folder / "vae")
        settings["weights_config"] = hash_file(folder / "vae" / "config.json")
    return Stage("autoencoder", run.folder / "autoencoder", inputs=inputs,
                 config={**settings, "seed": run.seed, "threads": run.threads})


def main() -> None:
    """Train the autoencoder of RUN, or go on where it stopped."""
    options = parse("autoencoder", AutoencoderConfig, doc=__doc__)
    run, config = options.run, options.section
    cohort = load_cohort(run.cohort_folder)
    folder = resolve_pipeline(config.pipeline, config.revision) if config.pipeline else None
    stage = open_stage(config, run, folder)
    if options.dry_run:
        sys.stdout.write(stage.describe(train_images=len(cohort.split("train")), steps=config.steps) + "\n")
        return
    if stage.is_complete():
        log.info("autoencoder: complete, nothing to do")
        return
    owners = find_owners(config, folder)
    known = [is_known(owner, cohort) for owner in owners]  # raises where one has learnt from test patients
    accelerator = start_accelerator(run, stage.folder / "tensorboard", config.precision)
    if accelerator.is_main_process:
        stage.begin()
    accelerator.wait_for_everyone()
    accelerator.init_trackers("autoencoder")
    cache = run.folder / "cache"
    with accelerator.main_process_first():
        images = load_images(cohort.image_paths(cohort.split("train")), config.image_size, cache=cache)
    trainer = Trainer(config, accelerator, seed=run.seed, images=images, folder=folder)
    fit(trainer, images, stage.folder)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        finish(trainer, cohort, stage, cache=cache, owners=owners, known=all(known))
    accelerator.end_training()


if __name__ == "__main__":
    run_command(main)
