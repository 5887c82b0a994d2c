"""Predictions for a folder of one's own images: every file a row, predicted or with the reason why not.

PNG, JPEG, TIFF, BMP and WebP of 8 or 16 bits and DICOM, below the folder at any depth, read as the training images
were (``cohort.pixels``). A file that cannot be read is named and costs nobody else anything; a file of another kind is
counted and left alone. Nothing of a DICOM header but the view is kept.

Not promised: that an image is a chest, or that it resembles what the classifier has learnt from. ``caution`` says what
can be seen of that: hardly any contrast, fewer pixels than the model takes, a lateral view that it never saw, text that
the header admits to be burned in.
"""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from classify.exporting.bundle import Bundle
from classify.learning.models import predict_logits
from cohort.checking.reading import LOW_CONTRAST, grey_range
from cohort.dicom.header import is_dicom, read_header
from cohort.errors import TailfillError
from cohort.pixels import FILTER, open_grey
from cohort.preparing.people import parse_view
from cohort.sources.image_folder import PICTURES

log = logging.getLogger(__name__)

CHUNK = 512
"""Images in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One file, read or not."""

    pixels: np.ndarray | None
    """uint8 (size, size); None where it could not be read."""
    error: str | None = None
    caution: str | None = None
    view: str | None = None


def find_images(folder: Path) -> tuple[list[Path], int]:
    """The images below a folder by name, hidden ones left out, and how many other files there are.

    Raises ``TailfillError`` when there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise TailfillError(f"{folder}: is no folder; wanted: the folder of the images")
    files = sorted(Path(top) / name for top, inner, names in os.walk(folder) for name in names
                   if not name.startswith(".") and not _is_hidden(Path(top), folder))
    images = [path for path in files if _is_file(path) and (path.suffix.lower() in PICTURES or is_dicom(path))]
    if not images:
        raise TailfillError(f"{folder}: holds no image among {len(files)} files; wanted: {', '.join(PICTURES)}")
    return images, len(files) - len(images)


def _is_file(path: Path) -> bool:
    """A file, or a link that leads nowhere; reading a pipe or a socket would never end."""
    return path.is_file() or not path.exists()


def name_of(path: Path, folder: Path) -> str:
    """The path below ``folder``; bytes that are no UTF-8, which a table cannot hold, as ``\\xff``."""
    return os.fsencode(path.relative_to(folder).as_posix()).decode("utf-8", "backslashreplace")


def _is_hidden(path: Path, above: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(above).parts)


def read_picture(path: Path, bundle: Bundle) -> Picture:
    """One file as the model takes it, with what is to be said of it; an error becomes its ``error``."""
    size, cautions, view = bundle.card.image_size, [], None
    try:
        if is_dicom(path):
            header = read_header(path)
            view = parse_view(header.view) if header.view else None
            cautions += ["the header admits that text is burned into it"] if header.burned_in else []
        image = open_grey(path)
        if min(image.size) < size:
            cautions.append(f"{image.width} x {image.height} pixels, fewer than the {size} that the model takes")
        values = image if image.size == (size, size) else image.resize((size, size), FILTER)
        pixels = np.clip(np.rint(np.asarray(values)), 0, 255).astype(np.uint8)
    except TailfillError as error:
        return Picture(pixels=None, error=str(error).removeprefix(f"{path}: "))
    if grey_range(pixels) < LOW_CONTRAST:
        cautions.append(f"hardly any contrast, grey {pixels.min()} to {pixels.max()} of 255: blank, or fewer bits than "
                        "its format has")
    if view == "LATERAL" and bundle.views and not bundle.views.get("LATERAL"):
        cautions.append("a lateral view, of which the model has seen none")
    return Picture(pixels=pixels, caution="; ".join(cautions) or None, view=view)


def predict_images(
    model: nn.Module, bundle: Bundle, images: Sequence[Path], folder: Path, *, batch_size: int, threads: int,
    device: torch.device | str = "cpu",
) -> pd.DataFrame:
    """One row per file, in order: ``image_id`` (its path below ``folder``), status, error, caution, view, and per label
    ``probability_L``, ``logit_L`` and ``decision_L`` (1, 0, or null without a threshold). Bad files are logged by name.
    """
    labels, parts = list(bundle.card.labels), []
    with (ThreadPoolExecutor(threads) as pool,
          tqdm(total=len(images), desc="predict", unit="image", mininterval=1.0) as bar):
        for start in range(0, len(images), CHUNK):
            paths = images[start:start + CHUNK]
            read = list(pool.map(lambda path: read_picture(path, bundle), paths))
            logits = np.full((len(paths), len(labels)), np.nan, dtype=np.float32)
            good = [at for at, picture in enumerate(read) if picture.pixels is not None]
            if good:
                pixels = np.stack([picture.pixels for picture in read if picture.pixels is not None])
                logits[good] = predict_logits(model, pixels, bundle.card, batch_size=batch_size, device=device)
            parts.append(_rows(paths, read, logits, bundle, folder))
            bar.update(len(paths))
    table = pd.concat(parts, ignore_index=True)
    for row in table[table["status"] == "error"].itertuples():
        log.warning("predict: %s: %s", row.image_id, row.error)
    return table


def _rows(
    paths: Sequence[Path], read: Sequence[Picture], logits: np.ndarray, bundle: Bundle, folder: Path
) -> pd.DataFrame:
    """The table of some files; ``logits``: float32 (n, n_labels), NaN for those that were not read."""
    errors = [picture.error for picture in read]
    for at in np.flatnonzero(~np.isfinite(logits).all(axis=1)).tolist():
        errors[at] = errors[at] or "the model's output for it is not finite"
        logits[at] = np.nan
    columns: dict[str, object] = {
        "image_id": [name_of(path, folder) for path in paths],
        "status": ["error" if error else "ok" for error in errors], "error": pd.array(errors, dtype="str"),
        "caution": pd.array([picture.caution for picture in read], dtype="str"),
        "view": pd.array([picture.view for picture in read], dtype="str")}
    probabilities = bundle.decisions.probabilities(logits)
    for at, label in enumerate(bundle.card.labels):
        threshold = bundle.decisions.thresholds[label]
        unknown = np.isnan(logits[:, at]) | (threshold is None)
        present = logits[:, at] >= (0.0 if threshold is None else np.float32(threshold))
        columns |= {f"probability_{label}": probabilities[:, at], f"logit_{label}": logits[:, at],
                    f"decision_{label}": pd.arrays.IntegerArray(present.astype(np.int8), unknown)}
    return pd.DataFrame(columns)
