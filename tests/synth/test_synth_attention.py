"""Implementations of attention: the same images, each proved by a call, and the reason told."""

import pytest
import tiny_families
import torch

from cohort.errors import TailfillError
from synth.drawing import attention, pipelines

CPU = torch.device("cpu")


def predictions(name: str, wanted: str) -> tuple[torch.Tensor, list[tuple[bool, bool]]]:
    """What a family's denoiser predicts for fixed inputs, and whether flash and math kernels were allowed inside."""
    pipeline = tiny_families.build(name)
    model = pipelines.denoiser(pipeline)
    masked = name == "pixart-sigma"
    told = attention.set_attention(model, wanted, device=CPU, dtype=torch.float32, masked=masked)
    assert told.startswith(wanted)
    allowed: list[tuple[bool, bool]] = []
    first = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
    first.register_forward_pre_hook(lambda *_: allowed.append(
        (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled())))
    random = torch.Generator().manual_seed(0)
    text = torch.randn(2, 7, 16, generator=random)
    extra = {"encoder_attention_mask": torch.tensor([[1] * 7, [1] * 3 + [0] * 4]),
             "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}} if masked else {}
    with torch.no_grad():
        prediction = model(torch.randn(2, 4, 8, 8, generator=random), timestep=torch.tensor([500, 500]),
                           encoder_hidden_states=text, return_dict=False, **extra)[0]
    return prediction, allowed


@pytest.mark.parametrize("name", ["sd1", "pixart-sigma"])
@pytest.mark.parametrize(("wanted", "kernels"), [("flash", (True, False)), ("eager", (False, True))])
def test_a_kernel_is_held_to_and_changes_rounding_only(name: str, wanted: str, kernels: tuple[bool, bool]) -> None:
    free, anything = predictions(name, "sdpa")
    held, allowed = predictions(name, wanted)
    assert (anything, allowed) == ([(True, True)], [kernels])
    torch.testing.assert_close(held, free, atol=1e-5, rtol=0)
    assert torch.backends.cuda.flash_sdp_enabled()  # and given free again
    assert torch.backends.cuda.math_sdp_enabled()


@pytest.mark.parametrize("wanted", ["xformers", "efficient", "cudnn"])
def test_what_fails_its_call_is_an_error_when_asked_for(wanted: str) -> None:
    with pytest.raises(TailfillError, match=f"attention is '{wanted}', which does not work here: "):
        attention.choose_attention(wanted, device=CPU, dtype=torch.float32, masked=False)


@pytest.mark.parametrize(("failure", "taken"), [(None, "xformers"), ("no such operator", "sdpa")])
def test_auto_takes_xformers_only_where_its_call_works(
    monkeypatch: pytest.MonkeyPatch, failure: str | None, taken: str
) -> None:
    monkeypatch.setattr(attention, "probe", lambda name, **_: failure)
    chosen, why = attention.choose_attention("auto", device=CPU, dtype=torch.float32, masked=False)
    assert chosen == taken
    assert failure is None or failure in why


def test_text_masks_are_no_work_for_xformers() -> None:
    told = attention.probe("xformers", device=torch.device("cuda"), dtype=torch.float16, masked=True)
    assert told is not None
    assert "masks" in told
