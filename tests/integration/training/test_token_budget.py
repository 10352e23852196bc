"""The budget of tokens: estimated, backed off when memory runs out, remembered."""

from __future__ import annotations

import contextlib
import json
import math
import resource
from dataclasses import replace

import pytest
import torch

from rlhf.config.schema import ReferenceConfig
from rlhf.config.training import DpoConfig
from rlhf.errors import ConfigError, SmallerBatches
from rlhf.training import token_budget
from rlhf.training.memory_forecast import Memory, fitting
from rlhf.training.token_budget import FOUND, TokenBudget, find_budget, is_out_of_memory
from tests.stage_runner import FakeWorker, make_job, run_here, run_ranks
from tests.tiny import random_pairs, tiny_llama, write_pairs

DEVICE = token_budget.device_text(False)
MAX_LENGTH = 50


def memory_of(tokens, base=10.0):
    return Memory(base, weights=1, gradients=1, adam=1, buffers=0, activations=tokens, logits=0, step=0)


@pytest.mark.parametrize(
    ("free", "smallest", "expected"),
    [
        (math.inf, 100, 2048),
        ((2048 + 3) / 0.85, 100, 2048),
        ((2048 + 2) / 0.85, 100, 1024),
        (1000, 100, 512),
        (1000, 700, 700),
        (0, 100, 100),
        (0, 5000, 2048),
    ],
)
def test_the_most_tokens_that_fit(free, smallest, expected):
    # What the process holds already is in `base`, and no longer free.
    assert fitting(2048, smallest, memory_of, free) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


def test_torch_says_so_itself():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert is_out_of_memory(caught.value)


def budget_of(tmp_path, **values):
    told = {"section": "dpo", "folder": tmp_path, "device": DEVICE, "batch_tokens": 1000, "smallest": 300}
    return TokenBudget(**told | values)


def run_out(budget):
    with budget.watched("in step 3 on rank 1"):
        raise torch.OutOfMemoryError("Tried to allocate 7 GiB\nmore")


def test_half_is_left_for_the_next_attempt(tmp_path):
    with pytest.raises(SmallerBatches, match=r"in step 3 on rank 1 .*batch_tokens=1000: going on with 500"):
        run_out(budget_of(tmp_path))
    assert json.loads((tmp_path / FOUND).read_text())["batch_tokens"] == 500


def test_not_less_than_the_longest(tmp_path):
    with pytest.raises(SmallerBatches, match="going on with 700"):
        run_out(budget_of(tmp_path, smallest=700))
    with pytest.raises(ConfigError, match=r"cannot be smaller.*dpo.lora.rank=32"):
        run_out(budget_of(tmp_path, batch_tokens=700, smallest=700))


def test_a_persons_own_number_is_an_error_with_every_way_out(tmp_path):
    with pytest.raises(ConfigError) as caught:
        run_out(budget_of(tmp_path, said=1000))
    text = str(caught.value)
    for part in ("dpo.batch_tokens=1000", "in step 3 on rank 1", DEVICE, "null", "Tried to allocate 7 GiB"):
        assert part in text
    assert "more\n" not in text
    assert not (tmp_path / FOUND).exists()


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(KeyError), budget_of(tmp_path).watched("in step 1"):
        raise KeyError("x")


def job_of(tmp_path, found=None, **config):
    job = make_job("dpo", DpoConfig(), {}, tmp_path, **config)
    return replace(job, compute=replace(job.compute, found_budget=found))


@pytest.mark.parametrize(
    ("left", "found", "expected", "ran_out"),
    [
        (None, None, 1536, False),
        ({"batch_tokens": 512}, None, 512, True),
        (None, {"batch_tokens": 256}, 256, True),
        ({"batch_tokens": 512}, {"batch_tokens": 256}, 256, True),
        # Of another machine, or where memory was only thought to be short.
        (None, {"batch_tokens": 256, "device": "cpu, 1 GB"}, 1536, False),
        (None, {"batch_tokens": 256, "ran_out": False}, 1536, False),
    ],
)
def test_what_was_found_is_where_the_next_attempt_begins(tmp_path, left, found, expected, ran_out):
    whole = {"device": DEVICE, "ran_out": True}
    if left is not None:
        (tmp_path / FOUND).write_text(json.dumps(whole | left))
    job = job_of(tmp_path, found and whole | found)
    budget = find_budget(job, FakeWorker(), None, 100)
    assert (budget.batch_tokens, budget.ran_out) == (expected, ran_out)
    assert budget.record() == {"batch_tokens": expected, "device": DEVICE, "ran_out": ran_out}


def test_a_persons_own_number_is_taken_as_it_is(tmp_path):
    (tmp_path / FOUND).write_text(json.dumps({"batch_tokens": 1, "device": DEVICE, "ran_out": True}))
    budget = find_budget(job_of(tmp_path, batch_tokens=9999), FakeWorker(), lambda tokens: 1 / 0, 100)
    assert (budget.batch_tokens, budget.said) == (9999, 9999)


