"""A Bradley-Terry reward model (arXiv 2405.07863, section 2): one logit per conversation, −log σ(r_c − r_r)."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from trl import RewardConfig, RewardTrainer

from rlhf.config.stage_configs import RewardModelStage
from rlhf.data.preferences import preferences_with_rows
from rlhf.data.records import Message, what_became
from rlhf.data.shards import read_all_rows
from rlhf.errors import DataError, TemplateRefuses
from rlhf.models.chat import end_of_turn_id, load_tokenizer, render_conversation
from rlhf.run.job import Job, Outcome, Worker
from rlhf.training.checkpoints import train_resumable
from rlhf.training.sft import gradient_accumulation
from rlhf.training.stage_trainer import (
    StageTrainer,
    attach,
    build_arguments,
    common_arguments,
    step_rows,
    sum_over,
    write_rows,
)
from rlhf.training.tokens import TokenRow, count_refused, split, token_dataset
from rlhf.training.weights import export_model, load_model, resolve_dtype

_COLUMNS = ["chosen_ids", "rejected_ids"]
_MAX_SOURCES = 50
"""Sources with an accuracy of their own; pairs of further ones count together as `other`."""
_log = logging.getLogger(__name__)


class _Trainer(StageTrainer, RewardTrainer):
    pass


class Fp32Linear(nn.Linear):
    """A score head that computes in fp32: bf16 scores between 4 and 8 come in steps of 1/32."""

    def forward(self, input: Tensor) -> Tensor:
        """Rows of fp32 logits."""
        bias = None if self.bias is None else self.bias.float()
        return F.linear(input.float(), self.weight.float(), bias)


def ensure_pad(tokenizer: PreTrainedTokenizerBase, model: Any) -> None:
    """Give tokenizer and model a pad token that no conversation contains: neither eos nor what ends a turn.

    The score is read at the last token that is not padding: with pad = end-of-turn it would be read at an earlier
    turn, and chosen and rejected would score the same.
    """
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id, end_of_turn_id(tokenizer)):
        vocabulary = tokenizer.get_vocab()
        spare = [t for t in ("<|finetune_right_pad_id|>", "<|reserved_special_token_0|>", "<pad>") if t in vocabulary]
        tokenizer.add_special_tokens({"pad_token": spare[0] if spare else "<pad>"})
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def source_of(row: Mapping[str, Any]) -> str:
    """Where a row of a preference file says it comes from, else "data"."""
    named = (row.get(key) for key in ("source", "dataset", "subset"))
    return next((name.strip() for name in named if isinstance(name, str) and name.strip()), "data")


def conversations(job: Job[Any], counts: Counter[str]) -> Iterator[tuple[str, list[Message], str, str]]:
    """Source, context, chosen and rejected answer: of the preference file, then of π0's own pairs."""
    for given, preference in preferences_with_rows(job.input_path("data"), counts):
        yield source_of(given), *preference
    if "on_policy" in job.inputs:
        for row in read_all_rows(job.input_path("on_policy"), ["messages", "chosen", "rejected"]):
            counts["rows"] += 1
            counts["on_policy"] += 1
            yield "on_policy", row["messages"], row["chosen"], row["rejected"]


def _rows(
    job: Job[RewardModelStage], tokenizer: PreTrainedTokenizerBase, counts: Counter[str], sources: dict[str, int]
) -> Iterator[TokenRow]:
    """Pairs as token ids; `sources` gets a number for the name of each source."""
    max_length = job.config.max_length
    for source, messages, *answers in conversations(job, counts):
        try:
            chosen, rejected = (
                render_conversation(tokenizer, [*messages, {"role": "assistant", "content": answer}])
                for answer in answers
            )
        except TemplateRefuses as error:
            count_refused(counts, error)
            continue
        if chosen == rejected:
            counts["dropped/identical"] += 1
            continue
        counts["cut_left"] += max(len(chosen), len(rejected)) > max_length
        name = source if source in sources or len(sources) < _MAX_SOURCES else "other"
        number = sources.setdefault(name, len(sources))
        yield {"chosen_ids": chosen[-max_length:], "rejected_ids": rejected[-max_length:], "source": [number]}


