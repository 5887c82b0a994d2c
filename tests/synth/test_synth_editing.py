"""Starting from a real image: diffusers' own images, exact for a perfect denoiser, from the source to pure noise."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_families
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
)
from PIL import Image
from tiny_pipeline import save_tiny_pipeline, tiny_pipeline
from tiny_run import build_run, images_folder, pixels, plan_frame, run_here, stamp_of

from cohort.errors import TailfillError
from synth.drawing import editing, schedulers, texts
from synth.drawing.sampling import Row, Sampler, Settings, draw_rows
from synth.learning.denoiser import encode_moments

PROMPT, NEGATIVE = "chest radiograph with hernia", "old"
STEPS = 5
RANDOM = ("dpm++_sde", "euler_ancestral", "ddpm", "lcm")


def picture(seed: int = 0) -> np.ndarray:
    """A smooth grey image, uint8 (32, 32)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC))


def row(strength: float | None, *, seed: int = 1, source: str | None = "a") -> Row:
    return Row(sample_id=f"{seed:016x}", prompt=PROMPT, negative_prompt=NEGATIVE, seed=seed, init_image_id=source,
               strength=strength)


def sampler(pipeline: Any, *, scheduler: str = "dpm++", steps: int = STEPS, scale: float = 3.0,
            interval: tuple[float, float] = (0.0, 1.0)) -> Sampler:
    """Knows the sources a and b, whose latents are as large as noise."""
    latent = editing.encode_sources(pipeline, {"a": picture()})["a"]
    pipeline.vae.register_to_config(scaling_factor=float(pipeline.vae.config.scaling_factor / latent.std()))
    schedulers.set_scheduler(pipeline, scheduler)
    sources = editing.encode_sources(pipeline, {"a": picture(), "b": picture(1)})
    settings = Settings(num_inference_steps=steps, guidance_scale=scale, guidance_interval=interval, height=32,
                        width=32, grey=True)
    encoded = texts.encode_texts(pipeline, prompts=[PROMPT], negatives=[NEGATIVE])
    return Sampler(pipeline, encoded, settings, sources)


@pytest.mark.parametrize("scheduler", sorted(schedulers.SCHEDULERS))
def test_a_denoiser_that_knows_the_source_gets_it_back_at_any_strength(scheduler: str) -> None:
    pipeline = SimpleNamespace(scheduler=DDPMScheduler(beta_schedule="scaled_linear", steps_offset=1))
    schedulers.set_scheduler(pipeline, scheduler)
    source, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    log_signal = pipeline.scheduler.alphas_cumprod.log()
    options = {"generator": torch.Generator().manual_seed(0)} if scheduler in RANDOM else {}
    errors = []
    for strength in (1.0, 0.9, 0.5, 0.2):
        late = editing.LateSchedule(pipeline.scheduler, editing.steps_left_out(strength, 10))
        late.set_timesteps(10)
        x = late.add_noise(source, noise)
        for t in late.timesteps:
            below, part = int(t), float(t) - int(t)  # Karras' times lie between those of the training
            signal = torch.lerp(log_signal[below], log_signal[min(below + 1, 999)], part).exp()
            epsilon = (late.scale_model_input(x, t) - signal.sqrt() * source) / (1 - signal).sqrt()
            x = late.step(epsilon, t, x, return_dict=False, **options)[0]
        errors.append(float((x - source).abs().max()))
    assert max(errors) < 1e-3 or scheduler == "pndm"
    assert errors[-1] > 0.1 or scheduler != "pndm"  # which is why find_sources refuses it


