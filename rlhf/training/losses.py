"""Preference losses as pure functions of sequence log-probabilities.

Everything is per pair (suffix `_B`), in fp32, in nats. A new loss is one function of `LogRatios` and the
settings, and one line in `LOSSES`. Below, h = β (chosen − rejected) is the margin of the implicit rewards and
ε is `label_smoothing`: which values a loss takes is checked in `rlhf.config.limits`.
`docs/training.md` has them side by side, `docs/recipes.md` says when to use which.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf.config.choices import Loss
from rlhf.config.training import DpoConfig


@dataclass(frozen=True)
class LogRatios:
    """How much likelier a response is under the policy than under its anchor, of each pair.

    `chosen_B` and `rejected_B` are log π(y|x) − log π_anchor(y|x), summed over the response; the lengths
    count its tokens. The anchor is the reference; of `inpo` the mixture of two (`mixed_anchor`), of `simpo`
    there is none, and they are log π(y|x). `score_margin_B` is how much better the judge found the chosen
    response; NaN where no judge was asked.
    """

    chosen_B: Tensor
    rejected_B: Tensor
    chosen_length_B: Tensor
    rejected_length_B: Tensor
    score_margin_B: Tensor

    def per_token(self) -> tuple[Tensor, Tensor]:
        """Both log-ratios averaged over the tokens of their response."""
        # A response may be empty; its log-ratio is 0 then, and 0 / 1 still is.
        chosen_B = self.chosen_B / self.chosen_length_B.clamp(min=1)
        rejected_B = self.rejected_B / self.rejected_length_B.clamp(min=1)
        return chosen_B, rejected_B


def sigmoid_loss(ratios: LogRatios, config: DpoConfig) -> Tensor:
    """DPO, arXiv 2305.18290 Eq. 7; with ε = `label_smoothing` the conservative DPO of its authors' note; with
    α = `length_alpha` R-DPO, arXiv 2403.19159, which takes what length alone explains out of the reward.

    L = −(1 − ε) log σ(h) − ε log σ(−h), where α (|y_chosen| − |y_rejected|) is added to h.

    h = 0 gives ln 2 for any ε. With ε = 0 it falls to 0 as h → ∞ and grows like −h as h → −∞; with
    ε > 0 it is smallest where σ(h) = 1 − ε. α = 0, or equal lengths, is plain DPO; with α > 0 a longer chosen
    response needs less of a margin and a shorter one more.
    """
    h_B = _margins(ratios, config.beta)
    if config.length_alpha:
        h_B = h_B + config.length_alpha * (ratios.chosen_length_B - ratios.rejected_length_B)
    return _cross_entropy(h_B, 1 - config.label_smoothing)


def score_aware_loss(ratios: LogRatios, config: DpoConfig) -> Tensor:
    """DPO whose targets are the judge's, arXiv 2502.00203: reward-aware preference optimisation with the
    backward Kullback-Leibler distance of Bernoulli distributions, but for the entropy of the target, which
    has no gradient.

    L = −p log σ(h) − (1 − p) log σ(−h), p = σ(s · (score_chosen − score_rejected)), s = `score_scale`.

    h = 0 gives ln 2 for any p. Smallest, the entropy of p, where h is s times the score margin: close calls
    are not driven apart, as one ε for all pairs would. DPO as the margin → ∞, whatever s; a margin of
    log((1 − ε) / ε) / s is `sigmoid` with that ε.
    """
    target_B = torch.sigmoid(config.score_scale * ratios.score_margin_B)
    return _cross_entropy(_margins(ratios, config.beta), target_B)


def sigmoid_norm_loss(ratios: LogRatios, config: DpoConfig) -> Tensor:
    """Length-normalised DPO, arXiv 2411.15124 (Tülu 3, section 5): log-ratios averaged over tokens.

    L = −log σ(β (chosen / |y_chosen| − rejected / |y_rejected|)). Equal policies give ln 2; responses of one
    token each make it DPO. Tülu 3 has β = 5: per token, margins are small.
    """
    chosen_B, rejected_B = ratios.per_token()
    return _cross_entropy(config.beta * (chosen_B - rejected_B), 1.0)


def simpo_loss(ratios: LogRatios, config: DpoConfig) -> Tensor:
    """SimPO, arXiv 2405.14734 Eq. 6: no reference, log-probabilities averaged over tokens, a margin to reach.

    L = −log σ(β log π(y_chosen) / |y_chosen| − β log π(y_rejected) / |y_rejected| − γ), γ = `simpo_gamma`.

    Equally likely responses give log(1 + e^γ), so ln 2 with γ = 0. Half-way down, ln 2, at a margin of γ / β
    nats per token. With γ = 0 it is `sigmoid_norm` against a reference that finds all tokens equally likely.
    """
    chosen_B, rejected_B = ratios.per_token()
    return _cross_entropy(config.beta * (chosen_B - rejected_B) - config.simpo_gamma, 1.0)


def ipo_loss(ratios: LogRatios, config: DpoConfig) -> Tensor:
    """IPO, arXiv 2310.12036 Eq. 17 with τ = β, on log-ratios averaged over tokens as TRL has it.

    L = (chosen / |y_chosen| − rejected / |y_rejected| − 1 / (2β))². Equal policies give 1 / (4β²);
    smallest, 0, at a margin of 1 / (2β) nats per token.
    """
    chosen_B, rejected_B = ratios.per_token()
    target = 1 / (2 * config.beta)
    return (chosen_B - rejected_B - target) ** 2


def inpo_loss(ratios: LogRatios, config: DpoConfig) -> Tensor:
    """INPO, arXiv 2407.00617 (h_t and Algorithm 1) with η = β, on log-ratios to `mixed_anchor`.

    L = (h − 1 / (2η))², h = Δπ − (τ/η) Δπ0 − (1 − τ/η) Δπ_{t−1}, where Δ is the log-probability of the chosen
    response minus that of the rejected one, each summed over its tokens.

    Where π is both anchors, as at the first step of iteration 1, it is 1 / (4η²). Smallest, 0, at a margin of
    1 / (2η) nats. With one anchor, or two equal ones, it is IPO on whole responses.
    """
    target = 1 / (2 * config.beta)
    return (ratios.chosen_B - ratios.rejected_B - target) ** 2


def robust_loss(ratios: LogRatios, config: DpoConfig) -> Tensor:
    """Robust DPO, arXiv 2403.00409: what `sigmoid` would be on average without the flipped labels.

    L = (−(1 − ε) log σ(h) + ε log σ(−h)) / (1 − 2ε), 0 ≤ ε < ½.

    h = 0 gives ln 2 for any ε, and ε = 0 is DPO. Not bounded below: it falls like −ε h / (1 − 2ε)
    as h → ∞, and grows like −(1 − ε) h / (1 − 2ε) as h → −∞.
    """
    h_B = _margins(ratios, config.beta)
    smoothing = config.label_smoothing
    clean_B = -F.logsigmoid(h_B)
    flipped_B = -F.logsigmoid(-h_B)
    weighted_B = (1 - smoothing) * clean_B - smoothing * flipped_B
    return weighted_B / (1 - 2 * smoothing)


def hinge_loss(ratios: LogRatios, config: DpoConfig) -> Tensor:
    """SLiC's hinge on reference-normalised log-probabilities, arXiv 2309.06657 (RSO) with γ = β.

    L = max(0, 1 − h). Equal policies give 1. Zero, with no gradient, from a margin of 1 / β nats
    on; slope −β below.
    """
    return torch.relu(1 - _margins(ratios, config.beta))


def exo_pair_loss(ratios: LogRatios, config: DpoConfig) -> Tensor:
    """EXO on pairs, arXiv 2402.00856 Eq. 16: the reverse KL of the policy's preference from the label's.

    L = σ(h) log(σ(h) / (1 − ε)) + σ(−h) log(σ(−h) / ε), 0 < ε < ½ (paper: 1e-3).

    h = 0 gives −ln 2 − ½ ln(ε (1 − ε)). Smallest, 0, where σ(h) = 1 − ε. Bounded: −ln(1 − ε) as h →
    ∞ and −ln ε as h → −∞, with a gradient that fades at both ends.
    """
    smoothing = config.label_smoothing
    assert smoothing > 0, "checked where the config is read"
    h_B = _margins(ratios, config.beta)
    # log1p: log(1 − ε) would lose digits of a small ε.
    log_kept = math.log1p(-smoothing)
    log_flipped = math.log(smoothing)
    chosen_B = torch.sigmoid(h_B) * (F.logsigmoid(h_B) - log_kept)
    rejected_B = torch.sigmoid(-h_B) * (F.logsigmoid(-h_B) - log_flipped)
    return chosen_B + rejected_B


def _margins(ratios: LogRatios, beta: float) -> Tensor:
    """The h of the formulas above."""
    difference_B = ratios.chosen_B - ratios.rejected_B
    return beta * difference_B


def _cross_entropy(h_B: Tensor, target: Tensor | float) -> Tensor:
    """−p log σ(h) − (1 − p) log σ(−h), where p is the target's probability that the label is right."""
    # logsigmoid, not the logarithm of a sigmoid, which is 0 already at h = −104.
    log_right_B = F.logsigmoid(h_B)
    log_flipped_B = F.logsigmoid(-h_B)
    return -target * log_right_B - (1 - target) * log_flipped_B


