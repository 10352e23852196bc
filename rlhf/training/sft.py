"""Supervised fine-tuning with TRL on token ids rendered here."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from rlhf.config.choices import SpecialTokens
from rlhf.config.stage_configs import SftStage
from rlhf.config.step_count import steps_of
from rlhf.data.conversations import read_conversations
from rlhf.data.json_text import json_text
from rlhf.data.records import what_became
from rlhf.data.shards import write_atomic
from rlhf.errors import ConfigError, DataError, TemplateRefuses
from rlhf.models.chat_template import end_of_turn_id, load_tokenizer, render_conversation, render_prompt
from rlhf.models.template import Messages
from rlhf.models.written import require_written
from rlhf.run.job import Job, Outcome, Worker
from rlhf.training.arguments import micro_batches, stage_arguments
from rlhf.training.fit import fit
from rlhf.training.held_out import split, sum_over, to_device
from rlhf.training.ranks import own_rank
from rlhf.training.stage_trainer import StageTrainer
from rlhf.training.tokens import (
    IGNORED,
    PACKS,
    TOKENS,
    TokenRow,
    count_refused,
    count_spelled,
    pack,
    token_dataset,
)
from rlhf.training.weights import export_model, load_model, resolve_dtype

_COLUMNS = ["input_ids", "labels"]


class _Trainer(StageTrainer, SFTTrainer):
    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:
        self.section = section
        super().__init__(*args, **kwargs)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)
        # Only now is the model wrapped, as the ranks need it under ZeRO-3.
        if self.args.packing:
            refuse_leaks(self)
        return prepared


def tokenize(tokenizer: PreTrainedTokenizerBase, messages: Messages, end: int) -> TokenRow | None:
    """Ids of a conversation up to its last assistant turn.

    The loss is taken on every assistant turn and its end-of-turn.

    Returns:
        `input_ids` and `labels` (−100 where no loss is taken), or None when no turn is the
        assistant's.

    Raises:
        TemplateRefuses: the template takes no such conversation, renders a turn differently once
            others follow it, or changes an answer.

    Example:
        {"input_ids": [128000, 882, 15339, 9906, 128009], "labels": [-100, -100, -100, 9906, 128009]}
    """
    assistant_turns = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            assistant_turns.append(index)
    if not assistant_turns:
        return None
    messages = [_without_outer_space(message) for message in messages]
    ids = render_conversation(tokenizer, messages[: assistant_turns[-1] + 1])
    labels = [IGNORED] * len(ids)
    stop = len(ids)
    for turn in assistant_turns:
        prompt = render_prompt(tokenizer, messages[:turn])
        start = len(prompt)
        if ids[:start] != prompt:
            raise TemplateRefuses(
                f"{tokenizer.name_or_path}: the chat template does not render the turns before answer "
                f"{turn + 1} as it renders them alone, so the answer's tokens cannot be told from the rest. "
                "Use single-turn data, or a template that leaves earlier turns as they are."
            )
        # Some templates write no end-of-turn behind the last answer.
        stop = ids.index(end, start) + 1 if end in ids[start:] else len(ids)
        labels[start:stop] = ids[start:stop]
    require_written(tokenizer, messages[: assistant_turns[-1] + 1], assistant_turns)
    # What a template writes behind the last end-of-turn, such as a line end, is never sampled.
    return {"input_ids": ids[:stop], "labels": labels[:stop]}


def _without_outer_space(message: Any) -> Any:
    """A message without outer white space."""
    if not isinstance(message["content"], str):
        return message
    # Some templates trim it, in others it would merge with the header's line end.
    return {**message, "content": message["content"].strip()}


def _rows(
    job: Job[SftStage],
    tokenizer: PreTrainedTokenizerBase,
    counts: Counter[str],
) -> Iterator[TokenRow]:
    """Conversations as token ids, cut at the end."""
    end = end_of_turn_id(tokenizer)
    max_length = job.config.max_length
    for messages in read_conversations(job.input_path("data"), counts, columns=job.config.columns):
        count_spelled(counts, tokenizer, messages)
        try:
            row = tokenize(tokenizer, messages, end)
        except TemplateRefuses as error:
            count_refused(counts, error)
            continue
        if row is None:
            counts["dropped/no_answer"] += 1
            continue
        cut_row = {column: ids[:max_length] for column, ids in row.items()}
        # A row without a label would make the mean over its labels not finite.
        if all(label == IGNORED for label in cut_row["labels"]):
            counts["dropped/long_prompt"] += 1
            continue
        if len(row["input_ids"]) > max_length:
            counts["cut"] += 1
        yield cut_row


def _packs(dataset: Any, max_length: int) -> Iterator[TokenRow]:
    """Conversations one behind the other, and how long each is.

    Example:
        {"input_ids": [1, 5, 6, 1, 7], "labels": [-100, 5, 6, -100, 7], "seq_lengths": [3, 2]}
    """
    lengths = [len(ids) for ids in dataset["input_ids"]]
    for members in pack(lengths, max_length):
        joined: TokenRow = {"input_ids": [], "labels": [], "seq_lengths": []}
        for index in members:
            row = dataset[index]
            joined["input_ids"] += row["input_ids"]
            joined["labels"] += row["labels"]
            joined["seq_lengths"].append(len(row["input_ids"]))
        yield joined


@torch.no_grad()
def refuse_leaks(trainer: Any) -> None:
    """Make sure that packed conversations do not see each other in this model. Every rank calls it.

    Positions that begin anew at each conversation are all that tells where one ends; most attention
    of transformers masks by them, but some models make positions or masks of their own. Here the
    first of two conversations changes, and what the model says of the second may not.

    Raises:
        ConfigError: it does.
    """
    length = 8
    vocab_size = trainer.model.get_input_embeddings().num_embeddings
    second = list(range(length, 0, -1))
    logits_of_second = []
    trainer.model_wrapped.eval()
    for shift in (1, 2):
        first = [(token * shift + shift) % vocab_size for token in range(length)]
        ids = first + second
        row = {"input_ids": ids, "labels": ids, "seq_lengths": [len(first), len(second)]}
        batch = to_device(trainer.data_collator([row]), trainer.args.device)
        # Without labels the model computes no loss, only logits.
        del batch["labels"]
        logits = trainer.model_wrapped(**batch, use_cache=False).logits
        logits_of_second.append(logits[:, length:])
    before, after = logits_of_second
    # Masked tokens weigh nothing at all, but a mixture's experts are rounded by what else they
    # compute.
    tolerance = max(1e-5, 8 * torch.finfo(before.dtype).eps)
    if (before - after).abs().max().item() > tolerance * before.abs().max().item():
        section = trainer.section
        raise ConfigError(
            f"{section}.packing=true: in a {type(trainer.model).__name__} a conversation sees the one packed "
            f"before it, so packing would train on something else than the data. Set {section}.packing=false "
            f"(and a larger {section}.micro_batch_size for speed), or use another model."
        )


def held_out_loss(trainer: Any, dataset: Any, micro_batch_size: int) -> dict[str, float]:
    """Mean loss, in nats, of the tokens that a loss is taken on; nothing without conversations.

    Every rank calls it.

    Example:
        {"held_out_loss": 1.07}
    """
    if len(dataset) == 0:
        return {}

    def loss_and_num_tokens(model: Any, rows: list[dict[str, Any]]) -> Tensor:
        batch = to_device(trainer.data_collator(rows), trainer.args.device)
        # TRL's head, which never holds the logits of all tokens at once.
        outputs = model(**batch, use_cache=False, fused_lm_head=True)
        loss = -outputs.log_probs.double().sum()
        num_tokens = outputs.label_mask.double().sum()
        return torch.stack([loss, num_tokens])

    # The mean over tokens, not over batches, so that it depends on no batch size.
    loss, num_tokens = sum_over(trainer, dataset, micro_batch_size, loss_and_num_tokens)
    return {"held_out_loss": loss / num_tokens}


def _datasets(
    job: Job[Any], make_rows: Callable[[], Iterator[TokenRow]], counts: Counter[str]
) -> tuple[Any, Any]:
    """What to train on, packed if so configured, and what is held out. Every rank calls it.

    Raises:
        NothingToTrain: no row is left.
    """
    config = job.config
    dataset = token_dataset(job.out_path / TOKENS, _COLUMNS, make_rows)
    training, held_out = split(len(dataset), config.held_out_share, job.seed)
    if not training:
        raise NothingToTrain
    counts["conversations"] = len(training)
    counts["held_out"] = len(held_out)
    training_rows = dataset.select(training)
    if config.packing:
        make_packs = partial(_packs, training_rows, config.max_length)
        training_rows = token_dataset(job.out_path / PACKS, [*_COLUMNS, "seq_lengths"], make_packs)
        counts["packs"] = len(training_rows)
    return training_rows, dataset.select(held_out)


def _export(
    model: Any,
    source: Path,
    out: Path,
    new_tokenizer: PreTrainedTokenizerBase | None,
) -> None:
    """Write the model folder; with a new tokenizer the model stops where that ends a turn."""
    export_model(model, source, out, tokenizer=new_tokenizer)
    if new_tokenizer is not None and own_rank() == 0:
        _stop_at(out, end_of_turn_id(new_tokenizer))


def _stop_at(folder: Path, end: int) -> None:
    """Let generation_config.json of a base model stop at the end of a turn too."""
    path = folder / "generation_config.json"
    settings = {}
    if path.is_file():
        settings = json.loads(path.read_text(encoding="utf-8"))
    # One id, a list of them, or nothing, as transformers takes them.
    stops = settings.get("eos_token_id") or []
    if isinstance(settings.get("eos_token_id"), int):
        stops = [settings["eos_token_id"]]
    settings["eos_token_id"] = sorted({*stops, end})
    text = json_text(settings, indent=2, sort_keys=True)
    write_atomic(path, f"{text}\n".encode())


class NothingToTrain(Exception):
    """No row is left; why, whoever made the rows says."""


def train_sft(job: Job[SftStage], worker: Worker) -> Outcome:
    """Fine-tune `model` on `data`; write `model/` and `metrics.jsonl`. Every rank calls this.

    Raises:
        DataError: there is no conversation to train on.
        ConfigError: the batch size cannot be cut evenly, packed conversations would see each other
            in this model, or `trainer_args` has a wrong key.
    """
    counts: Counter[str] = Counter(rows=0, cut=0)
    try:
        return fine_tune(job, worker, partial(_rows, job), counts, job.config.chat_template)
    except NothingToTrain:
        raise DataError(
            f"{job.inputs['data']}: no conversation to train on ({what_became(counts)}). "
            "refused_by_template: the model's chat template refuses their turns, or writes earlier ones "
            "differently once others follow: use single-turn data without a system turn, another model, "
            "or change the template in a copy of its folder. changed_by_template: the template of "
            f"{job.inputs['model']} does not write answers as they stand (it may take "
            "<think>…</think> out of "
            "them): change it likewise, or take such rows out of the data."
        ) from None


def fine_tune(
    job: Job[Any],
    worker: Worker,
    make_rows: Callable[[PreTrainedTokenizerBase, Counter[str]], Iterator[TokenRow]],
    counts: Counter[str],
    chat_template: str | None = None,
) -> Outcome:
    """Train the model of `job.inputs["model"]` on rows of token ids with TRL. Every rank calls this.

    Args:
        job: of a stage whose section has the fields of `SftSettings` that say how to train.
        worker: the stage's.
        make_rows: gives the rows, of the model's tokenizer, and counts what became of the data.
        counts: what it adds to.
        chat_template: of a model that has none; None takes its own.

    Raises:
        NothingToTrain: it gives none.
    """
    worker.progress(0, 0, "reading the data and loading the model")
    config = job.config
    section = job.stage
    source = job.input_path("model")
    own = micro_batches(section, config, worker.world_size) | {
        "max_length": config.max_length if config.packing else None,  # cut and packed here already
        "packing": config.packing,
        "dataset_kwargs": {"skip_prepare_dataset": True},  # its rows are token ids already
    }
    args = stage_arguments(SFTConfig, section, job, source, own)
    special_tokens = getattr(config, "special_tokens", SpecialTokens.text)
    tokenizer = load_tokenizer(source, config.trust_remote_code, chat_template, special_tokens)
    training_rows, held_out_rows = _datasets(job, partial(make_rows, tokenizer, counts), counts)
    model = load_model(source, resolve_dtype(config.dtype, source), config.trust_remote_code)
    trainer = _Trainer(
        model=model,
        args=args,
        train_dataset=training_rows,
        processing_class=tokenizer,
        section=section,
    )
    # One that only read the model's own template is not written: the source's files are copied.
    new_tokenizer = None if chat_template is None else tokenizer
    return fit(
        trainer,
        source,
        job,
        worker,
        counts,
        steps_of(section, config, len(training_rows), "packs" if config.packing else "conversations"),
        export=partial(_export, model, source, job.out_path / "model", new_tokenizer),
        measure=partial(held_out_loss, trainer, held_out_rows, config.micro_batch_size),
    )
