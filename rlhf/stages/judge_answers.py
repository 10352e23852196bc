"""What a generative judge has answered, beside the scores that were read out of it."""

from __future__ import annotations

from typing import Any

from rlhf.data.schemas import ANSWERS_SCHEMA
from rlhf.data.shards import read_all_rows, shard_name, shard_paths, sum_counts, write_shard
from rlhf.errors import DataError
from rlhf.run.job import ANSWERS, Job
from rlhf.run.stage_table import num_shards
from rlhf.scoring.generative_judge import cost

_SHOWN_CHARS = 200
"""How much of an answer that could not be read is shown."""


def write_answers(job: Job[Any], judge: Any, index: int) -> dict[str, int]:
    """Write what the judge has answered in a shard; None where it was asked nothing. Gives its counts."""
    rows = judge.rows if judge is not None else []
    folder = job.shards_path / ANSWERS
    folder.mkdir(exist_ok=True)
    # Before the scores, which say that the shard is made.
    write_shard(folder / shard_name(index), ANSWERS_SCHEMA, rows)
    return dict(judge.counts) if judge is not None else {}


def conclude_answers(job: Job[Any]) -> tuple[str, dict[str, float]]:
    """What to say of answers that could not be read, mostly nothing, and the metric `cost` where prices are
    known.

    Raises:
        DataError: no answer at all could be read.
    """
    counts = sum_counts(job.out_path)
    num_answers = counts.get("answers", 0)
    by_reason = {}
    for key, count in counts.items():
        if key.startswith("unread/"):
            by_reason[key.removeprefix("unread/")] = count
    num_unread = sum(by_reason.values())
    is_whole = len(shard_paths(job.out_path)) == num_shards(job)
    text = ""
    if num_unread:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(by_reason.items()))
        text = f"{num_unread} of {num_answers} answers of the judge give no number ({reasons}), "
        text += f"such as {_unread_answer(job)!r}."
        if is_whole and num_unread == num_answers:
            raise DataError(
                f"{text} Look at what it is asked and at the pattern in "
                "reward_model.generative.template, raise "
                "reward_model.generative.max_new_tokens where answers are cut, or take a "
                "judge that keeps to a "
                f"form. All its answers are in {job.out_path / ANSWERS}. The same command does not ask for "
                "them again: where the judge itself was mended, such as a server with a wrong model, remove "
                f"the folder of this unfinished stage, {job.out_path}, first."
            )
    # Other workers may still be at their last shards; a server, which is what costs, is asked by one.
    spent = cost(job.config, counts) if is_whole else None
    return text, {} if spent is None else {"cost": spent}


def _unread_answer(job: Job[Any]) -> str:
    """The end of an answer that could not be read: there stands the verdict, if anywhere."""
    for row in read_all_rows(job.out_path / ANSWERS, ["answer", "unread"]):
        if row["unread"] is not None:
            return str(row["answer"])[-_SHOWN_CHARS:]
    return ""
