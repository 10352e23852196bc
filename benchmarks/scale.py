"""Whether memory grows with the rows of a run: what each stage holds at two sizes, eight to ten times apart.

Stages run as their workers run them, each in a process of its own. Its shards are a few different ones under
many names (hard links), so that 400,000 rows are made in a second: a stage reads and writes each as any
other. `score` asks a Python rule, for a model would take hours and holds nothing from shard to shard;
`reference` asks a small random model. `dpo` is what a rank does for its data: rank 0 writes the file of all
pairs, and reads an epoch of its share of the steps. The driver is a whole command, which makes the pairs of a
run that `scripts/synthetic_run.py` has made.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.one_worker import OneWorker
from benchmarks.pairing import END, scored_rows, with_token_ids
from benchmarks.rows import Cost, Row, Stopwatch, cost_in_a_process, in_turn, median, memory_bytes
from rlhf.config.choices import Device
from rlhf.config.fields import filled
from rlhf.config.schema import ComputeConfig, PairSettings
from rlhf.config.stage_configs import MixStage, ReferenceStage, RuleStage, StageCompute
from rlhf.data.json_text import json_text
from rlhf.data.schemas import CANDIDATES_SCHEMA, LOGPROBS_SCHEMA, SCORES_SCHEMA
from rlhf.data.shards import read_rows, shard_name, shard_paths, write_shard, write_table
from rlhf.run.job import Job
from rlhf.run.stage_table import num_shards, stage_function

ROOT = Path(__file__).resolve().parents[1]
SHARD_ROWS = 256
DIFFERENT_SHARDS = 4
VOCABULARY = 512
ROWS = (50_000, 400_000)
"""Prompts with eight responses each, of `score`, `pair` and `mix`."""
REFERENCE_PAIRS = (2_048, 16_384)
DPO_PAIRS = (20_000, 200_000)
DRIVER_PROMPTS = (5_000, 40_000)
MAX_GROWTH = 1.1
"""Of the peak, where the rows grow eightfold."""
MAX_BYTES_A_PAIR = 40
"""That a rank of `dpo` may hold: lengths, and the order of two epochs."""
BATCH_PAIRS, MAX_LENGTH, EPOCHS = 128, 1024, 2


def num_characters(messages: list[dict[str, str]], response: str) -> float:
    """The rule that `score` asks."""
    return float(len(response))


def make_shards(folder: Path) -> None:
    """Candidates, their scores, pairs of them and log-probabilities of the pairs: a few shards of each."""
    rng = np.random.default_rng(0)
    for name in ("candidates", "scores", "pairs", "reference"):
        (folder / name).mkdir(parents=True)
    tokens = {"end_of_turn_id": END, "stop_token_ids": [END]}
    (folder / "candidates" / "tokens.json").write_text(json_text(tokens), encoding="utf-8")
    rows = scored_rows(DIFFERENT_SHARDS * SHARD_ROWS)
    for index in range(DIFFERENT_SHARDS):
        name = shard_name(index)
        block = [with_token_ids(next(rows), rng, VOCABULARY) for _ in range(SHARD_ROWS)]
        for kind, schema in (("candidates", CANDIDATES_SCHEMA), ("scores", SCORES_SCHEMA)):
            write_table(folder / kind / name, pa.Table.from_pylist(block, schema=schema))
    inputs = {name: str(folder / name) for name in ("candidates", "scores")}
    run_stage(Job("pair", "pair", PairSettings(), inputs, str(folder / "pairs"), 1))
    for path in shard_paths(folder / "pairs"):
        logprobs = [{"id": row["id"], "logprobs": [-40.0, -50.0]} for row in read_rows(path, ["id"])]
        write_shard(folder / "reference" / path.name, LOGPROBS_SCHEMA, logprobs)


def grown(few: Path, folder: Path, num_rows: int) -> Path:
    """The same folders with shards for so many rows, each a second name of one there is."""
    for source in few.iterdir():
        (folder / source.name).mkdir(parents=True)
        for index in range(num_rows // SHARD_ROWS):
            shard = source / shard_name(index % DIFFERENT_SHARDS)
            os.link(shard, folder / source.name / shard_name(index))
        for path in source.glob("*.json"):
            os.link(path, folder / source.name / path.name)
    return folder


def run_stage(job: Job[Any]) -> Cost:
    """What a stage takes whose only worker is this process."""
    watch = Stopwatch()
    outcome = stage_function(job.stage)(job, OneWorker(num_shards(job)))
    assert len(shard_paths(job.out_path)) == num_shards(job)
    return watch.cost(proof=outcome.counts)


def stage_cost(stage: str, config: Any, inputs: dict[str, Path]) -> Cost:
    """What a stage takes in a process of its own; what it writes is thrown away."""
    compute = filled(StageCompute, ComputeConfig(device=Device.cpu))
    named = {name: str(path) for name, path in inputs.items()}
    with tempfile.TemporaryDirectory() as out:
        return cost_in_a_process(run_stage, Job(stage, stage, config, named, out, 1, compute))


def rank_cost(folder: Path) -> Cost:
    """What the data of a training takes on rank 0 of two; the peak is of memory that it holds by itself."""
    from rlhf.training.pair_file import Anchor, PairSource, TrainingPairs, write_pair_file
    from rlhf.training.response_batches import Batching
    from rlhf.training.step_plan import StepShares, plan_steps

    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as out:
        path = Path(out) / "pairs.arrow"
        source = PairSource("own", folder / "pairs", Anchor(folder / "reference"))
        counts = write_pair_file(path, [source], MAX_LENGTH)
        pairs = TrainingPairs(path)
        steps = plan_steps(len(pairs), BATCH_PAIRS, EPOCHS, seed=1)
        peak = memory_bytes("RssAnon")
        shares = StepShares(pairs, steps, Batching(packed=True, batch_tokens=4096), rank=0, num_ranks=2)
        for index in range(len(steps) // EPOCHS):
            assert shares[index]
            peak = max(peak, memory_bytes("RssAnon"))
        size = path.stat().st_size
    cost = watch.cost()
    proof = {"pairs": counts["rows"], "bytes": size}
    return Cost(cost.processor_seconds, cost.wall_seconds, peak / 2**30, proof)


def driver_cost(run: Path) -> Cost:
    """What the driver takes to have the pairs of a run made; its workers are not counted."""
    # One stage by name: a look before the run would ask for the models, which are none.
    words = [sys.executable, "-m", "rlhf.stage", "pair", f"run_dir={run}", "iteration=1"]
    began = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        # Of its whole life, so that the last look tells of all before it; when it has ended there is none.
        with contextlib.suppress(OSError, ValueError):
            peak = memory_bytes("VmHWM", process.pid)
        time.sleep(0.05)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(words)} ended with exit code {process.returncode}")
    return Cost(0, time.perf_counter() - began, peak / 2**30)


def make_driver_run(folder: Path, prompts: int) -> Path:
    """A run up to its scores, which no model has made."""
    settings = (f"prompts={prompts}", "n=2", "held_out=64", "iterations=1", "until=iteration_001/score")
    words = [sys.executable, str(ROOT / "scripts" / "synthetic_run.py"), f"out={folder}", *settings]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return folder


def row_of(name: str, sizes: tuple[int, int], costs: tuple[Cost, Cost]) -> Row:
    """How the peak has grown where the rows have."""
    few, many = costs
    bytes_a_row = (many.peak_gigabytes - few.peak_gigabytes) * 2**30 / (sizes[1] - sizes[0])
    seconds = f"{few.wall_seconds:.1f} and {many.wall_seconds:.1f} s"
    detail = f"{few.peak_gigabytes:.3f} and {many.peak_gigabytes:.3f} GB, {bytes_a_row:.0f} bytes a row"
    growth = many.peak_gigabytes / few.peak_gigabytes
    unit = f"× the peak of {sizes[0]} rows, at {sizes[1]}"
    return Row(f"scale/{name}", growth, MAX_GROWTH, unit, True, f"{detail}; {seconds}")


def typical(costs: list[Cost]) -> Cost:
    """The medians of several measurements, each figure by itself."""
    return Cost(
        median(costs, "processor_seconds"),
        median(costs, "wall_seconds"),
        median(costs, "peak_gigabytes"),
        costs[0].proof,
    )


def at_two_sizes(
    name: str, sizes: tuple[int, int], measure: Callable[[int], Cost], runs: int
) -> tuple[Row, tuple[Cost, Cost]]:
    """The row of a stage, whose cost `measure` gives for a number of rows."""
    taken = in_turn({str(size): partial(measure, size) for size in sizes}, runs)
    costs = (typical(taken[str(sizes[0])]), typical(taken[str(sizes[1])]))
    return row_of(name, sizes, costs), costs


def stage_rows(folder: Path, few: Path, runs: int) -> Iterator[Row]:
    """The stages that are cut in shards."""
    model = folder / "model"
    make_model(model)

    def inputs(size: int) -> Path:
        path = folder / str(size)
        return path if path.is_dir() else grown(few, path, size)

    def score(size: int) -> Cost:
        config = RuleStage(rule="benchmarks.scale:num_characters")
        return stage_cost("score", config, {"candidates": inputs(size) / "candidates"})

    def pair(size: int) -> Cost:
        named = {name: inputs(size) / name for name in ("candidates", "scores")}
        return stage_cost("pair", PairSettings(), named)

    def mix(size: int) -> Cost:
        named = {}
        for judge in ("one", "two"):
            named[f"scores.{judge}"] = inputs(size) / "scores"
            named[f"initial.{judge}"] = few / "scores"
        return stage_cost("mix", MixStage({"one": 1.0, "two": 0.5}), named)

    def reference(size: int) -> Cost:
        named = {"pairs": inputs(size) / "pairs", "model": model}
        return stage_cost("reference", ReferenceStage(max_length=MAX_LENGTH), named)

    measured = (
        ("pair", ROWS, pair),
        ("mix", ROWS, mix),
        ("score", ROWS, score),
        ("reference", REFERENCE_PAIRS, reference),
    )
    for name, sizes, measure in measured:
        row, _ = at_two_sizes(name, sizes, measure, runs)
        yield row


def make_model(folder: Path) -> None:
    """A Llama of one small layer, with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **shape)).save_pretrained(folder)


