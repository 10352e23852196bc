"""Answer a benchmark's questions.

`python -m rlhf.answer run_dir=RUN benchmark=alpaca_eval input=… output=….json`

One greedy answer to each question, in the benchmark's own format (`rlhf.data.benchmarks`,
docs/evaluation.md).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from rlhf.command.file_tool import write_file
from rlhf.command.line import main
from rlhf.config.tools import AnswerTool, Benchmark
from rlhf.data.benchmarks import (
    alpaca_eval_answer,
    arena_hard_answer,
    require_arena_hard,
)
from rlhf.data.files import resolved
from rlhf.data.responses import Form
from rlhf.data.shards import read_all_rows
from rlhf.errors import ConfigError, DataError, RunChanged
from rlhf.generate import sample
from rlhf.loop.best import best_policy
from rlhf.loop.card import name_of
from rlhf.run import sources
from rlhf.run.artifact import Artifact
from rlhf.run.plan import Run

_ANSWERS = {Benchmark.alpaca_eval: alpaca_eval_answer, Benchmark.arena_hard: arena_hard_answer}


def answer(tool: AnswerTool) -> None:
    """From questions to answers."""
    name = choose_model(tool)
    known_digest = None
    if tool.run_dir is not None:
        known_digest = best_policy(resolved(tool.run_dir, "run_dir")).digest
    # The benchmarks have room for one answer; others would be sampled for nothing.
    if tool.generate.n != 1:
        raise ConfigError(
            f"generate.n={tool.generate.n}: a benchmark takes one answer to a question. Leave it at 1."
        )

    def make(run: Run) -> list[Artifact]:
        require_unchanged(run, tool, known_digest)
        return sample(run, tool, "questions", look=partial(look_at, benchmark=tool.benchmark))

    rows = partial(lines, benchmark=tool.benchmark, name=name)
    # AlpacaEval reads one JSON list, Arena-Hard a JSON object a line.
    form = Form.list if tool.benchmark is Benchmark.alpaca_eval else Form.lines
    write_file(tool, make, rows, form)


def choose_model(tool: AnswerTool) -> str:
    """Settle which model answers, and what it is called.

    Raises:
        ConfigError: neither a run nor a model is named, or both, or the run has no best policy yet.
    """
    has_run = tool.run_dir is not None
    has_model = bool(tool.model.path)
    if has_run == has_model:
        raise ConfigError(
            f"{'Both' if has_run else 'Neither'} of run_dir and model.path: give one of the two, a run "
            "folder whose best policy answers, or a model."
        )
    if tool.run_dir is None:
        owner_and_name = name_of(tool.model.path)
        return tool.name or owner_and_name.split("/")[-1]
    run = resolved(tool.run_dir, "run_dir")
    # No link, so that the answers stay those of one model when the run goes on and finds a better one.
    tool.model.path = str(best_policy(run).path)
    return tool.name or run.name


def require_unchanged(run: Run, tool: AnswerTool, digest: str | None) -> None:
    """Raise RunChanged where the best policy is one that a run was given, and its files are others by now."""
    policy = sources.model(run, tool.model.path, None, "run_dir")
    if digest is not None and policy.digest != digest:
        raise RunChanged(
            f"run_dir={tool.run_dir}: its best policy is π0 as it was given, {policy.path}, whose files are "
            "not those that the run has evaluated "
            f"(digest {digest[:12]}… there, {str(policy.digest)[:12]}… now). "
            "Bring the files back, or, if they are what should answer, name the folder: model.path="
            f"{shlex.quote(str(policy.path))} in place of run_dir."
        )


def look_at(questions: Artifact, benchmark: Benchmark) -> None:
    """Raise DataError for questions of another benchmark, before hours are spent on answers to them."""
    if benchmark is not Benchmark.arena_hard:
        return
    for question in read_all_rows(questions.path / "prompts", ["extra"]):
        require_arena_hard(json.loads(question["extra"]))


def lines(artifacts: Sequence[Artifact], benchmark: Benchmark, name: str) -> Iterator[dict[str, Any]]:
    """An answer to every question, in order.

    Raises:
        DataError: a question was too long to be answered.

    Example:
        {"dataset": "helpful_base", "instruction": "2+2?", "output": "4", "generator": "mine"}
    """
    questions, candidates = artifacts
    rows = read_all_rows(candidates.path)
    # Sampling drops prompts that are too long and keeps the order: the first gap is the first such question.
    answered = next(rows, None)
    for question in read_all_rows(questions.path / "prompts"):
        if answered is None or answered["id"] != question["id"]:
            raise DataError(
                f"No answer to {question['messages'][0]['content']!r:.80}: it is longer than "
                "generate.max_prompt_tokens, or than what the model's context leaves beside "
                "generate.max_new_tokens. Raise the one, or lower the other."
            )
        candidate = answered["candidates"][0]
        original = json.loads(question["extra"])
        yield _ANSWERS[benchmark](original, candidate, name)
        answered = next(rows, None)


if __name__ == "__main__":
    main(answer, "tool", AnswerTool)
