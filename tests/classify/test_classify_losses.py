"""The losses: the formula written again in numpy, its gradient law, its limits, timm's, and unknown labels."""

import numpy as np
import pytest
import torch
from timm.loss import AsymmetricLossMultiLabel
from torch.nn import functional as F

from classify.learning.losses import LOSSES, AsymmetricLoss, prevalence_weights, weighted_asl
from cohort.errors import TailfillError

RNG = np.random.default_rng(3)
LOGITS = torch.tensor(RNG.normal(0, 3, (16, 5)), dtype=torch.float32)
TARGETS = torch.tensor(RNG.integers(0, 2, (16, 5)), dtype=torch.float32)
PREVALENCE = np.array([0.4, 0.1, 0.02, 0.001, 0.0])


def formula(z: np.ndarray, y: np.ndarray, prevalence: np.ndarray, *, gamma_neg=4, gamma_pos=1, clip=0.05) -> float:
    """FIELD's formula, word for word, in float64."""
    w_pos, w_neg = np.exp(1 - prevalence), np.exp(prevalence)
    p = 1 / (1 + np.exp(-z))
    q = np.minimum(1 - p + clip, 1)
    pt = p * y + q * (1 - y)
    return -np.mean((y * w_pos + (1 - y) * w_neg) * (y * np.log(p) + (1 - y) * np.log(q))
                    * (1 - pt) ** (gamma_pos * y + gamma_neg * (1 - y)))


def gradient(loss: AsymmetricLoss, p: np.ndarray, target: float) -> np.ndarray:
    """dL/dz of single labels at probabilities ``p``."""
    logits = torch.tensor(np.log(p / (1 - p)), dtype=torch.float32).unsqueeze(1).requires_grad_()
    loss(logits, torch.full_like(logits, target), n_known=1).backward()
    return logits.grad.numpy()[:, 0]


def test_weighted_asl_is_the_formula():
    found = weighted_asl(torch.tensor(PREVALENCE, dtype=torch.float32))(LOGITS, TARGETS)
    assert float(found) == pytest.approx(formula(LOGITS.double().numpy(), TARGETS.numpy(), PREVALENCE), rel=1e-5)


def test_weights_are_those_of_the_entrants():
    positive, negative = prevalence_weights(torch.tensor([0.0, 1.0]))
    np.testing.assert_allclose(positive, [np.e, 1.0], rtol=1e-6)
    np.testing.assert_allclose(negative, [1.0, np.e], rtol=1e-6)


def test_gradient_law_of_negatives():
    loss = weighted_asl(torch.tensor([0.01]))
    p = np.linspace(0.001, 0.999, 999)
    slope = gradient(loss, p, 0.0)
    assert (slope >= 0).all()
    assert (slope[p <= 0.0499] == 0).all()
    rising = slope[(p > 0.055) & (p <= 0.9)]
    assert (np.diff(rising) > 0).all()


def test_gradient_of_positives_pulls_up():
    assert (gradient(weighted_asl(torch.tensor([0.01])), np.linspace(0.01, 0.99, 99), 1.0) < 0).all()


def test_without_focus_and_margin_it_is_bce():
    ones = torch.ones(5)
    plain = AsymmetricLoss(gamma_neg=0, gamma_pos=0, clip=0, positive_weights=ones, negative_weights=ones)
    expected = F.binary_cross_entropy_with_logits(LOGITS, TARGETS)
    torch.testing.assert_close(plain(LOGITS, TARGETS), expected)
    torch.testing.assert_close(LOSSES["bce"](torch.zeros(5))(LOGITS, TARGETS), expected)


def test_unweighted_mean_is_timms():
    """timm's own ``reduction="mean"`` and its gradient; by default timm differentiates the focusing factor too."""
    ours, theirs = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    found = LOSSES["asl"](torch.zeros(5))(ours, TARGETS)
    expected = AsymmetricLossMultiLabel(gamma_neg=4, gamma_pos=1, clip=0.05, reduction="mean")(theirs, TARGETS)
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_masked_mean_is_timms_over_known_labels():
    known = torch.tensor(RNG.random((16, 5)) < 0.7)
    each = AsymmetricLossMultiLabel(reduction="none")(LOGITS, TARGETS)
    found = LOSSES["asl"](torch.zeros(5))(LOGITS, torch.where(known, TARGETS, torch.nan))
    torch.testing.assert_close(found, each[known].mean())


@pytest.mark.parametrize("unknown", [float("nan"), -1.0])
@pytest.mark.parametrize("name", list(LOSSES))
def test_unknown_labels_change_nothing(name, unknown):
    loss = LOSSES[name](torch.tensor(PREVALENCE, dtype=torch.float32))
    targets = TARGETS.clone()
    targets[:, 3] = unknown
    logits = LOGITS.clone().requires_grad_()
    loss(logits, targets).backward()
    assert (logits.grad[:, 3] == 0).all()
    other = LOGITS.clone()
    other[:, 3] = 50.0
    torch.testing.assert_close(loss(other, targets), loss(LOGITS, targets))


def test_nothing_known_is_zero_not_nan():
    logits = LOGITS.clone().requires_grad_()
    loss = LOSSES["weighted_asl"](torch.zeros(5))(logits, torch.full_like(TARGETS, torch.nan))
    loss.backward()
    assert float(loss.detach()) == 0
    assert (logits.grad == 0).all()


def test_slot_weights_scale_terms_and_not_the_count():
    loss = LOSSES["weighted_asl"](torch.tensor(PREVALENCE, dtype=torch.float32))
    halved = loss(LOGITS, TARGETS, sample_weights=torch.full((16,), 0.5))
    torch.testing.assert_close(halved, loss(LOGITS, TARGETS) / 2)
    weights = torch.tensor(RNG.random(16), dtype=torch.float32)
    rows = torch.stack([loss(LOGITS[i:i + 1], TARGETS[i:i + 1]) for i in range(16)])
    torch.testing.assert_close(loss(LOGITS, TARGETS, sample_weights=weights), (rows * weights).mean())


def test_shares_of_a_batch_average_to_its_loss():
    """Two processes whose halves hold unequal numbers of known labels."""
    loss = LOSSES["weighted_asl"](torch.tensor(PREVALENCE, dtype=torch.float32))
    targets = TARGETS.clone()
    targets[:6, :4] = torch.nan
    n_known = float((targets >= 0).sum()) / 2
    halves = [loss(LOGITS[part], targets[part], n_known=n_known) for part in (slice(0, 8), slice(8, 16))]
    torch.testing.assert_close(torch.stack(halves).mean(), loss(LOGITS, targets))


@pytest.mark.parametrize("name", list(LOSSES))
def test_extreme_logits_stay_finite(name):
    logits = torch.tensor([[-200.0, -40.0, 0.0, 40.0, 200.0]]).requires_grad_()
    for target in (0.0, 1.0):
        value = LOSSES[name](torch.tensor(PREVALENCE, dtype=torch.float32))(logits, torch.full((1, 5), target))
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(logits.grad).all()


def test_half_precision_logits_are_computed_in_float32():
    loss = LOSSES["weighted_asl"](torch.zeros(5))
    assert loss(LOGITS.bfloat16(), TARGETS).dtype == torch.float32


@pytest.mark.parametrize("wrong", [{"gamma_neg": 0.5}, {"gamma_pos": -1}, {"clip": 1.0}, {"clip": -0.1}])
def test_settings_without_a_finite_gradient_are_refused(wrong):
    with pytest.raises(TailfillError, match=next(iter(wrong))):
        AsymmetricLoss(**wrong)
