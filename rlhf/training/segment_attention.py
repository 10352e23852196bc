"""Attention of a packed row in one call of a variable-length kernel, on a GPU."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

_TAKES_GROUPED_HEADS = "enable_gqa" in inspect.signature(varlen_attn).parameters
"""Whether keys may have fewer heads than queries, as from torch 2.12 on."""
_LARGEST_HEAD = 256
_OLDEST_GPU = (8, 0)
"""Compute capability that FlashAttention needs (Ampere)."""


@dataclass(frozen=True)
class PromptGroup:
    """How many tokens of a packed row are a prompt, and how many each response that follows it."""

    prompt: int
    responses: tuple[int, ...]

    @property
    def first(self) -> int:
        """Tokens of the prompt and its first response, which are an ordinary causal sequence."""
        return self.prompt + self.responses[0]


@dataclass(frozen=True)
class Segments:
    """A packed row as sequences, each with fewer queries than keys where its prompt is computed already.

    Sequence i has the queries `cu_queries_N1[i]` to `cu_queries_N1[i + 1]` of the row, and the keys at
    `cu_keys_N1[i]` to `cu_keys_N1[i + 1]` of those that `keys_K` picks. Its queries are its last tokens.
    """

    cu_queries_N1: Tensor
    cu_keys_N1: Tensor
    keys_K: Tensor
    most_queries: int
    most_keys: int


# A row goes through all layers with the same groups; the forward pass of the next one comes after it.
@lru_cache(maxsize=2)
def segments_of(groups: tuple[PromptGroup, ...], device: torch.device) -> Segments:
    """The sequences of a packed row.

    Example:
        A prompt of 2 with responses of 2 and 1 is [p p a a b]: queries [0, 4, 5], keys [0, 4, 7], which
        are the tokens [0, 1, 2, 3, 0, 1, 4]
    """
    num_queries: list[int] = []
    num_keys: list[int] = []
    picked: list[int] = []
    start = 0
    for group in groups:
        prompt = range(start, start + group.prompt)
        picked += range(start, start + group.first)
        num_queries.append(group.first)
        num_keys.append(group.first)
        start += group.first
        for response in group.responses[1:]:
            # A sequence without a query is nothing to compute.
            if response:
                picked += [*prompt, *range(start, start + response)]
                num_queries.append(response)
                num_keys.append(group.prompt + response)
                start += response
    return Segments(
        cu_queries_N1=torch.tensor([0, *accumulate(num_queries)], dtype=torch.int32, device=device),
        cu_keys_N1=torch.tensor([0, *accumulate(num_keys)], dtype=torch.int32, device=device),
        keys_K=torch.tensor(picked, dtype=torch.long, device=device),
        most_queries=max(num_queries),
        most_keys=max(num_keys),
    )


def segment_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    """Causal attention within each of the segments, by one kernel.

    Args:
        query: (1, heads, T, head size)
        key: (1, key-value heads, T, head size)
        value: as `key`.
        segments: of the row.
        scaling: of the scores; None is 1 / √(head size).
        sliding_window: tokens that a token sees, itself included; None is all before it.

    Returns:
        (1, T, heads, head size)
    """
    # The kernel counts those to the left of a token, without itself.
    left = -1 if sliding_window is None else sliding_window - 1
    query_T = query[0].transpose(0, 1)
    key_K = key[0].transpose(0, 1).index_select(0, segments.keys_K)
    value_K = value[0].transpose(0, 1).index_select(0, segments.keys_K)
    groups = {}
    if key.shape[1] != query.shape[1]:
        if _TAKES_GROUPED_HEADS:
            groups["enable_gqa"] = True
        else:
            repeats = query.shape[1] // key.shape[1]
            key_K = key_K.repeat_interleave(repeats, dim=1)
            value_K = value_K.repeat_interleave(repeats, dim=1)
    output = varlen_attn(
        query_T,
        key_K,
        value_K,
        segments.cu_queries_N1,
        segments.cu_keys_N1,
        segments.most_queries,
        segments.most_keys,
        scale=scaling,
        # Nothing to the right. Where keys are more than queries, the last ones stand side by side.
        window_size=(left, 0),
        **groups,
    )
    return output[None]


def why_not_one_call(
    device: torch.device, dtype: torch.dtype, head_size: int, capped: bool, dropout: float
) -> str:
    """Why attention goes sequence by sequence; "" where one kernel takes a whole row."""
    if device.type != "cuda":
        return "there is no GPU"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"FlashAttention has no {str(dtype).removeprefix('torch.')}"
    if head_size > _LARGEST_HEAD or head_size % 8:
        return f"FlashAttention has no heads of {head_size}"
    if capped:
        return "the model caps its scores"
    if dropout:
        return "the model's attention has dropout"
    # Last, since only this one asks the machine.
    if torch.cuda.get_device_capability(device) < _OLDEST_GPU:
        return "the GPU is older than FlashAttention"
    return ""


def why_not_one_call_of(model: Any, on_gpu: bool) -> str:
    """Like `why_not_one_call`, of a model that is yet to be moved to its device; "" on a CPU, too."""
    if not on_gpu:
        return ""
    config = model.config
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return why_not_one_call(
        torch.device("cuda"),
        model.dtype,
        head_size,
        capped=getattr(config, "attn_logit_softcapping", None) is not None,
        dropout=getattr(config, "attention_dropout", 0.0) or 0.0,
    )
