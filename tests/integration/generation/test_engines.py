"""Sampling: both engines, the same requests, the same results schema."""

import math
import os
from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf.config.choices import Engine
from rlhf.config.stage_configs import GenerateStage

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"

from rlhf.generation.choose_engine import load_sampler
from rlhf.generation.request import Request, Sampling, seed_of, temperatures_of
from rlhf.generation.transformers_sampler import draw
from tests.tiny import tiny_llama

STOP = 7
"""A token of the tiny vocabulary that a random model often says."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    shape = {
        "hidden_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }  # heads of 32, as vLLM wants on CPU
    return str(tiny_llama(tmp_path_factory.mktemp("policy"), seed=1, **shape))


def settings(engine):
    return GenerateStage(engine=Engine(engine), max_prompt_tokens=64, max_new_tokens=24)


@pytest.fixture(scope="module", params=["transformers", "vllm"])
def sampler(request, model):
    return load_sampler(settings(request.param), model, 0, 64)


def requests(num=12, temperature=1.0, offset=0):
    prompts = [[0, 5 + i, 30 + i, 60 + 2 * i][: 2 + i % 3] for i in range(num)]
    return [Request(ids, temperature, seed_of(1, 0, str(i), offset)) for i, ids in enumerate(prompts)]


def sampling(max_new_tokens=24, stops=(STOP,), **rest):
    return Sampling(max_new_tokens, rest.get("top_p", 1.0), rest.get("top_k", 0), list(stops))


def test_a_rerun_repeats_and_another_seed_differs(sampler):
    first = sampler.sample(requests(), sampling())
    assert sampler.sample(requests(), sampling()) == first
    other = sampler.sample(requests(offset=1), sampling())
    assert [c.token_ids for c in other] != [c.token_ids for c in first]


def test_a_response_does_not_depend_on_what_else_is_asked(sampler):
    together = sampler.sample(requests(), sampling())
    parts = [*sampler.sample(requests()[:5], sampling()), *sampler.sample(requests()[5:], sampling())]
    assert [c.token_ids for c in parts] == [c.token_ids for c in together]


def test_finish_reason_and_terminator(sampler):
    stops = list(range(0, 400, 6))
    candidates = sampler.sample(requests(40), sampling(stops=stops))
    reasons = Counter(candidate.finish_reason for candidate in candidates)
    assert reasons["stop"] > 5
    for candidate in candidates:
        inside = [token for token in candidate.token_ids[:-1] if token in stops]
        assert inside == []
        if candidate.truncated:
            assert len(candidate.token_ids) == 24 and candidate.token_ids[-1] not in stops
        else:
            assert candidate.token_ids[-1] in stops


def test_a_response_that_stops_at_the_last_token_is_finished(sampler):
    candidates = sampler.sample(requests(), sampling(max_new_tokens=1, stops=range(400)))
    assert {c.finish_reason for c in candidates if c.token_ids[-1] < 400} == {"stop"}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprob_is_the_models_at_temperature_one(sampler, model, temperature):
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for request, candidate in zip(
        requests(6, temperature), sampler.sample(requests(6, temperature), sampling()), strict=True
    ):
        ids = torch.tensor([request.prompt_token_ids + candidate.token_ids])
        with torch.no_grad():
            logprobs = network(ids).logits.log_softmax(-1)[0, len(request.prompt_token_ids) - 1 : -1]
        expected = logprobs.gather(-1, torch.tensor(candidate.token_ids)[:, None]).sum()
        assert candidate.logprob == pytest.approx(float(expected), abs=2e-3)


def test_temperature_zero_is_greedy(sampler, model):
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    request = requests(1, temperature=0.0)[0]
    [candidate] = sampler.sample([request], sampling(max_new_tokens=8))
    ids = list(request.prompt_token_ids)
    for token in candidate.token_ids:
        with torch.no_grad():
            assert int(network(torch.tensor([ids])).logits[0, -1].argmax()) == token
        ids.append(token)


def test_samples_follow_the_models_distribution(sampler, model):
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        expected = network(torch.tensor([[0, 5]])).logits[0, -1].softmax(-1)
    many = [Request([0, 5], 1.0, seed_of(2, 0, "p", i)) for i in range(1500)]
    drawn = Counter(c.token_ids[0] for c in sampler.sample(many, sampling(max_new_tokens=1)))
    for token in expected.topk(5).indices.tolist():
        p = float(expected[token])
        assert abs(drawn[token] / 1500 - p) < 4.5 * math.sqrt(p * (1 - p) / 1500) + 1e-3


def test_top_k_one_is_greedy_and_top_p_keeps_the_nucleus():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).repeat(200, 1)
    streams = [torch.Generator().manual_seed(i) for i in range(200)]
    ones = torch.ones(200, 1)
    assert set(draw(logits, ones, sampling(top_k=1), streams).tolist()) == {0}
    assert set(draw(logits, ones, sampling(top_p=0.8), streams).tolist()) == {0, 1}
    assert set(draw(logits, ones, sampling(), streams).tolist()) == {0, 1, 2, 3}


def test_seeds_differ_by_run_iteration_prompt_and_sample():
    seeds = {
        seed_of(*key)
        for key in [(1, 0, "a", 0), (2, 0, "a", 0), (1, 1, "a", 0), (1, 0, "b", 0), (1, 0, "a", 1)]
    }
    assert len(seeds) == 5
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_half_of_the_responses_at_each_temperature():
    assert temperatures_of(8, [1.0, 0.7]) == [1.0] * 4 + [0.7] * 4
    assert temperatures_of(4, [1.0]) == [1.0] * 4
