"""How fast a classifier is trained: Tailfill's loop against the same training written the usual way.

Both train the same timm model for as many steps of as many radiographs, drawn on the spot and written as PNGs, with the
asymmetric loss, AdamW, a clipped gradient and a moving average, in the same precision. The usual way is that of timm's
train script: a ``DataLoader`` whose workers decode the files anew each epoch, torchvision's transforms, and timm's
``AsymmetricLossMultiLabel``. Ours decodes once, into 8-bit grey arrays, and distorts whole batches on the device. The
two take turns, round by round, so that a host whose speed drifts slows both alike; what counts is the ratio within a
round, of wall time and of processor time, workers included: where others are at work on the machine, three processes
get more of it than one, and wall time flatters the workers. They start, and both sides warm up, before any round.

Told besides: how much of a step each side spends on its batch (ours: all but the network and the optimiser, run alone;
the usual way: waiting for its workers), what decoding once has cost, and the most memory that a round held: this
process's, and what its workers hold for themselves. PNGs are of the model's own size unless ``--stored`` says
otherwise, which spares the usual way the resizing. Not promised: the same numbers with many cores, where workers cost
nothing, or on a GPU that waits for them.

    python scripts/bench/train.py [--rounds 5] [--precision bf16] [--stored 512]
"""

import argparse
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import timm
import torch
from accelerate import Accelerator
from peak_memory import peak_mebibytes, reset_peak
from PIL import Image
from timm.loss import AsymmetricLossMultiLabel
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from classify.learning.fitting import Recipe, feed_pixels, fit, learning_rate, pass_loss
from classify.learning.losses import asl
from classify.learning.models import Card
from classify.slots import BRIGHTNESS, CONTRAST, ROTATION_DEGREES, SCALE, TRANSLATION, Slots, grey_statistics
from cohort.phantom.cases import draw_cases
from cohort.phantom.radiograph import render
from cohort.phantom.settings import PhantomConfig
from cohort.pixels import load_images

SEED = 91
WARM_UP = 2
"""Steps of either side before the first round."""


@dataclass(frozen=True, kw_only=True)
class Radiographs:
    """What both sides train on."""

    paths: list[Path]
    labels: np.ndarray
    """float32 (n, n_labels), 1 or 0."""
    card: Card
    pixels: np.ndarray
    """uint8 (n, size, size), as our side has them."""
    seconds: float
    """What decoding them once has cost."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """One side's round."""

    seconds: float
    processor_seconds: float
    """Of all threads and workers."""
    batch_seconds: float
    """Spent on batches: see the module's docstring."""
    mebibytes: float


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="convnext_femto", help="any timm model")
    parser.add_argument("--size", type=int, default=128, help="px of the model's input")
    parser.add_argument("--stored", type=int, help="px of the files; the same by default")
    parser.add_argument("--images", type=int, default=256, help="radiographs")
    parser.add_argument("--batch", type=int, default=32, help="images per step")
    parser.add_argument("--steps", type=int, default=20, help="steps per round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; each trains both ways once")
    parser.add_argument("--precision", choices=("no", "bf16"), default="no", help="autocast")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--workers", type=int, default=2, help="the usual way's loader processes")
    options = parser.parse_args(arguments)
    for name in ("batch", "steps", "rounds", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}; wanted: 1 or more")
    if options.batch > options.images:  # a loader that drops what is no whole batch would have none
        parser.error(f"--batch is {options.batch}; wanted: no more than --images, {options.images}")
    return options


