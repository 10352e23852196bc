"""The judge a config names."""

from __future__ import annotations

from typing import Any

from rlhf.config.choices import Engine
from rlhf.config.stage_configs import ComparisonStage, ScoreStage
from rlhf.errors import UserError
from rlhf.scoring.judge import Judge, RuleJudge
from rlhf.scoring.tournament import Tournament


def load_judge(config: ScoreStage, inputs: dict[str, str]) -> Judge | Tournament:
    """The rule that `config.rule` names, else the reward model `inputs["judge"]`: at `config.url`, or loaded.

    Where transformers stands in for vLLM, the judge's `note` says why.
    """
    if config.rule:
        return RuleJudge(config.rule)
    path = inputs["judge"]
    if config.url:
        from rlhf.scoring.remote_judge import RemoteJudge

        return RemoteJudge(
            path,
            config.url,
            max_tokens=config.max_tokens,
            batch_tokens=config.batch_tokens,
            trust_remote_code=config.trust_remote_code,
            concurrency=config.concurrency,
            timeout_seconds=config.timeout_seconds,
            retry_seconds=config.retry_seconds,
        )
    arguments: dict[str, Any] = {
        "dtype": config.dtype,
        "max_tokens": config.max_tokens,
        "batch_tokens": config.batch_tokens,
        "trust_remote_code": config.trust_remote_code,
    }
    if isinstance(config, ComparisonStage):
        from rlhf.scoring.preference_judge import PairwiseJudge

        return Tournament(PairwiseJudge(path, **arguments), config.opponents)
    note = ""
    if config.engine is not Engine.transformers:
        from rlhf.scoring.vllm_judge import VllmJudge

        try:
            return VllmJudge(path, **arguments, tensor_parallel_size=config.tensor_parallel_size)
        except UserError as error:
            if config.engine is Engine.vllm:
                raise
            note = f"transformers, since vLLM refuses: {error}"
    from rlhf.scoring.classifier_judge import ClassifierJudge

    return ClassifierJudge(path, **arguments, note=note)
