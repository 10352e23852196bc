"""A pairwise preference model (arXiv 2405.07863, section 2): a causal LM whose answer is A or B."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from rlhf.config.stage_configs import PreferenceModelStage
from rlhf.config.step_count import steps_of
from rlhf.data.records import what_became
from rlhf.errors import DataError, TemplateRefuses
from rlhf.models.chat_template import load_tokenizer
from rlhf.models.comparison import answer_ids, comparison_turn, render_comparison, require_causal_lm
from rlhf.models.folder import load_config
from rlhf.models.written import require_written
from rlhf.run.job import Job, Outcome, Worker
from rlhf.training.arguments import micro_batches, stage_arguments
from rlhf.training.deepspeed import on_gpu
from rlhf.training.fit import add_warning, fit
from rlhf.training.held_out import split, sum_over, to_device
from rlhf.training.packed_conversations import pack_conversations
from rlhf.training.response_batches import why_not_packed, why_slower
from rlhf.training.reward_model import sourced_preferences
from rlhf.training.shared_attention import share_prompts
from rlhf.training.stage_trainer import StageTrainer
from rlhf.training.tokens import IGNORED, TOKENS, TokenRow, count_refused, count_spelled, token_dataset
from rlhf.training.weights import export_model, load_model, resolve_dtype


class _Trainer(StageTrainer, SFTTrainer):
    pass


def _rows(
    job: Job[PreferenceModelStage], tokenizer: PreTrainedTokenizerBase, counts: Counter[str]
) -> Iterator[TokenRow]:
    """Two rows per pair: the order it is trained in, drawn from the seed, then the other one.

    Example:
        {"input_ids": [128006, 882, 9906, 32], "labels": [-100, -100, -100, 32]}, where 32 is "A"
    """
    max_length = job.config.max_length
    answers = answer_ids(tokenizer)
    generator = random.Random(f"order {job.seed}")
    for _, messages, chosen, rejected in sourced_preferences(job, counts):
        if chosen == rejected:
            counts["dropped/identical"] += 1
            continue
        orders = [(chosen, rejected), (rejected, chosen)]
        # Where the chosen answer stands: 0 is A, 1 is B. Drawn before the template can refuse, so
        # that pairs which it refuses do not change the order of later ones.
        place = generator.randrange(2)
        places = (place, 1 - place)
        turn = comparison_turn(messages, chosen, rejected)
        count_spelled(counts, tokenizer, [turn])
        try:
            require_written(tokenizer, [turn], [0])
            prompts = [render_comparison(tokenizer, messages, *orders[place]) for place in places]
        except TemplateRefuses as error:
            count_refused(counts, error)
            continue
        if places[0] == 0:
            counts["chosen_first"] += 1
        if max(len(prompt) for prompt in prompts) >= max_length:
            counts["cut_left"] += 1
        for place, prompt in zip(places, prompts, strict=True):
            # On the left, so that both responses stay; one token is left for the answer.
            kept_ids = prompt[max(0, len(prompt) + 1 - max_length) :]
            answer = answers[place]
            yield {
                "input_ids": [*kept_ids, answer],
                "labels": [IGNORED] * len(kept_ids) + [answer],
            }


def pack_rows(rows: Sequence[TokenRow]) -> dict[str, Any]:
    """A collator: rows side by side in one, unpadded. They are of different pairs, and share nothing."""
    batch, _ = pack_conversations([[row["input_ids"]] for row in rows])
    labels: list[int] = []
    for row in rows:
        # A row's first token follows on nothing, least of all on the last one of the row before it.
        labels += [IGNORED, *row["labels"][1:]]
    batch["labels"] = torch.tensor([labels], dtype=torch.long)
    return batch


@torch.no_grad()
def accuracy(
    trainer: Any,
    dataset: Any,
    micro_batch_size: int,
    answers: tuple[int, int],
    packed: bool,
) -> dict[str, float | None]:
    """Share of pairs whose chosen answer has P > 1/2, averaged over both orders; a tie is wrong.

    Rows 2i and 2i + 1 are the two orders of pair i. Every rank calls it; None without pairs.

    Args:
        trainer: a Trainer that has trained.
        dataset: the held-out rows.
        micro_batch_size: pairs of one pass on one rank.
        answers: the tokens A and B.
        packed: whether the model shares prompts: what the orders of a pair begin with is computed once.

    Example:
        {"held_out_accuracy": 0.71}
    """
    num_pairs = len(dataset) // 2
    if num_pairs == 0:
        return {"held_out_accuracy": None}
    logits_of_pairs = _packed_logits if packed else _logits_one_by_one
    if not packed:
        # Under ZeRO-3 all ranks must go through the model equally often, and each row is a pass.
        micro_batch_size = 1

    def num_correct(model: Any, pairs: list[int]) -> Tensor:
        orders = []
        labels = []
        for pair in pairs:
            both = [dataset[2 * pair], dataset[2 * pair + 1]]
            orders.append([row["input_ids"][:-1] for row in both])
            labels.append([answers.index(row["labels"][-1]) for row in both])
        logits_B_2_V = logits_of_pairs(model, orders, trainer.args.device)
        # Of the two answers alone, in fp32: what else the model might say is no judgement.
        probabilities_B_2_2 = logits_B_2_V[:, :, list(answers)].float().softmax(-1)
        labels_B_2_1 = torch.tensor(labels, device=trainer.args.device)[:, :, None]
        mean_B = probabilities_B_2_2.gather(2, labels_B_2_1)[:, :, 0].double().mean(1)
        return (mean_B > 0.5).sum(dtype=torch.float64)[None]

    (total,) = sum_over(trainer, range(num_pairs), micro_batch_size, num_correct)
    return {"held_out_accuracy": total / num_pairs}


def _packed_logits(model: Any, orders: list[list[list[int]]], device: torch.device) -> Tensor:
    """Logits (B, 2, V) at the ends of both orders of each pair, in one pass."""
    batch, ends_2B = pack_conversations(orders)
    batch["logits_to_keep"] = ends_2B
    output = model(**to_device(batch, device), use_cache=False)
    return output.logits[0].view(len(orders), 2, -1)


def _logits_one_by_one(model: Any, orders: list[list[list[int]]], device: torch.device) -> Tensor:
    """The same of a model that does not share prompts."""
    logits = []
    for prompts in orders:
        for prompt in prompts:
            # One row at a time: without padding the last position is that of the last token.
            output = model(input_ids=torch.tensor([prompt], device=device), use_cache=False, logits_to_keep=1)
            logits.append(output.logits[0, -1])
    return torch.stack(logits).view(len(orders), 2, -1)


def train_preference_model(job: Job[PreferenceModelStage], worker: Worker) -> Outcome:
    """Train a judge from `model` on `data` and `on_policy`. Every rank calls it.

    The loss is taken on the answer token alone. Writes `model/` and `metrics.jsonl`.

    Raises:
        DataError: there is no pair to train on.
        ModelError: `model` is a classifier, or has no single token for an answer.
        ConfigError: the batch size cannot be cut evenly, or `trainer_args` has a wrong key.
    """
    worker.progress(0, 0, "reading the data and loading the model")
    config = job.config
    source = job.input_path("model")
    own = micro_batches("reward_model", config, worker.world_size) | {
        "max_length": None,  # cut here already, on the left
        "packing": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},  # its rows are token ids already
    }
    args = stage_arguments(SFTConfig, "reward_model", job, source, own)
    require_causal_lm(source, load_config(source, config.trust_remote_code))
    tokenizer = load_tokenizer(source, config.trust_remote_code, special_tokens=config.special_tokens)
    counts: Counter[str] = Counter(rows=0, cut_left=0, chosen_first=0)
    make_rows = partial(_rows, job, tokenizer, counts)
    dataset = token_dataset(job.out_path / TOKENS, ["input_ids", "labels"], make_rows)
    # Pairs are split, not rows: the two orders of a pair stay together.
    training, held_out = split(len(dataset) // 2, config.held_out_share, job.seed)
    if not training:
        raise DataError(
            f"{job.inputs['data']}: no pair to train on ({what_became(counts, 'comparisons')}). Give pairs "
            "of two different answers, and as reward_model.path a model whose chat template takes a user "
            f"turn and writes it as it stands (that of {job.inputs['model']}: those changed_by_template are "
            "pairs that it does not)."
        )
    counts["pairs"] = len(training)  # until here it counted those of the file
    counts["held_out"] = len(held_out)
    training_rows = dataset.select([2 * pair for pair in training])
    held_out_rows = []
    for pair in held_out:
        held_out_rows += [2 * pair, 2 * pair + 1]
    model = load_model(source, resolve_dtype(config.dtype, source), config.trust_remote_code)
    why_padded = why_not_packed(config.trainer_args) or share_prompts(model)
    trainer = _Trainer(
        model=model,
        args=args,
        train_dataset=training_rows,
        processing_class=tokenizer,
    )
    if not why_padded:
        # Not given to it: with a collator of its own TRL leaves other things undone.
        trainer.data_collator = pack_rows
    outcome = fit(
        trainer,
        source,
        job,
        worker,
        counts,
        steps_of("reward_model", config, len(training), "pairs"),
        export=partial(export_model, model, source, job.out_path / "model"),
        measure=partial(
            accuracy,
            trainer,
            dataset.select(held_out_rows),
            config.micro_batch_size,
            answer_ids(tokenizer),
            packed=not why_padded,
        ),
    )
    add_warning(outcome, why_slower(model, why_padded, on_gpu(job.compute)))
    return outcome
