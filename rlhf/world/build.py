"""Pre-training of the quickstart's base model, and the judge that starts from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from rlhf.data.records import Message
from rlhf.training.checkpoints import train_resumable

BATCH_SIZE = 16
"""Conversations of one optimizer step."""
BUCKET_BATCHES = 16
"""So many batches are sorted by length together, which saves most of the padding."""
JUDGE_EXTRA_LAYERS = 2
IGNORED = -100

Encoded = tuple[list[int], int]
"""Token ids of a conversation, and how many of them are the prompt."""


def base_config(tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """A Llama of 0.86 million parameters.

    `initializer_range` is three times the usual: with 0.02 a model this narrow takes four times as long to learn.
    """
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.06,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def encode(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]]) -> list[Encoded]:
    """Conversations of one question and one answer as token ids, many at a time."""
    texts = tokenizer.apply_chat_template([list(c) for c in conversations], tokenize=False)
    header = tokenizer.convert_tokens_to_ids("<|end_header_id|>")
    rows = []
    for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
        answer = len(ids) - ids[::-1].index(header) + 1  # two line breaks, one token, stand between header and answer
        rows.append((list(ids), answer))
    return rows


def make_batches(rows: Sequence[Encoded], num_steps: int, pad_id: int, rng: Random) -> list[dict[str, Tensor]]:
    """One padded batch per optimizer step, `input_ids` and `labels` of shape (B, T).

    The rows are repeated in new orders until they suffice. Only answers have labels: prompts are random letters, and
    learning those too costs twice the steps. Padding stands on the right and has no label, so that causal attention
    needs no mask.
    """
    order: list[int] = []
    while len(order) < num_steps * BATCH_SIZE:
        order += rng.sample(range(len(rows)), len(rows))
    batches: list[dict[str, Tensor]] = []
    for start in range(0, num_steps, BUCKET_BATCHES):
        stop = min(start + BUCKET_BATCHES, num_steps)
        bucket = sorted(order[start * BATCH_SIZE : stop * BATCH_SIZE], key=lambda index: len(rows[index][0]))
        made = [[rows[i] for i in bucket[k : k + BATCH_SIZE]] for k in range(0, len(bucket), BATCH_SIZE)]
        rng.shuffle(made)
        batches += [_pad(batch, pad_id) for batch in made]
    return batches


def _pad(rows: Sequence[Encoded], pad_id: int) -> dict[str, Tensor]:
    longest = max(len(ids) for ids, _ in rows)
    input_ids = [ids + [pad_id] * (longest - len(ids)) for ids, _ in rows]
    labels = [[IGNORED] * n + ids[n:] + [IGNORED] * (longest - len(ids)) for ids, n in rows]
    return {"input_ids": torch.tensor(input_ids), "labels": torch.tensor(labels)}


class _LeanTrainer(Trainer):
    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: walking all parameters in every step takes a tenth of the time."""
        return 0


def _only(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return items[0]


def pretrain(
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[Mapping[str, Any]],
    settings: Mapping[str, Any],
    seed: int,
    out: Path,
) -> LlamaForCausalLM:
    """Train the base model from scratch; killed and called again, it goes on from its last checkpoint in `out`.

    Args:
        tokenizer: the world's.
        rows: clean conversations under `messages`.
        settings: the `world` section of the config.
        seed: of the weights and of the order of the data.
        out: folder for checkpoints.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(base_config(tokenizer))
    data = encode(tokenizer, [row["messages"] for row in rows])
    batches = make_batches(data, settings["base_steps"], tokenizer.pad_token_id, Random(f"{seed}/base/order"))
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=len(batches),
        per_device_train_batch_size=1,  # an item is a whole batch, so the order is fixed and resuming skips items
        train_sampling_strategy="sequential",
        learning_rate=settings["base_learning_rate"],
        lr_scheduler_type="cosine",
        warmup_steps=max(1, len(batches) // 20),
        optim="adamw_torch_fused",
        save_steps=settings["save_steps"],
        logging_steps=max(1, len(batches) // 10),
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        seed=seed,
    )
    trainer = _LeanTrainer(model=model, args=arguments, train_dataset=batches, data_collator=_only)
    train_resumable(trainer, out)
    return model


def judge_from(base: LlamaForCausalLM, seed: int) -> LlamaForSequenceClassification:
    """A reward model that starts as the base with two more layers and a zero head.

    The new layers' output projections are zero, so that at first they pass on what they get: the judge may outgrow the
    policy without having to learn its language again.
    """
    config = LlamaConfig.from_dict(base.config.to_dict())
    old = config.num_hidden_layers
    config.num_hidden_layers, config.num_labels = old + JUDGE_EXTRA_LAYERS, 1
    torch.manual_seed(seed)
    judge = LlamaForSequenceClassification(config)
    judge.model.load_state_dict(base.model.state_dict(), strict=False)
    with torch.no_grad():
        judge.score.weight.zero_()
        for layer in judge.model.layers[old:]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return judge


def save_model(model: LlamaForCausalLM | LlamaForSequenceClassification, tokenizer: Any, folder: Path) -> None:
    """Weights in fp32, config, tokenizer, and for a causal LM how it is sampled and where it stops."""
    if isinstance(model, LlamaForCausalLM):
        ends = sorted({tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|end_of_text|>")})
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id, do_sample=True
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
