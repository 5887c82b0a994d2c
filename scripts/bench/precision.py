"""Which precision and memory layout to train in on this machine: seconds per step, as ratios to float32, NCHW.

The three networks of ``configs/nih128.yaml`` at its sizes, random weights and images, taken in turn in each of several
rounds, so that a host whose speed drifts slows all of them alike. What counts is the ratio within a round; its median
is printed with its range.

    python scripts/bench/precision.py [--rounds 5] [--threads 2]
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import timm
import torch
from torch import nn

from synth.learning.coding import AutoencoderConfig, build_autoencoder
from synth.learning.fresh import FreshConfig, build_pipeline

WAYS = {
    "float32": (False, torch.contiguous_format), "float32, channels last": (False, torch.channels_last),
    "bf16": (True, torch.contiguous_format), "bf16, channels last": (True, torch.channels_last),
}
Forward = Callable[[nn.Module, torch.Tensor], torch.Tensor]


def networks() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Forward]]:
    """Name -> how it is built, the shape of a batch, and a forward pass."""
    autoencoder = AutoencoderConfig()
    text = torch.randn(32, 77, FreshConfig().text_width)

    def unet() -> nn.Module:
        pipeline = build_pipeline(FreshConfig(block_out_channels=(64, 96, 160)), build_autoencoder(autoencoder), ["a"])
        model: nn.Module = pipeline.unet
        return model

    return {
        "autoencoder, 12 images of 128 px": (
            lambda: build_autoencoder(autoencoder), (12, 1, 128, 128),
            lambda model, x: model.decode(model.encode(x).latent_dist.mode()).sample),
        "U-Net, 32 latents of 16x16": (
            unet, (32, autoencoder.latent_channels, 16, 16),
            lambda model, x: model(x, torch.full((len(x),), 500), encoder_hidden_states=text).sample),
        "ConvNeXt-femto, 32 images of 128 px": (
            lambda: timm.create_model("convnext_femto", in_chans=1, num_classes=14), (32, 1, 128, 128),
            lambda model, x: model(x)),
    }


def step_seconds(model: nn.Module, images: torch.Tensor, forward: Forward, *, bf16: bool) -> float:
    """Seconds of one forward and backward pass."""
    began = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = forward(model, images)
    output.float().square().mean().backward()
    model.zero_grad(set_to_none=True)
    return time.perf_counter() - began


def main() -> None:
    """Time every network in every way, round by round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds after one that is not counted")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name, (build, shape, forward) in networks().items():
        model = build()
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for round_ in range(options.rounds + 1):
            for way, (bf16, layout) in WAYS.items():
                model.to(memory_format=layout)
                images = torch.randn(shape).to(memory_format=layout)
                took = step_seconds(model, images, forward, bf16=bf16)
                if round_:
                    seconds[way].append(took)
        sys.stdout.write(f"{name}: float32 takes {statistics.median(seconds['float32']):.2f} s a step\n")
        for way in list(WAYS)[1:]:
            ratios = [base / took for base, took in zip(seconds["float32"], seconds[way], strict=True)]
            sys.stdout.write(f"  {way:24} {statistics.median(ratios):5.2f} times as fast "
                             f"({min(ratios):.2f} to {max(ratios):.2f})\n")


if __name__ == "__main__":
    main()
