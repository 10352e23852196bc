"""Scores of a prompt's responses, from judges that read one response and from judges that compare two."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Protocol

import numpy as np

from rlhf.data.records import Message
from rlhf.scoring.judge import Judge, Scored

Comparison = tuple[list[Message], str, str]
"""A conversation and two different responses to it."""
Table = dict[tuple[str, str], float]
"""P(first is better) of two texts, each pair both ways."""


@dataclass(frozen=True)
class Group:
    """A prompt's responses, and those of another policy that they are held against, if any."""

    messages: list[Message]
    responses: list[str]
    against: list[str] | None = None


@dataclass(frozen=True)
class Compared:
    """One P(first is better) in [0, 1] per comparison, in order; how often the model was asked; inputs cut."""

    probabilities: list[float]
    num_calls: int
    num_truncated: int = 0


class PairJudge(Protocol):
    """Compares two responses to one conversation."""

    def compare(self, comparisons: Sequence[Comparison]) -> Compared:
        """P(first is better); exchanging the two gives 1 − P."""
        ...


class Tournament:
    """A judge that compares, as one that scores.

    A response's score is its mean probability, in [0, 1], of beating its opponents: `group.against` where that is
    given, else the other responses of its group. Equal texts tie (0.5) without a call; a response alone scores 0.5.
    Two responses score P and 1 − P. Within a group the scores' mean is 0.5, so they compare policies only with
    `against`. Where not everyone meets everyone, the probabilities of the rest come from `strengths`.
    """

    def __init__(self, judge: PairJudge, opponents: int | None = None) -> None:
        """Take a judge, and see `opponents_of`; it is not for `against`, where everyone meets everyone."""
        self._judge, self._opponents = judge, opponents

    def score_groups(self, groups: Sequence[Group]) -> Scored:
        """Scores of all responses, group after group."""
        wanted: dict[tuple[int, str, str], None] = {}  # the same pair of texts is compared once, in a fixed order
        for number, group in enumerate(groups):
            for text, other in self._matches(group):
                if text != other:
                    wanted[number, min(text, other), max(text, other)] = None
        compared = self._judge.compare([(groups[number].messages, a, b) for number, a, b in wanted])
        tables: list[Table] = [{} for _ in groups]
        for (number, a, b), probability in zip(wanted, compared.probabilities, strict=True):
            tables[number] |= {(a, b): probability, (b, a): 1 - probability}
        scores = [score for group, table in zip(groups, tables, strict=True) for score in self._scores_of(group, table)]
        return Scored(scores, compared.num_truncated, compared.num_calls)

    def _matches(self, group: Group) -> Iterator[tuple[str, str]]:
        for index, text in enumerate(group.responses):
            if group.against is not None:
                yield from ((text, other) for other in group.against)
            else:
                others = opponents_of(index, len(group.responses), self._opponents)
                yield from ((text, group.responses[other]) for other in others)

    def _scores_of(self, group: Group, table: Table) -> Iterator[float]:
        if group.against is None and any((a, b) not in table and a != b for a, b in permutations(group.responses, 2)):
            fitted = strengths(table)
            table = {(a, b): 1 / (1 + math.exp(fitted[b] - fitted[a])) for a in fitted for b in fitted}
        for index, text in enumerate(group.responses):
            others = group.against
            if others is None:
                others = [other for i, other in enumerate(group.responses) if i != index]
            values = [0.5 if other == text else table[text, other] for other in others]
            yield sum(values) / len(values) if values else 0.5


def strengths(table: Table) -> dict[str, float]:
    """Log-odds strength s of each text: least squares of s_a − s_b = log(P / (1 − P)) over the comparisons made.

    A mean over few opponents would depend on who they are. P is kept within 1e-6 of 0 and 1; NaN makes all NaN.
    """
    texts = list(dict.fromkeys(text for pair in table for text in pair))
    if not all(math.isfinite(probability) for probability in table.values()):
        return dict.fromkeys(texts, math.nan)
    place = {text: i for i, text in enumerate(texts)}
    design, odds = np.zeros((len(table), len(texts))), np.zeros(len(table))
    for row, ((a, b), probability) in enumerate(table.items()):
        design[row, place[a]], design[row, place[b]] = 1, -1
        kept = min(max(probability, 1e-6), 1 - 1e-6)
        odds[row] = math.log(kept / (1 - kept))
    fitted = np.linalg.lstsq(design, odds, rcond=None)[0]
    return dict(zip(texts, map(float, fitted), strict=True))


def opponents_of(index: int, n: int, wanted: int | None) -> list[int]:
    """Whom response `index` of n is compared with: all others, or at least `wanted` of them.

    The n responses stand in a ring, and each meets those farthest from it first. So everyone has equally many
    opponents, and where the responses are ordered by temperature, mostly of the other one. From `wanted` = 2 on, all
    are linked by comparisons.
    """
    if wanted is None or wanted >= n - 1:
        return [other for other in range(n) if other != index]
    found: set[int] = set()
    for distance in range(n // 2, 0, -1):
        if len(found) >= wanted:
            break
        found |= {(index + distance) % n, (index - distance) % n}
    return sorted(found)


def score_groups(judge: Judge | Tournament, groups: Sequence[Group]) -> Scored:
    """Scores of all responses, group after group, from either kind of judge."""
    if isinstance(judge, Tournament):
        return judge.score_groups(groups)
    return judge.score([(group.messages, text) for group in groups for text in group.responses])
