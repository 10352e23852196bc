"""Supervised fine-tuning with TRL on token ids rendered here."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from rlhf.config.stage_configs import SftStage
from rlhf.data.conversations import read_conversations
from rlhf.data.records import what_became
from rlhf.data.shards import write_atomic
from rlhf.errors import ConfigError, DataError, TemplateRefuses
from rlhf.models.chat import Messages, end_of_turn_id, load_tokenizer, render_conversation, render_prompt
from rlhf.run.job import Job, Outcome, Worker
from rlhf.training.checkpoints import train_resumable
from rlhf.training.stage_trainer import (
    StageTrainer,
    attach,
    build_arguments,
    common_arguments,
    step_rows,
    sum_over,
    write_rows,
)
from rlhf.training.tokens import TokenRow, count_refused, pack, split, token_dataset
from rlhf.training.weights import export_model, load_model, resolve_dtype

_log = logging.getLogger(__name__)
_COLUMNS = ["input_ids", "labels"]
_FILES = ("tokens.arrow", "packs.arrow")
IGNORED = -100
"""Label of a token that no loss is taken on."""


class _Trainer(StageTrainer, SFTTrainer):
    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)
        if self.args.packing:
            refuse_leaks(self)
        return prepared


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


def _rows(job: Job[SftStage], tokenizer: PreTrainedTokenizerBase, counts: Counter[str]) -> Iterator[TokenRow]:
    end, max_length = end_of_turn_id(tokenizer), job.config.max_length
    for messages in read_conversations(job.input_path("data"), counts):
        try:
            row = tokenize(tokenizer, messages, end)
        except TemplateRefuses as error:
            count_refused(counts, error)
            continue
        if row is None:
            counts["dropped/no_answer"] += 1
        elif all(label == IGNORED for label in row["labels"][:max_length]):
            counts["dropped/long_prompt"] += 1
        else:
            counts["cut"] += len(row["input_ids"]) > max_length
            yield {name: ids[:max_length] for name, ids in row.items()}


def _packs(dataset: Any, max_length: int) -> Iterator[TokenRow]:
    """Conversations one behind the other, and how long each is."""
    for members in pack([len(ids) for ids in dataset["input_ids"]], max_length):
        rows = [dataset[i] for i in members]
        joined = {name: [token for row in rows for token in row[name]] for name in _COLUMNS}
        yield joined | {"seq_lengths": [len(row["input_ids"]) for row in rows]}


@torch.no_grad()
def refuse_leaks(trainer: Any) -> None:
    """Make sure that packed conversations do not see each other in this model. Every rank calls it.

    Positions that begin anew at each conversation are all that tells where one ends; most attention of transformers
    masks by them, but some models make positions or masks of their own. Here the first of two conversations changes,
    and what the model says of the second may not.

    Raises:
        ConfigError: it does.
    """
    first, vocab_size = 8, trainer.model.get_input_embeddings().num_embeddings
    ids = [*range(first), *range(first, 0, -1)]
    said = []
    trainer.model_wrapped.eval()
    for shift in (1, 2):
        changed = [(token * shift + shift) % vocab_size for token in ids[:first]] + ids[first:]
        row = {"input_ids": changed, "labels": changed, "seq_lengths": [first, len(ids) - first]}
        batch = {name: _to(value, trainer.args.device) for name, value in trainer.data_collator([row]).items()}
        del batch["labels"]
        said.append(trainer.model_wrapped(**batch, use_cache=False).logits[:, first:])
    # Masked tokens weigh nothing at all, but experts of a mixture are rounded by what else they compute.
    rounding = max(1e-5, 8 * torch.finfo(said[0].dtype).eps) * said[0].abs().max().item()
    if (said[0] - said[1]).abs().max().item() > rounding:
        raise ConfigError(
            f"sft.packing=true: in a {type(trainer.model).__name__} a conversation sees the one packed before it, so "
            "packing would train on something else than the data. Set sft.packing=false (and a larger "
            "sft.micro_batch_size for speed), or use another model."
        )


def held_out_loss(trainer: Any, dataset: Any, micro_batch_size: int) -> float:
    """Mean loss, in nats, of the tokens that a loss is taken on. Every rank calls it."""

    def loss_and_tokens(model: Any, rows: list[dict[str, Any]]) -> Tensor:
        batch = {name: _to(value, trainer.args.device) for name, value in trainer.data_collator(rows).items()}
        outputs = model(**batch, use_cache=False, fused_lm_head=True)  # TRL's, without a tensor of all logits
        return torch.stack([-outputs.log_probs.double().sum(), outputs.label_mask.double().sum()])

    loss, tokens = sum_over(trainer, dataset, micro_batch_size, loss_and_tokens)
    return loss / tokens


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _stop_at(folder: Path, end: int) -> None:
    """Let generation_config.json of a base model stop at the end of a turn too."""
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text()) if path.is_file() else {}
    before = settings.get("eos_token_id")
    stops = [before] if isinstance(before, int) else before or []
    settings["eos_token_id"] = sorted({*stops, end})
    write_atomic(path, (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode())


def _datasets(job: Job[SftStage], tokenizer: PreTrainedTokenizerBase, counts: Counter[str]) -> tuple[Any, Any]:
    """What to train on, packed if so configured, and the held-out conversations. Every rank calls it.

    Raises:
        DataError: no conversation is left.
    """
    config = job.config
    dataset = token_dataset(job.out_path / _FILES[0], _COLUMNS, lambda: _rows(job, tokenizer, counts))
    train, held_out = split(len(dataset), config.held_out_share, job.seed)
    if not train:
        raise DataError(
            f"{job.inputs['data']}: no conversation to train on ({what_became(counts)}). refused_by_template: the "
            "model's chat template refuses their turns, or writes earlier ones differently once others follow: use "
            "single-turn data without a system turn, another model, or change the template in a copy of its folder."
        )
    counts.update(conversations=len(train), held_out=len(held_out))
    kept = dataset.select(train)
    if config.packing:
        columns = [*_COLUMNS, "seq_lengths"]
        kept = token_dataset(
            job.out_path / _FILES[1], columns, lambda: _packs(dataset.select(train), config.max_length)
        )
        counts["packs"] = len(kept)
        if len(kept) < config.batch_size:
            _log.warning(
                "all data makes %d packs, less than one step of sft.batch_size=%d", len(kept), config.batch_size
            )
    return kept, dataset.select(held_out)


def train_sft(job: Job[SftStage], worker: Worker) -> Outcome:
    """Fine-tune `model` on `data`; write `model/` and `metrics.jsonl`. Every rank calls this."""
    config, source = job.config, job.input_path("model")
    own: dict[str, Any] = common_arguments(job, source) | {
        "num_train_epochs": config.num_epochs,
        "per_device_train_batch_size": config.micro_batch_size,
        "gradient_accumulation_steps": gradient_accumulation(
            "sft", config.batch_size, config.micro_batch_size, worker.world_size
        ),
        "lr_scheduler_type": "cosine",
        "max_length": config.max_length if config.packing else None,  # cut and packed here already
        "packing": config.packing,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
    args = build_arguments(SFTConfig, "sft", own, config.trainer_args)
    tokenizer = load_tokenizer(source, config.trust_remote_code, config.chat_template)
    counts: Counter[str] = Counter(rows=0, cut=0)
    dataset, held_out = _datasets(job, tokenizer, counts)
    model = load_model(source, resolve_dtype(config.dtype, source), config.trust_remote_code)
    trainer = _Trainer(model=model, args=args, train_dataset=dataset, processing_class=tokenizer)
    attach(trainer, source, worker)
    train_resumable(trainer, job.out_path)
    metrics = {}
    if len(held_out):
        metrics["held_out_loss"] = held_out_loss(trainer, held_out, config.micro_batch_size)
    given = config.chat_template is not None
    export_model(model, source, job.out_path / "model", tokenizer=tokenizer if given else None)
    rows = step_rows(trainer)
    if dist.is_initialized():
        dist.barrier()
    if worker.rank == 0:
        if given:
            _stop_at(job.out_path / "model", end_of_turn_id(tokenizer))
        write_rows(job.out_path, rows)
        for name in _FILES:
            (job.out_path / name).unlink(missing_ok=True)
    metrics |= {"first_loss": rows[0]["loss"], "last_loss": rows[-1]["loss"]}
    return Outcome(dict(counts) | {"steps": len(rows)}, metrics)
