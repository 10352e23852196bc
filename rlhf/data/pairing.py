"""How preference pairs are made of scored candidates.

For one prompt with candidates i = 0 … n−1, judge's scores r̂_i and texts a_i, everything here selects *and* orients on

    p_i = r̂_i − λ·|a_i|        λ = `pair.length_penalty`, |a_i| in characters (the paper's concise variant; λ = 0 else)

A strategy proposes oriented pairs (chosen, rejected) with p_chosen > p_rejected. Ties go to the lowest index. A prompt
gives pairs or exactly one `Drop`.
"""

from __future__ import annotations

import math
import random as random_numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import takewhile

from rlhf.config.choices import Strategy, Truncated
from rlhf.config.schema import PairSettings
from rlhf.data.records import Candidate, PreferencePair, ScoredPrompt
from rlhf.errors import DataError

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
    """What ends a turn: `end_of_turn_id` in a training target, any of `stop_token_ids` in a sampled response."""

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

    def best_first(self, indices: Sequence[int]) -> list[int]:
        """Indices by falling penalised score; equal scores in the order sampled."""
        return sorted(indices, key=lambda i: (-self.penalised[i], i))

    def worst_first(self, indices: Sequence[int]) -> list[int]:
        """Indices by rising penalised score; equal scores in the order sampled."""
        return sorted(indices, key=lambda i: (self.penalised[i], i))

    def below(self, i: int) -> list[int]:
        """Usable candidates with a lower penalised score and another text than candidate i."""
        return [j for j in self.usable if self.penalised[j] < self.penalised[i] and self.texts[j] != self.texts[i]]


def best_worst(pool: Pool, rng: random_numbers.Random) -> list[IndexPair]:
    """(argmax p, argmin p), then second best with second worst, and so on, while p_chosen > p_rejected (Alg. 2).

    Both orders are monotone, so pairs with a positive margin never share a candidate.
    """
    ends = zip(pool.best_first(pool.choosable), pool.worst_first(pool.usable), strict=False)
    return list(takewhile(lambda pair: pool.penalised[pair[0]] > pool.penalised[pair[1]], ends))


def best_random(pool: Pool, rng: random_numbers.Random) -> list[IndexPair]:
    """Chosen b = argmax p; rejected uniform over {j : p_j < p_b, a_j ≠ a_b}."""
    best = pool.best_first(pool.choosable)[:1]
    return [(b, rng.choice(below)) for b in best if (below := pool.below(b))]


def best_second(pool: Pool, rng: random_numbers.Random) -> list[IndexPair]:
    """Chosen b = argmax p; rejected = argmax p over {j : p_j < p_b, a_j ≠ a_b}."""
    best = pool.best_first(pool.choosable)[:1]
    return [(b, pool.best_first(below)[0]) for b in best if (below := pool.below(b))]


def random(pool: Pool, rng: random_numbers.Random) -> list[IndexPair]:
    """{i, j} uniform over unordered pairs with p_i ≠ p_j, a_i ≠ a_j whose better one may be chosen; p orients it."""
    pairs = [(i, j) for i in pool.choosable for j in pool.below(i)]
    return [rng.choice(pairs)] if pairs else []


STRATEGIES: dict[Strategy, Callable[[Pool, random_numbers.Random], list[IndexPair]]] = {
    Strategy.best_worst: best_worst,
    Strategy.best_random: best_random,
    Strategy.best_second: best_second,
    Strategy.random: random,
}


def make_pairs(
    prompt: ScoredPrompt, config: PairSettings, terminators: Terminators | None, seed: int
) -> list[PreferencePair] | Drop:
    """The preference pairs of one prompt, or why there is none.

    Random draws depend on the seed and the prompt's id alone, not on what was drawn before. Without `terminators` the
    responses are text alone, and so are the pairs.

    Raises:
        DataError: a finished response does not end in one of `terminators.stop_token_ids`.
    """
    pool = candidate_pool(prompt, config)
    if isinstance(pool, Drop):
        return pool
    rng = random_numbers.Random(f"{seed}/{prompt.id}")
    proposed = STRATEGIES[config.strategy](pool, rng)[: config.max_pairs_per_prompt]
    if not proposed:
        return _why_none(pool)
    different = [(i, j) for i, j in proposed if pool.texts[i] != pool.texts[j]]
    if not different:
        return Drop.identical_text
    wide = [(i, j) for i, j in different if pool.penalised[i] - pool.penalised[j] >= config.min_margin]
    if not wide:
        return Drop.below_margin
    return [_build(prompt, pool, terminators, pair) for pair in wide]


