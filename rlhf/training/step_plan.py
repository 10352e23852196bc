"""Which pairs form an optimizer step, and how a step is cut for ranks and memory."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from rlhf.data.records import SIDES
from rlhf.data.shards import num_rows, read_rows, shard_paths
from rlhf.errors import DataError
from rlhf.training.logprobs import response_budget
from rlhf.training.losses import mixed_anchor
from rlhf.training.response_batches import Batch, Batching

_COLUMNS = [
    "id",
    "prompt_token_ids",
    "chosen_token_ids",
    "rejected_token_ids",
    "chosen_penalised",
    "rejected_penalised",
]


@dataclass(frozen=True)
class Pair:
    """A pair ready to train on, with its log-probabilities under the anchor in nats (0 without one), and by
    how much the judge preferred the chosen response (NaN where none was asked).
    """

    # Arrays: lists of Python's numbers would take many times the memory, on every rank.
    id: str
    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    ref_chosen: float
    ref_rejected: float
    score_margin: float

    @property
    def lengths(self) -> tuple[int, tuple[int, int]]:
        """Tokens of the prompt, and of the chosen and the rejected response."""
        return len(self.prompt), (len(self.chosen), len(self.rejected))

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and both responses."""
        return len(self.prompt) + len(self.chosen) + len(self.rejected)


@dataclass(frozen=True)
class Bin:
    """Pairs that go through the model together.

    `batch` holds each pair's chosen response, then its rejected one. `weight` is the share of the
    step's loss that one pair carries; 0 marks a bin that only keeps ranks in step.
    """

    batch: Batch
    chosen_length_B: torch.Tensor
    rejected_length_B: torch.Tensor
    ref_chosen_B: torch.Tensor
    ref_rejected_B: torch.Tensor
    score_margin_B: torch.Tensor
    ids: tuple[str, ...]
    weight: float


@dataclass(frozen=True)
class Anchor:
    """Folders of the log-probabilities that pairs are held against.

    `reference` is None for a loss without one. `previous` is a second one, which the log-probabilities are
    mixed with: the first has the share `initial_share` of the sum.
    """

    reference: Path | None
    previous: Path | None = None
    initial_share: float = 1.0

    def of(self, pairs_shard: Path) -> Iterator[tuple[str | None, list[float]]]:
        """Of each pair of a shard its id there (None without a reference), and the log-probabilities of
        chosen and rejected.
        """
        if self.reference is None:
            yield from itertools.repeat((None, [0.0, 0.0]), num_rows(pairs_shard))
            return
        rows = read_rows(_logprobs_shard(pairs_shard, self.reference))
        if self.previous is None:
            for row in rows:
                yield row["id"], row["logprobs"]
            return
        others = read_rows(_logprobs_shard(pairs_shard, self.previous))
        for row, other in zip(rows, others, strict=True):
            # Mixed with another pair's they would train without an error, and wrongly.
            if row["id"] != other["id"]:
                raise DataError(
                    f"{self.previous}: row {other['id']} stands where {self.reference} has {row['id']}"
                )
            both = zip(row["logprobs"], other["logprobs"], strict=True)
            yield row["id"], [mixed_anchor(first, second, self.initial_share) for first, second in both]


def load_pairs(pairs: Path, anchor: Anchor, max_length: int) -> tuple[list[Pair], dict[str, int]]:
    """Read pairs with their log-probabilities; cut responses at the end to fit `max_length`.

    Returns:
        The pairs, and counts: `rows` = pairs + `dropped/long_prompt`; `cut_chosen` and
        `cut_rejected` responses; `equal_after_cut`, pairs whose responses differed behind the cut
        alone, which are kept and teach nothing.

    Raises:
        DataError: the two folders do not belong together, or no pair is left.

    Example:
        counts: {"rows": 21, "dropped/long_prompt": 1, "cut_chosen": 2, "cut_rejected": 2,
        "equal_after_cut": 0}
    """
    counts = {"rows": 0, "dropped/long_prompt": 0, "cut_chosen": 0, "cut_rejected": 0, "equal_after_cut": 0}
    loaded: list[Pair] = []
    for path in shard_paths(pairs):
        rows = read_rows(path, _COLUMNS)
        for row, (name, logprobs) in zip(rows, anchor.of(path), strict=True):
            # Log-probabilities of another pair would train without an error, and wrongly.
            if name is not None and name != row["id"]:
                place = f"{anchor.reference}/{path.name}"
                raise DataError(f"{place}: row {name} stands where {path} has {row['id']}")
            counts["rows"] += 1
            pair = _fit_to_length(row, logprobs, max_length, counts)
            if pair is not None:
                loaded.append(pair)
    if not loaded:
        raise DataError(
            f"{pairs}: no pair to train on ({counts['rows']} rows, {counts['dropped/long_prompt']} with "
            f"prompts longer than dpo.max_length={max_length} allows). See why the pair stage dropped the "
            "rest in its counts: raise generate.max_new_tokens or set pair.truncated=allow when answers "
            "are cut, lower pair.min_margin, or use more prompts or samples."
        )
    return loaded, counts


def _logprobs_shard(pairs_shard: Path, reference: Path) -> Path:
    """The reference's shard that goes with a shard of pairs, row by row."""
    path = reference / pairs_shard.name
    if not path.exists() or num_rows(path) != num_rows(pairs_shard):
        raise DataError(f"{path}: does not go with {pairs_shard}; redo the reference stage for these pairs")
    return path


