"""Pairs of scored responses beside a plain `json` script, and whether memory grows with the rows.

`python -m rlhf.pair`, whole, from JSONL to JSONL, beside the faster one of two plain scripts: the one that
streams. Stage `pair` on shards of the loop's own (with token ids) beside the plain script on JSONL that holds
the same rows. Nothing is timed before the pairs of both are equal, one by one.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.one_worker import OneWorker
from benchmarks.rows import (
    Cost,
    Row,
    Stopwatch,
    cost_in_a_process,
    cost_of_command,
    in_turn,
    median,
    times_faster,
)
from rlhf.config.schema import GenerateConfig, PairSettings
from rlhf.data.records import prompt_id
from rlhf.data.schemas import CANDIDATES_SCHEMA, SCORES_SCHEMA
from rlhf.data.shards import read_all_rows, shard_name, write_table
from rlhf.run.job import Job
from rlhf.stages import pair as stage

ROWS, FEW_ROWS, CANDIDATES_ROWS = 300_000, 30_000, 40_000
RESPONSES, TOKENS = 8, 50
WORDS = ("of", "the", "response", "because", "thing", "two", "question", "is", "water", "number", "writes")
END = 3
_FASTER = "× a plain json script"
_FASTER_THAN_HOLDING = "× a plain json script, which holds its rows"

MISSED_JSONL = (
    "by columns: orjson, Arrow and numpy in place of records, from 190 to 25 µs of processor a row, of which "
    "reading, checking and writing shards that a resume can trust are 14; the script takes 25, streaming 7.5",
    "shards of the tool's own neither packed nor with dictionaries: 2.1 µs less a row to write",
    "no list of a row kept while a shard fills, for the garbage collector looks through all: 4.7 µs less",
    "pyarrow's reader of JSON: 5.1 µs a row for the parsing alone, orjson's with all checks 4.2",
)
MISSED_PARQUET = (
    "by columns: from 84 to 31 µs of processor a row in shards of 256, of which reading Parquet takes 6.6, "
    "writing it (zstd, digest) 10.7, and what is done for every shard most of the rest",
    "without compression and dictionaries writing takes a third, and equal work would have other bytes",
    "writing in a thread of its own: a quarter of the wall time less; taken back, for a kill cost two shards",
)


def scored_rows(number: int) -> Iterator[dict[str, Any]]:
    """Prompts with short responses and their rewards, the same each time."""
    rng = random.Random(0)
    for index in range(number):
        prompt = f"{index} {' '.join(rng.choices(WORDS, k=8))}?"
        responses = [" ".join(rng.choices(WORDS, k=rng.randint(5, 15))) for _ in range(RESPONSES)]
        yield {
            "prompt": [{"role": "user", "content": prompt}],
            "responses": responses,
            "rewards": [round(rng.gauss(0, 1), 4) for _ in responses],
        }


def write_scored(path: Path, number: int) -> None:
    """A file for `rlhf.pair`."""
    with open(path, "w", encoding="utf-8") as file:
        for row in scored_rows(number):
            file.write(json.dumps(row) + "\n")


def write_candidates(folder: Path, number: int) -> int:
    """Shards as the loop makes them, and the same rows as JSONL; returns the number of shards."""
    rng = np.random.default_rng(0)
    rows_per_shard = GenerateConfig().shard_size
    for name in ("candidates", "scores", "pairs"):
        (folder / name).mkdir()
    tokens = {"end_of_turn_id": END, "stop_token_ids": [END]}
    (folder / "candidates" / "tokens.json").write_text(json.dumps(tokens))
    block: list[dict[str, Any]] = []
    num_shards = 0
    with open(folder / "candidates.jsonl", "w", encoding="utf-8") as file:
        for index, scored in enumerate(scored_rows(number), start=1):
            row = with_token_ids(scored, rng)
            file.write(json.dumps(row) + "\n")
            block.append(row)
            if len(block) == rows_per_shard or index == number:
                name = shard_name(num_shards)
                write_table(
                    folder / "candidates" / name, pa.Table.from_pylist(block, schema=CANDIDATES_SCHEMA)
                )
                write_table(folder / "scores" / name, pa.Table.from_pylist(block, schema=SCORES_SCHEMA))
                num_shards += 1
                block = []
    return num_shards


def with_token_ids(
    scored: dict[str, Any], rng: np.random.Generator, vocabulary: int = 32_000
) -> dict[str, Any]:
    """A row of the loop, with ids that are drawn."""
    ids = rng.integers(10, vocabulary, size=(RESPONSES + 1, TOKENS))
    ids[:, -1] = END
    candidates = []
    for text, token_ids in zip(scored["responses"], ids[1:].tolist(), strict=True):
        about = {"finish_reason": "stop", "logprob": -1.5 * TOKENS, "seed": token_ids[0], "temperature": 1.0}
        candidates.append({"token_ids": token_ids, "text": text, **about})
    return {
        "id": prompt_id(scored["prompt"]),
        "messages": scored["prompt"],
        "prompt_token_ids": ids[0, :20].tolist(),
        "candidates": candidates,
        "scores": scored["rewards"],
    }


def run_plain(how: str, source: Path, output: Path) -> Cost:
    """What the plain script takes."""
    command = [sys.executable, "-m", "benchmarks.plain_pairs", how, str(source), str(output)]
    return cost_of_command(command)


def run_tool(source: Path, output: Path) -> Cost:
    """What the whole command takes, its start included."""
    output.unlink(missing_ok=True)
    words = [f"input={source}", f"output={output}", "compute.device=cpu"]
    return cost_of_command([sys.executable, "-m", "rlhf.pair", *words])


def run_stage(folder: Path, num_shards: int) -> Cost:
    """What stage `pair` takes in a process that is there."""
    inputs = {"candidates": str(folder / "candidates"), "scores": str(folder / "scores")}
    job = Job("pair", "pair", PairSettings(), inputs, str(folder / "pairs"), 42)
    watch = Stopwatch()
    outcome = stage.run(job, OneWorker(num_shards))
    return watch.cost(proof=outcome.counts["pairs"])


def prove_equal(ours: Path, plain: Path) -> int:
    """Both files hold the same pairs in the same order; how many."""
    number = 0
    with open(ours, encoding="utf-8") as our_lines, open(plain, encoding="utf-8") as plain_lines:
        for our_line, plain_line in zip(our_lines, plain_lines, strict=True):
            pair = json.loads(our_line)
            expected = json.loads(plain_line)
            assert {name: pair[name] for name in expected} == expected, (our_line, plain_line)
            number += 1
    return number


def prove_equal_shards(pairs: Path, plain: Path) -> int:
    """The shards hold the pairs of the plain script's file, token ids included; how many."""
    number = 0
    with open(plain, encoding="utf-8") as lines:
        for row, line in zip(read_all_rows(pairs), lines, strict=True):
            expected = json.loads(line)
            assert row["messages"] == expected["prompt"], line
            for side in ("chosen", "rejected"):
                assert row[side] == expected[side][0]["content"], line
            for name in ("prompt_token_ids", "chosen_token_ids", "rejected_token_ids"):
                assert row[name] == expected[name], line
            number += 1
    return number


