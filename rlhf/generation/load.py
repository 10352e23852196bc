"""The engine a config names."""

from __future__ import annotations

from typing import Any

from rlhf.generation.request import Sampler


def load_sampler(config: dict[str, Any], model: str, seed: int, max_prompt_tokens: int) -> Sampler:
    """The engine that `generate.engine` names, with the model loaded."""
    if config["engine"] == "vllm":
        from rlhf.generation.vllm import VllmSampler

        return VllmSampler(config, model, seed, max_prompt_tokens)
    from rlhf.generation.transformers import TransformersSampler

    return TransformersSampler(config, model)
