"""Sampling the rows of a plan: the same noise for the same row, whatever the batch, the device or the world size.

The pipeline's own ``__call__`` does the sampling. What is added around it:

- **Noise.** Each row's latent noise comes from its own CPU generator, seeded by the plan (as in EDM2's script).
- **Text.** Embeddings that were made once (``texts``) stand in for the words.
- **Guidance in an interval** of the schedule (``guidance``), outside of which the denoiser does half the work.
- **Sources.** A row may start from a real image (``editing``); rows that run another part of the schedule never share
  a call.
- **Faults.** Out of memory halves the micro-batch; an image that comes out as NaN, or fails alone, is a recorded error.
  A device that itself has failed ends the run: its faults are no image's.

Bit-equal images are promised for equal micro-batches and CPU threads on one device type, not across those: float sums
change their order.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cohort.errors import TailfillError
from synth.drawing.editing import late_start, steps_left_out
from synth.drawing.guidance import guidance_between, guided_steps
from synth.drawing.pipelines import denoiser
from synth.drawing.texts import Embedding, Encoded, family_of, stack


@dataclass(frozen=True, kw_only=True)
class Row:
    """What sampling needs to know of a row of the plan."""

    sample_id: str
    prompt: str
    negative_prompt: str
    seed: int
    init_image_id: str | None = None
    """The real image that it starts from; None: from noise."""
    strength: float | None = None
    """Share of the schedule that it then goes through, above 0 to 1."""


NOT_FINITE = "not finite: NaN or infinity in the image"
"""The error of an image that was drawn and is none."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """An image made (``pixels``: uint8, (height, width) grey or (height, width, 3)), or the error instead of it."""

    sample_id: str
    pixels: np.ndarray | None
    error: str | None
    seconds: float
    micro_batch: int


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to sample: see ``GenerateConfig`` for each."""

    num_inference_steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float]
    height: int
    width: int
    grey: bool


def image_size(pipeline: Any, height: int | None, width: int | None) -> tuple[int, int]:
    """Height and width in px: as asked, else what the denoiser was built for. Raises ``TailfillError`` on a misfit."""
    size = denoiser(pipeline).config.sample_size
    native = [side * pipeline.vae_scale_factor for side in ((size, size) if isinstance(size, int) else size)]
    chosen = (height or native[0], width or native[1])
    step = max(8, pipeline.vae_scale_factor * (getattr(denoiser(pipeline).config, "patch_size", None) or 1))
    if any(side % step for side in chosen):
        raise TailfillError(f"generate.height, width are {chosen[0]}, {chosen[1]}; wanted: multiples of {step}")
    return chosen