def test_free_memory_is_shared_and_limited(monkeypatch):
    whole = token_budget.free_memory(False, 1)
    assert 0 < whole < 2**50
    assert token_budget.free_memory(False, 4) < whole
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    own = token_budget._status(token_budget.Path("/proc/self/status"))["VmData"]
    resource.setrlimit(resource.RLIMIT_DATA, (int(own) + 2**30, hard))
    try:
        assert token_budget.free_memory(False, 1) < 2**30 + 2**26
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    policy = tiny_llama(folder / "policy", 1)
    pairs = write_pairs(folder / "pairs", random_pairs(21), 13)
    job = make_job(
        "reference",
        ReferenceConfig(),
        {"model": policy, "pairs": pairs},
        folder / "reference",
        max_length=MAX_LENGTH,
    )
    outcome = run_here(job)
    assert outcome.metrics["budget"] == {"batch_tokens": 1536, "device": DEVICE, "ran_out": False}
    return folder


def dpo_job(world, out, **config):
    section = DpoConfig(
        learning_rate=1e-3, batch_size=8, max_length=MAX_LENGTH, gradient_checkpointing=False, save_steps=1
    )
    inputs = {"policy": world / "policy", "pairs": world / "pairs", "reference": world / "reference"}
    return make_job("dpo", section, inputs, out, **config)


RUNS_OUT = """
import torch
from rlhf.training import dpo
plain = dpo.batch_logprobs
calls = []
def batch_logprobs(model, batch):
    calls.append(1)
    if rank == 0 and batch.input_ids_1_T.shape[1] > 130 and len(calls) > 1:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return plain(model, batch)
dpo.batch_logprobs = batch_logprobs
"""
"""No room for more than 130 tokens from the second pass on, on one rank alone."""


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_an_attempt_with_half_of_it_repeats_the_same_steps(world, tmp_path, zero_stage):
    compute = {"zero_stage": zero_stage}
    whole = dpo_job(world, tmp_path / "whole", compute=compute)
    run_ranks(whole, 2)
    # As if the iteration before had found it.
    found = {"batch_tokens": 512, "device": DEVICE, "ran_out": True}
    job = dpo_job(world, tmp_path / "out", compute=compute | {"found_budget": found})
    budgets = []
    for _ in range(3):
        try:
            outcome = run_ranks(job, 2, RUNS_OUT)
            break
        except AssertionError as error:
            if "SmallerBatches" not in str(error):
                raise
        budgets.append(json.loads((tmp_path / "out" / FOUND).read_text())["batch_tokens"])
    assert budgets == [256, 128]
    assert outcome.metrics["budget"] == {"batch_tokens": 128, "device": DEVICE, "ran_out": True}
    got = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    want = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    assert len(got) == len(want) == 6
    for line, expected in zip(got, want, strict=True):
        line, expected = json.loads(line), json.loads(expected)
        assert line["step"] == expected["step"]
        assert line["loss"] == pytest.approx(expected["loss"], abs=2e-6)
        assert line["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)


LIMITED = """
import resource
from pathlib import Path
from rlhf.training import dpo, token_budget
token_budget.free_memory = lambda *rest: float("inf")
plain = dpo.batch_logprobs
limits = []
def batch_logprobs(model, batch):
    if not limits:
        limits.append(int(token_budget._status(Path("/proc/self/status"))["VmData"]) + 400_000_000)
        resource.setrlimit(resource.RLIMIT_DATA, (limits[0], resource.RLIM_INFINITY))
    return plain(model, batch)
dpo.batch_logprobs = batch_logprobs
"""
"""Passes get 400 MB and not a byte more, and the estimate does not know it."""


def test_memory_that_really_runs_out(tmp_path):
    # A wide model: about 270 kB of activations a token, with few weights.
    policy = tiny_llama(tmp_path / "policy", 1, intermediate_size=8192)
    pairs = write_pairs(tmp_path / "pairs", random_pairs(24, prompt=(20, 30), response=(35, 40)))
    inputs = {"model": policy, "pairs": pairs}
    run_here(make_job("reference", ReferenceConfig(), inputs, tmp_path / "reference", max_length=70))
    section = DpoConfig(learning_rate=1e-3, batch_size=24, max_length=70, gradient_checkpointing=False)
    inputs = {"policy": policy, "pairs": pairs, "reference": tmp_path / "reference"}
    job = make_job("dpo", section, inputs, tmp_path / "out")
    with pytest.raises(AssertionError, match=r"SmallerBatches: memory ran out in step 1 on rank 0"):
        run_ranks(job, 1, LIMITED)
    # With Adam's state, from step 2 on, and what has become of the memory, half of it may be too much too.
    for _ in range(3):
        with contextlib.suppress(AssertionError):
            outcome = run_ranks(job, 1, LIMITED)
            break
    assert outcome.metrics["budget"]["batch_tokens"] in (192, 384, 768)
    assert outcome.metrics["budget"]["ran_out"]
    assert [json.loads(line)["step"] for line in (tmp_path / "out" / "metrics.jsonl").open()] == [1, 2]
    # A person's own number is no trial.
    job = make_job("dpo", section, inputs, tmp_path / "said", batch_tokens=2500)
    with pytest.raises(
        AssertionError, match=r"dpo.batch_tokens=2500: memory ran out in step 1 .*set it to null"
    ):
        run_ranks(job, 1, LIMITED)
