"""The losses of recipes that came after the paper, against values worked out in decimal arithmetic, their limits,
and TRL where it has them (`sigmoid_norm` too: `test_losses`)."""

from __future__ import annotations

from decimal import Decimal, getcontext
from types import SimpleNamespace

import pytest
import torch

from rlhf.config.choices import Loss
from rlhf.config.training import DpoConfig
from rlhf.training.losses import dpo_loss, mixed_anchor

getcontext().prec = 40

# One pair: log π −5 and −7, log π_ref −6 and −6.5, lengths 2 and 3, scores 1.5 apart. So the log-ratios are 1 and
# −0.5, per token 0.5 and −1/6.
POLICY, REFERENCE, LENGTHS, SCORES = (-5.0, -7.0), (-6.0, -6.5), (2, 3), 1.5


def sigmoid(x):
    return 1 / (1 + (-Decimal(x)).exp())


def cross_entropy(h, p=1):
    return -Decimal(p) * sigmoid(h).ln() - (1 - Decimal(p)) * sigmoid(-Decimal(h)).ln()


def of_pair(config, policy=POLICY, reference=REFERENCE, lengths=LENGTHS, scores=SCORES):
    """Loss, gradients in the two log-probabilities, and rewards."""
    logps = [torch.tensor([value], requires_grad=True) for value in policy]
    anchors = [torch.tensor([value]) for value in reference]
    sizes = [torch.tensor([length]) for length in lengths]
    losses, *rewards = dpo_loss(*logps, *anchors, *sizes, torch.tensor([scores]), config)
    losses.sum().backward()
    gradients = [value.grad.item() for value in logps]
    return losses.item(), gradients, [reward.item() for reward in rewards]


D = Decimal
MIXED = tuple(mixed_anchor(a, b, 0.4) for a, b in zip(REFERENCE, (-5.5, -6.8), strict=True))
CASES = {
    # h = 0.5 · 1.5 + 0.2 · (2 − 3)
    "rdpo": (DpoConfig(beta=0.5, length_alpha=0.2), REFERENCE, cross_entropy(D("0.55"))),
    # h = 0.5 · (1/2 + 0.5/3)
    "sigmoid_norm": (DpoConfig(beta=0.5, loss=Loss.sigmoid_norm), REFERENCE, cross_entropy(D(1) / 3)),
    # h = 0.5 · (−5/2 + 7/3) − 0.3
    "simpo": (
        DpoConfig(beta=0.5, loss=Loss.simpo, simpo_gamma=0.3),
        (0.0, 0.0),
        cross_entropy(D("-0.5") / 6 - D("0.3")),
    ),
    # h = 0.75, p = σ(0.8 · 1.5)
    "score_aware": (
        DpoConfig(beta=0.5, loss=Loss.score_aware, score_scale=0.8),
        REFERENCE,
        cross_entropy(D("0.75"), sigmoid(D("1.2"))),
    ),
    # The anchor is 0.4 · −6 + 0.6 · −5.5 = −5.7 and 0.4 · −6.5 + 0.6 · −6.8 = −6.68, so h = 0.7 + 0.32 = 1.02,
    # and 1 / (2 · 0.25) = 2.
    "inpo": (DpoConfig(beta=0.25, loss=Loss.inpo), MIXED, D("0.9604")),
}


@pytest.mark.parametrize("name", CASES)
def test_the_value_is_the_one_worked_out(name):
    config, anchor, expected = CASES[name]
    assert of_pair(config, reference=anchor)[0] == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_step_downhill_makes_the_chosen_response_likelier(name):
    config, anchor, _ = CASES[name]
    _, (chosen, rejected), _ = of_pair(config, reference=anchor)
    assert chosen < 0 < rejected


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_the_slope(name):
    config, anchor, _ = CASES[name]
    _, gradients, _ = of_pair(config, reference=anchor)
    for side in range(2):
        ends = []
        for step in (0.01, -0.01):
            moved = [value + step * (number == side) for number, value in enumerate(POLICY)]
            ends.append(of_pair(config, policy=moved, reference=anchor)[0])
        assert gradients[side] == pytest.approx((ends[0] - ends[1]) / 0.02, abs=2e-4)


def plain(**settings):
    return of_pair(DpoConfig(beta=0.5, **settings))[:2]


