"""One step's gradient in bf16 over few and many bins, added up in bf16 and in fp32, against fp32."""

from __future__ import annotations

import random
from typing import Any

from gpu_kit.figures import Kit
from gpu_kit.models import SMALL, TOY, device_name, random_model

PACKAGES = ("torch", "transformers", "pyarrow")

_NUM_PAIRS = 64
_BINS = (2, 64)
_LARGEST_CHANGE = 1.1
"""So many times the error over 2 bins may be that over 64, where gradients add up in fp32."""


def measure(kit: Kit) -> None:
    """The relative distance to the gradient of one fp32 batch, for each way of adding up."""
    import torch

    shape = TOY if kit.is_toy else SMALL
    rng = random.Random(0)
    longest = 12 if kit.is_toy else 96
    pairs = []
    for _ in range(_NUM_PAIRS):
        lengths = [rng.randint(4, longest) for _ in range(3)]
        pairs.append([[rng.randrange(10, shape.vocabulary) for _ in range(length)] for length in lengths])
    model = random_model(shape.config(), torch.float32)
    exact = gradient(model, pairs, num_bins=2, sum_dtype=torch.float32)
    # Rounded in place: the very same weights.
    model = model.to(torch.bfloat16)
    off: dict[tuple[str, int], float] = {}
    for name, sum_dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        for num_bins in _BINS:
            found = gradient(model, pairs, num_bins, sum_dtype)
            off[name, num_bins] = distance(found, exact)
            del found
            detail = f"{_NUM_PAIRS} pairs"
            kit.add(f"added up in {name} over {num_bins} bins, off by", off[name, num_bins], detail=detail)
    few, many = _BINS
    for name, bar in (("fp32", _LARGEST_CHANGE), ("bf16", None)):
        change = off[name, many] / off[name, few]
        kit.add(f"added up in {name}, {many} bins over {few}", change, "×", bar, lower_is_better=True)


def gradient(model: Any, pairs: list[list[list[int]]], num_bins: int, sum_dtype: Any) -> list[Any]:
    """Of the mean DPO loss over all pairs, in so many bins whose gradients add up in `sum_dtype`."""
    import torch

    from rlhf.config.training import DpoConfig
    from rlhf.training.losses import dpo_loss
    from rlhf.training.response_batches import batch_logprobs, batching_of

    batching, _ = batching_of(model, None, device_name() == "cuda")
    sums = [torch.zeros_like(weight, dtype=sum_dtype) for weight in model.parameters()]
    for number in range(num_bins):
        members = pairs[number::num_bins]
        responses = [pair[1:] for pair in members]
        batch = batching.batch([pair[0] for pair in members], responses).to(torch.device(device_name()))
        chosen, rejected = batch_logprobs(model, batch).view(-1, 2).unbind(1)
        sizes = torch.tensor([[len(ids) for ids in both] for both in responses], device=chosen.device)
        no_scores = torch.zeros_like(chosen)
        # The reference is the policy, in this very computation: the loss is ln 2, its gradient is not 0.
        losses, *_ = dpo_loss(
            chosen,
            rejected,
            chosen.detach(),
            rejected.detach(),
            sizes[:, 0],
            sizes[:, 1],
            no_scores,
            DpoConfig(),
        )
        (losses.sum() / len(pairs)).backward()
        for total, weight in zip(sums, model.parameters(), strict=True):
            total += weight.grad.to(sum_dtype)
            weight.grad = None
    return sums


def distance(found: list[Any], exact: list[Any]) -> float:
    """The relative distance of two gradients over all weights."""
    squared = 0.0
    size = 0.0
    for ours, theirs in zip(found, exact, strict=True):
        squared += float((ours.double() - theirs.double()).square().sum())
        size += float(theirs.double().square().sum())
    return (squared / size) ** 0.5
