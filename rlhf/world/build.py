"""Pre-training of the quickstart's base model, and the judge that starts from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from rlhf.config.schema import WorldConfig
from rlhf.data.records import Message
from rlhf.training.checkpoints import train_resumable

BATCH_SIZE = 16
"""Conversations of one optimizer step."""
BUCKET_BATCHES = 16
"""So many batches are sorted by length together, which saves most of the padding."""
JUDGE_EXTRA_LAYERS = 2
IGNORED = -100
"""Label that the loss of transformers' models leaves out."""

Encoded = tuple[list[int], int]
"""Token ids of a conversation, and how many of them are the prompt."""


def base_config(tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """A Llama of 0.86 million parameters.

    `initializer_range` is three times the usual: with 0.02 a model this narrow takes four times as long to
    learn.
    """
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        # The world's conversations stay below 40 tokens; the rest is room for prompts of one's own.
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.06,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def encode(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]]) -> list[Encoded]:
    """Conversations of one question and one answer as token ids, many at a time."""
    message_lists = [list(messages) for messages in conversations]
    texts = tokenizer.apply_chat_template(message_lists, tokenize=False)
    header_end_id = tokenizer.convert_tokens_to_ids("<|end_header_id|>")
    rows = []
    # The template has written a BOS already; the tokenizer would put another in front of it.
    for token_ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
        # The last header is the answer's. Behind it come two line breaks, which are one token.
        num_after_header = token_ids[::-1].index(header_end_id)
        num_prompt = len(token_ids) - num_after_header + 1
        rows.append((list(token_ids), num_prompt))
    return rows


def make_batches(
    rows: Sequence[Encoded],
    num_steps: int,
    pad_id: int,
    rng: Random,
) -> list[dict[str, Tensor]]:
    """One padded batch per optimizer step, `input_ids` and `labels` of shape (B, T).

    The rows are repeated in new orders until they suffice. Only answers have labels: prompts are random
    letters, and learning those too costs twice the steps. Padding stands on the right and has no label, so
    that causal attention needs no mask.
    """
    num_rows = num_steps * BATCH_SIZE
    order: list[Encoded] = []
    while len(order) < num_rows:
        order += rng.sample(rows, len(rows))
    # What the last repetition has too many is left out.
    order = order[:num_rows]
    batches = []
    for bucket in _slices(order, BUCKET_BATCHES * BATCH_SIZE):
        bucket.sort(key=_num_tokens)
        bucket_batches = _slices(bucket, BATCH_SIZE)
        # Sorted batches would teach short puzzles first and long ones last, in every bucket anew.
        rng.shuffle(bucket_batches)
        for batch in bucket_batches:
            batches.append(_pad(batch, pad_id))
    return batches


def _slices(rows: list[Encoded], size: int) -> list[list[Encoded]]:
    """The rows in their order, `size` at a time; the last slice may be shorter."""
    slices = []
    for start in range(0, len(rows), size):
        slices.append(rows[start : start + size])
    return slices


def _num_tokens(row: Encoded) -> int:
    token_ids, _ = row
    return len(token_ids)


def _pad(rows: Sequence[Encoded], pad_id: int) -> dict[str, Tensor]:
    """One batch of rows, as long as its longest."""
    input_ids = []
    labels = []
    for token_ids, num_prompt in rows:
        input_ids_T = torch.tensor(token_ids)
        labels_T = input_ids_T.clone()
        labels_T[:num_prompt] = IGNORED
        input_ids.append(input_ids_T)
        labels.append(labels_T)
    input_ids_B_T = pad_sequence(input_ids, batch_first=True, padding_value=pad_id)
    labels_B_T = pad_sequence(labels, batch_first=True, padding_value=IGNORED)
    return {"input_ids": input_ids_B_T, "labels": labels_B_T}


class _LeanTrainer(Trainer):
    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: walking all parameters in every step takes a tenth of the time."""
        return 0


def _single_item(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Collator: an item of the data set is a whole batch."""
    return items[0]


def pretrain(
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[Mapping[str, Any]],
    settings: WorldConfig,
    seed: int,
    out: Path,
    num_checkpoints: int,
    tell: Callable[[int, int], None] = lambda step, steps: None,
) -> LlamaForCausalLM:
    """Train the base model from scratch; killed and called again, it goes on from its last checkpoint.

    Args:
        tokenizer: the world's.
        rows: as `rlhf.world.tasks.base_rows` gives them.
        settings: the `world` section of the config.
        seed: of the weights and of the order of the data.
        out: folder for checkpoints.
        num_checkpoints: that are kept there.
        tell: called after each step with its number and how many there are.

    Example:
        {"messages": [{"role": "user", "content": "Sort: 3101"}, {"role": "assistant", "content": "0113."}]}
    """
    # transformers draws the first weights from torch's own generator.
    torch.manual_seed(seed)
    model = LlamaForCausalLM(base_config(tokenizer))
    encoded = encode(tokenizer, [row["messages"] for row in rows])
    rng = Random(f"{seed}/base/order")
    batches = make_batches(encoded, settings.base_steps, tokenizer.pad_token_id, rng)
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=len(batches),
        # An item is a whole batch, so the order is fixed and resuming skips items.
        per_device_train_batch_size=1,
        train_sampling_strategy="sequential",
        learning_rate=settings.base_learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, len(batches) // 20),
        optim="adamw_torch_fused",
        save_steps=settings.save_steps,
        logging_steps=max(1, len(batches) // 10),
        report_to=[],
        disable_tqdm=True,
        # So that the bytes are the same with and without a GPU.
        use_cpu=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        seed=seed,
    )
    trainer = _LeanTrainer(model=model, args=arguments, train_dataset=batches, data_collator=_single_item)
    trainer.add_callback(_Told(tell))
    train_resumable(trainer, out, num_checkpoints)
    return model


class _Told(TrainerCallback):
    """Tells how far a training is."""

    def __init__(self, tell: Callable[[int, int], None]) -> None:
        self._tell = tell

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Called after an optimizer step."""
        self._tell(state.global_step, state.max_steps)


def judge_from(base: LlamaForCausalLM, seed: int) -> LlamaForSequenceClassification:
    """A reward model that starts as the base with two more layers and a zero head.

    The new layers' output projections are zero, so that at first they pass on what they get: the judge may
    outgrow the policy without having to learn its language again.
    """
    # A copy by way of a dict: the base goes on with its own config.
    config = LlamaConfig.from_dict(base.config.to_dict())
    num_base_layers = config.num_hidden_layers
    config.num_hidden_layers = num_base_layers + JUDGE_EXTRA_LAYERS
    config.num_labels = 1
    torch.manual_seed(seed)
    judge = LlamaForSequenceClassification(config)
    # Not strict, for the base has no weights of the new layers.
    judge.model.load_state_dict(base.model.state_dict(), strict=False)
    with torch.no_grad():
        judge.score.weight.zero_()
        for layer in judge.model.layers[num_base_layers:]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return judge


def save_model(
    model: LlamaForCausalLM | LlamaForSequenceClassification,
    tokenizer: Any,
    folder: Path,
) -> None:
    """Weights in fp32, config, tokenizer, and for a causal LM how it is sampled and where it stops."""
    if isinstance(model, LlamaForCausalLM):
        # As in Llama 3's Instruct models, the end of a turn and the end of a text both stop.
        end_of_text_id = tokenizer.convert_tokens_to_ids("<|end_of_text|>")
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=sorted({tokenizer.eos_token_id, end_of_text_id}),
            pad_token_id=tokenizer.pad_token_id,
            do_sample=True,
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
