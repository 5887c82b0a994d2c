"""The most memory that a process has held since a moment, in MiB."""

import re
from pathlib import Path

import torch


def reset_peak(device: torch.device) -> None:
    """Count from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM, see proc(5)


def peak_mebibytes(device: torch.device) -> float:
    """On a GPU what torch has allocated, on a CPU the whole process (Linux only)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return int(found[1]) / 2**10 if found else float("nan")
