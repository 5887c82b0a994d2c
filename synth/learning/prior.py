"""Prior preservation: what the starting pipeline knows of common images is kept while it learns the scarce ones.

Fine-tuning that draws the tail more often forgets the head. So each step also takes as many images without a scarce
finding, noised like the others, and their target is not the noise but what the starting pipeline predicts for them
(learning without forgetting, Li and Hoiem 2016; DreamBooth's prior preservation, Ruiz et al. 2022, eq. 2, does the same
with images that the starting pipeline has drawn; here there are real ones)::

    loss = loss(weighted images, real target) + prior_weight * loss(common images, starting pipeline's prediction)

It does not promise that the starting pipeline's knowledge is worth keeping, and costs one more forward pass without and
one with gradient per image.
"""

import copy
from typing import Any

import torch
from torch import Tensor

from synth.learning.denoiser import Denoiser


class StartingPipeline:
    """The U-Net and text encoder as they were when training began.

    With adapters that is the model itself, its adapters switched off; without, a copy is made.
    """

    def __init__(self, unet: Any, text_encoder: Any, *, weight: float, uses_lora: bool) -> None:
        self.weight, self.uses_lora, self.unet = weight, uses_lora, unet
        self.model = Denoiser(unet, text_encoder)
        if not uses_lora:
            self.model = copy.deepcopy(self.model).requires_grad_(False)

    def to(self, device: torch.device) -> None:
        """Move the copy; without one nothing is to be moved."""
        self.model.to(device)

    @torch.no_grad()
    def predict(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """The prediction of ``Denoiser``: (n, c, h, w), (n,) int64 and (n, 77) int64 -> float32 (n, c, h, w)."""
        if self.uses_lora:
            self.unet.disable_adapters()
        try:
            prediction: Tensor = self.model(noisy, timesteps, tokens)
        finally:
            if self.uses_lora:
                self.unet.enable_adapters()
        return prediction.float()
