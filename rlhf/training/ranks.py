"""A process among the ranks of its training; without a process group it is the only one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist


def own_rank() -> int:
    """The number of this process, from 0."""
    if dist.is_initialized():
        return dist.get_rank()
    return 0


def world_size() -> int:
    """How many ranks there are."""
    if dist.is_initialized():
        return dist.get_world_size()
    return 1


def barrier() -> None:
    """Wait until all ranks are here."""
    if dist.is_initialized():
        dist.barrier()


def sum_over_ranks(values: list[float]) -> list[float]:
    """The sum of each value over the ranks, in 64 bits; all ranks get it. Every rank calls it."""
    if not dist.is_initialized():
        return values
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return [float(value) for value in total.tolist()]


def min_over_ranks(value: float) -> float:
    """The smallest of the ranks' values; all get it. Every rank calls it."""
    if not dist.is_initialized():
        return value
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    least = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return float(least)


def on_rank_zero(action: Callable[[], Any]) -> Any:
    """Do something on rank 0 while the others wait; all get its result."""
    if not dist.is_initialized():
        return action()
    # torch sends the list's content to the other ranks and puts it in their lists.
    box = [None]
    if dist.get_rank() == 0:
        box = [action()]
    dist.broadcast_object_list(box, src=0)
    return box[0]
