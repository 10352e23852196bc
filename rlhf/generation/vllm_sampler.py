"""Sampling with vLLM, in this process."""

from __future__ import annotations

from typing import Any

import torch

from rlhf.config.stage_configs import GenerateStage
from rlhf.data.records import Candidate
from rlhf.errors import ConfigError, ModelError
from rlhf.generation.request import Request, Sampling
from rlhf.models.folder import engine_alive, load_config, saved_dtype

_CPU_MAX_SEQS = 512


class VllmSampler:
    """One vLLM engine over this worker's GPUs, or the CPU.

    Every response is a request of its own with its own seed; vLLM's prefix cache makes the shared prompt cheap.
    """

    def __init__(self, config: GenerateStage, model: str, seed: int, max_prompt_tokens: int) -> None:
        try:
            from vllm import LLM
        except ImportError as error:
            raise ConfigError(
                f"generate.engine=vllm, but vLLM cannot be imported here ({error}). Install it (README, set-up), or "
                "use generate.engine=transformers."
            ) from error
        self.note = ""
        if not torch.cuda.is_available():
            _check_head_size(model, config.trust_remote_code)
        limit = max_prompt_tokens + config.max_new_tokens
        arguments: dict[str, Any] = {
            "model": model,
            "dtype": saved_dtype(model, config.dtype),
            "seed": seed % 2**31,
            "max_model_len": limit,
            "load_format": "safetensors",
            "trust_remote_code": config.trust_remote_code,
            "generation_config": "vllm",  # our sampling parameters, not the model's defaults
            "disable_log_stats": True,
        }
        if torch.cuda.is_available():
            arguments |= {
                "tensor_parallel_size": config.tensor_parallel_size,
                "gpu_memory_utilization": config.gpu_memory_utilization,
            }
        else:
            # A per-request seed on a CPU dies when a prefill is chunked: keep every prefill whole.
            arguments |= {
                "enforce_eager": True,
                "enable_chunked_prefill": False,
                "max_num_seqs": _CPU_MAX_SEQS,
                "max_num_batched_tokens": max(limit, 8192),
            }
        try:
            self._llm = LLM(**arguments | config.vllm_args)
        except TypeError as error:
            raise ConfigError(f"generate.vllm_args={config.vllm_args}: vLLM refuses it: {error}") from error
        except ValueError as error:
            raise ModelError(
                f"{model}: vLLM cannot load it: {error}. Change generate.max_prompt_tokens or generate.max_new_tokens "
                "if it is about length, or use generate.engine=transformers."
            ) from error

    def sample(self, requests: list[Request], sampling: Sampling) -> list[Candidate]:
        """One candidate per request, in order (see `rlhf.generation.request.Sampler`)."""
        from vllm import SamplingParams

        parameters = [
            SamplingParams(
                temperature=request.temperature,
                seed=request.seed,
                max_tokens=sampling.max_new_tokens,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                stop_token_ids=sampling.stop_token_ids,
                logprobs=0,
                detokenize=False,
                ignore_eos=True,  # our list of terminators is the whole list
            )
            for request in requests
        ]
        prompts: list[Any] = [{"prompt_token_ids": request.prompt_token_ids} for request in requests]
        with engine_alive():
            outputs = self._llm.generate(prompts, parameters, use_tqdm=False)
        assert len(outputs) == len(requests), "vLLM answers every request"
        return [_candidate(output.outputs[0], request) for output, request in zip(outputs, requests, strict=True)]


def _check_head_size(model: str, trust_remote_code: bool) -> None:
    """vLLM on a CPU would find out at the first token."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    config = load_config(model, trust_remote_code).get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else None)
    sizes = CPUAttentionBackend.get_supported_head_sizes()
    if size is not None and size not in sizes:
        raise ModelError(
            f"{model}: its attention heads have size {size}, and vLLM on a CPU takes {', '.join(map(str, sizes))}. Use "
            "generate.engine=transformers, or a GPU."
        )


def _candidate(completion: Any, request: Request) -> Candidate:
    return Candidate(
        token_ids=list(completion.token_ids),
        text="",
        finish_reason="stop" if completion.finish_reason == "stop" else "length",
        logprob=float(completion.cumulative_logprob),
        seed=request.seed,
        temperature=request.temperature,
    )
