"""Command: which encoder tells real images from degraded ones, and a finding's images from those without it?

    python scripts/encoder_evidence.py --cohort runs/demo/cohort --images 200

Real train images are split at random, over and over, into halves that share no patient. Half against half is the floor;
half against the *degraded* other half, and carriers of a finding against as many images *without* it of the same views,
is what an encoder should see. Each number is KID's mean excess over the floor in units of the floor's standard
deviation over splits: below 2 the encoder cannot tell. A finding's line also says in how many splits wrong images lay
farther off than right ones; a half is chance. Not promised: that an encoder that sees drawn findings sees real ones.
"""

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageFilter

from classify.learning.models import head_of, load_classifier
from cohort.pixels import read_grey
from cohort.stage import hash_file
from cohort.tables import load_cohort
from synth.measuring.distances import kernel_distance
from synth.measuring.encoders import encode, make_encoder
from synth.measuring.fidelity import MIN_KID, halve_patients
from synth.measuring.networks import Encoder, Look, NetworkEncoder

BACKBONE = Path(__file__).parents[1] / "models" / "backbone"


def blur(image: Image.Image, _: np.random.Generator) -> Image.Image:
    """By one pixel."""
    return image.filter(ImageFilter.GaussianBlur(1.0))


def add_noise(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Of 5 grey levels."""
    return Image.fromarray((np.asarray(image) + rng.normal(0, 5, image.size[::-1])).clip(0, 255).astype(np.uint8))


def compress(image: Image.Image, _: np.random.Generator) -> Image.Image:
    """As a JPEG of quality 30."""
    image.save(file := io.BytesIO(), "JPEG", quality=30)
    return Image.open(file).convert("L")


def flatten(image: Image.Image, _: np.random.Generator) -> Image.Image:
    """Contrast times 0.85 about the middle grey."""
    return image.point(lambda grey: round(128 + 0.85 * (grey - 128)))


DEGRADATIONS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "blurred by 1 px": blur, "noise of 5 levels": add_noise, "JPEG of quality 30": compress, "contrast x 0.85": flatten,
}


def backbone_encoder(folder: Path) -> Encoder:
    """A classifier of this project, such as models/backbone, up to its head."""
    model, card = load_classifier(folder)
    name, head = head_of(model)
    model.set_submodule(name, torch.nn.Identity())
    return NetworkEncoder(f"backbone:{folder.name}", network=model, width=head.in_features, device="cpu",
                          look=Look(side=card.image_size, mean=(card.mean,), std=(card.std,)),
                          sha256=hash_file(folder / "ema.safetensors"))


def excess(floor: list[float], values: list[float]) -> float:
    """Mean excess over the floor, in the floor's standard deviations."""
    return float((np.mean(values) - np.mean(floor)) / np.std(floor, ddof=1))


def degraded_excess(
    real: np.ndarray, degraded: dict[str, np.ndarray], patients: pd.Series, splits: int, rng: np.random.Generator
) -> dict[str, float]:
    """Per degradation, from features of the same images in the same order."""
    floor: list[float] = []
    values: dict[str, list[float]] = {name: [] for name in degraded}
    for _ in range(splits):
        half = halve_patients(patients, rng=rng)
        floor.append(kernel_distance(real=real[half], fake=real[~half]))
        for name, features in degraded.items():
            values[name].append(kernel_distance(real=real[half], fake=features[~half]))
    return {name: excess(floor, found) for name, found in values.items()}


def label_excess(
    carriers: np.ndarray, without: np.ndarray, patients: pd.Series, splits: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Excess of images without the finding over carriers, and the share of splits in which they lie farther off.

    ``without``: features of one image without the finding per carrier, of the same view.
    """
    right: list[float] = []
    wrong: list[float] = []
    for _ in range(splits):
        half = halve_patients(patients, rng=rng)
        right.append(kernel_distance(real=carriers[half], fake=carriers[~half]))
        wrong.append(kernel_distance(real=carriers[half], fake=without[~half]))
    return excess(right, wrong), float(np.mean(np.array(wrong) > np.array(right)))


def match_views(frame: pd.DataFrame, label: str, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Positions of up to n carriers, and of one image without the label for each, of its view."""
    pairs = []
    for _, rows in frame.groupby(frame["view"].fillna("")):
        positions = frame.index.get_indexer(rows.index)
        shows = rows[label].eq(1).fillna(False).to_numpy(dtype=bool)
        lacks = rows[label].eq(0).fillna(False).to_numpy(dtype=bool)
        k = min(shows.sum(), lacks.sum())
        pairs += list(zip(rng.permutation(positions[shows])[:k], rng.permutation(positions[lacks])[:k], strict=True))
    chosen = rng.permutation(np.array(pairs).reshape(-1, 2))[:n]
    return chosen[:, 0], chosen[:, 1]


def main() -> None:
    """Read, encode, compare, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", type=Path, required=True, help="folder of a prepared cohort")
    parser.add_argument("--images", type=int, default=200, help="real images, and at most as many per finding")
    parser.add_argument("--size", type=int, default=128, help="pixels per side")
    parser.add_argument("--splits", type=int, default=40, help="random halvings")
    parser.add_argument("--encoders", nargs="*", default=["efficientnet_lite0"], help="as filter.encoders has them")
    parser.add_argument("--backbone", type=Path, nargs="*", default=[BACKBONE], help="folders of classifiers")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    cohort = load_cohort(options.cohort)
    frame = cohort.split("train").reset_index(drop=True)
    paths = cohort.image_paths(frame)

    def read(chosen: np.ndarray) -> np.ndarray:
        return np.stack([read_grey(paths[row], options.size) for row in chosen])

    rows = rng.permutation(len(frame))[: options.images]
    pixels = read(rows)
    altered = {name: np.stack([np.asarray(change(Image.fromarray(image), rng)) for image in pixels])
               for name, change in DEGRADATIONS.items()}
    matched = {label: match_views(frame, label, options.images, rng) for label in cohort.labels}
    matched = {label: pair for label, pair in matched.items() if len(pair[0]) >= 4 * MIN_KID}
    for encoder in [*map(make_encoder, options.encoders), *map(backbone_encoder, options.backbone)]:
        sys.stdout.write(f"{encoder.name} (sha256 {encoder.sha256[:12]}, {encoder.resize}), {len(rows)} real images\n")
        found = degraded_excess(encode(encoder, pixels), {name: encode(encoder, x) for name, x in altered.items()},
                                frame["patient_id"].iloc[rows], options.splits, rng)
        sys.stdout.writelines(f"  {name:28} {value:8.1f}\n" for name, value in found.items())
        for label, (carriers, without) in matched.items():
            value, share = label_excess(encode(encoder, read(carriers)), encode(encoder, read(without)),
                                        frame["patient_id"].iloc[carriers], options.splits, rng)
            sys.stdout.write(f"  without {label:20} {value:8.1f}   farther off in {share:.2f} of the splits, "
                             f"{len(carriers)} carriers\n")


if __name__ == "__main__":
    main()
