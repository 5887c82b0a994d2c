"""Sampling the rows of a plan: the same noise for the same row, whatever the batch, the device or the world size.

The pipeline's own ``__call__`` does the sampling. What is added around it:

- **Noise.** Each row's latent noise comes from its own CPU generator, seeded by the plan (as in EDM2's script).
- **Text.** Each distinct text is encoded once, alone, so that its embedding does not depend on its neighbours.
- **Guidance in an interval** (Kynkaanniemi et al., 2404.07724): outside of it the U-Net sees the conditional half only,
  which halves its work there. diffusers' own cut-off callback keeps one prompt of a batch; ours keeps all of them.
- **Faults.** Out of memory halves the micro-batch; an image that comes out as NaN, or fails alone, is a recorded error.

Bit-equal images are promised for equal micro-batches and CPU threads on one device type, not across those: float sums
change their order.
"""

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cohort.errors import TailfillError
from synth.drawing.pipelines import denoiser

EMBEDDINGS: dict[str, tuple[tuple[str, int], ...]] = {
    "pooled_prompt_embeds": (("prompt_embeds", 0), ("pooled_prompt_embeds", 2)),
    "prompt_embeds": (("prompt_embeds", 0),),
}
"""An argument of a pipeline's ``__call__`` that tells its family (first match wins): the embeddings that it takes, with
their place in what ``encode_prompt`` returns. Stable Diffusion XL, then Stable Diffusion 1 and 2."""

GUIDED: dict[str, str | None] = {
    "prompt_embeds": "prompt_embeds", "add_text_embeds": "pooled_prompt_embeds", "add_time_ids": None,
}
"""A tensor of the pipeline's sampling loop, and the embedding whose negative stands in its first half under guidance
(None: the same values twice)."""

Embedding = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Row:
    """What sampling needs to know of a row of the plan."""

    sample_id: str
    prompt: str
    negative_prompt: str
    seed: int


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
    step = max(8, pipeline.vae_scale_factor)
    if any(side % step for side in chosen):
        raise TailfillError(f"generate.height, width are {chosen[0]}, {chosen[1]}; wanted: multiples of {step}")
    return chosen


def check_lengths(tokenizers: Sequence[Any], rows: Sequence[Row]) -> None:
    """Raise ``TailfillError`` naming the first row whose text is longer than a tokenizer takes (77 tokens for CLIP)."""
    first: dict[str, str] = {}
    for row in rows:
        first.setdefault(row.prompt, row.sample_id)
        first.setdefault(row.negative_prompt, row.sample_id)
    texts = list(first)
    for tokenizer in tokenizers:
        for text, ids in zip(texts, tokenizer(texts, truncation=False).input_ids, strict=True):
            if len(ids) > tokenizer.model_max_length:
                raise TailfillError(f"plan, sample_id {first[text]}: its text has {len(ids)} tokens, the text encoder "
                                    f"takes {tokenizer.model_max_length}: '{text[:80]}...'")


@torch.no_grad()
def encode_texts(pipeline: Any, texts: Sequence[str]) -> dict[str, Embedding]:
    """Each distinct text's embeddings on the CPU, by the names that ``__call__`` takes. Frees the text encoders.

    Raises ``TailfillError`` for a family of pipelines whose embeddings are not listed in ``EMBEDDINGS``.
    """
    takes = inspect.signature(pipeline.__call__).parameters
    family = next((parts for name, parts in EMBEDDINGS.items() if name in takes), None)
    if family is None or "prompt_attention_mask" in takes:
        raise TailfillError(f"{type(pipeline).__name__}: sampling from its prompt embeddings is not supported")
    device = denoiser(pipeline).device
    cache = {}
    for text in dict.fromkeys(texts):
        # important: one at a time. In a batch, the last bits of an embedding depend on the batch, hence on the rank.
        encoded = pipeline.encode_prompt(prompt=text, device=device, num_images_per_prompt=1,
                                         do_classifier_free_guidance=False)
        cache[text] = {name: encoded[place].cpu() for name, place in family}
    for name in ("text_encoder", "text_encoder_2"):
        if getattr(pipeline, name, None) is not None:
            setattr(pipeline, name, None)
    return cache


def initial_noise(generators: Sequence[torch.Generator], shape: tuple[int, int, int]) -> torch.Tensor:
    """Standard normal latents, float32 (n, channels, height, width), each image's from its own CPU generator."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def guided_steps(interval: tuple[float, float], n_steps: int) -> tuple[int, int]:
    """First guided step and the first one after the interval, of ``n_steps`` counted from pure noise."""
    return round(interval[0] * n_steps), round(interval[1] * n_steps)


class GuidanceInterval:
    """A step callback that turns guidance on before step ``start`` and off before step ``stop``.

    ``negative`` holds the negative embeddings of the whole batch, by the names of ``EMBEDDINGS``.
    """

    def __init__(self, scale: float, *, start: int, stop: int, negative: Mapping[str, torch.Tensor]) -> None:
        self.scale, self.start, self.stop, self.negative = scale, start, stop, negative

    def __call__(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Called by the pipeline after each step, with the tensors that it will use in the next one."""
        if self.start >= self.stop:
            return tensors
        if step + 1 == self.start:
            pipeline._guidance_scale = self.scale
            return {name: torch.cat([self._negative(name, value), value]) for name, value in tensors.items()}
        if step + 1 == self.stop:
            pipeline._guidance_scale = 1.0
            return {name: value.chunk(2)[1] for name, value in tensors.items()}
        return tensors

    def _negative(self, name: str, positive: torch.Tensor) -> torch.Tensor:
        source = GUIDED[name]
        return positive if source is None else self.negative[source].to(positive)


