"""Per-iteration figures: plain arithmetic over finished artifacts."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rlhf.data.json_text import json_text
from rlhf.data.pairing import LARGEST_SCORE
from rlhf.data.records import dropped
from rlhf.data.shards import read_all_rows, write_atomic
from rlhf.run.artifact import Artifact

KL_ESTIMATOR = "k1: mean over samples of log π_t − log π0, nats per response"
_NOT_KL = (
    "the mean over samples of log π_t − log π0, nats per response; it is not the KL, because the samples are "
    "not drawn from π_t itself but at another temperature than 1, or with top_p or top_k"
)


@dataclass(frozen=True)
class Evaluation:
    """The artifacts that say how good one policy is, and how its training data came about.

    Where there is nothing, an artifact is None.
    """

    iteration: int
    policy: Artifact
    candidates: Artifact
    scores: Artifact
    gold: Artifact | None = None
    reference: Artifact | None = None
    """Log-probs of the samples under π0."""
    generate: Artifact | None = None
    """Of the iteration that trained the policy, as is `pair`."""
    pair: Artifact | None = None
    others: dict[str, Artifact] = field(default_factory=dict)
    """Scores by judges that only evaluate, and by each judge of a sum, by the judge's name."""
    rows: list[tuple[Evaluation, Row]] = field(init=False, default_factory=list, repr=False, compare=False)
    """π0's evaluation and the figures beside it, once they are known: artifacts do not change."""


def measured(evaluation: Evaluation) -> list[Artifact | None]:
    """The artifacts that `row_of` reads: to be verified before."""
    return [
        evaluation.candidates,
        evaluation.scores,
        evaluation.gold,
        evaluation.reference,
        *evaluation.others.values(),
    ]


@dataclass(frozen=True)
class Verdict:
    """What one of several judges says of a policy; the win rate against π0 is in 0–1, None for π0 itself."""

    mean_score: float
    win_rate: float | None = None
    win_rate_low: float | None = None
    win_rate_high: float | None = None


@dataclass(frozen=True)
class Row:
    """One evaluated policy.

    Rates and `disagreement` (`rlhf.stages.mix`) are in 0–1, `kl` and `log_ratio` are in nats per response;
    None where unknown. `log_ratio` stands in the place of `kl` where responses are not drawn from the policy
    itself.
    """

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
    left_out: dict[str, int] = field(default_factory=dict)
    """How many responses a column leaves out because their figure is not finite: by `score`, `gold`, `KL` or
    the judge's name; without columns that leave out none."""
    log_ratio: float | None = None

    @property
    def distance(self) -> float | None:
        """How far from π0 in nats per response: the KL, or what stands in its place."""
        return self.kl if self.log_ratio is None else self.log_ratio


def scores_by_prompt(scores: Artifact) -> dict[str, list[float]]:
    """Scores of each prompt's responses, by prompt id."""
    scores_of: dict[str, list[float]] = {}
    for row in read_all_rows(scores.path):
        scores_of[row["id"]] = row["scores"]
    return scores_of


def win_rate(policy: dict[str, list[float]], initial: dict[str, list[float]]) -> tuple[float, float, float]:
    """How often the policy's response scores higher than π0's on the same prompt; a tie counts half.

    Every response of one is compared with every response of the other; the 95 % interval takes prompts, not
    comparisons, as independent. Returns (rate, low, high) in 0–1.

    Example:
        policy {"p1": [1.5, -0.3]} against initial {"p1": [0.2]} wins one of two comparisons: 0.5.
    """
    per_prompt = []
    for prompt_id, scores in policy.items():
        # A score that is not finite says nothing of the response, so it is no comparison lost.
        policy_scores = finite(scores)
        initial_scores = finite(initial.get(prompt_id, []))
        if policy_scores and initial_scores:
            comparisons = itertools.product(policy_scores, initial_scores)
            wins = [_win(policy_score, initial_score) for policy_score, initial_score in comparisons]
            per_prompt.append(fmean(wins))
    return mean_and_interval(per_prompt)


def _win(score: float, opponent: float) -> float:
    if score == opponent:
        return 0.5
    return float(score > opponent)


def finite(scores: Iterable[float]) -> list[float]:
    """The scores that a judge could give; NaN and ±inf mark those that it could not.

    As for pairs, a score beyond `LARGEST_SCORE` is none: sums of such scores overflow.
    """
    # NaN compares false with everything.
    return [score for score in scores if abs(score) <= LARGEST_SCORE]


