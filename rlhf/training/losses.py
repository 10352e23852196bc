"""Preference losses as pure functions of sequence log-probabilities.

Everything is per pair (suffix `_B`), in fp32, in nats. A new loss is one function of `LogRatios`
and one line in `LOSSES`. Below, h = β (chosen − rejected) is the margin of the implicit rewards and
ε is `label_smoothing`: which values a loss takes is checked in `rlhf.config.limits`.
`docs/training.md` says when to use which loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LogRatios:
    """How much likelier a response is under the policy than under the reference.

    `chosen_B` and `rejected_B` are log π(y|x) − log π_ref(y|x), summed over the response; the
    lengths count its tokens.
    """

    chosen_B: Tensor
    rejected_B: Tensor
    chosen_length_B: Tensor
    rejected_length_B: Tensor


def sigmoid_loss(ratios: LogRatios, beta: float, label_smoothing: float) -> Tensor:
    """DPO, arXiv 2305.18290 Eq. 7; with ε = `label_smoothing` the conservative DPO of its authors' note.

    L = −(1 − ε) log σ(h) − ε log σ(−h).

    h = 0 gives ln 2 for any ε. With ε = 0 it falls to 0 as h → ∞ and grows like −h as h → −∞; with
    ε > 0 it is smallest where σ(h) = 1 − ε.
    """
    h_B = _margins(ratios, beta)
    # logsigmoid, not the logarithm of a sigmoid, which is 0 already at h = −104.
    log_right_B = F.logsigmoid(h_B)
    log_flipped_B = F.logsigmoid(-h_B)
    return -(1 - label_smoothing) * log_right_B - label_smoothing * log_flipped_B


def ipo_loss(ratios: LogRatios, beta: float, label_smoothing: float) -> Tensor:
    """IPO, arXiv 2310.12036 Eq. 17 with τ = β, on log-ratios averaged over tokens as TRL has it.

    L = (chosen / |y_chosen| − rejected / |y_rejected| − 1 / (2β))². Equal policies give 1 / (4β²);
    smallest, 0, at a margin of 1 / (2β) nats per token.
    """
    assert label_smoothing == 0, "checked where the config is read"
    # A response may be empty; its log-ratio is 0 then, and 0 / 1 still is.
    chosen_B = ratios.chosen_B / ratios.chosen_length_B.clamp(min=1)
    rejected_B = ratios.rejected_B / ratios.rejected_length_B.clamp(min=1)
    target = 1 / (2 * beta)
    return (chosen_B - rejected_B - target) ** 2


def robust_loss(ratios: LogRatios, beta: float, label_smoothing: float) -> Tensor:
    """Robust DPO, arXiv 2403.00409: what `sigmoid` would be on average without the flipped labels.

    L = (−(1 − ε) log σ(h) + ε log σ(−h)) / (1 − 2ε), 0 ≤ ε < ½.

    h = 0 gives ln 2 for any ε, and ε = 0 is DPO. Not bounded below: it falls like −ε h / (1 − 2ε)
    as h → ∞, and grows like −(1 − ε) h / (1 − 2ε) as h → −∞.
    """
    h_B = _margins(ratios, beta)
    clean_B = -F.logsigmoid(h_B)
    flipped_B = -F.logsigmoid(-h_B)
    weighted_B = (1 - label_smoothing) * clean_B - label_smoothing * flipped_B
    return weighted_B / (1 - 2 * label_smoothing)


def hinge_loss(ratios: LogRatios, beta: float, label_smoothing: float) -> Tensor:
    """SLiC's hinge on reference-normalised log-probabilities, arXiv 2309.06657 (RSO) with γ = β.

    L = max(0, 1 − h). Equal policies give 1. Zero, with no gradient, from a margin of 1 / β nats
    on; slope −β below.
    """
    assert label_smoothing == 0, "checked where the config is read"
    return torch.relu(1 - _margins(ratios, beta))


def exo_pair_loss(ratios: LogRatios, beta: float, label_smoothing: float) -> Tensor:
    """EXO on pairs, arXiv 2402.00856 Eq. 16: the reverse KL of the policy's preference from the label's.

    L = σ(h) log(σ(h) / (1 − ε)) + σ(−h) log(σ(−h) / ε), 0 < ε < ½ (paper: 1e-3).

    h = 0 gives −ln 2 − ½ ln(ε (1 − ε)). Smallest, 0, where σ(h) = 1 − ε. Bounded: −ln(1 − ε) as h →
    ∞ and −ln ε as h → −∞, with a gradient that fades at both ends.
    """
    assert label_smoothing > 0, "checked where the config is read"
    h_B = _margins(ratios, beta)
    # log1p: log(1 − ε) would lose digits of a small ε.
    log_kept = math.log1p(-label_smoothing)
    log_flipped = math.log(label_smoothing)
    chosen_B = torch.sigmoid(h_B) * (F.logsigmoid(h_B) - log_kept)
    rejected_B = torch.sigmoid(-h_B) * (F.logsigmoid(-h_B) - log_flipped)
    return chosen_B + rejected_B


def _margins(ratios: LogRatios, beta: float) -> Tensor:
    """The h of the formulas above."""
    difference_B = ratios.chosen_B - ratios.rejected_B
    return beta * difference_B


# By the names that `dpo.loss` may have (`rlhf.config.choices.Loss`).
LOSSES: dict[str, Callable[[LogRatios, float, float], Tensor]] = {
    "sigmoid": sigmoid_loss,
    "ipo": ipo_loss,
    "robust": robust_loss,
    "hinge": hinge_loss,
    "exo_pair": exo_pair_loss,
}


def chosen_nll(policy_chosen_logps_B: Tensor, chosen_length_B: Tensor) -> Tensor:
    """The term that `rpo_alpha` weighs, arXiv 2404.19733v3: −log π(chosen) / |y_chosen|, in nats per token.

    The average is over each response's own tokens, so a step's loss is a mean over its pairs
    however they are batched. TRL 1.16 (`loss_type=["sigmoid", "sft"], loss_weights=[1, α]`)
    averages over all chosen tokens of a micro-batch: the same with one pair in it; with more, its
    long responses weigh more.
    """
    num_tokens_B = chosen_length_B.clamp(min=1)  # a response may be empty
    return -policy_chosen_logps_B.float() / num_tokens_B


def dpo_loss(
    policy_chosen_logps_B: Tensor,
    policy_rejected_logps_B: Tensor,
    ref_chosen_logps_B: Tensor,
    ref_rejected_logps_B: Tensor,
    chosen_length_B: Tensor,
    rejected_length_B: Tensor,
    beta: float,
    loss: str = "sigmoid",
    label_smoothing: float = 0.0,
    rpo_alpha: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and implicit rewards of each pair.

    Args:
        policy_chosen_logps_B: log-probability of the chosen response under the policy, summed over
            its tokens.
        policy_rejected_logps_B: the same of the rejected response.
        ref_chosen_logps_B: the same under the reference; no gradient flows into it.
        ref_rejected_logps_B: the same of the rejected response.
        chosen_length_B: tokens of the chosen response; only `ipo` and `rpo_alpha` look at it.
        rejected_length_B: tokens of the rejected response; only `ipo` looks at it.
        beta: strength of the KL anchor, above 0.
        loss: a name in `LOSSES`.
        label_smoothing: assumed share of flipped labels, in [0, 0.5); 0 for `ipo` and `hinge`,
            above 0 for `exo_pair`.
        rpo_alpha: weight of `chosen_nll`, which is added to the loss; 0 is off.

    Returns:
        losses_B with gradient, and without it the rewards β (log π − log π_ref) of chosen and
        rejected.
    """
    # In fp32 before they are subtracted: sums over a response are large, and differ by little.
    ratios = LogRatios(
        policy_chosen_logps_B.float() - ref_chosen_logps_B.float(),
        policy_rejected_logps_B.float() - ref_rejected_logps_B.float(),
        chosen_length_B,
        rejected_length_B,
    )
    losses_B = LOSSES[loss](ratios, beta, label_smoothing)
    if rpo_alpha:
        nll_B = chosen_nll(policy_chosen_logps_B, chosen_length_B)
        losses_B = losses_B + rpo_alpha * nll_B
    # The rewards are for the log alone.
    with torch.no_grad():
        return losses_B, beta * ratios.chosen_B, beta * ratios.rejected_B
