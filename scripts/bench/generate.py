"""How fast images are drawn, at what likeness: three ways on the same pipeline, texts and seeds, round by round.

- **loop**: what peers do: a short list of prompts per call, texts encoded each time, 75 PNDM steps, PNGs in between;
- **diffusers**: the pipeline's own call in batches of Tailfill's size, at its steps and scheduler;
- **Tailfill**: once at the same network evaluations as *diffusers*, once with guidance in an interval only.

The ways take turns within each round, so that a host whose speed drifts slows all of them alike; ratios are medians
over rounds with their range. KID is against real radiographs that no way has seen, with the interval of its half-sample
spread; the difference of two ways is taken on the same half-samples. Time inside the networks is wall time inside the
calls of the denoiser and the decoder.

::

    python scripts/bench/generate.py --images 256 --real 512
    python scripts/bench/generate.py --profile                   (and where the rest of the time goes)
    python scripts/bench/generate.py --device cuda --random-sd15 --precision bf16 --compile off on
        --attention sdpa xformers                                (one line; images/s of Tailfill in each setting)

Not promised: absolute speed on another machine, and on a GPU nothing yet: that part has not been run.
"""

import argparse
import cProfile
import itertools
import pstats
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import diffusers
import numpy as np
import torch
from generate_inputs import plan_rows, real_images, save_random_sd15
from generate_ways import PEERS_BATCH, PEERS_SCHEDULER, PEERS_STEPS, Diffusers, Job, Tailfill, Way
from peak_memory import peak_mebibytes, reset_peak
from PIL import Image

from synth.drawing.attention import ATTENTION
from synth.drawing.execution import PRECISIONS
from synth.drawing.parts import image_path
from synth.drawing.pipelines import DECODE_BATCH
from synth.drawing.sampling import Row
from synth.drawing.schedulers import SCHEDULERS
from synth.measuring.distances import kernel_distance
from synth.measuring.encoders import encode, make_encoder
from synth.measuring.fidelity import MIN_KID

