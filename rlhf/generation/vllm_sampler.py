"""Sampling with vLLM, in this process."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from rlhf.config.stage_configs import GenerateStage
from rlhf.data.records import Candidate
from rlhf.errors import ConfigError, ModelError
from rlhf.generation.request import Request, Sampling, ShardOfRequests
from rlhf.generation.vllm_args import check_batch_invariant, check_batching
from rlhf.models.engine_folder import EngineFolder, import_classes
from rlhf.models.folder import engine_alive, load_config
from rlhf.models.weight_files import saved_dtype

_CPU_MAX_SEQS = 512
"""Responses sampled together on a CPU: twice what vLLM 0.32 takes by itself."""

_CPU_BATCHED_TOKENS = 8192
"""Tokens of one forward pass on a CPU, unless one prompt and response have more."""

_BATCH_INVARIANT_CAPABILITY = (8, 0)
"""Of a GPU, at least, for vLLM's batch-invariant mode (its documentation of 0.32)."""


class VllmSampler:
    """One vLLM engine over this worker's GPUs, or the CPU.

    Every response is a request of its own with its own seed; vLLM's prefix cache makes the shared
    prompt cheap.
    """

    def __init__(self, config: GenerateStage, model: str, seed: int, max_prompt_tokens: int) -> None:
        try:
            from vllm import LLM
        except ImportError as error:
            raise ConfigError(
                f"generate.engine=vllm, but vLLM cannot be imported here ({error}). Install it "
                "(README, set-up), or use generate.engine=transformers."
            ) from error
        self.note = ""
        if not torch.cuda.is_available():
            _check_head_size(model, config.trust_remote_code)
            _leave_out_ranks()
            _leave_out_idle_blocks()
        check_batch_invariant(config, torch.cuda.is_available())
        if config.batch_invariant:
            _make_batch_invariant()
        limit = max_prompt_tokens + config.max_new_tokens
        # Kept for as long as the engine is: links into the model's folder may end with it.
        self._folder = EngineFolder(model)
        import_classes(self._folder.path)
        arguments: dict[str, Any] = {
            "model": self._folder.path,
            "dtype": saved_dtype(model, config.dtype),
            # A config's seed may have 32 bits; 31 are what the seeds of requests have too.
            "seed": seed % 2**31,
            "max_model_len": limit,
            # Never pickled weights, which can run code when loaded.
            "load_format": "safetensors",
            "trust_remote_code": config.trust_remote_code,
            # Our sampling parameters, not the model's defaults.
            "generation_config": "vllm",
            "disable_log_stats": True,
        }
        if torch.cuda.is_available():
            arguments["tensor_parallel_size"] = config.tensor_parallel_size
            arguments["gpu_memory_utilization"] = config.gpu_memory_utilization
        else:
            # A per-request seed on a CPU dies when a prefill is chunked: keep every prefill whole.
            arguments["enforce_eager"] = True
            arguments["enable_chunked_prefill"] = False
            arguments["max_num_seqs"] = _CPU_MAX_SEQS
            arguments["max_num_batched_tokens"] = max(limit, _CPU_BATCHED_TOKENS)
        # Last, so that who knows vLLM better can change it; what must not change is refused with the config.
        arguments |= config.vllm_args
        check_batching(arguments, torch.cuda.is_available())
        try:
            self.engine = LLM(**arguments)
        except TypeError as error:
            raise ConfigError(f"generate.vllm_args={config.vllm_args}: vLLM refuses it: {error}") from error
        except ValueError as error:
            raise ModelError(
                f"{model}: vLLM cannot load it: {error}. Change generate.max_prompt_tokens or "
                "generate.max_new_tokens if it is about length, or use "
                "generate.engine=transformers."
            ) from error
        overlaps = config.overlap_shards
        if overlaps is None:
            overlaps = torch.cuda.is_available()
        max_num_seqs = int(self.engine.llm_engine.vllm_config.scheduler_config.max_num_seqs)
        self.enough = max_num_seqs if overlaps else 1
        """Unfinished requests that the engine must have; with fewer, the next shard is asked for."""

    def sample(self, requests: list[Request], sampling: Sampling) -> list[Candidate]:
        """One candidate per request, in order (see `rlhf.generation.request.Sampler`)."""
        [(_, candidates)] = self.sample_shards([(0, requests)], sampling)
        return candidates

    def sample_shards(
        self, shards: Iterable[ShardOfRequests | None], sampling: Sampling
    ) -> Iterator[tuple[int, list[Candidate]]]:
        """The candidates of each shard (see `rlhf.generation.request.Sampler`).

        With `generate.overlap_shards` the next shard's requests enter as soon as fewer are left than run side
        by side, so that the engine is full while the longest responses of a shard are finished.
        """
        source = iter(shards)
        in_hand: dict[int, _Unfinished] = {}
        has_ended = False
        is_told_to_wait = False
        while in_hand or not has_ended:
            while not has_ended and not is_told_to_wait and self._has_room():
                try:
                    shard = next(source)
                except StopIteration:
                    has_ended = True
                    continue
                if shard is None:
                    assert in_hand, "who has nothing in hand is not told to wait"
                    is_told_to_wait = True
                    continue
                index, requests = shard
                if requests:
                    self._add(index, requests, sampling)
                    in_hand[index] = _Unfinished(requests)
                else:
                    yield index, []
            for index in self._step(in_hand):
                yield index, in_hand.pop(index).candidates()
                is_told_to_wait = False

    def _has_room(self) -> bool:
        """Whether the next shard's requests should enter."""
        num_unfinished = int(self.engine.llm_engine.get_num_unfinished_requests())
        return num_unfinished < self.enough

    def _add(self, index: int, requests: list[Request], sampling: Sampling) -> None:
        """Give a shard's requests to the engine, which will work on them at the next step."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        with engine_alive():
            for number, request in enumerate(requests):
                parameters = SamplingParams(
                    temperature=request.temperature,
                    seed=request.seed,
                    max_tokens=sampling.max_new_tokens,
                    top_p=sampling.top_p,
                    top_k=sampling.top_k,
                    stop_token_ids=sampling.stop_token_ids,
                    # Of the sampled token alone; without it there is no cumulative log-probability.
                    logprobs=0,
                    flat_logprobs=True,
                    detokenize=False,
                    # Our list of terminators is the whole list.
                    ignore_eos=True,
                    # One answer when it is finished, not one with each token.
                    output_kind=RequestOutputKind.FINAL_ONLY,
                    # Nobody else has them: a deep copy of each would be made for nothing.
                    skip_clone=True,
                )
                name = f"{index}/{number}"
                self.engine.llm_engine.add_request(name, tokens_input(request.prompt_token_ids), parameters)

    def _step(self, in_hand: dict[int, _Unfinished]) -> list[int]:
        """Let the engine sample a token of every request that runs; the shards that this finished."""
        with engine_alive():
            outputs = self.engine.llm_engine.step() if in_hand else []
        finished = []
        for output in outputs:
            index, number = map(int, output.request_id.split("/"))
            unfinished = in_hand[index]
            unfinished.add(number, output.outputs[0])
            if unfinished.num_missing == 0:
                finished.append(index)
        return finished


class _Unfinished:
    """A shard of which some responses are still being sampled."""

    def __init__(self, requests: list[Request]) -> None:
        self.num_missing = len(requests)
        self._requests = requests
        self._candidates: dict[int, Candidate] = {}

    def add(self, number: int, completion: Any) -> None:
        """Take the response to a request. As a record at once: vLLM's holds an object for every token."""
        self._candidates[number] = _candidate(completion, self._requests[number])
        self.num_missing -= 1

    def candidates(self) -> list[Candidate]:
        """All of them, in the order of their requests."""
        return [self._candidates[number] for number in range(len(self._requests))]


