"""The grain that a decoder leaves out: the noise of real radiographs, measured through the autoencoder and put back.

An autoencoder is trained to the mean of what it cannot know, so quantum noise is missing from all that it draws. As in
film-grain synthesis (Norkin and Birkbeck, *Film grain synthesis for AV1 video codec*, DCC 2018) the noise is measured
on what the codec left out, in flat regions, as a function of brightness, and drawn anew, scaled by the brightness of
the image that it is added to. What the decoder left out is mostly structure, though (on phantoms 93 % of the variance):
edges, vessels, texture. A Gaussian field with the residual's whole spectrum would be false anatomy, and lies farther
from real images than no grain at all (``NOTES.md``). So only what a high pass that cancels slopes and upright edges
lets through counts (Immerkaer, *Fast noise variance estimation*, CVIU 1996), by its median.

Measured on phantoms whose noise is known: right within 8 % above grey level 130, too strong by a quarter to two thirds
below 64, where the vessels of the lungs pass for noise. Not promised: noise that is correlated from pixel to pixel, as
in compressed or enlarged images (it is taken for white), or that images with grain train better classifiers.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import convolve, gaussian_gradient_magnitude

from cohort.errors import TailfillError
from cohort.pixels import read_grey
from cohort.provenance import FILE, write_patients
from cohort.stage import Stage
from cohort.tables import Cohort, read_table, write_table

GRAIN = "grain.parquet"

HIGH_PASS = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]]) / 6
"""Immerkaer's kernel, divided by its norm: white noise keeps its standard deviation."""
MAD = 1.4826
"""Standard deviation of a normal variable by its median absolute deviation."""
BIN, LEAST_PIXELS = 16, 1000
"""Grey levels of a bin, and flat pixels below which it says nothing."""
AT_MOST, AT_LEAST, PIXELS = 256, 32, 1 << 23
"""Images to measure on: as many as hold ``PIXELS`` together, within these bounds."""
ROUNDING = 1 / 12
"""Variance of rounding to whole grey levels, which the measured images have behind them, and those made ahead; and of
the dither that takes the steps out of it, for else a median could only be a multiple of a sixth."""
STREAM = 7
"""Set apart from a row's other draws under its seed."""


@dataclass(frozen=True, kw_only=True)
class Grain:
    """White noise whose strength follows the brightness of the image below it."""

    brightness: np.ndarray
    """float64 (k,): the middle of each bin, grey levels 0 to 255, ascending."""
    deviation: np.ndarray
    """float64 (k,): standard deviation of the noise there, grey levels, 0 or more."""
    spread: float
    """Standard deviation, over images, of the logarithm of an image's own strength."""

    def add(self, image: torch.Tensor, *, seed: int) -> torch.Tensor:
        """The image with grain, float32 (channels, height, width) in 0 to 1 before and, beyond it by noise, after.

        All channels get the same noise, which follows from the row's ``seed`` alone.
        """
        rng = np.random.default_rng([seed, STREAM])
        strength, noise = np.exp(self.spread * rng.standard_normal()), rng.standard_normal(image.shape[1:])
        deviation = np.interp(image.mean(dim=0).numpy() * 255, self.brightness, self.deviation)
        return image + torch.from_numpy(strength * deviation * noise / 255).to(image.dtype)

    def table(self) -> pd.DataFrame:
        """One row per bin: columns ``brightness``, ``deviation`` and, in each row the same, ``spread``."""
        return pd.DataFrame({"brightness": self.brightness, "deviation": self.deviation, "spread": self.spread})

    @classmethod
    def of_table(cls, table: pd.DataFrame) -> "Grain":
        """The grain that ``table`` tells of."""
        return cls(brightness=table["brightness"].to_numpy(), deviation=table["deviation"].to_numpy(),
                   spread=float(table["spread"].iloc[0]))


