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

    `input_ids_B_T` holds prompt then response. Only the last `S` next-token predictions can hit a
    response, because every row's first T − 1 − S are inside its prompt; `response_mask_B_S` says
    which of them do.
    """

    input_ids_B_T: Tensor
    response_mask_B_S: Tensor

    def to(self, device: torch.device) -> Sequences:
        """The same on another device."""
        input_ids_B_T = self.input_ids_B_T.to(device)
        response_mask_B_S = self.response_mask_B_S.to(device)
        return Sequences(input_ids_B_T, response_mask_B_S)


def response_budget(num_prompt_tokens: int, max_length: int) -> int:
    """Tokens a response may have under `max_length`; below 1 the prompt is too long to be used.

    It counts from this prompt's own length, not from the longest prompt allowed.
    """
    return max_length - num_prompt_tokens


def collate(prompts: Sequence[Any], responses: Sequence[Any]) -> Sequences:
    """Prompts and responses (lists or arrays of token ids) as one batch, each padded to the longest.

    Example:
        prompts [[5, 6], [7, 8, 9]] and responses [[1], [2, 3]] give
        ids [[5, 6, 1, 0, 0], [7, 8, 9, 2, 3]] and, for the predictions of the last three of them,
        the mask [[True, False, False], [False, True, True]]
    """
    rows = []
    for prompt, response in zip(prompts, responses, strict=True):
        assert len(prompt) > 0, "a prompt has a token"
        rows.append([*prompt, *response])
    input_ids_B_T, lengths_B = right_padded(rows)
    prompt_lengths_B = torch.tensor([len(prompt) for prompt in prompts])
    # The token at position t predicts the one at t + 1, so a response is predicted from its
    # prompt's last token on.
    first_B = prompt_lengths_B - 1
    last_B = lengths_B - 1
    positions_S = torch.arange(int(first_B.min()), input_ids_B_T.shape[1] - 1)
    in_response_B_S = (positions_S >= first_B[:, None]) & (positions_S < last_B[:, None])
    return Sequences(input_ids_B_T, in_response_B_S)


def response_logprobs(model: Any, sequences: Sequences) -> Tensor:
    """log π(response | prompt) of each row, in nats; log-softmax and sum are in fp32 in any case.

    The head runs only from the end of the shortest prompt on.

    Returns:
        logprobs_B, fp32, with gradient where the model has one.
    """
    input_ids_B_T = sequences.input_ids_B_T
    mask_B_S = sequences.response_mask_B_S
    num_predictions = mask_B_S.shape[1]
    if num_predictions == 0:
        raise ValueError("no row has a response")
    # The logits at a row's last token predict what would come next; nothing is compared with them.
    num_kept = num_predictions + 1
    output = model(input_ids=input_ids_B_T, logits_to_keep=num_kept, use_cache=False)
    logits_B_S_V = output.logits[:, -num_kept:-1]
    targets_B_S = input_ids_B_T[:, -num_predictions:]
    vocab_size = logits_B_S_V.shape[-1]
    num_rows = max(1, _CHUNK // (num_predictions * vocab_size))
    if num_rows >= len(logits_B_S_V):
        return _sum_logprobs(logits_B_S_V, targets_B_S, mask_B_S)
    # Large vocabularies: fp32 copies of the logits exist for a few rows at a time, in the backward
    # pass too. Split, not sliced: the gradient of each slice would be as large as all logits.
    chunks = zip(
        logits_B_S_V.split(num_rows),
        targets_B_S.split(num_rows),
        mask_B_S.split(num_rows),
        strict=True,
    )
    return torch.cat([_checkpointed(*chunk) for chunk in chunks])


def _checkpointed(logits_B_S_V: Tensor, targets_B_S: Tensor, mask_B_S: Tensor) -> Tensor:
    logprobs_B: Tensor = checkpoint(
        _sum_logprobs,
        logits_B_S_V,
        targets_B_S,
        mask_B_S,
        use_reentrant=False,
    )
    return logprobs_B


def _sum_logprobs(logits_B_S_V: Tensor, targets_B_S: Tensor, mask_B_S: Tensor) -> Tensor:
    # cross_entropy wants the vocabulary in the second place, so rows and positions become one.
    logits_BS_V = logits_B_S_V.float().flatten(0, 1)
    nll_BS = F.cross_entropy(logits_BS_V, targets_B_S.flatten(), reduction="none")
    nll_B_S = nll_BS.view(targets_B_S.shape)
    # Filled, not multiplied by the mask: an infinite value of the padding times 0 would be NaN.
    return -nll_B_S.masked_fill(~mask_B_S, 0.0).sum(dim=1)
