"""The head of a reward model, and the scores of packed conversations that it gives."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from rlhf.training.packed_conversations import pack_conversations
from rlhf.training.segment_attention import PromptGroup

_ends: ContextVar[Tensor | None] = ContextVar("ends", default=None)


class Fp32Linear(nn.Linear):
    """A score head that computes in fp32: bf16 scores between 4 and 8 come in steps of 1/32.

    In a packed row (`_reading`) it scores the ends of the conversations alone.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Fp32 logits: (…, 1), or of a packed row (1, T, S), where each token has the scores of all ends."""
        ends_S = _ends.get()
        if ends_S is None:
            return self._scores(input)
        scores_S = self._scores(input[0].index_select(0, ends_S))[:, 0]
        # The model picks the logits of one token, the last that is no padding as it thinks. In a packed row
        # that says nothing, so each has all of them; it is a view, which takes no memory.
        return scores_S.expand(1, input.shape[1], -1)

    def _scores(self, hidden: Tensor) -> Tensor:
        # In float64 nothing is made narrower.
        dtype = torch.promote_types(torch.float32, hidden.dtype)
        bias = None if self.bias is None else self.bias.to(dtype)
        return F.linear(hidden.to(dtype), self.weight.to(dtype), bias)


def use_fp32_head(model: Any) -> str:
    """Make the head of a classifier an `Fp32Linear`, for good.

    Returns:
        "", or why it is none that could be.
    """
    if not isinstance(getattr(model, "score", None), nn.Linear):
        return "its head is no linear layer called `score`"
    # The class alone: DeepSpeed knows the weights of the very head that was loaded.
    model.score.__class__ = Fp32Linear
    return ""


def pack_pairs(pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A collator: pairs of `chosen_ids` and `rejected_ids` as one packed row, in TRL's order.

    Returns:
        What `packed_scores` takes.
    """
    groups = []
    num_tokens = 0
    for pair in pairs:
        groups.append((pair["chosen_ids"], pair["rejected_ids"]))
        num_tokens += len(pair["chosen_ids"]) + len(pair["rejected_ids"])
    batch, ends_2B = pack_conversations(groups)
    # All chosen conversations before all rejected ones.
    batch["ends"] = torch.cat([ends_2B[0::2], ends_2B[1::2]])
    # TRL counts tokens by it, and counts a prompt twice; the model gets none.
    batch["attention_mask"] = torch.ones(num_tokens, dtype=torch.long)
    return batch


def packed_scores(
    model: Any,
    input_ids: Tensor,
    position_ids: Tensor,
    prompt_groups: Sequence[PromptGroup],
    ends: Tensor,
    attention_mask: Tensor | None = None,
    use_cache: bool = False,
) -> SequenceClassifierOutput:
    """What a classifier with an `Fp32Linear` says of packed conversations.

    Args:
        model: of transformers, or DeepSpeed's engine around it; its attention shares prompts.
        input_ids: (1, T)
        position_ids: (1, T)
        prompt_groups: of the row.
        ends: (S,), where the conversations end.
        attention_mask: not used.
        use_cache: not used.

    Returns:
        Its `logits` (S, 1) are those of `ends`, in their order, as those of padded rows would be.
    """
    with _reading(ends):
        output = model(
            input_ids=input_ids,
            position_ids=position_ids,
            prompt_groups=prompt_groups,
            use_cache=False,
        )
    return SequenceClassifierOutput(logits=output.logits[0, :, None])


@contextlib.contextmanager
def _reading(ends_S: Tensor) -> Iterator[None]:
    """Inside, an `Fp32Linear` scores these tokens of a row."""
    token = _ends.set(ends_S)
    try:
        yield
    finally:
        _ends.reset(token)
