"""DICOM pixels as a screen would show them: stored values -> rescale -> window -> grey.

The order is DICOM's (PS3.4 N.2): the modality LUT or rescale slope and intercept; then the VOI LUT or, without one, the
first window; then MONOCHROME1 (or an inverse presentation LUT) is inverted, so that bone is white in every image. An
image without LUT or window is scaled by the range of its stored bits, 12 of 16 say, never by its own minimum and
maximum: brightness must mean the same in each image of a set. pydicom does the arithmetic and decompresses.

Transfer syntaxes: raw, deflated and RLE by pydicom, JPEG and JPEG 2000 by Pillow; JPEG Lossless and JPEG-LS need a
decoder of their own (``pip install 'tailfill[dicom]'``), and without it the file is refused by name.

Not promised: overlays, shutters, or several frames.
"""

from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut, convert_color_space

from cohort.errors import TailfillError

UNREADABLE = (OSError, AttributeError, ValueError, KeyError, EOFError, TypeError, NotImplementedError, RuntimeError,
              IndexError)
"""What pydicom and its decoders raise for broken files, missing pixels and syntaxes that nothing here can decode."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601, as Pillow's own conversion)."""


def read_display(path: Path) -> np.ndarray:
    """One DICOM image as (height, width) float32, 0 black to 255 white; raises ``TailfillError`` naming the file."""
    try:
        dataset = dcmread(path)
        if int(dataset.get("NumberOfFrames") or 1) != 1:
            raise ValueError(f"it has {dataset.NumberOfFrames} frames; wanted: one")
        stored = dataset.pixel_array
        if int(dataset.get("SamplesPerPixel") or 1) > 1:
            return _grey(stored, dataset)
        return _window(stored, dataset)
    except UNREADABLE as error:
        hint = "; pip install 'tailfill[dicom]' brings a decoder" if "missing dependencies" in str(error) else ""
        raise TailfillError(f"{path}: cannot be read as a DICOM image: {error}{hint}") from error


def _window(stored: np.ndarray, dataset: Any) -> np.ndarray:
    values = apply_modality_lut(stored, dataset)
    low, high = displayed_range(dataset)
    if "VOILUTSequence" in dataset or "WindowCenter" in dataset:
        values = apply_voi_lut(values, dataset, prefer_lut=True)
    grey = np.clip((np.asarray(values, dtype=np.float32) - low) / (high - low), 0, 1)
    inverted = dataset.PhotometricInterpretation == "MONOCHROME1" or dataset.get("PresentationLUTShape") == "INVERSE"
    return np.asarray((1 - grey if inverted else grey) * 255, dtype=np.float32)


def displayed_range(dataset: Any) -> tuple[float, float]:
    """The values that stand for black and white: of a VOI LUT's entries, else of the stored bits after the rescale.

    pydicom's window maps to the same range. Raises ``ValueError`` when it is empty.
    """
    tables = dataset.get("VOILUTSequence") or dataset.get("ModalityLUTSequence")
    if tables:
        return 0.0, float(2 ** int(tables[0].LUTDescriptor[2]) - 1)
    bits, signed = int(dataset.BitsStored), bool(dataset.PixelRepresentation)
    ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    low, high = sorted(end * slope + intercept for end in ends)
    if not high > low:
        raise ValueError(f"its values span {low} to {high}; wanted: more than one")
    return low, high


def _grey(stored: np.ndarray, dataset: Any) -> np.ndarray:
    kind = str(dataset.PhotometricInterpretation)
    colour = stored if kind == "RGB" else convert_color_space(stored, kind, "RGB")
    return np.asarray(colour.astype(np.float32) @ np.array(LUMA, dtype=np.float32), dtype=np.float32)
