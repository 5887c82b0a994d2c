"""The ways of drawing that ``generate.py`` compares, each on a pipeline of its own from the same folder.

A ``Meter`` sits inside each pipeline and counts what its two large networks do; everything else of the wall time is the
way's own. All ways draw the same rows (texts, seeds), and each leaves its PNGs in a folder.
"""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import AutoPipelineForText2Image

from synth.drawing.execution import PRECISIONS
from synth.drawing.parts import BatchWriter, Drawer, image_path
from synth.drawing.pipelines import denoiser, load_pipeline
from synth.drawing.sampling import Row, Sampler, Settings, draw_rows, image_size
from synth.drawing.schedulers import set_scheduler
from synth.drawing.texts import encode_texts

PEERS_STEPS, PEERS_BATCH, PEERS_SCHEDULER = 75, 4, "pndm"
"""How published code that fills long tails with Stable Diffusion samples: short lists, many steps of its scheduler."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all ways have in common."""

    folder: Path
    """The pipeline's."""
    device: torch.device
    scheduler: str
    steps: int
    scale: float
    batch: int
    precision: str


@dataclass(kw_only=True)
class Meter:
    """Wall seconds inside the denoiser and the decoder, and what the denoiser was asked for."""

    device: torch.device
    denoiser: float = 0.0
    decoder: float = 0.0
    evaluations: int = 0
    """Latents that went through the denoiser: with guidance two for an image and a step."""
    peak: float = 0.0
    """Most memory that was held while drawing, MiB."""

    def reset(self) -> None:
        """Count from now on."""
        self.denoiser, self.decoder, self.evaluations, self.peak = 0.0, 0.0, 0, 0.0

    def watch(self, pipeline: Any) -> None:
        """Measure a pipeline's two networks from now on."""
        model, vae = denoiser(pipeline), pipeline.vae
        model.forward = self._timed(model.forward, "denoiser")
        vae.decode = self._timed(vae.decode, "decoder")

    def _timed(self, work: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(work)
        def timed(batch: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            began = self.now()
            result = work(batch, *args, **kwargs)
            setattr(self, name, getattr(self, name) + self.now() - began)
            self.evaluations += len(batch) if name == "denoiser" else 0
            return result

        return timed

    def now(self) -> float:
        """Seconds on the wall, after all that was sent to the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


class Way(Protocol):
    """One way of drawing."""

    name: str
    batch: int
    """Images of a call."""
    meter: Meter
    text_seconds: float

    def draw(self, rows: Sequence[Row], folder: Path) -> None:
        """Draw ``rows`` and leave their PNGs in ``folder``."""
        ...


@dataclass(kw_only=True)
class Diffusers:
    """The pipeline's own call on lists of prompts: texts encoded each time, PNGs written before the next list."""

    name: str
    job: Job
    scheduler: str
    steps: int
    batch: int
    meter: Meter = field(init=False)
    text_seconds: float = 0.0
    """Texts are part of every call."""

    def __post_init__(self) -> None:
        self.pipeline: Any = AutoPipelineForText2Image.from_pretrained(
            str(self.job.folder), use_safetensors=True, local_files_only=True,
            torch_dtype=PRECISIONS[self.job.precision],
        )
        set_scheduler(self.pipeline, self.scheduler)
        self.pipeline.to(self.job.device).set_progress_bar_config(disable=True)
        self.meter = Meter(device=self.job.device)
        self.meter.watch(self.pipeline)

    def draw(self, rows: Sequence[Row], folder: Path) -> None:
        """Draw ``rows`` and leave their PNGs in ``folder``."""
        for start in range(0, len(rows), self.batch):
            part = rows[start:start + self.batch]
            images = self.pipeline(
                [row.prompt for row in part], negative_prompt=[row.negative_prompt for row in part],
                generator=[torch.Generator().manual_seed(row.seed) for row in part],
                num_inference_steps=self.steps, guidance_scale=self.job.scale,
            ).images
            for row, image in zip(part, images, strict=True):
                file = folder / image_path(row.sample_id)
                file.parent.mkdir(parents=True, exist_ok=True)
                image.save(file)


@dataclass(kw_only=True)
class Tailfill:
    """What ``synth.generate`` does with a plan's batches; the plan's texts are encoded when it is built."""

    name: str
    job: Job
    rows: Sequence[Row]
    """The whole plan's."""
    interval: tuple[float, float]
    options: dict[str, Any]
    """Of ``load_pipeline``: attention, channels_last, compiled, decode_batch."""
    batch: int = field(init=False)
    meter: Meter = field(init=False)
    attention: str = field(init=False)
    text_seconds: float = field(init=False)
    """Spent on the plan's texts."""

    def __post_init__(self) -> None:
        job = self.job
        pipeline, self.attention = load_pipeline(job.folder, lora=None, scheduler=job.scheduler, device=job.device,
                                                 precision=job.precision, **self.options)
        self.batch, self.meter = job.batch, Meter(device=job.device)
        self.meter.watch(pipeline)
        height, width = image_size(pipeline, None, None)
        began = self.meter.now()
        texts = encode_texts(pipeline, prompts=[row.prompt for row in self.rows],
                             negatives=[row.negative_prompt for row in self.rows])
        self.text_seconds = self.meter.now() - began
        self.sampler = Sampler(pipeline, texts, Settings(
            num_inference_steps=job.steps, guidance_scale=job.scale, guidance_interval=self.interval, height=height,
            width=width, grey=True))

    def draw(self, rows: Sequence[Row], folder: Path) -> None:
        """Draw ``rows`` and leave their PNGs in ``folder``."""
        drawer = Drawer(rank=0, world_size=1, device=str(self.job.device), attention=self.attention)
        pad = bool(self.options["compiled"]) or self.job.device.type == "cuda"
        with BatchWriter(folder, threads=2, drawer=drawer) as writer:
            for start in range(0, len(rows), self.batch):
                writer.add(start, draw_rows(rows[start:start + self.batch], draw=self.sampler.draw,
                                            micro_batch=self.batch, grey=True, pad=pad))
