"""Supervised fine-tuning with TRL on token ids rendered here."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from rlhf.chat import Messages, end_of_turn_id, load_tokenizer, render_conversation, render_prompt
from rlhf.data.files import read_records
from rlhf.errors import ConfigError, DataError, TemplateRefuses
from rlhf.job import Job, Outcome, Worker
from rlhf.training.checkpoints import remove_checkpoints, train_resumable
from rlhf.training.models import export_model, load_model, resolve_dtype
from rlhf.training.tokens import TokenRow, token_dataset
from rlhf.training.trainer import (
    StageTrainer,
    attach,
    build_arguments,
    common_arguments,
    step_rows,
    write_rows,
)

_log = logging.getLogger(__name__)
IGNORED = -100
"""Label of a token that no loss is taken on."""


class _Trainer(StageTrainer, SFTTrainer):
    pass


def tokenize(tokenizer: PreTrainedTokenizerBase, messages: Messages, end: int) -> TokenRow | None:
    """Ids of a conversation up to its last assistant turn, with a loss on every assistant turn and its end-of-turn.

    Returns:
        `input_ids` and `labels` (−100 where no loss is taken), or None when no turn is the assistant's.

    Raises:
        TemplateRefuses: the template takes no such conversation, or renders a turn differently once others follow it.
    """
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        return None
    # Outer white space: some templates trim it, in others it would merge with the header's line end.
    messages = [{**m, "content": m["content"].strip()} if isinstance(m["content"], str) else m for m in messages]
    ids = render_conversation(tokenizer, messages[: turns[-1] + 1])
    labels = [IGNORED] * len(ids)
    stop = len(ids)
    for turn in turns:
        prompt = render_prompt(tokenizer, messages[:turn])
        start = len(prompt)
        if ids[:start] != prompt:
            raise TemplateRefuses(
                f"{tokenizer.name_or_path}: the chat template does not render the turns before answer {turn + 1} as it "
                "renders them alone, so the answer's tokens cannot be told from the rest. Use single-turn data, or a "
                "template that leaves earlier turns as they are."
            )
        stop = ids.index(end, start) + 1 if end in ids[start:] else len(ids)
        labels[start:stop] = ids[start:stop]
    return {"input_ids": ids[:stop], "labels": labels[:stop]}


def gradient_accumulation(section: str, batch_size: int, micro_batch_size: int, num_ranks: int) -> int:
    """Micro-batches of one rank in one step.

    Raises:
        ConfigError: the step cannot be cut evenly.
    """
    if batch_size % (micro_batch_size * num_ranks):
        raise ConfigError(
            f"{section}.batch_size={batch_size} is no multiple of {section}.micro_batch_size={micro_batch_size} times "
            f"{num_ranks} training ranks: change one of them, or compute.num_training_ranks"
        )
    return batch_size // (micro_batch_size * num_ranks)


def _rows(job: Job, tokenizer: PreTrainedTokenizerBase, counts: dict[str, int]) -> Iterator[TokenRow]:
    end, max_length = end_of_turn_id(tokenizer), job.config["max_length"]
    for number, record in enumerate(read_records(job.input_path("data")), start=1):
        counts["rows"] += 1
        messages = record.get("messages")
        if not isinstance(messages, list):
            raise DataError(
                f"{job.inputs['data']}: row {number} has no list `messages` but {sorted(record)}; each row is "
                '{"messages": [{"role": …, "content": …}, …]}'
            )
        try:
            row = tokenize(tokenizer, messages, end)
        except TemplateRefuses as error:
            counts["dropped_by_template"] += 1
            if counts["dropped_by_template"] == 1:
                _log.warning("conversations that the chat template does not take are dropped; the first: %s", error)
            continue
        if row is None:
            counts["dropped_no_answer"] += 1
        elif all(label == IGNORED for label in row["labels"][:max_length]):
            counts["dropped_long_prompt"] += 1
        else:
            counts["cut"] += len(row["input_ids"]) > max_length
            yield {name: ids[:max_length] for name, ids in row.items()}


def train_sft(job: Job, worker: Worker) -> Outcome:
    """Fine-tune `model` on `data`; write `model/` and `metrics.jsonl`. Every rank calls this."""
    config, source = job.config, job.input_path("model")
    own: dict[str, Any] = common_arguments(job, source) | {
        "num_train_epochs": config["num_epochs"],
        "per_device_train_batch_size": config["micro_batch_size"],
        "gradient_accumulation_steps": gradient_accumulation(
            "sft", config["batch_size"], config["micro_batch_size"], worker.world_size
        ),
        "lr_scheduler_type": "cosine",
        "max_length": None,  # cut here already
        "packing": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
    args = build_arguments(SFTConfig, "sft", own, config["trainer_args"])
    tokenizer = load_tokenizer(source, config["trust_remote_code"])
    counts = dict.fromkeys(("rows", "cut", "dropped_no_answer", "dropped_long_prompt", "dropped_by_template"), 0)
    tokens = job.out_path / "tokens.arrow"
    dataset = token_dataset(tokens, ["input_ids", "labels"], lambda: _rows(job, tokenizer, counts))
    if len(dataset) == 0:
        raise DataError(
            f"{job.inputs['data']}: no conversation to train on: {counts}. dropped_by_template: the model's chat "
            "template refuses their turns, or writes earlier turns differently once others follow: use single-turn "
            "data without a system turn, another model, or change the template in a copy of the model's folder."
        )
    model = load_model(source, resolve_dtype(config["dtype"], source), config["trust_remote_code"])
    trainer = _Trainer(model=model, args=args, train_dataset=dataset, processing_class=tokenizer)
    attach(trainer, source, worker)
    train_resumable(trainer, job.out_path)
    export_model(model, source, job.out_path / "model")
    rows = step_rows(trainer)
    if dist.is_initialized():
        dist.barrier()
    if worker.rank == 0:
        write_rows(job.out_path, rows)
        tokens.unlink()
        remove_checkpoints(job.out_path)
    metrics = {"first_loss": rows[0]["loss"], "last_loss": rows[-1]["loss"]}
    return Outcome(counts | {"conversations": len(dataset), "steps": len(rows)}, metrics)
