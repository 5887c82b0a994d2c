"""Plan in, images out: the stage that may run for days, and that may be killed at any moment.

::

    accelerate launch synth/generate.py --config configs/nih128.yaml
    ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 synth/generate.py --config C
    python -m synth.generate --config C --dry-run

(The second is two processes on a CPU; with GPUs, leave the variable out.) The plan fixes each image's id, seed, texts
and logical batch; ranks share the batches, a finished one is a part file (see ``parts``), and the tables are assembled
when every planned id is an image or a recorded error. To resume, give the same command again, with as many processes
as you like; a second run in the same folder at the same time is refused.

Promised for equal plans, settings and versions: the same ids, seeds and initial noise anywhere. On one device type, at
equal ``threads`` and equal settings of ``RUNTIME``, ``images.parquet`` and every PNG are equal byte for byte, for any
number of processes, in one go or after any kills (``scripts/torture.py``). Between device types, thread counts or
micro-batches float sums change their order: pixels agree to a grey level or two, hashes do not. Never equal:
``batches.parquet`` (who drew, how long) and what the stamp says of the last session (seconds, world size).
"""

import datetime
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list
from tqdm import tqdm

from cohort.config import Options, Run, hub_or_path, parse, require_values
from cohort.errors import TailfillError, run_command
from cohort.provenance import is_known
from cohort.stage import Stage, device_name
from cohort.tables import load_cohort
from synth.drawing.editing import find_sources, load_sources
from synth.drawing.execution import PRECISIONS
from synth.drawing.parts import IMAGES, BatchWriter, Drawer, assemble
from synth.drawing.pipelines import DECODE_BATCH, check_names, find_weights, load_pipeline
from synth.drawing.planned import asked_texts, batches_left, read_plan, rows_by_batch
from synth.drawing.sampling import NOT_FINITE, Row, Sampler, Settings, draw_rows, image_size
from synth.drawing.texts import check_texts, encode_texts

log = logging.getLogger(__name__)

RUNTIME = ("micro_batch", "decode_batch", "io_threads", "attention", "channels_last", "compile")
"""Settings that say how the work is done and change an image by rounding only; no part of the stage's fingerprint."""
PLACES = ("pipeline", "revision", "lora")
"""Where weights lie; what identifies them in the fingerprint is their hash."""


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """How the images of the plan are made."""

    pipeline: str | None = hub_or_path(None)
    """A diffusers text-to-image pipeline: folder or hub id; default: the one that ``finetune`` wrote in this run."""
    revision: str | None = None
    """Commit, tag or branch of a pipeline on the hub."""
    lora: str | None = hub_or_path(None)
    """LoRA weights to merge into it: a .safetensors file, a folder with one, or a hub id."""
    scheduler: str = "dpm++"
    """dpm++, dpm++_karras, dpm++_sde, unipc, euler, euler_ancestral, heun, ddim, ddpm, pndm or lcm."""
    num_inference_steps: int = 25
    """Denoising steps, 1 or more; 20 to 25 steps of dpm++ stand for 50 to 75 of ddim or pndm."""
    guidance_scale: float = 2.5
    """Classifier-free guidance, 1 (none) or more; 2 to 4 suit training data, 7.5 is for looks."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Part of the schedule, from pure noise 0 to the image 1, in which guidance is applied; outside it costs half."""
    height: int | None = None
    """Image height in px, a multiple of 8; default: what the pipeline was built for."""
    width: int | None = None
    """Image width in px, as height."""
    micro_batch: int | None = None
    """Images per call, 1 or more; default, and at most: the plan's logical batch. Halved when memory runs out."""
    precision: str = "no"
    """Of the denoiser: no (float32), bf16 or fp16. Latents, text encoder and decoder stay float32."""
    attention: str = "auto"
    """auto (xFormers where a real call to it works, else sdpa), xformers, sdpa (torch's, which chooses its kernel), or
    one kernel of torch: flash, efficient, cudnn, eager."""
    channels_last: bool = True
    """Keep images with their channels last in memory: 6 to 7 % faster with ``models/generator`` on a CPU."""
    compile: bool = False
    """Compile the repeated blocks of denoiser and decoder: minutes before the first image, less time for each."""
    decode_batch: int = DECODE_BATCH
    """Images decoded at a time, 1 or more; memory grows with it."""
    grey: bool = True
    """Save 8-bit grey PNGs (the mean of the channels) rather than RGB."""
    io_threads: int = 2
    """Threads that encode and write PNGs, 1 or more."""
    limit: int | None = None
    """Only the first rows of the plan, for trying; 1 or more; default: all."""

    def __post_init__(self) -> None:
        """Raise ``TailfillError`` for the first value out of range."""
        check_names(scheduler=self.scheduler, precision=self.precision, attention=self.attention)
        counts = {key: getattr(self, key) for key in
                  ("num_inference_steps", "micro_batch", "decode_batch", "io_threads", "limit", "height", "width")}
        start, stop = self.guidance_interval
        require_values("generate", **{key: (n, n is None or n >= 1, "1 or more") for key, n in counts.items()},
                guidance_scale=(self.guidance_scale, self.guidance_scale >= 1, "1 or more"),
                guidance_interval=([start, stop], 0 <= start <= stop <= 1, "0 <= start <= stop <= 1"))


