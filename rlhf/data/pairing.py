"""How preference pairs are made of scored candidates.

For one prompt with candidates i = 0 … n−1, judge's scores r̂_i and texts a_i, everything here selects
*and* orients on

    p_i = r̂_i − λ·|a_i|

λ is `pair.length_penalty`, |a_i| is in characters (the paper's concise variant; λ = 0 else).

A strategy proposes oriented pairs (chosen, rejected) with p_chosen > p_rejected. Ties go to the lowest
index. A prompt gives pairs or exactly one `Drop`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import fmean, pstdev
from typing import Any

from rlhf.config.choices import Strategy, Truncated
from rlhf.config.schema import PairSettings
from rlhf.data.records import SIDES, Candidate, PreferencePair, ScoredPrompt, side_columns
from rlhf.errors import DataError

LARGEST_SCORE = 3.4028234663852886e38
"""The largest number of 32 bits. No judge gives more, and the sum of any number of such scores is finite."""

IndexPair = tuple[int, int]
"""Indices of the chosen and of the rejected candidate."""


class Drop(Enum):
    """Why a prompt gives no pair."""

    too_few_candidates = "too_few_candidates"
    non_finite = "non_finite"
    empty = "empty"
    truncated = "truncated"
    identical_text = "identical_text"
    all_tied = "all_tied"
    below_margin = "below_margin"


@dataclass(frozen=True)
class Terminators:
    """What ends a turn: `end_of_turn_id` a training target, any of `stop_token_ids` a sampled response."""

    end_of_turn_id: int
    stop_token_ids: frozenset[int]


@dataclass(frozen=True)
class Pool:
    """What a strategy sees of a prompt.

    `usable` indices may be rejected, `choosable` ones (a part of them) may be chosen; both ascend.
    """

    penalised: Sequence[float]
    texts: Sequence[str]
    usable: Sequence[int]
    choosable: Sequence[int]

    # sorted() leaves equals where they are, even with `reverse=True`, and indices ascend: so ties go to the
    # lowest index in both directions.
    def best_first(self, indices: Sequence[int]) -> list[int]:
        """Ascending indices by falling penalised score; equal scores in the order sampled."""
        return sorted(indices, key=self.penalised.__getitem__, reverse=True)

    def worst_first(self, indices: Sequence[int]) -> list[int]:
        """Ascending indices by rising penalised score; equal scores in the order sampled."""
        return sorted(indices, key=self.penalised.__getitem__)

    def below(self, index: int) -> list[int]:
        """Usable candidates with a lower penalised score and another text than this one."""
        lower = []
        for rival in self.usable:
            is_lower = self.penalised[rival] < self.penalised[index]
            # A judge may give the same text two scores; a pair of equal texts teaches nothing.
            if is_lower and self.texts[rival] != self.texts[index]:
                lower.append(rival)
        return lower

    def pairs_with_best(self) -> list[IndexPair]:
        """Every pair in which b = argmax p is chosen and some j of {j : p_j < p_b, a_j ≠ a_b} rejected."""
        if not self.choosable:
            return []
        best = self.best_first(self.choosable)[0]
        return [(best, rival) for rival in self.below(best)]


def best_worst(pool: Pool, rng: random.Random) -> list[IndexPair]:
    """(argmax p, argmin p), then second best with second worst, …, while p_chosen > p_rejected (Alg. 2).

    Both orders are monotone, so pairs with a positive margin never share a candidate.
    """
    best = pool.best_first(pool.choosable)
    worst = pool.worst_first(pool.usable)
    pairs = []
    # Not all that are usable may be chosen: the shorter list ends the pairing.
    for chosen, rejected in zip(best, worst, strict=False):
        if pool.penalised[chosen] <= pool.penalised[rejected]:
            break
        pairs.append((chosen, rejected))
    return pairs


def best_random(pool: Pool, rng: random.Random) -> list[IndexPair]:
    """Chosen b = argmax p; rejected uniform over {j : p_j < p_b, a_j ≠ a_b}."""
    return _draw_one(pool.pairs_with_best(), rng)


def best_second(pool: Pool, rng: random.Random) -> list[IndexPair]:
    """Chosen b = argmax p; rejected = argmax p over {j : p_j < p_b, a_j ≠ a_b}."""
    pairs = pool.pairs_with_best()
    if not pairs:
        return []
    # max() takes the first of equals, which has the lowest index.
    second = max(pairs, key=lambda pair: pool.penalised[pair[1]])
    return [second]


_SIGMAS = 2
"""How many standard deviations below the mean `best_sigma` looks for what it rejects."""


def best_sigma(pool: Pool, rng: random.Random) -> list[IndexPair]:
    """Chosen b = argmax p; rejected = argmin |p − (μ − 2σ)| over {j : p_j < p_b, a_j ≠ a_b}.

    From arXiv 2502.16825. μ and σ are mean and standard deviation (of n, not n − 1) of p over the usable
    candidates. With few of them the worst is not as low as μ − 2σ, and it is best_worst; with many, the worst
    is an outlier to be left alone.
    """
    pairs = pool.pairs_with_best()
    if not pairs:
        return []
    # A penalty may have left no finite number of a truncated response's score.
    penalised = [pool.penalised[index] for index in pool.usable if math.isfinite(pool.penalised[index])]
    wanted = fmean(penalised) - _SIGMAS * pstdev(penalised)
    # min() takes the first of equals, which has the lowest index.
    nearest = min(pairs, key=lambda pair: abs(pool.penalised[pair[1]] - wanted))
    return [nearest]


def random_pair(pool: Pool, rng: random.Random) -> list[IndexPair]:
    """{i, j} uniform over unordered pairs with p_i ≠ p_j, a_i ≠ a_j whose better one may be chosen.

    p orients it.
    """
    pairs: list[IndexPair] = []
    for chosen in pool.choosable:
        for rejected in pool.below(chosen):
            pairs.append((chosen, rejected))
    return _draw_one(pairs, rng)


def _draw_one(pairs: list[IndexPair], rng: random.Random) -> list[IndexPair]:
    """One of the pairs, each as likely as the others; none of none."""
    if not pairs:
        return []
    return [rng.choice(pairs)]


STRATEGIES: dict[Strategy, Callable[[Pool, random.Random], list[IndexPair]]] = {
    Strategy.best_worst: best_worst,
    Strategy.best_random: best_random,
    Strategy.best_second: best_second,
    Strategy.best_sigma: best_sigma,
    Strategy.random: random_pair,
}


def make_pairs(
    prompt: ScoredPrompt, config: PairSettings, terminators: Terminators | None, seed: int
) -> list[PreferencePair] | Drop:
    """The preference pairs of one prompt, or why there is none.

    Without `terminators` the responses are text alone, and so are the pairs.

    Raises:
        DataError: a finished response does not end in one of `terminators.stop_token_ids`.
    """
    pool = candidate_pool(prompt, config)
    if isinstance(pool, Drop):
        return pool
    selected = select(pool, prompt.id, config, seed)
    if isinstance(selected, Drop):
        return selected
    return [_build_pair(prompt, pool, terminators, pair) for pair in selected]


def select(pool: Pool, name: str, config: PairSettings, seed: int) -> list[IndexPair] | Drop:
    """Which candidates of a pool become pairs, or why none do.

    Random draws depend on the seed and the prompt's id alone, not on what was drawn before.

    Args:
        pool: of the prompt.
        name: the prompt's id.
        config: what `make_pairs` is told.
        seed: of the run.
    """
    # A generator for each prompt, so that neither the order of prompts nor their number moves a draw.
    rng = random.Random(f"{seed}/{name}")
    propose = STRATEGIES[config.strategy]
    proposed = propose(pool, rng)[: config.max_pairs_per_prompt]
    if not proposed:
        return _why_none(pool)
    # After the cut above: a pair that falls out here is not replaced by the next best one.
    different = []
    for chosen, rejected in proposed:
        if pool.texts[chosen] != pool.texts[rejected]:
            different.append((chosen, rejected))
    if not different:
        return Drop.identical_text
    pairs = []
    for chosen, rejected in different:
        margin = pool.penalised[chosen] - pool.penalised[rejected]
        if margin >= config.min_margin:
            pairs.append((chosen, rejected))
    if not pairs:
        return Drop.below_margin
    return pairs


def fault(candidate: Candidate, score: float) -> Drop | None:
    """What is wrong with a candidate: `non_finite`, `empty` (white space alone), `truncated`, or nothing.

    A score beyond `LARGEST_SCORE` counts as not finite: margins and means of such scores are not.
    """
    # Not `>`: every comparison with NaN is false.
    if not abs(score) <= LARGEST_SCORE:
        return Drop.non_finite
    if not candidate.text.strip():
        return Drop.empty
    # Last, for this is the one fault that may be allowed.
    return Drop.truncated if candidate.truncated else None


def candidate_pool(prompt: ScoredPrompt, config: PairSettings, least: int = 2) -> Pool | Drop:
    """Leave out what may not be used; what leaves too few candidates is the reason to drop the prompt.

    Candidates with non-finite scores and empty ones go first, then, if asked for, truncated ones.

    Args:
        prompt: with its candidates.
        config: what may be used, and by what score.
        least: candidates that must be left: two make a pair.
    """
    candidates = prompt.candidates[: config.num_candidates]
    scores = prompt.scores[: config.num_candidates]
    usable = list(range(len(candidates)))
    if len(usable) < least:
        return Drop.too_few_candidates
    penalised = []
    for candidate, score in zip(candidates, scores, strict=True):
        penalised.append(score - config.length_penalty * len(candidate.text))
    # The penalised score too: a huge penalty leaves nothing finite of any score.
    faults = []
    for candidate, score, lowered in zip(candidates, scores, penalised, strict=True):
        faults.append(fault(candidate, score) or fault(candidate, lowered))
    reasons = [Drop.non_finite, Drop.empty]
    if config.truncated is Truncated.drop:
        reasons.append(Drop.truncated)
    # One reason after the other: the one that left too few is the one to name.
    for reason in reasons:
        usable = [index for index in usable if faults[index] is not reason]
        if len(usable) < least:
            return reason
    choosable = usable
    if config.truncated is Truncated.never_chosen:
        choosable = [index for index in usable if not candidates[index].truncated]
    return Pool(
        penalised=penalised,
        texts=[candidate.text for candidate in candidates],
        usable=usable,
        choosable=choosable,
    )


def _why_none(pool: Pool) -> Drop:
    """Why no two candidates of a pool could be put in order."""
    if not pool.choosable:
        return Drop.truncated
    texts = {pool.texts[index] for index in pool.usable}
    if len(texts) == 1:
        return Drop.identical_text
    scores = {pool.penalised[index] for index in pool.usable}
    if len(scores) == 1:
        return Drop.all_tied
    best = pool.best_first(pool.choosable)[0]
    worst = pool.worst_first(pool.usable)[0]
    # A truncated candidate as good as the best finished one is in the way, or else equal texts are.
    return Drop.identical_text if pool.penalised[best] > pool.penalised[worst] else Drop.truncated


def training_target(candidate: Candidate, terminators: Terminators | None) -> list[int]:
    """Response ids as DPO trains them: the sampled terminator gives way to the template's end of turn.

    A truncated response ends as it was cut: the policy must not learn to stop there.

    Raises:
        DataError: a finished response ends in no terminator.
    """
    ids = candidate.token_ids
    if candidate.truncated or terminators is None:
        return list(ids)
    if not ids or ids[-1] not in terminators.stop_token_ids:
        raise DataError(
            f"A response with finish_reason {candidate.finish_reason!r} ends in token {ids[-1:]}, which is "
            f"none of the stop tokens {sorted(terminators.stop_token_ids)}. Either it was cut, then its "
            "finish_reason is 'length'; or tokens.json beside the candidates lacks that stop token: add it, "
            "or generate the candidates anew."
        )
    # Samplers stop at end-of-text as well; after it the template would not go on with a next turn.
    return [*ids[:-1], terminators.end_of_turn_id]


def _build_pair(
    prompt: ScoredPrompt,
    pool: Pool,
    terminators: Terminators | None,
    pair: IndexPair,
) -> PreferencePair:
    """The record of one pair; ranks are those among the usable candidates, by penalised score."""
    ranked = pool.best_first(pool.usable)
    columns: dict[str, Any] = {}
    for side, index in zip(SIDES, pair, strict=True):
        candidate = prompt.candidates[index]
        columns |= side_columns(
            side,
            token_ids=training_target(candidate, terminators),
            text=candidate.text,
            score=prompt.scores[index],
            penalised=pool.penalised[index],
            rank=ranked.index(index),
            truncated=candidate.truncated,
        )
    return PreferencePair(
        id=prompt.id,
        messages=prompt.messages,
        prompt_token_ids=prompt.prompt_token_ids,
        **columns,
    )
