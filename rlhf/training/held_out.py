"""Rows that are kept out of training, and sums over them."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def split(num_rows: int, share: float, seed: int) -> tuple[array[int], array[int]]:
    """Indices of training and held-out rows, both in order, at 4 bytes each; the held-out ones are a seeded
    sample.

    Example:
        `split(5, share=0.4, seed=1)` gives `[0, 1, 2]` and `[3, 4]`
    """
    # A generator of its own, so that the sample depends on nothing that was drawn before.
    generator = random.Random(f"held out {seed}")
    num_held_out = int(num_rows * share)
    held_out = set(generator.sample(range(num_rows), num_held_out))
    # Not lists: they are held as long as the training lasts, and would take nine times as much.
    training = array("i")
    for index in range(num_rows):
        if index not in held_out:
            training.append(index)
    return training, array("i", sorted(held_out))


@torch.no_grad()
def sum_over(
    trainer: Any, dataset: Any, micro_batch_size: int, measure: Callable[[Any, list[Any]], Tensor]
) -> list[float]:
    """The sum over a dataset of what `measure(model, rows)` gives for its rows. Every rank calls it.

    Args:
        trainer: a Trainer that has trained; its model is left in evaluation mode.
        dataset: rows by index, not empty.
        micro_batch_size: rows of one call of `measure` on one rank.
        measure: gives a vector of sums over the rows, always of the same length.
    """
    model = trainer.model_wrapped
    world_size = trainer.args.world_size
    model.eval()
    batch_size = micro_batch_size * world_size
    sums = []
    for start in range(0, len(dataset), batch_size):
        stop = min(start + batch_size, len(dataset))
        indices = range(start + trainer.args.process_index, stop, world_size)
        if indices:
            sums.append(measure(model, [dataset[index] for index in indices]).double())
        else:
            # Under ZeRO-3 all ranks must go through the model equally often, or the others wait for
            # ever: a rank that has no row left repeats the first one and does not count it.
            uncounted = measure(model, [dataset[0]])
            sums.append(torch.zeros_like(uncounted, dtype=torch.float64))
    total = torch.stack(sums).sum(0)
    if dist.is_initialized():
        dist.all_reduce(total)
    return [float(value) for value in total]


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch with its tensors on a device; what is no tensor stays as it is."""
    moved = {}
    for name, value in batch.items():
        moved[name] = value.to(device) if isinstance(value, Tensor) else value
    return moved
