"""Fine-tuning: what is predicted and how it is weighted against the papers; whole, by LoRA, from nothing, resumed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file
from tiny_pipeline import IMAGE_SIZE, tiny_pipeline

from classify.learning.training import CHECKPOINT, load_checkpoint, save_checkpoint
from cohort.config import Run
from cohort.errors import TailfillError
from cohort.provenance import is_known, write_patients
from cohort.stage import Stage
from cohort.tables import Cohort
from prompts.phrases import N_VARIANTS, WORDINGS
from synth.finetune import finish, load_pipeline
from synth.learning.coding import AutoencoderConfig, build_autoencoder
from synth.learning.denoiser import encode_moments, sample_latents, target_and_weight
from synth.learning.fitting import Progress
from synth.learning.fresh import FreshConfig, build_pipeline, train_tokenizer
from synth.learning.training_set import TrainingSet, are_common, captions, sampling_weights, speakable, tokenise
from synth.learning.tuning import FinetuneConfig, Trainer
from synth.learning.validation import choose_images

TEXTS = ["Frontal PA chest radiograph of a 63-year-old woman. Hiatal hernia.", "Pulmonary edema, AP view."]
CONFIG = FinetuneConfig(steps=4, batch_size=4, warmup_steps=2, learning_rate=1e-3, ema_decay=0.9, lora_rank=2)


def training_set(pipeline: StableDiffusionPipeline) -> TrainingSet:
    """Eight images of noise with two captions each."""
    images = np.random.default_rng(0).integers(0, 256, (8, IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)
    tokens = tokenise(pipeline.tokenizer, TEXTS * 8).view(8, 2, -1)
    return TrainingSet(frame=pd.DataFrame(index=range(8)), moments=encode_moments(pipeline.vae, images),
                       tokens=tokens, weights=np.ones(8), common=np.ones(8, bool),
                       blank=tokenise(pipeline.tokenizer, [""])[0], vae=pipeline.vae)


def trained(config: FinetuneConfig, steps: int) -> Trainer:
    """A tiny pipeline after a few steps."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    trainer = Trainer(config, tiny_pipeline(), Accelerator(cpu=True), seed=1)
    data = training_set(trainer.pipeline)
    for _ in range(steps):
        trainer.train_step(data)
    return trainer


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_weights_follow_the_paper(kind: str) -> None:
    scheduler = DDPMScheduler(prediction_type=kind)
    clean, noise = torch.randn(5, 2, 4, 4), torch.randn(5, 2, 4, 4)
    timesteps = torch.tensor([0, 100, 400, 700, 999])
    target, weight = target_and_weight(scheduler, clean=clean, noise=noise, timesteps=timesteps, snr_gamma=5.0)
    alpha = scheduler.alphas_cumprod[timesteps]
    snr = alpha / (1 - alpha)
    expected = snr.clamp(max=5) / (snr if kind == "epsilon" else snr + 1)
    torch.testing.assert_close(weight, expected, rtol=1e-4, atol=1e-6)
    a, s = alpha.sqrt()[:, None, None, None], (1 - alpha).sqrt()[:, None, None, None]
    torch.testing.assert_close(target, noise if kind == "epsilon" else a * noise - s * clean)


def test_the_weighted_loss_is_min_snr_on_x0_for_either_prediction() -> None:
    timesteps = torch.arange(0, 1000, 111)
    shape = (len(timesteps), 1, 1, 1)
    errors = {}
    for kind in ("epsilon", "v_prediction"):
        scheduler = DDPMScheduler(prediction_type=kind)
        alpha = scheduler.alphas_cumprod[timesteps].view(shape).double()
        x0_error = 1.0  # an error of one in x_0 means this error in what the model predicts
        error = x0_error * (alpha / (1 - alpha)).sqrt() if kind == "epsilon" else x0_error / (1 - alpha).sqrt()
        zeros = torch.zeros(shape)
        _, weight = target_and_weight(scheduler, clean=zeros, noise=zeros, timesteps=timesteps, snr_gamma=5.0)
        errors[kind] = weight.double().view(shape) * error**2
    torch.testing.assert_close(errors["epsilon"], errors["v_prediction"], rtol=1e-3, atol=1e-6)