@dataclass(frozen=True, kw_only=True)
class Work:
    """Everything that is known and checked before weights are loaded."""

    plan: pd.DataFrame
    pipeline: Path
    lora: Path | None
    sources: dict[str, Path]
    """Files of the real images that rows start from, by their ids."""
    stage: Stage
    extra: dict[str, Any]


def prepare(run: Run, config: GenerateConfig) -> Work:
    """Read, check and hash all inputs. Raises ``TailfillError`` before any weights are loaded."""
    cohort = load_cohort(run.cohort_folder)
    plan = read_plan(run, cohort.labels, config.limit)
    sources = find_sources(plan, cohort, num_inference_steps=config.num_inference_steps, scheduler=config.scheduler)
    weights = find_weights(run.folder, pipeline=config.pipeline, revision=config.revision, lora=config.lora)
    settings = {key: value for key, value in asdict(config).items() if key not in (*RUNTIME, *PLACES)}
    inputs = {"plan": run.folder / "plan", **weights.inputs, **({"cohort": run.cohort_folder} if sources else {})}
    known = [is_known(owner, cohort) for owner in weights.owners.values()]
    stage = Stage("generate", run.folder / "images", config=settings | dict(weights.hashes), inputs=inputs)
    return Work(plan=plan, pipeline=weights.pipeline, lora=weights.lora, sources=sources, stage=stage, extra={
        **weights.hashes, "provenance": "known" if all(known) else "unknown", "source_images": len(sources)})


def begin(accelerator: Accelerator, options: Options) -> Work | None:
    """Check everything once, on the main process, and begin the stage; None when it is complete on all ranks."""
    work: list[Work | None] = [None]
    if accelerator.is_main_process:
        found = prepare(options.run, options.section)
        if not found.stage.is_complete():
            check_texts(found.pipeline, asked_texts(found.plan))
            found.stage.begin()
            work = [found]
    if accelerator.num_processes > 1:
        broadcast_object_list(work)
    return work[0]


def draw_batches(accelerator: Accelerator, sampler: Sampler, mine: list[tuple[int, list[Row]]], writer: BatchWriter,
                 config: GenerateConfig) -> None:
    """Draw and write this rank's batches.

    Raises ``TailfillError`` when every image of a batch fails: then the settings or the machine are wrong, not an
    image. Images that are not finite say so in the first batch only: later they are errors of their own.
    """
    world, total = accelerator.num_processes, sum(len(rows) for _, rows in mine)
    bar = tqdm(total=total, unit="image", desc="generate" + (f" (1 of {world} ranks)" if world > 1 else ""),
               disable=not accelerator.is_main_process)
    fixed_shapes = config.compile or accelerator.device.type == "cuda"
    with bar, writer:
        for number, (batch, rows) in enumerate(mine):
            drawn = draw_rows(rows, draw=sampler.draw, micro_batch=config.micro_batch or len(rows), grey=config.grey,
                              pad=fixed_shapes)
            failed = [image for image in drawn if image.error is not None]
            fatal = failed if number == 0 else [image for image in failed if image.error != NOT_FINITE]
            if len(fatal) == len(rows) > 1:
                raise TailfillError(f"all {len(rows)} images of batch {batch} failed: {failed[0].error}; what was made "
                                    "before is kept")
            for image in failed:
                log.warning("generate: %s failed: %s", image.sample_id, image.error)
            writer.add(batch, drawn)
            bar.update(len(rows))


