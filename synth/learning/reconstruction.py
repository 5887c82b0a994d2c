"""An autoencoder's parts: the modules that are trained, the losses, and pixels to latents and back.

Images are 8-bit grey outside and floats in [-1, 1] inside, the range that diffusers' autoencoders expect.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F

from cohort.errors import TailfillError
from synth.drawing.weights import LOAD_ERRORS, load_network


class Reconstruct(nn.Module):
    """Encode, sample with the given noise, decode; one ``forward`` so that data-parallel training wraps it whole."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Images (n, 1, h, w) in [-1, 1] and noise (n, c, h/f, w/f) -> reconstruction and KL per image (n,).

        Grey is repeated where the model takes colours, and the mean of its colours is the reconstruction.
        """
        posterior = self.vae.encode(images.expand(-1, self.vae.config.in_channels, -1, -1)).latent_dist
        latents = posterior.mean + posterior.std * noise
        return self.vae.decode(latents).sample.mean(1, keepdim=True), posterior.kl()


class PatchDiscriminator(nn.Module):
    """Real or reconstructed, per patch (Isola et al. 2017): logits (n, 1, h/8, w/8) for images (n, 1, h, w)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for channels in (width, 2 * width):
            layers += [nn.Conv2d(channels, 2 * channels, 4, 2, 1), nn.GroupNorm(8, 2 * channels), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(4 * width, 1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return self.layers(images)


def to_signed(images: np.ndarray) -> Tensor:
    """uint8 (n, h, w) -> float32 (n, 1, h, w) in [-1, 1], the range that diffusers' autoencoders expect."""
    return torch.tensor(images, dtype=torch.float32)[:, None] / 127.5 - 1


def to_grey(images: Tensor) -> np.ndarray:
    """Float (n, c, h, w) in [-1, 1], any number of channels -> uint8 (n, h, w)."""
    grey = images.detach().float().mean(1).clamp(-1, 1)
    return ((grey + 1) * 127.5).round().byte().cpu().numpy()


def gradient_loss(*, reconstructed: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of horizontal and vertical image gradients, at full and half resolution."""
    total = reconstructed.new_zeros(())
    for factor in (1, 2):
        a, b = (F.avg_pool2d(x, factor) if factor > 1 else x for x in (reconstructed, target))
        for axis in (2, 3):
            total = total + (a.diff(dim=axis) - b.diff(dim=axis)).abs().mean()
    return total


def adaptive_weight(reconstruction_loss: Tensor, adversarial_loss: Tensor, last_layer: Tensor) -> Tensor:
    """VQGAN's balance (Esser et al. 2021, eq. 7): ratio of the two gradients' norms at the decoder's last layer."""
    ours, theirs = (torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm()
                    for loss in (reconstruction_loss, adversarial_loss))
    return (ours / (theirs + 1e-4)).clamp(0, 1e4).detach()


def psnr(*, reconstructed: np.ndarray, target: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB over a set of uint8 images of equal shape."""
    error = np.square(reconstructed.astype(np.float64) - target.astype(np.float64)).mean()
    return float(10 * np.log10(255**2 / error)) if error > 0 else float("inf")


def load_autoencoder(folder: Path) -> AutoencoderKL:
    """The ``vae`` of a pipeline folder, float32 and in evaluation.

    Raises ``TailfillError`` when it is missing, incomplete or of another kind.
    """
    try:
        vae: AutoencoderKL = load_network(AutoencoderKL, folder / "vae")
    except (*LOAD_ERRORS, TailfillError) as error:
        raise TailfillError(f"{folder / 'vae'}: cannot be loaded as an AutoencoderKL: {error}") from error
    return vae


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: np.ndarray, *, batch_size: int = 32) -> np.ndarray:
    """uint8 (n, h, w) -> uint8 (n, h, w) through the latent's mean; grey is repeated where the model takes colours."""
    device, channels = next(vae.parameters()).device, vae.config.in_channels
    out = []
    for start in range(0, len(images), batch_size):
        pixels = to_signed(images[start:start + batch_size]).expand(-1, channels, -1, -1).to(device)
        out.append(to_grey(vae.decode(vae.encode(pixels).latent_dist.mode()).sample))
    return np.concatenate(out)


@torch.no_grad()
def latent_scale(vae: AutoencoderKL, images: np.ndarray, *, batch_size: int = 32) -> float:
    """1 / standard deviation of the latents of uint8 images (n, h, w): LDM's scale (Rombach et al. 2022, app. G)."""
    device = next(vae.parameters()).device
    latents = [vae.encode(to_signed(images[start:start + batch_size]).to(device)).latent_dist.mode()
               for start in range(0, len(images), batch_size)]
    return float(1 / torch.cat(latents).std())
