"""The calibration: heads against the training loop, trials that depend on nothing but themselves, counts by hand."""

from dataclasses import replace
from pathlib import Path

import calibrate
import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from calibration_cases import PLANTED
from calibration_heads import Task, train_heads
from calibration_pools import PoolSizes, make_pools
from calibration_summary import controls, coverage, filtering, verdicts
from calibration_trials import AGAIN, Settings, Trial, make_bench
from quick_studio import quick_studio
from torch import nn

from classify.learning.fitting import Recipe, feed_features, fit
from classify.learning.losses import best_constant, weighted_asl
from classify.learning.models import Card, build_classifier, save_card, save_weights
from classify.slots import Slots, prevalence
from cohort.phantom.cases import draw_cases
from cohort.phantom.settings import PhantomConfig

SIZES = PoolSizes(cohorts=2, cohort_images=900, new_images=120, copies=3, test_images=500)
SETTINGS = Settings(steps=40, slots_per_class=10, test_patients=200, n_draws=100)


@pytest.fixture(scope="module")
def bench():
    return make_bench(make_pools(quick_studio(Path(), Path(), processes=1), SIZES, seed=0), SETTINGS)


def test_heads_side_by_side_are_the_training_loops_own(tmp_path):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(120, 8)).astype(np.float32)
    targets = (features[:, :3] + rng.normal(size=(120, 3)) > 1).astype(np.float32)
    recipe = Recipe(name="", seed=(), steps=30, batch_size=8, lr=0.01, warmup_share=0.1, weight_decay=0.05,
                    ema_decay=0.9, grad_clip=0.05, phase_2_share=0.0, checkpoint_every=1000)  # a norm that is clipped
    tasks = []
    for seed, n in enumerate((40, 55, 70)):
        index = rng.integers(0, 120, n)
        slots = Slots(images=[features], index=index, targets=targets[index], phase=np.ones(n, dtype=np.int64),
                      added=np.zeros(n, dtype=bool), weights=rng.uniform(0.3, 1, n).astype(np.float32))
        tasks.append(Task(slots=slots, shares=prevalence(targets[:n]), seed=(5, seed)))
    weights, biases = train_heads(torch.from_numpy(features), tasks, recipe)
    for task, weight, bias in zip(tasks, weights, biases, strict=True):
        head, loss = nn.Linear(8, 3), weighted_asl(torch.from_numpy(task.shares))
        nn.init.zeros_(head.weight)
        head.bias.data = best_constant(loss, torch.from_numpy(task.shares))
        alone = fit(head, task.slots, feed_features, loss, recipe=replace(recipe, seed=task.seed),
                    checkpoint=tmp_path / "none", accelerator=Accelerator(cpu=True)).ema.module
        assert pytest.approx(alone.weight.detach().numpy(), abs=1e-5) == weight.T
        assert bias[0] == pytest.approx(alone.bias.detach().numpy(), abs=1e-5)


def test_pools_share_no_patient_and_name_their_features(bench):
    pools = bench.pools
    people = [set(frame["patient_id"]) for frame in (*(one.frame for one in pools.cohorts), pools.new, pools.test)]
    assert sum(map(len, people)) == len(set.union(*people))
    rows = np.concatenate([*(one.frame["row"] for one in pools.cohorts), pools.new["row"], pools.new["row_without"],
                           *(copies["row"] for copies in pools.copies), pools.test["row"]])
    assert sorted(rows) == list(range(len(pools.features)))
    for cohort, copies in zip(pools.cohorts, pools.copies, strict=True):
        assert set(copies["label_source_id"]) <= set(cohort.split("train")["image_id"])
    for label in pools.cohorts[0].in_group("control"):  # no sign, so nothing can be taken away
        own = pools.new[pools.new["charged_to"] == label]
        assert pools.features[own["row"]] == pytest.approx(pools.features[own["row_without"]])
    tail = pools.new[pools.new["charged_to"].isin(pools.cohorts[0].in_group("tail"))]
    assert (pools.features[tail["row"]] != pools.features[tail["row_without"]]).any(axis=1).all()


def test_a_trial_depends_on_itself_alone(bench):
    trials = [Trial(part="A/A", number=number, cohort=0, arms=("duplicate", AGAIN)) for number in (0, 1)]
    together, alone = bench.run(trials), bench.run(trials[1:])
    rows = [row for row in together["intervals"] if row["trial"] == 1]
    lows = [row["low"] for row in alone["intervals"]]
    assert [row["low"] for row in rows] == pytest.approx(lows, abs=1e-5, nan_ok=True)
    tail = [row["estimate"] for row in together["intervals"] if row["label"] == "tail" and row["n_seeds"] == 5]
    assert tail[0] != tail[1]
    assert 0 not in tail  # the twin is another model


