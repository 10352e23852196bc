"""Pairs in a file: what `dpo` trains on, read when a batch is made of it."""

from __future__ import annotations

import math
import random
import tracemalloc
from collections import Counter

import pyarrow as pa
import pytest

from rlhf.data.records import SIDES
from rlhf.data.schemas import LOGPROBS_SCHEMA
from rlhf.data.shards import read_all_rows, read_rows, shard_paths, write_shard
from rlhf.training import pair_file
from rlhf.training.pair_file import Anchor, PairSource, TrainingPairs, write_pair_file
from rlhf.training.response_batches import Batching
from rlhf.training.step_plan import StepShares, plan_steps
from tests.tiny import random_pairs, write_pairs

MAX_LENGTH = 40


def logprobs_of(folder, pairs):
    """Made-up log-probabilities of every pair."""
    folder.mkdir()
    generator = random.Random(folder.name)
    for path in shard_paths(pairs):
        rows = []
        for row in read_rows(path, ["id"]):
            rows.append({"id": row["id"], "logprobs": [-generator.random() for _ in SIDES]})
        write_shard(folder / path.name, LOGPROBS_SCHEMA, rows)
    return folder


def plainly(rows, logprobs, counts):
    """What is trained on, row by row and with lists: the definition."""
    for row, of_row in zip(rows, logprobs, strict=True):
        counts["rows"] += 1
        room = MAX_LENGTH - len(row["prompt_token_ids"])
        if room < 1:
            counts["dropped/long_prompt"] += 1
            continue
        sides = []
        for side in SIDES:
            ids = row[f"{side}_token_ids"]
            counts[f"cut_{side}"] += len(ids) > room
            sides.append(ids[:room])
        counts["equal_after_cut"] += sides[0] == sides[1]
        margin = row["chosen_penalised"] - row["rejected_penalised"]
        yield (row["id"], row["prompt_token_ids"], *sides, *of_row["logprobs"], margin)


def as_lists(pairs):
    found = []
    for pair in pairs:
        ids = [each.tolist() for each in (pair.prompt, pair.chosen, pair.rejected)]
        found.append((pair.id, *ids, pair.ref_chosen, pair.ref_rejected, pair.score_margin))
    return found


def odd_pairs():
    rows = random_pairs(31, seed=3, prompt=(1, 45), response=(0, 60))
    rows[4]["prompt_token_ids"] = list(range(10, 10 + MAX_LENGTH))
    rows[5]["prompt_token_ids"] = rows[5]["prompt_token_ids"][:1]
    rows[5]["chosen_token_ids"] = [11] * 50
    rows[5]["rejected_token_ids"] = [11] * 50 + [12]
    rows[6]["chosen_penalised"] = math.nan
    return rows


@pytest.mark.parametrize("at_a_time", [1, 7, 4096])
def test_the_file_holds_what_reading_row_by_row_gives(tmp_path, monkeypatch, at_a_time):
    monkeypatch.setattr(pair_file, "_PAIRS_AT_A_TIME", at_a_time)
    rows = odd_pairs()
    sources, expected, total = [], [], Counter()
    for origin, part in (("own", rows[:20]), ("iteration_001", rows[20:])):
        pairs = write_pairs(tmp_path / origin, part, shard_size=9)
        reference = logprobs_of(tmp_path / f"{origin}_reference", pairs)
        sources.append(PairSource(origin, pairs, Anchor(reference)))
        found = list(plainly(part, read_all_rows(reference), total))
        expected += found
        total[f"pairs/{origin}"] = len(found)
    counts = write_pair_file(tmp_path / "pairs.arrow", sources, MAX_LENGTH)
    pairs = TrainingPairs(tmp_path / "pairs.arrow")
    assert repr(as_lists(pairs)) == repr(expected), "repr, for NaN is unlike itself"
    assert counts == dict(total)
    assert all(counts[name] for name in ("dropped/long_prompt", "cut_chosen", "equal_after_cut"))
    assert len(pairs) == len(expected)
    for number, (_, prompt, chosen, rejected, *_) in enumerate(expected):
        assert pairs.lengths(number) == (len(prompt), (len(chosen), len(rejected)))
        assert pairs.num_tokens(number) == len(prompt) + len(chosen) + len(rejected)
    assert pairs.longest() == max(pairs.num_tokens(number) for number in range(len(pairs)))


@pytest.fixture
def pairs(tmp_path):
    folder = write_pairs(tmp_path / "pairs", random_pairs(23), 9)
    write_pair_file(tmp_path / "pairs.arrow", [PairSource("own", folder, Anchor(None))], 99)
    return TrainingPairs(tmp_path / "pairs.arrow")


@pytest.mark.parametrize("packed", [True, False])
def test_a_rank_reads_the_tokens_of_its_own_pairs_alone(pairs, monkeypatch, packed):
    read = []
    one = TrainingPairs.__getitem__
    monkeypatch.setattr(TrainingPairs, "__getitem__", lambda self, n: read.append(n) or one(self, n))
    steps = plan_steps(len(pairs), 8, 1, seed=2)
    of_ranks = []
    for rank in range(3):
        read.clear()
        shares = StepShares(pairs, steps, Batching(packed, 10**6), rank, 3)
        assert not read, "nothing before the first step"
        ids = [name for one_bin in shares[0] for name in one_bin.ids]
        of_ranks += read
        assert ids == [one(pairs, number).id for number in read]
    assert sorted(of_ranks) == sorted(steps[0])


def test_a_rank_holds_a_few_bytes_of_each_pair(tmp_path):
    num_pairs, tokens = 2000, 600
    rows = random_pairs(20, prompt=(tokens, tokens), response=(tokens, tokens))
    folder = write_pairs(tmp_path / "pairs", rows * (num_pairs // 20), 500)
    path = tmp_path / "pairs.arrow"
    write_pair_file(path, [PairSource("own", folder, Anchor(None))], 10 * tokens)
    assert path.stat().st_size > num_pairs * 3 * tokens * 4
    in_arrow = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        pairs = TrainingPairs(path)
        steps = plan_steps(len(pairs), 100, 2, seed=1)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(pairs) == num_pairs == sum(map(len, steps)) / 2
    assert pa.total_allocated_bytes() - in_arrow < 32 * num_pairs
    assert held < 64 * num_pairs, "as objects they took 800 bytes each, and 4 a token"


def test_the_order_of_steps_is_that_of_a_shuffled_list():
    steps = plan_steps(301, 7, 3, seed=5)
    for epoch in range(3):
        order = list(range(301))
        random.Random(f"dpo 5 {epoch}").shuffle(order)
        assert [number for step in steps[43 * epoch : 43 * (epoch + 1)] for number in step] == order
