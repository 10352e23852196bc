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

    Config beside the section's own: `rule` (module:function or null), `dtype` and `trust_remote_code` of the judge;
    for a pairwise judge `kind` and `opponents`. With it the input `against` may be the candidates of another policy for
    the same prompts: scores are then comparable between policies.
    """
    from rlhf.scoring.groups import Group, score_groups
    from rlhf.scoring.load import load_judge

    judge = None
    for index in worker.shards():
        judge = judge or load_judge(job.config, job.inputs)
        rows = list(read_rows(job.input_path("candidates") / shard_name(index)))
        against = _texts(job, index) if "against" in job.inputs else {}
        groups = [
            Group(row["messages"], [c["text"] for c in row["candidates"]], against.get(row["id"])) for row in rows
        ]
        assert not against or all(group.against for group in groups), "against and candidates are out of step"
        scored = score_groups(judge, groups)
        scores = iter(scored.scores)
        out = [{"id": row["id"], "scores": [next(scores) for _ in row["candidates"]]} for row in rows]
        counts = {
            "prompts": len(rows),
            "responses": len(scored.scores),
            "cut_on_the_left": scored.num_truncated,
            "non_finite": sum(not math.isfinite(score) for score in scored.scores),
        }
        if scored.num_calls is not None:
            counts["judge_calls"] = scored.num_calls
        write_shard(job.out_path / shard_name(index), SCORES_SCHEMA, out, counts)
    note = getattr(judge, "note", "")
    return Outcome(metrics={"engine": note} if note else {})


def _texts(job: Job, index: int) -> dict[str, list[str]]:
    """What the other policy answered in the same shard, by prompt id."""
    rows = read_rows(job.input_path("against") / shard_name(index), ["id", "candidates"])
    return {row["id"]: [candidate["text"] for candidate in row["candidates"]] for row in rows}


if __name__ == "__main__":
    from rlhf.alone import main

    main("score")