class Sampler:
    """Draws micro-batches of rows from a pipeline whose texts have been encoded."""

    def __init__(self, pipeline: Any, embeddings: Mapping[str, Embedding], settings: Settings) -> None:
        self.pipeline, self.embeddings, self.settings = pipeline, embeddings, settings
        factor = pipeline.vae_scale_factor
        self.latent_shape = (int(denoiser(pipeline).config.in_channels), settings.height // factor,
                             settings.width // factor)
        self.guided = self._plan_guidance()

    def draw(self, rows: Sequence[Row]) -> torch.Tensor:
        """Images of ``rows``: float32 (n, channels, height, width) in 0 to 1 on the CPU; NaN where sampling failed."""
        model, settings = denoiser(self.pipeline), self.settings
        generators = [torch.Generator().manual_seed(row.seed) for row in rows]
        noise = initial_noise(generators, self.latent_shape).to(model.device)
        positive = self._stack([row.prompt for row in rows])
        negative = self._stack([row.negative_prompt for row in rows])
        start, stop, n_steps = self.guided
        whole = start == 0 and stop == n_steps
        switch = GuidanceInterval(settings.guidance_scale, start=start, stop=stop, negative=negative)
        options: dict[str, Any] = {} if whole else {
            "callback_on_step_end": switch, "callback_on_step_end_tensor_inputs": self._guided_tensors(),
        }
        output = self.pipeline(
            **positive, **{f"negative_{name}": value for name, value in negative.items()}, latents=noise,
            generator=generators, height=settings.height, width=settings.width, output_type="pt",
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale if start == 0 < stop else 1.0, **options,
        )
        images: torch.Tensor = output.images.float().cpu()
        return images

    def _plan_guidance(self) -> tuple[int, int, int]:
        scheduler = self.pipeline.scheduler
        scheduler.set_timesteps(self.settings.num_inference_steps)
        n_steps = len(scheduler.timesteps)  # more than num_inference_steps for schedulers of second order
        start, stop = guided_steps(self.settings.guidance_interval, n_steps)
        distilled = getattr(denoiser(self.pipeline).config, "time_cond_proj_dim", None) is not None
        if (start, stop) != (0, n_steps) and (distilled or getattr(self.pipeline, "unet", None) is None):
            raise TailfillError(f"generate.guidance_interval is {list(self.settings.guidance_interval)}, which "
                                f"{type(self.pipeline).__name__} of this kind cannot do; wanted: [0, 1]")
        return start, stop, n_steps

    def _guided_tensors(self) -> list[str]:
        return [name for name in GUIDED if name in self.pipeline._callback_tensor_inputs]

    def _stack(self, texts: Sequence[str]) -> Embedding:
        device = denoiser(self.pipeline).device
        parts = [self.embeddings[text] for text in texts]
        return {name: torch.cat([part[name] for part in parts]).to(device) for name in parts[0]}


def to_pixels(image: torch.Tensor, *, grey: bool) -> np.ndarray:
    """uint8 pixels of one image, float (channels, height, width) in 0 to 1: (height, width) if grey, else (..., 3).

    Grey is the mean of the channels: a radiograph has one, and a pipeline repeats it three times.
    """
    values = image.mean(dim=0) if grey else image.expand(3, -1, -1).permute(1, 2, 0)
    return (values.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def draw_rows(rows: Sequence[Row], *, draw: Callable[[Sequence[Row]], torch.Tensor], micro_batch: int,
              grey: bool) -> list[Drawn]:
    """Draw ``rows`` in micro-batches of at most ``micro_batch``; each row comes back once, as image or as error.

    When ``draw`` runs out of memory the micro-batch is halved; when it raises anything else of its own, its rows are
    drawn one by one, so that only the culprit is lost. Ids, seeds and initial noise stay.
    """
    done: list[Drawn] = []
    for start in range(0, len(rows), micro_batch):
        done += _draw_micro_batch(rows[start:start + micro_batch], draw=draw, grey=grey)
    return done


def _draw_micro_batch(rows: Sequence[Row], *, draw: Callable[[Sequence[Row]], torch.Tensor],
                      grey: bool) -> list[Drawn]:
    began = time.perf_counter()
    failure, out_of_memory = None, False
    try:
        images = draw(rows)
    except (RuntimeError, ValueError, ArithmeticError, MemoryError) as error:
        failure = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        out_of_memory = is_out_of_memory(error)
    # important: outside of the except clause, where the failed call's tensors are no longer held by its traceback
    if failure is not None and len(rows) > 1:
        smaller = (len(rows) + 1) // 2 if out_of_memory else 1
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return draw_rows(rows, draw=draw, micro_batch=smaller, grey=grey)
    shared: dict[str, Any] = {"seconds": (time.perf_counter() - began) / len(rows), "micro_batch": len(rows)}
    if failure is not None:
        return [Drawn(sample_id=rows[0].sample_id, pixels=None, error=failure, **shared)]
    return [
        Drawn(sample_id=row.sample_id, pixels=to_pixels(image, grey=grey), error=None, **shared)
        if bool(torch.isfinite(image).all()) else
        Drawn(sample_id=row.sample_id, pixels=None, error="not finite: NaN or infinity in the image", **shared)
        for row, image in zip(rows, images, strict=True)
    ]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's or the host's memory is exhausted."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        words in str(error) for words in ("out of memory", "can't allocate memory", "not enough memory"))
