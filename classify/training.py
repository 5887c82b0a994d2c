"""What every training shares: an accelerator with a tracker, and checkpoints to stop and go on from.

One checkpoint file per training run, written under a temporary name and renamed.

Batches, noise and timesteps are drawn from generators seeded by (seed, step), so a resumed run needs no generator
state: weights, optimiser and step are all, and it ends at the same bits as an uninterrupted one on one device type
and thread count.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from cohort.config import Run
from cohort.errors import TailfillError
from cohort.stage import write_atomically

CHECKPOINT = "checkpoint.pt"


def start_accelerator(run: Run, folder: Path, precision: str) -> Accelerator:
    """An accelerator with the run's tracker writing below ``folder``; ``TailfillError`` if it cannot be had."""
    if precision not in ("no", "bf16", "fp16"):
        raise TailfillError(f"precision is '{precision}'; wanted: no, bf16 or fp16")
    torch.set_num_threads(run.threads)
    try:
        return Accelerator(mixed_precision=precision, log_with=None if run.tracker == "none" else run.tracker,
                           project_dir=str(folder))
    except ValueError as error:
        raise TailfillError(f"tracker '{run.tracker}', precision '{precision}': {error}") from error


def save_checkpoint(file: Path, *, step: int, **states: Any) -> None:
    """Write the number of finished steps and the state dicts, atomically."""
    buffer = io.BytesIO()
    torch.save({"step": step, **states}, buffer)
    write_atomically(file, buffer.getvalue())


def load_checkpoint(file: Path) -> dict[str, Any] | None:
    """The last checkpoint, on the CPU, or None; a broken file raises ``TailfillError``. Tensors and numbers only."""
    if not file.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a damaged file; all mean the same to the user
        raise TailfillError(f"{file}: is no readable checkpoint ({error}); move it away to start again") from error
    return state


def step_generator(seed: int, step: int, *, rank: int = 0) -> torch.Generator:
    """A CPU generator for one step on one rank, independent of every other step's."""
    state = np.random.SeedSequence([seed, step, rank]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 32 | int(state[1]))
