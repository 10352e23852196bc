"""How many tokens a judge reads in one forward pass."""

from __future__ import annotations

CPU_TOKENS = 2048
"""Tokens of one forward pass on a CPU: more gain nothing, and padding costs more than batching gains."""
GPU_TOKENS = 16384
"""The same on a GPU, which is slow for few."""


def forward_tokens(batch_tokens: int | None, on_gpu: bool) -> int:
    """Tokens of one forward pass; None takes what suits the device."""
    if batch_tokens is not None:
        return batch_tokens
    return GPU_TOKENS if on_gpu else CPU_TOKENS