def initial_noise(generators: Sequence[torch.Generator], shape: tuple[int, int, int]) -> torch.Tensor:
    """Standard normal latents, float32 (n, channels, height, width), each image's from its own CPU generator."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


class Sampler:
    """Draws micro-batches of rows from a pipeline whose texts, and whose images to start from, have been encoded."""

    def __init__(self, pipeline: Any, texts: Encoded, settings: Settings,
                 sources: Mapping[str, torch.Tensor] | None = None) -> None:
        self.pipeline, self.texts, self.settings, self.sources = pipeline, texts, settings, sources or {}
        self.family = family_of(type(pipeline).__name__)
        factor = pipeline.vae_scale_factor
        self.latent_shape = (int(denoiser(pipeline).config.in_channels), settings.height // factor,
                             settings.width // factor)
        self.guided = self._plan_guidance()

    def draw(self, rows: Sequence[Row]) -> torch.Tensor:
        """Images of ``rows``: float32 (n, channels, height, width) in 0 to 1 on the CPU; NaN where sampling failed.

        All rows have the strength of the first.
        """
        model, settings = denoiser(self.pipeline), self.settings
        generators = [torch.Generator().manual_seed(row.seed) for row in rows]
        noise = initial_noise(generators, self.latent_shape).to(model.device)
        start, stop = self.guided
        left_out = steps_left_out(rows[0].strength, settings.num_inference_steps)
        sources = [self.sources[str(row.init_image_id)] for row in rows] if left_out else []
        with (
            late_start(self.pipeline, noise, sources, left_out=left_out,
                       num_inference_steps=settings.num_inference_steps) as latents,
            guidance_between(model, start=start, stop=stop, n_images=len(rows),
                             step=left_out * self.pipeline.scheduler.order),
        ):
            output = self.pipeline(
                **self._embeddings(rows), **self.family.call, latents=latents, generator=generators,
                height=settings.height, width=settings.width, output_type="pt",
                num_inference_steps=settings.num_inference_steps,
                negative_prompt=None,  # some families' default is a text
                guidance_scale=settings.guidance_scale if start < stop else 1.0,
            )
        images: torch.Tensor = output.images.float().cpu()
        return images

    def _embeddings(self, rows: Sequence[Row]) -> Embedding:
        device = denoiser(self.pipeline).device
        positive = stack([self.texts.prompts[row.prompt] for row in rows], device)
        negative = stack([self.texts.negatives[row.negative_prompt] for row in rows], device)
        return positive | {f"negative_{name}": value for name, value in negative.items()}

    def _plan_guidance(self) -> tuple[int, int]:
        scheduler = self.pipeline.scheduler
        try:
            scheduler.set_timesteps(self.settings.num_inference_steps)
        except ValueError as error:
            raise TailfillError(f"generate.num_inference_steps is {self.settings.num_inference_steps}, which "
                                f"{type(scheduler).__name__} refuses: {error}") from error
        n_steps = len(scheduler.timesteps)  # more than num_inference_steps for schedulers of second order
        start, stop = guided_steps(self.settings.guidance_interval, n_steps)
        distilled = getattr(denoiser(self.pipeline).config, "time_cond_proj_dim", None) is not None
        if distilled and (start, stop) != (0, n_steps):
            raise TailfillError(f"generate.guidance_interval is {list(self.settings.guidance_interval)}, which a "
                                "denoiser with guidance distilled into it cannot do; wanted: [0, 1]")
        return start, stop


def to_pixels(image: torch.Tensor, *, grey: bool) -> np.ndarray:
    """uint8 pixels of one image, float (channels, height, width) in 0 to 1: (height, width) if grey, else (..., 3).

    Grey is the mean of the channels: a radiograph has one, and a pipeline repeats it three times.
    """
    values = image.mean(dim=0) if grey else image.expand(3, -1, -1).permute(1, 2, 0)
    return (values.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def draw_rows(rows: Sequence[Row], *, draw: Callable[[Sequence[Row]], torch.Tensor], micro_batch: int,
              grey: bool, pad: bool = False) -> list[Drawn]:
    """Draw ``rows`` in micro-batches of at most ``micro_batch``, those of each strength apart.

    Each row comes back once, as image or as error, in the order of ``rows``.
    With ``pad``, every call gets ``micro_batch`` rows, the last one repeated and its repeats dropped: compiled networks
    and GPUs choose their kernels by shape. When ``draw`` runs out of memory the micro-batch is halved; when it raises
    anything else of its own, its rows are drawn one by one, so that only the culprit is lost. Ids, seeds and initial
    noise stay. Raises ``TailfillError`` when the device itself has failed, since all that is drawn after it would too.
    """
    done: dict[str, Drawn] = {}
    for strength in dict.fromkeys(row.strength for row in rows):
        alike = [row for row in rows if row.strength == strength]
        for start in range(0, len(alike), micro_batch):
            drawn = _draw_micro_batch(alike[start:start + micro_batch], draw=draw, micro_batch=micro_batch, grey=grey,
                                      pad=pad)
            done |= {image.sample_id: image for image in drawn}
    return [done[row.sample_id] for row in rows]


def _draw_micro_batch(rows: Sequence[Row], *, draw: Callable[[Sequence[Row]], torch.Tensor], micro_batch: int,
                      grey: bool, pad: bool) -> list[Drawn]:
    began = time.perf_counter()
    failure, out_of_memory = None, False
    repeats = [rows[-1]] * (micro_batch - len(rows)) if pad else []
    called = len(rows) + len(repeats)
    try:
        images = draw([*rows, *repeats])[:len(rows)]
    except (RuntimeError, ValueError, ArithmeticError, MemoryError) as error:
        failure = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        out_of_memory = is_out_of_memory(error)
        if isinstance(error, torch.AcceleratorError) and not out_of_memory:
            raise TailfillError(f"the device has failed: {failure}; what was made is kept, so give the same command "
                                "again") from error
    # important: outside of the except clause, where the failed call's tensors are no longer held by its traceback
    if failure is not None and called > 1:
        smaller = (called + 1) // 2 if out_of_memory else 1
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return draw_rows(rows, draw=draw, micro_batch=smaller, grey=grey, pad=pad)
    shared: dict[str, Any] = {"seconds": (time.perf_counter() - began) / len(rows), "micro_batch": called}
    if failure is not None:
        return [Drawn(sample_id=rows[0].sample_id, pixels=None, error=failure, **shared)]
    return [
        Drawn(sample_id=row.sample_id, pixels=to_pixels(image, grey=grey), error=None, **shared)
        if bool(torch.isfinite(image).all()) else
        Drawn(sample_id=row.sample_id, pixels=None, error=NOT_FINITE, **shared)
        for row, image in zip(rows, images, strict=True)
    ]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's or the host's memory is exhausted."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        words in str(error) for words in ("out of memory", "can't allocate memory", "not enough memory"))