def _leave_out_ranks() -> None:
    """Let vLLM not count, for each sampled token, how many of the vocabulary are likelier.

    It does so whenever log-probabilities are asked for, nobody here reads it, and on a CPU it takes six times
    as long as the log-probabilities themselves. No setting switches it off.
    """
    from vllm.v1.sample import sampler

    if hasattr(sampler, "batched_count_greater_than"):
        sampler.batched_count_greater_than = _no_ranks


def _no_ranks(logprobs: torch.Tensor, sampled: torch.Tensor) -> torch.Tensor:
    """A rank of 0 for each row: [tokens, vocabulary] and [tokens, 1] give [tokens]."""
    return torch.zeros(len(sampled), dtype=torch.int64)


def _leave_out_idle_blocks() -> None:
    """Let vLLM's cache have room for as many sequences of full length as may run at once, and no more.

    `compute.kv_cache_gib` is the most that it may take. The system gives out and takes back every page of it,
    half a second for each GiB, whether a token comes to stand there or not. No setting of vLLM takes less
    than a GiB by what is needed: only here does it know what a token of this model takes.
    """
    from vllm.v1.core import kv_cache_utils

    names = (
        "get_kv_cache_config_from_groups",
        "_max_memory_usage_bytes_from_groups",
        "_pool_bytes_per_block",
    )
    if not all(hasattr(kv_cache_utils, name) for name in names):
        return
    configured = kv_cache_utils.get_kv_cache_config_from_groups
    if getattr(configured, "leaves_out_idle_blocks", False):
        return

    @functools.wraps(configured)
    def bounded(vllm_config: Any, groups: Any, available_memory: int) -> Any:
        # Without such groups the model has no cache at all.
        if groups and vllm_config.cache_config.num_gpu_blocks_override is None:
            of_one = kv_cache_utils._max_memory_usage_bytes_from_groups(vllm_config, groups)
            # vLLM keeps one block for itself.
            spare = kv_cache_utils._pool_bytes_per_block(vllm_config, groups)
            most = vllm_config.scheduler_config.max_num_seqs * of_one + spare
            available_memory = min(available_memory, most)
        return configured(vllm_config, groups, available_memory)

    bounded.leaves_out_idle_blocks = True  # type: ignore[attr-defined]
    kv_cache_utils.get_kv_cache_config_from_groups = bounded


