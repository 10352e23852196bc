"""Models small enough to make and train within a test, and the rows they are trained on."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.data.records import prompt_id, side_columns
from rlhf.data.schemas import PAIRS_SCHEMA
from rlhf.data.shards import shard_name, write_shard

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

HIDDEN, LAYERS = 32, 2


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with Llama 3's special tokens and chat template: the quickstart's."""
    from rlhf.world.tokenizer import build_tokenizer

    return build_tokenizer()


def _config(**extra: Any) -> Any:
    from transformers import LlamaConfig

    tokenizer = tiny_tokenizer()
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "initializer_range": 0.1,
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
    }
    tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return LlamaConfig(**tokens, **shape | extra)


def tiny_llama(path: Path, seed: int = 0, **config: Any) -> Path:
    """A random causal LM with its tokenizer, saved in fp32."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    LlamaForCausalLM(_config(**config)).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def tiny_reward_model(path: Path, seed: int = 0, **config: Any) -> Path:
    """A random sequence classifier with one logit and its tokenizer, saved in fp32."""
    import torch
    from transformers import LlamaForSequenceClassification

    torch.manual_seed(seed)
    LlamaForSequenceClassification(_config(num_labels=1, **config)).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def random_pairs(
    num: int, seed: int = 0, prompt: tuple[int, int] = (5, 30), response: tuple[int, int] = (1, 40)
) -> list[dict[str, Any]]:
    """Rows of PAIRS_SCHEMA with random token ids and lengths within the given limits."""
    rng = random.Random(seed)
    rows = []
    for number in range(num):
        messages = [{"role": "user", "content": f"{seed} {number}"}]
        ids = {
            name: [rng.randrange(10, 400) for _ in range(rng.randint(*limits))]
            for name, limits in (("prompt", prompt), ("chosen", response), ("rejected", response))
        }
        row: dict[str, Any] = {
            "id": prompt_id(messages),
            "messages": messages,
            "prompt_token_ids": ids["prompt"],
        }
        for side, text, score, rank in (("chosen", "good", 1.0, 0), ("rejected", "bad", 0.0, 1)):
            row |= side_columns(side, ids[side], text, score, penalised=score, rank=rank, truncated=False)
        rows.append(row)
    return rows


def write_pairs(folder: Path, rows: list[dict[str, Any]], shard_size: int = 1000) -> Path:
    """Save rows as the shards of a `pair` artifact."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, start in enumerate(range(0, max(1, len(rows)), shard_size)):
        write_shard(folder / shard_name(index), PAIRS_SCHEMA, rows[start : start + shard_size])
    return folder
