"""Every family of pipelines is sampled from embeddings as its own call would sample it from words."""

import gc
import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
from diffusers.callbacks import SDCFGCutoffCallback, SDXLCFGCutoffCallback
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from cohort.errors import TailfillError
from synth.drawing import execution, guidance, pipelines, sampling, schedulers, texts

NAMES = list(tiny_families.FAMILIES)
UNETS = ["sd1", "sd2", "sdxl"]
PROMPTS, NEGATIVE, STEPS, SCALE = ["chest radiograph with hernia", "no effusion"], "old", 4, 4.0
ROWS = [sampling.Row(sample_id=f"{place:016x}", prompt=prompt, negative_prompt=NEGATIVE, seed=place)
        for place, prompt in enumerate(PROMPTS)]
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's tiny pipeline, saved when first asked for."""
    root = tmp_path_factory.mktemp("families")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            tiny_families.build(name).save_pretrained(root / name)
        return root / name

    return folder


def load(folder: Path, **changed: Any) -> Any:
    """The pipeline of ``folder``, as ``generate`` loads it."""
    settings = {"lora": None, "scheduler": "dpm++", "precision": "no", "attention": "auto", **changed}
    return pipelines.load_pipeline(folder, device=CPU, **settings)[0]


def sampler(pipeline: Any, *, interval: tuple[float, float] = (0.0, 1.0), negative: str = NEGATIVE) -> sampling.Sampler:
    settings = sampling.Settings(num_inference_steps=STEPS, guidance_scale=SCALE, guidance_interval=interval,
                                 height=32, width=32, grey=True)
    encoded = texts.encode_texts(pipeline, prompts=PROMPTS, negatives=[negative])
    return sampling.Sampler(pipeline, encoded, settings)


def own_call(pipeline: Any, n_rows: int = 2, *, negative: str | None = NEGATIVE, **changed: Any) -> torch.Tensor:
    """Images of the first rows by the pipeline's own call, words in, nothing of ours but the noise."""
    rows = ROWS[:n_rows]
    shape = (pipeline.components.get("unet") or pipeline.transformer).config.in_channels, \
        32 // pipeline.vae_scale_factor, 32 // pipeline.vae_scale_factor
    noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(row.seed)) for row in rows])
    masked = {"use_resolution_binning": False, "clean_caption": False} if hasattr(pipeline, "transformer") else {}
    images: torch.Tensor = pipeline(
        [row.prompt for row in rows], negative_prompt=None if negative is None else [negative] * n_rows, latents=noise,
        num_inference_steps=STEPS, guidance_scale=SCALE, height=32, width=32, output_type="pt", **masked, **changed,
    ).images
    return images


