"""Plan in, images out: the stage that may run for days, and that may be killed at any moment.

::

    accelerate launch synth/generate.py --config configs/nih128.yaml
    ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 synth/generate.py --config C
    python -m synth.generate --config C --dry-run

(The second is two processes on a CPU; with GPUs, leave the variable out.) The plan fixes each image's id, seed, texts
and logical batch; ranks share the batches, a finished one is a part file (see ``parts``), and ``images.parquet`` is
assembled when every planned id is an image or a recorded error. To resume, give the same command again, with as many
processes as you like. The same files come out bit for bit for one device type, micro-batch and thread count; across
those, images agree to a grey level or two.
"""

import datetime
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list
from tqdm import tqdm

from cohort.config import Options, Run, hub_or_path, parse, require_values
from cohort.errors import TailfillError, run_command
from cohort.provenance import is_known
from cohort.stage import Stage, read_stamp, require, verify
from cohort.tables import load_cohort, plan_schema, read_table
from synth.drawing.parts import BatchWriter, assemble, finished_batches
from synth.drawing.pipelines import (
    check_names,
    load_pipeline,
    owning_stage,
    resolve_lora,
    resolve_pipeline,
    weights_hash,
)
from synth.drawing.sampling import Row, Sampler, Settings, check_lengths, draw_rows, encode_texts, image_size

log = logging.getLogger(__name__)

RUNTIME = ("micro_batch", "io_threads", "attention")
"""Settings that say how the work is done, not what comes out; no part of the stage's fingerprint."""
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
    """Images per call, 1 or more; default: the plan's logical batch. Halved when memory runs out."""
    precision: str = "no"
    """Of the denoiser: no (float32), bf16 or fp16. Latents, text encoder and decoder stay float32."""
    attention: str = "auto"
    """auto (xFormers where a real call to it works, else sdpa), xformers or sdpa."""
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
                  ("num_inference_steps", "micro_batch", "io_threads", "limit", "height", "width")}
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
    stage: Stage
    extra: dict[str, Any]


def read_plan(run: Run, labels: Sequence[str], limit: int | None) -> pd.DataFrame:
    """The plan's rows; raises ``TailfillError`` for rows that start from an image, which this stage cannot do yet."""
    plan = read_table(verify(run.folder / "plan", "plan", "plan.parquet"), plan_schema(labels)).iloc[:limit]
    if plan.empty:
        raise TailfillError(f"{run.folder / 'plan' / 'plan.parquet'}: holds no rows; nothing can be generated")
    conditioned = plan[plan["init_image_id"].notna()]
    if len(conditioned):
        raise TailfillError(f"plan, sample_id {conditioned['sample_id'].iloc[0]}: starts from an image "
                            f"({conditioned['init_image_id'].iloc[0]}), which generate does not do")
    return plan


def hash_pipeline(folder: Path, owner: Path | None) -> str:
    """The hash of a pipeline's weights: its stage's, checked, where a stage wrote it, else that of its safetensors."""
    stamp = read_stamp(owner) if owner else None
    if owner is None or stamp is None or folder.name not in stamp["outputs"]:
        return weights_hash(folder)
    verify(owner, stamp["stage"], folder.name)
    return str(stamp["outputs"][folder.name])


def prepare(run: Run, config: GenerateConfig) -> Work:
    """Read, check and hash all inputs. Raises ``TailfillError`` before any weights are loaded."""
    cohort = load_cohort(run.cohort_folder)
    plan = read_plan(run, cohort.labels, config.limit)
    if config.pipeline is None:
        require(run.folder / "generator", "generator")
    folder = resolve_pipeline(config.pipeline or str(run.folder / "generator" / "pipeline"), config.revision)
    lora = resolve_lora(config.lora) if config.lora else None
    settings = {key: value for key, value in asdict(config).items() if key not in (*RUNTIME, *PLACES)}
    owner, lora_owner = owning_stage(folder), owning_stage(lora) if lora else None
    inputs = {"plan": run.folder / "plan"} | ({"generator": owner} if owner else {})
    inputs |= {"lora": lora_owner} if lora_owner else {}
    hashes = {"weights": hash_pipeline(folder, owner), **({"lora_weights": weights_hash(lora)} if lora else {})}
    known = [is_known(place, cohort) for place in (owner, *([lora_owner] if lora else []))]
    stage = Stage("generate", run.folder / "images", config=settings | hashes, inputs=inputs)
    return Work(plan=plan, pipeline=folder, lora=lora, stage=stage,
                extra=hashes | {"provenance": "known" if all(known) else "unknown"})


def check_texts(work: Work) -> None:
    """Raise ``TailfillError`` for a text that the pipeline's tokenizers would cut."""
    folders = [path for path in sorted(work.pipeline.glob("tokenizer*")) if path.is_dir()]
    try:
        tokenizers = [transformers.AutoTokenizer.from_pretrained(str(path), local_files_only=True) for path in folders]
    except (OSError, ValueError) as error:
        raise TailfillError(f"{work.pipeline}: its tokenizer does not load: {error}") from error
    check_lengths(tokenizers, to_rows(work.plan))


def to_rows(frame: pd.DataFrame) -> list[Row]:
    """Rows of the plan as sampling takes them."""
    columns = [frame[name] for name in ("sample_id", "prompt", "negative_prompt", "seed")]
    return [Row(sample_id=sample_id, prompt=prompt, negative_prompt=negative, seed=int(seed))
            for sample_id, prompt, negative, seed in zip(*columns, strict=True)]


