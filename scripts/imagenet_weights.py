"""ImageNet's EfficientNet-Lite0 as a file for ``train.pretrained``, under timm's names, without the model hub.

The weights are those that the fidelity encoder uses and come as an ordinary package (synth/measuring/encoders.py). So
a classifier that starts from them shares its origin with that encoder: read FID, KID and the rules of realism with that
in mind, or name another encoder (``filter.encoders``).

::

    python scripts/imagenet_weights.py runs/lite0.safetensors
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from classify.learning.models import save_weights
from cohort.errors import run_command
from synth.measuring.encoders import load_lite0


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the file; ``TailfillError`` where the package is not installed or not the known one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="safetensors to write, for the model tf_efficientnet_lite0")
    save_weights(load_lite0().state_dict(), parser.parse_args(arguments).out)


if __name__ == "__main__":
    run_command(main)