def draw_share(accelerator: Accelerator, work: Work, config: GenerateConfig, batches: Sequence[int]) -> None:
    """Load the pipeline and draw a rank's share of the batches, if it has any."""
    mine = rows_by_batch(work.plan, batches)
    if not mine:
        return
    pipeline, attention = load_pipeline(
        work.pipeline, lora=work.lora, scheduler=config.scheduler, precision=config.precision,
        attention=config.attention, device=accelerator.device, channels_last=config.channels_last,
        compiled=config.compile, decode_batch=config.decode_batch,
    )
    log.info("generate: rank %d of %d on %s, attention %s", accelerator.process_index, accelerator.num_processes,
             accelerator.device, attention)
    sampler = make_sampler(pipeline, [row for _, rows in mine for row in rows], work.sources, config)
    drawer = Drawer(rank=accelerator.process_index, world_size=accelerator.num_processes, attention=attention,
                    device=device_name() if accelerator.device.type == "cuda" else accelerator.device.type)
    draw_batches(accelerator, sampler, mine, BatchWriter(work.stage.folder, threads=config.io_threads, drawer=drawer),
                 config)


def generate(accelerator: Accelerator, work: Work, options: Options) -> None:
    """Draw what is left to do, on every rank, and assemble the tables on the main one."""
    largest = int(work.plan["batch"].value_counts().max())
    # no more than a logical batch has: a device that wants fixed shapes would fill the call with repeats
    config: GenerateConfig = replace(options.section, micro_batch=min(options.section.micro_batch or largest, largest))
    began, left = time.monotonic(), batches_left(work.plan, work.stage.folder)
    accelerator.wait_for_everyone()  # important: nobody may write a part before all ranks have listed them
    draw_share(accelerator, work, config, left[accelerator.process_index::accelerator.num_processes])
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        finish(work, options.run, config, left=left, began=began, world_size=accelerator.num_processes)


def finish(work: Work, run: Run, config: GenerateConfig, *, left: Sequence[int], began: float,
           world_size: int) -> None:
    """Assemble the tables and write the stamp; ``left`` are the batches of this session, ``began`` its start.

    Its seconds are all of this session and the drawing of those before it.
    """
    images, account = assemble(work.stage.folder, sample_ids=work.plan["sample_id"].tolist(),
                               batches=work.plan["batch"].unique().tolist())
    made, before = int((images["status"] == "ok").sum()), account[~account["batch"].isin(left)]
    seconds = time.monotonic() - began + float((before["seconds"] / before["world_size"]).sum())
    work.stage.finish(
        outputs=[IMAGES], counts={"planned": len(images), "made": made, "failed": len(images) - made}, seconds=seconds,
        extra=work.extra | {
            **{key: "; ".join(sorted(set(account[key]))) for key in ("device", "attention")},
            "precision": config.precision, "dtype": str(PRECISIONS[config.precision]).removeprefix("torch."),
            "scheduler": config.scheduler, "threads": run.threads,
            **{key: getattr(config, key) for key in RUNTIME if key != "attention"},
            "world_size": world_size, "drawn": len(images) - int(before["images"].sum()),
        },
    )
    log.info("generate: %d images, %d failed, in %.0f s", made, len(images) - made, seconds)


def make_sampler(pipeline: Any, rows: Sequence[Row], files: Mapping[str, Path], config: GenerateConfig) -> Sampler:
    """A sampler with all texts of ``rows`` encoded, and of ``files`` the images that they start from."""
    height, width = image_size(pipeline, config.height, config.width)
    texts = encode_texts(pipeline, prompts=[row.prompt for row in rows],
                         negatives=[row.negative_prompt for row in rows])
    settings = Settings(
        num_inference_steps=config.num_inference_steps, guidance_scale=config.guidance_scale,
        guidance_interval=config.guidance_interval, height=height, width=width, grey=config.grey,
    )
    starts = sorted({row.init_image_id for row in rows if row.init_image_id is not None})
    sources = load_sources(pipeline, {name: files[name] for name in starts}, height=height, width=width)
    return Sampler(pipeline, texts, settings, sources)


def main() -> None:
    """Parse, check, draw, assemble."""
    options = parse("generate", GenerateConfig, doc=__doc__)
    torch.set_num_threads(options.run.threads)
    if options.dry_run:
        work = prepare(options.run, options.section)
        left = batches_left(work.plan, work.stage.folder)
        sys.stdout.write(work.stage.describe(
            rows=len(work.plan), rows_to_do=int(work.plan["batch"].isin(left).sum()), batches_to_do=len(left),
            estimated_time="unknown before the first batch", **work.extra,
        ) + "\n")
        return
    patience = InitProcessGroupKwargs(timeout=datetime.timedelta(days=7))  # of ranks that are done for slower ones
    accelerator = Accelerator(kwargs_handlers=[patience])
    work_to_do = begin(accelerator, options)
    if work_to_do is None:
        log.info("generate: complete, nothing to do")
    else:
        generate(accelerator, work_to_do, options)
    accelerator.end_training()


if __name__ == "__main__":
    run_command(main)