def batches_to_do(plan: pd.DataFrame, folder: Path) -> list[tuple[int, list[Row]]]:
    """The logical batches without a part file, in order."""
    done = finished_batches(folder)
    groups = plan[~plan["batch"].isin(done)].groupby("batch", sort=True)
    return [(int(str(batch)), to_rows(rows)) for batch, rows in groups]


def begin(accelerator: Accelerator, options: Options) -> Work | None:
    """Check everything once, on the main process, and begin the stage; None when it is complete on all ranks."""
    work: list[Work | None] = [None]
    if accelerator.is_main_process:
        found = prepare(options.run, options.section)
        if not found.stage.is_complete():
            check_texts(found)
            found.stage.begin()
            work = [found]
    if accelerator.num_processes > 1:
        broadcast_object_list(work)
    return work[0]


def draw_batches(accelerator: Accelerator, sampler: Sampler, mine: list[tuple[int, list[Row]]], folder: Path,
                 config: GenerateConfig) -> int:
    """Draw and write this rank's batches; returns the number of images drawn.

    Raises ``TailfillError`` when every image of the first batch fails: then the settings are wrong, not an image.
    """
    world, total = accelerator.num_processes, sum(len(rows) for _, rows in mine)
    bar = tqdm(total=total, unit="image", desc="generate" + (f" (1 of {world} ranks)" if world > 1 else ""),
               disable=not accelerator.is_main_process)
    writer = BatchWriter(folder, threads=config.io_threads, rank=accelerator.process_index)
    with bar, writer:
        for number, (batch, rows) in enumerate(mine):
            drawn = draw_rows(rows, draw=sampler.draw, micro_batch=config.micro_batch or len(rows), grey=config.grey)
            failed = [image for image in drawn if image.error is not None]
            if number == 0 and len(failed) == len(rows) > 1:
                raise TailfillError(f"all {len(rows)} images of batch {batch} failed: {failed[0].error}")
            for image in failed:
                log.warning("generate: %s failed: %s", image.sample_id, image.error)
            writer.add(batch, drawn)
            bar.update(len(rows))
    return total


def generate(accelerator: Accelerator, work: Work, options: Options) -> None:
    """Draw what is left to do, on every rank, and assemble the table on the main one."""
    config: GenerateConfig = options.section
    began, folder = time.monotonic(), work.stage.folder
    todo = batches_to_do(work.plan, folder)
    accelerator.wait_for_everyone()  # important: nobody may write a part before all ranks have listed them
    mine = todo[accelerator.process_index::accelerator.num_processes]
    attention = "none: nothing was left to draw"
    if mine:
        pipeline, attention = load_pipeline(
            work.pipeline, lora=work.lora, scheduler=config.scheduler, precision=config.precision,
            attention=config.attention, device=accelerator.device,
        )
        log.info("generate: rank %d of %d on %s, attention %s", accelerator.process_index, accelerator.num_processes,
                 accelerator.device, attention)
        sampler = make_sampler(pipeline, [row for _, rows in mine for row in rows], config)
        draw_batches(accelerator, sampler, mine, folder, config)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        frame = assemble(folder, sample_ids=work.plan["sample_id"].tolist(), batches=work.plan["batch"].tolist())
        made = int((frame["status"] == "ok").sum())
        work.stage.finish(
            outputs=["images.parquet"], counts={"planned": len(frame), "made": made, "failed": len(frame) - made},
            extra=work.extra | {"attention": attention, "world_size": accelerator.num_processes,
                                "threads": options.run.threads, "device": str(accelerator.device),
                                "precision": config.precision, "scheduler": config.scheduler,
                                "drawn": sum(len(rows) for _, rows in todo)},
        )
        log.info("generate: %d images, %d failed, in %.0f s", made, len(frame) - made, time.monotonic() - began)


def make_sampler(pipeline: Any, rows: Sequence[Row], config: GenerateConfig) -> Sampler:
    """A sampler with all texts of ``rows`` encoded."""
    height, width = image_size(pipeline, config.height, config.width)
    texts = [row.prompt for row in rows] + [row.negative_prompt for row in rows]
    settings = Settings(
        num_inference_steps=config.num_inference_steps, guidance_scale=config.guidance_scale,
        guidance_interval=config.guidance_interval, height=height, width=width, grey=config.grey,
    )
    return Sampler(pipeline, encode_texts(pipeline, texts), settings)


def main() -> None:
    """Parse, check, draw, assemble."""
    options = parse("generate", GenerateConfig, doc=__doc__)
    torch.set_num_threads(options.run.threads)
    if options.dry_run:
        work = prepare(options.run, options.section)
        todo = batches_to_do(work.plan, work.stage.folder)
        sys.stdout.write(work.stage.describe(
            rows=len(work.plan), rows_to_do=sum(len(rows) for _, rows in todo), batches_to_do=len(todo),
            estimated_time="unknown before the first batch", **work.extra,
        ) + "\n")
        return
    patience = InitProcessGroupKwargs(timeout=datetime.timedelta(hours=6))
    accelerator = Accelerator(kwargs_handlers=[patience])
    work_to_do = begin(accelerator, options)
    if work_to_do is None:
        log.info("generate: complete, nothing to do")
    else:
        generate(accelerator, work_to_do, options)
    accelerator.end_training()


if __name__ == "__main__":
    run_command(main)
