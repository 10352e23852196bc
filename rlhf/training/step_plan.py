"""Which pairs form an optimizer step, and how a step is cut for ranks and memory."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from rlhf.data.shards import num_rows, read_rows, shard_paths
from rlhf.errors import DataError
from rlhf.models.batches import bins_by_tokens
from rlhf.training.logprobs import Sequences, collate, response_budget


@dataclass(frozen=True)
class Pair:
    """A pair ready to train on, with its reference log-probabilities in nats."""

    id: str
    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    ref_chosen: float
    ref_rejected: float

    @property
    def length(self) -> int:
        """Tokens of the longer of its two sequences."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True)
class Bin:
    """Pairs that go through the model together: all chosen sequences, then all rejected.

    `weight` is the share of the step's loss that one pair carries; 0 marks a bin that only keeps ranks in step.
    """

    sequences: Sequences
    ref_chosen_B: torch.Tensor
    ref_rejected_B: torch.Tensor
    ids: tuple[str, ...]
    weight: float


def load_pairs(pairs: Path, reference: Path, max_length: int) -> tuple[list[Pair], dict[str, int]]:
    """Read pairs with the reference's log-probabilities; cut responses at the end to fit `max_length`.

    Returns:
        The pairs, and counts: rows, `cut_chosen` and `cut_rejected` responses, `dropped_long_prompt` rows.

    Raises:
        DataError: the two folders do not belong together, or no pair is left.
    """
    counts = {"rows": 0, "dropped_long_prompt": 0, "cut_chosen": 0, "cut_rejected": 0}
    loaded: list[Pair] = []
    for path in shard_paths(pairs):
        other = reference / path.name
        if not other.exists() or num_rows(other) != num_rows(path):
            raise DataError(f"{other}: does not go with {path}; redo the reference stage for these pairs")
        columns = ["id", "prompt_token_ids", "chosen_token_ids", "rejected_token_ids"]
        for row, logprobs in zip(read_rows(path, columns), read_rows(other), strict=True):
            if row["id"] != logprobs["id"]:
                raise DataError(f"{other}: row {logprobs['id']} stands where {path} has {row['id']}")
            counts["rows"] += 1
            pair = _fit(row, logprobs["logprobs"], max_length, counts)
            if pair is not None:
                loaded.append(pair)
    if not loaded:
        raise DataError(
            f"{pairs}: no pair to train on ({counts['rows']} rows, {counts['dropped_long_prompt']} with prompts longer "
            f"than dpo.max_length={max_length} allows). See why the pair stage dropped the rest in its counts: raise "
            "generate.max_new_tokens or set pair.truncated=allow when answers are cut, lower pair.min_margin, or use "
            "more prompts or samples."
        )
    return loaded, counts


def _fit(row: dict[str, Any], logprobs: list[float], max_length: int, counts: dict[str, int]) -> Pair | None:
    prompt = np.asarray(row["prompt_token_ids"], dtype=np.int32)
    budget = response_budget(len(prompt), max_length)
    if budget < 1:
        counts["dropped_long_prompt"] += 1
        return None
    for side in ("chosen", "rejected"):
        counts[f"cut_{side}"] += len(row[f"{side}_token_ids"]) > budget
    return Pair(
        id=row["id"],
        prompt=prompt,
        chosen=np.asarray(row["chosen_token_ids"][:budget], dtype=np.int32),
        rejected=np.asarray(row["rejected_token_ids"][:budget], dtype=np.int32),
        ref_chosen=logprobs[0],
        ref_rejected=logprobs[1],
    )


def plan_steps(num_pairs: int, batch_size: int, num_epochs: int, seed: int) -> list[list[int]]:
    """The pairs of every optimizer step.

    A fresh permutation per epoch, cut in order. It depends on the arguments alone, never on ranks or memory. When
    `batch_size` does not divide the number of pairs, an epoch's last step is smaller, and its loss is the mean over
    its own pairs, so a pair in it weighs more than others.
    """
    steps = []
    for epoch in range(num_epochs):
        order = list(range(num_pairs))
        random.Random(f"dpo {seed} {epoch}").shuffle(order)
        steps += [order[start : start + batch_size] for start in range(0, num_pairs, batch_size)]
    return steps


def share_out(lengths: list[int], num_ranks: int) -> list[list[int]]:
    """Deal items to ranks so that each gets about the same number of tokens: longest first, to whom has least."""
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    load = [0] * num_ranks
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        rank = min(range(num_ranks), key=lambda r: (load[r], r))
        shares[rank].append(item)
        load[rank] += lengths[item]
    return shares


class StepShares(Dataset[list[Bin]]):
    """Item k is one rank's share of optimizer step k: a list of bins of at most `batch_tokens` padded tokens.

    All ranks get equally many bins in a step; ranks with less to do get bins of weight 0. The sum over all ranks and
    bins of `weight` × Σ losses is the mean loss of the step's pairs.
    """

    def __init__(self, pairs: list[Pair], steps: list[list[int]], batch_tokens: int, rank: int, num_ranks: int) -> None:
        self.pairs = pairs
        self.steps = steps
        self.batch_tokens = batch_tokens
        self.rank = rank
        self.num_ranks = num_ranks

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> list[Bin]:
        members = [self.pairs[i] for i in self.steps[index]]
        shares = share_out([pair.length for pair in members], self.num_ranks)
        bins = [bins_by_tokens([members[i].length for i in share], self.batch_tokens, 2) for share in shares]
        mine = [[members[shares[self.rank][i]] for i in chosen] for chosen in bins[self.rank]]
        made = [_bin(chosen, 1 / len(members)) for chosen in mine]
        most = max(len(b) for b in bins)
        return made + [_empty_bin(members[0]) for _ in range(most - len(made))]


def _bin(pairs: list[Pair], weight: float) -> Bin:
    prompts = [pair.prompt for pair in pairs]
    return Bin(
        sequences=collate(prompts + prompts, [p.chosen for p in pairs] + [p.rejected for p in pairs]),
        ref_chosen_B=torch.tensor([pair.ref_chosen for pair in pairs], dtype=torch.float32),
        ref_rejected_B=torch.tensor([pair.ref_rejected for pair in pairs], dtype=torch.float32),
        ids=tuple(pair.id for pair in pairs),
        weight=weight,
    )


def _empty_bin(pair: Pair) -> Bin:
    """The cheapest thing to send through the model: one token and its successor, twice, with no weight."""
    token = pair.prompt[:1]
    return _bin([Pair(pair.id, token, token, token, 0.0, 0.0)], 0.0)
