"""The engine a config names."""

from __future__ import annotations

from rlhf.config.stage_configs import GenerateStage
from rlhf.generation.request import Sampler
from rlhf.models.fallback import load_in_engine


def load_sampler(config: GenerateStage, model: str, seed: int, max_prompt_tokens: int) -> Sampler:
    """The engine that `generate.engine` names, with the model loaded.

    Args:
        config: of the stage.
        model: folder of the policy.
        seed: of the engine; requests that have a seed of their own do not depend on it.
        max_prompt_tokens: of the longest prompt.

    Raises:
        UserError: vLLM is asked for and is missing, or cannot load the model.
    """

    # Each imports its engine only when it is the one: both take seconds, and vLLM may be missing.
    def with_vllm() -> Sampler:
        from rlhf.generation.vllm_sampler import VllmSampler

        return VllmSampler(config, model, seed, max_prompt_tokens)

    def with_transformers(note: str) -> Sampler:
        from rlhf.generation.transformers_sampler import TransformersSampler

        return TransformersSampler(config, model, seed, note)

    return load_in_engine(config.engine, with_vllm, with_transformers)
