"""vLLM's cache on a CPU: room for what can run at once, and no more; the candidates are the same."""

import inspect
import os

import pytest

from rlhf.config.stage_configs import GenerateStage
from tests.tiny import tiny_llama

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"

from vllm.v1.core import kv_cache_utils

from rlhf.generation import vllm_sampler
from rlhf.generation.choose_engine import load_sampler
from rlhf.generation.request import Request, Sampling

SAMPLING = Sampling(max_new_tokens=16, top_p=1.0, top_k=0, stop_token_ids=[])
MAX_SEQUENCES = 8
MAX_PROMPT_TOKENS = 200


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    shape = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    return tiny_llama(tmp_path_factory.mktemp("policy"), seed=1, **shape)


def sampled(model, **vllm_args):
    """The candidates of more requests than run at once, with prompts of several blocks, and the blocks."""
    settings = GenerateStage(
        max_prompt_tokens=MAX_PROMPT_TOKENS,
        max_new_tokens=SAMPLING.max_new_tokens,
        vllm_args={"max_num_seqs": MAX_SEQUENCES} | vllm_args,
    )
    sampler = load_sampler(settings, str(model), 0, MAX_PROMPT_TOKENS)
    requests = []
    for number in range(6):
        prompt = [(5 + 7 * number + 3 * place) % 300 for place in range(30 + 34 * number)]
        requests += [Request(prompt, 1.0, 100 * number + sample) for sample in range(4)]
    cache = sampler.engine.llm_engine.vllm_config.cache_config
    return sampler.sample(requests, SAMPLING), cache.num_gpu_blocks, cache.block_size


def test_the_cache_has_room_for_what_can_run_at_once(model, monkeypatch):
    # An engine of another test of this process may have bounded it already.
    unbounded = inspect.unwrap(kv_cache_utils.get_kv_cache_config_from_groups)
    monkeypatch.setattr(kv_cache_utils, "get_kv_cache_config_from_groups", unbounded)
    with monkeypatch.context() as patch:
        patch.setattr(vllm_sampler, "_leave_out_idle_blocks", lambda: None)
        all_of_it, num_all, _ = sampled(model)
    candidates, num_blocks, block_size = sampled(model)
    assert candidates == all_of_it
    of_one = -(-(MAX_PROMPT_TOKENS + SAMPLING.max_new_tokens) // block_size)
    # One is vLLM's own.
    assert num_blocks == MAX_SEQUENCES * of_one + 1 < num_all
    # The setting stays the most, and who asks for a number of blocks gets it.
    assert sampled(model, max_num_seqs=20_000, max_num_batched_tokens=20_000)[1] == num_all
    assert sampled(model, num_gpu_blocks_override=100)[1] == 100
