"""The judge a config names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rlhf.config.choices import Engine
from rlhf.config.stage_configs import ComparisonStage, GenerativeStage, ScoreStage
from rlhf.models.fallback import load_in_engine
from rlhf.scoring.auto_engine import why_transformers
from rlhf.scoring.judge import Judge, RuleJudge
from rlhf.scoring.tournament import Tournament


def load_judge(config: ScoreStage, inputs: dict[str, str], lengths: Iterable[int] = ()) -> Judge | Tournament:
    """The rule that `config.rule` names, else the reward model `inputs["judge"]`: at `config.url`, or loaded.

    Where `config.engine` leaves the engine open, the judge's `note` says which it is and why.

    Args:
        config: what the stage is told.
        inputs: of the stage.
        lengths: characters of every conversation that is to be scored, for the choice of the engine.
    """
    if config.rule:
        return RuleJudge(config.rule, config.concurrency)
    if isinstance(config, GenerativeStage):
        return _generative(config, inputs)
    path = inputs["judge"]
    arguments: dict[str, Any] = {
        "max_tokens": config.max_tokens,
        "batch_tokens": config.batch_tokens,
        "trust_remote_code": config.trust_remote_code,
        "special_tokens": config.special_tokens,
    }
    if config.url:
        # Judges are imported where they are used: each brings a library that the others do without.
        from rlhf.scoring.remote_judge import RemoteJudge

        return RemoteJudge(
            path,
            config.url,
            **arguments,
            concurrency=config.concurrency,
            timeout_seconds=config.timeout_seconds,
            retry_seconds=config.retry_seconds,
        )
    # A server has chosen its own dtype; who loads the model chooses here.
    arguments["dtype"] = config.dtype
    if isinstance(config, ComparisonStage):
        from rlhf.scoring.preference_judge import PairwiseJudge

        return Tournament(PairwiseJudge(path, **arguments), config.opponents)
    return _loaded(config, path, arguments, lengths)


def _generative(config: GenerativeStage, inputs: dict[str, str]) -> Judge | Tournament:
    """A language model that is asked in words: of a server, or loaded by vLLM."""
    from rlhf.scoring.asking import Asker
    from rlhf.scoring.generative_judge import GenerativeJudge

    asker: Asker
    if config.url is not None:
        from rlhf.scoring.chat_server import ChatServer

        asker = ChatServer(config)
    else:
        from rlhf.scoring.vllm_asker import VllmAsker

        asker = VllmAsker(config, inputs["judge"])
    judge = GenerativeJudge(config, asker)
    return Tournament(judge, config.opponents) if judge.file.compares else judge


def _loaded(config: ScoreStage, path: str, arguments: dict[str, Any], lengths: Iterable[int]) -> Judge:
    """A scalar judge in the engine that the config names, or that `auto` comes to."""

    def with_vllm() -> Judge:
        from rlhf.scoring.vllm_judge import VllmJudge

        return VllmJudge(
            path,
            **arguments,
            tensor_parallel_size=config.tensor_parallel_size,
            gpu_memory_utilization=config.gpu_memory_utilization,
            note="vllm" if is_open else "",
        )

    def with_transformers(note: str) -> Judge:
        from rlhf.scoring.classifier_judge import ClassifierJudge

        return ClassifierJudge(path, **arguments, note=note)

    is_open = config.engine is Engine.auto
    if is_open:
        import torch

        reason = why_transformers(path, lengths, torch.cuda.is_available())
        if reason:
            return with_transformers(f"transformers ({reason})")
    return load_in_engine(config.engine, with_vllm, with_transformers)