def fault(candidate: Candidate, score: float) -> Drop | None:
    """What is wrong with one candidate: `non_finite`, `empty` (nothing but white space), `truncated`, or nothing."""
    if not math.isfinite(score):
        return Drop.non_finite
    if not candidate.text.strip():
        return Drop.empty
    return Drop.truncated if candidate.truncated else None


def candidate_pool(prompt: ScoredPrompt, config: PairSettings) -> Pool | Drop:
    """Leave out what may not be used; what leaves fewer than two candidates is the reason to drop the prompt.

    Candidates with non-finite scores and empty ones go first, then, if asked for, truncated ones.
    """
    candidates = prompt.candidates[: config.num_candidates]
    usable = list(range(len(candidates)))
    if len(usable) < 2:
        return Drop.too_few_candidates
    faults = [fault(c, score) for c, score in zip(candidates, prompt.scores, strict=False)]
    reasons = [Drop.non_finite, Drop.empty] + [Drop.truncated] * (config.truncated is Truncated.drop)
    for reason in reasons:
        usable = [i for i in usable if faults[i] is not reason]
        if len(usable) < 2:
            return reason
    may_choose_all = config.truncated is not Truncated.never_chosen
    return Pool(
        penalised=[s - config.length_penalty * len(c.text) for c, s in zip(candidates, prompt.scores, strict=False)],
        texts=[c.text for c in candidates],
        usable=usable,
        choosable=[i for i in usable if may_choose_all or not candidates[i].truncated],
    )


def _why_none(pool: Pool) -> Drop:
    """Why no two candidates of a pool could be put in order."""
    if not pool.choosable:
        return Drop.truncated
    if len({pool.texts[i] for i in pool.usable}) == 1:
        return Drop.identical_text
    if len({pool.penalised[i] for i in pool.usable}) == 1:
        return Drop.all_tied
    best = pool.best_first(pool.choosable)[0]
    worst = pool.worst_first(pool.usable)[0]
    # Without a truncated candidate that is as good as the best finished one, only equal texts can be in the way.
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
            f"A response with finish_reason {candidate.finish_reason!r} ends in token {ids[-1:]}, which is none of the "
            f"stop tokens {sorted(terminators.stop_token_ids)}. Either it was cut, then its finish_reason is 'length'; "
            "or tokens.json beside the candidates lacks that stop token: add it, or generate the candidates anew."
        )
    return [*ids[:-1], terminators.end_of_turn_id]


def _build(prompt: ScoredPrompt, pool: Pool, terminators: Terminators | None, pair: IndexPair) -> PreferencePair:
    """The record of one pair; ranks are those among the usable candidates, by penalised score."""
    i, j = pair
    chosen, rejected = prompt.candidates[i], prompt.candidates[j]
    rank = {index: place for place, index in enumerate(pool.best_first(pool.usable))}
    return PreferencePair(
        id=prompt.id,
        messages=prompt.messages,
        prompt_token_ids=prompt.prompt_token_ids,
        chosen_token_ids=training_target(chosen, terminators),
        rejected_token_ids=training_target(rejected, terminators),
        chosen=chosen.text,
        rejected=rejected.text,
        chosen_score=prompt.scores[i],
        rejected_score=prompt.scores[j],
        chosen_penalised=pool.penalised[i],
        rejected_penalised=pool.penalised[j],
        chosen_rank=rank[i],
        rejected_rank=rank[j],
        chosen_chars=len(chosen.text),
        rejected_chars=len(rejected.text),
        chosen_truncated=chosen.truncated,
        rejected_truncated=rejected.truncated,
    )
