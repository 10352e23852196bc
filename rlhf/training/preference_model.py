"""A pairwise preference model (arXiv 2405.07863, section 2): a causal LM whose answer is A or B."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
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
from rlhf.models.chat import load_tokenizer
from rlhf.models.comparison import answer_ids, comparison_turn, render_comparison, require_causal_lm
from rlhf.models.folder import load_config
from rlhf.models.written import require_written
from rlhf.run.job import Job, Outcome, Worker
from rlhf.training.arguments import micro_batches, stage_arguments
from rlhf.training.fit import fit
from rlhf.training.held_out import split, sum_over
from rlhf.training.reward_model import sourced_preferences
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


@torch.no_grad()
def accuracy(trainer: Any, dataset: Any, answers: tuple[int, int]) -> dict[str, float | None]:
    """Share of pairs whose chosen answer has P > 1/2, averaged over both orders; a tie is wrong.

    Rows 2i and 2i + 1 are the two orders of pair i. Every rank calls it; None without pairs.

    Example:
        {"held_out_accuracy": 0.71}
    """
    num_pairs = len(dataset) // 2
    if num_pairs == 0:
        return {"held_out_accuracy": None}

    def probability_of_label(model: Any, row: dict[str, list[int]]) -> float:
        # One row at a time: without padding the last position is that of the last token.
        prompt = row["input_ids"][:-1]
        prompt_1_T = torch.tensor([prompt], device=trainer.args.device)
        output = model(input_ids=prompt_1_T, use_cache=False, logits_to_keep=1)
        logits_V = output.logits[0, -1]
        # Of the two answers alone, in fp32: what else the model might say is no judgement.
        probabilities_2 = logits_V[list(answers)].float().softmax(-1)
        label = row["labels"][-1]
        return float(probabilities_2[answers.index(label)])

    def num_correct(model: Any, pairs: list[int]) -> Tensor:
        count = 0
        for pair in pairs:
            first = probability_of_label(model, dataset[2 * pair])
            second = probability_of_label(model, dataset[2 * pair + 1])
            if first / 2 + second / 2 > 0.5:
                count += 1
        return torch.tensor([count], dtype=torch.float64, device=trainer.args.device)

    (total,) = sum_over(trainer, range(num_pairs), 1, num_correct)
    return {"held_out_accuracy": total / num_pairs}


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
    trainer = _Trainer(
        model=model,
        args=args,
        train_dataset=training_rows,
        processing_class=tokenizer,
    )
    return fit(
        trainer,
        source,
        job,
        worker,
        counts,
        steps_of("reward_model", config, len(training), "pairs"),
        export=partial(export_model, model, source, job.out_path / "model"),
        measure=partial(accuracy, trainer, dataset.select(held_out_rows), answer_ids(tokenizer)),
    )
