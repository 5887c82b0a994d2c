"""Which implementation computes attention: chosen by name, proved by a real call, and told with the reason.

All compute the same softmax(q k^T) v, in other orders of summation: images agree to rounding. ``auto`` takes xFormers
only where a call to it succeeds on this device in this precision, since installed does not mean that it works (its
wheels are built against one version of torch). Everything else is torch's own scaled dot product attention, left to
choose its kernel (``sdpa``) or held to one of them.
"""

import functools
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from cohort.errors import TailfillError

KERNELS: dict[str, SDPBackend] = {
    "flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION, "eager": SDPBackend.MATH,
}
"""Name to the one kernel that torch may then use; ``eager`` forms the whole matrix q k^T."""
ATTENTION = ("auto", "xformers", "sdpa", *KERNELS)
PROBE_ERRORS = (ImportError, OSError, RuntimeError, NotImplementedError, ValueError, AttributeError)


def set_attention(model: Any, wanted: str, *, device: torch.device, dtype: torch.dtype, masked: bool) -> str:
    """Make a denoiser attend as ``wanted``; returns what was taken and why.

    Args:
        model: a denoiser of diffusers on ``device``.
        wanted: one of ``ATTENTION``.
        device, dtype: what it computes on and in.
        masked: whether it attends to the text through a mask.

    Raises:
        TailfillError: an implementation asked for by name fails its call.
    """
    taken, why = choose_attention(wanted, device=device, dtype=dtype, masked=masked)
    if taken == "xformers":
        model.enable_xformers_memory_efficient_attention()
    elif taken in KERNELS:
        _hold_to(model, KERNELS[taken])
    return f"{taken} ({why})"


def choose_attention(wanted: str, *, device: torch.device, dtype: torch.dtype, masked: bool) -> tuple[str, str]:
    """The implementation to use and why; arguments and errors as ``set_attention``."""
    if wanted == "sdpa":
        return "sdpa", "asked for"
    tried = "xformers" if wanted == "auto" else wanted
    failure = probe(tried, device=device, dtype=dtype, masked=masked)
    if failure is None:
        return tried, "its attention ran on this device"
    if wanted == "auto":
        return "sdpa", f"xFormers: {failure}"
    raise TailfillError(f"generate.attention is '{wanted}', which does not work here: {failure}; use auto or sdpa")


def probe(name: str, *, device: torch.device, dtype: torch.dtype, masked: bool) -> str | None:
    """None when attention by ``name`` (not ``auto``) runs on ``device``, else why it does not."""
    if name == "xformers" and device.type != "cuda":
        return f"needs CUDA, and this is {device.type}"
    if name == "xformers" and masked:
        return "its kernels want masks of a length that this pipeline's texts do not have"
    query = torch.zeros(1, 8, 8, 32, device=device, dtype=dtype)
    mask = torch.zeros(1, 1, 8, 8, device=device, dtype=dtype) if masked else None
    try:
        if name == "xformers":
            from xformers.ops import memory_efficient_attention

            memory_efficient_attention(query, query, query)
        else:
            with sdpa_kernel(KERNELS[name]):
                scaled_dot_product_attention(query, query, query, attn_mask=mask)
    except PROBE_ERRORS as error:
        return " ".join(str(error).split())[:200]
    return None


def _hold_to(model: Any, kernel: SDPBackend) -> None:
    forward = model.forward

    @functools.wraps(forward)
    def held(*args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(kernel):
            return forward(*args, **kwargs)

    model.forward = held
