"""How judges that are models read: conversations as rows of token ids, each different row once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf.data.records import Message
from rlhf.errors import TemplateRefuses
from rlhf.models.batches import bins_by_tokens, right_padded, unbinned
from rlhf.models.chat_template import render_conversation
from rlhf.scoring.judge import Scored

TokenIds = tuple[int, ...]
"""Token ids of one input; a tuple, so that equal ones can be found in a dict."""


def score_distinct(
    tokenizer: Any,
    items: list[tuple[list[Message], str]],
    max_tokens: int,
    score_rows: Callable[[list[TokenIds]], list[float]],
    context: int | None = None,
) -> Scored:
    """Scores of responses from a function that scores rows of token ids, each different row once.

    What the judge's chat template refuses scores NaN.

    Args:
        tokenizer: the judge's own.
        items: such as `[([{"role": "user", "content": "Hi"}], "Hello!")]`.
        max_tokens: what of a conversation the judge reads, from its end.
        score_rows: one score per row, in order.
        context: tokens that the judge was made for; rows that are longer are counted.

    Raises:
        TemplateRefuses: the judge's chat template takes none of the conversations that the policy has
        answered.
    """
    rendered = []
    refused = []
    for place, item in enumerate(items):
        try:
            rendered.append(_rendered(tokenizer, *item))
        except TemplateRefuses:
            refused.append(place)
            # Of a judge that reads nothing there are no scores to look at.
            if len(refused) == len(items):
                raise
    rows, num_truncated = cut_on_the_left(rendered, max_tokens)
    # Samples of one prompt are often the same. A dict keeps the order, which decides who shares a batch.
    distinct = list(dict.fromkeys(rows))
    score_by_row = dict(zip(distinct, score_rows(distinct), strict=True))
    scores = [score_by_row[row] for row in rows]
    for place in refused:
        # From the first to the last, so that each is put where it stood.
        scores.insert(place, math.nan)
    return Scored(scores, num_truncated, num_over_context=num_longer(rows, context), refused=tuple(refused))


def read_items(
    tokenizer: Any,
    items: list[tuple[list[Message], str]],
    max_tokens: int,
) -> tuple[list[TokenIds], int]:
    """Token ids of each conversation, the last `max_tokens` of them, and how many conversations lost some.

    Raises:
        TemplateRefuses: the chat template does not take a conversation.
    """
    rendered = [_rendered(tokenizer, messages, response) for messages, response in items]
    return cut_on_the_left(rendered, max_tokens)


def _rendered(tokenizer: Any, messages: list[Message], response: str) -> list[int]:
    conversation = [*messages, {"role": "assistant", "content": response}]
    try:
        # Whatever was sampled is to be judged, also where it spells tokens that this tokenizer cannot read as
        # text.
        return render_conversation(tokenizer, conversation, break_up=True)
    except TemplateRefuses as error:
        # The policy's template has taken these turns, so it is the judge that is at fault.
        raise TemplateRefuses(f"The judge cannot read what the policy has answered. {error}") from error


def cut_on_the_left(rendered: Sequence[Sequence[int]], max_tokens: int) -> tuple[list[TokenIds], int]:
    """The last `max_tokens` ids of each input, and how many inputs lost some.

    Example:
        `cut_on_the_left([[1, 2, 3], [4]], max_tokens=2)` gives `([(2, 3), (4,)], 1)`
    """
    num_truncated = 0
    rows = []
    for ids in rendered:
        if len(ids) > max_tokens:
            num_truncated += 1
        # The end stays: there stands the response, which is what is judged.
        rows.append(tuple(ids[-max_tokens:]))
    return rows, num_truncated


def num_longer(rows: Sequence[TokenIds], context: int | None) -> int:
    """How many rows are longer than a judge's context; none where that is not known."""
    if context is None:
        return 0
    return sum(len(row) > context for row in rows)


def score_in_batches(
    rows: list[TokenIds],
    batch_tokens: int,
    forward: Callable[[list[TokenIds]], list[float]],
    equal_lengths: bool = False,
) -> list[float]:
    """The scores of all rows in order, from a forward pass that takes as many as `batch_tokens` allows.

    `equal_lengths` is for a forward pass whose rows must not be padded
    (`rlhf.models.batches.bins_by_tokens`).
    """
    lengths = [len(row) for row in rows]
    bins = bins_by_tokens(lengths, batch_tokens, equal_lengths=equal_lengths)
    scores_by_bin = []
    for members in bins:
        batch = [rows[index] for index in members]
        scores_by_bin.append(forward(batch))
    return unbinned(bins, scores_by_bin)


def padded_inputs(
    rows: Sequence[TokenIds], device: torch.device, masked: bool = True
) -> tuple[dict[str, Tensor], Tensor]:
    """What a model takes of these rows, padded on the right (B, T), and the last place of each row (B,).

    With `masked` it is told which places are padding (`sees_padding`).
    """
    ids_BT, lengths_B = right_padded(rows)
    inputs = {"input_ids": ids_BT.to(device)}
    if masked:
        # From lengths and not from a pad id: a model whose pad is its end-of-turn token would be read
        # at the user's turn.
        mask_BT = torch.arange(ids_BT.shape[1]) < lengths_B[:, None]
        inputs["attention_mask"] = mask_BT.long().to(device)
    return inputs, lengths_B - 1


@torch.inference_mode()
def sees_padding(states: Callable[[Tensor], Tensor], vocab_size: int, device: torch.device) -> bool:
    """Whether what a model says of a row depends on what stands behind it, so that padding must be masked.

    Under causal attention it does not, and without a mask the fastest attention kernels can be used. Here
    the second half of a row changes, and what the model says of the first may not, in any bit. Where it
    does, attention goes in both directions; or experts are rounded by what else they compute, and the mask
    is kept for want of proof.

    Args:
        states: maps token ids (1, T) to what the model says at each place (1, T, …).
        vocab_size: token ids there are.
        device: where the model is.
    """
    length = 4
    first = list(range(1, length + 1))
    states_of_first = []
    for shift in (1, 2):
        second = [token + shift * length for token in first]
        ids_1T = torch.tensor([first + second], device=device) % vocab_size
        states_of_first.append(states(ids_1T)[:, :length])
    before, after = states_of_first
    return not torch.equal(before, after)
