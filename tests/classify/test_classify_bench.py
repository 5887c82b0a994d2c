"""The benchmark of the bootstrap measures what it says: two ways to the same values, on the same draws."""

import importlib
import sys
from pathlib import Path

import numpy as np

from classify.comparison.intervals import patient_draws

sys.path.append(str(Path(__file__).parents[2] / "scripts" / "bench"))
bench = importlib.import_module("bootstrap")


def test_both_ways_give_the_same_values_and_are_undefined_alike():
    rng = np.random.default_rng(0)
    scores = bench.make_scores(400, 6, rng)
    patients = np.arange(400) // 2
    draws = patient_draws(200, 5, rng)
    ours, cost = bench.measure_ours(scores, patients=patients, draws=draws, threads=2)
    loop, per_draw = bench.measure_loop(scores, patients=patients, draws=draws)
    assert ours.shape == (bench.N_ARMS * 6, 5, 5)
    np.testing.assert_allclose(ours[:, :2], loop, rtol=0, atol=1e-10)
    assert np.isnan(loop).any(), "a class without a positive in some draw"
    assert cost["processor"] > 0 < per_draw


def test_the_command_reports_all_that_the_goal_is_about(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bootstrap", "--draws", "4", "--classes", "2", "--images", "500",
                                      "--loop-draws", "2"])
    bench.main()
    text = capsys.readouterr().out
    assert "4 draws x 2 classes x 500 images x 2 arms" in text
    assert "extrapolated" in text
    assert "undefined alike: True" in text
