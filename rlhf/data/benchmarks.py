"""Questions and answers of AlpacaEval 2 and Arena-Hard, in their own file formats.

AlpacaEval: a JSON list of `instruction` and `dataset`; answers are a JSON list with `output` and `generator`.
Arena-Hard: lines of `uid` and `prompt`; v0.1 had `question_id` and `turns` until April 2025. Answers are
lines.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf.data.columns import Columns
from rlhf.data.digest import digest_of
from rlhf.data.prompts import parsed_rows
from rlhf.data.questions import question_of, refuse_without_question
from rlhf.data.records import FINISHED, Message, prompt_id
from rlhf.data.rows import Row, UnusableRow, plain_json
from rlhf.errors import DataError

_FIRST_BASES = ("turns", "instruction", "prompt")
_SHAPES = ("AlpacaEval has instruction", "Arena-Hard turns or prompt")


def read_questions(
    path: Path | str, counts: Counter[str], *, columns: Columns | None = None
) -> list[dict[str, Any]]:
    """Rows of a `prompts` shard with `extra`, the question as JSON: all of them, or an error.

    Args:
        path: a file that `rlhf.data.files` reads.
        counts: is added to: `rows`, and `unread/<column>`.
        columns: as for `rlhf.data.prompts.parsed_rows`.

    Raises:
        DataError: the file cannot be read, or a row is no question of a known benchmark.

    Example:
        {"id": "91b9…", "messages": [{"role": "user", "content": "2+2?"}], "extra": '{"uid": "u1", …}'}
    """
    rows = []
    for number, question, messages in parsed_rows(path, counts, _asked, columns):
        # Other readers skip such a row; a benchmark's score is only worth something over all questions.
        if isinstance(messages, UnusableRow):
            raise DataError(f"{path}, row {number}: {messages}")
        # Parquet files may hold dates, which JSON has no form for: they are kept as text.
        extra = plain_json(question)
        rows.append({"id": prompt_id(messages), "messages": messages, "extra": extra})
    return rows


def _asked(row: Row) -> list[Message]:
    """The messages of a question, the user's last; raises where there is none, or more than one turn to
    answer.
    """
    question = question_of(row, _FIRST_BASES)
    if question is None:
        refuse_without_question(row, "question", _SHAPES)
    if question.messages[-1]["role"] != "user":
        raise UnusableRow("not_user_last", "the question ends with another's turn than the user's.")
    return question.messages


def alpaca_eval_answer(
    question: Mapping[str, Any],
    candidate: Mapping[str, Any],
    name: str,
) -> dict[str, Any]:
    """One entry of AlpacaEval's model outputs.

    Example:
        {"dataset": "helpful_base", "instruction": "2+2?", "output": "4", "generator": "mine"}
    """
    answer = {}
    # Questions also hold `output` and `generator` of the baseline, which must not pass for this model's.
    for key in ("dataset", "instruction"):
        if key in question:
            answer[key] = question[key]
    answer["output"] = candidate["text"]
    answer["generator"] = name
    return answer


def arena_hard_answer(question: Mapping[str, Any], candidate: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One line of Arena-Hard's model answers, in its present form for questions with a `uid`, else its first.

    `token_len` is counted by the policy's tokenizer; the benchmark's own script counts with OpenAI's.

    Example:
        {"uid": "u1", "ans_id": "5d2c…", "model": "mine", "messages": […], "tstamp": 1.7e9, "metadata": {…}}
    """
    text = candidate["text"]
    stamp = time.time()
    num_tokens = len(candidate["token_ids"])
    if candidate["finish_reason"] == FINISHED:
        num_tokens -= 1  # the sampled terminator is no part of the answer
    if "uid" in question:
        user_turn = {"role": "user", "content": question["prompt"]}
        answer_turn = {"role": "assistant", "content": {"answer": text}}
        return {
            "uid": question["uid"],
            "ans_id": _answer_id(name, question["uid"]),
            "model": name,
            "messages": [user_turn, answer_turn],
            "tstamp": stamp,
            "metadata": {"token_len": num_tokens},
        }
    require_arena_hard(question)
    # One choice of one turn: the question has one, and one greedy answer was sampled.
    choice = {"index": 0, "turns": [{"content": text, "token_len": num_tokens}]}
    return {
        "question_id": question["question_id"],
        "answer_id": _answer_id(name, question["question_id"]),
        "model_id": name,
        "choices": [choice],
        "tstamp": stamp,
    }


def require_arena_hard(question: Mapping[str, Any]) -> None:
    """Raise DataError for a question without the id that Arena-Hard's answers are found by."""
    if not {"uid", "question_id"} & question.keys():
        raise DataError(
            f"No question_id or uid: the keys are {sorted(question)}. Is this an Arena-Hard question file?",
        )


def _answer_id(name: str, question_id: Any) -> str:
    """As long as the benchmark's own random ids; the same for the same model and question."""
    digest = digest_of([name, question_id])
    return digest[:22]
