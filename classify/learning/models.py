"""The classifier as a thing on disk: any timm model, its weights as safetensors, and a card that says how to feed it.

Weights without the label order, the image size and the normalisation are a trap, so ``card.json`` stands beside them
and ``load_classifier`` gives both. A model here takes a normalised grey image and returns logits, one per label. It is
a backbone, image to features, and one of ``heads.HEADS``; only the head knows the labels, so a backbone serves any
label space, and any head.
Not promised: that a card's labels are those of the cohort at hand; ``Card.require_labels`` checks it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from classify.learning.heads import HEADS, Head
from cohort.errors import TailfillError, nearest
from cohort.stage import write_atomically

CARD = "card.json"
WEIGHTS = ("raw", "ema")
UNFIT = (OSError, RuntimeError, ValueError, SafetensorError)
"""What a file of weights that is missing, damaged or of another model raises."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """How to build and feed a trained classifier."""

    model: str
    """A timm model's name."""
    labels: tuple[str, ...]
    """The meaning of the logits, in order."""
    image_size: int
    """Height and width of the input, px."""
    mean: float
    """Mean grey value of the real training images, 0 to 1; subtracted."""
    std: float
    """Standard deviation of the same; divided by."""
    head: str = "linear"
    """One of ``heads.HEADS``; a card from before there were several has none."""

    def require_labels(self, labels: list[str], *, where: Path) -> None:
        """Raise ``TailfillError`` unless the classifier was trained on these labels in this order."""
        if list(self.labels) != list(labels):
            raise TailfillError(f"{where}: was trained on {len(self.labels)} labels ({', '.join(self.labels)}); "
                                f"wanted: {', '.join(labels)}")


def require_model(name: str) -> None:
    """Raise ``TailfillError`` for a name that timm does not know."""
    if not timm.is_model(name):
        raise TailfillError(f"model '{name}': is no timm model{nearest(name, timm.list_models())}")


def build_classifier(
    name: str, n_labels: int, in_chans: int = 1, *, head: str = "linear", image_size: int | None = None,
    pretrained: bool | str = False, drop_path: float = 0.0,
) -> nn.Module:
    """A timm model: float (batch, in_chans, size, size) -> logits (batch, n_labels).

    ``pretrained`` fetches timm's weights from the model hub, or reads a file of weights for timm's model of that name;
    without it nothing is downloaded. ``image_size`` matters only to models of a fixed input size. Raises
    ``TailfillError`` for a name that timm does not know, and for weights that cannot be had or lack a part of it.
    """
    require_model(name)
    options: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    pretrained_cfg = timm.get_pretrained_cfg(name)
    if image_size is not None and pretrained_cfg is not None and pretrained_cfg.fixed_input_size:
        options["img_size"] = image_size
    if head != "linear":
        options["global_pool"] = ""  # the features are a map
    create = partial(timm.create_model, name, num_classes=n_labels if head == "linear" else 0, in_chans=in_chans,
                     **options)
    model: Any = _create_pretrained(create, pretrained) if pretrained else create()
    if head != "linear":
        model.set_submodule(_classifier(model)[0], HEADS[head](model.num_features, n_labels))
    built: nn.Module = model
    return built


def _create_pretrained(create: Callable[..., nn.Module], pretrained: bool | str) -> nn.Module:
    """timm's model with weights from the hub or a file.

    What the weights lack timm leaves at random, and says so in a log only: so two models are made, and whatever differs
    between them beside the head was not in the weights. Layers that begin as constants are not caught.
    """
    options: dict[str, Any] = {"pretrained": True}
    if isinstance(pretrained, str):
        options["pretrained_cfg_overlay"] = {"file": pretrained}
    where = pretrained if isinstance(pretrained, str) else "train.pretrained"
    try:
        model, other = create(**options), create(**options)
    except Exception as error:  # hub, torch and timm raise a dozen types; all mean the same to the user
        words = (str(error).splitlines() or [type(error).__name__])[0]
        raise TailfillError(f"{where}: gives no weights of this model: {words}") from error
    prefix, theirs = _classifier(model)[0] + ".", other.state_dict()
    lacking = [key for key, value in model.state_dict().items()
               if not key.startswith(prefix) and not torch.equal(value, theirs[key])]
    if lacking:
        raise TailfillError(f"{where}: lacks {len(lacking)} tensors of this model, '{lacking[0]}' for one")
    return model


def save_weights(state: Mapping[str, Tensor], file: Path) -> None:
    """Write a state dict as safetensors, atomically."""
    write_atomically(file, save({key: value.detach().cpu().contiguous() for key, value in state.items()}))


