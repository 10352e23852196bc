"""A DPO step beside TRL's: processor and wall seconds of one optimizer step, with ready reference log-probs.

    python -m benchmarks.dpo_step data=pairs.jsonl [pairs=64] [runs=3] [threads=2]

`data` is a file of preferences in any shape that `reward_model.data` takes. The model is a 20 M Llama with
random weights, the vocabulary a byte-level BPE of 16k that is trained on the data. Each measurement is a
process of its own; TRL and ours take turns. No time is printed unless every loss is that of equal policies,
ln 2; that the values of each pair are equal is proved by the tests.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class Measured:
    """One optimizer step: its loss, and what it cost."""

    loss: float
    processor_seconds: float
    wall_seconds: float
    peak_gigabytes: float


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
    trainer = trainers.BpeTrainer(vocab_size=16_000, show_progress=False)
    tokenizer.train_from_iterator((text for row in texts for text in row), trainer)
    random.Random(0).shuffle(texts)
    pairs = []
    for prompt, *answers in texts[:number]:
        # A prompt is cut in half of the length at most, so that answers have room.
        ids = tokenizer.encode(prompt).ids[: MAX_LENGTH // 2] or [0]
        responses = [tokenizer.encode(answer).ids[: MAX_LENGTH - len(ids)] for answer in answers]
        pairs.append([ids, *responses])
    return pairs


def make_model(folder: Path) -> None:
    """A Llama of 20 M parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16_000,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=2 * MAX_LENGTH,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def trainer_of_trl(model: Path, pairs: list[Tokens], micro_batch: int, out: str) -> Any:
    """TRL's own trainer, its reference log-probabilities computed."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    class Ready(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *rest: Any) -> Any:  # rows are token ids already
            return dataset

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


def trainer_of_ours(model: Path, pairs: list[Tokens], out: str) -> Any:
    """The trainer of stage `dpo` with its default budget."""
    import numpy as np
    import torch
    from trl import DPOConfig

    from rlhf.config.schema import ComputeConfig
    from rlhf.training.deepspeed import deepspeed_config, init_process_group
    from rlhf.training.dpo import DpoTrainer
    from rlhf.training.response_batches import batch_logprobs, batching_of
    from rlhf.training.step_plan import Pair, StepShares
    from rlhf.training.weights import load_model

    compute = ComputeConfig()
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(random.randrange(20_000, 60_000))}
    init_process_group(compute)
    args = DPOConfig(
        output_dir=out,
        per_device_train_batch_size=1,
        **ONE_STEP,
        deepspeed=deepspeed_config(compute, torch.float32, 20_000_000),
    )
    policy = load_model(model, torch.float32)
    batching, why_padded = batching_of(policy, None, on_gpu=False)
    assert not why_padded, why_padded
    ready = []
    for number, (prompt, chosen, rejected) in enumerate(pairs):
        with torch.no_grad():
            batch = batching.batch([prompt], [[chosen, rejected]])
            ref_chosen, ref_rejected = batch_logprobs(policy, batch).tolist()
        prompt_ids, chosen_ids, rejected_ids = (
            np.asarray(ids, dtype=np.int32) for ids in (prompt, chosen, rejected)
        )
        pair = Pair(str(number), prompt_ids, chosen_ids, rejected_ids, ref_chosen, ref_rejected)
        ready.append(pair)
    shares = StepShares(ready, [list(range(len(ready)))], batching, 0, 1)
    trainer = DpoTrainer(model=policy, args=args, train_dataset=shares, steps_per_epoch=1, rpo_alpha=0.0)
    trainer.source = model
    return trainer


def measure(subject: str, model: Path, pairs: list[Tokens], threads: int, pipe: Any) -> None:
    """Take one step, and send what it cost."""
    import datasets
    import torch
    from transformers import PrinterCallback
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as out:
        if subject == "ours":
            trainer = trainer_of_ours(model, pairs, out)
        else:
            trainer = trainer_of_trl(model, pairs, int(subject.split()[-1]), out)
        trainer.remove_callback(PrinterCallback)
        wall, processor = time.perf_counter(), time.process_time()
        trainer.train()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    pipe.send(Measured(losses[0], processor, wall, peak))


def in_a_process(subject: str, model: Path, pairs: list[Tokens], threads: int) -> Measured:
    """`measure` in a fresh process, so that memory and warm caches are nobody else's."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=measure, args=(subject, model, pairs, threads, theirs))
    process.start()
    theirs.close()
    measured: Measured = ours.recv()
    process.join()
    return measured


def main(settings: Settings) -> None:
    """Measure, and print a table."""
    os.environ.update(CUDA_VISIBLE_DEVICES="", GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS=str(settings.threads))
    pairs = read_pairs(settings.data, settings.pairs)
    means = [round(statistics.fmean(len(pair[part]) for pair in pairs)) for part in range(3)]
    print(f"{len(pairs)} pairs, mean tokens: prompt {means[0]}, chosen {means[1]}, rejected {means[2]}")
    taken: dict[str, list[Measured]] = {subject: [] for subject in SUBJECTS}
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder))
        for _ in range(settings.runs):
            for subject in SUBJECTS:
                taken[subject].append(in_a_process(subject, Path(folder), pairs, settings.threads))
    for subject, measured in taken.items():
        # Whatever the pairs.
        assert all(abs(one.loss - 0.6931) < 1e-3 for one in measured), (subject, measured)
    print(f"load {os.getloadavg()[0]:.1f}; medians of {settings.runs}")
    for subject, measured in taken.items():
        cells = [subject.ljust(20)]
        for name in ("processor_seconds", "wall_seconds", "peak_gigabytes"):
            value = statistics.median(getattr(one, name) for one in measured)
            cells.append(f"{name.replace('_', ' ')} {value:7.2f}")
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