def mean_and_interval(per_prompt: Sequence[float]) -> tuple[float, float, float]:
    """Mean of figures in 0–1 and its 95 % interval (mean, low, high); NaN of nothing."""
    if not per_prompt:
        return math.nan, math.nan, math.nan
    mean = fmean(per_prompt)
    # One prompt has no spread to estimate from, so that its interval is all of 0–1.
    half_width = 1.0
    if len(per_prompt) > 1:
        half_width = 1.96 * stdev(per_prompt) / math.sqrt(len(per_prompt))
    # A normal interval may reach beyond what a rate can be, and is cut there.
    low = max(0.0, mean - half_width)
    high = min(1.0, mean + half_width)
    return mean, low, high


def drawn_from_the_policy(candidates: Artifact) -> bool:
    """Whether responses have the probabilities that are recorded: temperature 1, and no token is left out."""
    told = candidates.record.get("config", {})
    temperatures = set(told.get("temperatures", [1.0]))
    return temperatures == {1.0} and told.get("top_p", 1.0) == 1.0 and not told.get("top_k", 0)


def distance_text(rows: Sequence[Row]) -> str:
    """What the table's distance to π0 is."""
    if rows[0].log_ratio is None:
        return f"KL is {KL_ESTIMATOR}"
    return f"log π/π0 is {_NOT_KL}"


def log_ratio_to_initial(candidates: Artifact, reference: Artifact) -> float:
    """The mean of log π_t(y) − log π0(y) over sampled responses y, in nats.

    Of responses drawn from π_t itself this estimates KL(π_t‖π0). A response whose ratio is not finite is left
    out: one of them would make a NaN of all the others.
    """
    return _mean(finite(_log_ratios(candidates, reference)))


def _log_ratios(candidates: Artifact, reference: Artifact) -> list[float]:
    """log π_t(y) − log π0(y) of every sampled response y, in nats."""
    log_ratios = []
    # The two artifacts have the same prompts in the same order, so that neither need be held in memory.
    candidate_rows = read_all_rows(candidates.path, ["id", "candidates"])
    reference_rows = read_all_rows(reference.path)
    for sampled, under_initial in zip(candidate_rows, reference_rows, strict=True):
        assert sampled["id"] == under_initial["id"], "reference log-probs and candidates are out of step"
        responses = zip(sampled["candidates"], under_initial["logprobs"], strict=True)
        for candidate, initial_logprob in responses:
            log_ratios.append(candidate["logprob"] - initial_logprob)
    return log_ratios


def _mean(values: Sequence[float]) -> float:
    """The mean; NaN of nothing."""
    if not values:
        return math.nan
    return fmean(values)


def verdict(scores: Artifact, initial: Artifact | None) -> Verdict:
    """Mean score and, unless it is π0's own, the win rate against π0.

    A pairwise judge's score is the probability of beating π0's response already, so its mean is the win rate.
    """
    prompts = scores_by_prompt(scores)
    mean_score = _mean(finite(_flat(prompts)))
    if initial is None:
        return Verdict(mean_score)
    # Only a pairwise judge counts its calls.
    if "judge_calls" in scores.counts:
        per_prompt = []
        for prompt_scores in map(finite, prompts.values()):
            if prompt_scores:
                per_prompt.append(fmean(prompt_scores))
        return Verdict(mean_score, *mean_and_interval(per_prompt))
    return Verdict(mean_score, *win_rate(prompts, scores_by_prompt(initial)))


def _flat(prompts: dict[str, list[float]]) -> list[float]:
    """The scores of all responses, whatever their prompt."""
    scores: list[float] = []
    for prompt_scores in prompts.values():
        scores += prompt_scores
    return scores


def row_of(evaluation: Evaluation, initial: Evaluation) -> Row:
    """The figures of one policy beside π0's."""
    # π0 against itself would be a tie by definition, hence no rate; its KL is exactly 0 without an estimate.
    is_initial = evaluation is initial
    own = verdict(evaluation.scores, None if is_initial else initial.scores)
    judges = {}
    for name, scores in evaluation.others.items():
        judges[name] = verdict(scores, None if is_initial else initial.others[name])
    distance = 0.0 if is_initial else _log_ratio(evaluation)
    is_kl = drawn_from_the_policy(evaluation.candidates)
    counts = evaluation.candidates.counts
    # No response at all gives rates of 0 instead of a division by zero.
    num_responses = max(1, counts["responses"])
    return Row(
        iteration=evaluation.iteration,
        mean_score=own.mean_score,
        gold_accuracy=_gold_accuracy(evaluation),
        win_rate=own.win_rate,
        win_rate_low=own.win_rate_low,
        win_rate_high=own.win_rate_high,
        mean_response_tokens=counts["response_tokens"] / num_responses,
        kl=distance if is_kl else None,
        truncated=counts["truncated"] / num_responses,
        pairs=evaluation.pair.counts["pairs"] if evaluation.pair else None,
        dropped=_dropped(evaluation),
        judges=judges,
        disagreement=evaluation.scores.metrics.get("disagreement"),
        left_out=_left_out(evaluation),
        log_ratio=None if is_kl else distance,
    )


