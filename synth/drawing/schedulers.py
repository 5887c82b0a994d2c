"""Schedulers by name, and what a checkpoint was trained with kept: betas, prediction type, spacing, shift.

A checkpoint that predicts a flow (Sana) has a scale of noise of its own, so the same names then mean the flow's form of
the same solver; a name without one is an error, because the images would be noise.
"""

from typing import Any

import diffusers

from cohort.errors import TailfillError

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "dpm++_karras": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
    "dpm++_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "lcm": ("LCMScheduler", {"clip_sample": False}),
}
"""Name to diffusers class and what is set on top of the checkpoint's own scheduler config."""

_FLOW_SIGMAS = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
FLOW_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2, **_FLOW_SIGMAS}),
    "dpm++_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", **_FLOW_SIGMAS}),
    "unipc": ("UniPCMultistepScheduler", _FLOW_SIGMAS),
    "euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "heun": ("FlowMatchHeunDiscreteScheduler", {}),
}
"""The same for checkpoints that predict a flow."""


def set_scheduler(pipeline: Any, name: str) -> None:
    """Exchange the scheduler for ``SCHEDULERS[name]``, keeping the config that the checkpoint was trained with.

    Raises ``TailfillError`` when the checkpoint predicts a flow and the scheduler has no form for it.
    """
    config = pipeline.scheduler.config
    flow = predicts_flow(pipeline.scheduler)
    if flow and name not in FLOW_SCHEDULERS:
        raise TailfillError(f"generate.scheduler is '{name}', which cannot follow the flow that this checkpoint "
                            f"predicts; wanted: one of {', '.join(FLOW_SCHEDULERS)}")
    kind, settings = (FLOW_SCHEDULERS if flow else SCHEDULERS)[name]
    if flow:  # two names for one quantity
        shift = config.get("flow_shift", config.get("shift", 1.0))
        settings = {**settings, "shift" if kind.startswith("FlowMatch") else "flow_shift": shift}
    pipeline.scheduler = getattr(diffusers, kind).from_config(config, **settings)


def predicts_flow(scheduler: Any) -> bool:
    """Whether a checkpoint's scheduler is one for flow matching (Lipman et al. 2022; Liu et al. 2022)."""
    return type(scheduler).__name__.startswith("FlowMatch") or bool(scheduler.config.get("use_flow_sigmas"))
