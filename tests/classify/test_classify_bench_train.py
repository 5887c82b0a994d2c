"""The benchmark of training compares equals: one model, one loss, as many steps, and says what it set out to say."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from timm.loss import AsymmetricLossMultiLabel

from classify.learning.losses import asl

sys.path.append(str(Path(__file__).parents[2] / "scripts" / "bench"))
bench = importlib.import_module("train")
TINY = ["--model", "test_convnext", "--size", "32", "--images", "8", "--batch", "4", "--steps", "2", "--rounds", "2",
        "--threads", "1", "--workers", "1"]


def test_both_losses_are_one_where_all_labels_are_known():
    logits = torch.randn(16, 5, generator=torch.Generator().manual_seed(0)) * 3
    targets = (torch.rand(16, 5, generator=torch.Generator().manual_seed(1)) < 0.3).float()
    torch.testing.assert_close(asl(torch.zeros(5))(logits, targets),
                               AsymmetricLossMultiLabel(reduction="mean")(logits, targets), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("words", "told"), [(["--batch", "9"], "no more than --images"),
                                             (["--rounds", "0"], "1 or more"), (["--steps", "0"], "1 or more")])
def test_what_would_never_end_or_measure_nothing_is_refused(capsys, words, told):
    with pytest.raises(SystemExit, match="2"):
        bench.parse([*TINY, *words])
    assert told in capsys.readouterr().err


def test_the_command_reports_all_that_the_goal_is_about(capsys):
    bench.main(TINY)
    text = capsys.readouterr().out
    for words in ("Tailfill", "the usual way", "images/s", "of a step", "MiB", "wall time", "processor time",
                  "2 steps of 4 images"):
        assert words in text


def test_the_usual_way_sees_every_file_once_an_epoch(tmp_path):
    options = bench.parse([*TINY, "--workers", "0"])
    data = bench.draw(options, tmp_path)
    batches = bench.endless(data, options)
    seen = torch.cat([next(batches)[1] for _ in range(2)])
    assert sorted(map(tuple, seen.tolist())) == sorted(map(tuple, data.labels.tolist()))
    images, _ = next(batches)
    assert images.shape == (4, 1, 32, 32)
    assert images.mean().item() == pytest.approx(0, abs=1)
