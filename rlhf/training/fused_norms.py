"""RMSNorm in one kernel, in place of the seven that transformers' own takes on a GPU."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

_TRIED = {
    "LlamaRMSNorm",
    "MistralRMSNorm",
    "MixtralRMSNorm",
    "Phi3RMSNorm",
    "Qwen2RMSNorm",
    "Qwen2MoeRMSNorm",
    "Qwen3RMSNorm",
    "Qwen3MoeRMSNorm",
    "SmolLM3RMSNorm",
}
"""Classes of transformers that compute weight · x / √(mean(x²) + ε), as a test holds against them. Gemma's
are others: theirs is 1 + weight."""


class FusedRMSNorm(nn.Module):
    """Any of `_TRIED` with its own weight: computed in fp32 and rounded once, where those round twice."""

    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, hidden: Tensor) -> Tensor:
        """(…, width) to the same shape and dtype."""
        return F.rms_norm(hidden, self.weight.shape, self.weight, self.variance_epsilon)


def use_fused_norms(model: Any) -> int:
    """Make the norms of a transformers model `FusedRMSNorm`, for good; others stay as they are.

    Measured on an H200 at 8B shapes: a step of DPO takes 7 % less (docs/gpu.md).

    Returns:
        How many were changed.
    """
    changed = 0
    for module in model.modules():
        kind = type(module)
        # Code that came with a model may call itself whatever it likes.
        if kind.__name__ in _TRIED and kind.__module__.startswith("transformers."):
            # Its class alone, as of a `TargetHead`: the weight is adapted or shared out where it is.
            module.__class__ = FusedRMSNorm
            changed += 1
    return changed
