"""Images that start from a real one rather than from noise (SDEdit, Meng et al. 2021, 2108.01073), for every family.

::

    source --autoencoder--> latent --the row's own noise, up to `strength` of the schedule--> x_t --rest of it--> image

To a pipeline this is an ordinary call: the latents are x_t, and the scheduler begins late. So prompts, guidance and its
interval, precision and batching stay as they are, and no image-to-image class is needed: PixArt and Sana have none in
diffusers, and Stable Diffusion's takes latents of four channels only. Where diffusers has one the images are the same
(``tests/synth/test_synth_editing.py``). At strength 1 a row starts from pure noise, as any other.

Not promised: detail of the source that the autoencoder does not keep, and ``pndm``, whose warm-up counts on two first
steps of its own and ends one step too early when it begins late.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cohort.errors import TailfillError
from cohort.pixels import read_grey
from cohort.tables import Cohort


def find_sources(plan: pd.DataFrame, cohort: Cohort, *, num_inference_steps: int, scheduler: str) -> dict[str, Path]:
    """The image files that rows of ``plan`` start from, by ``init_image_id``; empty where all start from noise.

    Raises ``TailfillError`` for a source that is no train image of the cohort, or whose file is missing; for a strength
    that leaves no step to run; and for a scheduler that cannot begin late.
    """
    rows = plan[plan["init_image_id"].notna() | plan["strength"].notna()]
    train = cohort.split("train").set_index("image_id", drop=False)
    for sample_id, source, strength in zip(rows["sample_id"], rows["init_image_id"], rows["strength"], strict=True):
        where = f"plan, sample_id {sample_id}"
        if source not in train.index:
            raise TailfillError(f"{where}: starts from '{source}', which is no train image of {cohort.folder}")
        if not (0 < strength <= 1 and steps_left_out(strength, num_inference_steps) < num_inference_steps):
            raise TailfillError(f"{where}: strength is {strength}; wanted: above 0, to 1, and enough for one of the "
                                f"{num_inference_steps} steps (generate.num_inference_steps)")
    if len(rows) and scheduler == "pndm":
        raise TailfillError("generate.scheduler is 'pndm', which cannot begin late, and rows of the plan start from "
                            "an image; wanted: another one, or plan.image_conditioned 0")
    chosen = train.loc[rows["init_image_id"].unique()]
    files = dict(zip(chosen["image_id"], cohort.image_paths(chosen), strict=True))
    for source, file in files.items():
        if not file.is_file():
            raise TailfillError(f"{file}: no such image file, and rows of the plan start from it ({source})")
    return files


def steps_left_out(strength: float | None, num_inference_steps: int) -> int:
    """How many steps of the schedule a row skips: none at strength 1 or without one, as diffusers rounds them."""
    return 0 if strength is None else num_inference_steps - math.floor(num_inference_steps * strength + 1e-9)


def load_sources(pipeline: Any, files: Mapping[str, Path], *, height: int, width: int) -> dict[str, torch.Tensor]:
    """The latents of image files at the size in px that is drawn, by name; see ``encode_sources``.

    Raises ``TailfillError`` for an unreadable file, and when the size is not square: radiographs are read as squares.
    """
    if files and height != width:
        raise TailfillError(f"generate.height, width are {height}, {width}, and rows of the plan start from an image, "
                            "which is read as a square; wanted: equal ones")
    return encode_sources(pipeline, {name: read_grey(file, height) for name, file in files.items()})


@torch.no_grad()
def encode_sources(pipeline: Any, images: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The mean latent of each image, uint8 (h, w), as the denoiser knows latents: float32 (c, h/f, w/f) on the CPU.

    One at a time: in a batch its last bits would depend on its neighbours, hence on the rank.
    """
    vae, latents = pipeline.vae, {}
    mean, std = (torch.tensor(vae.config.get(f"latents_{key}") or [neutral]).view(-1, 1, 1)
                 for key, neutral in (("mean", 0.0), ("std", 1.0)))
    for name, pixels in images.items():
        grey = torch.tensor(pixels, device=vae.device, dtype=vae.dtype) / 127.5 - 1
        encoded = vae.encode(grey.expand(1, vae.config.in_channels, -1, -1))
        latent = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
        latents[name] = (latent[0].float().cpu() - mean) / std * vae.config.scaling_factor
    return latents


class LateSchedule:
    """A scheduler whose first steps are left out, to a pipeline that knows nothing of it.

    It takes latents as they are: they have the noise of its first step already.
    """

    init_noise_sigma = 1.0

    def __init__(self, scheduler: Any, left_out: int) -> None:
        self.scheduler, self.first = scheduler, left_out * scheduler.order

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scheduler, name)

    @property
    def timesteps(self) -> torch.Tensor:
        """Those that are left."""
        timesteps: torch.Tensor = self.scheduler.timesteps[self.first:]
        return timesteps

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        """Set the whole schedule, and begin late in it."""
        self.scheduler.set_timesteps(*args, **kwargs)
        self.set_begin_index()

    def set_begin_index(self, begin_index: int = 0) -> None:
        """SDXL's call asks for the first index; it is the first of those left."""
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(self.first + begin_index)

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """``latents`` (n, c, h, w) at the noise of the first step left."""
        timesteps = self.timesteps[:1].repeat(len(latents))
        noised: torch.Tensor = (
            self.scheduler.scale_noise(latents, timesteps, noise) if hasattr(self.scheduler, "scale_noise") else
            self.scheduler.add_noise(latents, noise, timesteps)
        )
        return noised


@contextmanager
def late_start(pipeline: Any, noise: torch.Tensor, sources: Sequence[torch.Tensor], *, left_out: int,
               num_inference_steps: int) -> Iterator[torch.Tensor]:
    """In this context ``pipeline`` leaves out the first steps of its schedule; gives the latents that it begins with.

    Args:
        pipeline: whose scheduler is exchanged.
        noise: float32 (n, c, h, w), on the pipeline's device; it is what the whole schedule begins with.
        sources: n latents (c, h, w) of ``encode_sources``, or none where no step is left out.
        left_out: steps, 0 or more and fewer than ``num_inference_steps``.
        num_inference_steps: of the whole schedule.
    """
    if not left_out:
        yield noise
        return
    ordinary = pipeline.scheduler
    late = LateSchedule(ordinary, left_out)
    late.set_timesteps(num_inference_steps, device=noise.device)
    pipeline.scheduler = late
    try:
        yield late.add_noise(torch.stack(list(sources)).to(noise), noise)
    finally:
        pipeline.scheduler = ordinary
