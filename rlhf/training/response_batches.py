"""Prompts with responses as batches: packed where the model allows it, else padded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rlhf.models.batches import bins_by_tokens
from rlhf.training.fused_norms import use_fused_norms
from rlhf.training.logprobs import Sequences, collate, response_logprobs
from rlhf.training.memory_forecast import default_tokens
from rlhf.training.packed import Packed, first_fit, pack, packed_logprobs
from rlhf.training.segment_attention import why_not_one_call_of
from rlhf.training.shared_attention import share_prompts
from rlhf.training.target_head import use_target_head

Batch = Packed | Sequences


@dataclass(frozen=True)
class Batching:
    """How prompts with responses go through a model.

    `packed`: each prompt once for all its responses and nothing padded, `batch_tokens` real tokens at a
    time; else a row for each response, `batch_tokens` padded ones.
    """

    packed: bool
    batch_tokens: int

    def bins(self, lengths: Sequence[tuple[int, Sequence[int]]]) -> list[list[int]]:
        """Which prompts share a batch.

        Args:
            lengths: tokens of each prompt, and of the responses to it.

        Example:
            `Batching(True, 30).bins([(9, [3, 1]), (5, [2, 2]), (4, [4, 4])])` gives `[[0, 2], [1]]`
        """
        if self.packed:
            totals = [prompt + sum(responses) for prompt, responses in lengths]
            return first_fit(totals, self.batch_tokens)
        longest = [prompt + max(responses) for prompt, responses in lengths]
        num_responses = max((len(responses) for _, responses in lengths), default=1)
        return bins_by_tokens(longest, self.batch_tokens, per_item=num_responses)

    def batch(self, prompts: Sequence[Any], responses: Sequence[Sequence[Any]]) -> Batch:
        """Prompts, and the responses to each, as one batch."""
        if self.packed:
            return pack(prompts, responses)
        prompt_of_row = []
        rows = []
        for prompt, its_responses in zip(prompts, responses, strict=True):
            for response in its_responses:
                prompt_of_row.append(prompt)
                rows.append(response)
        return collate(prompt_of_row, rows)


def batching_of(model: Any, batch_tokens: int | None, on_gpu: bool) -> tuple[Batching, str]:
    """How a model is given its batches, and what makes it slower than others; "" where nothing does.

    A model that allows packing computes packed batches from here on.

    Args:
        model: a transformers model, before DeepSpeed and adapters.
        batch_tokens: None takes what suits the device.
        on_gpu: whether it is a GPU.
    """
    why_padded = share_prompts(model)
    if not why_padded:
        use_target_head(model)
    if on_gpu:
        use_fused_norms(model)
    if batch_tokens is None:
        batch_tokens = default_tokens(on_gpu)
    return Batching(not why_padded, batch_tokens), why_slower(model, why_padded, on_gpu)


def why_slower(model: Any, why_padded: str, on_gpu: bool) -> str:
    """What makes a model slower than others, for people; "" where nothing does.

    Args:
        model: a transformers model.
        why_padded: why its batches are not packed; "" where they are.
        on_gpu: whether it is computed on a GPU.
    """
    if why_padded:
        return f"slower, with every prompt twice and padding: {why_padded}"
    why_apart = why_not_one_call_of(model, on_gpu)
    return f"slower, with attention one sequence after the other: {why_apart}" if why_apart else ""


def why_not_packed(trainer_args: Mapping[str, Any]) -> str:
    """Why what a user tells TRL's Trainer asks for padded batches; "" where it does not."""
    if trainer_args.get("neftune_noise_alpha"):
        return "trainer_args.neftune_noise_alpha makes noise by the length of the padded rows"
    return ""


def batch_logprobs(model: Any, batch: Batch) -> Tensor:
    """log π(response | prompt) of each response, prompt by prompt, in nats and fp32."""
    if isinstance(batch, Packed):
        return packed_logprobs(model, batch)
    return response_logprobs(model, batch)
