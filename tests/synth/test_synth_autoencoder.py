"""The autoencoder's stage: losses against formulas, a resumed run against an uninterrupted one."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from classify.learning.training import CHECKPOINT, load_checkpoint, save_checkpoint, step_generator
from cohort.errors import TailfillError
from synth.learning.coding import AutoencoderConfig, Trainer, build_autoencoder
from synth.learning.reconstruction import gradient_loss, latent_scale, psnr, reconstruct, to_grey, to_signed

CONFIG = AutoencoderConfig(image_size=16, block_out_channels=(8, 8), latent_channels=4, steps=6, batch_size=4,
                           precision="no", adversarial_start=0.3, learning_rate=1e-3)


@pytest.fixture
def images() -> np.ndarray:
    """Twelve noisy 16-px images."""
    return np.random.default_rng(0).integers(0, 256, (12, 16, 16), dtype=np.uint8)


def test_grey_survives_the_round_trip_to_signed_floats(images: np.ndarray) -> None:
    assert np.array_equal(to_grey(to_signed(images)), images)
    assert to_signed(images).min() >= -1
    assert to_signed(images).max() <= 1


def test_psnr_follows_its_formula(images: np.ndarray) -> None:
    other = images ^ 3
    expected = 10 * np.log10(255**2 / np.mean((images.astype(float) - other) ** 2))
    assert psnr(reconstructed=other, target=images) == pytest.approx(expected)
    assert psnr(reconstructed=images, target=images) == float("inf")


def test_gradient_loss_sees_edges_and_no_brightness() -> None:
    target = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert gradient_loss(reconstructed=target + 0.3, target=target) == pytest.approx(0, abs=1e-6)
    assert gradient_loss(reconstructed=target.flip(-1), target=target) > 0.1


def test_scaled_latents_have_unit_deviation(images: np.ndarray) -> None:
    vae = build_autoencoder(CONFIG)
    with torch.no_grad():
        latents = vae.encode(to_signed(images)).latent_dist.mode()
    assert (latents * latent_scale(vae, images, batch_size=5)).std().item() == pytest.approx(1, rel=1e-5)


def test_reconstruction_does_not_depend_on_the_batch_size(images: np.ndarray) -> None:
    vae = build_autoencoder(CONFIG).eval()
    one, all_at_once = (reconstruct(vae, images, batch_size=size).astype(int) for size in (1, 12))
    assert np.abs(one - all_at_once).max() <= 1


def test_a_resumed_run_ends_at_the_same_bits(images: np.ndarray, tmp_path) -> None:
    torch.set_num_threads(1)
    straight = Trainer(CONFIG, Accelerator(cpu=True), seed=3, images=images)
    losses = [straight.train_step(images)["loss"] for _ in range(6)]
    first = Trainer(CONFIG, Accelerator(cpu=True), seed=3, images=images)
    for _ in range(4):  # the discriminator has joined by then
        first.train_step(images)
    save_checkpoint(tmp_path / CHECKPOINT, step=first.step, history=[], **first.state())
    second = Trainer(CONFIG, Accelerator(cpu=True), seed=3, images=images)
    second.load(load_checkpoint(tmp_path / CHECKPOINT))
    assert [second.train_step(images)["loss"] for _ in range(2)] == losses[4:]
    for name, value in straight.vae.state_dict().items():
        assert torch.equal(value, second.vae.state_dict()[name]), name


def test_sizes_that_do_not_fit_are_named() -> None:
    for bad in ({"image_size": 30}, {"block_out_channels": (10, 20)}, {"block_out_channels": ()}, {"steps": 0},
                {"batch_size": 0}, {"checkpoint_every": 0}, {"latent_channels": 0}, {"learning_rate": -1.0},
                {"adversarial_start": 7.0}, {"precision": "fp16"}):
        with pytest.raises(TailfillError, match=f"autoencoder.{next(iter(bad))} is"):
            AutoencoderConfig(**bad)


def test_a_damaged_checkpoint_is_named(tmp_path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"half a file")
    with pytest.raises(TailfillError, match=r"checkpoint\.pt"):
        load_checkpoint(tmp_path / CHECKPOINT)


def test_each_step_and_rank_draws_its_own_numbers() -> None:
    draws = {(seed, step, rank): torch.rand(1, generator=step_generator(seed, step, rank=rank)).item()
             for seed in (0, 1) for step in (0, 1) for rank in (0, 1)}
    assert len(set(draws.values())) == 8
