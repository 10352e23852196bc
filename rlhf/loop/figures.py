"""Per-iteration figures: plain arithmetic over finished artifacts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rlhf.data.records import dropped
from rlhf.data.shards import read_all_rows, write_atomic
from rlhf.run.artifact import Artifact

KL_ESTIMATOR = "k1: mean over samples of log π_t − log π0, nats per response"


@dataclass(frozen=True)
class Evaluation:
    """The artifacts that say how good one policy is, and how its training data came about.

    `gold`, `reference` (log-probs of the samples under π0), `generate` and `pair` (of the iteration that trained it)
    are None where there is nothing; `others` are scores by judges that only evaluate, and by each judge of a sum.
    """

    iteration: int
    policy: Artifact
    candidates: Artifact
    scores: Artifact
    gold: Artifact | None = None
    reference: Artifact | None = None
    generate: Artifact | None = None
    pair: Artifact | None = None
    others: dict[str, Artifact] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What one of several judges says of a policy; the win rate against π0 is in 0–1, None for π0 itself."""

    mean_score: float
    win_rate: float | None = None
    win_rate_low: float | None = None
    win_rate_high: float | None = None


@dataclass(frozen=True)
class Row:
    """One evaluated policy; rates and `disagreement` (`rlhf.stages.mix`) in 0–1, `kl` in nats per response, or None."""

    iteration: int
    mean_score: float
    gold_accuracy: float | None
    win_rate: float | None
    win_rate_low: float | None
    win_rate_high: float | None
    mean_response_tokens: float
    kl: float | None
    truncated: float
    pairs: int | None
    dropped: dict[str, int]
    judges: dict[str, Verdict] = field(default_factory=dict)
    disagreement: float | None = None


def scores_by_prompt(scores: Artifact) -> dict[str, list[float]]:
    """Scores of each prompt's responses, by prompt id."""
    return {row["id"]: row["scores"] for row in read_all_rows(scores.path)}


def win_rate(policy: dict[str, list[float]], initial: dict[str, list[float]]) -> tuple[float, float, float]:
    """How often the policy's response scores higher than π0's on the same prompt; a tie counts half.

    Every response of one is compared with every response of the other; the 95 % interval takes prompts, not
    comparisons, as independent. Returns (rate, low, high) in 0–1.
    """
    per_prompt = []
    for prompt, ours in policy.items():
        theirs = [score for score in initial.get(prompt, []) if math.isfinite(score)]
        mine = [score for score in ours if math.isfinite(score)]
        if mine and theirs:
            wins = sum((a > b) + 0.5 * (a == b) for a in mine for b in theirs)
            per_prompt.append(wins / (len(mine) * len(theirs)))
    return mean_and_interval(per_prompt)


def mean_and_interval(per_prompt: Sequence[float]) -> tuple[float, float, float]:
    """Mean of figures in 0–1 and its 95 % interval (mean, low, high); NaN of nothing."""
    if not per_prompt:
        return math.nan, math.nan, math.nan
    rate = fmean(per_prompt)
    half = 1.96 * stdev(per_prompt) / math.sqrt(len(per_prompt)) if len(per_prompt) > 1 else 1.0
    return rate, max(0.0, rate - half), min(1.0, rate + half)


def kl_to_initial(candidates: Artifact, reference: Artifact) -> float:
    """KL(π_t‖π0), estimated as the mean of log π_t(y) − log π0(y) over sampled responses y, in nats."""
    differences = []
    rows = zip(read_all_rows(candidates.path, ["id", "candidates"]), read_all_rows(reference.path), strict=True)
    for sampled, under_initial in rows:
        assert sampled["id"] == under_initial["id"], "reference log-probs and candidates are out of step"
        pairs = zip(sampled["candidates"], under_initial["logprobs"], strict=True)
        differences += [candidate["logprob"] - logprob for candidate, logprob in pairs]
    return fmean(differences) if differences else math.nan


