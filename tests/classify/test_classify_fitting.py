"""The loop: passes of one batch add up to it, compiling changes rounding only, and a head is trained anew."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from tiny_classify import LABELS, write_cohort
from torch import nn

from classify.arm import ArmConfig, write_arm
from classify.learning import fitting
from classify.learning.fitting import Recipe, feed_features, fit, learning_rate, pass_loss
from classify.learning.losses import best_constant, weighted_asl
from classify.learning.settings import TrainConfig
from classify.slots import Slots, label_matrix, prevalence
from classify.train import Job, train
from cohort.config import Run
from cohort.errors import TailfillError
from cohort.stage import require
from cohort.tables import load_cohort

CONFIG = TrainConfig(model="test_convnext", image_size=32, steps=4, init_seed=None, batch_size=8, warmup_share=0.2,
                     checkpoint_every=1, phase_2_share=0.5)
HEAD = "head.fc."


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A cohort, and runs side by side; ``go`` and ``launch`` name theirs."""
    folder = tmp_path_factory.mktemp("fitting")
    write_cohort(folder)
    return Run(run=str(folder / "run"), cohort=str(folder / "cohort"), n_seeds=3, threads=1, tracker="none")


@pytest.fixture(scope="module")
def crt(run):
    """What an uninterrupted run of one process comes to."""
    return go(run, arm="crt", name="crt")


def go(run, config=CONFIG, *, name, arm="real"):
    run = replace(run, run=str(run.folder.parent / name))
    AcceleratorState._reset_state(True)
    write_arm(run, ArmConfig(slots_per_class=10), arm=arm, seed=0)
    train(Job(run=run, config=config, arm=arm, seed=0))
    return run.folder / "train" / arm / "seed_0"


def weights(folder, name="raw"):
    return load_file(folder / f"{name}.safetensors")


def assert_close(one, other, **tolerance):
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], **tolerance)


def launch(run, *, processes, name, **options):
    """The command in processes of its own; the interpreter that launches them."""
    folder = run.folder.parent / name
    write_arm(replace(run, run=str(folder)), ArmConfig(slots_per_class=10), arm="crt", seed=0)
    given = {"run": folder, "cohort": run.cohort, "tracker": "none", "threads": 1, "arm": "crt", "arm-seed": 0}
    given |= {f"train.{key}": "null" if value is None else value
              for key, value in asdict(replace(CONFIG, **options)).items() if value != getattr(TrainConfig(), key)}
    several = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes),
               "--main_process_port", "0"] if processes > 1 else []
    command = [sys.executable, *several, str(Path(fitting.__file__).parents[1] / "train.py"),
               *(word for key, value in given.items() for word in (f"--{key}", str(value)))]
    return folder / "train" / "crt" / "seed_0", subprocess.Popen(
        command, env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}, cwd=folder.parent,
        stderr=subprocess.PIPE, text=True)


