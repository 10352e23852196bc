"""Score every candidate with a judge."""

from __future__ import annotations

import math

from rlhf.data.shards import read_rows, shard_name, shard_paths, write_shard
from rlhf.job import Job, Kind, Outcome, Worker
from rlhf.records import SCORES_SCHEMA

KIND = Kind.inference


def num_shards(job: Job) -> int:
    """As many as there are shards of candidates."""
    return len(shard_paths(job.input_path("candidates")))


def run(job: Job, worker: Worker) -> Outcome:
    """Write a scores shard per candidates shard; inputs are `candidates` and, unless `rule` is set, `judge`.

    Config beside the section's own: `rule` (module:function or null), `dtype` and `trust_remote_code` of the judge.
    """
    from rlhf.scoring.load import load_judge

    judge = None
    for index in worker.shards():
        judge = judge or load_judge(job.config, job.inputs)
        rows = list(read_rows(job.input_path("candidates") / shard_name(index)))
        items = [(row["messages"], candidate["text"]) for row in rows for candidate in row["candidates"]]
        scored = judge.score(items)
        scores = iter(scored.scores)
        out = [{"id": row["id"], "scores": [next(scores) for _ in row["candidates"]]} for row in rows]
        counts = {
            "prompts": len(rows),
            "responses": len(items),
            "cut_on_the_left": scored.num_truncated,
            "non_finite": sum(not math.isfinite(score) for score in scored.scores),
        }
        write_shard(job.out_path / shard_name(index), SCORES_SCHEMA, out, counts)
    return Outcome()


if __name__ == "__main__":
    from rlhf.alone import main

    main("score")
