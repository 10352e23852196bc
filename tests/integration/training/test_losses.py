"""Preference losses against TRL's own code and their stated limits."""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from rlhf.config.choices import Loss
from rlhf.config.training import DpoConfig
from rlhf.training import losses as ours_of
from rlhf.training.losses import LOSSES

ARGUMENTS = [
    torch.tensor(values)
    for values in ([-5.0, -90.0, -3.0], [-7.0, -60.0, -300.0], [-6.0, -80.0, -3.0], [-6.5, -70.0, -20.0])
]
LENGTHS = [torch.tensor([2, 30, 1]), torch.tensor([3, 20, 100])]
SMOOTHED = {"sigmoid": 0.0, "ipo": 0.0, "robust": 0.2, "hinge": 0.0, "exo_pair": 1e-3, "sigmoid_norm": 0.0}
"""The losses that TRL's DPO has too."""
OTHERS = {"score_aware": 0.0, "simpo": 0.0, "inpo": 0.0}
"""Those that it has not: `test_recipe_losses`."""


def dpo_loss(*tensors, beta, loss="sigmoid", label_smoothing=0.0, rpo_alpha=0.0):
    """Loss and rewards with these settings, of pairs that no judge has scored."""
    config = DpoConfig(beta=beta, loss=Loss(loss), label_smoothing=label_smoothing, rpo_alpha=rpo_alpha)
    return ours_of.dpo_loss(*tensors, torch.zeros(len(tensors[0])), config)


def trl_loss(loss, beta, label_smoothing, rpo_alpha, members):
    """What TRL's trainer makes of these pairs as one micro-batch, and its gradient in the
    log-probabilities."""
    from trl import DPOTrainer

    sequences = torch.cat([ARGUMENTS[0][members], ARGUMENTS[1][members]]).requires_grad_()
    lengths = torch.cat([LENGTHS[0][members], LENGTHS[1][members]])
    mask = torch.arange(1 + lengths.max()) <= lengths[:, None]
    mask[:, 0] = False  # the prompt
    per_token = mask[:, 1:] * (sequences / lengths)[:, None]
    ones = torch.ones_like(mask)
    outputs = SimpleNamespace(
        log_probs=per_token, entropy=per_token, mean_logits=per_token, is_top1=ones[:, 1:]
    )
    inputs = {
        "input_ids": ones.long(),
        "attention_mask": ones,
        "completion_mask": mask.long(),
        "ref_chosen_logps": ARGUMENTS[2][members],
        "ref_rejected_logps": ARGUMENTS[3][members],
    }
    same = lambda value: value  # noqa: E731
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(device="cpu", gather=same, gather_for_metrics=same),
        loss_types=[loss, "sft"],
        loss_weights=[1.0, rpo_alpha],
        beta=beta,
        label_smoothing=label_smoothing,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        aux_loss_enabled=False,
        use_weighting=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    value = DPOTrainer._compute_loss(trainer, lambda **kwargs: outputs, inputs, False)
    value.backward()
    return value.detach(), sequences.grad.chunk(2)


def ours(loss, beta, label_smoothing, rpo_alpha):
    chosen, rejected = (value.clone().requires_grad_() for value in ARGUMENTS[:2])
    losses, _, _ = dpo_loss(
        chosen,
        rejected,
        *ARGUMENTS[2:],
        *LENGTHS,
        beta=beta,
        loss=loss,
        label_smoothing=label_smoothing,
        rpo_alpha=rpo_alpha,
    )
    losses.sum().backward()
    return losses.detach(), (chosen.grad, rejected.grad)