def _make_batch_invariant() -> None:
    """Switch vLLM's batch-invariant mode on.

    Raises:
        ConfigError: the GPU is too old for it.
    """
    capability = torch.cuda.get_device_capability()
    if capability < _BATCH_INVARIANT_CAPABILITY:
        least = ".".join(map(str, _BATCH_INVARIANT_CAPABILITY))
        raise ConfigError(
            f"generate.batch_invariant=true: needs a GPU of compute capability {least} or more, and this one "
            f"has {'.'.join(map(str, capability))}. Leave it out: nothing is lost or doubled without it."
        )
    os.environ["VLLM_BATCH_INVARIANT"] = "1"
    # Some of vLLM's modules read it when they are imported, and those that were preloaded have done so.
    for name, module in list(sys.modules.items()):
        if name.startswith("vllm.") and "is_batch_invariant" in vars(module):
            vars(module)["is_batch_invariant"] = True


def _check_head_size(model: str, trust_remote_code: bool) -> None:
    """vLLM on a CPU would find out at the first token."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    config = load_config(model, trust_remote_code).get_text_config()
    num_heads = getattr(config, "num_attention_heads", None)
    size = getattr(config, "head_dim", None)
    # Configs that leave the size out mean an even share of the hidden size.
    if not size and num_heads:
        size = config.hidden_size // num_heads
    supported = CPUAttentionBackend.get_supported_head_sizes()
    if size and size not in supported:
        raise ModelError(
            f"{model}: its attention heads have size {size}, and vLLM on a CPU takes "
            f"{', '.join(map(str, supported))}. Use generate.engine=transformers, or a GPU."
        )


def _candidate(completion: Any, request: Request) -> Candidate:
    """One response as a record; its text is decoded by the stage."""
    return Candidate(
        token_ids=list(completion.token_ids),
        text="",
        # vLLM has more reasons, such as "abort"; records know two.
        finish_reason="stop" if completion.finish_reason == "stop" else "length",
        logprob=float(completion.cumulative_logprob),
        seed=request.seed,
        temperature=request.temperature,
    )
