"""Heads: what makes one logit per label of a backbone's features, and the only part that knows the labels.

``linear`` sees the pooled features. The others see the *map* before pooling, because a finding is small: a nodule fills
one of sixteen places, and the mean over places dilutes it. ``ml_decoder`` is timm's ML-Decoder (Ridnik et al.,
2111.12933): one fixed query per label looks over the places through one layer of cross-attention. ``csra`` is
class-specific residual attention (Zhu and Wu, ICCV 2021, 2108.02456, section 3): to a label's mean score over the
places it adds lambda times its score where the label attends.

Every head bears ``weight`` and ``bias``, those of its last layer: with the one at 0 the logits are the other, whatever
the image, and no gradient reaches what lies before. That is how a new head starts on trained features.
Not promised: CSRA as its authors' code has it, which divides a label's weights by their norm; the paper does not, and a
head of weights 0 has no norm. ML-Decoder's width is the features' where these are fewer than its 768.

Adding a head: one class or function with these two attributes, and its name in ``Head`` and ``HEADS``.
"""

import torch
from timm.layers.ml_decoder import MLDecoder
from torch import Tensor, nn

from cohort.errors import TailfillError

ATTENTION_HEADS = 8
"""Of ML-Decoder's cross-attention; timm's number, by which its width must divide."""
WIDTH = 768
"""Of ML-Decoder's queries, at most; the paper's and timm's default."""
TEMPERATURES = (1.0, 99.0)
"""Of CSRA's attention, one head each: the authors' pair for two heads; at 99 it finds the largest score."""
LAMBDA = 0.1
"""Weight of CSRA's attention beside the mean; the paper's value for COCO and VOC 2007 with a ResNet."""


def places(features: Tensor, n_features: int) -> Tensor:
    """A map (batch, n_features, h, w), (batch, h, w, n_features) or (batch, n, n_features) as the last of the three.

    Raises ``TailfillError`` for features without places, as a model gives them that pools within itself.
    """
    if features.ndim == 4:
        if features.shape[1] == n_features:
            return features.flatten(2).transpose(1, 2)
        features = features.flatten(1, 2)
    if features.ndim != 3 or features.shape[-1] != n_features:
        raise TailfillError(f"train.head: features of shape {tuple(features.shape[1:])} are no map of {n_features} "
                            "channels; wanted: head 'linear' for this model")
    return features


class MlDecoderHead(MLDecoder):
    """timm's ML-Decoder: a map, see ``places`` -> logits (batch, n_labels). Up to 100 labels have a query each."""

    def __init__(self, n_features: int, n_labels: int) -> None:
        width = min(WIDTH, n_features // ATTENTION_HEADS * ATTENTION_HEADS)
        super().__init__(n_labels, decoder_embedding=width, initial_num_features=n_features)
        self.in_features = n_features
        self.decoder = self.decoder.layers[0]  # torch's wrapper asks for self-attention, which this layer leaves out
        queries = self.query_embed.weight.detach()
        self.query_embed = nn.Module()
        self.query_embed.register_buffer("weight", queries)  # fixed, whoever switches the head's gradients on

    @property
    def weight(self) -> nn.Parameter:
        """float32 (n_queries, width, labels per query): what makes logits of what the queries found."""
        return self.duplicate_pooling

    @property
    def bias(self) -> nn.Parameter:
        """float32 (n_labels,)."""
        return self.duplicate_pooling_bias

    def forward(self, features: Tensor) -> Tensor:
        """Logits of a map."""
        logits: Tensor = super().forward(places(features, self.in_features))
        return logits


class CsraHead(nn.Module):
    """Class-specific residual attention: a map, see ``places`` -> logits (batch, n_labels).

    With a label's scores s = m x at all places, a head of temperature T gives mean(s) + lambda sum(s softmax(T s)).
    Heads, each with its own m, are added, and so is a bias, which the paper has not.
    """

    def __init__(
        self, n_features: int, n_labels: int, *, temperatures: tuple[float, ...] = TEMPERATURES, weight: float = LAMBDA
    ) -> None:
        super().__init__()
        self.temperatures, self.attention_weight = temperatures, weight
        self.weight = nn.Parameter(torch.empty(len(temperatures), n_labels, n_features))
        self.bias = nn.Parameter(torch.zeros(n_labels))
        nn.init.trunc_normal_(self.weight, std=0.02)  # timm's for the linear head of a ConvNeXt
        self.in_features = n_features

    def forward(self, features: Tensor) -> Tensor:
        """Logits of a map."""
        scores = torch.einsum("bpf,hlf->hblp", places(features, self.in_features), self.weight)
        logits = self.bias
        for temperature, score in zip(self.temperatures, scores, strict=True):
            attended = (score * torch.softmax(temperature * score.float(), dim=-1)).sum(-1)
            logits = logits + score.mean(-1) + self.attention_weight * attended
        return logits


Head = nn.Linear | MlDecoderHead | CsraHead
"""What a model may end in."""
HEADS: dict[str, type[Head]] = {"linear": nn.Linear, "ml_decoder": MlDecoderHead, "csra": CsraHead}
"""Name to constructor, which takes the numbers of features and labels."""
