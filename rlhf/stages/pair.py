"""Stage `pair`: preference pairs of scored candidates.

Inputs: `candidates` (shards and `tokens.json` of `generate`) and `scores` (shards of `score`).
Output: one shard of pairs per shard of candidates, with the same index.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rlhf.config.stage_configs import PairSettings
from rlhf.data.pair_columns import pair_table
from rlhf.data.pairing import Drop, Terminators
from rlhf.data.records import SIDES, dropped, what_became
from rlhf.data.schemas import PAIRS_SCHEMA
from rlhf.data.scored_shards import read_terminators, scored_shard
from rlhf.data.shards import read_table, shard_name, shard_paths, sum_counts, write_table
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
    name = shard_name(index)
    candidates_path = job.input_path("candidates") / name
    scores_path = job.input_path("scores") / name
    candidates, scores = scored_shard(candidates_path, scores_path)
    pairs, counts = pair_table(candidates, scores, job.config, terminators, job.seed)
    write_table(job.out_path / name, pairs, counts)


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
    others = [name for name in PAIRS_SCHEMA.names if name not in columns]
    sums = dict.fromkeys(columns, 0.0)
    num_pairs = 0
    for path in shard_paths(folder):
        table = read_table(path, leave_out=others)
        num_pairs += len(table)
        for name in columns:
            # One after the other: numpy's own sum adds in another order, and rounds differently.
            numbers = [[sums[name]], table[name].to_numpy()]
            sums[name] = float(np.add.accumulate(np.concatenate(numbers))[-1])
    mean = {name: sums[name] / num_pairs for name in columns}
    metrics = {"mean_margin": mean["chosen_penalised"] - mean["rejected_penalised"]}
    for side in SIDES:
        for name in ("score", "chars"):
            metrics[f"mean_{side}_{name}"] = mean[f"{side}_{name}"]
    return metrics
