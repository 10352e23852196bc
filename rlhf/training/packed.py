"""Packed batches for log-probabilities: a prompt once for all its responses, and no padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rlhf.training.segment_attention import PromptGroup
from rlhf.training.target_head import predicting
from rlhf.training.target_logprobs import target_logprobs


@dataclass(frozen=True)
class Packed:
    """Prompts, each followed by the responses to it, as one row of tokens.

    A response's positions go on from its prompt's last one, so that to the model each stands right
    behind its prompt. `kept_S` are the places in the row whose logits predict a token of a response,
    response by response; `targets_S` the tokens they predict.
    """

    input_ids_1_T: Tensor
    position_ids_1_T: Tensor
    kept_S: Tensor
    targets_S: Tensor
    groups: tuple[PromptGroup, ...]

    def to(self, device: torch.device) -> Packed:
        """The same on another device."""
        return replace(
            self,
            input_ids_1_T=self.input_ids_1_T.to(device),
            position_ids_1_T=self.position_ids_1_T.to(device),
            kept_S=self.kept_S.to(device),
            targets_S=self.targets_S.to(device),
        )

    @property
    def response_lengths(self) -> list[int]:
        """Tokens of each response, prompt by prompt."""
        lengths: list[int] = []
        for group in self.groups:
            lengths += group.responses
        return lengths


def pack(prompts: Sequence[Any], responses: Sequence[Sequence[Any]]) -> Packed:
    """Prompts (lists or arrays of token ids), and the responses to each, as one row.

    Example:
        prompts [[5, 6]] and responses [[[1, 2], [3]]] give the ids [5, 6, 1, 2, 3] at the positions
        [0, 1, 2, 3, 2]; kept are the logits at [1, 2, 1], which predict [1, 2, 3]
    """
    ids: list[int] = []
    positions: list[int] = []
    kept: list[int] = []
    targets: list[int] = []
    groups = []
    for prompt, its_responses in zip(prompts, responses, strict=True):
        assert len(prompt) > 0, "a prompt has a token"
        # `extend`, for arrays: `+=` would leave the work to numpy, which adds numbers.
        ids.extend(prompt)
        positions.extend(range(len(prompt)))
        last_of_prompt = len(ids) - 1
        for response in its_responses:
            start = len(ids)
            ids.extend(response)
            positions.extend(range(len(prompt), len(prompt) + len(response)))
            # A token predicts the next one, so a response is predicted from its prompt's last on.
            if len(response):
                kept.extend([last_of_prompt, *range(start, len(ids) - 1)])
            targets.extend(response)
        groups.append(PromptGroup(len(prompt), tuple(len(response) for response in its_responses)))
    return Packed(
        input_ids_1_T=torch.tensor([ids], dtype=torch.long),
        position_ids_1_T=torch.tensor([positions], dtype=torch.long),
        kept_S=torch.tensor(kept, dtype=torch.long),
        targets_S=torch.tensor(targets, dtype=torch.long),
        groups=tuple(groups),
    )


def packed_logprobs(model: Any, packed: Packed) -> Tensor:
    """log π(response | prompt) of each response, prompt by prompt, in nats and fp32.

    Logits exist where a response is predicted, and nowhere else.

    Returns:
        logprobs_R, with gradient where the model has one; 0 for an empty response.
    """
    with predicting(packed.targets_S):
        output = model(
            input_ids=packed.input_ids_1_T,
            position_ids=packed.position_ids_1_T,
            logits_to_keep=packed.kept_S,
            use_cache=False,
            prompt_groups=packed.groups,
        )
    logprobs_S = output.logits[0]
    # A head that would have kept too many logits has given log-probabilities already.
    if logprobs_S.dim() == 2:
        logprobs_S = target_logprobs(logprobs_S, packed.targets_S)
    return torch.stack([part.sum() for part in logprobs_S.split(packed.response_lengths)])


def first_fit(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Split items into bins of at most `batch_tokens` tokens: longest first, each into the first with room.

    An item that is too large by itself gets a bin of its own.

    Example:
        `first_fit([3, 9, 8, 2], batch_tokens=12)` gives `[[1, 0], [2, 3]]`
    """
    bins: list[list[int]] = []
    room: list[int] = []
    # Equal lengths in the order given: equal work must make equal bins.
    for item in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        for number, left in enumerate(room):
            if lengths[item] <= left:
                bins[number].append(item)
                room[number] -= lengths[item]
                break
        else:
            bins.append([item])
            room.append(batch_tokens - lengths[item])
    return bins
