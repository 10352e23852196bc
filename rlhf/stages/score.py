"""Score every candidate with a judge."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rlhf.config.stage_configs import ComparisonStage, ScoreStage
from rlhf.data.records import SCORES_SCHEMA
from rlhf.data.shards import read_rows, shard_name, write_shard
from rlhf.run.job import Job, Outcome, Worker

_QUESTION, _GOOD = "What is the capital of France?", "The capital of France is Paris."
_ABSURD = "Purple bananas the the seven of loudly, therefore no."


def run(job: Job[ScoreStage], worker: Worker) -> Outcome:
    """Write a scores shard per candidates shard; inputs are `candidates` and, unless `rule` is set, `judge`.

    Config beside the section's own: `rule` (module:function or null), `dtype` and `trust_remote_code` of the judge; for
    a pairwise judge `kind` and `opponents`. With it the input `against` may be the candidates of another policy for the
    same prompts: scores are then comparable between policies. `known_candidates.N` and `known_scores.N`, for any N, are
    what this judge has scored on the same prompts before (with the same `against`): equal responses keep their score.
    """
    from rlhf.scoring.choose_judge import load_judge
    from rlhf.scoring.judge import Scored
    from rlhf.scoring.tournament import Group, score_groups

    judge, warning = None, dict[str, str]()
    for index in worker.shards():
        rows = list(read_rows(job.input_path("candidates") / shard_name(index)))
        against = _texts(job, "against", index) if "against" in job.inputs else {}
        known = _known(job, index)
        responses = [[(row["id"], candidate["text"]) for candidate in row["candidates"]] for row in rows]
        groups = [
            Group(row["messages"], new, against.get(row["id"]))
            for row, keys in zip(rows, responses, strict=True)
            if (new := [text for prompt, text in keys if (prompt, text) not in known])
        ]
        assert not against or all(group.against for group in groups), "against and candidates are out of step"
        scored = Scored([])
        if groups:
            if judge is None:
                judge = load_judge(job.config, job.inputs)
                warning = _golden_pair(job, judge) if worker.rank == 0 else {}
            scored = score_groups(judge, groups)
        fresh = iter(scored.scores)
        scores = [[known[key] if key in known else next(fresh) for key in keys] for keys in responses]
        counts = {
            "prompts": len(rows),
            "responses": sum(map(len, scores)),
            "scored_before": sum(map(len, scores)) - len(scored.scores),
            "cut_on_the_left": scored.num_truncated,
            "non_finite": sum(not math.isfinite(score) for values in scores for score in values),
        }
        if isinstance(job.config, ComparisonStage):
            counts["judge_calls"] = scored.num_calls or 0
        out = [{"id": row["id"], "scores": values} for row, values in zip(rows, scores, strict=True)]
        write_shard(job.out_path / shard_name(index), SCORES_SCHEMA, out, counts)
    note = getattr(judge, "note", "")
    return Outcome(metrics=warning | ({"engine": note} if note else {}))


def _golden_pair(job: Job[ScoreStage], judge: Any) -> dict[str, str]:
    """A metric `warning` when a judge from outside prefers an absurd answer; asked once, when π0 is scored."""
    from rlhf.scoring.tournament import Group, score_groups

    run = job.out_path.parents[len(Path(job.name).parts) - 1]
    if not job.name.startswith("iteration_000/") or Path(job.inputs.get("judge", run)).is_relative_to(run):
        return {}
    good, absurd = score_groups(judge, [Group([{"role": "user", "content": _QUESTION}], [_GOOD, _ABSURD])]).scores
    said = f"judge {job.inputs['judge']} scores {_ABSURD!r} {absurd:.3g} and {_GOOD!r} {good:.3g} for {_QUESTION!r}"
    return {} if good > absurd else {"warning": f"{said}. Is its template its own, and higher better?"}


def _texts(job: Job[ScoreStage], name: str, index: int) -> dict[str, list[str]]:
    """What another policy answered in the same shard, by prompt id."""
    rows = read_rows(job.input_path(name) / shard_name(index), ["id", "candidates"])
    return {row["id"]: [candidate["text"] for candidate in row["candidates"]] for row in rows}


def _known(job: Job[ScoreStage], index: int) -> dict[tuple[str, str], float]:
    """Finite scores that the judge has given before in the same shard, by prompt id and response."""
    known: dict[tuple[str, str], float] = {}
    for name in sorted(job.inputs):
        if name.startswith("known_scores."):
            texts = _texts(job, name.replace("scores", "candidates"), index)
            for row in read_rows(job.input_path(name) / shard_name(index)):
                both = zip(texts[row["id"]], row["scores"], strict=True)
                known |= {(row["id"], text): score for text, score in both if math.isfinite(score)}
    return known