def accuracies(trainer: Any, dataset: Any, micro_batch_size: int, sources: list[str]) -> dict[str, float | None]:
    """Share of pairs whose chosen score is the higher one, over all and by source; a tie is wrong.

    Every rank calls it. None without pairs; nothing by source where there is one source only.
    """
    if len(dataset) == 0:
        return {"held_out_accuracy": None}
    pairs_of = Counter(number for (number,) in dataset["source"])

    def right(model: Any, rows: list[dict[str, Any]]) -> Tensor:
        batch = trainer.data_collator([{name: row[name] for name in _COLUMNS} for row in rows])
        batch = {name: value.to(trainer.args.device) for name, value in batch.items()}
        chosen_B, rejected_B = model(**batch, use_cache=False).logits.squeeze(-1).float().chunk(2)
        source_B = torch.tensor([row["source"][0] for row in rows], device=chosen_B.device)
        return (chosen_B > rejected_B).double() @ F.one_hot(source_B, max(pairs_of) + 1).double()

    found = sum_over(trainer, dataset, micro_batch_size, right)
    metrics: dict[str, float | None] = {"held_out_accuracy": sum(found) / len(dataset)}
    if len(sources) > 1:
        by_source = {name: found[i] / pairs_of[i] for i, name in enumerate(sources) if pairs_of[i]}
        metrics |= {f"held_out_accuracy/{name}": share for name, share in sorted(by_source.items())}
    return metrics


def _config(source: dict[str, Any], model: Any, vocab_size: int, pad_token_id: int) -> dict[str, Any]:
    """What config.json of the result says: the source's, as a classifier with one logit."""
    return source | {
        "architectures": [type(model).__name__],
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "pad_token_id": pad_token_id,
        "vocab_size": vocab_size,
    }


def train_reward_model(job: Job[RewardModelStage], worker: Worker) -> Outcome:
    """Train a judge from `model` on `data` and `on_policy`; write `model/` and `metrics.jsonl`. Every rank calls it."""
    config, source, micro = job.config, job.input_path("model"), job.config.micro_batch_size
    own: dict[str, Any] = common_arguments(job, source) | {
        "num_train_epochs": config.num_epochs,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": gradient_accumulation(
            "reward_model", config.batch_size, micro, worker.world_size
        ),
        "lr_scheduler_type": "cosine",
        "max_length": None,  # cut here already, on the left
    }
    args = build_arguments(RewardConfig, "reward_model", own, config.trainer_args)
    tokenizer = load_tokenizer(source, config.trust_remote_code)
    torch.manual_seed(job.seed)  # of the new score head
    model = load_model(source, resolve_dtype(config.dtype, source), config.trust_remote_code, reward_model=True)
    ensure_pad(tokenizer, model)
    if isinstance(getattr(model, "score", None), nn.Linear):
        model.score.__class__ = Fp32Linear
    counts: Counter[str] = Counter(rows=0, cut_left=0)
    sources: dict[str, int] = {}
    tokens = job.out_path / "tokens.arrow"
    dataset = token_dataset(tokens, [*_COLUMNS, "source"], lambda: _rows(job, tokenizer, counts, sources))
    train, held_out = split(len(dataset), config.held_out_share, job.seed)
    if not train:
        raise DataError(
            f"{job.inputs['data']}: no pair to train on ({what_became(counts, 'comparisons')}). Pairs refused by the "
            "template have turns that the chat template of reward_model.path does not take: use other pairs or another "
            "model, or change the template in a copy of its folder."
        )
    pairs = dataset.select(train).select_columns(_COLUMNS)
    trainer = _Trainer(model=model, args=args, train_dataset=pairs, processing_class=tokenizer)
    attach(trainer, source, worker)
    train_resumable(trainer, job.out_path)
    metrics = accuracies(trainer, dataset.select(held_out), micro, list(sources))
    source_config = json.loads((source / "config.json").read_text())
    vocab_size = model.get_input_embeddings().num_embeddings
    result = _config(source_config, model, vocab_size, int(tokenizer.pad_token_id))
    export_model(model, source, job.out_path / "model", result, tokenizer)
    rows = step_rows(trainer)
    if worker.rank == 0:
        write_rows(job.out_path, rows)
        tokens.unlink()
    metrics |= {"first_loss": rows[0]["loss"], "last_loss": rows[-1]["loss"]}
    return Outcome(dict(counts) | {"pairs": len(train), "held_out": len(held_out), "steps": len(rows)}, metrics)
