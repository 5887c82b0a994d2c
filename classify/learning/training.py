"""What every training shares: an accelerator with a tracker, and checkpoints to stop and go on from.

One checkpoint file per training run, written under a temporary name and renamed: a kill leaves the last whole one.

Batches, noise and timesteps are drawn from generators seeded by (seed, step), so a resumed run needs no generator
state: weights, optimiser and step are all, and it ends at the same bits as an uninterrupted one on one device type
and thread count.
"""

import math
import resource
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from cohort.config import Run
from cohort.errors import TailfillError
from cohort.stage import PARTIAL

CHECKPOINT = "checkpoint.pt"
LONGEST_WAIT = timedelta(hours=12)
"""How long processes wait for the main one, which alone reads images and validates; 10 minutes by default on GPUs."""


def start_accelerator(run: Run, folder: Path, precision: str) -> Accelerator:
    """An accelerator with the run's tracker writing below ``folder``; ``TailfillError`` if it cannot be had."""
    torch.set_num_threads(run.threads)
    if precision == "fp16" and not torch.accelerator.is_available():  # accelerate would train in float32 in silence
        raise TailfillError("precision is 'fp16', which needs a GPU; wanted: no or bf16")
    try:
        return Accelerator(
            mixed_precision=precision, log_with=None if run.tracker == "none" else run.tracker, project_dir=str(folder),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)])
    except ValueError as error:
        raise TailfillError(f"tracker '{run.tracker}', precision '{precision}': {error}") from error


def check_precision(precision: str, *, key: str) -> None:
    """Raise ``TailfillError`` for what no training here can do; fp16 would need its gradients scaled."""
    if precision not in ("no", "bf16"):
        raise TailfillError(f"{key} is '{precision}'; wanted: no or bf16")


def probe_compiler(device: torch.device) -> str | None:
    """None when a compiled function runs on ``device``, else why it does not."""
    try:
        torch.compile(lambda x: torch.nn.functional.silu(x) + 1)(torch.zeros(8, device=device))
    except Exception as error:  # the compiler's errors have no class in common
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None


def share_batch(batch_size: int, parts: int, *, key: str) -> int:
    """Images of a batch for each of ``parts`` passes; raises ``TailfillError`` when they do not come out even."""
    if batch_size % parts:
        raise TailfillError(f"{key} is {batch_size}; wanted: a multiple of {parts} (processes x accumulation)")
    return batch_size // parts


def check_finite(loss: float, *, step: int, stage: str) -> None:
    """Raise ``TailfillError`` when training has diverged: its weights are of no use, and nothing is stamped."""
    if not math.isfinite(loss):
        raise TailfillError(f"{stage}: the loss is {loss} at step {step}; lower the learning rate")


def peak_memory(device: torch.device) -> float:
    """Most memory that this process has held so far, in MiB: on a GPU its tensors there, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def save_checkpoint(file: Path, *, step: int, **states: Any) -> None:
    """Write the number of finished steps and the state dicts, atomically; ``TailfillError`` when the disk is full."""
    partial = file.with_name(f".{file.name}{PARTIAL}")  # one name: what a kill leaves half written, the next overwrites
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"step": step, **states}, partial)
        partial.replace(file)
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter
        raise TailfillError(f"{file}: cannot be written: {error}; the checkpoint before it is kept, so mend this and "
                            "give the same command again") from error
    finally:
        partial.unlink(missing_ok=True)


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
