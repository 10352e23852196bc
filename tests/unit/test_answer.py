"""What `rlhf.answer` finds out before it samples."""

from __future__ import annotations

from collections import Counter

import pytest

from rlhf.answer import look_at
from rlhf.config.tools import Benchmark
from rlhf.data.benchmarks import read_questions
from rlhf.data.shards import shard_name, write_shard
from rlhf.errors import DataError
from rlhf.run.artifact import Artifact
from rlhf.stages.read import _FOLDERS


def questions(folder, text):
    (folder / "prompts").mkdir()
    (folder / "in.jsonl").write_text(text)
    rows = read_questions(folder / "in.jsonl", Counter())
    write_shard(folder / "prompts" / shard_name(0), _FOLDERS["questions"]["prompts"], rows)
    return Artifact(folder, "d")


ARENA_HARD = '{"uid": "u1", "prompt": "q"}\n{"question_id": "u2", "turns": [{"content": "r"}]}\n'
ALPACA_EVAL = '{"uid": "u1", "prompt": "q"}\n{"instruction": "q", "dataset": "d"}\n'


def test_a_question_of_another_benchmark_is_refused_before_any_is_answered(tmp_path):
    with pytest.raises(DataError, match=r"No question_id or uid: the keys are \['dataset', 'instruction'\]"):
        look_at(questions(tmp_path, ALPACA_EVAL), Benchmark.arena_hard)


@pytest.mark.parametrize(
    ("text", "benchmark"), [(ARENA_HARD, Benchmark.arena_hard), (ALPACA_EVAL, Benchmark.alpaca_eval)]
)
def test_its_own_questions_are_fine(tmp_path, text, benchmark):
    look_at(questions(tmp_path, text), benchmark)