@pytest.mark.parametrize("name", NAMES)
def test_images_are_those_of_the_pipelines_own_call(saved: Callable[[str], Path], name: str) -> None:
    theirs = own_call(load(saved(name)))
    torch.testing.assert_close(sampler(load(saved(name))).draw(ROWS), theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("interval", [(0.0, 0.5), (0.25, 0.75)])
def test_guidance_interval_halves_the_work_outside_of_it(
    saved: Callable[[str], Path], name: str, interval: tuple[float, float]
) -> None:
    partly = sampler(load(saved(name)), interval=interval)
    sizes: list[int] = []
    first = next(module for module in pipelines.denoiser(partly.pipeline).modules()
                 if isinstance(module, torch.nn.Conv2d))
    first.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    start, stop = guidance.guided_steps(interval, STEPS)
    images = partly.draw(ROWS)
    assert sizes == [4 if start <= step < stop else 2 for step in range(STEPS)]
    alone = torch.cat([partly.draw([row]) for row in ROWS])  # every prompt of the batch keeps its own guidance
    torch.testing.assert_close(images, alone, atol=1e-4, rtol=0)
    assert not torch.allclose(images, sampler(load(saved(name))).draw(ROWS), atol=1e-4)


@pytest.mark.parametrize("name", UNETS)
def test_guidance_that_ends_early_equals_diffusers_own_cut_off(saved: Callable[[str], Path], name: str) -> None:
    cut_off = (SDXLCFGCutoffCallback if name == "sdxl" else SDCFGCutoffCallback)(cutoff_step_ratio=None,
                                                                                cutoff_step_index=1)
    theirs = own_call(load(saved(name)), 1, callback_on_step_end=cut_off)  # its last guided step is number 1
    ours = sampler(load(saved(name)), interval=(0.0, 0.5)).draw(ROWS[:1])
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_each_text_is_encoded_once_and_alone_and_the_encoders_are_freed(name: str) -> None:
    pipeline = tiny_families.build(name)
    encoders = [part for key, part in pipeline.components.items() if key.startswith("text_encoder")]
    calls: list[int] = []
    for encoder in encoders:
        encoder.register_forward_pre_hook(
            lambda _, args, kwargs: calls.append(len(args[0] if args else kwargs["input_ids"])), with_kwargs=True)
    weights = [weakref.ref(parameter) for encoder in encoders for parameter in encoder.parameters()]
    n_encoders = len(encoders)
    del encoders, encoder
    encoded = texts.encode_texts(pipeline, prompts=[*PROMPTS, *PROMPTS], negatives=[NEGATIVE, NEGATIVE])
    assert calls == [1] * n_encoders * 3
    assert {len(value) for embedding in encoded.prompts.values() for value in embedding.values()} == {1}
    gc.collect()
    assert not any(weight() is not None for weight in weights)  # no memory is held


@pytest.mark.parametrize("name", NAMES)
def test_memory_that_runs_out_while_decoding_halves_the_micro_batch(saved: Callable[[str], Path], name: str) -> None:
    pipeline, sizes = load(saved(name)), []

    def decode(z: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        sizes.append(len(z))
        if len(z) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return (torch.zeros(1, 3, 32, 32),)

    pipeline.vae.decode = decode
    execution.decode_in_chunks(pipeline.vae, 4)
    drawn = sampling.draw_rows(ROWS, draw=sampler(pipeline).draw, micro_batch=2, grey=True)
    assert sizes == [2, 1, 1]
    assert [(image.error, image.micro_batch) for image in drawn] == [(None, 1)] * 2


@pytest.mark.parametrize("name", ["pixart-alpha", "pixart-sigma", "sana"])
def test_no_text_is_held_by_a_transformer_that_makes_it_anew_in_each_step(
    saved: Callable[[str], Path], name: str
) -> None:
    model = pipelines.denoiser(load(saved(name)))
    cross = [module for module in model.modules() if getattr(module, "is_cross_attention", False)]
    assert cross
    assert not any("forward" in vars(module.to_k) for module in cross)


@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_unet_projects_its_text_once_in_any_precision(
    saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, name: str, precision: str
) -> None:
    drawing, linear, calls = sampler(load(saved(name), precision=precision)), torch.nn.functional.linear, []
    projection = next(module for module in drawing.pipeline.unet.modules()
                      if getattr(module, "is_cross_attention", False)).to_k
    monkeypatch.setattr(torch.nn.functional, "linear", lambda x, weight, *bias: (
        calls.append(weight is projection.weight), linear(x, weight, *bias))[1])
    drawing.draw(ROWS)
    assert sum(calls) == 1  # of four steps


def test_sana_is_instructed_for_prompts_only() -> None:
    encoded = texts.encode_texts(tiny_families.build("sana"), prompts=[NEGATIVE], negatives=[NEGATIVE])
    both = (encoded.prompts[NEGATIVE]["prompt_embeds"], encoded.negatives[NEGATIVE]["prompt_embeds"])
    assert not torch.allclose(both[0], both[1])


def test_empty_negative_of_sdxl_is_what_it_was_trained_with(saved: Callable[[str], Path]) -> None:
    ours = sampler(load(saved("sdxl")), negative="").draw([replace(row, negative_prompt="") for row in ROWS])
    torch.testing.assert_close(ours, own_call(load(saved("sdxl")), negative=None), atol=1e-4, rtol=0)
    assert not torch.allclose(ours, own_call(load(saved("sdxl")), negative=""), atol=1e-4)


@pytest.mark.parametrize(("name", "longest"), [("sd1", 77), ("sdxl", 77), ("pixart-alpha", 120), ("sana", 300)])
def test_text_that_would_be_cut_is_named(saved: Callable[[str], Path], name: str, longest: int) -> None:
    word = "hernia "
    with pytest.raises(TailfillError, match=f"sample_id second: its text has .* takes {longest}"):
        texts.check_texts(saved(name), {"hernia": "first", word * longest: "second"})


def test_class_that_is_not_in_the_table_is_refused_before_loading(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}), encoding="utf-8")
    with pytest.raises(TailfillError, match="embeddings of a FluxPipeline is not supported; wanted: one of Stable"):
        texts.check_texts(tmp_path, {"hernia": "first"})


@pytest.mark.parametrize("name", ["sdxl", "sana"])
def test_reduced_precision_stays_close(saved: Callable[[str], Path], name: str) -> None:
    reduced = sampler(load(saved(name), precision="bf16")).draw(ROWS)
    assert (reduced - sampler(load(saved(name))).draw(ROWS)).abs().max() < 0.1


@pytest.mark.parametrize("scheduler", [*schedulers.FLOW_SCHEDULERS])
def test_a_flow_is_followed_by_every_scheduler_that_can(saved: Callable[[str], Path], scheduler: str) -> None:
    pipeline = load(saved("sana"), scheduler=scheduler)
    config = pipeline.scheduler.config
    assert config.get("flow_shift", config.get("shift")) == 3.0  # the checkpoint's
    images = sampler(pipeline).draw(ROWS)
    assert torch.isfinite(images).all()
    assert images.std() > 0.05


def test_scheduler_that_cannot_follow_a_flow_is_refused(saved: Callable[[str], Path]) -> None:
    with pytest.raises(TailfillError, match="'ddim', which cannot follow the flow"):
        load(saved("sana"), scheduler="ddim")


@pytest.mark.parametrize(("name", "part"), [("sdxl", "unet"), ("sana", "transformer")])
def test_lora_weights_change_what_is_drawn(saved: Callable[[str], Path], tmp_path: Path, name: str, part: str) -> None:
    pipeline = tiny_families.build(name)
    model = getattr(pipeline, part)
    model.add_adapter(LoraConfig(r=2, init_lora_weights="gaussian", target_modules=["to_q", "to_k", "to_v"]))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.fill_(0.1)
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(model))
    type(pipeline).save_lora_weights(tmp_path, **{f"{part}_lora_layers": layers}, safe_serialization=True)
    merged = sampler(load(saved(name), lora=pipelines.resolve_lora(str(tmp_path)))).draw(ROWS)
    assert (merged - sampler(load(saved(name))).draw(ROWS)).abs().max() > 1e-3