def draw(options: argparse.Namespace, folder: Path) -> Radiographs:
    """Radiographs of people who do not exist, as PNGs in ``folder``, and decoded."""
    config = PhantomConfig(seed=SEED, images=options.images)
    cases = list(islice(draw_cases(config), options.images))
    paths = [folder / f"{number}.png" for number in range(len(cases))]
    for path, case in zip(paths, cases, strict=True):
        Image.fromarray(render(case.exam, options.stored or options.size)).save(path)
    began = time.perf_counter()
    pixels = load_images(paths, options.size, None, threads=options.threads)
    seconds, (mean, std) = time.perf_counter() - began, grey_statistics(pixels)
    card = Card(model=options.model, labels=tuple(config.labels), image_size=options.size, mean=mean, std=std)
    return Radiographs(paths=paths, labels=np.array([case.labels for case in cases], dtype=np.float32), card=card,
                       pixels=pixels, seconds=seconds)


def new_model(card: Card) -> nn.Module:
    """The model that both begin with."""
    torch.manual_seed(SEED)
    model: nn.Module = timm.create_model(card.model, in_chans=1, num_classes=len(card.labels))
    return model


def make_recipe(options: argparse.Namespace, steps: int) -> Recipe:
    """What both sides train with."""
    return Recipe(name="train", seed=(SEED,), steps=steps, batch_size=options.batch, lr=1e-3, warmup_share=0.05,
                  weight_decay=0.05, ema_decay=0.995, grad_clip=1.0, phase_2_share=0.0, checkpoint_every=steps + 1)


def train_ours(data: Radiographs, recipe: Recipe, accelerator: Accelerator) -> Round:
    """Tailfill's loop on the decoded pixels; then its batches alone, with no network behind them."""
    n, device = len(data.pixels), accelerator.device
    slots = Slots(images=[data.pixels], index=np.arange(n), targets=data.labels, weights=np.ones(n, dtype=np.float32),
                  phase=np.ones(n, dtype=np.int64), added=np.zeros(n, dtype=bool))
    feed, loss = feed_pixels(data.card), asl(torch.zeros(len(data.card.labels)))
    model = new_model(data.card)
    reset_peak(device)
    began, used = time.perf_counter(), time.process_time()
    fit(model, slots, feed, loss, recipe=recipe, checkpoint=Path("none"), accelerator=accelerator)
    seconds, used, held = time.perf_counter() - began, time.process_time() - used, peak_mebibytes(device)
    silent = Silent(len(data.card.labels))
    began = time.perf_counter()
    for step in range(recipe.steps):
        pass_loss(silent, slots, feed, loss, recipe=recipe, step=step, number=0, accelerator=accelerator)
    accelerator.free_memory()  # it holds on to every model that it has prepared
    return Round(seconds=seconds, processor_seconds=used, batch_seconds=time.perf_counter() - began, mebibytes=held)


class Silent(nn.Module):
    """A network that costs nothing: logits of 0."""

    def __init__(self, n_labels: int) -> None:
        super().__init__()
        self.n_labels = n_labels

    def forward(self, images: Tensor) -> Tensor:
        """Images (batch, ...) to zeros (batch, n_labels)."""
        return images.new_zeros(len(images), self.n_labels)


class Files(Dataset[tuple[Tensor, Tensor]]):
    """The files as a torch dataset: decoded and distorted when they are asked for."""

    def __init__(self, data: Radiographs) -> None:
        self.paths, self.labels = data.paths, torch.from_numpy(data.labels)
        self.transform = v2.Compose([
            v2.Grayscale(), v2.Resize(data.card.image_size, antialias=True),
            v2.RandomAffine(ROTATION_DEGREES, (TRANSLATION, TRANSLATION), (1 - SCALE, 1 + SCALE),
                            interpolation=v2.InterpolationMode.BILINEAR),
            v2.ColorJitter(brightness=BRIGHTNESS, contrast=CONTRAST), v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True), v2.Normalize([data.card.mean], [data.card.std])])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        with Image.open(self.paths[place]) as image:
            return self.transform(image), self.labels[place]


