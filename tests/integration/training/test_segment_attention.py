"""A packed row in one call of a variable-length kernel: what the kernel is given, on any machine.

A stand-in computes plain attention over the very arguments of the kernel, so that what is proved here is
the metadata. The kernel itself is held against it by `tests/gpu/test_segment_attention_on_gpu.py`.
"""

from __future__ import annotations

import random

import pytest
import torch

from rlhf.training import segment_attention, shared_attention
from rlhf.training.packed import pack, packed_logprobs
from rlhf.training.segment_attention import PromptGroup, segments_of, why_not_one_call
from rlhf.training.shared_attention import share_prompts
from tests.integration.training.test_packed import (
    OF_FAMILY,
    assert_equal,
    of_family,
    one_by_one,
    tokens,
    values_and_gradients,
)

CUDA = torch.device("cuda")


def plain_varlen(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size, enable_gqa=False
):
    """What torch says that `varlen_attn` does, one sequence and one query at a time."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert enable_gqa or key.shape[1] == query.shape[1]
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    value = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
    assert (cu_seq_q[-1], cu_seq_k[-1]) == (len(query), len(key))
    assert (cu_seq_q.diff().max(), cu_seq_k.diff().max()) == (max_q, max_k)
    left, right = window_size
    scale = query.shape[2] ** -0.5 if scale is None else scale
    rows = []
    for number in range(len(cu_seq_q) - 1):
        keys = key[cu_seq_k[number] : cu_seq_k[number + 1]]
        values = value[cu_seq_k[number] : cu_seq_k[number + 1]]
        queries = query[cu_seq_q[number] : cu_seq_q[number + 1]]
        # Aligned at the bottom right.
        ahead = len(keys) - len(queries)
        for place, one in enumerate(queries):
            first = 0 if left < 0 else max(0, place + ahead - left)
            end = place + ahead + right + 1
            weights = (torch.einsum("hd,khd->hk", one, keys[first:end]) * scale).softmax(-1)
            rows.append(torch.einsum("hk,khd->hd", weights, values[first:end]))
    return torch.stack(rows)


@pytest.fixture
def kernel_calls(monkeypatch):
    """How often the stand-in was called, where every row that may goes through the kernel."""
    calls = []

    def counted(*arguments, **named):
        calls.append(named["window_size"])
        return plain_varlen(*arguments, **named)

    def why(device, dtype, head_size, capped, dropout):
        return why_not_one_call(torch.device("cuda"), torch.bfloat16, head_size, capped, dropout)

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(segment_attention, "varlen_attn", counted)
    monkeypatch.setattr(shared_attention, "why_not_one_call", why)
    return calls


def some_groups():
    rng = random.Random(0)
    prompts = [tokens(rng, number) for number in (5, 12, 1)]
    lengths = [(6, 9), (20, 3, 1), (0, 4, 0)]
    return prompts, [[tokens(rng, number) for number in its] for its in lengths]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("model_type", ["llama", "qwen3", "mistral", "phi3", "gemma3_text", "gpt2"])
def test_one_call_equals_the_plain_computation(kernel_calls, model_type, checkpointing):
    model = of_family(model_type, **OF_FAMILY.get(model_type, {})).double()
    model.set_attn_implementation("sdpa")
    prompts, responses = some_groups()
    want = values_and_gradients(model, lambda: one_by_one(model, prompts, responses))
    assert kernel_calls == []
    assert share_prompts(model) == ""
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    got = values_and_gradients(model, lambda: packed_logprobs(model, pack(prompts, responses)))
    assert_equal(got, want, 1e-9)
    # One a layer.
    assert len(kernel_calls) >= 2


def test_a_window_counts_the_token_itself_and_the_kernels_does_not(kernel_calls):
    model = of_family("mistral", sliding_window=7)
    share_prompts(model)
    prompts, responses = some_groups()
    packed_logprobs(model, pack(prompts, responses))
    assert kernel_calls == [(6, 0), (6, 0)]


def test_capped_scores_go_sequence_by_sequence(kernel_calls):
    model = of_family("gemma2", **OF_FAMILY["gemma2"])
    share_prompts(model)
    prompts, responses = some_groups()
    packed_logprobs(model, pack(prompts, responses))
    assert kernel_calls == []


def test_sequences_of_a_row():
    groups = (PromptGroup(2, (2, 1)), PromptGroup(1, (0, 0, 2)))
    segments = segments_of(groups, torch.device("cpu"))
    assert segments.cu_queries_N1.tolist() == [0, 4, 5, 6, 8]
    assert segments.cu_keys_N1.tolist() == [0, 4, 7, 8, 11]
    assert segments.keys_K.tolist() == [0, 1, 2, 3, 0, 1, 4, 5, 5, 6, 7]
    assert (segments.most_queries, segments.most_keys) == (4, 4)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({}, ""),
        ({"head_size": 256}, ""),
        ({"device": torch.device("cpu")}, "no GPU"),
        ({"dtype": torch.float32}, "float32"),
        ({"head_size": 264}, "heads of 264"),
        ({"head_size": 36}, "heads of 36"),
        ({"capped": True}, "caps"),
        ({"dropout": 0.1}, "dropout"),
    ],
)
def test_why_a_row_does_not_go_through_one_call(monkeypatch, changed, why):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    can = {"device": CUDA, "dtype": torch.bfloat16, "head_size": 64, "capped": False, "dropout": 0.0}
    said = why_not_one_call(**(can | changed))
    assert why in said
    assert bool(said) == bool(why)


def test_an_old_gpu_has_no_kernel(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "older" in why_not_one_call(CUDA, torch.float16, 64, capped=False, dropout=0.0)
