"""What does not go together in a recipe: how an iteration trains, by which loss, on which pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from rlhf.config.choices import Loss, Method, Reference, Strategy
from rlhf.config.overrides import override
from rlhf.config.schema import Config, PairConfig
from rlhf.config.training import DpoConfig

_LOSSES_WITH = {
    # The others are no likelihoods of a label, or have the judge say how sure it is.
    "label_smoothing": (Loss.sigmoid, Loss.robust, Loss.exo_pair),
    "length_alpha": (Loss.sigmoid,),
    "score_scale": (Loss.score_aware,),
    "simpo_gamma": (Loss.simpo,),
    "initial_share": (Loss.inpo,),
}
"""Settings of `dpo` that are terms of some losses alone, and those losses."""


def recipes(cfg: Config) -> Iterator[str]:
    """Values that cannot work together, one line each, with the way out."""
    if cfg.method is Method.raft:
        yield from _raft(cfg)
        return
    yield from _terms(cfg)
    yield from _loss(cfg)
    yield from _replay(cfg)


def _raft(cfg: Config) -> Iterator[str]:
    """What means something to pairs alone; what would be passed over in silence is refused."""
    way_out = "Leave it out, or set method=dpo."
    if cfg.pair.data is not None:
        yield f"method=raft with pair.data={cfg.pair.data}: it trains on sampled responses. {way_out}"
    if cfg.replay.data is not None or cfg.replay.iterations:
        yield f"method=raft with replay: what is replayed are pairs. {way_out}"
    if cfg.dpo.lora.rank:
        yield f"method=raft with dpo.lora.rank={cfg.dpo.lora.rank}: it trains all weights. {way_out}"
    usual = PairConfig()
    for key in ("min_margin", "max_pairs_per_prompt"):
        value = getattr(cfg.pair, key)
        if value != getattr(usual, key):
            yield f"method=raft with pair.{key}={value}: it makes no pairs. {way_out}"
    if cfg.pair.strategy is not Strategy.best_worst:
        yield f"method=raft with pair.strategy={cfg.pair.strategy.value}: it makes no pairs. {way_out}"


def unused_training(cfg: Config, typed: Mapping[str, Any]) -> Iterator[str]:
    """What a person has typed of a training that `method` does not have, a line for each setting, with the
    way out.

    Only what was typed: an experiment for any method has settings for DPO. Nor what changes the cost of a
    training and not its result.

    Args:
        cfg: the whole config.
        typed: values of the command line, nested.
    """
    used = getattr(cfg, cfg.method.value)
    for method in Method:
        settings = typed.get(method.value)
        if method is cfg.method or not isinstance(settings, dict):
            continue
        for each in dataclasses.fields(getattr(cfg, method.value)):
            if each.name not in settings or not each.metadata.get("compared", True):
                continue
            way_out = f"Leave it out, or set method={method.value}."
            if hasattr(used, each.name):
                way_out = f"Set {cfg.method.value}.{each.name} in its place, or method={method.value}."
            key, value = f"{method.value}.{each.name}", settings[each.name]
            setting = override(key, value) if isinstance(value, dict) else f"{key}={value}"
            yield (
                f"{setting} with method={cfg.method.value}: has no "
                f"meaning, since the section {method.value} is not used. {way_out}"
            )


def _terms(cfg: Config) -> Iterator[str]:
    """Terms of a loss that the chosen one does not have, and one that it cannot do without."""
    loss = cfg.dpo.loss
    usual = DpoConfig()
    for key, losses in _LOSSES_WITH.items():
        value, default = getattr(cfg.dpo, key), getattr(usual, key)
        if loss not in losses and value != default:
            *others, last = (one.value for one in losses)
            names = f"{', '.join(others)} or {last}" if others else last
            yield (
                f"dpo.{key}={value}: has no meaning for dpo.loss={loss.value}. Set it to {default:.6g}, its "
                f"default, or use dpo.loss={names}."
            )
    smoothing = cfg.dpo.label_smoothing
    if loss is Loss.exo_pair and smoothing == 0:
        yield (
            "dpo.label_smoothing=0: dpo.loss=exo_pair needs it above 0, since it takes its logarithm. Set "
            "it to 0.001 (the paper's), or use another loss."
        )


def _loss(cfg: Config) -> Iterator[str]:
    dpo = cfg.dpo
    if dpo.loss is Loss.simpo and dpo.reference is not Reference.initial:
        yield (
            f"dpo.reference={dpo.reference.value}: dpo.loss=simpo has no reference. Leave it out, or use "
            "dpo.loss=sigmoid_norm, which has one."
        )
    if dpo.loss is Loss.inpo and dpo.reference is not Reference.initial:
        yield (
            f"dpo.reference={dpo.reference.value}: dpo.loss=inpo is anchored to π0 and the previous policy. "
            "Leave it out; dpo.initial_share=0 takes the previous policy alone."
        )
    if dpo.loss is not Loss.score_aware:
        return
    for key, value in (("pair.data", cfg.pair.data), ("replay.data", cfg.replay.data)):
        if value is not None:
            yield (
                f"dpo.loss=score_aware with {key}={value}: given pairs have no scores, of which the loss is "
                f"made. Leave {key} out, or use dpo.loss=sigmoid."
            )


def _replay(cfg: Config) -> Iterator[str]:
    replay = cfg.replay
    if cfg.pair.data is not None and (replay.data is not None or replay.iterations):
        yield (
            f"replay with pair.data={cfg.pair.data}: those pairs are all that is trained on. Put the pairs "
            "of replay.data into that file, or sample pairs (pair.data=null)."
        )