def verdict(scores: Artifact, initial: Artifact | None) -> Verdict:
    """Mean score and, unless it is π0's own, the win rate against π0.

    A pairwise judge's score is the probability of beating π0's response already, so its mean is the win rate.
    """
    ours = scores_by_prompt(scores)
    finite = [score for values in ours.values() for score in values if math.isfinite(score)]
    mean = fmean(finite) if finite else math.nan
    if initial is None:
        return Verdict(mean)
    if "judge_calls" in scores.counts:
        whole = [fmean(values) for values in ours.values() if all(map(math.isfinite, values))]
        return Verdict(mean, *mean_and_interval(whole))
    return Verdict(mean, *win_rate(ours, scores_by_prompt(initial)))


def row_of(evaluation: Evaluation, initial: Evaluation) -> Row:
    """The figures of one policy beside π0's."""
    first = evaluation is initial
    own = verdict(evaluation.scores, None if first else initial.scores)
    gold = [s for values in scores_by_prompt(evaluation.gold).values() for s in values] if evaluation.gold else []
    kl: float | None = 0.0
    if not first:
        kl = kl_to_initial(evaluation.candidates, evaluation.reference) if evaluation.reference else None
    counts, trained_on = evaluation.candidates.counts, (evaluation.generate, evaluation.pair)
    return Row(
        iteration=evaluation.iteration,
        mean_score=own.mean_score,
        gold_accuracy=fmean(gold) if gold else None,
        win_rate=own.win_rate,
        win_rate_low=own.win_rate_low,
        win_rate_high=own.win_rate_high,
        mean_response_tokens=counts["response_tokens"] / max(1, counts["responses"]),
        kl=kl,
        truncated=counts["truncated"] / max(1, counts["responses"]),
        pairs=evaluation.pair.counts["pairs"] if evaluation.pair else None,
        dropped=dropped({key: n for made in trained_on if made for key, n in made.counts.items()}),
        judges={
            name: verdict(scores, None if first else initial.others[name]) for name, scores in evaluation.others.items()
        },
        disagreement=evaluation.scores.metrics.get("disagreement"),
    )


def rows_of(evaluations: Sequence[Evaluation]) -> list[Row]:
    """The figures of every evaluated policy, π0 first."""
    return [row_of(evaluation, evaluations[0]) for evaluation in evaluations]


def table(rows: Sequence[Row]) -> str:
    """The figures as text, a line per policy."""
    others = [column for name in rows[0].judges for column in (name, "win rate")]
    heads = ["policy", "score", "gold", "win rate vs π0 (95 %)", *others]
    heads += ["tokens", "KL to π0", "cut", "pairs", "dropped"]
    lines = [heads, *[_cells(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([text[0], "  ".join("─" * width for width in widths), *text[1:]])


def _cells(row: Row) -> list[str]:
    lost = ", ".join(f"{reason} {count}" for reason, count in sorted(row.dropped.items()))
    others = [cell for other in row.judges.values() for cell in (f"{other.mean_score:+.3f}", _rate(other))]
    return [
        f"π{row.iteration}",
        f"{row.mean_score:+.3f}",
        "–" if row.gold_accuracy is None else f"{row.gold_accuracy:.3f}",
        _rate(row),
        *others,
        f"{row.mean_response_tokens:.1f}",
        "–" if row.kl is None else f"{row.kl:.2f}",
        f"{100 * row.truncated:.1f} %",
        "–" if row.pairs is None else str(row.pairs),
        lost or "–",
    ]


def _rate(row: Row | Verdict) -> str:
    if row.win_rate is None:
        return "–"
    return f"{row.win_rate:.3f} [{row.win_rate_low:.3f}, {row.win_rate_high:.3f}]"


def best(rows: Sequence[Row]) -> int:
    """Index of the policy with the highest mean held-out score of the judge; the earlier one of equals."""
    return max(range(len(rows)), key=lambda i: (rows[i].mean_score, -i))


def write_summary(folder: Path, rows: Sequence[Row], best_iteration: int, gates: Sequence[dict[str, Any]] = ()) -> None:
    """`summary.json`: the figures for programs, and what `rlhf.loop.gates` found."""
    body = {
        "iterations": [{key: _json(value) for key, value in asdict(row).items()} for row in rows],
        "best_iteration": best_iteration,
        "kl_estimator": KL_ESTIMATOR,
        "gates": [_json(found) for found in gates],
    }
    write_atomic(folder / "summary.json", (json.dumps(body, indent=1, ensure_ascii=False) + "\n").encode())


def _json(value: object) -> object:
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
