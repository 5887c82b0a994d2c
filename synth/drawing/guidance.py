"""Classifier-free guidance in an interval of the schedule (Kynkaanniemi et al., 2404.07724), for every family.

Under guidance a pipeline stacks its batch twice, unconditional half first, and adds ``scale`` times the difference of
the two predictions to the first. Outside the interval only the second half is computed, and its prediction is handed
back twice: the difference is then exactly zero and the pipeline's sum is the conditional prediction, bit for bit. So
the pipeline's own loop stays as it is, whatever its family, and half the work of those steps is saved.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def guided_steps(interval: tuple[float, float], n_steps: int) -> tuple[int, int]:
    """First guided step and the first one after the interval, of ``n_steps`` counted from pure noise."""
    return round(interval[0] * n_steps), round(interval[1] * n_steps)


@contextmanager
def guidance_between(model: torch.nn.Module, *, start: int, stop: int, n_images: int, step: int = 0) -> Iterator[None]:
    """In this context ``model`` skips the unconditional half of its batch outside of steps ``start`` to ``stop``.

    Args:
        model: a denoiser that takes the batch first and returns a tuple of tensors, called once a step.
        start, stop: first guided step, and the first one after it.
        n_images: images of the batch; a call with another number than twice as many is left alone.
        step: the number of the first step, where a schedule is entered late.
    """
    halved = False

    def enter(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        nonlocal step, halved
        halved = not start <= step < stop and len(args[0]) == 2 * n_images
        step += 1
        return _second_half((args, kwargs), n_images) if halved else (args, kwargs)

    def leave(_: torch.nn.Module, __: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return tuple(torch.cat([part, part]) for part in output) if halved else output

    hooks = [model.register_forward_pre_hook(enter, with_kwargs=True), model.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _second_half(value: Any, n_images: int) -> Any:
    """``value`` with every tensor in it that is ``2 * n_images`` long cut to its second half."""
    if isinstance(value, torch.Tensor):
        return value[n_images:] if value.ndim and len(value) == 2 * n_images else value
    if isinstance(value, dict):
        return {key: _second_half(part, n_images) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_second_half(part, n_images) for part in value)
    return value
