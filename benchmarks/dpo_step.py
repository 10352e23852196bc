"""A DPO step beside TRL's: processor and wall seconds of one optimizer step, with ready reference log-probs.

    python -m benchmarks.dpo_step data=pairs.jsonl [pairs=64] [runs=3] [threads=2]

`data` is a file of preferences in any shape that `reward_model.data` takes; without it (`python -m benchmarks
only=dpo_step`) the pairs have the lengths of three data sets, and random tokens. The model is a 20 M Llama
with random weights and a vocabulary of 16k. What is measured is one optimizer step from the moment the
training has begun: its data, forward and backward passes, the optimizer. Each measurement is a process of
its own; TRL and ours take turns. Before any time is taken the log-probabilities of every pair are equal:
TRL's, ours, and those of a plain forward pass of one sequence. Then every loss must be ln 2, that of a policy
that is its own reference.
"""

from __future__ import annotations

import json
import math
import os
import random
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.rows import Cost, Row, Stopwatch, cost_in_a_process, in_turn, median, times_faster

LENGTHS = Path(__file__).with_name("pair_lengths.json")
BARS = {"ultrafeedback": (32, 1.9, 2.0), "hh": (64, 2.5, 2.6), "best_of_8": (32, 1.6, 1.7)}
"""Of each data set: pairs of its step, and what is to be reached by processor and by wall seconds."""
SECONDS = ("processor_seconds", "wall_seconds")
EQUAL = 1e-5
"""How far log-probabilities may be apart, as a share."""
VOCABULARY = 16_000
MAX_LENGTH = 1024
"""Tokens of a prompt and one response."""
ONE_STEP: dict[str, Any] = {
    "max_steps": 1,
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "logging_steps": 1,
    "disable_tqdm": True,
}
"""What both trainers are told."""
SUBJECTS = ("TRL, micro-batch 1", "TRL, micro-batch 4", "ours")
Tokens = list[list[int]]
"""Prompt, chosen, rejected."""


@dataclass
class Settings:
    """What the command line may say."""

    data: str = ""
    pairs: int = 64
    runs: int = 3
    threads: int = 2