def _left_out(evaluation: Evaluation) -> dict[str, int]:
    """Responses without a finite figure, by column; columns that have one of every response are not named."""
    columns = {"score": _flat(scores_by_prompt(evaluation.scores))}
    if evaluation.gold is not None:
        columns["gold"] = _flat(scores_by_prompt(evaluation.gold))
    for name, scores in evaluation.others.items():
        columns[name] = _flat(scores_by_prompt(scores))
    if evaluation.reference is not None:
        columns["KL"] = _log_ratios(evaluation.candidates, evaluation.reference)
    left_out = {}
    for column, values in columns.items():
        num_left_out = len(values) - len(finite(values))
        if num_left_out:
            left_out[column] = num_left_out
    return left_out


def _gold_accuracy(evaluation: Evaluation) -> float | None:
    if evaluation.gold is None:
        return None
    gold_scores = finite(_flat(scores_by_prompt(evaluation.gold)))
    return fmean(gold_scores) if gold_scores else None


def _log_ratio(evaluation: Evaluation) -> float | None:
    if evaluation.reference is None:
        return None
    return log_ratio_to_initial(evaluation.candidates, evaluation.reference)


def _dropped(evaluation: Evaluation) -> dict[str, int]:
    """What was dropped on the way to the pairs that this policy was trained on, by reason."""
    counts: dict[str, int] = {}
    stages = [evaluation.generate, evaluation.pair]
    if evaluation.generate is not None or evaluation.pair is not None:
        # What π0 was fine-tuned on, if it was, is another matter.
        stages.append(evaluation.policy)
    # No reason occurs in two of them, so that nothing is overwritten.
    for artifact in stages:
        if artifact is not None:
            counts.update(artifact.counts)
    return dropped(counts)


def rows_of(evaluations: Sequence[Evaluation]) -> list[Row]:
    """The figures of every evaluated policy, π0 first; each is worked out once in a process."""
    initial = evaluations[0]
    rows = []
    for evaluation in evaluations:
        known = [row for beside, row in evaluation.rows if beside is initial]
        if not known:
            known = [row_of(evaluation, initial)]
            evaluation.rows.append((initial, known[0]))
        rows.append(known[0])
    return rows


def best(rows: Sequence[Row]) -> int:
    """Index of the policy with the highest mean held-out score of the judge; the earlier one of equals.

    A policy without any finite score is the last choice.
    """
    scores = []
    for row in rows:
        # NaN is neither above nor below a number, so that the first one would win.
        scores.append(row.mean_score if math.isfinite(row.mean_score) else -math.inf)
    # `index` finds the first of equal scores.
    return scores.index(max(scores))


def write_summary(
    folder: Path,
    rows: Sequence[Row],
    best_iteration: int | None,
    gates: Sequence[dict[str, Any]] = (),
) -> None:
    """`summary.json`: the figures for programs, and what `rlhf.loop.gates` found.

    Example:
        One of `gates`, shortened:
        {"iteration": 2, "gate": "kl", "value": 61.5, "threshold": 50.0, "limit": "max_kl", "action": "warn"}
    """
    is_kl = not rows or rows[0].log_ratio is None
    summary = {
        "iterations": [_figures(row) for row in rows],
        "best_iteration": best_iteration,
        "kl_estimator": KL_ESTIMATOR if is_kl else None,
        "gates": list(gates),
    }
    if not is_kl:
        summary["log_ratio"] = _NOT_KL
    text = json_text(summary, indent=1, ascii_only=False) + "\n"
    write_atomic(folder / "summary.json", text.encode())


def add_seconds(folder: Path, planned: dict[str, float], spent: dict[str, float]) -> None:
    """Add to `summary.json` what was planned and what was spent, in seconds by kind of stage.

    Example:
        {"planned_seconds": {"generate": 41.0, "dpo": 12.3, …}, "spent_seconds": {"generate": 38.2, …}, …}
    """
    path = folder / "summary.json"
    summary = json.loads(path.read_bytes()) | {"planned_seconds": planned, "spent_seconds": spent}
    write_atomic(path, (json_text(summary, indent=1, ascii_only=False) + "\n").encode())


def _figures(row: Row) -> dict[str, Any]:
    """A row for `summary.json`, where `log_ratio` stands only if it takes the place of `kl`, and `left_out`
    only if something was.
    """
    figures = asdict(row)
    if row.log_ratio is None:
        del figures["log_ratio"]
    if not row.left_out:
        del figures["left_out"]
    return figures