def dpo_row(folder: Path, few: Path, runs: int) -> Row:
    """What a rank holds of each pair."""

    def measure(size: int) -> Cost:
        path = folder / f"pairs_{size}"
        return cost_in_a_process(rank_cost, path if path.is_dir() else grown(few, path, size))

    row, (small, large) = at_two_sizes("dpo", DPO_PAIRS, measure, runs)
    num_pairs = large.proof["pairs"] - small.proof["pairs"]
    bytes_a_pair = (large.peak_gigabytes - small.peak_gigabytes) * 2**30 / num_pairs
    in_file = large.proof["bytes"] / large.proof["pairs"]
    unit = f"bytes a pair that a rank holds, from {small.proof['pairs']} to {large.proof['pairs']} pairs"
    detail = f"{row.detail}; {in_file:.0f} bytes a pair in the file"
    return Row("scale/dpo", bytes_a_pair, MAX_BYTES_A_PAIR, unit, True, detail)


def rows(runs: int) -> list[Row]:
    """All claims of this topic."""
    with tempfile.TemporaryDirectory(prefix="rlhf_scale_") as name:
        folder = Path(name)
        few = folder / "few"
        make_shards(few)
        # The pairs of a run are made once; whatever came of it is the same the next time.
        driver, _ = at_two_sizes(
            "driver",
            DRIVER_PROMPTS,
            lambda size: driver_cost(make_driver_run(folder / f"run_{size}", size)),
            runs=1,
        )
        return [*stage_rows(folder, few, runs), dpo_row(folder, few, runs), driver]