def test_an_unknown_prediction_type_is_named() -> None:
    scheduler = DDPMScheduler(prediction_type="sample")
    one = torch.zeros(1, 1, 1, 1)
    with pytest.raises(TailfillError, match="predicts 'sample'"):
        target_and_weight(scheduler, clean=one, noise=one, timesteps=torch.tensor([1]), snr_gamma=5.0)


def test_moments_do_not_depend_on_the_batch_and_samples_are_scaled() -> None:
    vae = tiny_pipeline().vae
    images = np.random.default_rng(1).integers(0, 256, (5, IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)
    moments = encode_moments(vae, images, batch_size=5)
    np.testing.assert_allclose(moments, encode_moments(vae, images, batch_size=2), atol=2e-3)
    moments[:, 1] = 0
    latents = sample_latents(moments, vae=vae, generator=torch.Generator())
    torch.testing.assert_close(latents, torch.from_numpy(moments[:, 0]).float() * vae.config.scaling_factor)


def test_sampling_weights_are_repeat_factors_with_a_cap() -> None:
    frame = pd.DataFrame({"common": [1] * 50 + [0] * 50, "rare": [1] + [0] * 99, "never": [0] * 100}, dtype="Int8")
    weights = sampling_weights(frame, list(frame), threshold=0.05, cap=2.0)
    assert weights[0] == pytest.approx(2.0)
    assert sampling_weights(frame, list(frame), threshold=0.05, cap=9.0)[0] == pytest.approx(np.sqrt(0.05 / 0.01))
    assert np.all(weights[1:] == 1)
    assert are_common(frame, list(frame), threshold=0.05).tolist() == [False] + [True] * 99


def test_captions_name_every_known_finding_in_every_variant() -> None:
    frame = pd.DataFrame({"view": ["PA", None], "age": [63.0, np.nan], "sex": ["F", None]})
    frame["Hernia"], frame["Edema"] = pd.array([1, 0], "Int8"), pd.array([None, 1], "Int8")
    rows = captions(frame, ["Hernia", "Edema"])
    assert [len(row) for row in rows] == [N_VARIANTS] * 2
    assert all("hernia" in text.lower() and "edema" not in text.lower() for text in rows[0])
    assert all("edema" in text.lower() for text in rows[1])


def test_an_image_with_more_findings_than_a_caption_can_name_is_left_out() -> None:
    labels = list(WORDINGS)
    frame = pd.DataFrame([[1] * len(labels), [1] + [0] * (len(labels) - 1)], columns=labels, dtype="Int8")
    assert speakable(frame, labels)[labels[1]].tolist() == [0]


def test_a_caption_over_the_limit_is_an_error_and_never_cut() -> None:
    with pytest.raises(TailfillError, match="tokens; wanted: 77 or fewer"):
        tokenise(tiny_pipeline().tokenizer, ["hernia " * 100])


def test_the_learnt_tokenizer_is_deterministic_and_covers_any_byte(tmp_path: Path) -> None:
    one, two = (train_tokenizer(TEXTS, vocabulary=700) for _ in range(2))
    assert one.get_vocab() == two.get_vocab()
    assert one.tokenize("hiatal hernia") == ["hiatal</w>", "hernia</w>"]
    strange = one("Ärztin zyx 😀").input_ids
    assert one.unk_token_id not in strange[1:-1]
    one.save_pretrained(tmp_path)
    assert type(one).from_pretrained(tmp_path)("Ärztin zyx 😀").input_ids == strange
    with pytest.raises(TailfillError, match="vocabulary is 10"):
        FreshConfig(vocabulary=10)


def test_a_pipeline_from_nothing_is_an_ordinary_diffusers_folder(tmp_path: Path) -> None:
    vae = build_autoencoder(AutoencoderConfig(image_size=16, block_out_channels=(8, 8), latent_channels=4))
    fresh = FreshConfig(block_out_channels=(32, 32), text_width=32, text_layers=1)
    build_pipeline(fresh, vae, TEXTS).save_pretrained(tmp_path)
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    image = loaded("pulmonary edema", num_inference_steps=2).images[0]
    assert (image.mode, image.size) == ("L", (16, 16))


@pytest.mark.parametrize(("mode", "text_encoder"), [("full", True), ("lora", False)])
def test_a_resumed_run_ends_at_the_same_bits(mode: str, text_encoder: bool, tmp_path: Path) -> None:
    config = replace(CONFIG, mode=mode, pipeline="a folder", train_text_encoder=text_encoder)
    straight, first = trained(config, 4), trained(config, 2)
    save_checkpoint(tmp_path / CHECKPOINT, step=first.step, history=[], **first.state())
    second = trained(config, 0)
    second.load(load_checkpoint(tmp_path / CHECKPOINT))
    data = training_set(second.pipeline)
    for _ in range(2):
        second.train_step(data)
    for a, b in zip(straight.parameters, second.parameters, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(straight.ema.shadow_params, second.ema.shadow_params, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("mode", "train_text_encoder"), [("full", False), ("full", True), ("lora", False)])
def test_only_what_should_learn_learns(mode: str, train_text_encoder: bool) -> None:
    config = replace(CONFIG, mode=mode, pipeline="a folder", train_text_encoder=train_text_encoder)
    before, trainer = tiny_pipeline(), trained(config, 2)
    after = trainer.pipeline
    changed = {
        part: any(not torch.equal(value, getattr(after, part).state_dict().get(name, value))
                  for name, value in getattr(before, part).state_dict().items())
        for part in ("unet", "text_encoder", "vae")
    }
    assert changed == {"unet": mode == "full", "text_encoder": train_text_encoder, "vae": False}
    share = sum(p.numel() for p in trainer.parameters) / sum(p.numel() for p in after.unet.parameters())
    assert share < 0.2 if mode == "lora" else share >= 0.99


@pytest.mark.parametrize("elsewhere", [7.0, float("nan")])
def test_the_loss_is_that_of_all_processes_and_so_is_its_refusal(elsewhere: float) -> None:
    trainer = trained(replace(CONFIG, pipeline="a folder", gradient_accumulation=2), 0)
    own = trained(trainer.config, 0).train_step(training_set(trainer.pipeline))
    trainer.accelerator.reduce = lambda loss, reduction: (loss + elsewhere) / 2
    if np.isfinite(elsewhere):
        assert trainer.train_step(training_set(trainer.pipeline)) == pytest.approx((own + elsewhere) / 2)
    else:
        with pytest.raises(TailfillError, match="the loss is nan at step 1"):
            trainer.train_step(training_set(trainer.pipeline))


def test_training_lowers_the_loss() -> None:
    config = replace(CONFIG, pipeline="a folder", caption_dropout=0.0, batch_size=16)
    trainer = trained(config, 0)
    data = training_set(trainer.pipeline)
    first = trainer.train_step(data)
    for _ in range(15):
        trainer.train_step(data)
    trainer.step = 0  # the same images, noise and timesteps once more
    assert trainer.train_step(data) < 0.9 * first


def test_every_label_has_its_share_of_the_validation() -> None:
    present = np.random.default_rng(0).random((400, 4)) < [0.6, 0.2, 0.2, 0.01]
    assert np.all(present[choose_images(present, 40)].sum(axis=0) >= np.minimum(present.sum(axis=0), 40 // 4))
    assert choose_images(present, 999).tolist() == list(range(400))
    assert choose_images(present[:, :0], 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize("bad", [
    {"mode": "half"}, {"lora_rank": 0}, {"steps": 0}, {"validate_every": 0}, {"checkpoint_every": 0},
    {"precision": "fp8"}, {"caption_dropout": 1.0}, {"ema_decay": 1.0}, {"scarcity_cap": 0.5},
    {"prior_weight": 1.0}, {"prior_weight": -1.0}, {"patience": 0},
])
def test_settings_that_cannot_work_are_named(bad: dict) -> None:
    with pytest.raises(TailfillError, match=f"finetune.{next(iter(bad))} is"):
        replace(CONFIG, **bad)


def test_adapters_need_something_to_adapt() -> None:
    with pytest.raises(TailfillError, match="a pipeline for lora to adapt"):
        FinetuneConfig(mode="lora")
    with pytest.raises(TailfillError, match="train_text_encoder is True; wanted: false where mode is lora"):
        FinetuneConfig(mode="lora", pipeline="a folder", train_text_encoder=True)
    with pytest.raises(TailfillError, match="text_width is 20"):
        FreshConfig(text_width=20)


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(TailfillError, match="batch_size is 4; wanted: a multiple of 3"):
        trained(replace(CONFIG, pipeline="a folder", gradient_accumulation=3), 1)


def test_a_diverged_run_is_not_written() -> None:
    with pytest.raises(TailfillError, match="the loss is nan"):
        trained(replace(CONFIG, pipeline="a folder", learning_rate=float("1e30")), 4)


def test_a_pipeline_of_another_family_is_named(tmp_path: Path) -> None:
    with pytest.raises(TailfillError, match="cannot be loaded"):
        load_pipeline(replace(CONFIG, pipeline=str(tmp_path)), Run(run=str(tmp_path)), tmp_path, TEXTS)


def test_provenance_is_known_only_if_every_parent_s_is(tmp_path: Path) -> None:
    frame = pd.DataFrame({"split": ["train", "test"], "patient_id": ["p", "q"]})
    cohort = Cohort(frame=frame, labels=[], groups={}, roots={}, salt="s", folder=tmp_path)
    for name, salt, provenance in (("own", "s", "known"), ("hub", "s", "unknown"), ("foreign", "t", "known")):
        stage = Stage("finetune", tmp_path / name, config={}, inputs={})
        stage.begin()
        write_patients(stage.folder, ["p"], salt=salt)
        stage.finish(outputs=["patients.parquet"], counts={}, extra={"provenance": provenance})
    assert [is_known(tmp_path / name, cohort) for name in ("own", "hub", "foreign")] == [True, False, False]
    write_patients(tmp_path / "own", ["q"], salt="s")
    with pytest.raises(TailfillError, match="has learnt from 1 patients"):
        is_known(tmp_path / "own", cohort)


def test_a_merged_adapter_is_the_adapter(tmp_path: Path) -> None:
    """The written pipeline draws what the base pipeline with the adapter beside it draws."""
    config = replace(CONFIG, mode="lora", pipeline="a folder", learning_rate=5e-2)
    trainer = trained(config, 3)

    class Recorder:
        folder = tmp_path

        def finish(self, **stamp) -> None:
            self.stamp = stamp

    frame = pd.DataFrame({"split": ["train"], "patient_id": ["p"]})
    cohort = Cohort(frame=frame, labels=[], groups={}, roots={}, salt="s", folder=tmp_path)
    recorder = Recorder()
    finish(trainer, Progress(history=[{"step": 3, "images_per_second": 1.0}]), 1, cohort, recorder, [None])
    assert "lora" in recorder.stamp["outputs"]
    assert load_file(tmp_path / "lora" / "pytorch_lora_weights.safetensors")

    def draw(pipeline: StableDiffusionPipeline) -> np.ndarray:
        pipeline.set_progress_bar_config(disable=True)
        return pipeline("hernia", num_inference_steps=2, output_type="np",
                        generator=torch.Generator().manual_seed(0)).images

    base = tiny_pipeline()
    plain = draw(base)
    base.load_lora_weights(tmp_path / "lora")
    merged = draw(StableDiffusionPipeline.from_pretrained(tmp_path / "pipeline", safety_checker=None))
    np.testing.assert_allclose(merged, draw(base), atol=1e-3)
    assert np.abs(merged - plain).max() > 1e-2