def test_limits_in_which_a_loss_becomes_plain_dpo():
    dpo = plain()
    assert plain(loss=Loss.score_aware, score_scale=1e4) == dpo, "a judge without a doubt"
    of_one_token = of_pair(DpoConfig(beta=0.5, loss=Loss.sigmoid_norm), lengths=(1, 1))[:2]
    assert of_one_token == of_pair(DpoConfig(beta=0.5), lengths=(1, 1))[:2]
    as_long = {"lengths": (3, 3)}
    with_term = of_pair(DpoConfig(beta=0.5, length_alpha=0.7), **as_long)[:2]
    assert with_term == of_pair(DpoConfig(beta=0.5), **as_long)[:2]
    # A margin of log((1 − ε) / ε) is how sure a label is that is flipped in ε of the cases.
    margin = float(D(9).ln())
    found = of_pair(DpoConfig(beta=0.5, loss=Loss.score_aware), scores=margin)[0]
    assert found == pytest.approx(plain(label_smoothing=0.1)[0], rel=1e-6)


def test_a_longer_chosen_response_needs_less_of_a_margin_and_a_shorter_one_more():
    config = DpoConfig(beta=0.5, length_alpha=0.2)
    shorter, longer = (of_pair(config, lengths=lengths)[0] for lengths in ((2, 3), (3, 2)))
    assert longer < plain()[0] < shorter


def test_score_aware_is_smallest_where_the_policy_prefers_as_surely_as_the_judge():
    config = DpoConfig(beta=1.0, loss=Loss.score_aware, score_scale=2.0)
    margins = [number / 100 for number in range(501)]
    found = [
        of_pair(config, policy=(margin, 0.0), reference=(0.0, 0.0), scores=0.75)[0] for margin in margins
    ]
    assert margins[found.index(min(found))] == pytest.approx(1.5, abs=0.01)


def test_simpo_is_length_normalised_dpo_without_a_reference_and_a_margin():
    found = of_pair(DpoConfig(beta=0.5, loss=Loss.simpo, simpo_gamma=0.0), reference=(0.0, 0.0))
    assert found == of_pair(DpoConfig(beta=0.5, loss=Loss.sigmoid_norm), reference=(0.0, 0.0))
    _, _, rewards = found
    assert rewards == pytest.approx([0.5 * -2.5, 0.5 * -7 / 3]), "its rewards are averages over tokens"


@pytest.mark.parametrize(("share", "anchor"), [(1.0, REFERENCE), (0.0, (-5.5, -6.8))])
def test_inpo_with_one_anchor_is_ipo_on_whole_responses(share, anchor):
    mixed = [mixed_anchor(a, b, share) for a, b in zip(REFERENCE, (-5.5, -6.8), strict=True)]
    assert mixed == list(anchor)
    found = of_pair(DpoConfig(beta=0.25, loss=Loss.inpo), reference=mixed, lengths=(1, 1))
    assert found == of_pair(DpoConfig(beta=0.25, loss=Loss.ipo), reference=anchor, lengths=(1, 1))


def test_inpo_against_itself_is_a_quarter_of_inverse_eta_squared():
    loss, _, _ = of_pair(DpoConfig(beta=7.5e-3, loss=Loss.inpo), reference=POLICY)
    assert loss == pytest.approx(float(1 / (4 * D("0.0075") ** 2)), rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.6])
@pytest.mark.parametrize("beta", [2.0, 10.0])
def test_simpo_is_trl_s(beta, gamma):
    from trl.experimental.cpo import CPOTrainer

    trainer = SimpleNamespace(
        alpha=0.0,
        loss_type="simpo",
        simpo_gamma=gamma,
        beta=beta,
        label_smoothing=0.0,
        accelerator=SimpleNamespace(device="cpu"),
    )
    logps = [torch.tensor([value], requires_grad=True) for value in POLICY]
    averages = [value / length for value, length in zip(logps, LENGTHS, strict=True)]
    losses, *rewards = CPOTrainer.cpo_loss(trainer, *averages)
    losses.sum().backward()
    config = DpoConfig(beta=beta, loss=Loss.simpo, simpo_gamma=gamma)
    loss, gradients, own_rewards = of_pair(config, reference=(0.0, 0.0))
    assert loss == pytest.approx(losses.item(), rel=1e-6)
    assert gradients == pytest.approx([value.grad.item() for value in logps], rel=1e-6)
    assert own_rewards == pytest.approx([reward.item() for reward in rewards], rel=1e-6)
