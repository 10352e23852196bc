"""What can be said of how responses are sampled before anything else is looked at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlhf.config.choices import Engine
from rlhf.config.fields import NOT_NEGATIVE
from rlhf.config.schema import Config

_SAMPLED_AS_TRAINED = "responses would come from another model than the one that is trained. Leave it out."
_ONE_MODEL = "all stages read one folder. Leave it out; see model.path and model.revision."
_SAMPLING = "generate.temperatures, top_p, top_k and stop_token_ids say how to sample. Leave it out."
_GPUS = "each worker has generate.tensor_parallel_size GPUs. Set that."
_VLLM_ARGS = {
    "dtype": "set model.dtype, which holds for training too.",
    "seed": "set seed; every response has a seed of its own, made of it.",
    "tensor_parallel_size": "set generate.tensor_parallel_size, by which workers get their GPUs.",
    "pipeline_parallel_size": _GPUS,
    "data_parallel_size": _GPUS,
    "gpu_memory_utilization": "set generate.gpu_memory_utilization.",
    "quantization": _SAMPLED_AS_TRAINED,
    "hf_overrides": _SAMPLED_AS_TRAINED,
    "tokenizer": _ONE_MODEL,
    "tokenizer_revision": _ONE_MODEL,
    "revision": _ONE_MODEL,
    "code_revision": _ONE_MODEL,
    "config_format": _ONE_MODEL,
    "hf_config_path": _ONE_MODEL,
    "generation_config": _SAMPLING,
    "override_generation_config": _SAMPLING,
    "logprobs_mode": "records hold log-probabilities at temperature 1. Leave it out.",
    "runner": "the policy generates. Leave it out.",
    "convert": "the policy generates. Leave it out.",
    "task": "the policy generates. Leave it out.",
}
"""Arguments of vLLM that contradict what this package gives it, and what to do in place of them."""


def sampling_problems(cfg: Config) -> Iterator[str]:
    """What cannot be sampled as `generate` says, and what vLLM cannot be told."""
    for key in ("model", "trust_remote_code", "load_format"):
        # Passed on like this they would go round what is checked of the section `model`.
        if key in cfg.generate.vllm_args:
            yield (
                f"generate.vllm_args.{key}: not here; only safetensors are read. See model.path, "
                "model.trust_remote_code."
            )
    yield from _vllm_args(cfg.generate.vllm_args)
    yield from _only_vllm(cfg)
    temperatures = cfg.generate.temperatures
    n = cfg.generate.n
    if not temperatures or not all(map(NOT_NEGATIVE.holds, temperatures)):
        yield (
            f"generate.temperatures={temperatures}: needs finite numbers, none negative; the "
            "paper has [1.0,0.7]."
        )
        return
    num_temperatures = len(temperatures)
    num_greedy = n // num_temperatures * sum(map(_is_greedy, temperatures))
    if n % num_temperatures:
        yield (
            f"generate.n={n}: cannot be shared out evenly over {num_temperatures} temperatures "
            f"{temperatures}. Use a multiple of {num_temperatures}, or other temperatures."
        )
    elif num_greedy > 1:
        yield (
            f"generate.temperatures={temperatures} with n={n}: at temperature 0 the {num_greedy} responses "
            "of one prompt are all the same. Use a temperature above 0, or fewer responses."
        )
    elif cfg.generate.top_k == 1 and n > 1:
        yield (
            f"generate.top_k=1 with generate.n={n}: the {n} responses of one prompt are all the same. Set "
            "generate.top_k=0 (off) or more than 1, or generate.n=1 where one response is wanted."
        )


def _is_greedy(temperature: float) -> bool:
    """Whether every sample is the likeliest text: at 0, and so near to it that vLLM takes it for 0."""
    return temperature < 1e-5


def evaluation_problems(cfg: Config) -> Iterator[str]:
    """Whether a held-out prompt's samples can differ."""
    n = cfg.evaluate.n
    temperature = cfg.evaluate.temperature
    if n < 2:
        return
    same = f"the {n} responses of one prompt are all the same, and would count as so many"
    if NOT_NEGATIVE.holds(temperature) and _is_greedy(temperature):
        yield (
            f"evaluate.temperature={temperature} with evaluate.n={n}: at temperature 0 {same}. Set "
            "evaluate.n=1, or a temperature above 0."
        )
    elif cfg.generate.top_k == 1:
        yield (
            f"evaluate.n={n} with generate.top_k=1, which holds for the evaluation too: {same}. Set "
            "evaluate.n=1, or generate.top_k=0 (off) or more than 1."
        )


def _only_vllm(cfg: Config) -> Iterator[str]:
    """Settings that mean something to vLLM alone."""
    engine = cfg.generate.engine
    if cfg.generate.batch_invariant and engine is not Engine.vllm:
        # Not with `auto` either: what is promised must not depend on what can be loaded.
        yield (
            f"generate.batch_invariant=true: only with generate.engine=vllm, not {engine.value}. Set that, "
            "or leave it out."
        )
    if cfg.generate.overlap_shards and engine is Engine.transformers:
        yield (
            "generate.overlap_shards=true: only vLLM takes requests while it works on others. Set "
            "generate.engine=vllm, or leave it out."
        )


def _vllm_args(arguments: dict[str, Any]) -> Iterator[str]:
    for key, advice in _VLLM_ARGS.items():
        if key in arguments:
            yield f"generate.vllm_args.{key}={arguments[key]}: {advice}"
    for key in ("max_model_len", "max_num_batched_tokens", "max_num_seqs"):
        value = arguments.get(key)
        # vLLM takes -1 for what memory decides.
        is_count = type(value) is int and (value > 0 or value == -1)
        if value is not None and not is_count:
            yield f"generate.vllm_args.{key}={value}: must be a whole number above 0."


def length_problems(cfg: Config) -> Iterator[str]:
    """Whether prompt and response have room; no concern of `rlhf.generate`, whose responses are shorter
    then.
    """
    length = cfg.generate.vllm_args.get("max_model_len")
    max_new_tokens = cfg.generate.max_new_tokens
    if type(length) is not int or cfg.generate.engine is Engine.transformers:
        return
    if 0 < length <= max_new_tokens:
        yield (
            f"generate.vllm_args.max_model_len={length}: has no room for generate.max_new_tokens="
            f"{max_new_tokens} and a prompt. Raise it, or set generate.max_new_tokens below {length}."
        )
