"""What does not go together in a recipe: how an iteration trains, by which loss, on which pairs."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf.config.choices import Loss, Method, Reference, Strategy
from rlhf.config.schema import Config, PairConfig


def recipes(cfg: Config) -> Iterator[str]:
    """Values that cannot work together, one line each, with the way out."""
    if cfg.method is Method.raft:
        yield from _raft(cfg)
        return
    yield from _smoothing(cfg)
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


def _smoothing(cfg: Config) -> Iterator[str]:
    loss = cfg.dpo.loss
    smoothing = cfg.dpo.label_smoothing
    # The others are no likelihoods of a label, or have the judge say how sure it is.
    if loss not in (Loss.sigmoid, Loss.robust, Loss.exo_pair) and smoothing:
        yield (
            f"dpo.label_smoothing={smoothing}: has no meaning for dpo.loss={loss.value}. Set it to 0, or "
            "use dpo.loss=sigmoid, robust or exo_pair."
        )
    if loss is Loss.exo_pair and smoothing == 0:
        yield (
            "dpo.label_smoothing=0: dpo.loss=exo_pair needs it above 0, since it takes its logarithm. Set "
            "it to 0.001 (the paper's), or use another loss."
        )


def _loss(cfg: Config) -> Iterator[str]:
    dpo = cfg.dpo
    if dpo.length_alpha and dpo.loss is not Loss.sigmoid:
        yield (
            f"dpo.length_alpha={dpo.length_alpha}: is a term of dpo.loss=sigmoid, not of {dpo.loss.value}. "
            "Set it to 0, or use dpo.loss=sigmoid."
        )
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
