"""A Bradley-Terry reward model (arXiv 2405.07863, section 2): one logit r per conversation.

The loss of a pair is −log σ(r_chosen − r_rejected).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl import RewardConfig, RewardTrainer

from rlhf.config.stage_configs import RewardModelStage
from rlhf.config.step_count import steps_of
from rlhf.data.origins import origin_of
from rlhf.data.preferences import preferences_with_rows
from rlhf.data.records import Message, what_became
from rlhf.data.shards import read_all_rows
from rlhf.errors import DataError, TemplateRefuses
from rlhf.models.chat_template import end_of_turn_id, load_tokenizer, render_conversation
from rlhf.models.written import require_written
from rlhf.run.job import Job, Outcome, Worker
from rlhf.training.arguments import micro_batches, stage_arguments
from rlhf.training.deepspeed import on_gpu
from rlhf.training.fit import add_warning, fit
from rlhf.training.held_out import split, sum_over, to_device
from rlhf.training.response_batches import why_not_packed, why_slower
from rlhf.training.score_head import pack_pairs, packed_scores, use_fp32_head
from rlhf.training.shared_attention import share_prompts
from rlhf.training.stage_trainer import StageTrainer
from rlhf.training.tokens import TOKENS, TokenRow, count_refused, count_spelled, token_dataset
from rlhf.training.weights import export_model, load_model, resolve_dtype

_COLUMNS = ["chosen_ids", "rejected_ids"]
_SPARE_TOKENS = ("<|finetune_right_pad_id|>", "<|reserved_special_token_0|>", "<pad>")
"""Tokens of common vocabularies that stand in no conversation, the best one to pad with first."""
_MAX_SOURCES = 50
"""Sources with an accuracy of their own; pairs of further ones count together as `other`."""


class _Trainer(StageTrainer, RewardTrainer):
    def compute_loss(self, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
        """TRL's loss and metrics, whichever way a batch goes through the model."""
        if "prompt_groups" in inputs:
            model = partial(packed_scores, model)
        return super().compute_loss(model, inputs, *rest, **named)


def ensure_pad(tokenizer: PreTrainedTokenizerBase, model: Any) -> None:
    """Give tokenizer and model a pad token that no conversation contains.

    So it is neither eos nor what ends a turn. The score is read at the last token that is not
    padding: with pad = end-of-turn it would be read at an earlier turn, and chosen and rejected
    would score the same.
    """
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id, end_of_turn_id(tokenizer)):
        vocabulary = tokenizer.get_vocab()
        spare = [token for token in _SPARE_TOKENS if token in vocabulary]
        pad_token = spare[0] if spare else "<pad>"
        # One that is not in the vocabulary yet is added to it, and needs an embedding.
        tokenizer.add_special_tokens({"pad_token": pad_token})
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    # A multimodal model keeps it in the config of its language part, and looks it up there.
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def sourced_preferences(
    job: Job[Any],
    counts: Counter[str],
) -> Iterator[tuple[str, list[Message], str, str]]:
    """Source, context, chosen and rejected answer: of the preference file, then of π0's own pairs.

    Example:
        ("hh-rlhf", [{"role": "user", "content": "2+2?"}], "4", "5")
    """
    for row, preference in preferences_with_rows(job.input_path("data"), counts, columns=job.config.columns):
        messages, chosen, rejected = preference
        yield origin_of(row).source or "data", messages, chosen, rejected
    if "on_policy" in job.inputs:
        for row in read_all_rows(job.input_path("on_policy"), ["messages", "chosen", "rejected"]):
            counts["rows"] += 1
            counts["on_policy"] += 1
            yield "on_policy", row["messages"], row["chosen"], row["rejected"]


def _rows(
    job: Job[RewardModelStage],
    tokenizer: PreTrainedTokenizerBase,
    counts: Counter[str],
    sources: dict[str, int],
) -> Iterator[TokenRow]:
    """Pairs as token ids; `sources` gets a number for the name of each source.

    Example:
        {"chosen_ids": [128000, 17, 128009], "rejected_ids": [128000, 19, 128009], "source": [0]}
    """
    max_length = job.config.max_length
    for source, messages, chosen, rejected in sourced_preferences(job, counts):
        count_spelled(counts, tokenizer, [*messages, _turn(chosen), _turn(rejected)])
        try:
            chosen_ids = _conversation_ids(tokenizer, messages, chosen)
            rejected_ids = _conversation_ids(tokenizer, messages, rejected)
        except TemplateRefuses as error:
            count_refused(counts, error)
            continue
        # Texts that differ may still be the same tokens, when the template trims white space.
        if chosen_ids == rejected_ids:
            counts["dropped/identical"] += 1
            continue
        if max(len(chosen_ids), len(rejected_ids)) > max_length:
            counts["cut_left"] += 1
        # On the left: the answers stand at the end, and the score is read at the last token.
        yield {
            "chosen_ids": chosen_ids[-max_length:],
            "rejected_ids": rejected_ids[-max_length:],
            "source": [_source_number(source, sources)],
        }


def _conversation_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    answer: str,
) -> list[int]:
    conversation = [*messages, _turn(answer)]
    require_written(tokenizer, conversation, [len(messages)])
    return render_conversation(tokenizer, conversation)


def _turn(answer: str) -> Message:
    return {"role": "assistant", "content": answer}


def _source_number(source: str, sources: dict[str, int]) -> int:
    """The number of a source: a new one if it is new, while there are few."""
    if source not in sources and len(sources) >= _MAX_SOURCES:
        source = "other"
    return sources.setdefault(source, len(sources))


