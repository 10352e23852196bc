"""Scores of a prompt's responses, from judges that read one response and from judges that compare two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, permutations
from typing import Protocol

import numpy as np

from rlhf.data.records import Message
from rlhf.scoring.judge import Judge, Scored

Matchup = tuple[list[Message], str, str]
"""A conversation and two different responses to it."""
Table = dict[tuple[str, str], float]
"""P(first is better) of two texts, each pair both ways."""


@dataclass(frozen=True)
class Group:
    """A prompt's responses, and those of another policy that they are held against, if any.

    Example:
        Group([{"role": "user", "content": "Hi"}], ["Hello!", "Yo."], against=["Good day."])
    """

    messages: list[Message]
    responses: list[str]
    against: list[str] | None = None


@dataclass(frozen=True)
class Compared:
    """One P(first is better) in [0, 1] per comparison, in order; how often the model was asked;
    inputs cut, and inputs longer than the judge's context.

    With `leaves_out` a NaN is a comparison that came to nothing, and those that came to something count.
    """

    probabilities: list[float]
    num_calls: int
    num_truncated: int = 0
    num_over_context: int = 0
    leaves_out: bool = False


class PairJudge(Protocol):
    """Compares two responses to one conversation."""

    def compare(self, comparisons: Sequence[Matchup]) -> Compared:
        """P(first is better); exchanging the two gives 1 − P."""
        ...


class Tournament:
    """A judge that compares, as one that scores.

    A response's score is its mean probability, in [0, 1], of beating its opponents: `group.against`
    where that is given, else the other responses of its group. Equal texts tie (0.5) without a
    call; a response alone scores 0.5. Two responses score P and 1 − P. Within a group the scores'
    mean is 0.5, so they compare policies only with `against`. Where not everyone meets everyone,
    the probabilities of the rest come from `strengths`.
    """

    def __init__(self, judge: PairJudge, opponents: int | None = None) -> None:
        """Take a judge, and see `opponents_of`; it is not for `against`, where everyone meets everyone."""
        self.judge = judge
        self.context = getattr(judge, "context", None)
        self._num_opponents = opponents

    def score_groups(self, groups: Sequence[Group]) -> Scored:
        """Scores of all responses, group after group."""
        # The same pair of texts is compared once; a dict for its order, since equal work must make
        # equal batches.
        matchups: dict[tuple[int, str, str], None] = {}
        for number, group in enumerate(groups):
            for text, opponent in self._meetings(group):
                if text != opponent:
                    first, second = sorted((text, opponent))
                    matchups[number, first, second] = None
        comparisons = [(groups[number].messages, first, second) for number, first, second in matchups]
        compared = self.judge.compare(comparisons)
        tables: list[Table] = [{} for _ in groups]
        for (number, first, second), probability in zip(matchups, compared.probabilities, strict=True):
            if compared.leaves_out and math.isnan(probability):
                continue
            tables[number][first, second] = probability
            tables[number][second, first] = 1 - probability
        scores: list[float] = []
        for group, table in zip(groups, tables, strict=True):
            scores.extend(_mean_probabilities(group, table))
        return Scored(scores, compared.num_truncated, compared.num_calls, compared.num_over_context)

    def _meetings(self, group: Group) -> list[tuple[str, str]]:
        """Each response with each of its opponents; a pair of texts may come several times, and
        either way round.
        """
        meetings = []
        for index, text in enumerate(group.responses):
            opponents = group.against
            if opponents is None:
                places = opponents_of(index, len(group.responses), self._num_opponents)
                opponents = [group.responses[place] for place in places]
            for opponent in opponents:
                meetings.append((text, opponent))
        return meetings


def _mean_probabilities(group: Group, table: Table) -> list[float]:
    """Each response's mean probability of beating its opponents; `table` has those that were compared."""
    if group.against is None and table and not _is_complete(table, group.responses):
        table = _predicted(table)
    scores = []
    for index, text in enumerate(group.responses):
        opponents = group.against
        if opponents is None:
            opponents = group.responses[:index] + group.responses[index + 1 :]
        probabilities = []
        for opponent in opponents:
            # Never asked: the judge's leaning to one place would decide between equals.
            if opponent == text:
                probabilities.append(0.5)
            elif (text, opponent) in table:
                probabilities.append(table[text, opponent])
        # Alone, nothing is said against it; where every comparison was left out, nothing is known.
        of_none = math.nan if opponents else 0.5
        scores.append(sum(probabilities) / len(probabilities) if probabilities else of_none)
    return scores


