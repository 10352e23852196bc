"""What `generate.vllm_args` means for the rest of the program; vLLM is not imported."""

from __future__ import annotations

from typing import Any

from rlhf.config.choices import Engine
from rlhf.config.schema import GenerateSettings
from rlhf.errors import ConfigError


def longest_sequence(settings: GenerateSettings) -> int | None:
    """Tokens that a prompt and its response may have together by `max_model_len`; None without such a
    limit.
    """
    if settings.engine is Engine.transformers:
        return None
    length = settings.vllm_args.get("max_model_len")
    # -1 leaves it to vLLM, which then takes what memory allows.
    if length is None or length < 0:
        return None
    return int(length)


def prompt_limit(settings: GenerateSettings, limit: int) -> int:
    """Tokens a prompt may have: `limit`, or less where `max_model_len` leaves less beside a whole response.

    Raises:
        ConfigError: it leaves no room for a prompt at all.
    """
    length = longest_sequence(settings)
    if length is None:
        return limit
    if length <= settings.max_new_tokens:
        raise ConfigError(
            f"generate.vllm_args.max_model_len={length}: has no room for generate.max_new_tokens="
            f"{settings.max_new_tokens} and a prompt. Raise it, or set generate.max_new_tokens "
            f"below {length}."
        )
    return min(limit, length - settings.max_new_tokens)


def check_batch_invariant(settings: GenerateSettings, has_gpu: bool) -> None:
    """Refuse vLLM's batch-invariant mode where there is none.

    Raises:
        ConfigError: why, and the way out.
    """
    if settings.batch_invariant and not has_gpu:
        raise ConfigError(
            "generate.batch_invariant=true: vLLM has this mode on GPUs only. On a CPU it is not needed: "
            "there a response's tokens do not depend on what is sampled beside it. Leave it out, or use a "
            "GPU."
        )


def check_batching(arguments: dict[str, Any], has_gpu: bool) -> None:
    """Refuse limits of one forward pass that vLLM cannot keep.

    Args:
        arguments: `generate.vllm_args`, or all that vLLM is given.
        has_gpu: whether it runs on one.

    Raises:
        ConfigError: which argument, and why.
    """
    chunked = arguments.get("enable_chunked_prefill")
    if chunked and not has_gpu:
        # The engine dies at the first prompt that it reads in two parts.
        raise ConfigError(
            "generate.vllm_args.enable_chunked_prefill=true: on a CPU vLLM cannot do this together "
            "with a seed per "
            "response. Leave it out, or use generate.engine=transformers."
        )
    is_whole = chunked is False or not has_gpu
    batched = arguments.get("max_num_batched_tokens")
    length = arguments.get("max_model_len")
    if is_whole and batched is not None and length is not None and batched < length:
        raise ConfigError(
            f"generate.vllm_args.max_num_batched_tokens={batched}: one forward pass must have room "
            "for a whole "
            f"prompt and response of {length} tokens, since no prefill is cut here. Raise it, or lower "
            "generate.max_prompt_tokens or generate.max_new_tokens."
        )
