"""A backbone taught without labels: two views of one image should say the same, and say much (VICReg).

Bardes, Ponce and LeCun, 2105.04906, equations 1 to 6, with means and halves as in the authors' code, for which the
weights were chosen. Of n images the embeddings of two views, Z and Z', cost ::

    25 mean (Z - Z')^2                          invariance
    25 (v(Z) + v(Z')) / 2                       v: mean over dimensions of max(0, 1 - standard deviation)
     1 c(Z) +  1 c(Z')                          c: sum of squared covariances of different dimensions / dimensions

The second term forbids the same answer for every image, the third forbids saying one thing many times; so neither
negatives, nor a second network, nor large batches are needed, and 64 images are enough. The embeddings are made by an
expander on the backbone's pooled features and are thrown away with it.

A view is a part of the image, a quarter of its area or more, under the distortions of ``slots``, twice as strong in
contrast and brightness. It is never mirrored, see there. Not promised: that what two views share is what a radiologist
looks for; size of the heart and lungs is, a small nodule outside one view is not. With several processes the variances
and covariances are those of each process's own share of the batch.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from classify.learning.fitting import Feed
from classify.learning.models import Card, build_classifier, normalise
from classify.slots import distort

INVARIANCE, VARIANCE, COVARIANCE = 25.0, 25.0, 1.0  # lambda, mu and nu of section 4.2
EPSILON = 1e-4
"""Added to a variance before its root, as in equation 2."""
LEAST_AREA = 0.25
"""Of a view, of the image; 0.08 is usual for photographs, where what fills the image is all that counts."""


class TwoViews(nn.Module):
    """A backbone and its expander: views (n, 2, 1, size, size), normalised -> embeddings (n, 2, width)."""

    def __init__(self, name: str, *, image_size: int, width: int, pretrained: bool | str, drop_path: float) -> None:
        super().__init__()
        network: Any = build_classifier(name, 0, image_size=image_size, pretrained=pretrained, drop_path=drop_path)
        self.network, sizes = network, (network.num_features, width, width)
        hidden = [nn.Sequential(nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU())
                  for before, after in pairwise(sizes)]
        self.expander = nn.Sequential(*hidden, nn.Linear(width, width))

    def forward(self, views: Tensor) -> Tensor:
        """Both views of all images in one pass."""
        embeddings: Tensor = self.expander(self.network(views.flatten(0, 1)))
        return embeddings.unflatten(0, (-1, 2))


def vicreg(
    logits: Tensor, targets: Tensor, *, sample_weights: Tensor | None = None, n_known: float | None = None
) -> Tensor:
    """The loss, in the form that the training loop calls: embeddings (n, 2, width), n > 1, any float dtype -> float32.

    All else is not used: there are no labels.
    """
    first, second = logits.float().unbind(1)
    variance = (_flatness(first) + _flatness(second)) / 2
    covariance = _redundancy(first) + _redundancy(second)
    return INVARIANCE * F.mse_loss(first, second) + VARIANCE * variance + COVARIANCE * covariance


def _flatness(embeddings: Tensor) -> Tensor:
    """Equation 1: how far standard deviations of (n, width) lie below 1."""
    return F.relu(1 - torch.sqrt(embeddings.var(dim=0) + EPSILON)).mean()


def _redundancy(embeddings: Tensor) -> Tensor:
    """Equation 4: squared covariances of different dimensions of (n, width)."""
    covariance = torch.cov(embeddings.T)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / embeddings.shape[1]


def crop(images: Tensor, draws: Tensor) -> Tensor:
    """A part of each image, at the image's size: (n, 1, size, size) -> the same shape.

    ``draws``, (n, 3) in [0, 1): area from ``LEAST_AREA`` to 1, place in x, place in y; the part lies inside the image.
    """
    side = torch.sqrt(LEAST_AREA + (1 - LEAST_AREA) * draws[:, 0])
    middle = (2 * draws[:, 1:] - 1) * (1 - side).unsqueeze(1)
    zero = torch.zeros_like(side)
    matrix = torch.stack([torch.stack([side, zero, middle[:, 0]], 1), torch.stack([zero, side, middle[:, 1]], 1)], 1)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def feed_views(card: Card) -> Feed:
    """Grey images, uint8 (n, size, size), to two normalised views each: float32 (n, 2, 1, size, size).

    Both are drawn from torch's global generator on the CPU, which the loop sets for each step and process: two views
    need twice the draws that the loop hands over, and those are not used.
    """
    def feed(images: Tensor, draws: Tensor) -> Tensor:
        grey, views = images.unsqueeze(1).float() / 255, []
        for _ in range(2):
            chance = torch.rand(len(grey), 9).to(grey.device)
            distortion = 2 * chance[:, 3:] - 1
            distortion[:, 4:] *= 2
            views.append(normalise(distort(crop(grey, chance[:, :3]), distortion), card))
        return torch.stack(views, 1)

    return feed
