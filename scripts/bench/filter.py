"""How fast images are read, judged and measured: one pass, against the peers' tools one after the other.

Both sides do the same work on the same PNGs: FID and KID in EfficientNet-Lite0's space, a ConvNeXt's logits of the
images made, and each one's nearest real image. The peers' way is a script for each, which decodes and encodes for
itself, as their repositories have it: torchmetrics' FID, torchmetrics' KID, a timm classifier, scikit-learn's nearest
neighbours. Ours is the filter's pass (``synth/judging/reading.py``) and its distances, once with an empty cache, once
with the real side in it. Rounds alternate; what is told is the ratio of the wall times of a round.

::

    python scripts/bench/filter.py --images 512 --rounds 3
    python scripts/bench/filter.py --scale 1000 50000

The second form reads and judges that many images in a process of its own each, drawn from a seed instead of files,
encoded by averaging and with stand-ins for what a search for copies finds, so that nothing but the filter's own time
and memory counts.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from filter_scale import tell_scale
from generate_inputs import real_images
from PIL import Image
from sklearn.neighbors import NearestNeighbors
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from tqdm import tqdm

from classify.learning.models import Card, build_classifier, predict_logits
from cohort.pixels import load_images, read_grey
from cohort.stage import hash_file
from synth.judging.reading import Reader, Source, collect, file_digests, pixel_digests, read
from synth.measuring.distances import frechet_distance, kernel_distance
from synth.measuring.encoders import EfficientNetLite0

SIZE, BATCH = 128, 64
CRITIC = "convnext_atto"


class Scores:
    """The critic of the comparison: a ConvNeXt with random weights, as a reader."""

    name, key, width = "scores", "1", 14

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = build_classifier(CRITIC, self.width).eval()
        self.card = Card(model=CRITIC, labels=tuple(map(str, range(self.width))), image_size=SIZE, mean=0.5, std=0.25)

    def read(self, images: np.ndarray) -> np.ndarray:
        """uint8 (b, size, size) to float32 (b, 14)."""
        return predict_logits(self.model, images, self.card)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, help="PNGs made, and as many real ones")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; each does all ways once")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--scale", type=int, nargs="+", help="tell time and memory at these numbers of images instead")
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def batches(paths: Sequence[Path], *, threads: int) -> list[torch.Tensor]:
    """Decode, as each of the peers' scripts does: float (b, 3, size, size), 0 to 1."""
    pixels = load_images(paths, SIZE, None, threads=threads)
    return [torch.from_numpy(pixels[at: at + BATCH]) for at in range(0, len(pixels), BATCH)]


class Space(torch.nn.Module):
    """EfficientNet-Lite0 as torchmetrics wants a feature extractor."""

    num_features = 1280

    def __init__(self, encoder: EfficientNetLite0) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (b, height, width) or, where torchmetrics probes it, (b, 3, height, width) to float32 (b, 1280)."""
        return self.encoder.forward(images[:, 0] if images.ndim == 4 else images)


def peers(
    real: list[Path], made: list[Path], encoder: EfficientNetLite0, critic: Scores, *, threads: int
) -> list[float]:
    """FID, KID and the sum of nearest distances, by a script each."""
    space = Space(encoder)
    values = []
    for metric in (FrechetInceptionDistance(feature=space, normalize=False),
                   KernelInceptionDistance(feature=space, subsets=1, subset_size=min(len(real), len(made)))):
        for paths, is_real in ((real, True), (made, False)):
            for batch in batches(paths, threads=threads):
                metric.update(batch, real=is_real)
        value = metric.compute()
        values.append(float(value[0] if isinstance(value, tuple) else value))
    for batch in batches(made, threads=threads):
        critic.read(batch.numpy())
    sides = [np.concatenate([encoder.read(batch.numpy()) for batch in batches(paths, threads=threads)])
             for paths in (real, made)]
    distances, _ = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(sides[0]).kneighbors(sides[1])
    return [*values, float(distances.sum())]


def tailfill(
    real: list[Path], made: list[Path], encoder: EfficientNetLite0, critic: Scores, *, cache: Path, threads: int
) -> list[float]:
    """The same by one pass."""
    pixels = load_images(real, SIZE, cache, threads=threads)
    sides: dict[str, tuple[Source, list[Reader]]] = {
        "real": (Source(name="real", digests=pixel_digests(pixels), load=lambda rows: np.asarray(pixels[list(rows)])),
                 [encoder]),
        "made": (Source(name="made", digests=file_digests([hash_file(path) for path in made]),
                        load=lambda rows: np.stack([read_grey(made[row], SIZE) for row in rows])), [encoder, critic]),
    }
    features = {}
    for name, (source, readers) in sides.items():
        read(source, readers, cache)
        features[name] = collect(source, readers, cache)[encoder.name]
    distances, _ = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(features["real"]).kneighbors(features["made"])
    return [frechet_distance(real=features["real"], fake=features["made"]),
            kernel_distance(real=features["real"], fake=features["made"]), float(distances.sum())]


def timed(function: Callable[[], list[float]]) -> tuple[float, list[float]]:
    """Wall seconds and the result."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Rounds of all three ways, and what they say of speed and of agreement."""
    pixels = real_images(2 * options.images, SIZE)
    paths = [folder / f"{i}.png" for i in range(len(pixels))]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    real, made = paths[: options.images], paths[options.images:]
    encoder, critic = EfficientNetLite0(), Scores()
    encoder.read(pixels[:BATCH])  # the first call sets up kernels
    seconds: dict[str, list[float]] = {"peers": [], "cold": [], "real side cached": []}
    results: dict[str, list[float]] = {}
    for number in range(options.rounds):
        cold, warm = folder / f"cold{number}", folder / f"warm{number}"
        tailfill(real, made[:2], encoder, critic, cache=warm, threads=options.threads)
        ways: dict[str, Callable[[], list[float]]] = {
            "peers": partial(peers, real, made, encoder, critic, threads=options.threads),
            "cold": partial(tailfill, real, made, encoder, critic, cache=cold, threads=options.threads),
            "real side cached": partial(tailfill, real, made, encoder, critic, cache=warm, threads=options.threads),
        }
        for name, way in ways.items():
            spent, results[name] = timed(way)
            seconds[name].append(spent)
    for name, spent_by_round in seconds.items():
        ratios = [peer / own for peer, own in zip(seconds["peers"], spent_by_round, strict=True)]
        rate = options.images / statistics.median(spent_by_round)
        sys.stdout.write(f"{name:18} {rate:7.1f} images/s  {statistics.median(ratios):5.2f} times as fast "
                         f"({min(ratios):.2f} to {max(ratios):.2f})   FID {results[name][0]:.4f}  "
                         f"KID {results[name][1]:.6f}  nearest {results[name][2]:.2f}\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, or tell the scale."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    tqdm.monitor_interval = 0
    if options.alone:
        tell_scale(options.alone)
    elif options.scale:
        for n in options.scale:
            subprocess.run([sys.executable, __file__, "--alone", str(n)], check=True)
    else:
        with tempfile.TemporaryDirectory(prefix="tailfill_bench_") as folder:
            compare(options, Path(folder))


if __name__ == "__main__":
    main()