def read_pairs(path: str, number: int) -> list[Tokens]:
    """So many pairs of a file as token ids, cut to `MAX_LENGTH`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    from rlhf.data.preferences import read_preferences

    texts = []
    for context, chosen, rejected in read_preferences(path, Counter()):
        prompt = "\n\n".join(message["content"] for message in context)
        texts.append((prompt, chosen, rejected))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, show_progress=False)
    tokenizer.train_from_iterator((text for row in texts for text in row), trainer)
    random.Random(0).shuffle(texts)
    pairs = []
    for prompt, *answers in texts[:number]:
        # A prompt is cut in half of the length at most, so that answers have room.
        ids = tokenizer.encode(prompt).ids[: MAX_LENGTH // 2] or [0]
        responses = [tokenizer.encode(answer).ids[: MAX_LENGTH - len(ids)] for answer in answers]
        pairs.append([ids, *responses])
    return pairs


MISSED = (
    "freed memory kept by the C library (mallopt): 5 to 8 % faster, and a peak of up to 39 % over its "
    "forecast, from run to run another one; taken back",
    "huge pages for torch's allocations (THP_MEM_ALLOC_ENABLE=1): a quarter of the page faults, and 9 % more "
    "processor seconds (best of 8, 16 pairs, two rounds in turn)",
    "budgets of 1536, 1792 and 2048 tokens, DeepSpeed's buckets of 2^20, chunks of logits of 8 MiB: no "
    "faster",
)
"""What was tried where a bar is not reached."""


def make_model(folder: Path) -> None:
    """A Llama of 20 M parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=2 * MAX_LENGTH,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def trainer_of_trl(
    model: Path, pairs: list[Tokens], micro_batch: int, out: str, references: list[list[float]] | None
) -> Any:
    """TRL's own trainer with ready reference log-probabilities; with None it has computed them itself."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    class Ready(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *rest: Any) -> Any:  # rows are token ids already
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *rest: Any, **named: Any) -> Any:
            if references is None:
                return super()._precompute_ref_logps(dataset, *rest, **named)
            chosen, rejected = zip(*references, strict=True)
            dataset = dataset.add_column("ref_chosen_logps", chosen)
            return dataset.add_column("ref_rejected_logps", rejected)

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), pad_token="a", eos_token="a"
    )
    rows = []
    for prompt, chosen, rejected in pairs:
        rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    args = DPOConfig(
        output_dir=out,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=len(pairs) // micro_batch,
        precompute_ref_log_probs=True,
        max_length=None,
        **ONE_STEP,
    )
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return Ready(model=policy, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def trainer_of_ours(model: Path, pairs: list[Tokens], references: list[list[float]], out: str) -> Any:
    """The trainer of stage `dpo` with its default budget, on ready reference log-probabilities."""
    import numpy as np
    import torch
    from trl import DPOConfig

    from rlhf.config.schema import ComputeConfig
    from rlhf.config.training import DpoConfig
    from rlhf.launch.ports import free_port
    from rlhf.training.deepspeed import deepspeed_config, init_process_group
    from rlhf.training.dpo import DpoTrainer
    from rlhf.training.pair_file import Pair, TrainingPairs, write_ready
    from rlhf.training.response_batches import batching_of
    from rlhf.training.step_plan import StepShares
    from rlhf.training.weights import load_model

    compute = ComputeConfig()
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    init_process_group(compute)
    args = DPOConfig(
        output_dir=out,
        per_device_train_batch_size=1,
        **ONE_STEP,
        deepspeed=deepspeed_config(compute, torch.float32, 20_000_000),
    )
    policy = load_model(model, torch.float32)
    batching, slower = batching_of(policy, None, on_gpu=False)
    assert not slower, slower
    ready = []
    for number, (tokens, both) in enumerate(zip(pairs, references, strict=True)):
        prompt, chosen, rejected = (np.asarray(ids, dtype=np.int32) for ids in tokens)
        ready.append(Pair(str(number), prompt, chosen, rejected, both[0], both[1], score_margin=0.0))
    path = Path(out) / "pairs.arrow"
    write_ready(path, iter(ready))
    shares = StepShares(TrainingPairs(path), [list(range(len(ready)))], batching, 0, 1)
    trainer = DpoTrainer(
        model=policy, args=args, train_dataset=shares, steps_per_epoch=1, settings=DpoConfig()
    )
    trainer.source = model
    return trainer


class Work(NamedTuple):
    """What a process measures."""

    subject: str
    model: Path
    pairs: list[Tokens]
    references: list[list[float]]
    threads: int


def step_cost(work: Work) -> Cost:
    """One optimizer step of a training that has begun; the proof is its loss.

    What comes once a training, such as the making of DeepSpeed's engine, is no part of it.
    """
    from transformers import PrinterCallback, TrainerCallback

    be_quiet(work.threads)
    watches: list[Stopwatch] = []
    costs: list[Cost] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            watches.append(Stopwatch())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            costs.append(watches[0].cost())

    with tempfile.TemporaryDirectory() as out:
        if work.subject == "ours":
            trainer = trainer_of_ours(work.model, work.pairs, work.references, out)
        else:
            micro_batch = int(work.subject.split()[-1])
            trainer = trainer_of_trl(work.model, work.pairs, micro_batch, out, work.references)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Clock())
        trainer.train()
    (loss,) = (entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    return replace(costs[0], proof=loss)


def proven_references(model: Path, pairs: list[Tokens], threads: int) -> Cost:
    """As proof: log π of chosen and rejected of each pair, by TRL, by us, and by a plain forward pass."""
    import torch
    from transformers import AutoModelForCausalLM

    from rlhf.training.response_batches import batch_logprobs, batching_of
    from rlhf.training.weights import load_model

    be_quiet(threads)
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as out:
        rows = trainer_of_trl(model, pairs, 1, out, None).train_dataset
        theirs = [[row["ref_chosen_logps"], row["ref_rejected_logps"]] for row in rows]
    packing = load_model(model, torch.float32)
    batching, _ = batching_of(packing, None, on_gpu=False)
    lengths = [(len(prompt), (len(chosen), len(rejected))) for prompt, chosen, rejected in pairs]
    ours: list[list[float]] = [[] for _ in pairs]
    plain = []
    plain_model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        for members in batching.bins(lengths):
            batch = batching.batch([pairs[i][0] for i in members], [pairs[i][1:] for i in members])
            values = batch_logprobs(packing, batch).view(-1, 2).tolist()
            for member, both in zip(members, values, strict=True):
                ours[member] = both
        for prompt, *responses in pairs:
            plain.append([plain_logprob(plain_model, prompt, response) for response in responses])
    return watch.cost((theirs, ours, plain))


def plain_logprob(model: Any, prompt: list[int], response: list[int]) -> float:
    """log π(response | prompt), of one sequence without padding, summed in float64."""
    import torch

    logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    picked = logits.double().log_softmax(-1).gather(1, torch.tensor(response)[:, None])
    return float(picked.sum())


def be_quiet(threads: int) -> None:
    """Print nothing, and compute with so many threads."""
    import datasets
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    os.environ["TQDM_DISABLE"] = "1"
    torch.set_num_threads(threads)


def measured(pairs: list[Tokens], subjects: Sequence[str], runs: int, threads: int) -> dict[str, list[Cost]]:
    """The costs of a step of each subject, once all values are proved equal.

    Raises:
        AssertionError: they are not.
    """
    # Read by the processes that are started: the libraries want them before they are imported.
    os.environ.update(CUDA_VISIBLE_DEVICES="", GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS=str(threads))
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder)
        make_model(model)
        theirs, ours, plain = cost_in_a_process(proven_references, model, pairs, threads).proof
        for number, values in enumerate(zip(theirs, ours, plain, strict=True)):
            for trl, packed, exact in zip(*values, strict=True):
                assert math.isclose(trl, exact, rel_tol=EQUAL), (number, trl, exact)
                assert math.isclose(packed, exact, rel_tol=EQUAL), (number, packed, exact)
        works: dict[str, Callable[[], Cost]] = {}
        for subject in subjects:
            work = Work(subject, model, pairs, theirs, threads)
            works[subject] = partial(cost_in_a_process, step_cost, work)
        taken = in_turn(works, runs)
    for subject, costs in taken.items():
        # That of a policy that is its own reference, whatever the pairs.
        assert all(abs(cost.proof - math.log(2)) < 1e-3 for cost in costs), (subject, costs)
    return taken


def random_pairs(lengths: list[list[int]], seed: int) -> list[Tokens]:
    """Pairs of these lengths: a step's cost depends on nothing else of them."""
    rng = random.Random(seed)
    pairs = []
    for its_lengths in lengths:
        pairs.append([[rng.randrange(VOCABULARY) for _ in range(number)] for number in its_lengths])
    return pairs


