"""What does not go together with a generative judge (`reward_model.kind=generative`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rlhf.config.choices import Engine, JudgeKind
from rlhf.config.training import POLICY, GenerativeConfig, RewardModelConfig

if TYPE_CHECKING:
    from rlhf.config.schema import Config

_OURS = ("model", "messages", "prompt", "stream", "n")
"""Keys of a request that this package sets, or that would change what an answer looks like."""


def generative_problems(cfg: Config) -> Iterator[str]:
    """Values that cannot work, one line each, with the way out."""
    judge = cfg.reward_model
    if judge.kind is not JudgeKind.generative:
        if judge.path == POLICY:
            yield (
                f"reward_model.path={POLICY}: the policy judges in words only. Set "
                "reward_model.kind=generative."
            )
        if judge.generative != GenerativeConfig():
            yield (
                f"reward_model.generative: is for reward_model.kind=generative, and this is "
                f"{judge.kind.value}. Set that kind, or leave the section out."
            )
        return
    for key in ("rule", "data"):
        if getattr(judge, key) is not None:
            yield (
                f"reward_model.{key}={getattr(judge, key)}: does not go with "
                "reward_model.kind=generative, which "
                "is a ready model asked in words. Leave it out, or set reward_model.kind=scalar."
            )
    yield from _of_server(cfg) if judge.url is not None else _of_engine(cfg)
    yield from _body(judge.generative.body)
    if (judge.generative.prompt_price is None) != (judge.generative.answer_price is None):
        yield "reward_model.generative: prompt_price and answer_price go together; give both or neither."


def _of_server(cfg: Config) -> Iterator[str]:
    judge = cfg.reward_model
    if not judge.generative.model:
        yield (
            f"reward_model.url={judge.url}: needs reward_model.generative.model too, the name by which that "
            "server knows the model (a list of them: the URL with /v1/models behind it)."
        )
    if judge.path == POLICY:
        yield (
            f"reward_model.path={POLICY} with reward_model.url={judge.url}: either the "
            "policy judges or the model "
            "of a server. Leave one of them out."
        )
    if cfg.score.tensor_parallel_size > 1:
        yield (
            f"score.tensor_parallel_size={cfg.score.tensor_parallel_size}: how a model is "
            "cut is for its server "
            "to say (reward_model.url). Leave it out."
        )


def _of_engine(cfg: Config) -> Iterator[str]:
    judge = cfg.reward_model
    for key in ("model", "body", "api_key_variable"):
        if getattr(judge.generative, key) is not None:
            yield (
                f"reward_model.generative.{key}: is for a server, and there is no reward_model.url. Name the "
                "server, or leave it out; a model of this machine or the Hub is reward_model.path."
            )
    if judge.path == RewardModelConfig.path:
        yield (
            f"reward_model.path={judge.path}: is a classifier, which writes no answers. Set "
            "reward_model.path to a "
            f"chat model or to {POLICY} (the policy itself), or name a server in reward_model.url with "
            "reward_model.generative.model."
        )
    if cfg.score.engine is Engine.transformers:
        yield (
            "score.engine=transformers: a generative judge runs in vLLM or behind a server. Set "
            "score.engine=auto, or reward_model.url."
        )
    if judge.generative.max_new_tokens >= cfg.score.max_tokens:
        yield (
            f"reward_model.generative.max_new_tokens={judge.generative.max_new_tokens}: leaves no room for a "
            f"question in score.max_tokens={cfg.score.max_tokens}, which holds both. Raise "
            "that, or lower this."
        )


def _body(body: object) -> Iterator[str]:
    if body is None:
        return
    if not isinstance(body, dict) or not all(isinstance(key, str) for key in body):
        yield f"reward_model.generative.body={body}: must be a mapping such as {{seed: 1}}, or null."
        return
    for key in _OURS:
        if key in body:
            yield f"reward_model.generative.body.{key}: is not for a person to set. Leave it out."
