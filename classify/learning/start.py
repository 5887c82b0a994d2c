"""What a training starts from where it does not start from nothing: all weights of another run, or a backbone.

A backbone is a folder that holds ``ema.safetensors`` (any float type) and ``card.json`` as ``train`` writes them: a
finished run, of whatever labels, or weights shipped with a project. It gives everything but the head, and how to feed
it. Where ``patients.parquet`` lies beside them its patients are inherited and compared with the test split; where not,
or where they are of another cohort, nobody can say whose images it has seen, and the provenance is unknown.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from classify.learning.models import CARD, Card, build_classifier, load_backbone, load_card, load_weights, reset_head
from cohort.errors import TailfillError
from cohort.provenance import FILE
from cohort.stage import verify

WEIGHTS_FILE = "ema.safetensors"


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where the weights of step 0 stand."""

    folder: Path
    is_backbone: bool
    """Whether only the backbone is taken; else all weights, of a complete run with the very same labels."""

    def inputs(self) -> dict[str, Path]:
        """What a stage's fingerprint holds of it: a backbone counts by its bytes, wherever it lies."""
        if self.is_backbone:
            return {"backbone": self.folder / WEIGHTS_FILE, "backbone_card": self.folder / CARD}
        return {"start": self.folder}

    def card(self, labels: list[str], *, model: str, image_size: int, head: str) -> Card:
        """How to feed the model, with the labels at hand; ``TailfillError`` unless the settings fit the weights."""
        card = fitting_card(self.folder, model=model, image_size=image_size)
        if not self.is_backbone:
            card.require_labels(labels, where=self.folder)
            if card.head != head:
                raise TailfillError(f"{self.folder}: was trained with head {card.head}; wanted: {head}")
        return replace(card, labels=tuple(labels), head=head)

    def load(self, model: nn.Module, bias: Tensor) -> None:
        """Set the weights of ``model``; a new head starts with ``bias``, float32 (n_labels,), whatever the image."""
        if self.is_backbone:
            load_backbone(model, self.folder / WEIGHTS_FILE)
            reset_head(model, bias)
        else:
            load_weights(model, verify(self.folder, "train", WEIGHTS_FILE))

    @property
    def names_patients(self) -> bool:
        """Whether the folder says whose images its weights have seen."""
        return (self.folder / FILE).is_file()


def fitting_card(folder: Path, *, model: str, image_size: int) -> Card:
    """The card in ``folder``; raises ``TailfillError`` unless it is of this model and size."""
    card = load_card(folder)
    for key, wanted in (("model", model), ("image_size", image_size)):
        if getattr(card, key) != wanted:
            raise TailfillError(f"{folder}: was trained with {key} {getattr(card, key)}; wanted: {wanted}")
    return card


def check_backbone(folder: Path, *, image_size: int, key: str, model: str | None = None) -> None:
    """Raise ``TailfillError``, naming the setting ``key``, unless the folder holds weights and a card of this size.

    ``model``: the timm model that it must be of; None: any.
    """
    for name in (WEIGHTS_FILE, CARD):
        if not (folder / name).is_file():
            raise TailfillError(f"{key} is {folder}, which holds no {name}; wanted: a folder as "
                                "classify/train.py writes it")
    try:
        fitting_card(folder, model=model or load_card(folder).model, image_size=image_size)
    except TailfillError as error:
        raise TailfillError(f"{key}: {error}") from error


def initial_model(
    start: Start | None, card: Card, bias: Tensor, *, seed: int, pretrained: bool | str, drop_path: float
) -> nn.Module:
    """The model at step 0: the start's weights; without one ``pretrained`` ones, or random ones from ``seed``.

    ``bias``, float32 (n_labels,), is for a head that is new on trained features.
    """
    torch.manual_seed(seed)  # timm draws initial weights from the global generator
    model = build_classifier(card.model, len(card.labels), head=card.head, image_size=card.image_size,
                             pretrained=pretrained if start is None else False, drop_path=drop_path)
    if start is not None:
        start.load(model, bias)
    elif pretrained:
        reset_head(model, bias)
    return model
