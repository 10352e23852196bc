"""How good a judge is at what this loop asks of it: the best and the worst of n responses.

Measured where the quality of every response is known, from people or a much stronger judge.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

Figure = dict[str, float]
"""`mean`, and the bounds `low` and `high` of its 95 % interval, with prompts as independent."""


@dataclass(frozen=True)
class Judged:
    """One prompt: the judge's score, the known quality and the characters of each of its n responses."""

    scores: Sequence[float]
    qualities: Sequence[float]
    lengths: Sequence[int]


def best_of_n(prompts: Iterable[Judged]) -> dict[str, Any]:
    """What a judge's choices are worth.

    Returns:
        `prompts`, `responses`; `pair_agreement`: of two responses of unequal quality, how often the better one scores
        higher (a tie is half); `best_worst_agreement`: how often the highest score has a higher quality than the
        lowest (likewise); `quality` of the judge's `pick`, of a `random` response, of the `oracle`'s and of the
        `worst`; `gain` = (pick − random) / (oracle − random) of the means; `score_length_correlation` and
        `quality_length_correlation` (Pearson; `within` takes each prompt's means off first). Figures without data are
        None.
    """
    rows = [row for row in prompts if len(row.scores) > 1]
    picks = {
        "pick": [_choose(row.scores, row.qualities, max) for row in rows],
        "random": [fmean(row.qualities) for row in rows],
        "oracle": [max(row.qualities) for row in rows],
        "worst": [min(row.qualities) for row in rows],
    }
    quality = {name: figure(values) for name, values in picks.items()}
    room = fmean(picks["oracle"]) - fmean(picks["random"]) if rows else 0.0
    return {
        "prompts": len(rows),
        "responses": sum(len(row.scores) for row in rows),
        "pair_agreement": figure([value for row in rows if (value := _agreement(row)) is not None]),
        "best_worst_agreement": figure([value for row in rows if (value := _best_worst(row)) is not None]),
        "quality": quality,
        "gain": (fmean(picks["pick"]) - fmean(picks["random"])) / room if room else None,
        "score_length_correlation": _correlations([(row.scores, row.lengths) for row in rows]),
        "quality_length_correlation": _correlations([(row.qualities, row.lengths) for row in rows]),
    }


def figure(values: Sequence[float]) -> Figure | None:
    """Mean with its 95 % interval (normal); None without values."""
    if not values:
        return None
    mean = fmean(values)
    half = 1.96 * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _choose(scores: Sequence[float], values: Sequence[float], choose: Any) -> float:
    """Mean value of the responses with the extreme score: ties are broken by chance."""
    extreme = choose(scores)
    return fmean(value for score, value in zip(scores, values, strict=True) if score == extreme)


def _agreement(row: Judged) -> float | None:
    wins = []
    for i, j in itertools.combinations(range(len(row.scores)), 2):
        better = row.qualities[i] - row.qualities[j]
        if better:
            higher = (row.scores[i] - row.scores[j]) * better
            wins.append(0.5 if higher == 0 else float(higher > 0))
    return fmean(wins) if wins else None


def _best_worst(row: Judged) -> float | None:
    if max(row.qualities) == min(row.qualities):
        return None
    best, worst = _choose(row.scores, row.qualities, max), _choose(row.scores, row.qualities, min)
    return 0.5 if best == worst else float(best > worst)


def _correlations(columns: Sequence[tuple[Sequence[float], Sequence[float]]]) -> dict[str, float | None]:
    def centred(values: Sequence[float]) -> list[float]:
        mean = fmean(values)
        return [value - mean for value in values]

    def flat(pairs: Iterable[tuple[Sequence[float], Sequence[float]]]) -> tuple[list[float], list[float]]:
        both = [pair for xs, ys in pairs for pair in zip(xs, ys, strict=True)]
        return [x for x, _ in both], [y for _, y in both]

    return {
        "over_all": pearson(*flat(columns)),
        "within": pearson(*flat((centred(xs), centred(ys)) for xs, ys in columns)),
    }


def pearson(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Pearson's correlation; None where one side does not vary."""
    if len(xs) < 2:
        return None
    x0, y0 = fmean(xs), fmean(ys)
    spread = math.sqrt(sum((x - x0) ** 2 for x in xs) * sum((y - y0) ** 2 for y in ys))
    return sum((x - x0) * (y - y0) for x, y in zip(xs, ys, strict=True)) / spread if spread else None