LOOP, OWN, EQUAL, INTERVAL = "loop", "diffusers", "Tailfill, equal evaluations", "Tailfill"
GENERATOR = Path(__file__).parents[2] / "models" / "generator"
N_HALVES = 50
"""Half-samples for the interval of KID; its own relative error is then about 1 / sqrt(2 x 50) = 10 %."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", type=Path, default=GENERATOR, help="folder of a diffusers pipeline")
    parser.add_argument("--random-sd15", action="store_true", help="random weights of Stable Diffusion 1.5's sizes")
    parser.add_argument("--ways", nargs="+", choices=(LOOP, OWN, "tailfill"), default=[LOOP, OWN, "tailfill"])
    parser.add_argument("--images", type=int, default=32, help="images of each way")
    parser.add_argument("--rounds", type=int, default=2, help="parts that they are drawn in, by turns")
    parser.add_argument("--batch", type=int, default=16, help="images per call, but for the loop's 4")
    parser.add_argument("--steps", type=int, default=15, help="denoising steps, but for the loop's 75")
    parser.add_argument("--scheduler", choices=[*SCHEDULERS], default="dpm++")
    parser.add_argument("--scale", type=float, default=2.5, help="guidance scale")
    parser.add_argument("--interval", type=float, nargs=2, default=(0.2, 0.8), help="of the schedule, with guidance")
    parser.add_argument("--precision", choices=[*PRECISIONS], default="no",
                        help="of Tailfill's denoiser, and of all networks of the other two")
    parser.add_argument("--attention", nargs="+", choices=ATTENTION, default=["auto"], help="of Tailfill")
    parser.add_argument("--compile", nargs="+", choices=("off", "on"), default=["off"], help="of Tailfill")
    parser.add_argument("--channels-last", action=argparse.BooleanOptionalAction, default=True, help="of Tailfill")
    parser.add_argument("--decode-batch", type=int, default=DECODE_BATCH, help="of Tailfill")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--real", type=int, default=0, help=f"real images for KID, {MIN_KID} or more; 0 leaves it out")
    parser.add_argument("--profile", action="store_true", help="print where a batch of Tailfill spends its time")
    options = parser.parse_args(arguments)
    if options.real and min(options.images, options.real) < MIN_KID:
        parser.error(f"--images {options.images} --real {options.real}; wanted: {MIN_KID} or more of both for KID")
    return options


def make_ways(options: argparse.Namespace, folder: Path, rows: list[Row]) -> list[Way]:
    """The ways that were asked for, ready to draw."""
    job = Job(folder=folder, device=torch.device(options.device), scheduler=options.scheduler, steps=options.steps,
              scale=options.scale, batch=options.batch, precision=options.precision)
    ways: list[Way] = []
    if LOOP in options.ways:
        ways.append(Diffusers(name=LOOP, job=job, scheduler=PEERS_SCHEDULER, steps=PEERS_STEPS, batch=PEERS_BATCH))
    if OWN in options.ways:
        ways.append(Diffusers(name=OWN, job=job, scheduler=job.scheduler, steps=job.steps, batch=job.batch))
    if "tailfill" in options.ways:
        settings = list(itertools.product(options.attention, options.compile))
        for place, (attention, compiled) in enumerate(settings):
            chosen = {"attention": attention, "compiled": compiled == "on",
                      "channels_last": options.channels_last, "decode_batch": options.decode_batch}
            names = [(INTERVAL, tuple(options.interval))] + ([(EQUAL, (0.0, 1.0))] if place == 0 else [])
            for name, interval in names:
                told = f"{name} ({attention}, compile {compiled})" if place else name
                ways.append(Tailfill(name=told, job=job, rows=rows, interval=interval, options=chosen))
    return ways


def draw_in_turns(ways: list[Way], rows: list[Row], options: argparse.Namespace, out: Path) -> dict[str, list[float]]:
    """Seconds of every way in every round, after a batch of each that is not counted; its share of texts included."""
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    parts = [rows[number::options.rounds] for number in range(options.rounds)]
    for way in ways:
        way.draw(rows[:way.batch], out / way.name)
        way.meter.reset()
    for number, part in enumerate(parts):
        for way in ways[number % len(ways):] + ways[:number % len(ways)]:
            reset_peak(way.meter.device)
            began = way.meter.now()
            way.draw(part, out / way.name)
            seconds[way.name].append(way.meter.now() - began + way.text_seconds * len(part) / len(rows))
            way.meter.peak = max(way.meter.peak, peak_mebibytes(way.meter.device))
    return seconds


def tell(ways: list[Way], seconds: dict[str, list[float]], n_images: int) -> None:
    """The table of speeds."""
    sys.stdout.write(f"{'':34}  images/s  evaluations  in denoiser  in decoder  elsewhere  peak MiB"
                     f"    times as fast as {LOOP}, {OWN}\n")
    for way in ways:
        total, meter = sum(seconds[way.name]), way.meter
        shares = [100 * part / total for part in (meter.denoiser, meter.decoder)]
        ratios = [spread([base / own for base, own in zip(seconds[rival], seconds[way.name], strict=True)])
                  for rival in (LOOP, OWN) if rival in seconds]
        sys.stdout.write(f"{way.name:34} {n_images / total:9.2f} {meter.evaluations / n_images:12.1f} "
                         f"{shares[0]:10.1f} % {shares[1]:9.1f} % {100 - sum(shares):8.1f} % {meter.peak:9.0f}    "
                         f"{'   '.join(ratios)}\n")


def spread(values: list[float]) -> str:
    """The median with its range."""
    return f"{statistics.median(values):.2f} [{min(values):.2f} to {max(values):.2f}]"


def tell_likeness(ways: list[Way], rows: list[Row], real: np.ndarray, out: Path) -> None:
    """KID of every way with its interval, and what it differs by from the first one's, on the same half-samples."""
    encoder, rng = make_encoder("efficientnet_lite0"), np.random.default_rng(0)
    reals = encode(encoder, real, description="encode real images")
    made = {way.name: encode(encoder, read_images(out / way.name, rows), description=way.name) for way in ways}
    values = {name: kernel_distance(real=reals, fake=fake) for name, fake in made.items()}
    halves: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(N_HALVES):
        left = rng.choice(len(reals), len(reals) // 2, replace=False)
        right = rng.choice(len(rows), len(rows) // 2, replace=False)
        for name, fake in made.items():
            halves[name].append(kernel_distance(real=reals[left], fake=fake[right]))
    first = ways[0].name
    for name, value in values.items():
        margin = 1.96 * np.std(halves[name], ddof=1)
        apart = 1.96 * np.std(np.subtract(halves[name], halves[first]), ddof=1)
        sys.stdout.write(f"{name:34} KID {value:.4f} ({value - margin:.4f} to {value + margin:.4f}); minus {first}'s "
                         f"{value - values[first]:+.4f} ({value - values[first] - apart:+.4f} to "
                         f"{value - values[first] + apart:+.4f})\n")


def read_images(folder: Path, rows: list[Row]) -> np.ndarray:
    """The PNGs of ``rows``, uint8 (n, height, width); of colours the mean, as Tailfill's grey."""
    made = [np.asarray(Image.open(folder / image_path(row.sample_id))) for row in rows]
    return np.stack([image if image.ndim == 2 else image.mean(axis=2).round().astype(np.uint8) for image in made])


def tell_profile(way: Way, rows: list[Row], out: Path) -> None:
    """Where one batch spends its time outside of the networks: functions of our own, of pipelines and schedulers."""
    profile = cProfile.Profile()
    profile.runcall(way.draw, rows, out / "profile")
    pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(
        r"synth.drawing|diffusers.(pipelines|schedulers|image_processor)|PIL|pyarrow|posix", 25)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw by turns, then tell."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    rows = plan_rows(options.images)
    out = Path(tempfile.mkdtemp(prefix="tailfill_bench_"))
    try:
        folder = options.pipeline
        if options.random_sd15:
            folder = out / "pipeline"
            save_random_sd15(folder, [row.prompt for row in rows])
        ways = make_ways(options, folder, rows)
        tell(ways, draw_in_turns(ways, rows, options, out), len(rows))
        if options.real:
            size = Image.open(out / ways[0].name / image_path(rows[0].sample_id)).height
            tell_likeness(ways, rows, real_images(options.real, size), out)
        if options.profile:
            tell_profile(next(way for way in ways if way.name == INTERVAL), rows[:options.batch], out)
    finally:
        shutil.rmtree(out)


if __name__ == "__main__":
    main()
