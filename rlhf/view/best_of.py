"""How much fewer responses a prompt would have lost: best of k for k up to the n there are."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from rlhf.config.schema import PairSettings
from rlhf.data.pairing import Drop, candidate_pool, select
from rlhf.data.records import Candidate, ScoredPrompt
from rlhf.loop.figures import finite

_DRAWS = 80_000
"""Draws of k responses in all, over all prompts, for the share that gives a pair."""


@dataclass
class OfK:
    """Sums over prompts, of k responses drawn from each without replacement.

    `best` and `margin` are expected values over all draws, over `num_scored` prompts that have a finite score
    at all; `num_with_pairs` of `num_draws` gave a pair.
    """

    k: int
    best: float = 0.0
    margin: float = 0.0
    num_scored: int = 0
    num_draws: int = 0
    num_with_pairs: int = 0


@cache
def weights(num_scores: int, k: int) -> np.ndarray:
    """How likely each of m scores, in ascending order, is the largest of k that are drawn.

    C(i, k − 1) of the C(m, k) draws have the score of index i and k − 1 below it. Of ties the later one
    counts as the larger, which is the same score.

    Example:
        weights(3, 2) is [0, 1/3, 2/3]
    """
    total = math.comb(num_scores, k)
    return np.array([math.comb(index, k - 1) / total for index in range(num_scores)])


def best_and_worst(scores: Sequence[float], k: int) -> tuple[float, float]:
    """The expected largest and smallest of k scores, drawn without replacement; of all where there are fewer.

    Args:
        scores: finite, at least one.
        k: at least 1.
    """
    ascending = np.sort(scores)
    of_each = weights(len(ascending), min(k, len(ascending)))
    return float(of_each @ ascending), float(of_each[::-1] @ ascending)


def ladder(num_candidates: int) -> list[int]:
    """1, 2, 4, … and n."""
    steps = []
    k = 1
    while k < num_candidates:
        steps.append(k)
        k *= 2
    return [*steps, num_candidates]


class BestOf:
    """Adds up, shard by shard, what k of the n responses would have given."""

    def __init__(self, num_candidates: int, settings: PairSettings, seed: int, num_prompts: int) -> None:
        self.of = [OfK(k) for k in ladder(num_candidates)]
        self.draws = max(1, _DRAWS // max(1, num_prompts))
        # The most choices that a k has.
        self.is_exact = max(math.comb(num_candidates, each.k) for each in self.of) <= self.draws
        # It is drawn here how many are looked at.
        self._settings = replace(settings, num_candidates=None)
        self._seed = seed

    def add(self, candidates: pa.Table, scores: pa.Table) -> None:
        """Look at one shard: rows of `CANDIDATES_SCHEMA` and `SCORES_SCHEMA` with the same prompts."""
        for prompt in _prompts(candidates, scores):
            numbers = finite(prompt.scores)
            for each in self.of:
                if numbers:
                    best, worst = best_and_worst(numbers, each.k)
                    each.best += best
                    each.margin += best - worst
                    each.num_scored += 1
                self._draw(prompt, each)

    def _draw(self, prompt: ScoredPrompt, each: OfK) -> None:
        for places in self._places(prompt, each.k):
            drawn = replace(
                prompt,
                candidates=tuple(prompt.candidates[place] for place in places),
                scores=tuple(prompt.scores[place] for place in places),
            )
            pool = candidate_pool(drawn, self._settings)
            each.num_draws += 1
            if isinstance(pool, Drop):
                continue
            selected = select(pool, prompt.id, self._settings, self._seed)
            each.num_with_pairs += not isinstance(selected, Drop)

    def _places(self, prompt: ScoredPrompt, k: int) -> Iterator[tuple[int, ...]]:
        """Which responses are drawn: every choice of k where those are few, else some at random."""
        there = range(len(prompt.candidates))
        k = min(k, len(there))
        if math.comb(len(there), k) <= self.draws:
            yield from itertools.combinations(there, k)
            return
        rng = random.Random(f"{self._seed}/{prompt.id}/{k}")
        for _ in range(self.draws):
            # In the order sampled, which settles ties.
            yield tuple(sorted(rng.sample(there, k)))


def _prompts(candidates: pa.Table, scores: pa.Table) -> Iterator[ScoredPrompt]:
    """Prompts as pairing takes them, without messages and token ids."""
    columns: list[list[Any]] = [candidates["id"].to_pylist(), scores["scores"].to_pylist()]
    lists = candidates["candidates"].combine_chunks()
    structs = lists.flatten()
    for name in ("text", "finish_reason"):
        columns.append(structs.field(name).to_pylist())
    ids, all_scores, texts, reasons = columns
    start = 0
    for name, of_prompt in zip(ids, all_scores, strict=True):
        sampled = []
        for place in range(start, start + len(of_prompt)):
            sampled.append(Candidate([], texts[place], reasons[place], logprob=0.0, seed=0, temperature=0.0))
        start += len(of_prompt)
        yield ScoredPrompt(name, (), [], tuple(sampled), tuple(of_prompt))
