"""Sampling: the pipeline's own images, whatever the batch; a fault costs what it must and no more."""

import gc
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file, save_file
from tiny_pipeline import save_tiny_lora, save_tiny_pipeline, tiny_pipeline

from cohort.errors import TailfillError
from synth.drawing import guidance, parts, pipelines, sampling, schedulers, texts

TWO_ROWS = [
    sampling.Row(sample_id="a" * 16, prompt="chest radiograph with hernia", negative_prompt="old", seed=1),
    sampling.Row(sample_id="b" * 16, prompt="no effusion", negative_prompt="old", seed=2),
]


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline in the standard layout."""
    return save_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "pipeline")


def rows_of(n: int) -> list[sampling.Row]:
    return [sampling.Row(sample_id=f"{i:016x}", prompt="p", negative_prompt="", seed=i) for i in range(n)]


def test_out_of_memory_halves_the_micro_batch_and_keeps_order() -> None:
    seen = []

    def draw(rows: Sequence[sampling.Row]) -> torch.Tensor:
        seen.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.stack([torch.full((1, 2, 2), row.seed / 255) for row in rows])

    drawn = sampling.draw_rows(rows_of(7), draw=draw, micro_batch=7, grey=True)
    assert seen == [7, 4, 2, 2, 3, 2, 1]
    assert [int(image.pixels[0, 0]) for image in drawn if image.pixels is not None] == list(range(7))
    assert [image.micro_batch for image in drawn] == [2, 2, 2, 2, 2, 2, 1]


def test_one_bad_row_costs_one_image() -> None:
    def draw(rows: Sequence[sampling.Row]) -> torch.Tensor:
        if any(row.seed == 2 for row in rows):
            raise RuntimeError("row 2 is bad")
        return torch.zeros(len(rows), 1, 2, 2)

    drawn = sampling.draw_rows(rows_of(4), draw=draw, micro_batch=4, grey=True)
    assert [image.error for image in drawn] == [None, None, "RuntimeError: row 2 is bad", None]


def test_a_device_that_has_failed_is_no_error_of_an_image() -> None:
    def draw(rows: Sequence[sampling.Row]) -> torch.Tensor:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    for n in (1, 4):
        with pytest.raises(TailfillError, match="the device has failed: AcceleratorError: CUDA error: an illegal"):
            sampling.draw_rows(rows_of(n), draw=draw, micro_batch=4, grey=True)


def sampler(saved: Path, *, scheduler: str = "ddim", precision: str = "no", lora: Path | None = None,
            interval: tuple[float, float] = (0.0, 1.0), scale: float = 4.0, steps: int = 6) -> sampling.Sampler:
    pipeline, _ = pipelines.load_pipeline(saved, lora=lora, scheduler=scheduler, precision=precision,
                                          attention="auto", device=torch.device("cpu"))
    settings = sampling.Settings(num_inference_steps=steps, guidance_scale=scale, guidance_interval=interval,
                                 height=32, width=32, grey=True)
    encoded = texts.encode_texts(pipeline, prompts=["chest radiograph with hernia", "no effusion"], negatives=["old"])
    return sampling.Sampler(pipeline, encoded, settings)


def test_images_equal_a_plain_call_of_the_pipeline(saved: Path) -> None:
    ours = sampler(saved).draw(TWO_ROWS)
    plain, _ = pipelines.load_pipeline(saved, lora=None, scheduler="ddim", precision="no", attention="sdpa",
                                       device=torch.device("cpu"))
    theirs = plain([row.prompt for row in TWO_ROWS], negative_prompt=[row.negative_prompt for row in TWO_ROWS],
                   generator=[torch.Generator().manual_seed(row.seed) for row in TWO_ROWS], output_type="pt",
                   num_inference_steps=6, guidance_scale=4.0, height=32, width=32).images
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("interval", [(0.0, 0.5), (0.5, 1.0), (0.3, 0.7), (0.0, 0.0)])
def test_guidance_interval_runs_the_negative_half_only_inside(saved: Path, interval: tuple[float, float]) -> None:
    everywhere, partly = sampler(saved), sampler(saved, interval=interval)
    sizes: list[int] = []
    partly.pipeline.unet.conv_in.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    start, stop = guidance.guided_steps(interval, 6)
    images = partly.draw(TWO_ROWS)
    assert sizes == [4 if start <= step < stop else 2 for step in range(6)]
    assert not torch.equal(images, everywhere.draw(TWO_ROWS))
    alone = torch.cat([partly.draw([row]) for row in TWO_ROWS])  # every prompt of the batch keeps its own guidance
    torch.testing.assert_close(images, alone, atol=1e-4, rtol=0)
    if start == stop:
        torch.testing.assert_close(images, sampler(saved, scale=1.0).draw(TWO_ROWS), atol=1e-5, rtol=0)


@pytest.mark.parametrize("scheduler", sorted(schedulers.SCHEDULERS))
def test_every_scheduler_samples_and_does_not_depend_on_the_batch(saved: Path, scheduler: str) -> None:
    both = sampler(saved, scheduler=scheduler, steps=4)
    images = both.draw(TWO_ROWS)
    assert torch.isfinite(images).all()
    torch.testing.assert_close(images, torch.cat([both.draw([row]) for row in TWO_ROWS]), atol=2e-3, rtol=0)


def test_steps_that_a_scheduler_refuses_are_named(saved: Path) -> None:
    with pytest.raises(TailfillError, match="num_inference_steps is 60, which LCMScheduler refuses"):
        sampler(saved, scheduler="lcm", steps=60)


def test_scheduler_keeps_what_the_checkpoint_was_trained_with() -> None:
    pipeline = tiny_pipeline()
    pipeline.scheduler = DDPMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction")
    schedulers.set_scheduler(pipeline, "dpm++")
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.scheduler.config.beta_schedule == "scaled_linear"


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_reduced_precision_is_the_denoisers_only(saved: Path, precision: str, dtype: torch.dtype) -> None:
    full, reduced = sampler(saved), sampler(saved, precision=precision)
    assert {parameter.dtype for parameter in reduced.pipeline.unet.parameters()} == {dtype}
    assert {parameter.dtype for parameter in reduced.pipeline.vae.parameters()} == {torch.float32}
    assert (full.draw(TWO_ROWS) - reduced.draw(TWO_ROWS)).abs().max() < 0.1


def test_text_encoders_are_freed_and_each_text_is_encoded_once() -> None:
    pipeline = tiny_pipeline()
    calls: list[int] = []
    pipeline.text_encoder.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(len(args[0])), with_kwargs=True)
    encoder = weakref.ref(pipeline.text_encoder)
    encoded = texts.encode_texts(pipeline, prompts=["no hernia", "old", "no hernia"], negatives=["old", "old", ""])
    assert calls == [1, 1, 1]
    assert (list(encoded.prompts), list(encoded.negatives)) == (["no hernia", "old"], ["old", ""])
    assert encoded.prompts["old"]["prompt_embeds"].shape == (1, 77, 16)
    assert pipeline.text_encoder is None
    gc.collect()
    assert encoder() is None  # its memory is free, not only its name


def test_png_bytes_are_a_function_of_the_pixels() -> None:
    values = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    grey, colour = sampling.to_pixels(values, grey=True), sampling.to_pixels(values, grey=False)
    assert (grey.shape, colour.shape, grey.dtype) == ((8, 8), (8, 8, 3), np.uint8)
    assert parts.encode_png(grey) == parts.encode_png(grey.copy())
    assert sampling.to_pixels(values[:1], grey=False).shape == (8, 8, 3)


def test_lora_weights_are_merged_and_change_the_images(saved: Path, tmp_path: Path) -> None:
    folder = save_tiny_lora(tmp_path / "lora")
    merged = sampler(saved, lora=pipelines.resolve_lora(str(folder)))
    assert not any("lora" in name for name, _ in merged.pipeline.unet.named_parameters())
    assert (merged.draw(TWO_ROWS) - sampler(saved).draw(TWO_ROWS)).abs().max() > 1e-3
    file = folder / "pytorch_lora_weights.safetensors"
    weights = load_file(file)
    for old, new in (("unet.", "transformer."), ("mid_block", "fifth_block")):
        lost = sum(old in name for name in weights)
        save_file({name.replace(old, new): value for name, value in weights.items()}, file)
        with pytest.raises(TailfillError, match=rf"{lost} of its {len(weights)} matrices have no place in this Stable"):
            sampler(saved, lora=pipelines.resolve_lora(str(folder)))
    file.write_bytes(b"broken")
    with pytest.raises(TailfillError, match="does not load as LoRA weights"):
        sampler(saved, lora=pipelines.resolve_lora(str(folder)))


@pytest.mark.parametrize(("n_rows", "seen"), [(4, [4]), (6, [4, 4]), (3, [4])])
def test_padding_keeps_the_shape_and_leaves_no_trace(n_rows: int, seen: list[int]) -> None:
    sizes = []

    def draw(rows: Sequence[sampling.Row]) -> torch.Tensor:
        sizes.append(len(rows))
        return torch.stack([torch.full((1, 2, 2), row.seed / 255) for row in rows])

    drawn = sampling.draw_rows(rows_of(n_rows), draw=draw, micro_batch=4, grey=True, pad=True)
    assert sizes == seen
    assert [image.sample_id for image in drawn] == [row.sample_id for row in rows_of(n_rows)]
    assert [int(image.pixels[0, 0]) for image in drawn if image.pixels is not None] == list(range(n_rows))


def test_padding_does_not_outgrow_a_micro_batch_that_was_halved() -> None:
    seen = []

    def draw(rows: Sequence[sampling.Row]) -> torch.Tensor:
        seen.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.zeros(len(rows), 1, 2, 2)

    drawn = sampling.draw_rows(rows_of(3), draw=draw, micro_batch=4, grey=True, pad=True)
    assert seen == [4, 2, 2]
    assert [(image.error, image.micro_batch) for image in drawn] == [(None, 2)] * 3