def test_arms_of_a_seed_share_their_slots_and_sets_are_what_they_say(bench):
    repeats = bench.dealer.deal("duplicate", 0, stream=[1, 2])
    for arm in ("oracle", "helpful", "all wrong", "memorised"):
        filled = bench.dealer.deal(arm, 0, stream=[1, 2])
        other = filled.index != repeats.index
        assert 0 < other.mean() < 0.1
        assert (filled.targets[~other] == repeats.targets[~other]).all()
    assert (bench.dealer.deal("only wrong", 0, stream=[1, 2]).index != repeats.index).sum() == pytest.approx(
        2 * (bench.dealer.deal("all wrong", 0, stream=[1, 2]).index != repeats.index).sum(), abs=5)
    wrong = bench.dealer.sets[0]["half wrong"]
    assert set(wrong.groupby("charged_to")["wrong"].mean().round(1)) <= {0.4, 0.5, 0.6}
    for row in wrong[wrong["wrong"]].itertuples():
        assert wrong.loc[row.Index, row.charged_to] == 1
        assert row.patient_id in set(bench.pools.cohorts[1].frame["patient_id"])
    assert (bench.dealer.sets[0]["useless"]["row"].isin(bench.pools.cohorts[0].split("train")["row"])).all()


def test_counts_by_hand():
    truth = pd.DataFrame({"cohort": 0, "arm": "oracle", "label": "tail", "seed": range(2), "delta": [0.1, 0.3]})
    about = {"part": "oracle", "cohort": 0, "arm": "oracle", "n_seeds": 5}
    intervals = pd.DataFrame([{**about, "trial": at, "label": "tail", "estimate": 0.2, "low": low, "high": low + 0.2,
                               "standard_error": 0.05, "df": 9.0, "variance_patients": 0.0, "variance_seeds": 0.0,
                               "variance_interaction": 0.0} for at, low in enumerate((0.1, 0.15, 0.25, np.nan))])
    row = coverage(intervals, truth).iloc[0]
    assert (row["n"], row["share"], row["truth"]) == (3, pytest.approx(2 / 3), pytest.approx(0.2))
    answers = [("helps", np.nan), ("hurts", np.nan), ("no difference", 0.1), ("no difference", 0.3), ("cannot", np.nan)]
    found = verdicts(pd.DataFrame([{**about, "trial": at, "answer": answer, "largest": largest}
                                   for at, (answer, largest) in enumerate(answers)]), truth).iloc[0]
    assert found[["helps", "hurts", "no_difference", "cannot_say", "wrong"]].tolist() == [0.2, 0.2, 0.4, 0.2, 0.4]
    tests = ((0, True, -0.1), (0, False, 0.1), (1, True, 0.1), (2, False, 1.0))
    rows = pd.DataFrame([{**about, "trial": trial, "significant": significant, "delta": delta}
                         for trial, significant, delta in tests])
    assert controls(rows).set_index("found")["share"].to_dict() == pytest.approx({"gain": 1 / 3, "significant": 2 / 3})
    sets = [{"all wrong": pd.DataFrame({"judged": [True, True, False], "wrong": True, "agrees": [False, True, True]})}]
    assert filtering(sets).iloc[0][["judged", "wrong_dropped"]].tolist() == pytest.approx([2 / 3, 0.5])


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("calibrate.open_studio", quick_studio)
    for name in ("useless", "half wrong", "only wrong", "taken away", "memorised"):
        monkeypatch.delitem(PLANTED, name)
    monkeypatch.setattr("sys.argv", ["calibrate.py", "--out", str(tmp_path), "--quick", "--processes", "1"])
    calibrate.main()
    assert capsys.readouterr().out == (tmp_path / "calibration.md").read_text()
    found = pd.read_parquet(tmp_path / "coverage.parquet")
    assert set(found["part"]) <= {"A/A", "A/A, new images", "oracle", "planted"}
    assert pd.read_parquet(tmp_path / "verdicts.parquet")[["helps", "hurts", "no_difference", "cannot_say"]].sum(
        axis=1).to_numpy() == pytest.approx(1)


def test_a_studio_looks_at_pictures_once(tmp_path, monkeypatch):
    torch.manual_seed(0)
    save_card(Card(model="convnext_atto", labels=("a",), image_size=64, mean=0.4, std=0.2), tmp_path / "backbone")
    save_weights(build_classifier("convnext_atto", 1).state_dict(), tmp_path / "backbone" / "ema.safetensors")
    exams = [case.exam for case in draw_cases(PhantomConfig(images=3, seed=3, size=64))]
    first, again = (calibrate.open_studio(tmp_path, tmp_path / "backbone", processes=1) for _ in range(2))
    pixels, rows = first.shoot(exams, "some")
    assert pixels.shape == (3, 64, 64)
    assert first.look(pixels[:2]).tolist() == [3, 4]
    monkeypatch.setattr("cohort.sources.phantom.render", None)
    assert again.shoot(exams, "some")[1].tolist() == rows.tolist() == [0, 1, 2]
    assert (again.blocks[0] == first.blocks[0]).all()
    assert first.blocks[1] == pytest.approx(first.blocks[0][:2], abs=1e-4)
