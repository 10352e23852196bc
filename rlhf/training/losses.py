"""Preference losses as pure functions of sequence log-probabilities.

Everything is per pair (suffix `_B`), in fp32, in nats. A new loss is one function of `LogRatios` and one line in
`LOSSES`; what it needs besides (more coefficients, an SFT term) is an argument of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LogRatios:
    """How much likelier a response is under the policy than under the reference.

    `chosen_B` and `rejected_B` are log π(y|x) − log π_ref(y|x), summed over the response; the lengths count its tokens.
    """

    chosen_B: Tensor
    rejected_B: Tensor
    chosen_length_B: Tensor
    rejected_length_B: Tensor


def sigmoid_loss(ratios: LogRatios, beta: float, label_smoothing: float) -> Tensor:
    """DPO, arXiv 2305.18290 Eq. 7; with ε = `label_smoothing` the conservative DPO of its authors' note.

    L = −(1 − ε) log σ(h) − ε log σ(−h),  h = β (chosen − rejected).

    h = 0 gives ln 2 for any ε. With ε = 0 it falls to 0 as h → ∞ and grows like −h as h → −∞; with ε > 0 it is
    smallest where σ(h) = 1 − ε.
    """
    h_B = beta * (ratios.chosen_B - ratios.rejected_B)
    return -(1 - label_smoothing) * F.logsigmoid(h_B) - label_smoothing * F.logsigmoid(-h_B)


def ipo_loss(ratios: LogRatios, beta: float, label_smoothing: float) -> Tensor:
    """IPO, arXiv 2310.12036 Eq. 17 with τ = β, on log-ratios averaged over the response's tokens as TRL has it.

    L = (chosen / |y_chosen| − rejected / |y_rejected| − 1 / (2β))². Equal policies give 1 / (4β²); smallest, 0,
    at a margin of 1 / (2β) nats per token.
    """
    assert label_smoothing == 0, "checked where the config is read"
    chosen_B = ratios.chosen_B / ratios.chosen_length_B.clamp(min=1)
    rejected_B = ratios.rejected_B / ratios.rejected_length_B.clamp(min=1)
    return (chosen_B - rejected_B - 1 / (2 * beta)) ** 2


LOSSES: dict[str, Callable[[LogRatios, float, float], Tensor]] = {"sigmoid": sigmoid_loss, "ipo": ipo_loss}


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and implicit rewards of each pair.

    Args:
        policy_chosen_logps_B: log-probability of the chosen response under the policy, summed over its tokens.
        policy_rejected_logps_B: the same of the rejected response.
        ref_chosen_logps_B: the same under the reference; no gradient flows into it.
        ref_rejected_logps_B: the same of the rejected response.
        chosen_length_B: tokens of the chosen response; only `ipo` looks at it.
        rejected_length_B: tokens of the rejected response.
        beta: strength of the KL anchor, above 0.
        loss: a name in `LOSSES`.
        label_smoothing: assumed share of flipped labels, in [0, 0.5); `sigmoid` only.

    Returns:
        losses_B with gradient, and without it the rewards β (log π − log π_ref) of chosen and rejected.
    """
    ratios = LogRatios(
        policy_chosen_logps_B.float() - ref_chosen_logps_B.float(),
        policy_rejected_logps_B.float() - ref_rejected_logps_B.float(),
        chosen_length_B,
        rejected_length_B,
    )
    losses_B = LOSSES[loss](ratios, beta, label_smoothing)
    with torch.no_grad():
        return losses_B, beta * ratios.chosen_B, beta * ratios.rejected_B