def feature_slots(*, n=48, added=False):
    """Slots of random features; what is unknown lies in the first half, mostly."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, (n, 3)).astype(np.float32)
    targets[: n // 2][rng.random((n // 2, 3)) < 0.8] = np.nan
    return Slots(images=[rng.normal(size=(n, 5)).astype(np.float32)], index=np.arange(n), targets=targets,
                 weights=rng.uniform(0.3, 1, n).astype(np.float32), phase=np.ones(n, dtype=np.int64),
                 added=np.full(n, added))


def recipe(**changes):
    return Recipe(**{"name": "", "seed": (1,), "steps": 40, "batch_size": 24, "lr": 0.01, "warmup_share": 0.1,
                     "weight_decay": 0.05, "ema_decay": 0.9, "grad_clip": 1.0, "phase_2_share": 0.0,
                     "checkpoint_every": 1000} | changes)


@pytest.mark.parametrize("passes", [1, 2, 3, 24])
def test_passes_add_up_to_the_whole_batch_however_unknown_labels_fall(passes):
    slots, accelerator = feature_slots(), Accelerator(cpu=True)
    loss = weighted_asl(torch.tensor([0.5, 0.1, 0.01]))
    torch.manual_seed(0)
    head = nn.Linear(5, 3)
    shared = recipe(gradient_accumulation=passes)
    places = shared.places(slots, 3)
    known = (slots.targets[places] >= 0).sum(axis=1)
    assert len({known[number::2].sum() for number in range(2)}) == 2, "the parts differ in what they know"
    whole = loss(head(torch.from_numpy(slots.images[0][places])), torch.from_numpy(slots.targets[places]),
                 sample_weights=torch.from_numpy(slots.weights[places]))
    whole.backward()
    wanted = [parameter.grad.clone() for parameter in head.parameters()]
    head.zero_grad()
    total = 0.0
    for number in range(passes):
        part = pass_loss(head, slots, feed_features, loss, recipe=shared, step=3, number=number,
                         accelerator=accelerator)
        part.backward()
        total += float(part.detach())
    assert total == pytest.approx(float(whole.detach()), rel=1e-5)
    for parameter, gradient in zip(head.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-8)


def test_accumulated_passes_end_where_whole_batches_end_and_are_no_part_of_what_is_trained(run):
    whole, parts = (go(run, replace(CONFIG, steps=2, gradient_accumulation=passes), name=name)
                    for passes, name in ((1, "plain2"), (4, "parts")))
    assert_close(weights(whole), weights(parts), atol=2e-4, rtol=1e-3)
    stamps = [require(folder, "train") for folder in (whole, parts)]
    assert stamps[0]["fingerprint"] == stamps[1]["fingerprint"]
    assert [stamp["extra"]["gradient_accumulation"] for stamp in stamps] == [1, 4]
    with pytest.raises(TailfillError, match="batch_size is 8; wanted: a multiple of 3"):
        go(run, replace(CONFIG, gradient_accumulation=3), name="uneven")


def test_compiled_training_ends_at_the_same_weights_under_the_same_names(run, monkeypatch):
    plain = go(run, replace(CONFIG, steps=2), name="plain2")
    monkeypatch.setattr(fitting, "COMPILER", "aot_eager")
    monkeypatch.setattr("classify.train.probe_compiler", lambda _: None)
    compiled = go(run, replace(CONFIG, steps=2, compile=True), name="compiled")
    for name in ("raw", "ema"):
        assert_close(weights(plain, name), weights(compiled, name), atol=2e-4, rtol=1e-3)
    assert require(compiled, "train")["extra"]["compiled"] is True
    assert require(plain, "train")["fingerprint"] == require(compiled, "train")["fingerprint"]


def test_where_nothing_compiles_one_line_says_so(run, monkeypatch):
    monkeypatch.setattr("classify.train.probe_compiler", lambda _: "no C++ compiler")
    with pytest.raises(TailfillError, match=r"train.compile is on, which does not work here: no C\+\+ compiler"):
        go(run, replace(CONFIG, compile=True), name="refused")
    assert not (run.folder.parent / "refused" / "train").exists()

    def gives_up(graph, inputs):
        raise RuntimeError("out of registers")

    monkeypatch.setattr("classify.train.probe_compiler", lambda _: None)
    monkeypatch.setattr(fitting, "COMPILER", gives_up)
    with pytest.raises(TailfillError, match=r"train.compile is on, and ConvNeXt cannot be compiled: .*registers"):
        go(run, replace(CONFIG, compile=True), name="gives up")


def test_a_renewed_head_stands_on_the_backbone_that_plain_training_averages(run, crt):
    """Phase 1 is `real` in as many steps, to the bit; phase 2 moves the head alone."""
    plain = go(run, replace(CONFIG, steps=2), name="plain2")  # as the test of compiling has it
    backbone = weights(plain, "ema")
    for name in ("raw", "ema"):
        learnt = weights(crt, name)
        for key, value in backbone.items():
            assert torch.equal(value, learnt[key]) != key.startswith(HEAD), key
    assert not torch.equal(weights(crt, "raw")[f"{HEAD}weight"], weights(crt, "ema")[f"{HEAD}weight"])
    assert require(crt, "train")["counts"]["steps"] == 4


def test_half_precision_computes_otherwise_and_writes_float32(run, crt):
    half = go(run, replace(CONFIG, precision="bf16"), arm="crt", name="half")
    for name in ("raw", "ema"):
        full, learnt = weights(crt, name), weights(half, name)
        assert {value.dtype for value in learnt.values()} == {torch.float32}
        assert any(not torch.equal(full[key], learnt[key]) for key in full if not key.startswith(HEAD))
        assert any(not torch.equal(full[key], learnt[key]) for key in full if key.startswith(HEAD))
        assert_close(full, learnt, atol=0.02, rtol=0.05)


def test_a_renewed_head_starts_from_nothing(run):
    folder = go(run, replace(CONFIG, steps=2, crt_lr=1e-12), arm="crt", name="nothing")
    cohort = load_cohort(run.cohort_folder)
    shares = torch.from_numpy(prevalence(label_matrix(cohort.split("train"), LABELS)))
    for name in ("raw", "ema"):
        learnt = weights(folder, name)
        torch.testing.assert_close(learnt[f"{HEAD}weight"], torch.zeros_like(learnt[f"{HEAD}weight"]), atol=1e-9,
                                   rtol=0)
        torch.testing.assert_close(learnt[f"{HEAD}bias"], best_constant(weighted_asl(shares), shares))


def test_with_a_frozen_backbone_nothing_of_the_first_phase_is_left(run):
    start = go(run, replace(CONFIG, steps=2), name="plain2")
    heads = [weights(go(run, replace(CONFIG, backbone=str(start), head_only=True, lr=lr), arm="crt", name=f"lr{lr}"))
             for lr in (1e-2, 1e-3)]
    for key, value in heads[0].items():
        assert torch.equal(value, heads[1][key])
        assert torch.equal(value, weights(start, "ema")[key]) != key.startswith(HEAD)


class Killed(BaseException):
    """Nothing in the project catches it, as nothing catches SIGKILL."""


@pytest.mark.parametrize("done", [1, 2, 3])
def test_killed_in_either_phase_or_between_it_ends_at_the_same_bits(run, crt, monkeypatch, done):
    step, made = fitting._step, []

    def dies(*args, **kwargs):
        if len(made) == done:
            raise Killed
        made.append(1)
        return step(*args, **kwargs)

    monkeypatch.setattr(fitting, "_step", dies)
    with pytest.raises(Killed):
        go(run, arm="crt", name=f"killed{done}")
    monkeypatch.setattr(fitting, "_step", lambda *args, **kwargs: (made.append(1), step(*args, **kwargs))[1])
    resumed = go(run, arm="crt", name=f"killed{done}")
    assert len(made) == 4
    for name in ("raw.safetensors", "ema.safetensors"):
        assert (resumed / name).read_bytes() == (crt / name).read_bytes()


def test_two_processes_of_two_passes_do_the_same_steps_and_average(run, crt):
    """Two real processes over gloo end near one process: the global batch and its gradient are the same."""
    pair, process = launch(run, processes=2, name="pair", gradient_accumulation=2)
    errors = process.communicate()[1]
    assert process.returncode == 0, errors[-2000:]
    extra = require(pair, "train")["extra"]
    assert (extra["processes"], extra["gradient_accumulation"]) == (2, 2)
    assert_close(weights(crt), weights(pair), atol=2e-3, rtol=1e-3)


def test_a_process_killed_by_the_system_goes_on_to_the_same_bits(run):
    """SIGKILL as soon as there is a checkpoint, wherever that finds the process."""
    steps = 60
    folder, process = launch(run, processes=1, name="killed", steps=steps)
    deadline = time.monotonic() + 300
    while not (folder / "checkpoint.pt").is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert (folder / "checkpoint.pt").is_file()
    resumed, straight = (go(run, replace(CONFIG, steps=steps), arm="crt", name=name) for name in ("killed", "long"))
    for name in ("raw.safetensors", "ema.safetensors"):
        assert (resumed / name).read_bytes() == (straight / name).read_bytes()


def test_a_renewed_head_has_a_schedule_of_its_own():
    two = recipe(steps=100, phase_2_share=0.3, crt_lr=2.0)
    rates = np.array([learning_rate(step, two) for step in range(100)])
    alone = recipe(steps=70), recipe(steps=30, lr=2.0)
    np.testing.assert_array_equal(rates, [learning_rate(step, part) for part in alone for step in range(part.steps)])
    assert fit(nn.Linear(5, 3), feature_slots(), feed_features, weighted_asl(torch.full((3,), 0.1)),
               recipe=recipe(steps=2), checkpoint=Path("none"), accelerator=Accelerator(cpu=True)).step == 2


def test_the_stamp_says_which_share_of_the_batches_was_real(run):
    """Ten Hernias and as many negatives beside 40 real images: two thirds by themselves, no less if so wished."""
    shares = [require(go(run, replace(CONFIG, min_real_share=least, steps=6), arm="duplicate", name=f"least{least}"),
                      "train")["extra"]["real_share"] for least in (0.0, 0.75, 1.0)]
    assert shares[0] == pytest.approx(2 / 3, abs=0.15)
    assert shares[0] < shares[1] < shares[2] == 1
    assert shares[1] >= 0.75
    with pytest.raises(TailfillError, match=r"min_real_share is 1\.5"):
        replace(CONFIG, min_real_share=1.5)
