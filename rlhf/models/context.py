"""How many tokens a model can hold, under whichever name its config says it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf.errors import ModelError
from rlhf.models.folder import language_configs
from rlhf.models.weight_files import has_weights, weight_headers, weight_map

_NAMES = (
    "max_position_embeddings",
    "n_positions",  # GPT-2
    "n_ctx",  # CodeGen
    "max_seq_len",  # MPT
    "seq_length",  # Bloom, ChatGLM
    "model_max_length",  # Baichuan
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
    "max_target_positions",
)
"""As vLLM 0.32 reads them (`derive_max_model_len_and_key`), and `n_ctx`. Where there are several, the
smallest counts, there as here."""

# `wpe` is GPT-2's table; others spell it out.
_POSITION_TABLE = re.compile(
    r"(^|\.)(wpe|embed_positions|(position|pos)_?emb(ed(ding)?s?)?|positions?_embed)(\.weight)?$"
)
# A model that also sees has tables of image patches, which say nothing of text.
_OF_IMAGES = re.compile(r"vision|visual|image|audio|speech|patch")
_OFFSET = 8
"""Rows that a table may have beyond the context: OPT's and BART's positions begin at 2."""


def context_length(path: str | Path) -> int | None:
    """Tokens a model can hold, as its config.json says; None where it does not."""
    for config in language_configs(path):
        length = _smallest(config.get)
        if length is not None:
            return length
    return None


def loaded_context(path: str | Path, config: Any) -> int | None:
    """As `context_length`, or else what transformers takes where config.json leaves it out.

    Args:
        path: the model folder.
        config: of transformers (`rlhf.models.folder.load_config`).
    """
    length = context_length(path)
    if length is not None:
        return length
    language_model = config.get_text_config()
    return _smallest(lambda name: getattr(language_model, name, None))


def _smallest(value_of: Callable[[str], Any]) -> int | None:
    lengths = []
    for name in _NAMES:
        value = value_of(name)
        # A few configs have -1 or a huge float for no limit.
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            lengths.append(value)
    return min(lengths, default=None)


def judge_context(path: str | Path, config: Any, max_tokens: int) -> int | None:
    """Tokens that a judge can hold; None where nothing says it.

    Raises:
        ModelError: `max_tokens` is more, and the judge has no position for the next token.
    """
    context = loaded_context(path, config)
    if context is not None and max_tokens > context and _has_position_table(path, context):
        raise ModelError(
            f"{path}: score.max_tokens={max_tokens}, and this judge has learned {context} positions: "
            f"at the next token it would crash. Set score.max_tokens={context} (longer conversations "
            "lose their beginning, and are counted), or use a judge with a longer context."
        )
    return context


def _has_position_table(path: str | Path, context: int) -> bool:
    """Whether a model looks its positions up in a table of weights; rotary ones go on beyond the context."""
    if not has_weights(path):
        # Of a model on the Hub there may be no more than the index, which tells names and no sizes.
        return any(_is_position_table(name) for name in weight_map(Path(path)))
    for name, tensor in weight_headers(path):
        if not _is_position_table(name) or len(tensor["shape"]) != 2:
            continue
        # The size tells tables of something else apart.
        if context <= tensor["shape"][0] <= context + _OFFSET:
            return True
    return False


def _is_position_table(name: str) -> bool:
    return _POSITION_TABLE.search(name) is not None and _OF_IMAGES.search(name) is None