def find_grain(stage: Stage, vae: Any, cohort: Cohort, *, height: int, width: int) -> Grain:
    """The grain in a stage's folder, measured on train images through ``vae`` and written there unless it has been.

    Whose images they are stands in ``patients.parquet`` beside it, with those that the stage's inputs have learnt from.
    Every process that draws may call it: equal ones measure and write the same. Raises ``TailfillError`` unless what is
    drawn is square, as radiographs are read.
    """
    if height != width:
        raise TailfillError(f"generate.height, width are {height}, {width}, and grain is measured on squares; wanted: "
                            "equal ones")
    file, size = stage.folder / GRAIN, height
    if not file.is_file():
        train = cohort.split("train")
        train = train.iloc[images_to_measure(len(train), size)]
        real = np.stack([read_grey(path, size) for path in cohort.image_paths(train)])
        grain = measure_grain(real=real, decoded=np.stack([decode_again(vae, image) for image in real]))
        makers = [Path(entry["path"]) for entry in stage.inputs.values()]
        write_patients(stage.folder, train["patient_id"], salt=cohort.salt,
                       inherited=[maker for maker in makers if (maker / FILE).is_file()])
        write_table(grain.table(), file)
    return Grain.of_table(read_table(file))


@torch.no_grad()
def decode_again(vae: Any, pixels: np.ndarray) -> np.ndarray:
    """A uint8 (h, w) image through the mean of its latent, float32 (h, w), 0 to 255 and not rounded.

    One at a time, as in ``editing``: no batch decides about the last bits.
    """
    grey = torch.tensor(pixels, device=vae.device, dtype=vae.dtype) / 127.5 - 1
    encoded = vae.encode(grey.expand(1, vae.config.in_channels, -1, -1))
    latent = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
    decoded = vae.decode(latent, return_dict=False)[0][0].float().mean(dim=0).clamp(-1, 1)
    again: np.ndarray = ((decoded + 1) * 127.5).cpu().numpy()
    return again


def images_to_measure(n: int, size: int) -> np.ndarray:
    """Which of ``n`` images of ``size`` px to measure on, evenly over them; ascending."""
    return np.linspace(0, n - 1, min(n, max(AT_LEAST, min(AT_MOST, PIXELS // size**2)))).astype(int)


def measure_grain(*, real: np.ndarray, decoded: np.ndarray) -> Grain:
    """The noise of real images that is missing from their reconstructions.

    Args:
        real: uint8 (n, height, width).
        decoded: the same images through the autoencoder, float (n, height, width), grey levels 0 to 255, not rounded.

    Raises ``TailfillError`` when no brightness has enough flat pixels.
    """
    dither = np.random.default_rng(STREAM)  # the same each time
    passed = np.stack([np.abs(convolve(one + dither.random(one.shape, dtype=np.float32) - 0.5 - again, HIGH_PASS))
                       for one, again in zip(real.astype(np.float32), decoded.astype(np.float32), strict=True)])
    steep = np.stack([gaussian_gradient_magnitude(one, 1) for one in decoded.astype(np.float32)])
    bins = np.clip(decoded // BIN, 0, 255 // BIN).astype(int)
    flat = np.zeros(bins.shape, dtype=bool)
    found: dict[float, float] = {}
    for number in np.unique(bins):
        inside = bins == number
        chosen = inside & (steep <= np.median(steep[inside]))  # the flatter half of what is as bright
        if chosen.sum() >= LEAST_PIXELS:
            flat |= chosen
            variance = (MAD * float(np.median(passed[chosen]))) ** 2 - 2 * ROUNDING
            found[(number + 0.5) * BIN] = max(variance, 0.0) ** 0.5
    if not found:
        raise TailfillError(f"generate.grain: {len(real)} real images have fewer than {LEAST_PIXELS} flat pixels of "
                            "each brightness; wanted: more or larger training images")
    brightness, deviation = np.array(list(found)), np.array(list(found.values()))
    return Grain(brightness=brightness, deviation=deviation,
                 spread=_spread(passed, flat, np.interp(decoded, brightness, deviation)))


def _spread(passed: np.ndarray, flat: np.ndarray, expected: np.ndarray) -> float:
    """How much images differ: of each, the median of what passed by what is expected there, in logarithms."""
    strengths = [float(np.median(p[f] / e[f])) for p, f, e in zip(passed, flat & (expected > 0), expected, strict=True)
                 if f.any()]
    logs = np.log([strength for strength in strengths if strength > 0])
    return float(logs.std()) if len(logs) > 1 else 0.0
