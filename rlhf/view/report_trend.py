"""The part of a report that says where a run goes, as a table: every judge's figures of every policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf.loop.figure_text import number, rate
from rlhf.loop.figures import Evaluation, Row, best
from rlhf.view.report_numbers import GOLD, MAIN, HeldOut, spread_of, win_rate_of


@dataclass(frozen=True)
class Trend:
    """What the figures are made of: an evaluation, its row and its numbers for each policy, π0 first."""

    evaluations: Sequence[Evaluation]
    rows: Sequence[Row]
    policies: Sequence[HeldOut]

    @property
    def judges(self) -> list[str]:
        """Names of the judges that all policies have scores of, the one that trains first."""
        first = self.policies[0].scores
        return [name for name in first if all(name in policy.scores for policy in self.policies)]

    @property
    def names(self) -> list[str]:
        """What policies are called."""
        return [policy_name(row.iteration) for row in self.rows]


def policy_name(iteration: int) -> str:
    """What the policy of an iteration is called."""
    return f"π{iteration}"


def judge_title(judge: str, is_sum: bool = False) -> str:
    """What a judge is called on the page."""
    if judge == MAIN:
        return "sum of judges" if is_sum else "training judge"
    return judge


def headline(trend: Trend) -> list[tuple[str, list[list[str]]]]:
    """Groups of lines, a cell for each policy in each: what the page's first table shows.

    Example:
        [("training judge", [["mean", "-0.266", "+0.618"], …]), ("responses", [["tokens", "6.1", "5.4"], …])]
    """
    groups = [(judge, _judge_lines(trend, judge)) for judge in trend.judges]
    groups.append(("responses", _response_lines(trend.rows)))
    groups.append(("training pairs", _pair_lines(trend)))
    return groups


def _judge_lines(trend: Trend, judge: str) -> list[list[str]]:
    """What one judge says of every policy."""
    num_responses = trend.policies[0].scores[judge].shape[1]
    form = ".3f" if judge == GOLD else "+.3f"
    spreads = [spread_of(policy.scores[judge]) for policy in trend.policies]
    lines = [
        ["mean", *[number(spread.mean, form) for spread in spreads]],
        [f"best of {num_responses}", *[number(spread.best, form) for spread in spreads]],
        [f"worst of {num_responses}", *[number(spread.worst, form) for spread in spreads]],
    ]
    against_initial, against_previous = ["–"], ["–"]
    for place in range(1, len(trend.rows)):
        against_initial.append(rate(*against(trend, judge, place, 0)))
        against_previous.append(rate(*against(trend, judge, place, place - 1)))
    lines.append(["win rate vs π0", *against_initial])
    # Of two policies the previous one is π0.
    if len(trend.rows) > 2:
        lines.append(["win rate vs previous", *against_previous])
    return lines


def against(
    trend: Trend, judge: str, place: int, opponent: int
) -> tuple[float | None, float | None, float | None]:
    """A policy's win rate against another one, by a judge; against π0 as the run's own table has it."""
    row = trend.rows[place]
    # Not worked out again: of a pairwise judge the score itself is the rate.
    if opponent == 0 and judge != GOLD:
        verdict = row if judge == MAIN else row.judges[judge]
        return verdict.win_rate, verdict.win_rate_low, verdict.win_rate_high
    return win_rate_of(trend.policies[place], trend.policies[opponent], judge)


def _response_lines(rows: Sequence[Row]) -> list[list[str]]:
    distance = "KL to π0" if rows[0].log_ratio is None else "log π/π0"
    lines = [
        ["tokens", *[number(row.mean_response_tokens, ".1f") for row in rows]],
        ["cut at the limit", *[f"{row.truncated:.1%}" for row in rows]],
        [distance, *[number(row.distance, ".2f") for row in rows]],
    ]
    if any(row.disagreement is not None for row in rows):
        lines.append(["judges disagree", *[number(row.disagreement, ".1%") for row in rows]])
    left_out = [", ".join(f"{count} of {name}" for name, count in row.left_out.items()) for row in rows]
    if any(left_out):
        lines.append(["left out, not finite", *[text or "–" for text in left_out]])
    return lines


def _pair_lines(trend: Trend) -> list[list[str]]:
    """How many pairs each policy was trained on, of how many prompts, and what was dropped."""
    pairs, yields, drops = [], [], []
    for row, evaluation in zip(trend.rows, trend.evaluations, strict=True):
        pairs.append(number(row.pairs, ",d"))
        counts = evaluation.pair.counts if evaluation.pair is not None else {}
        share = None
        if counts.get("prompts"):
            share = counts.get("prompts_with_pairs", 0) / counts["prompts"]
        yields.append(number(share, ".1%"))
        drops.append(", ".join(f"{reason} {count}" for reason, count in sorted(row.dropped.items())) or "–")
    return [["pairs", *pairs], ["prompts with a pair", *yields], ["dropped", *drops]]


def why_best(trend: Trend) -> tuple[int, str]:
    """The place of the best policy, and a sentence that says why, and how sure that is."""
    place = best(trend.rows)
    row = trend.rows[place]
    name = policy_name(row.iteration)
    if not math.isfinite(row.mean_score):
        return place, "No policy has a finite score on the held-out prompts: π0 is best for want of another."
    text = f"{name} is the best policy: it has the highest mean held-out score, {row.mean_score:+.3f}"
    others = [other for other in trend.rows if other is not row and math.isfinite(other.mean_score)]
    if not others:
        return place, f"{text}; there is no other yet."
    second = max(others, key=lambda other: other.mean_score)
    opponent = trend.rows.index(second)
    text = f"{text}; next is {policy_name(second.iteration)} with {second.mean_score:+.3f}."
    found = win_rate_of(trend.policies[place], trend.policies[opponent], MAIN)
    text += f" Against that one it wins {rate(*found)} of the comparisons (95 % interval)"
    if found[1] <= 0.5:
        return place, f"{text}, so the two cannot be told apart."
    return place, f"{text}."
