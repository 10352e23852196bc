"""Token ids as batches: which rows go through a model together, and how they are padded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

ValueT = TypeVar("ValueT")


def bins_by_tokens(
    lengths: Sequence[int], batch_tokens: int, per_item: int = 1, equal_lengths: bool = False
) -> list[list[int]]:
    """Split items into bins whose padded size, items × longest × `per_item`, is at most `batch_tokens`.

    Items of like length share a bin, the longest first, so that memory runs out at once or never.
    An item that is too large by itself gets a bin of its own.

    Args:
        lengths: of each item, in tokens.
        batch_tokens: the budget of one bin.
        per_item: sequences that each item puts through the model, 2 for a pair.
        equal_lengths: a bin holds items of one length only, so that nothing is padded.

    Example:
        `bins_by_tokens([3, 9, 8, 2], batch_tokens=18)` gives `[[1, 2], [0, 3]]`
    """

    def joins(item: int, members: list[int]) -> bool:
        longest = lengths[members[0]]
        if equal_lengths and lengths[item] != longest:
            return False
        padded_size = longest * per_item * (len(members) + 1)
        return padded_size <= batch_tokens

    bins: list[list[int]] = []
    # Equal lengths in the order given: equal work must make equal bins.
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    for item in order:
        # Only the last bin may still grow: looking for room in earlier ones would mix lengths.
        if bins and joins(item, bins[-1]):
            bins[-1].append(item)
        else:
            bins.append([item])
    return bins


def unbinned(bins: Iterable[Sequence[int]], values_by_bin: Iterable[Sequence[ValueT]]) -> list[ValueT]:
    """The values of all items in the items' order, from those of each bin's members.

    Example:
        `unbinned([[1, 2], [0]], [["b", "c"], ["a"]])` gives `["a", "b", "c"]`
    """
    by_item: dict[int, ValueT] = {}
    for members, values in zip(bins, values_by_bin, strict=True):
        by_item.update(zip(members, values, strict=True))
    return [by_item[item] for item in range(len(by_item))]


def right_padded(rows: Sequence[Sequence[int]], padding: int = 0) -> tuple[Tensor, Tensor]:
    """Token ids (B, T) with `padding` behind each row, and the rows' lengths (B,).

    Under causal attention no real token sees what stands behind it, so the padding's value matters
    to labels alone.
    """
    lengths_B = torch.tensor([len(row) for row in rows])
    # The longest of these rows, not of all there are: a batch of short ones stays small.
    longest = int(lengths_B.max())
    ids_BT = torch.full((len(rows), longest), padding, dtype=torch.long)
    for index, row in enumerate(rows):
        ids_BT[index, : len(row)] = torch.as_tensor(row)
    return ids_BT, lengths_B