@pytest.mark.parametrize("scheduler", sorted(schedulers.FLOW_SCHEDULERS))
def test_the_same_of_a_denoiser_that_predicts_a_flow(scheduler: str) -> None:
    trained = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    pipeline = SimpleNamespace(scheduler=trained)
    schedulers.set_scheduler(pipeline, scheduler)
    source, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    for strength in (1.0, 0.5, 0.2):
        late = editing.LateSchedule(pipeline.scheduler, editing.steps_left_out(strength, 10))
        late.set_timesteps(10)
        x = late.add_noise(source, noise)
        for t in late.timesteps:
            x = late.step((x - source) / (t / 1000), t, x, return_dict=False)[0]
        torch.testing.assert_close(x, source, atol=1e-2, rtol=0)


@pytest.mark.parametrize(("family", "kind", "scheduler"), [
    ("sd1", StableDiffusionImg2ImgPipeline, "dpm++"), ("sd1", StableDiffusionImg2ImgPipeline, "euler_ancestral"),
    ("sd2", StableDiffusionImg2ImgPipeline, "ddim"), ("sdxl", StableDiffusionXLImg2ImgPipeline, "heun"),
])
def test_images_are_those_of_diffusers_own_image_to_image_pipeline(family: str, kind: Any, scheduler: str) -> None:
    ours = sampler(tiny_families.build(family), scheduler=scheduler)
    rows = [row(0.6, seed=1), row(0.6, seed=2, source="b")]
    images = ours.draw(rows)
    theirs = kind(**tiny_families.build(family).components)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler, theirs.vae = ours.pipeline.scheduler, ours.pipeline.vae
    expected = theirs(
        prompt=[PROMPT] * 2, negative_prompt=[NEGATIVE] * 2, strength=0.6, num_inference_steps=STEPS,
        image=torch.stack([ours.sources[name] for name in "ab"]), guidance_scale=3.0, output_type="pt",
        generator=[torch.Generator().manual_seed(each.seed) for each in rows],
    ).images
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)
    assert not torch.allclose(images, ours.draw([row(None, seed=1), row(None, seed=2)]), atol=1e-2)


