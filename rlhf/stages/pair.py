"""Stage `pair`: preference pairs of scored candidates.

Inputs: `candidates` (shards and `tokens.json` of `generate`) and `scores` (shards of `score`). Output: one shard of
pairs per shard of candidates, with the same index.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf.config.stage_configs import PairSettings
from rlhf.data.pairing import Drop, Terminators, fault, make_pairs
from rlhf.data.records import PAIRS_SCHEMA, ScoredPrompt, dropped, scored_prompt, to_row, what_became
from rlhf.data.shards import num_rows, read_all_rows, read_rows, shard_name, shard_paths, sum_counts, write_shard
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


def run(job: Job[PairSettings], worker: Worker) -> Outcome:
    """Make the pairs of every shard; memory holds one shard at a time.

    Counts: `prompts` = `prompts_with_pairs` + the sum of `dropped/<reason>`; `pairs`; `candidates/<fault>` are
    candidates with that fault, whether their prompt was dropped or not.

    Raises:
        DataError: candidates and scores do not match, or no prompt at all gives a pair.
    """
    config = job.config
    candidates, scores = job.input_path("candidates"), job.input_path("scores")
    terminators = read_terminators(candidates)
    total = num_shards(job)
    if len(shard_paths(scores)) != total:
        raise DataError(
            f"{candidates} has {total} shards, {scores} has {len(shard_paths(scores))}: they do not belong together. "
            "Score these candidates anew, or name the candidates that were scored."
        )
    for index in worker.shards():
        rows: list[dict[str, Any]] = []
        counts = Counter[str]()
        for prompt in scored_prompts(candidates / shard_name(index), scores / shard_name(index)):
            pairs = make_pairs(prompt, config, terminators, job.seed)
            count(counts, prompt, config, 0 if isinstance(pairs, Drop) else len(pairs))
            if isinstance(pairs, Drop):
                counts[f"dropped/{pairs.value}"] += 1
            else:
                rows.extend(to_row(pair) for pair in pairs)
        write_shard(job.out_path / shard_name(index), PAIRS_SCHEMA, rows, counts)
        worker.progress(index + 1, total, "shards")
    counts_all = sum_counts(job.out_path)
    check_counts(counts_all)
    return Outcome(counts=counts_all, metrics=pair_metrics(job.out_path))


def read_terminators(candidates: Path) -> Terminators | None:
    """What `generate` wrote down about the ends of turns; None of responses that are text alone."""
    path = candidates / "tokens.json"
    if not path.is_file():
        raise DataError(f"{path} is missing: `generate` writes it beside its shards. Generate the candidates anew.")
    tokens = json.loads(path.read_text(encoding="utf-8"))
    if tokens["end_of_turn_id"] is None:
        return None
    return Terminators(int(tokens["end_of_turn_id"]), frozenset(int(i) for i in tokens["stop_token_ids"]))


def scored_prompts(candidates: Path, scores: Path) -> Iterator[ScoredPrompt]:
    """Join a shard of candidates with the shard of their scores, row by row.

    Raises:
        DataError: one is missing, they differ in length, or a row's id or number of scores differs.
    """
    for path in (candidates, scores):
        if not path.is_file():
            raise DataError(f"{path} is missing. Make its stage anew, or restore the file.")
    mismatch = f"{scores} does not belong to {candidates}: {{}}. Score these candidates anew."
    if num_rows(candidates) != num_rows(scores):
        raise DataError(mismatch.format(f"{num_rows(scores)} rows for {num_rows(candidates)}"))
    for number, (c, s) in enumerate(zip(read_rows(candidates), read_rows(scores), strict=True), start=1):
        if c["id"] != s["id"]:
            raise DataError(mismatch.format(f"row {number} is prompt {s['id']} there and {c['id']} here"))
        if len(c["candidates"]) != len(s["scores"]):
            n, m = len(c["candidates"]), len(s["scores"])
            raise DataError(mismatch.format(f"row {number}, prompt {c['id']}, has {m} scores for {n} candidates"))
        yield scored_prompt(c, s)


def count(counts: Counter[str], prompt: ScoredPrompt, config: PairSettings, num_pairs: int) -> None:
    """Count one prompt, its pairs, and its candidates with their faults."""
    considered = list(zip(prompt.candidates, prompt.scores, strict=True))[: config.num_candidates]
    counts["prompts"] += 1
    counts["prompts_with_pairs"] += num_pairs > 0
    counts["pairs"] += num_pairs
    counts["candidates"] += len(considered)
    for candidate, score in considered:
        if reason := fault(candidate, score):
            counts[f"candidates/{reason.value}"] += 1


def check_counts(counts: dict[str, int]) -> None:
    """Every prompt is accounted for, and at least one gives a pair."""
    lost = dropped(counts)
    assert counts.get("prompts", 0) == counts.get("prompts_with_pairs", 0) + sum(lost.values()), counts
    if counts.get("pairs", 0):
        return
    ways_out = " ".join(f"{reason}: {_WAYS_OUT[Drop(reason)]}." for reason in sorted(lost))
    raise DataError(f"No prompt gives a preference pair ({what_became(counts, 'prompts')}). {ways_out}")


def pair_metrics(folder: Path) -> dict[str, float]:
    """Means over all pairs: margin of the penalised scores, raw scores, lengths in characters."""
    columns = [f"{side}_{name}" for side in ("chosen", "rejected") for name in ("score", "penalised", "chars")]
    sums, num_pairs = Counter[str](), 0
    for row in read_all_rows(folder, columns):
        num_pairs += 1
        sums.update(row)
    mean = {name: sums[name] / num_pairs for name in columns}
    return {
        "mean_margin": mean["chosen_penalised"] - mean["rejected_penalised"],
        **{
            f"mean_{side}_{name}": mean[f"{side}_{name}"]
            for side in ("chosen", "rejected")
            for name in ("score", "chars")
        },
    }