def accuracies(
    trainer: Any,
    dataset: Any,
    micro_batch_size: int,
    sources: list[str],
) -> dict[str, float | None]:
    """Share of pairs whose chosen score is the higher one, over all and by source; a tie is wrong.

    Every rank calls it. None without pairs; nothing by source where there is one source only.

    Example:
        {"held_out_accuracy": 0.71, "held_out_accuracy/hh": 0.65, "held_out_accuracy/on_policy": 0.8}
    """
    if len(dataset) == 0:
        return {"held_out_accuracy": None}
    num_pairs_by_source = Counter(number for (number,) in dataset["source"])
    num_sources = max(num_pairs_by_source) + 1

    def num_correct_by_source(model: Any, rows: list[dict[str, Any]]) -> Tensor:
        pairs = []
        for row in rows:
            pairs.append({column: row[column] for column in _COLUMNS})
        batch = to_device(trainer.data_collator(pairs), trainer.args.device)
        score = partial(packed_scores, model) if "prompt_groups" in batch else model
        # As TRL's collator and ours have it: all chosen conversations before all rejected ones.
        scores = score(**batch, use_cache=False).logits.squeeze(-1).float()
        chosen_B, rejected_B = scores.chunk(2)
        correct_B = (chosen_B > rejected_B).double()
        source_B = torch.tensor([row["source"][0] for row in rows], device=correct_B.device)
        return correct_B @ F.one_hot(source_B, num_sources).double()

    num_correct = sum_over(trainer, dataset, micro_batch_size, num_correct_by_source)
    metrics: dict[str, float | None] = {"held_out_accuracy": sum(num_correct) / len(dataset)}
    if len(sources) > 1:
        for name in sorted(sources):
            number = sources.index(name)
            # All pairs of a source may be among those trained on.
            if num_pairs_by_source[number]:
                share = num_correct[number] / num_pairs_by_source[number]
                metrics[f"held_out_accuracy/{name}"] = share
    return metrics


def _load_classifier(
    job: Job[RewardModelStage],
    source: Path,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[Any, str]:
    """The model with a score head, new where it has none, and with a pad token, as `tokenizer`.

    Also why its pairs are padded; "" where it computes packed ones from here on.
    """
    config = job.config
    torch.manual_seed(job.seed)  # of the new score head
    dtype = resolve_dtype(config.dtype, source)
    model = load_model(source, dtype, config.trust_remote_code, reward_model=True)
    ensure_pad(tokenizer, model)
    why_padded = use_fp32_head(model) or why_not_packed(config.trainer_args) or share_prompts(model)
    return model, why_padded


def _classifier_config(source: Path, model: Any, pad_token_id: int) -> dict[str, Any]:
    """What config.json of the result says: the source's, as a classifier with one logit."""
    config: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
    return config | {
        "architectures": [type(model).__name__],
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "pad_token_id": pad_token_id,
        "vocab_size": model.get_input_embeddings().num_embeddings,
    }


def train_reward_model(job: Job[RewardModelStage], worker: Worker) -> Outcome:
    """Train a judge from `model` on `data` and `on_policy`. Every rank calls it.

    Writes `model/` and `metrics.jsonl`.

    Raises:
        DataError: there is no pair to train on.
        ConfigError: the batch size cannot be cut evenly, or `trainer_args` has a wrong key.
    """
    worker.progress(0, 0, "reading the data and loading the model")
    config = job.config
    source = job.input_path("model")
    own: dict[str, Any] = micro_batches("reward_model", config, worker.world_size)
    own["max_length"] = None  # cut here already, on the left
    args = stage_arguments(RewardConfig, "reward_model", job, source, own)
    tokenizer = load_tokenizer(source, config.trust_remote_code, special_tokens=config.special_tokens)
    # Before the data: a new pad token changes the tokenizer that renders them.
    model, why_padded = _load_classifier(job, source, tokenizer)
    counts: Counter[str] = Counter(rows=0, cut_left=0)
    sources: dict[str, int] = {}
    make_rows = partial(_rows, job, tokenizer, counts, sources)
    dataset = token_dataset(job.out_path / TOKENS, [*_COLUMNS, "source"], make_rows)
    training, held_out = split(len(dataset), config.held_out_share, job.seed)
    if not training:
        raise DataError(
            f"{job.inputs['data']}: no pair to train on ({what_became(counts, 'comparisons')}). Pairs "
            "refused by the template have turns that the chat template of reward_model.path does not "
            "take: use other pairs or another model, or change the template in a copy of its folder. Those "
            f"changed by it have answers that the template of {job.inputs['model']} does not write as they "
            "stand (it may take <think>…</think> out of them)."
        )
    counts["pairs"] = len(training)  # until here it counted those of the file
    counts["held_out"] = len(held_out)
    pairs = dataset.select(training).select_columns(_COLUMNS)
    trainer = _Trainer(model=model, args=args, train_dataset=pairs, processing_class=tokenizer)
    if not why_padded:
        # Not given to it: with a collator of its own TRL leaves other things undone.
        trainer.data_collator = pack_pairs
    model_config = _classifier_config(source, model, int(tokenizer.pad_token_id))
    outcome = fit(
        trainer,
        source,
        job,
        worker,
        counts,
        steps_of("reward_model", config, len(training), "pairs"),
        export=partial(
            export_model,
            model,
            source,
            job.out_path / "model",
            config=model_config,
            tokenizer=tokenizer,
        ),
        measure=partial(
            accuracies,
            trainer,
            dataset.select(held_out),
            config.micro_batch_size,
            list(sources),
        ),
    )
    add_warning(outcome, why_slower(model, why_padded, on_gpu(job.compute)))
    return outcome
