"""How networks are executed changes nothing but rounding: layout, compiled blocks, remembered text, chunks."""

import copy

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from tiny_pipeline import tiny_pipeline

from cohort.errors import TailfillError
from synth.drawing import execution

CPU = torch.device("cpu")


def inputs(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, 8, 8, generator=random), torch.randn(n, 77, 16, generator=random)


@torch.no_grad()
def predict(unet: torch.nn.Module, latents: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    prediction: torch.Tensor = unet(latents, 500, encoder_hidden_states=text, return_dict=False)[0]
    return prediction


def test_remembered_text_gives_the_same_bits_whatever_came_before() -> None:
    plain, counts = tiny_pipeline().unet, []
    fast = copy.deepcopy(plain)
    attention = next(module for module in fast.modules() if getattr(module, "is_cross_attention", False))
    project = attention.to_k.forward
    attention.to_k.forward = lambda text: (counts.append(len(text)), project(text))[1]
    execution.remember_text(fast)
    for seed in range(3):  # texts of one shape, each gone before the next: memory is used again
        latents, text = inputs(4, seed)
        for part in (text, text, text[2:], text[2:], text):  # as under guidance, outside of it, and under it again
            assert torch.equal(predict(fast, latents[:len(part)], part), predict(plain, latents[:len(part)], part))
    assert counts == [4, 2, 4] * 3


@pytest.mark.parametrize(("size", "chunks"), [(2, [2, 2, 1]), (5, [5]), (8, [5])])
def test_decoding_in_chunks_bounds_what_is_decoded_at_once(size: int, chunks: list[int]) -> None:
    vae, seen = tiny_pipeline().vae, []
    latents = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = vae.decode(latents, return_dict=False)[0]
        vae.decoder.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
        execution.decode_in_chunks(vae, size)
        torch.testing.assert_close(vae.decode(latents, return_dict=False, generator=None)[0], whole, atol=1e-5, rtol=0)
    assert seen == chunks


def test_channels_last_changes_rounding_only() -> None:
    plain = tiny_pipeline().unet
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    assert last.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(predict(last, *inputs(2, 0)), predict(plain, *inputs(2, 0)), atol=1e-5, rtol=0)


def test_blocks_are_compiled_one_by_one_and_change_rounding_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "probe_compiler", lambda _: None)
    plain = tiny_pipeline().unet
    compiled = copy.deepcopy(plain)
    kinds = [type(module).__name__ for module in plain.modules()]
    assert execution.compile_regions(compiled, CPU, backend="aot_eager") == sum(
        kinds.count(name) for name in ("ResnetBlock2D", "BasicTransformerBlock")) > 2
    for n in (4, 2):  # with guidance and without
        torch.testing.assert_close(predict(compiled, *inputs(n, n)), predict(plain, *inputs(n, n)), atol=1e-5, rtol=0)


def test_a_block_compiles_with_the_compiler_at_hand() -> None:
    missing = execution.probe_compiler(CPU)
    if missing:
        pytest.skip(missing)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = ResnetBlock2D(in_channels=8, out_channels=8, temb_channels=None, groups=4).eval()
    latents = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = block(latents, None)
        assert execution.compile_regions(block, CPU) == 1
        torch.testing.assert_close(block(latents, None), plain, atol=1e-5, rtol=0)


def test_missing_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "probe_compiler", lambda _: "no C++ compiler")
    with pytest.raises(TailfillError, match=r"generate.compile is on, which does not work here: no C\+\+ compiler"):
        execution.compile_regions(tiny_pipeline().unet, CPU)
