"""Stage `pair`: shard by shard, nothing lost, nothing mixed up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf.config.choices import Strategy, Truncated
from rlhf.config.stage_configs import PairSettings
from rlhf.data.schemas import CANDIDATES_SCHEMA, PAIRS_SCHEMA, SCORES_SCHEMA
from rlhf.data.shards import num_rows, read_all_rows, read_counts, read_rows, shard_name, write_shard
from rlhf.errors import DataError
from rlhf.run.job import Job, Kind
from rlhf.run.stage_table import STAGES, num_shards
from rlhf.stages import pair as stage

EOT, EOS = 9, 8


class OneWorker:
    rank, world_size, num_threads = 0, 1, 1

    def __init__(self, shards: list[int]) -> None:
        self._shards = shards
        self.done: list[float] = []

    def shards(self) -> Iterator[int]:
        yield from self._shards

    def progress(self, done: float, total: float, note: str = "") -> None:
        self.done.append(done / total)


def candidates_row(name: str, texts: list[str], finished: bool = True) -> dict[str, Any]:
    one = {"finish_reason": "stop" if finished else "length", "logprob": -1.0, "seed": 1, "temperature": 1.0}
    end = [EOS] if finished else []
    return {
        "id": name,
        "messages": [{"role": "user", "content": name}],
        "prompt_token_ids": [1, 2, 3],
        "candidates": [{"token_ids": [20 + i, *end], "text": text, **one} for i, text in enumerate(texts)],
    }


def write_inputs(tmp: Path, shards: list[list[tuple[dict[str, Any], list[float]]]]) -> None:
    for name in ("candidates", "scores", "out"):
        (tmp / name).mkdir(exist_ok=True)
    (tmp / "candidates" / "tokens.json").write_text(
        json.dumps({"end_of_turn_id": EOT, "stop_token_ids": [EOS, EOT]})
    )
    for index, rows in enumerate(shards):
        write_shard(tmp / "candidates" / shard_name(index), CANDIDATES_SCHEMA, [row for row, _ in rows])
        scores = [{"id": row["id"], "scores": values} for row, values in rows]
        write_shard(tmp / "scores" / shard_name(index), SCORES_SCHEMA, scores)


def job(tmp: Path, **settings: Any) -> Job:
    inputs = {"candidates": str(tmp / "candidates"), "scores": str(tmp / "scores")}
    return Job("pair", "iteration_001/pair", PairSettings(**settings), inputs, str(tmp / "out"), 42)


TWO_SHARDS = [
    [(candidates_row("p0", ["a", "b"]), [1.0, 2.0]), (candidates_row("p1", ["a", "b"]), [1.0, 1.0])],
    [(candidates_row("p2", ["a", ""]), [1.0, 2.0]), (candidates_row("p3", ["a", "b"]), [1.0, float("nan")])],
]


def test_shards_pairs_and_counts(tmp_path: Path) -> None:
    write_inputs(tmp_path, TWO_SHARDS)
    worker = OneWorker([0, 1])
    assert STAGES["pair"].kind is Kind.single
    assert num_shards(job(tmp_path)) == 2
    outcome = stage.run(job(tmp_path), worker)
    assert worker.done == [0.5, 1.0]
    assert [num_rows(tmp_path / "out" / shard_name(i)) for i in range(2)] == [1, 0]
    (pair,) = read_rows(tmp_path / "out" / shard_name(0))
    assert set(pair) == set(PAIRS_SCHEMA.names)
    assert (pair["id"], pair["chosen"], pair["rejected"]) == ("p0", "b", "a")
    assert (pair["chosen_token_ids"], pair["rejected_token_ids"]) == ([21, EOT], [20, EOT])
    assert pair["prompt_token_ids"] == [1, 2, 3]
    assert pair["messages"] == [{"role": "user", "content": "p0"}]
    assert read_counts(tmp_path / "out" / shard_name(0)) == {
        "prompts": 2,
        "prompts_with_pairs": 1,
        "pairs": 1,
        "candidates": 4,
        "dropped/all_tied": 1,
    }
    assert outcome.counts == {
        "prompts": 4,
        "prompts_with_pairs": 1,
        "pairs": 1,
        "candidates": 8,
        "candidates/empty": 1,
        "candidates/non_finite": 1,
        "dropped/all_tied": 1,
        "dropped/empty": 1,
        "dropped/non_finite": 1,
    }
    assert outcome.metrics["mean_margin"] == 1.0
    assert outcome.metrics["mean_chosen_score"] == 2.0
    assert outcome.metrics["mean_rejected_chars"] == 1.0


def test_finished_shards_are_kept_and_counted(tmp_path: Path) -> None:
    write_inputs(tmp_path, TWO_SHARDS)
    whole = stage.run(job(tmp_path), OneWorker([0, 1]))
    before = (tmp_path / "out" / shard_name(0)).read_bytes()
    (tmp_path / "out" / shard_name(1)).unlink()
    again = stage.run(job(tmp_path), OneWorker([1]))
    assert again == whole
    assert (tmp_path / "out" / shard_name(0)).read_bytes() == before


def test_equal_work_gives_equal_bytes(tmp_path: Path) -> None:
    write_inputs(tmp_path, TWO_SHARDS)
    stage.run(job(tmp_path, strategy=Strategy.best_worst), OneWorker([0, 1]))
    first = (tmp_path / "out" / shard_name(0)).read_bytes()
    stage.run(job(tmp_path), OneWorker([1, 0]))
    assert (tmp_path / "out" / shard_name(0)).read_bytes() == first


def test_other_strategies_and_cut_responses(tmp_path: Path) -> None:
    write_inputs(tmp_path, [[(candidates_row("p", ["a", "b"], finished=False), [1.0, 2.0])]])
    stage.run(job(tmp_path, truncated=Truncated.allow, strategy=Strategy.best_second), OneWorker([0]))
    (pair,) = read_all_rows(tmp_path / "out")
    assert (pair["chosen_token_ids"], pair["chosen_truncated"]) == ([21], True)


def test_no_pair_at_all_stops_with_the_reasons(tmp_path: Path) -> None:
    write_inputs(tmp_path, [[(candidates_row("p", ["a", "b"], finished=False), [1.0, 2.0])]])
    with pytest.raises(DataError, match=r"No prompt .*1 truncated.*pair\.truncated=allow"):
        stage.run(job(tmp_path), OneWorker([0]))


def test_other_prompts_in_the_scores_are_refused(tmp_path: Path) -> None:
    write_inputs(tmp_path, TWO_SHARDS)
    write_shard(
        tmp_path / "scores" / shard_name(1),
        SCORES_SCHEMA,
        [{"id": "p2", "scores": [1.0, 2.0]}, {"id": "px", "scores": [1.0, 2.0]}],
    )
    with pytest.raises(DataError, match="row 2 is prompt px there and p3 here"):
        stage.run(job(tmp_path), OneWorker([0, 1]))


def test_another_number_of_scores_is_refused(tmp_path: Path) -> None:
    write_inputs(tmp_path, [[(candidates_row("p", ["a", "b"]), [1.0, 2.0, 3.0])]])
    with pytest.raises(DataError, match="3 scores for 2 candidates"):
        stage.run(job(tmp_path), OneWorker([0]))


def test_another_number_of_rows_is_refused(tmp_path: Path) -> None:
    write_inputs(tmp_path, TWO_SHARDS)
    write_shard(tmp_path / "scores" / shard_name(0), SCORES_SCHEMA, [{"id": "p0", "scores": [1.0, 2.0]}])
    with pytest.raises(DataError, match="1 rows for 2"):
        stage.run(job(tmp_path), OneWorker([0, 1]))


def test_another_number_of_shards_is_refused(tmp_path: Path) -> None:
    write_inputs(tmp_path, TWO_SHARDS)
    (tmp_path / "scores" / shard_name(1)).unlink()
    with pytest.raises(DataError, match=r"has 2 shards, .* has 1"):
        stage.run(job(tmp_path), OneWorker([0, 1]))


def test_missing_tokens_file_is_refused(tmp_path: Path) -> None:
    write_inputs(tmp_path, TWO_SHARDS)
    (tmp_path / "candidates" / "tokens.json").unlink()
    with pytest.raises(DataError, match=r"tokens\.json is missing"):
        stage.run(job(tmp_path), OneWorker([0, 1]))
