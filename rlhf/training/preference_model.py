"""A pairwise preference model (arXiv 2405.07863, section 2): a causal LM whose answer is A or B."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from rlhf.config.stage_configs import PreferenceModelStage
from rlhf.data.records import what_became
from rlhf.errors import DataError, TemplateRefuses
from rlhf.models.chat import load_tokenizer
from rlhf.models.comparison import answer_ids, render_comparison, require_causal_lm
from rlhf.models.folder import load_config
from rlhf.run.job import Job, Outcome, Worker
from rlhf.training.checkpoints import train_resumable
from rlhf.training.reward_model import conversations
from rlhf.training.sft import IGNORED, gradient_accumulation
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

_log = logging.getLogger(__name__)


class _Trainer(StageTrainer, SFTTrainer):
    pass


def _rows(
    job: Job[PreferenceModelStage], tokenizer: PreTrainedTokenizerBase, counts: Counter[str]
) -> Iterator[TokenRow]:
    """Two rows per pair: the order it is trained in, drawn from the seed, then the other one."""
    rng, answers, max_length = random.Random(f"order {job.seed}"), answer_ids(tokenizer), job.config.max_length
    for _, messages, chosen, rejected in conversations(job, counts):
        if chosen == rejected:
            counts["dropped/identical"] += 1
            continue
        first = rng.randrange(2)  # where the chosen answer stands in the trained row
        orders = [(chosen, rejected), (rejected, chosen)]
        try:
            prompts = [render_comparison(tokenizer, messages, *orders[place]) for place in (first, 1 - first)]
        except TemplateRefuses as error:
            count_refused(counts, error)
            continue
        counts["chosen_first"] += first == 0
        counts["cut_left"] += max(map(len, prompts)) >= max_length
        for place, prompt in zip((first, 1 - first), prompts, strict=True):
            kept = prompt[max(0, len(prompt) + 1 - max_length) :]
            yield {"input_ids": [*kept, answers[place]], "labels": [IGNORED] * len(kept) + [answers[place]]}


@torch.no_grad()
def accuracy(trainer: Any, dataset: Any, answers: tuple[int, int]) -> float | None:
    """Share of pairs whose chosen answer has P > 1/2, averaged over both orders; a tie is wrong.

    Rows 2i and 2i + 1 are the two orders of pair i. Every rank calls it; None without pairs.
    """
    num_pairs = len(dataset) // 2
    if num_pairs == 0:
        return None

    def right(model: Any, pairs: list[int]) -> Tensor:
        shown = []
        for pair in pairs:
            probability = 0.0
            for row in (dataset[2 * pair], dataset[2 * pair + 1]):
                prompt = torch.tensor([row["input_ids"][:-1]], device=trainer.args.device)
                logits = model(input_ids=prompt, use_cache=False, logits_to_keep=1).logits[0, -1]
                both = logits[list(answers)].float().softmax(-1)
                probability += float(both[answers.index(row["labels"][-1])]) / 2
            shown.append(probability > 0.5)
        return torch.tensor([sum(shown)], dtype=torch.float64, device=trainer.args.device)

    return sum_over(trainer, range(num_pairs), 1, right)[0] / num_pairs


def train_preference_model(job: Job[PreferenceModelStage], worker: Worker) -> Outcome:
    """Train a judge from `model` on `data` and `on_policy`; write `model/` and `metrics.jsonl`. Every rank calls it.

    The loss is taken on the answer token alone.

    Raises:
        DataError: there is no pair to train on.
        ModelError: `model` is a classifier, or has no single token for an answer.
        ConfigError: the batch size cannot be cut evenly, or `trainer_args` has a wrong key.
    """
    config, source, micro = job.config, job.input_path("model"), job.config.micro_batch_size
    steps = gradient_accumulation("reward_model", config.batch_size, micro, worker.world_size)
    own: dict[str, Any] = common_arguments(job, source) | {
        "num_train_epochs": config.num_epochs,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": steps,
        "lr_scheduler_type": "cosine",
        "max_length": None,  # cut here already, on the left
        "packing": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
    args = build_arguments(SFTConfig, "reward_model", own, config.trainer_args)
    require_causal_lm(source, load_config(source, config.trust_remote_code))
    tokenizer = load_tokenizer(source, config.trust_remote_code)
    counts: Counter[str] = Counter(rows=0, cut_left=0, chosen_first=0)
    tokens = job.out_path / "tokens.arrow"
    dataset = token_dataset(tokens, ["input_ids", "labels"], lambda: _rows(job, tokenizer, counts))
    train, held_out = split(len(dataset) // 2, config.held_out_share, job.seed)
    if not train:
        raise DataError(
            f"{job.inputs['data']}: no pair to train on ({what_became(counts, 'comparisons')}). Give pairs of two "
            "different answers, and as reward_model.path a model whose chat template takes a user turn."
        )
    model = load_model(source, resolve_dtype(config.dtype, source), config.trust_remote_code)
    rows = dataset.select([2 * pair for pair in train])
    trainer = _Trainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
    attach(trainer, source, worker)
    train_resumable(trainer, job.out_path)
    both_orders = dataset.select([2 * pair + order for pair in held_out for order in (0, 1)])
    metrics = {"held_out_accuracy": accuracy(trainer, both_orders, answer_ids(tokenizer))}
    export_model(model, source, job.out_path / "model")
    curve = step_rows(trainer)
    if dist.is_initialized():
        dist.barrier()
    if worker.rank == 0:
        write_rows(job.out_path, curve)
        tokens.unlink()
    metrics |= {"first_loss": curve[0]["loss"], "last_loss": curve[-1]["loss"]}
    return Outcome(dict(counts) | {"pairs": len(train), "held_out": len(held_out), "steps": len(curve)}, metrics)