def jsonl_rows(folder: Path, runs: int) -> list[Row]:
    """The command on a file beside the plain script, and its memory on a tenth of the rows."""
    source, few = folder / "scored.jsonl", folder / "few.jsonl"
    ours, plain = folder / "ours.jsonl", folder / "plain.jsonl"
    write_scored(source, ROWS)
    write_scored(few, FEW_ROWS)
    run_plain("stream", source, plain)
    run_tool(source, ours)
    num_pairs = prove_equal(ours, plain)
    taken = in_turn(
        {
            "stream": lambda: cost_in_a_process(run_plain, "stream", source, plain),
            "hold": lambda: cost_in_a_process(run_plain, "hold", source, plain),
            "ours": lambda: cost_in_a_process(run_tool, source, ours),
            "few": lambda: cost_in_a_process(run_tool, few, ours),
        },
        runs,
    )
    rows = []
    for name in ("processor", "wall"):
        seconds = {subject: median(costs, f"{name}_seconds") for subject, costs in taken.items()}
        reached = times_faster(taken["hold"], taken["ours"], f"{name}_seconds")
        detail = (
            f"{seconds['ours']:.2f} s of {num_pairs} pairs (of {FEW_ROWS} {seconds['few']:.2f}), the script "
            f"{seconds['hold']:.2f}; one that streams {seconds['stream']:.2f}"
        )
        attempts = () if reached >= 2 else MISSED_JSONL
        rows.append(
            Row(f"pairing/jsonl/{name}", reached, 2, _FASTER_THAN_HOLDING, detail=detail, attempts=attempts)
        )
    peaks = {subject: median(costs, "peak_gigabytes") for subject, costs in taken.items()}
    detail = f"{peaks['ours']:.2f} GB and {peaks['few']:.2f}; a script that holds all {peaks['hold']:.2f}"
    growth = peaks["ours"] / peaks["few"]
    unit = f"× the peak of {FEW_ROWS} rows, at {ROWS}"
    rows.append(Row("pairing/memory", growth, 1.3, unit, lower_is_better=True, detail=detail))
    return rows


def parquet_rows(folder: Path, runs: int) -> list[Row]:
    """The stage on shards beside the plain script on the same rows."""
    num_shards = write_candidates(folder, CANDIDATES_ROWS)
    source, plain = folder / "candidates.jsonl", folder / "plain.jsonl"
    run_plain("candidates", source, plain)
    cost_in_a_process(run_stage, folder, num_shards)
    num_pairs = prove_equal_shards(folder / "pairs", plain)
    taken = in_turn(
        {
            "plain": lambda: cost_in_a_process(run_plain, "candidates", source, plain),
            "ours": lambda: cost_in_a_process(run_stage, folder, num_shards),
        },
        runs,
    )
    rows = []
    for name in ("processor", "wall"):
        seconds = {subject: median(costs, f"{name}_seconds") for subject, costs in taken.items()}
        reached = times_faster(taken["plain"], taken["ours"], f"{name}_seconds")
        detail = f"{seconds['ours']:.2f} s of {num_pairs} pairs; script {seconds['plain']:.2f}"
        attempts = () if reached >= 10 else MISSED_PARQUET
        rows.append(Row(f"pairing/parquet/{name}", reached, 10, _FASTER, detail=detail, attempts=attempts))
    return rows


def rows(runs: int) -> list[Row]:
    """All claims of this topic."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = jsonl_rows(folder, runs)
        shutil.rmtree(folder)
        folder.mkdir()
        return found + parquet_rows(folder, runs)