def load_weights(model: nn.Module, file: Path) -> None:
    """Read safetensors into ``model``; raises ``TailfillError`` naming the file when they do not fit."""
    try:
        model.load_state_dict(load_file(file))
    except UNFIT as error:
        raise TailfillError(f"{file}: cannot be loaded into this model: {str(error).splitlines()[0]}") from error


def head_of(model: nn.Module) -> tuple[str, Head]:
    """Name and module of what makes logits of features, one of ``heads.HEADS``; ``TailfillError`` for any other.

    ``head(model.forward_head(model.forward_features(x), pre_logits=True))`` is ``model(x)`` in evaluation mode.
    """
    name, head = _classifier(model)
    if not isinstance(head, Head):
        raise TailfillError(f"the classifier of {type(model).__name__} is a {type(head).__name__}; "
                            "wanted: a model that ends in one linear layer")
    return name, head


def _classifier(model: Any) -> tuple[str, nn.Module]:
    """Name and module of what timm calls the classifier of a model; an identity where there are no labels."""
    module = model.get_classifier()
    return next(name for name, found in model.named_modules() if found is module), module


def load_backbone(model: nn.Module, file: Path) -> None:
    """Read all but the head from safetensors of any float dtype; ``TailfillError`` naming the file if they do not fit.

    The head, whose shape may differ, keeps the weights that it has.
    """
    prefix = head_of(model)[0] + "."
    try:
        state = load_file(file)
        own = {key: value for key, value in model.state_dict().items() if key.startswith(prefix)}
        model.load_state_dict({key: value for key, value in state.items() if not key.startswith(prefix)} | own)
    except UNFIT as error:
        raise TailfillError(f"{file}: is no backbone of this model: {str(error).splitlines()[0]}") from error


def reset_head(model: nn.Module, bias: Tensor) -> None:
    """Weights 0 in the head's last layer and ``bias``, float32 (n_labels,), as the logits of every image.

    With weights of 0 no gradient reaches the backbone before the head has found a direction, and with the loss's best
    constant as bias no large one does: either would first unlearn features (Kumar et al., 2202.10054; NOTES.md).
    """
    head = head_of(model)[1]
    nn.init.zeros_(head.weight)
    with torch.no_grad():
        head.bias.copy_(bias)


def save_card(card: Card, folder: Path) -> None:
    """Write ``card.json``."""
    write_atomically(folder / CARD, (json.dumps(asdict(card), indent=1) + "\n").encode())


def load_card(folder: Path) -> Card:
    """Read ``card.json``; raises ``TailfillError`` when it is missing or no card."""
    try:
        content = json.loads((folder / CARD).read_text(encoding="utf-8"))
        return Card(**{**content, "labels": tuple(content["labels"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise TailfillError(f"{folder / CARD}: is no readable card of a classifier: {error}") from error


def load_classifier(folder: Path, *, weights: str = "ema") -> tuple[nn.Module, Card]:
    """A trained classifier in evaluation mode with its card; ``weights`` is ``raw`` or ``ema``."""
    card = load_card(folder)
    model = build_classifier(card.model, len(card.labels), head=card.head, image_size=card.image_size)
    load_weights(model, folder / f"{weights}.safetensors")
    return model.eval(), card


def normalise(images: Tensor, card: Card) -> Tensor:
    """Grey values (batch, 1, size, size), float 0 to 1, as the model wants them."""
    return (images - card.mean) / card.std


@torch.inference_mode()
def run_in_batches(
    function: Callable[[Tensor], Tensor], images: np.ndarray, card: Card, *, batch_size: int, device: torch.device | str
) -> np.ndarray:
    """What ``function`` makes of normalised images: uint8 (n, size, size), n > 0 -> float32 (n, ...).

    Raises ``TailfillError`` when the images are not of the card's size.
    """
    if images.ndim != 3 or images.shape[1:] != (card.image_size, card.image_size):
        raise TailfillError(f"images of shape {images.shape}; wanted: (n, {card.image_size}, {card.image_size})")
    out = []
    for start in range(0, len(images), batch_size):
        batch = torch.from_numpy(np.array(images[start:start + batch_size])).to(device).unsqueeze(1).float() / 255
        out.append(function(normalise(batch, card)).float().cpu().numpy())
    return np.concatenate(out)


def predict_logits(
    model: nn.Module, images: np.ndarray, card: Card, *, batch_size: int = 64, device: torch.device | str = "cpu"
) -> np.ndarray:
    """Logits of 8-bit grey images: uint8 (n, size, size) -> float32 (n, n_labels), in float32 whatever the training.

    Raises ``TailfillError`` when the images are not of the card's size.
    """
    if not len(images):
        return np.zeros((0, len(card.labels)), dtype=np.float32)
    return run_in_batches(model.to(device).eval(), images, card, batch_size=batch_size, device=device)
