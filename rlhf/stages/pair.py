"""Stage `pair`: preference pairs of scored candidates.

Inputs: `candidates` (shards and `tokens.json` of `generate`) and `scores` (shards of `score`).
Output: one shard of pairs per shard of candidates, with the same index.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf.config.stage_configs import PairSettings
from rlhf.data.pairing import Drop, Terminators, fault, make_pairs
from rlhf.data.records import PAIRS_SCHEMA, SIDES, ScoredPrompt, dropped, scored_prompt, to_row, what_became
from rlhf.data.shards import (
    num_rows,
    read_all_rows,
    read_rows,
    shard_name,
    shard_paths,
    sum_counts,
    write_shard,
)
from rlhf.errors import DataError
from rlhf.run.job import Job, Outcome, Worker
from rlhf.run.stage_table import num_shards

_VARIED = "raise generate.temperatures or generate.n, or look at the judge"
_WAYS_OUT = {
    Drop.too_few_candidates: "raise generate.n to 2 or more",
    Drop.non_finite: "look at the judge, whose scores are no numbers",
    Drop.empty: "look at the policy, which says nothing",
    Drop.truncated: "raise generate.max_new_tokens or set pair.truncated=allow",
    Drop.identical_text: _VARIED,
    Drop.all_tied: _VARIED,
    Drop.below_margin: "lower pair.min_margin",
}
"""What to do when prompts are dropped, by reason."""


def run(job: Job[PairSettings], worker: Worker) -> Outcome:
    """Make the pairs of every shard; memory holds one shard at a time.

    Counts: `prompts` = `prompts_with_pairs` + the sum of `dropped/<reason>`; `pairs`;
    `candidates/<fault>` are candidates with that fault, whether their prompt was dropped or not.

    Raises:
        DataError: candidates and scores do not match, or no prompt at all gives a pair.
    """
    candidates = job.input_path("candidates")
    scores = job.input_path("scores")
    terminators = read_terminators(candidates)
    total = num_shards(job)
    num_score_shards = len(shard_paths(scores))
    if num_score_shards != total:
        raise DataError(
            f"{candidates} has {total} shards, {scores} has {num_score_shards}: they do not belong together. "
            "Score these candidates anew, or name the candidates that were scored."
        )
    for index in worker.shards():
        _pair_shard(job, terminators, index)
        worker.progress(index + 1, total, "shards")
    # From the shards, not from what this attempt counted: earlier attempts have made some of them.
    counts = sum_counts(job.out_path)
    check_counts(counts)
    return Outcome(counts=counts, metrics=pair_metrics(job.out_path))


def _pair_shard(job: Job[PairSettings], terminators: Terminators | None, index: int) -> None:
    rows: list[dict[str, Any]] = []
    counts = Counter[str]()
    name = shard_name(index)
    for prompt in scored_prompts(job.input_path("candidates") / name, job.input_path("scores") / name):
        pairs = make_pairs(prompt, job.config, terminators, job.seed)
        if isinstance(pairs, Drop):
            count(counts, prompt, job.config, num_pairs=0)
            counts[f"dropped/{pairs.value}"] += 1
            continue
        count(counts, prompt, job.config, num_pairs=len(pairs))
        rows.extend(map(to_row, pairs))
    write_shard(job.out_path / name, PAIRS_SCHEMA, rows, counts)


def read_terminators(candidates: Path) -> Terminators | None:
    """What `generate` wrote down about the ends of turns; None of responses that are text alone.

    Example:
        {"end_of_turn_id": 128009, "stop_token_ids": [128001, 128009]} stands in `tokens.json`
    """
    path = candidates / "tokens.json"
    if not path.is_file():
        message = f"{path} is missing: `generate` writes it beside its shards. Generate the candidates anew."
        raise DataError(message)
    tokens = json.loads(path.read_text(encoding="utf-8"))
    end_of_turn_id = tokens["end_of_turn_id"]
    # Candidates that were read from a file of texts have no tokens, so nothing ends them.
    if end_of_turn_id is None:
        return None
    stop_token_ids = frozenset(map(int, tokens["stop_token_ids"]))
    return Terminators(int(end_of_turn_id), stop_token_ids)


def scored_prompts(candidates: Path, scores: Path) -> Iterator[ScoredPrompt]:
    """Join a shard of candidates with the shard of their scores, row by row.

    Raises:
        DataError: one is missing, they differ in length, or a row's id or number of scores differs.

    Example:
        {"id": "5f1c…", "messages": […], "prompt_token_ids": […], "candidates": [{…}, {…}]} and
        {"id": "5f1c…", "scores": [1.5, -0.3]} are rows with the same number
    """
    for path in (candidates, scores):
        if not path.is_file():
            raise DataError(f"{path} is missing. Make its stage anew, or restore the file.")
    num_candidate_rows = num_rows(candidates)
    num_score_rows = num_rows(scores)
    if num_candidate_rows != num_score_rows:
        raise _mismatch(candidates, scores, f"{num_score_rows} rows for {num_candidate_rows}")
    # Checked although the pipeline makes them in step: both may be files that a user has put together.
    rows = zip(read_rows(candidates), read_rows(scores), strict=True)
    for number, (candidates_row, scores_row) in enumerate(rows, start=1):
        name = candidates_row["id"]
        if name != scores_row["id"]:
            difference = f"row {number} is prompt {scores_row['id']} there and {name} here"
            raise _mismatch(candidates, scores, difference)
        num_candidates = len(candidates_row["candidates"])
        num_scores = len(scores_row["scores"])
        if num_candidates != num_scores:
            raise _mismatch(
                candidates,
                scores,
                f"row {number}, prompt {name}, has {num_scores} scores for {num_candidates} candidates",
            )
        yield scored_prompt(candidates_row, scores_row)


def _mismatch(candidates: Path, scores: Path, difference: str) -> DataError:
    return DataError(f"{scores} does not belong to {candidates}: {difference}. Score these candidates anew.")


def count(counts: Counter[str], prompt: ScoredPrompt, config: PairSettings, num_pairs: int) -> None:
    """Count one prompt, its pairs, and its candidates with their faults.

    Example:
        {"prompts": 1, "prompts_with_pairs": 1, "pairs": 4, "candidates": 8, "candidates/truncated": 1}
    """
    # Those that pairing looks at: with fewer than were sampled, the others have no say.
    candidates = prompt.candidates[: config.num_candidates]
    scores = prompt.scores[: config.num_candidates]
    counts["prompts"] += 1
    counts["prompts_with_pairs"] += 1 if num_pairs else 0
    counts["pairs"] += num_pairs
    counts["candidates"] += len(candidates)
    for candidate, score in zip(candidates, scores, strict=True):
        reason = fault(candidate, score)
        if reason:
            counts[f"candidates/{reason.value}"] += 1


def check_counts(counts: dict[str, int]) -> None:
    """Every prompt is accounted for, and at least one gives a pair.

    Raises:
        DataError: no prompt gives a pair.
    """
    by_reason = dropped(counts)
    # A prompt that got lost on the way would make the counts that people read a lie.
    num_dropped = sum(by_reason.values())
    num_with_pairs = counts.get("prompts_with_pairs", 0)
    assert counts.get("prompts", 0) == num_with_pairs + num_dropped, counts
    # Training would start on nothing. One pair is enough: few pairs may be what somebody wants.
    if counts.get("pairs", 0):
        return
    ways_out = []
    for reason in sorted(by_reason):
        ways_out.append(f"{reason}: {_WAYS_OUT[Drop(reason)]}.")
    reasons = what_became(counts, "prompts")
    raise DataError(f"No prompt gives a preference pair ({reasons}). {' '.join(ways_out)}")


def pair_metrics(folder: Path) -> dict[str, float]:
    """Means over all pairs: margin of the penalised scores, raw scores, lengths in characters.

    Example:
        {"mean_margin": 1.8, "mean_chosen_score": 1.5, "mean_chosen_chars": 712.0,
         "mean_rejected_score": -0.3, "mean_rejected_chars": 640.5}
    """
    # These columns alone: token ids and texts are most of a shard.
    columns = []
    for side in SIDES:
        columns += [f"{side}_score", f"{side}_penalised", f"{side}_chars"]
    sums = Counter[str]()
    num_pairs = 0
    for row in read_all_rows(folder, columns):
        num_pairs += 1
        # A Counter adds any numbers up, these floats too.
        sums.update(row)
    mean = {name: sums[name] / num_pairs for name in columns}
    metrics = {"mean_margin": mean["chosen_penalised"] - mean["rejected_penalised"]}
    for side in SIDES:
        for name in ("score", "chars"):
            metrics[f"mean_{side}_{name}"] = mean[f"{side}_{name}"]
    return metrics
