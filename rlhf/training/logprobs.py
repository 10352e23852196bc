"""Log-probabilities of responses, the same for the reference stage and for DPO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlhf.models.batches import right_padded

_CHUNK = 2**26
"""Logits turned to fp32 at a time: 256 MiB."""


@dataclass(frozen=True)
class Sequences:
    """Prompts with responses, padded on the right.

    `input_ids_B_T` holds prompt then response. Only the last `S` next-token predictions can hit a response, because
    every row's first T − 1 − S are inside its prompt; `response_mask_B_S` says which of them do.
    """

    input_ids_B_T: Tensor
    response_mask_B_S: Tensor

    def to(self, device: torch.device) -> Sequences:
        """The same on another device."""
        return Sequences(self.input_ids_B_T.to(device), self.response_mask_B_S.to(device))


def response_budget(num_prompt_tokens: int, max_length: int) -> int:
    """Tokens a response may have under `max_length`; below 1 the prompt is too long to be used at all.

    It counts from this prompt's own length, not from the longest prompt allowed.
    """
    return max_length - num_prompt_tokens


def collate(prompts: Sequence[Any], responses: Sequence[Any]) -> Sequences:
    """Prompts and responses (lists or arrays of token ids) as one batch, each padded to the longest.

    Example:
        prompts [[5, 6], [7, 8, 9]] and responses [[1], [2, 3]] give the ids [[5, 6, 1, 0, 0], [7, 8, 9, 2, 3]] and
        the mask [[True, False, False], [False, True, True]]: the predictions of ids 2, 3 and 4
    """
    rows = []
    for prompt, response in zip(prompts, responses, strict=True):
        assert len(prompt) > 0, "the first token of a response is predicted from the last one of its prompt"
        rows.append([*prompt, *response])
    input_ids_B_T, lengths_B = right_padded(rows)
    prompt_lengths_B = torch.tensor([len(prompt) for prompt in prompts])
    # The token at position t predicts the one at t + 1, so a response is predicted from its prompt's last token on.
    first_B = prompt_lengths_B - 1
    last_B = lengths_B - 1
    positions_S = torch.arange(int(first_B.min()), input_ids_B_T.shape[1] - 1)
    in_response_B_S = (positions_S >= first_B[:, None]) & (positions_S < last_B[:, None])
    return Sequences(input_ids_B_T, in_response_B_S)


def response_logprobs(model: Any, sequences: Sequences) -> Tensor:
    """log π(response | prompt) of each row, in nats: log-softmax and sum in fp32 whatever the model's dtype.

    The head runs only from the end of the shortest prompt on.

    Returns:
        logprobs_B, fp32, with gradient where the model has one.
    """
    input_ids, mask = sequences.input_ids_B_T, sequences.response_mask_B_S
    num_predictions = mask.shape[1]
    if num_predictions == 0:
        raise ValueError("no row has a response")
    keep = num_predictions + 1
    logits = model(input_ids=input_ids, logits_to_keep=keep, use_cache=False).logits[:, -keep:-1]
    targets = input_ids[:, -num_predictions:]
    rows = max(1, _CHUNK // (num_predictions * logits.shape[-1]))
    if rows >= len(logits):
        return _sum_logprobs(logits, targets, mask)
    # Large vocabularies: fp32 copies of the logits exist for a few rows at a time, in the backward pass too.
    parts = zip(logits.split(rows), targets.split(rows), mask.split(rows), strict=True)
    return torch.cat([_checkpointed(*part) for part in parts])


def _checkpointed(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    result: Tensor = checkpoint(_sum_logprobs, logits, targets, mask, use_reentrant=False)
    return result


def _sum_logprobs(logits_B_S_V: Tensor, targets_B_S: Tensor, mask_B_S: Tensor) -> Tensor:
    nll = F.cross_entropy(logits_B_S_V.float().flatten(0, 1), targets_B_S.flatten(), reduction="none")
    return -(nll.view(targets_B_S.shape).masked_fill(~mask_B_S, 0.0)).sum(dim=1)
