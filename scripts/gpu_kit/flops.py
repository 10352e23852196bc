"""How many operations a DPO step needs, and what a GPU could do at most.

MFU = FLOPs that the step needs / (seconds × peak of the GPU in dense bf16). Needed are, forward and backward
(6 per weight and token: 2 forward, 4 backward):

    6 × weights of all layers' matrices × tokens,   a prompt counted once for its two responses
  + 6 × weights of the head × response tokens       (only they are predicted)
  + 12 × layers × hidden × (query, key) pairs       that causal attention lets see each other

What is done twice (recomputed activations, a prompt for each response, padding) is not needed, so it lowers
the MFU. Published peaks: NVIDIA's data sheets, without sparsity.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from gpu_kit.models import Shape
from rlhf.preflight.devices import GPUS

MFU_FORMULA = (
    "(6 × layer weights × tokens, a prompt once, + 6 × head weights × response tokens + 12 × layers × hidden "
    "× visible query-key pairs) / (seconds × peak); recomputing is not counted"
)

# Of GPUs that `rlhf.plan` does not know.
_OTHER_PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H200 NVL": 835e12,
    "H20": 148e12,
    "H800": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "B100": 1750e12,
    "A800": 312e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 6000 Ada": 364e12,
    "RTX 3090": 71e12,
}


def published_peak(name: str) -> float | None:
    """FLOP/s of a GPU in dense bf16 by the name its driver gives; None where it is not in the list."""
    for gpu in GPUS.values():
        if re.search(gpu.named, name):
            return gpu.flops
    # Longer names first, "H100 PCIe" before "H100"; and whole ones: an H200 is no H20.
    for part in sorted(_OTHER_PEAKS, key=len, reverse=True):
        if re.search(rf"\b{part}\b", name):
            return _OTHER_PEAKS[part]
    return None


def needed_flops(shape: Shape, lengths: Sequence[tuple[int, Sequence[int]]]) -> float:
    """Of one step over pairs, forward and backward.

    Args:
        shape: of the model.
        lengths: tokens of each prompt, and of the responses to it.
    """
    total = 0.0
    for prompt, responses in lengths:
        tokens = prompt + sum(responses)
        visible = prompt * (prompt + 1) / 2
        for response in responses:
            visible += response * prompt + response * (response + 1) / 2
        total += 6 * shape.layers * shape.weights_of_layer * tokens
        total += 6 * shape.weights_of_head * sum(responses)
        total += 12 * shape.layers * shape.hidden * visible
    return total
