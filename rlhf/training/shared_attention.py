"""Attention over packed groups: a prompt once, and the responses to it, none of which sees another.

transformers takes an attention function by name (`AttentionInterface`) and hands it whatever keyword a
model was called with. So the models stay as they are: they are called with `prompt_groups`, and each
of their layers splits the row here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from rlhf.training.segment_attention import (
    PromptGroup,
    segment_attention,
    segments_of,
    why_not_one_call,
)

NAME = "rlhf_shared_prompt"
"""What this attention is called in a model's config."""

_NO_INFLUENCE = {
    "cache",
    "cu_seq_lens_k",
    "cu_seq_lens_q",
    "is_causal",
    "max_length_k",
    "max_length_q",
    "num_items_in_batch",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "position_ids",
    "return_dict",
    "use_cache",
}
"""Keywords that models pass to any attention function and that say nothing about who sees whom."""


_TRIED = {
    "cohere",
    "cohere2",
    "ernie4_5",
    "exaone4",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm4",
    "gpt2",
    "gpt_neox",
    "granite",
    "llama",
    "mistral",
    "mixtral",
    "olmo2",
    "phi",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "smollm3",
    "starcoder2",
}
"""`model_type` of the architectures whose packed log-probabilities and gradients a test holds against the
plain ones. Of others nobody knows: state space models and chunked attention, for instance, look past a
mask."""


def share_prompts(model: Any) -> str:
    """Make a model compute packed groups, for good; in any other call it does what it did.

    Returns:
        "", or why this model cannot, and is left as it was.
    """
    model_type = model.config.model_type
    if model_type not in _TRIED:
        return f"{model_type} models are not known to allow it"
    # Code that came with a model may call itself whatever it likes.
    if not type(model).__module__.startswith("transformers."):
        return "the model brings code of its own"
    layer_types = set(getattr(model.config, "layer_types", None) or [])
    others = layer_types - {"full_attention", "sliding_attention"}
    if others:
        return f"it has layers of {', '.join(sorted(others))}"
    model.set_attn_implementation(NAME)
    return ""


class CannotShareError(Exception):
    """This model's attention is not one that packed groups can be computed with; the text says why."""


def shared_prompt_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    prompt_groups: Sequence[PromptGroup] | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention in which a response sees its prompt and itself.

    Args:
        module: the model's attention layer.
        query: (1, heads, T, head size); the row is made of the groups, one behind another.
        key: (1, key-value heads, T, head size).
        value: as `key`.
        attention_mask: None; a mask of the model's own cannot be followed.
        dropout: of attention weights.
        scaling: of the scores; None is 1 / √(head size).
        sliding_window: tokens that a token sees, itself included; None is all before it.
        softcap: scores become softcap · tanh(score / softcap); None leaves them.
        prompt_groups: None takes each row of a batch for one causal sequence.
        others: what else the model passes; anything that would change the result is refused.

    Returns:
        (1, T, heads, head size), and no weights.

    Raises:
        CannotShareError: the model asks for an attention that is not this one.
    """
    _refuse_unknown(attention_mask, others)
    how = _How(module, dropout, scaling, sliding_window, softcap)
    if prompt_groups is None:
        return how.attend(query, key, value), None
    if not how.why_not_one_call(query):
        segments = segments_of(tuple(prompt_groups), query.device)
        return segment_attention(query, key, value, segments, scaling, sliding_window), None
    # Split once a layer: the gradient of a slice would be as large as the whole row.
    lengths: list[int] = []
    for group in prompt_groups:
        lengths += [group.first, *group.responses[1:]]
    queries = iter(query.split(lengths, dim=2))
    keys = iter(key.split(lengths, dim=2))
    values = iter(value.split(lengths, dim=2))
    outputs = []
    for group in prompt_groups:
        first_key = next(keys)
        first_value = next(values)
        outputs.append(how.attend(next(queries), first_key, first_value))
        prompt_key = first_key[:, :, : group.prompt]
        prompt_value = first_value[:, :, : group.prompt]
        for _ in group.responses[1:]:
            response_key = torch.cat([prompt_key, next(keys)], dim=2)
            response_value = torch.cat([prompt_value, next(values)], dim=2)
            outputs.append(how.attend(next(queries), response_key, response_value))
    return torch.cat(outputs, dim=1), None


def _refuse_unknown(attention_mask: Tensor | None, others: dict[str, Any]) -> None:
    if attention_mask is not None:
        raise CannotShareError("it makes an attention mask of its own")
    for name, value in others.items():
        if value is not None and name not in _NO_INFLUENCE:
            raise CannotShareError(f"its attention takes {name}")


@dataclass(frozen=True)
class _How:
    """What a layer says about its attention, whatever the sequences are."""

    module: nn.Module
    dropout: float
    scaling: float | None
    sliding_window: int | None
    softcap: float | None

    def why_not_one_call(self, query: Tensor) -> str:
        """Why a row does not go through one kernel; "" where it does."""
        dropout = self.dropout if self.module.training else 0.0
        return why_not_one_call(
            query.device, query.dtype, query.shape[3], capped=self.softcap is not None, dropout=dropout
        )

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of a sequence's last tokens (`query`) to all of it (`key`): each sees those before it.

        Returns:
            (B, queries, heads, head size)
        """
        num_queries = query.shape[2]
        num_keys = key.shape[2]
        if num_queries == 0:
            return query.transpose(1, 2)
        is_windowed = self.sliding_window is not None and num_keys > self.sliding_window
        if self.softcap is None and not is_windowed and num_queries == num_keys:
            # Nothing but causal: the kernels know it without a mask.
            return self._sdpa(query, key, value, None)
        mask = self._visible(num_queries, num_keys, query.device)
        if self.softcap is None:
            return self._sdpa(query, key, value, mask)
        return self._capped(query, key, value, mask)

    def _visible(self, num_queries: int, num_keys: int, device: torch.device) -> Tensor:
        """Which keys each query sees, (queries, keys)."""
        key_K = torch.arange(num_keys, device=device)
        # The queries are the last tokens of the sequence.
        query_Q_1 = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
        visible = key_K <= query_Q_1
        if self.sliding_window is not None:
            visible &= key_K > query_Q_1 - self.sliding_window
        return visible

    def _sdpa(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        output, _ = sdpa_attention_forward(
            self.module, query, key, value, mask, dropout=self.dropout, scaling=self.scaling, is_causal=True
        )
        return output

    def _capped(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """Attention with capped scores (Gemma 2), which no kernel of torch has on every device."""
        assert self.softcap is not None
        num_groups = getattr(self.module, "num_key_value_groups", 1)
        key = repeat_kv(key, num_groups)
        value = repeat_kv(value, num_groups)
        scaling = query.shape[-1] ** -0.5 if self.scaling is None else self.scaling
        scores = query @ key.transpose(2, 3) * scaling
        scores = torch.tanh(scores / self.softcap) * self.softcap
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        # In fp32 at least, as the models' own.
        weights = scores.softmax(dim=-1, dtype=torch.promote_types(torch.float32, scores.dtype))
        weights = nn.functional.dropout(
            weights.to(query.dtype), p=self.dropout, training=self.module.training
        )
        return (weights @ value).transpose(1, 2)


AttentionInterface.register(NAME, shared_prompt_attention)
