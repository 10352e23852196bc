"""Preference losses against TRL's formulas and their stated limits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from rlhf.training.losses import dpo_loss

ARGUMENTS = [
    torch.tensor(values)
    for values in ([-5.0, -90.0, -3.0], [-7.0, -60.0, -300.0], [-6.0, -80.0, -3.0], [-6.5, -70.0, -20.0])
]
LENGTHS = [torch.tensor([2, 30, 1]), torch.tensor([3, 20, 100])]


def test_sigmoid_is_trl_s():
    losses, chosen, rejected = dpo_loss(*ARGUMENTS, *LENGTHS, beta=0.3)
    delta = (ARGUMENTS[0] - ARGUMENTS[2]) - (ARGUMENTS[1] - ARGUMENTS[3])
    assert torch.equal(losses, -F.logsigmoid(0.3 * delta))
    assert torch.equal(chosen, 0.3 * (ARGUMENTS[0] - ARGUMENTS[2]))
    assert torch.equal(rejected, 0.3 * (ARGUMENTS[1] - ARGUMENTS[3]))


def test_ipo_averages_over_tokens_as_trl_does():
    losses, _, _ = dpo_loss(*ARGUMENTS, *LENGTHS, beta=0.3, loss="ipo")
    delta = (ARGUMENTS[0] - ARGUMENTS[2]) / LENGTHS[0] - (ARGUMENTS[1] - ARGUMENTS[3]) / LENGTHS[1]
    assert torch.allclose(losses, (delta - 1 / 0.6) ** 2, rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_equal_policies_give_ln_2(smoothing):
    losses, _, _ = dpo_loss(*ARGUMENTS[:2], *ARGUMENTS[:2], *LENGTHS, beta=0.1, label_smoothing=smoothing)
    assert torch.allclose(losses, torch.full((3,), math.log(2)), atol=1e-7)


def test_equal_policies_give_a_quarter_of_inverse_beta_squared_for_ipo():
    losses, _, _ = dpo_loss(*ARGUMENTS[:2], *ARGUMENTS[:2], *LENGTHS, beta=0.2, loss="ipo")
    assert torch.allclose(losses, torch.full((3,), 1 / (4 * 0.2**2)))


def test_label_smoothing_is_smallest_where_the_flip_rate_is_met():
    margins = torch.linspace(-10, 10, 2001)
    zero = torch.zeros_like(margins)
    losses, _, _ = dpo_loss(margins, zero, zero, zero, zero, zero, beta=1.0, label_smoothing=0.2)
    assert torch.sigmoid(margins[losses.argmin()]).item() == pytest.approx(0.8, abs=2e-3)
    swapped, _, _ = dpo_loss(zero, margins, zero, zero, zero, zero, beta=1.0, label_smoothing=0.8)
    assert torch.allclose(losses, swapped, atol=1e-6)


def test_rewards_carry_no_gradient_and_the_loss_does():
    chosen = ARGUMENTS[0].clone().requires_grad_()
    losses, reward, _ = dpo_loss(chosen, *ARGUMENTS[1:], *LENGTHS, beta=0.3)
    losses.sum().backward()
    assert not reward.requires_grad
    assert (chosen.grad < 0).all()
