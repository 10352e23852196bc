"""Questions and answers of AlpacaEval 2 and Arena-Hard, in their own file formats.

AlpacaEval: a JSON list of `instruction` and `dataset`; answers are a JSON list with `output` and `generator`.
Arena-Hard v0.1: lines of `question_id` and `turns`; v2.0: lines of `uid` and `prompt`. Answers are lines.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf.data.digest import digest_of
from rlhf.data.files import read_records
from rlhf.data.prompts import from_text
from rlhf.data.records import prompt_id
from rlhf.errors import DataError


def read_questions(path: Path | str, counts: Counter[str]) -> list[dict[str, Any]]:
    """Rows of a `prompts` shard with `extra`, the question as JSON: all of them, or an error.

    Raises:
        DataError: the file cannot be read, or a row is no question of a known benchmark.
    """
    made = []
    for number, row in enumerate(read_records(path), start=1):
        try:
            messages = from_text(question_text(row), "the question")
        except DataError as error:
            raise DataError(f"{path}, row {number}: {error}") from None
        made.append({"id": prompt_id(messages), "messages": messages, "extra": json.dumps(row, default=str)})
    counts["rows"] += len(made)
    return made


def question_text(row: Mapping[str, Any]) -> Any:
    """What the question asks.

    Raises:
        DataError: no known shape, or more than one turn.
    """
    if "turns" in row:
        turns = row["turns"]
        if not isinstance(turns, list) or len(turns) != 1 or not isinstance(turns[0], dict):
            raise DataError(
                f"turns={turns!r:.80}: must hold one turn. For MT-Bench, whose second turn needs an answer to the "
                "first, see docs/evaluation.md."
            )
        return turns[0].get("content")
    for key in ("instruction", "prompt"):
        if key in row:
            return row[key]
    raise DataError(
        f"No question found: the keys are {sorted(row)}; AlpacaEval has instruction, Arena-Hard turns or prompt."
    )


def alpaca_eval_answer(question: Mapping[str, Any], candidate: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One entry of AlpacaEval's model outputs."""
    kept = {key: question[key] for key in ("dataset", "instruction") if key in question}
    return kept | {"output": candidate["text"], "generator": name}


def arena_hard_answer(question: Mapping[str, Any], candidate: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One line of Arena-Hard's model answers, v2.0 for questions with a `uid`, else v0.1.

    `token_len` is counted by the policy's tokenizer; the benchmark's own script counts with OpenAI's.
    """
    text, stamp = candidate["text"], time.time()
    num_tokens = len(candidate["token_ids"]) - (candidate["finish_reason"] == "stop")
    if "uid" in question:
        turns = [
            {"role": "user", "content": question["prompt"]},
            {"role": "assistant", "content": {"answer": text}},
        ]
        identity = digest_of([name, question["uid"]])[:22]
        answer = {"uid": question["uid"], "ans_id": identity, "model": name, "messages": turns, "tstamp": stamp}
        return answer | {"metadata": {"token_len": num_tokens}}
    if "question_id" not in question:
        raise DataError(f"No question_id or uid: the keys are {sorted(question)}. Is this an Arena-Hard question file?")
    choice = {"index": 0, "turns": [{"content": text, "token_len": num_tokens}]}
    return {
        "question_id": question["question_id"],
        "answer_id": digest_of([name, question["question_id"]])[:22],
        "model_id": name,
        "choices": [choice],
        "tstamp": stamp,
    }
