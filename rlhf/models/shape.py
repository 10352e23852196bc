"""The numbers of a model's shape that decide what it costs to compute with it, from its config.json alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.models.folder import language_configs

_HIDDEN = ("hidden_size", "n_embd", "d_model")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
_HEADS = ("num_attention_heads", "n_head", "num_heads")
_INTERMEDIATE = ("intermediate_size", "n_inner", "ffn_dim")

CHANGES_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""In the config of models that do something to the head's logits before they give them: capping, scaling."""


@dataclass(frozen=True)
class Shape:
    """A decoder: so many layers of attention and a feed-forward network, between embedding and head.

    `changes_logits` says that what the model gives is not the head's own (`CHANGES_LOGITS`).
    """

    parameters: float
    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_size: int
    vocabulary: int
    changes_logits: bool = False


def read_shape(folder: str | Path, parameters: float) -> Shape | None:
    """The shape of a model folder; None where its config.json does not say it in names that are known here.

    Args:
        folder: with config.json; weights are not read.
        parameters: how many the model has.

    Raises:
        ModelError: config.json cannot be read.
    """
    for config in language_configs(folder):
        hidden = _number(config, _HIDDEN)
        layers = _number(config, _LAYERS)
        heads = _number(config, _HEADS)
        vocabulary = _number(config, ("vocab_size",))
        if not (hidden and layers and heads and vocabulary):
            continue
        return Shape(
            parameters=parameters,
            layers=layers,
            hidden=hidden,
            # GPT-2 leaves it out where it is four times as wide.
            intermediate=_number(config, _INTERMEDIATE) or 4 * hidden,
            heads=heads,
            key_value_heads=_number(config, ("num_key_value_heads",)) or heads,
            head_size=_number(config, ("head_dim",)) or hidden // heads,
            vocabulary=vocabulary,
            changes_logits=any(config.get(name) not in (None, 1.0) for name in CHANGES_LOGITS),
        )
    return None


def _number(config: dict[str, Any], names: tuple[str, ...]) -> int:
    """The first of some names that holds a number above 0; 0 where none does."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and value > 0:
            return value
    return 0
