"""Token ids as batches: which rows go through a model together, and how they are padded. One way for all that do it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def bins_by_tokens(
    lengths: Sequence[int], batch_tokens: int, per_item: int = 1, equal_lengths: bool = False
) -> list[list[int]]:
    """Split items into bins whose padded size, items × longest × `per_item`, is at most `batch_tokens`.

    Items of like length share a bin, the longest first, so that memory runs out at once or never. An item that is too
    large by itself gets a bin of its own.

    Args:
        lengths: of each item, in tokens.
        batch_tokens: the budget of one bin.
        per_item: sequences that each item puts through the model, 2 for a pair.
        equal_lengths: a bin holds items of one length only, so that nothing is padded.

    Example:
        `bins_by_tokens([3, 9, 8, 2], batch_tokens=18)` gives `[[1, 2], [0, 3]]`
    """
    bins: list[list[int]] = []
    # Equal lengths in the order given: equal work must make equal bins.
    for item in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if bins:
            longest = lengths[bins[-1][0]]
            fits = longest * per_item * (len(bins[-1]) + 1) <= batch_tokens
            if fits and (not equal_lengths or lengths[item] == longest):
                bins[-1].append(item)
                continue
        bins.append([item])
    return bins


def right_padded(rows: Sequence[Sequence[int]], padding: int = 0) -> tuple[Tensor, Tensor]:
    """Token ids (B, T) with `padding` behind each row, and the rows' lengths (B,).

    Under causal attention no real token sees what stands behind it, so the padding's value matters to labels alone.
    """
    lengths_B = torch.tensor([len(row) for row in rows])
    ids_BT = torch.full((len(rows), int(lengths_B.max())), padding, dtype=torch.long)
    for index, row in enumerate(rows):
        ids_BT[index, : len(row)] = torch.as_tensor(row)
    return ids_BT, lengths_B