def rows(runs: int) -> list[Row]:
    """A step of each data set beside TRL with its best micro-batch, 1, in processor and wall seconds."""
    data_sets = json.loads(LENGTHS.read_text(encoding="utf-8"))
    found = []
    for name, (number, *bars) in BARS.items():
        pairs = random_pairs(data_sets[name]["lengths"][:number], seed=0)
        taken = measured(pairs, ("TRL, micro-batch 1", "ours"), runs, len(os.sched_getaffinity(0)))
        theirs, ours = taken.values()
        for part, figure, bar in zip(("processor", "wall"), SECONDS, bars, strict=True):
            detail = f"{number} pairs: TRL {median(theirs, figure):.1f} s, ours {median(ours, figure):.1f} s"
            reached = times_faster(theirs, ours, figure)
            missed = MISSED if reached < bar else ()
            found.append(
                Row(f"dpo/{name}/{part}", reached, bar, "× TRL, micro-batch 1", False, detail, missed)
            )
        held = median(theirs, "peak_gigabytes"), median(ours, "peak_gigabytes")
        detail = f"{number} pairs: TRL {held[0]:.2f} GB, ours {held[1]:.2f} GB"
        found.append(
            Row(f"dpo/{name}/peak_memory", held[1] / held[0], 1.1, "of TRL's, micro-batch 1", True, detail)
        )
    return found


def main(settings: Settings) -> None:
    """Measure a file of preferences, and print a table."""
    pairs = read_pairs(settings.data, settings.pairs)
    means = [round(statistics.fmean(len(pair[part]) for pair in pairs)) for part in range(3)]
    print(f"{len(pairs)} pairs, mean tokens: prompt {means[0]}, chosen {means[1]}, rejected {means[2]}")
    taken = measured(pairs, SUBJECTS, settings.runs, settings.threads)
    print(f"load {os.getloadavg()[0]:.1f}; medians of {settings.runs}")
    for subject, costs in taken.items():
        cells = [subject.ljust(20)]
        for name in (*SECONDS, "peak_gigabytes"):
            cells.append(f"{name.replace('_', ' ')} {median(costs, name):7.2f}")
        print("  ".join(cells))


def settings_from(words: list[str]) -> Settings:
    """`key=value` words."""
    settings = Settings()
    kinds = {field.name: type(getattr(settings, field.name)) for field in fields(Settings)}
    for word in words:
        key, _, value = word.partition("=")
        if key not in kinds:
            sys.exit(f"error: {word}: there is no {key!r}; say {', '.join(kinds)}.")
        setattr(settings, key, kinds[key](value))
    if not settings.data:
        sys.exit("error: data=FILE of preferences is missing.")
    return settings


if __name__ == "__main__":
    main(settings_from(sys.argv[1:]))
