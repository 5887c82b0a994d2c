"""What a frozen backbone sees in an image, computed once and kept, so that training a head costs seconds.

Features are the backbone's output, float32, of the undistorted image: pooled for a linear head, the map for the others
(half a GB per 10,000 images of 224 px and 256 channels, all in memory). They depend on the backbone's weights, the
normalisation and the pixels, and on nothing else, so that a hash of these names the file: arms and seeds, training and
prediction share it, and a change of any of them cannot meet a stale one. Blocks of images are computed and written one
by one under a temporary name, so a killed run loses one block, and several processes do not disturb each other.

Not promised: bit-equal features of an image in another block of images, or on another number of threads or device; they
agree to about 1e-5. Nothing is ever removed from the cache.
"""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from classify.learning.models import Card, head_of, run_in_batches
from cohort.stage import write_atomically

BLOCK = 256
"""Images per file of the cache; part of its promise of equal bits."""
BATCH_SIZE = 64
"""Images per forward pass."""


def hash_backbone(model: nn.Module, card: Card) -> str:
    """sha256, as hex, of all that decides features: model name, normalisation, pooling, every weight but the head's."""
    name, head = head_of(model)
    prefix, pooling = f"{name}.", "" if isinstance(head, nn.Linear) else " map"
    feeding = f"{card.model} {card.image_size} {card.mean!r} {card.std!r} {BATCH_SIZE}{pooling}\n"
    digest = hashlib.sha256(feeding.encode())
    for name, value in model.state_dict().items():
        if not name.startswith(prefix):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_features(
    model: nn.Module, images: np.ndarray, card: Card, *, cache: Path, device: torch.device | str = "cpu"
) -> np.ndarray:
    """The features of 8-bit grey images: uint8 (n, size, size) -> float32 (n, ...), from ``cache`` or computed.

    What the model's own head takes of an image, (n_features,) for a linear one; the head's weights are not used. Raises
    ``TailfillError`` when the images are not of the card's size.
    """
    model = model.to(device).eval()
    backbone, head = hash_backbone(model, card), head_of(model)[1]
    if not len(images):
        return np.zeros((0, head.in_features), dtype=np.float32)
    blocks = []
    for start in tqdm(range(0, len(images), BLOCK), desc="features", unit=f"{BLOCK} images", mininterval=1.0):
        block = np.ascontiguousarray(images[start:start + BLOCK])
        file = cache / f"features_{hashlib.sha256(backbone.encode() + block.tobytes()).hexdigest()[:32]}.npy"
        if not file.is_file():
            content = io.BytesIO()
            np.save(content, compute_features(model, block, card, device=device))
            write_atomically(file, content.getvalue())
        blocks.append(np.load(file))
    return np.concatenate(blocks)


def compute_features(model: nn.Module, images: np.ndarray, card: Card, *, device: torch.device | str) -> np.ndarray:
    """The features of n > 0 images, in float32 whatever the training; shapes as in ``load_features``."""
    network: Any = model  # timm's, whose methods nn.Module does not know
    return run_in_batches(lambda x: network.forward_head(network.forward_features(x), pre_logits=True), images, card,
                          batch_size=BATCH_SIZE, device=device)


@torch.inference_mode()
def logits_of_features(model: nn.Module, features: np.ndarray) -> np.ndarray:
    """What the model's head makes of features: float32 (n, ...) as ``load_features`` gives them -> (n, n_labels)."""
    head = head_of(model)[1].cpu().eval()
    parts = torch.from_numpy(features).split(BLOCK)
    return torch.cat([head(part) for part in parts]).numpy()