LOSSES: dict[Loss, Callable[[LogRatios, DpoConfig], Tensor]] = {
    Loss.sigmoid: sigmoid_loss,
    Loss.ipo: ipo_loss,
    Loss.robust: robust_loss,
    Loss.hinge: hinge_loss,
    Loss.exo_pair: exo_pair_loss,
    Loss.sigmoid_norm: sigmoid_norm_loss,
    Loss.score_aware: score_aware_loss,
    Loss.simpo: simpo_loss,
    Loss.inpo: inpo_loss,
}
_PER_TOKEN = (Loss.sigmoid_norm, Loss.simpo)
"""Losses whose implicit rewards are averages over tokens."""


def mixed_anchor(initial: float, previous: float, initial_share: float) -> float:
    """What `inpo` holds a response against: s · log π0 + (1 − s) · log π_{t−1}, where s = τ/η."""
    return initial_share * initial + (1 - initial_share) * previous


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
    score_margin_B: Tensor,
    config: DpoConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and implicit rewards of each pair.

    Args:
        policy_chosen_logps_B: log-probability of the chosen response under the policy, summed over
            its tokens.
        policy_rejected_logps_B: the same of the rejected response.
        ref_chosen_logps_B: the same under the anchor (`LogRatios`), 0 without one; no gradient flows into it.
        ref_rejected_logps_B: the same of the rejected response.
        chosen_length_B: tokens of the chosen response.
        rejected_length_B: tokens of the rejected response.
        score_margin_B: the judge's score of the chosen response minus that of the rejected one, as they were
            paired by; only `score_aware` looks at it.
        config: names the loss, and has its β and the rest; `rpo_alpha` · `chosen_nll` is added to any.

    Returns:
        losses_B with gradient, and without it the rewards of chosen and rejected: β (log π − log π_anchor),
        per token where the loss is of averages.
    """
    # In fp32 before they are subtracted: sums over a response are large, and differ by little.
    ratios = LogRatios(
        policy_chosen_logps_B.float() - ref_chosen_logps_B.float(),
        policy_rejected_logps_B.float() - ref_rejected_logps_B.float(),
        chosen_length_B,
        rejected_length_B,
        score_margin_B.float(),
    )
    losses_B = LOSSES[config.loss](ratios, config)
    if config.rpo_alpha:
        nll_B = chosen_nll(policy_chosen_logps_B, chosen_length_B)
        losses_B = losses_B + config.rpo_alpha * nll_B
    # The rewards are for the log alone.
    with torch.no_grad():
        chosen_B, rejected_B = ratios.chosen_B, ratios.rejected_B
        # Accuracy and margin are to be those that the loss sees.
        if config.loss in _PER_TOKEN:
            chosen_B, rejected_B = ratios.per_token()
        return losses_B, config.beta * chosen_B, config.beta * rejected_B