@pytest.mark.parametrize("rpo_alpha", [0.0, 0.7])
@pytest.mark.parametrize("beta", [0.01, 0.3])
@pytest.mark.parametrize("loss", SMOOTHED)
def test_each_pair_s_loss_and_gradient_are_trl_s(loss, beta, rpo_alpha):
    assert (
        (SMOOTHED | OTHERS).keys() == {member.value for member in LOSSES} == {member.value for member in Loss}
    )
    losses, gradients = ours(loss, beta, SMOOTHED[loss], rpo_alpha)
    for pair in range(3):
        value, expected = trl_loss(loss, beta, SMOOTHED[loss], rpo_alpha, [pair])
        assert losses[pair].item() == pytest.approx(value.item(), rel=1e-5, abs=1e-7)
        for mine, theirs in zip(gradients, expected, strict=True):
            assert mine[pair].item() == pytest.approx(theirs.item(), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("loss", SMOOTHED)
def test_the_mean_over_pairs_is_trl_s_over_a_batch(loss):
    value, _ = trl_loss(loss, 0.3, SMOOTHED[loss], 0.0, [0, 1, 2])
    assert ours(loss, 0.3, SMOOTHED[loss], 0.0)[0].mean().item() == pytest.approx(value.item(), rel=1e-5)


def test_the_nll_term_averages_over_a_response_s_own_tokens():
    plain, with_nll = ours("sigmoid", 0.3, 0.0, 0.0)[0], ours("sigmoid", 0.3, 0.0, 2.0)[0]
    assert torch.allclose(with_nll - plain, 2 * torch.tensor([5 / 2, 90 / 30, 3 / 1]), rtol=1e-5)


def at(margins, loss, beta=1.0, label_smoothing=0.0):
    """Losses and gradients where the log-ratio of chosen over rejected has these values."""
    margins = margins.clone().requires_grad_()
    zero = torch.zeros_like(margins)
    losses, _, _ = dpo_loss(
        margins, zero, zero, zero, zero, zero, beta=beta, loss=loss, label_smoothing=label_smoothing
    )
    losses.sum().backward()
    return losses.detach(), margins.grad


@pytest.mark.parametrize("loss", SMOOTHED | OTHERS)
def test_loss_and_gradient_stay_finite_far_away(loss):
    smoothing = (SMOOTHED | OTHERS)[loss]
    losses, gradients = at(torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4]), loss, 1.0, smoothing)
    assert losses.isfinite().all() and gradients.isfinite().all()
    assert gradients[0] <= 0


def test_limits_of_robust():
    for epsilon in (0.0, 0.2, 0.4):
        losses, gradients = at(torch.tensor([0.0, -50.0, 50.0]), "robust", 1.0, epsilon)
        expected = [math.log(2), 50 * (1 - epsilon) / (1 - 2 * epsilon), -50 * epsilon / (1 - 2 * epsilon)]
        assert losses.tolist() == pytest.approx(expected, abs=1e-5)
        assert gradients[2].item() == pytest.approx(-epsilon / (1 - 2 * epsilon), abs=1e-6)
    clean, flipped = (at(torch.tensor([sign * 1.3]), "robust", 1.0, 0.2)[0] for sign in (1, -1))
    assert (0.8 * clean + 0.2 * flipped).item() == pytest.approx(
        at(torch.tensor([1.3]), "sigmoid")[0].item(), rel=1e-5
    )


def test_limits_of_hinge():
    losses, gradients = at(torch.tensor([0.0, -3.0, 4.9, 5.1, 50.0]), "hinge", 0.2)
    assert losses.tolist() == pytest.approx([1, 1.6, 0.02, 0, 0], abs=1e-6)
    assert gradients.tolist() == pytest.approx([-0.2, -0.2, -0.2, 0, 0])


def test_limits_of_exo_pair():
    epsilon = 0.01
    losses, gradients = at(torch.tensor([0.0, -60.0, 60.0]), "exo_pair", 1.0, epsilon)
    ends = [
        -math.log(2) - 0.5 * math.log(epsilon * (1 - epsilon)),
        -math.log(epsilon),
        -math.log(1 - epsilon),
    ]
    assert losses.tolist() == pytest.approx(ends, abs=1e-5)
    assert gradients[1:].abs().max() < 1e-6
    margins = torch.linspace(-10, 10, 4001)
    losses, _ = at(margins, "exo_pair", 1.0, epsilon)
    assert losses.min().item() == pytest.approx(0, abs=1e-5)
    assert torch.sigmoid(margins[losses.argmin()]).item() == pytest.approx(1 - epsilon, abs=1e-4)


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
