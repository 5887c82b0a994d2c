"""Heads: what makes one logit per label of a backbone's features, and the only part that knows the labels.

``linear`` sees the pooled features. ``ml_decoder`` sees the *map* before pooling, because a finding is small: a nodule
fills one of sixteen places, and the mean over places dilutes it. It is timm's ML-Decoder (Ridnik et al., 2111.12933):
one fixed query per label looks over the places through one layer of cross-attention.

Every head bears ``weight`` and ``bias``, those of its last layer: with the one at 0 the logits are the other, whatever
the image, and no gradient reaches what lies before. That is how a new head starts on trained features.
Not promised: ML-Decoder's usual width of 768; where the features are fewer, it has theirs.

Adding a head: one class or function with these two attributes, and its name in ``Head`` and ``HEADS``.
"""

from timm.layers.ml_decoder import MLDecoder
from torch import Tensor, nn

from cohort.errors import TailfillError

ATTENTION_HEADS = 8
"""Of ML-Decoder's cross-attention; timm's number, by which its width must divide."""
WIDTH = 768
"""Of ML-Decoder's queries, at most; the paper's and timm's default."""


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


Head = nn.Linear | MlDecoderHead
"""What a model may end in."""
HEADS: dict[str, type[Head]] = {"linear": nn.Linear, "ml_decoder": MlDecoderHead}
"""Name to constructor, which takes the numbers of features and labels."""
