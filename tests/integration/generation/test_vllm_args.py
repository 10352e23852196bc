"""What `generate.vllm_args` may say: limits of vLLM's own count, and what contradicts other settings is
refused."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"

from rlhf.config.choices import Engine
from rlhf.config.limits import problems
from rlhf.config.schema import Config, GenerateConfig
from rlhf.config.stage_configs import GenerateStage
from rlhf.data.records import prompt_id
from rlhf.data.schemas import PROMPT_SCHEMA
from rlhf.data.shards import read_all_rows, shard_name, sum_counts, write_shard
from rlhf.errors import ConfigError
from rlhf.generation.vllm_args import prompt_limit
from tests.stage_runner import make_job, run_here
from tests.tiny import tiny_llama

SHAPE = {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # heads of 32, as vLLM wants on CPU


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """With a generation config that transformers refuses, and its weights a second time in another format."""
    folder = tiny_llama(tmp_path_factory.mktemp("policy"), seed=1, **SHAPE)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 401, "max_new_tokens": -1}))
    save_file({"other": torch.zeros(3)}, folder / "consolidated.safetensors")
    (folder / "params.json").write_text("{}")
    return folder


def generate(folder, policy, **section):
    (folder / "prompts").mkdir()
    rows = []
    for text in ("Name a colour", "Repeat: " + " ".join(map(str, range(120)))):
        messages = [{"role": "user", "content": text}]
        rows.append({"id": prompt_id(messages), "messages": messages})
    write_shard(folder / "prompts" / shard_name(0), PROMPT_SCHEMA, rows)
    inputs = {"policy": policy, "prompts": folder / "prompts"}
    section = {"n": 2, "temperatures": [1.0], "max_new_tokens": 8} | section
    run_here(make_job("generate", GenerateConfig(), inputs, folder / "out", **section))
    return list(read_all_rows(folder / "out")), sum_counts(folder / "out")


def test_max_model_len_limits_prompts(tmp_path, policy):
    rows, counts = generate(tmp_path, policy, engine="vllm", vllm_args={"max_model_len": 100})
    assert counts["dropped/prompt_too_long"] == 1 and len(rows) == 1
    assert all(candidate["token_ids"] for candidate in rows[0]["candidates"])


def test_what_leaves_no_room_is_refused(tmp_path, policy):
    with pytest.raises(ConfigError, match=r"max_model_len=8: has no room for generate\.max_new_tokens=8"):
        generate(tmp_path, policy, engine="vllm", vllm_args={"max_model_len": 8})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"enable_chunked_prefill": True}, "enable_chunked_prefill=true: on a CPU"),
        ({"max_num_batched_tokens": 600}, "max_num_batched_tokens=600: one forward pass.*1008 tokens"),
        ({"max_num_batched_tokens": 50, "max_model_len": 100}, "max_num_batched_tokens=50.*100 tokens"),
        ({"nonsense": 1}, "vLLM refuses it: .*nonsense"),
    ],
)
def test_limits_that_vllm_cannot_keep_on_a_cpu_are_refused(tmp_path, policy, arguments, said):
    with pytest.raises(ConfigError, match=said):
        generate(tmp_path, policy, engine="vllm", vllm_args=arguments)


def settings(engine=Engine.vllm, max_new_tokens=10, **arguments):
    return GenerateStage(engine=engine, max_new_tokens=max_new_tokens, vllm_args=arguments)


def test_the_limit_of_a_prompt():
    assert prompt_limit(settings(), 100) == 100
    assert prompt_limit(settings(max_model_len=None), 100) == 100
    assert prompt_limit(settings(max_model_len=-1), 100) == 100
    assert prompt_limit(settings(max_model_len=50), 100) == 40
    assert prompt_limit(settings(max_model_len=500), 100) == 100
    assert prompt_limit(settings(Engine.auto, max_model_len=50), 100) == 40
    assert prompt_limit(settings(Engine.transformers, max_model_len=50), 100) == 100


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"dtype": "float16"}, "set model.dtype"),
        ({"seed": 3}, "set seed"),
        ({"quantization": "fp8"}, "another model than the one that is trained"),
        ({"hf_overrides": {}}, "another model than the one that is trained"),
        ({"tensor_parallel_size": 2}, "generate.tensor_parallel_size"),
        ({"pipeline_parallel_size": 2}, "generate.tensor_parallel_size"),
        ({"gpu_memory_utilization": 0.5}, "generate.gpu_memory_utilization"),
        ({"generation_config": "auto"}, "how to sample"),
        ({"tokenizer": "other"}, "one folder"),
        ({"logprobs_mode": "processed_logprobs"}, "temperature 1"),
        ({"max_model_len": "1k"}, "whole number above 0"),
        ({"max_model_len": 0}, "whole number above 0"),
        ({"max_num_batched_tokens": 1.5}, "whole number above 0"),
        ({"max_model_len": 2048}, "no room for generate.max_new_tokens=2048"),
    ],
)
def test_what_contradicts_other_settings_is_refused_with_the_config(arguments, said):
    cfg = Config()
    cfg.generate.vllm_args = arguments
    (problem,) = problems(cfg)
    assert problem.startswith(f"generate.vllm_args.{next(iter(arguments))}=") and said in problem


def test_what_contradicts_nothing_is_passed_on():
    cfg = Config()
    cfg.generate.vllm_args = {
        "max_model_len": 4000,
        "max_num_seqs": 8,
        "enforce_eager": True,
        "kv_cache_dtype": "auto",
    }
    assert problems(cfg) == []