def _fit_to_length(
    row: dict[str, Any],
    logprobs: list[float],
    max_length: int,
    counts: dict[str, int],
) -> Pair | None:
    """A row with its responses cut; None where the prompt leaves no room for one."""
    prompt = np.asarray(row["prompt_token_ids"], dtype=np.int32)
    # As the reference stage cut them: the log-probabilities are of these very tokens.
    budget = response_budget(len(prompt), max_length)
    if budget < 1:
        counts["dropped/long_prompt"] += 1
        return None
    for side in SIDES:
        if len(row[f"{side}_token_ids"]) > budget:
            counts[f"cut_{side}"] += 1
    if row["chosen_token_ids"][:budget] == row["rejected_token_ids"][:budget]:
        counts["equal_after_cut"] += 1
    return Pair(
        id=row["id"],
        prompt=prompt,
        chosen=np.asarray(row["chosen_token_ids"][:budget], dtype=np.int32),
        rejected=np.asarray(row["rejected_token_ids"][:budget], dtype=np.int32),
        ref_chosen=logprobs[0],
        ref_rejected=logprobs[1],
        score_margin=row["chosen_penalised"] - row["rejected_penalised"],
    )


def plan_steps(num_pairs: int, batch_size: int, num_epochs: int, seed: int) -> list[list[int]]:
    """The pairs of every optimizer step.

    A fresh permutation per epoch, cut in order. It depends on the arguments alone, never on ranks
    or memory. When `batch_size` does not divide the number of pairs, an epoch's last step is
    smaller, and its loss is the mean over its own pairs, so a pair in it weighs more than others.

    Example:
        `plan_steps(5, batch_size=2, num_epochs=1, seed=0)` gives `[[3, 1], [4, 2], [0]]`
    """
    steps = []
    for epoch in range(num_epochs):
        order = list(range(num_pairs))
        # A generator for each epoch: its order does not depend on how many came before.
        generator = random.Random(f"dpo {seed} {epoch}")
        generator.shuffle(order)
        for start in range(0, num_pairs, batch_size):
            steps.append(order[start : start + batch_size])
    return steps


def share_out(lengths: list[int], num_ranks: int) -> list[list[int]]:
    """Deal items to ranks so that each gets about as many tokens: longest first, to whom has least.

    Example:
        `share_out([3, 9, 5, 2], num_ranks=2)` gives `[[1], [2, 0, 3]]`
    """
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    num_tokens = [0] * num_ranks
    # Ties have a fixed order too: all ranks work this out for themselves, and must agree.
    for item in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        rank = num_tokens.index(min(num_tokens))
        shares[rank].append(item)
        num_tokens[rank] += lengths[item]
    return shares


class StepShares(Dataset[list[Bin]]):
    """Item k is one rank's share of optimizer step k: bins that `batching` makes.

    All ranks get equally many bins in a step; ranks with less to do get bins of weight 0. The sum
    over all ranks and bins of `weight` × Σ losses is the mean loss of the step's pairs.
    """

    def __init__(
        self,
        pairs: list[Pair],
        steps: list[list[int]],
        batching: Batching,
        rank: int,
        num_ranks: int,
    ) -> None:
        self.pairs = pairs
        self.steps = steps
        self.batching = batching
        self.rank = rank
        self.num_ranks = num_ranks

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> list[Bin]:
        pairs = [self.pairs[number] for number in self.steps[index]]
        shares = share_out([pair.num_tokens for pair in pairs], self.num_ranks)
        pairs_by_rank = []
        for share in shares:
            pairs_by_rank.append([pairs[item] for item in share])
        # Every rank cuts the shares of all, so that each knows how many bins the others will have.
        num_bins = max(len(self._cut(share)) for share in pairs_by_rank)
        bins = []
        for members in self._cut(pairs_by_rank[self.rank]):
            # Of all pairs of the step, also those of other ranks: the sum over ranks is the mean.
            bins.append(self._bin(members, weight=1 / len(pairs)))
        # Under ZeRO-3 the ranks exchange weights in every bin, so that none may have fewer.
        while len(bins) < num_bins:
            bins.append(self._empty_bin(pairs[0]))
        return bins

    def _cut(self, share: list[Pair]) -> list[list[Pair]]:
        """The pairs of each bin of one rank."""
        bins = []
        for members in self.batching.bins([pair.lengths for pair in share]):
            bins.append([share[item] for item in members])
        return bins

    def _bin(self, pairs: list[Pair], weight: float) -> Bin:
        prompts = [pair.prompt for pair in pairs]
        responses = [(pair.chosen, pair.rejected) for pair in pairs]
        return Bin(
            batch=self.batching.batch(prompts, responses),
            chosen_length_B=torch.tensor([len(pair.chosen) for pair in pairs]),
            rejected_length_B=torch.tensor([len(pair.rejected) for pair in pairs]),
            ref_chosen_B=torch.tensor([pair.ref_chosen for pair in pairs], dtype=torch.float32),
            ref_rejected_B=torch.tensor([pair.ref_rejected for pair in pairs], dtype=torch.float32),
            score_margin_B=torch.tensor([pair.score_margin for pair in pairs], dtype=torch.float32),
            ids=tuple(pair.id for pair in pairs),
            weight=weight,
        )

    def _empty_bin(self, pair: Pair) -> Bin:
        """The cheapest thing to send through the model: a token and its successor, twice, of no weight."""
        # The response is not empty, for a prediction must be there to send a gradient back from.
        token = pair.prompt[:1]
        stand_in = Pair(pair.id, token, token, token, ref_chosen=0.0, ref_rejected=0.0, score_margin=0.0)
        return self._bin([stand_in], weight=0.0)
