"""What an encoder is, and how any image comes to the input that its network was trained on.

An encoder turns pixels into features. It carries its name, the sha256 of the weights that were really loaded and the
way it resizes, because a distance without them means nothing: the same images score a few points in one space and a
hundred in another.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from synth.judging.reading import Reader


class Encoder(Reader, Protocol):
    """A reader, with what a fidelity row tells of it."""

    sha256: str
    """Of the file of weights."""
    resize: str
    """How any image comes to the input size, in words."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a network wants to see an image."""

    side: int
    """Pixels per side of the input."""
    mode: str = "bilinear"
    """``bilinear`` or ``bicubic``, always antialiased."""
    mean: tuple[float, ...]
    """Per channel, subtracted from pixels in [0, 1]; grey is repeated over as many channels."""
    std: tuple[float, ...]
    """Per channel, divided by."""

    @property
    def resize(self) -> str:
        """In words."""
        return f"{self.side} px, {self.mode}, antialiased, aspect not kept"

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (n, height, width) to float32 (n, len(mean), side, side)."""
        grey = images.unsqueeze(1).float() / 255.0
        grey = nn.functional.interpolate(grey, size=(self.side, self.side), mode=self.mode, antialias=True,
                                         align_corners=False).clamp(0.0, 1.0)
        mean, std = (images.new_tensor(x, dtype=torch.float32)[:, None, None] for x in (self.mean, self.std))
        return (grey - mean) / std


class NetworkEncoder:
    """A network whose output is taken as features."""

    def __init__(
        self, name: str, *, network: nn.Module, look: Look, width: int, sha256: str, device: torch.device | str
    ) -> None:
        self.name, self.sha256, self.width, self.resize = name, sha256, width, look.resize
        self.key = f"{sha256} {look} 1"
        self.look = look
        self.device = torch.device(device)
        self.network = network.eval().requires_grad_(False).to(self.device)

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """uint8 (n, height, width) on any device to float32 (n, self.width) on the encoder's."""
        features: Tensor = self.network(self.look(images.to(self.device)))
        return features.float()

    def read(self, images: np.ndarray) -> np.ndarray:
        """uint8 (n, height, width) to float32 (n, self.width)."""
        return self.forward(torch.from_numpy(np.ascontiguousarray(images))).cpu().numpy()