def _is_complete(table: Table, responses: list[str]) -> bool:
    """Whether all different texts have been compared with each other."""
    for text, opponent in permutations(responses, 2):
        if text != opponent and (text, opponent) not in table:
            return False
    return True


def _predicted(table: Table) -> Table:
    """What the strengths of the texts say of every two of them, also of those that were compared."""
    # All from one source: a mean over measured and predicted values would favour who met weak opponents.
    strength_by_text = strengths(table)
    predicted: Table = {}
    for text, strength in strength_by_text.items():
        for opponent, opponent_strength in strength_by_text.items():
            predicted[text, opponent] = 1 / (1 + math.exp(opponent_strength - strength))
    return predicted


def strengths(table: Table) -> dict[str, float]:
    """Log-odds strength s of each text: least squares of s_a − s_b = log(P / (1 − P)) over the
    comparisons made.

    A mean over few opponents would depend on who they are. P is kept within 1e-6 of 0 and 1; NaN
    makes all NaN.

    Example:
        {("a", "b"): 0.75, ("b", "a"): 0.25} gives {"a": 0.549, "b": -0.549}
    """
    texts = list(dict.fromkeys(chain.from_iterable(table)))
    if not all(math.isfinite(probability) for probability in table.values()):
        return dict.fromkeys(texts, math.nan)
    column_of = {text: column for column, text in enumerate(texts)}
    # One equation per comparison: +1 for the first text's strength, −1 for the second's.
    design = np.zeros((len(table), len(texts)))
    log_odds = np.zeros(len(table))
    for row, ((first, second), probability) in enumerate(table.items()):
        design[row, column_of[first]] = 1
        design[row, column_of[second]] = -1
        log_odds[row] = _log_odds(probability)
    # Only differences are determined; lstsq takes the solution of least norm, whose mean is 0.
    solution = np.linalg.lstsq(design, log_odds, rcond=None)[0]
    return dict(zip(texts, map(float, solution), strict=True))


def _log_odds(probability: float) -> float:
    # A judge that is certain would make them infinite.
    clipped = min(max(probability, 1e-6), 1 - 1e-6)
    odds = clipped / (1 - clipped)
    return math.log(odds)


def opponents_of(index: int, n: int, wanted: int | None) -> list[int]:
    """Whom response `index` of n is compared with: all others, or at least `wanted` of them.

    The n responses stand in a ring, and each meets those farthest from it first. So everyone has
    equally many opponents, and where the responses are ordered by temperature, mostly of the other
    one. From `wanted` = 2 on, all are linked by comparisons.

    Example:
        `opponents_of(0, n=8, wanted=3)` gives `[3, 4, 5]`
    """
    if wanted is None or wanted >= n - 1:
        return [place for place in range(n) if place != index]
    opponents: set[int] = set()
    for distance in range(n // 2, 0, -1):
        if len(opponents) >= wanted:
            break
        # Both ways round, so that whom I meet meets me; halfway round they are the same one.
        opponents.add((index + distance) % n)
        opponents.add((index - distance) % n)
    return sorted(opponents)


def score_groups(judge: Judge | Tournament, groups: Sequence[Group]) -> Scored:
    """Scores of all responses, group after group, from either kind of judge."""
    if isinstance(judge, Tournament):
        return judge.score_groups(groups)
    items = []
    for group in groups:
        for text in group.responses:
            items.append((group.messages, text))
    return judge.score(items)
