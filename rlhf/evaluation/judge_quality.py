"""How good a judge is at what this loop asks of it: the best and the worst of n responses.

Measured where the quality of every response is known, from people or a much stronger judge.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import StatisticsError, correlation, fmean, stdev
from typing import Any

Figure = dict[str, float]
"""`mean`, and the bounds `low` and `high` of its 95 % interval, with prompts as independent."""


@dataclass(frozen=True)
class Judged:
    """One prompt: the judge's score, the known quality and the characters of each of its n responses.

    Example:
        Judged(scores=[1.5, -0.3], qualities=[4.0, 2.0], lengths=[120, 45])
    """

    scores: Sequence[float]
    qualities: Sequence[float]
    lengths: Sequence[int]


def best_of_n(prompts: Iterable[Judged]) -> dict[str, Any]:
    """What a judge's choices are worth.

    Args:
        prompts: those with a single response are left out.

    Returns:
        `prompts`, `responses`; `pair_agreement`: of two responses of unequal quality, how often the better
        one scores higher (a tie is half); `best_worst_agreement`: how often the highest score has a higher
        quality than the lowest (likewise); `quality` of the judge's `pick`, of a `random` response, of the
        `oracle`'s and of the `worst`; `gain` = (pick − random) / (oracle − random) of the means;
        `score_length_correlation` and `quality_length_correlation` (Pearson; `within` takes each prompt's
        means off first). Figures without data are None.
    """
    # One response leaves nothing to choose, and would count as a choice as good as the oracle's.
    rows = [row for row in prompts if len(row.scores) > 1]
    qualities: dict[str, list[float]] = {"pick": [], "random": [], "oracle": [], "worst": []}
    for row in rows:
        qualities["pick"].append(_quality_at(row, max(row.scores)))
        qualities["random"].append(fmean(row.qualities))
        qualities["oracle"].append(max(row.qualities))
        qualities["worst"].append(min(row.qualities))
    return {
        "prompts": len(rows),
        "responses": sum(len(row.scores) for row in rows),
        "pair_agreement": figure(_without_none(map(_pair_agreement, rows))),
        "best_worst_agreement": figure(_without_none(map(_best_worst_agreement, rows))),
        "quality": {name: figure(values) for name, values in qualities.items()},
        "gain": _gain(qualities),
        "score_length_correlation": _correlations([(row.scores, row.lengths) for row in rows]),
        "quality_length_correlation": _correlations([(row.qualities, row.lengths) for row in rows]),
    }


def figure(values: Sequence[float]) -> Figure | None:
    """Mean with its 95 % interval (normal); None without values."""
    if not values:
        return None
    mean = fmean(values)
    # One value has no spread to estimate from, so that the mean may be anywhere.
    half_width = math.inf
    if len(values) > 1:
        half_width = 1.96 * stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half_width, "high": mean + half_width}


def wilson(right: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share: `right` of n, which is 1 or more; it holds for few, too.

    Example:
        `wilson(0, 2)` is about (0, 0.66)
    """
    z = 1.959964
    share = right / n
    weight = z * z / n
    variance = share * (1 - share) / n
    middle = share + weight / 2
    half_width = math.sqrt(z * z * variance + weight * weight / 4)
    low = (middle - half_width) / (1 + weight)
    high = (middle + half_width) / (1 + weight)
    return low, high


def _without_none(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _gain(qualities: Mapping[str, Sequence[float]]) -> float | None:
    if not qualities["random"]:
        return None
    random = fmean(qualities["random"])
    room = fmean(qualities["oracle"]) - random
    # Without room every choice is as good as chance, and a ratio to it says nothing.
    if room == 0:
        return None
    return (fmean(qualities["pick"]) - random) / room


def _quality_at(row: Judged, score: float) -> float:
    """Mean quality of the responses with this score: ties are broken by chance."""
    tied = []
    for response_score, quality in zip(row.scores, row.qualities, strict=True):
        if response_score == score:
            tied.append(quality)
    return fmean(tied)


def _pair_agreement(row: Judged) -> float | None:
    """How often the better of two responses scores higher, over all pairs; None if all are equally good."""
    agreements = []
    responses = zip(row.scores, row.qualities, strict=True)
    for first, second in itertools.combinations(responses, 2):
        score_gap = first[0] - second[0]
        quality_gap = first[1] - second[1]
        if quality_gap:
            # The product is positive where both gaps point the same way, whichever response comes first.
            agreements.append(_win(score_gap * quality_gap))
    return fmean(agreements) if agreements else None


def _best_worst_agreement(row: Judged) -> float | None:
    if max(row.qualities) == min(row.qualities):
        return None
    # With a constant judge these are one set of responses, hence a tie.
    best = _quality_at(row, max(row.scores))
    worst = _quality_at(row, min(row.scores))
    return _win(best - worst)


def _win(margin: float) -> float:
    """1 for a positive margin, 0 for a negative one, a half for none."""
    if margin == 0:
        return 0.5
    return float(margin > 0)


def _correlations(
    columns: Iterable[tuple[Sequence[float], Sequence[float]]],
) -> dict[str, float | None]:
    """Correlation of two columns that come prompt by prompt: over all responses, and within prompts."""
    xs: list[float] = []
    ys: list[float] = []
    centred_xs: list[float] = []
    centred_ys: list[float] = []
    for prompt_xs, prompt_ys in columns:
        xs += prompt_xs
        ys += prompt_ys
        # Without its means a prompt cannot correlate by being long and well answered as a whole.
        centred_xs += _centred(prompt_xs)
        centred_ys += _centred(prompt_ys)
    return {"over_all": pearson(xs, ys), "within": pearson(centred_xs, centred_ys)}


def _centred(values: Sequence[float]) -> list[float]:
    mean = fmean(values)
    return [value - mean for value in values]


def pearson(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Pearson's correlation; None where one side does not vary."""
    if len(xs) < 2:
        return None
    try:
        return correlation(xs, ys)
    except StatisticsError:
        # Raised for a constant side, which is an answer here, and for unequal lengths, which is a bug.
        if len(xs) != len(ys):
            raise
        return None
