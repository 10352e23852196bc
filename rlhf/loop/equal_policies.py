"""What a preference loss is where a policy is its own reference: a training that is right begins there."""

from __future__ import annotations

import math

from rlhf.config.choices import Loss
from rlhf.config.training import DpoConfig


def loss_at_equal_policies(dpo: DpoConfig) -> float | None:
    """What a pair's loss is when policy and reference are the same: the table of docs/training.md.

    None where nobody knows it beforehand: SimPO has no reference, R-DPO's depends on the pair's lengths, and
    the likelihood that `rpo_alpha` adds on the policy.
    """
    if dpo.rpo_alpha or dpo.length_alpha or dpo.loss is Loss.simpo:
        return None
    if dpo.loss is Loss.hinge:
        return 1.0
    if dpo.loss in (Loss.ipo, Loss.inpo):
        return 1 / (4 * dpo.beta**2)
    if dpo.loss is Loss.exo_pair:
        smoothing = dpo.label_smoothing
        return -math.log(2) - math.log(smoothing * (1 - smoothing)) / 2
    return math.log(2)
