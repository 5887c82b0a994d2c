"""The denoiser's training: what is noised, what is predicted, how the loss is weighted.

::

    image --vae--> x_0 --add noise--> x_t --(U-Net | caption)--> epsilon or v        loss = w(t) |prediction - target|^2

``w(t)`` is min-SNR (Hang et al. 2023, eq. 8), which keeps the many easy, nearly noiseless timesteps from dominating.
"""

from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor, nn

from cohort.errors import TailfillError


class Prior(Protocol):
    """A frozen model whose predictions are to be kept, as ``prior.StartingPipeline``."""

    weight: float

    def predict(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """What ``Denoiser`` would predict, (n, c, h, w), without a gradient."""


class Denoiser(nn.Module):
    """Text encoder and U-Net as one module, so that data-parallel training wraps both."""

    def __init__(self, unet: nn.Module, text_encoder: nn.Module) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """Latents (n, c, h, w), timesteps (n,) int64 and tokens (n, 77) int64 -> prediction (n, c, h, w)."""
        context = self.text_encoder(tokens)[0]
        return self.unet(noisy, timesteps, encoder_hidden_states=context).sample


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images to be noised and predicted."""

    clean: Tensor
    """float32 (n, c, h, w): scaled latents x_0."""
    noise: Tensor
    """float32 (n, c, h, w), standard normal."""
    timesteps: Tensor
    """int64 (n,), from 0 to the scheduler's training timesteps - 1."""
    tokens: Tensor
    """int64 (n, 77)."""

    def rows(self, which: slice, device: torch.device) -> Self:
        """Some of the rows, on ``device``."""
        return type(self)(**{name: getattr(self, name)[which].to(device) for name in self.__dataclass_fields__})


def target_and_weight(
    scheduler: DDPMScheduler, *, clean: Tensor, noise: Tensor, timesteps: Tensor, snr_gamma: float
) -> tuple[Tensor, Tensor]:
    """What the model has to predict, and each image's loss weight (n,).

    ``snr_gamma`` 0 means uniform weights. For v-prediction the weight is min(SNR, gamma) / (SNR + 1), for epsilon
    min(SNR, gamma) / SNR: in both cases min-SNR's weight on the prediction of x_0. Raises ``TailfillError`` for another
    prediction type.
    """
    kind = scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise TailfillError(f"the pipeline's scheduler predicts '{kind}'; wanted: epsilon or v_prediction")
    target = noise if kind == "epsilon" else scheduler.get_velocity(clean, noise, timesteps)
    if not snr_gamma:
        return target, torch.ones_like(timesteps, dtype=clean.dtype)
    snr = compute_snr(scheduler, timesteps)
    clipped = snr.clamp(max=snr_gamma)
    return target, (clipped / snr if kind == "epsilon" else clipped / (snr + 1)).to(clean.dtype)


def denoising_loss(
    model: nn.Module, scheduler: DDPMScheduler, batch: Batch, *, snr_gamma: float, prior: Prior | None = None
) -> Tensor:
    """Weighted squared error per image, float32 (n,).

    With a ``prior`` the second half of the batch is to be predicted as the prior predicts it.
    """
    target, weight = target_and_weight(scheduler, clean=batch.clean, noise=batch.noise, timesteps=batch.timesteps,
                                       snr_gamma=snr_gamma)
    noisy = scheduler.add_noise(batch.clean, batch.noise, batch.timesteps)
    if prior is not None:
        half = len(noisy) // 2
        kept = prior.predict(noisy[half:], batch.timesteps[half:], batch.tokens[half:])
        target, weight = torch.cat([target[:half], kept]), torch.cat([weight[:half], prior.weight * weight[half:]])
    prediction = model(noisy, batch.timesteps, batch.tokens).float()
    return weight.float() * (prediction - target.float()).square().mean(dim=(1, 2, 3))


@torch.no_grad()
def encode_moments(vae: Any, images: np.ndarray, *, batch_size: int = 16) -> np.ndarray:
    """Mean and standard deviation of each image's latent: uint8 (n, h, w) -> float16 (n, 2, c, h/f, w/f).

    Kept instead of a sample, so that training draws a fresh sample of the posterior each time, as the full model would.
    """
    device, dtype = vae.device, vae.dtype
    out = []
    for start in range(0, len(images), batch_size):
        grey = torch.tensor(images[start:start + batch_size], device=device)
        pixels = (grey.to(dtype)[:, None] / 127.5 - 1).expand(-1, vae.config.in_channels, -1, -1)
        posterior = vae.encode(pixels).latent_dist
        out.append(torch.stack([posterior.mean, posterior.std], dim=1).to("cpu", torch.float16).numpy())
    return np.concatenate(out)


def sample_latents(moments: np.ndarray, *, vae: Any, generator: torch.Generator) -> Tensor:
    """Draw scaled latents x_0 from moments (n, 2, c, h, w): float32 (n, c, h, w)."""
    mean, std = torch.from_numpy(np.ascontiguousarray(moments)).float().unbind(1)
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    return (mean + std * torch.randn(mean.shape, generator=generator) - shift) * vae.config.scaling_factor
