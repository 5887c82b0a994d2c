"""How far two radiographs lie apart in the eyes of a classifier: a perceptual loss of the field's own.

Pixels say little about a thin sign: a net in the lungs that is smoothed away costs a tenth of a decibel. The features
of a trained network miss it (Johnson et al. 2016; Zhang et al. 2018). Here the network is a backbone of radiographs, as
``train.backbone`` takes it, and not ImageNet's, which measures fidelity later. Each stage's map and the pooled features
are compared, each feature in units of its spread over real images, so that no stage outweighs another by its scale.

Not promised: anything about what the backbone does not see; and whoever judges the images by the same backbone, as arms
with ``head_only`` do, is told that they agree in its eyes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from classify.learning.models import build_classifier, load_backbone, load_card, normalise
from classify.learning.start import WEIGHTS_FILE, check_backbone
from cohort.config import path, require_values
from cohort.errors import TailfillError
from synth.learning.reconstruction import to_signed

REFERENCE_IMAGES = 512
"""Real images whose features give the units."""


@dataclass(frozen=True, kw_only=True)
class PerceptualConfig:
    """The keys of ``autoencoder.perceptual``."""

    backbone: str | None = path(None)
    """Folder of a backbone of the autoencoder's ``image_size``, as ``train.backbone``; null: no perceptual loss."""
    weight: float = 0.1
    """Weight of the mean squared difference of features, per stage summed; above 0."""

    def __post_init__(self) -> None:
        """Raise ``TailfillError`` for a weight out of range."""
        require_values("autoencoder.perceptual", weight=(self.weight, self.weight > 0, "above 0"))


class FeatureDistance(nn.Module):
    """Mean squared difference of a frozen backbone's features, in units of their spread over real images.

    ``images`` are those real images, uint8 (n, size, size); all is computed on ``device``. Raises ``TailfillError`` for
    a folder without a backbone of their size, and for a model whose stages timm cannot tell apart.
    """

    def __init__(self, backbone: Path, images: np.ndarray, device: torch.device | str = "cpu") -> None:
        super().__init__()
        check_backbone(backbone, image_size=images.shape[-1], key="autoencoder.perceptual.backbone")
        self.card = load_card(backbone)
        model: Any = build_classifier(self.card.model, len(self.card.labels), image_size=self.card.image_size)
        load_backbone(model, backbone / WEIGHTS_FILE)
        if not hasattr(model, "forward_intermediates"):
            raise TailfillError(f"autoencoder.perceptual.backbone: {backbone} is a {self.card.model}, whose stages "
                                "cannot be looked at; wanted: a model of timm with forward_intermediates")
        self.model = model.eval().requires_grad_(False).to(device)
        for at, spread in enumerate(self._spreads(to_signed(images[:REFERENCE_IMAGES]).to(device))):
            self.register_buffer(f"spread_{at}", spread.clamp_min(1e-6))

    @torch.no_grad()
    def _spreads(self, images: Tensor) -> list[Tensor]:
        """Standard deviation of each feature over images (n, 1, size, size) and places, shaped to divide by."""
        moments: list[Tensor] = []  # per feature: number of values, their sum, that of their squares
        for part in images.split(32):
            new = [torch.stack([power.sum(dim=(0, *range(2, each.ndim)), keepdim=True) for power in
                                (torch.ones_like(each), each, each.square())])
                   for each in (feature.double() for feature in self._features(part))]
            moments = [a + b for a, b in zip(moments, new, strict=True)] if moments else new
        return [((squares - total.square() / n).clamp_min(0) / (n - 1)).sqrt().float() for n, total, squares in moments]

    def _features(self, images: Tensor) -> list[Tensor]:
        """Maps (n, c, h, w) of the stages and pooled features (n, d) of images (n, 1, size, size) in [-1, 1]."""
        last, maps = self.model.forward_intermediates(normalise((images + 1) / 2, self.card))
        return [*maps, self.model.forward_head(last, pre_logits=True)]

    def forward(self, reconstructed: Tensor, target: Tensor) -> Tensor:
        """The distance, a scalar, of two batches (n, 1, size, size) in [-1, 1]; gradients flow into the first."""
        with torch.no_grad():
            wanted = self._features(target)
        total = reconstructed.new_zeros(())
        for at, (a, b) in enumerate(zip(self._features(reconstructed), wanted, strict=True)):
            total = total + ((a.float() - b.float()) / self.get_buffer(f"spread_{at}")).square().mean()
        return total
