"""The engine a config names."""

from __future__ import annotations

from rlhf.config.choices import Engine
from rlhf.config.stage_configs import GenerateStage
from rlhf.errors import UserError
from rlhf.generation.request import Sampler


def load_sampler(config: GenerateStage, model: str, seed: int, max_prompt_tokens: int) -> Sampler:
    """The engine that `generate.engine` names, with the model loaded.

    Raises:
        UserError: vLLM is asked for and is missing, or cannot load the model.
    """
    note = ""
    if config.engine is not Engine.transformers:
        from rlhf.generation.vllm_sampler import VllmSampler

        try:
            return VllmSampler(config, model, seed, max_prompt_tokens)
        except UserError as error:
            if config.engine is Engine.vllm:
                raise
            note = f"transformers, since vLLM refuses: {error}"
    from rlhf.generation.transformers_sampler import TransformersSampler

    return TransformersSampler(config, model, note)
