"""Whole conversations as one row of tokens: what those of a group begin with once, and nothing padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf.training.segment_attention import PromptGroup


def pack_conversations(groups: Sequence[Sequence[Sequence[int]]]) -> tuple[dict[str, Any], Tensor]:
    """Groups of conversations, given as token ids, as one row.

    The longest beginning that all of a group have in common is their prompt, whatever a template has made
    it of; of each at least one token is left. Where a group has none, as where it was cut on the left, its
    conversations stand side by side.

    Args:
        groups: at least one conversation each, none of them empty.

    Returns:
        What a model that shares prompts is called with (`input_ids` and `position_ids`, both (1, T), and
        `prompt_groups`), and ends_S, the place in the row of each conversation's last token, group by group.

    Example:
        [[[5, 6, 1], [5, 6, 2, 3]], [[7, 8]]] gives the ids [5, 6, 1, 2, 3, 7, 8] at the positions
        [0, 1, 2, 2, 3, 0, 1], and the ends [2, 4, 6]
    """
    ids: list[int] = []
    positions: list[int] = []
    ends: list[int] = []
    prompt_groups = []
    for conversations in groups:
        shared = common_prefix(conversations)
        ids += conversations[0][:shared]
        positions += range(shared)
        for conversation in conversations:
            ids += conversation[shared:]
            positions += range(shared, len(conversation))
            ends.append(len(ids) - 1)
        prompt_groups.append(PromptGroup(shared, tuple(len(each) - shared for each in conversations)))
    batch = {
        "input_ids": torch.tensor([ids], dtype=torch.long),
        "position_ids": torch.tensor([positions], dtype=torch.long),
        "prompt_groups": tuple(prompt_groups),
    }
    return batch, torch.tensor(ends, dtype=torch.long)


def unpacked(ids_T: Tensor, prompt_groups: Sequence[PromptGroup]) -> Iterator[Tensor]:
    """The conversations of a packed row, each whole."""
    start = 0
    for group in prompt_groups:
        prompt = ids_T[start : start + group.prompt]
        start += group.prompt
        for length in group.responses:
            yield torch.cat([prompt, ids_T[start : start + length]])
            start += length


def common_prefix(conversations: Sequence[Sequence[int]]) -> int:
    """How many tokens they all begin with, so that of each at least one is left; 0 of a single one.

    Example:
        `common_prefix([[5, 6, 1], [5, 6, 2, 3]])` gives 2
    """
    if len(conversations) == 1:
        return 0
    most = min(len(conversation) for conversation in conversations) - 1
    for place in range(most):
        token = conversations[0][place]
        if any(conversation[place] != token for conversation in conversations[1:]):
            return place
    return most