def endless(data: Radiographs, options: argparse.Namespace) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of shuffled epochs; its workers live as long as it does."""
    loader = DataLoader(Files(data), batch_size=options.batch, shuffle=True, num_workers=options.workers,
                        drop_last=True, persistent_workers=options.workers > 0)
    while True:
        yield from loader


def train_usual(
    data: Radiographs, recipe: Recipe, batches: Iterator[tuple[Tensor, Tensor]], accelerator: Accelerator
) -> Round:
    """The usual loop; the steps are those of ``train_ours``."""
    device, waited, loss = accelerator.device, 0.0, AsymmetricLossMultiLabel(reduction="mean")
    model = new_model(data.card).to(device).train()
    optimizer = torch.optim.AdamW(param_groups_weight_decay(model, recipe.weight_decay), lr=0.0)
    ema = ModelEmaV3(model, decay=recipe.ema_decay, use_warmup=True)
    bf16 = accelerator.mixed_precision == "bf16"
    reset_peak(device)
    began, used = time.perf_counter(), processor_seconds()
    for step in range(recipe.steps):
        asked = time.perf_counter()
        images, targets = (part.to(device) for part in next(batches))
        waited += time.perf_counter() - asked
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
            logits = model(images)
        value = loss(logits.float(), targets)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model, step=step + 1)
    value.item()  # waits for the device
    workers = sum(map(own_mebibytes, multiprocessing.active_children()))
    return Round(seconds=time.perf_counter() - began, processor_seconds=processor_seconds() - used,
                 batch_seconds=waited, mebibytes=peak_mebibytes(device) + workers)


def processor_seconds() -> float:
    """Of this process and its children that live (Linux only)."""
    ticks = 0
    for process in multiprocessing.active_children():
        fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # utime and stime, see proc(5)
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def own_mebibytes(process: multiprocessing.process.BaseProcess) -> float:
    """Memory that a process shares with no other, MiB (Linux only)."""
    text = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
    return sum(int(size) for size in re.findall(r"Private_\w+:\s+(\d+) kB", text)) / 2**10


def main(arguments: Sequence[str] | None = None) -> None:
    """Rounds of both ways, and what they say."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    accelerator = Accelerator(mixed_precision=options.precision)
    with tempfile.TemporaryDirectory(prefix="tailfill_bench_") as folder:
        data = draw(options, Path(folder))
        batches = endless(data, options)
        recipe = make_recipe(options, options.steps)
        rounds: dict[str, list[Round]] = {"Tailfill": [], "the usual way": []}
        for number in range(options.rounds + 1):
            now = recipe if number else make_recipe(options, WARM_UP)
            both = {"Tailfill": train_ours(data, now, accelerator),
                    "the usual way": train_usual(data, now, batches, accelerator)}
            for name, done in both.items():
                rounds[name] += [done] if number else []
        batches.close()  # type: ignore[attr-defined]  # a generator; ends the workers
    tell(options, rounds, data)


def tell(options: argparse.Namespace, rounds: dict[str, list[Round]], data: Radiographs) -> None:
    """The medians, and the ratio with its range."""
    n = options.steps * options.batch
    sys.stdout.write(f"{options.model}, {options.size} px, {options.steps} steps of {options.batch} images, precision "
                     f"{options.precision}, {options.threads} threads, {options.workers} workers\n")
    for name, done in rounds.items():
        seconds, share = (statistics.median(values) for values in zip(
            *((each.seconds, each.batch_seconds / each.seconds) for each in done), strict=True))
        sys.stdout.write(f"{name:14} {n / seconds:7.1f} images/s   batches {share:6.1%} of a step   peak "
                         f"{max(each.mebibytes for each in done):6.0f} MiB\n")
    for kind in ("seconds", "processor_seconds"):
        ratios = [getattr(usual, kind) / getattr(ours, kind)
                  for usual, ours in zip(*reversed(rounds.values()), strict=True)]
        sys.stdout.write(f"Tailfill is {statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to "
                         f"{max(ratios):.2f}) in {'wall' if kind == 'seconds' else 'processor'} time\n")
    sys.stdout.write(f"Decoding the {len(data.paths)} images once took {data.seconds:.2f} s\n")


if __name__ == "__main__":
    main()