@pytest.mark.parametrize("family", sorted(tiny_families.FAMILIES))
def test_from_the_source_to_pure_noise_in_every_family(family: str) -> None:
    pipeline = tiny_families.build(family)
    fine = sampler(pipeline, steps=200, scale=1.0)
    latent = fine.sources["a"][None] / pipeline.vae.config.scaling_factor
    with torch.no_grad():
        source = (pipeline.vae.decode(latent, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)
    changed = [float((fine.draw([row(strength)]) - source).square().mean().sqrt()) for strength in (0.005, 0.02, 0.1)]
    assert changed[0] < 0.05
    assert changed == sorted(changed)
    assert changed[-1] > 3 * changed[0]
    coarse = sampler(tiny_families.build(family))
    from_noise = coarse.draw([row(None, source=None)])
    assert torch.equal(coarse.draw([row(1.0)]), from_noise)
    assert not torch.allclose(coarse.draw([row(0.8)]), from_noise, atol=1e-3)
    assert torch.equal(coarse.draw([row(None, source=None)]), from_noise)  # no late start is left behind


@pytest.mark.parametrize("interval", [(0.0, 0.5), (0.4, 0.8), (0.8, 1.0), (0.0, 0.2)])
def test_the_guidance_interval_is_that_of_the_whole_schedule(interval: tuple[float, float]) -> None:
    late = sampler(tiny_pipeline(), steps=10, interval=interval)
    sizes: list[int] = []
    late.pipeline.unet.conv_in.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    both = late.draw([row(0.6, seed=1), row(0.6, seed=2, source="b")])
    start, stop = (round(10 * end) for end in interval)
    assert sizes == [4 if start <= step < stop else 2 for step in range(4, 10)]
    alone = torch.cat([late.draw([row(0.6, seed=1)]), late.draw([row(0.6, seed=2, source="b")])])
    torch.testing.assert_close(both, alone, atol=1e-4, rtol=0)


def test_rows_of_different_strengths_never_share_a_call_and_keep_their_order() -> None:
    calls: list[list[float | None]] = []

    def draw(rows: Sequence[Row]) -> torch.Tensor:
        calls.append([each.strength for each in rows])
        return torch.stack([torch.full((1, 2, 2), each.seed / 255) for each in rows])

    strengths = [0.6, None, 0.3, 0.6, None, 0.6, None, 0.6]
    rows = [row(strength, seed=seed) for seed, strength in enumerate(strengths)]
    drawn = draw_rows(rows, draw=draw, micro_batch=3, grey=True)
    assert calls == [[0.6] * 3, [0.6], [None] * 3, [0.3]]
    assert [image.sample_id for image in drawn] == [each.sample_id for each in rows]
    assert [int(image.pixels[0, 0]) for image in drawn if image.pixels is not None] == list(range(8))
    assert [image.micro_batch for image in drawn] == [3, 3, 1, 3, 3, 3, 3, 1]


def test_latents_are_those_that_the_generator_learnt_from() -> None:
    vae = tiny_pipeline().vae
    names, images = ["a", "b", "c"], np.stack([picture(seed) for seed in range(3)])
    latents = editing.encode_sources(tiny_pipeline(), dict(zip(names, images, strict=True)))
    with torch.no_grad():
        means = encode_moments(vae, images)[:, 0].astype(np.float32) * vae.config.scaling_factor
    np.testing.assert_allclose(torch.stack([latents[name] for name in names]).numpy(), means, atol=1e-3)
    alone = editing.encode_sources(tiny_pipeline(), {"b": images[1]})["b"]
    assert torch.equal(latents["b"], alone)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_tiny_pipeline(tmp_path / "pipeline")


def conditioned(strength: float = 0.7, source: str = "a") -> pd.DataFrame:
    """A plan whose rows 0, 2, 4 ... start from a real image."""
    frame = plan_frame()
    every_second = frame.index % 2 == 0
    return frame.assign(init_image_id=np.where(every_second, source, None),
                        strength=np.where(every_second, strength, np.nan))


def test_generate_draws_them_and_leaves_the_others_as_they_were(
    tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, edited = build_run(tmp_path, saved, "plain"), build_run(tmp_path, saved, "edited", plan=conditioned())
    Image.fromarray(picture()).save(tmp_path / "edited" / "cohort" / "a.png")
    run_here(plain, monkeypatch)
    table = run_here(edited, monkeypatch)
    assert (table["status"] == "ok").all()
    assert stamp_of(edited)["extra"]["source_images"] == 1
    assert "cohort" in stamp_of(edited)["inputs"]
    assert "cohort" not in stamp_of(plain)["inputs"]
    differ = np.abs(pixels(plain) - pixels(edited)).max(axis=(1, 2))
    assert (differ[::2] > 20).all()
    assert (differ[1::2] <= 2).all()  # they share no call with the others: only float sums may differ


@pytest.mark.parametrize(("plan", "section", "message"), [
    (conditioned(source="b"), {}, r"starts from 'b', which is no train image"),
    (conditioned(source=None), {}, r"starts from 'nan', which is no train image"),
    (conditioned(source="c"), {}, r"starts from 'c', which is no train image"),
    (conditioned(), {}, r"a\.png: no such image file, and rows of the plan start from it"),
    (conditioned(strength=0.2), {}, r"strength is 0.2; wanted: above 0, to 1, and enough for one of the 3 steps"),
    (conditioned(), {"scheduler": "pndm"}, r"generate.scheduler is 'pndm', which cannot begin late"),
])
def test_what_cannot_be_started_from_is_refused_before_weights_are_loaded(
    tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch, plan: pd.DataFrame, section: dict[str, Any],
    message: str,
) -> None:
    config = build_run(tmp_path, saved, plan=plan, **section)
    monkeypatch.setattr("synth.generate.load_pipeline", None)
    with pytest.raises(TailfillError, match=message):
        run_here(config, monkeypatch)
    assert not images_folder(config).exists()
