"""Which pairs form an optimizer step, and how a step is cut for ranks and memory."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset

from rlhf.training.pair_file import Pair, TrainingPairs
from rlhf.training.response_batches import Batch, Batching


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


def plan_steps(num_pairs: int, batch_size: int, num_epochs: int, seed: int) -> list[array[int]]:
    """The numbers of the pairs of every optimizer step, at 4 bytes each.

    A fresh permutation per epoch, cut in order. It depends on the arguments alone, never on ranks
    or memory. When `batch_size` does not divide the number of pairs, an epoch's last step is
    smaller, and its loss is the mean over its own pairs, so a pair in it weighs more than others.

    Example:
        `plan_steps(5, batch_size=2, num_epochs=1, seed=0)` gives `[3, 1]`, `[4, 2]` and `[0]`
    """
    steps = []
    for epoch in range(num_epochs):
        # Of a million pairs a list of Python's numbers would take 36 MB, in every epoch.
        order = array("i", range(num_pairs))
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
        pairs: TrainingPairs,
        steps: Sequence[Sequence[int]],
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
        numbers = self.steps[index]
        shares = share_out([self.pairs.num_tokens(number) for number in numbers], self.num_ranks)
        numbers_by_rank = []
        for share in shares:
            numbers_by_rank.append([numbers[item] for item in share])
        # Every rank cuts the shares of all, so that each knows how many bins the others will have.
        num_bins = max(len(self._cut(share)) for share in numbers_by_rank)
        bins = []
        # Only here are tokens read, and of this rank's pairs alone.
        for members in self._cut(numbers_by_rank[self.rank]):
            pairs = [self.pairs[number] for number in members]
            # Of all pairs of the step, also those of other ranks: the sum over ranks is the mean.
            bins.append(self._bin(pairs, weight=1 / len(numbers)))
        # Under ZeRO-3 the ranks exchange weights in every bin, so that none may have fewer.
        while len(bins) < num_bins:
            bins.append(self._empty_bin(self.pairs[numbers[0]]))
        return bins

    def _cut(self, share: list[int]) -> list[list[int]]:
        """The numbers of the pairs of each bin of one rank."""
        bins = []
        for members in self.batching.bins([self.pairs.lengths(number) for number in share]):
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
