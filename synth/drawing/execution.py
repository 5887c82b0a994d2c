"""How a pipeline's networks are executed: precision, layout, compiled regions, text projected once, decoding in chunks.

Precision changes what comes out and is part of a run's identity; the rest changes an image by rounding only. Layout and
compilation pay on some machines and cost on others: measure (``scripts/bench/generate.py``), then choose. Training is
another matter: there channels last brought nothing (``NOTES.md``).
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

from classify.learning.training import probe_compiler
from cohort.errors import TailfillError

PRECISIONS: dict[str, torch.dtype] = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
REGIONS = ("BasicTransformerBlock", "ResnetBlock2D", "SanaTransformerBlock")
"""Classes of blocks that are compiled one by one: what a U-Net (and the decoder of its autoencoder), PixArt's and
Sana's transformer repeat. diffusers' ``compile_repeated_blocks`` knows the first of them only, and no transformer of
these families."""
COMPILED_SHAPES = 64
"""Input shapes that one kind of block may be compiled for: those of a large U-Net, with guidance and without."""


def reduce_precision(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Run ``model`` in ``dtype`` between float32 latents: its inputs are cast, and its prediction is cast back."""
    if dtype == torch.float32:
        return

    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    def enter(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        # important: not the timestep, which bf16 would round by up to 4 of 1,000
        return (tuple(cast(arg) if place == 0 else arg for place, arg in enumerate(args)),
                {key: value if key == "timestep" else cast(value) for key, value in kwargs.items()})

    def leave(_: torch.nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        return tuple(part.float() for part in output) if isinstance(output, tuple) else output

    model.to(dtype)
    model.register_forward_pre_hook(enter, with_kwargs=True)
    model.register_forward_hook(leave)


def compile_regions(model: torch.nn.Module, device: torch.device, *, backend: str = "inductor") -> int:
    """Compile every block of ``REGIONS`` in ``model`` when it is first called, for fixed shapes; returns their number.

    ``backend`` is torch.compile's. Compiling equal blocks rather than the whole takes minutes less and is as fast
    (regional compilation). Raises ``TailfillError`` when a probe does not compile: a C++ compiler (CPU) or Triton
    (CUDA) is then missing.
    """
    failure = probe_compiler(device)
    if failure is not None:
        raise TailfillError(f"generate.compile is on, which does not work here: {failure}")
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_SHAPES)
    blocks = [module for module in model.modules() if type(module).__name__ in REGIONS]
    for block in blocks:
        block.compile(dynamic=False, backend=backend)
    return len(blocks)


def remember_text(model: torch.nn.Module) -> None:
    """Let the cross-attention of a U-Net project its text to keys and values once per text, not once per step.

    A text stays where it is from step to step, and the same input gives the same result, bit for bit. Saves 6 % of a
    U-Net of 16 x 16 latents, where 77 tokens of text are more than most levels have of the image; less of larger ones.
    """
    for module in model.modules():
        if getattr(module, "is_cross_attention", False):
            for name in ("to_k", "to_v"):
                projection = getattr(module, name)
                projection.forward = _remembered(projection.forward)


def _remembered(forward: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    last: list[torch.Tensor] = []

    @functools.wraps(forward)
    def remembered(text: torch.Tensor) -> torch.Tensor:
        # the memory of the last text is held here, so that no other tensor can come to lie in it
        if not last or (text.data_ptr(), text.shape, text.dtype) != (last[0].data_ptr(), last[0].shape, last[0].dtype):
            last[:] = [text, forward(text)]
        return last[1]

    return remembered


def decode_in_chunks(vae: Any, size: int) -> None:
    """Make an autoencoder decode at most ``size`` images at a time, so that memory does not grow with the batch.

    A decoder holds the image's full resolution in many channels: it needs far more memory per image than a denoiser.
    ``vae.decode`` then returns a tuple, as pipelines ask of it (``return_dict=False``), and raises ``MemoryError`` when
    memory runs out: Sana's pipeline keeps torch's own error to itself and trips over the missing image.
    """
    decode_all = vae.decode

    def decode(z: torch.Tensor, *, return_dict: bool = False, **options: Any) -> tuple[torch.Tensor]:
        try:
            return (torch.cat([decode_all(part, return_dict=False, **options)[0] for part in z.split(size)]),)
        except torch.OutOfMemoryError as error:
            raise MemoryError(str(error)) from error

    vae.decode = decode
