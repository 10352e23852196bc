"""DPO of a model of random weights, by our stage, by TRL, and in a plain loop where a package is missing.

Each gives the wall seconds of every optimizer step, the first loss and the most memory held. Nothing of the
model is written: it is made where it is used, and its export is left out.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.one_worker import OneWorker
from gpu_kit.models import Shape, device_name, model_dtype, on_gpu, random_model, save_header

Tokens = list[list[list[int]]]
"""Of each pair: prompt, chosen, rejected."""

STEPS = 2
"""The first warms up, and is not counted."""
LEARNING_RATE = 5e-7
_MAX_LENGTH = 1 << 14
"""Tokens of prompt and response, more than any pair has."""


@dataclass(frozen=True)
class Trained:
    """What a training of `STEPS` steps took."""

    seconds: list[float]
    """Of every step."""
    first_loss: float
    peak_bytes: int
    """Allocated on a GPU; on a CPU of the whole process."""
    reserved_bytes: int = 0
    """What torch has taken of the GPU for it."""
    reference_seconds: float = 0.0
    """Of the forward passes under the reference, where they were timed."""
    note: str = ""

    @property
    def seconds_of_step(self) -> float:
        """The fastest but the first."""
        return min(self.seconds[1:])


class Clock:
    """Wall seconds between moments at which the GPU has nothing left to do."""

    def __init__(self) -> None:
        self.laps: list[float] = []
        self._last = 0.0
        self.start()

    def start(self) -> None:
        """Begin the next lap here."""
        _finish()
        self._last = time.perf_counter()

    def lap(self) -> None:
        """End one lap and begin the next."""
        _finish()
        now = time.perf_counter()
        self.laps.append(now - self._last)
        self._last = now


def _finish() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak() -> int:
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _reserved() -> int:
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    return 0


class _Worker(OneWorker):
    """The only rank; it hears of each step once it is done."""

    def __init__(self, num_shards: int) -> None:
        super().__init__(num_shards)
        self.clock: Clock | None = None

    def progress(self, done: float, total: float, note: str = "") -> None:
        # Without a total it is no step: the first is about to begin, or the export is.
        if self.clock is not None and total:
            self.clock.lap()

    def say(self, text: str) -> None:
        print(text, flush=True)


def ours(shape: Shape, pairs: Tokens, work: Path) -> Trained:
    """The stages `reference` and `dpo` as a run takes them, on one rank."""
    import rlhf.training.dpo as dpo
    import rlhf.training.reference as reference

    _join_alone()
    config = shape.config()

    def load(*arguments: Any, **named: Any) -> Any:
        return random_model(config, model_dtype())

    # mypy takes functions of modules for constants.
    modules: list[Any] = [dpo, reference]
    for module in modules:
        module.load_model = load
    modules[0].export_model = lambda *arguments, **named: None
    policy = save_header(work / "policy", shape)
    write_pairs(work / "pairs", pairs)
    reference_seconds = _reference_stage(policy, work)
    _forget()
    clock, outcome = _dpo_stage(policy, work, len(pairs))
    return Trained(
        clock.laps,
        outcome.metrics["first_loss"],
        _peak(),
        _reserved(),
        reference_seconds,
        note=str(outcome.metrics.get("warning", "")),
    )


def _compute() -> tuple[Any, str]:
    """Where a stage runs, and the dtype it computes in."""
    from rlhf.config.choices import Device
    from rlhf.config.stage_configs import StageCompute

    if on_gpu():
        return StageCompute(device=Device.cuda), "bfloat16"
    return StageCompute(device=Device.cpu), "float32"


def _reference_stage(policy: Path, work: Path) -> float:
    """The wall seconds of `reference`, with the making of its model."""
    from rlhf.config.stage_configs import ReferenceStage
    from rlhf.run.job import Job
    from rlhf.training.reference import compute_logprobs

    compute, dtype = _compute()
    told = ReferenceStage(dtype=dtype, max_length=_MAX_LENGTH)
    inputs = {"model": str(policy), "pairs": str(work / "pairs")}
    out = work / "reference"
    out.mkdir()
    clock = Clock()
    compute_logprobs(Job("reference", "reference", told, inputs, str(out), 1, compute), _Worker(num_shards=1))
    clock.lap()
    return clock.laps[0]


def _dpo_stage(policy: Path, work: Path, num_pairs: int) -> tuple[Clock, Any]:
    """A clock with a lap for every step, and the outcome of the stage."""
    from rlhf.config.stage_configs import DpoStage
    from rlhf.run.job import Job
    from rlhf.training.dpo import DpoTrainer, train_dpo

    compute, dtype = _compute()
    told = DpoStage(
        dtype=dtype,
        max_length=_MAX_LENGTH,
        # A step for each epoch, so that every step has the same work.
        batch_size=num_pairs,
        num_epochs=STEPS,
        save_steps=10 * STEPS,
        learning_rate=LEARNING_RATE,
    )
    inputs = {"policy": str(policy), "pairs": str(work / "pairs"), "reference": str(work / "reference")}
    out = work / "dpo"
    out.mkdir()
    worker = _Worker(num_shards=1)
    trainer: Any = DpoTrainer
    prepare = trainer._prepare_for_training

    def prepared(self: Any, *arguments: Any) -> Any:
        result = prepare(self, *arguments)
        # What comes before is no step: DeepSpeed has made its copies.
        worker.clock = Clock()
        return result

    trainer._prepare_for_training = prepared
    outcome = train_dpo(Job("dpo", "dpo", told, inputs, str(out), 1, compute), worker)
    assert worker.clock is not None, "the training began"
    return worker.clock, outcome


def _forget() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _join_alone() -> None:
    """The environment of a process group of one rank."""
    from rlhf.launch.ports import free_port

    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}


def write_pairs(folder: Path, pairs: Tokens) -> None:
    """Pairs as an artifact of the stage `pair` has them."""
    from rlhf.data.records import side_columns
    from rlhf.data.schemas import PAIRS_SCHEMA
    from rlhf.data.shards import shard_name, write_shard

    folder.mkdir(parents=True)
    rows = []
    for number, (prompt, chosen, rejected) in enumerate(pairs):
        messages = [{"role": "user", "content": str(number)}]
        row: dict[str, Any] = {"id": f"{number:016x}", "messages": messages, "prompt_token_ids": prompt}
        for side, ids, score, rank in (("chosen", chosen, 1.0, 0), ("rejected", rejected, 0.0, 1)):
            row |= side_columns(side, ids, side, score, penalised=score, rank=rank, truncated=False)
        rows.append(row)
    write_shard(folder / shard_name(0), PAIRS_SCHEMA, rows)


def trl(
    shape: Shape, pairs: Tokens, work: Path, micro_batches: Sequence[int], seconds: float
) -> dict[int, Trained | str]:
    """TRL's trainer with each so many pairs at a time, or why it did not run.

    All is in bf16 and without DeepSpeed, which is its fastest: weights and Adam's moments take 8 bytes a
    weight, where ours take 18, so its memory is not ours. None is begun once half of the seconds are gone.
    """
    deadline = time.monotonic() + seconds / 2
    taken: dict[int, Trained | str] = {}
    for micro_batch in micro_batches:
        if taken and time.monotonic() > deadline:
            taken[micro_batch] = "no time was left"
            continue
        try:
            taken[micro_batch] = _trl_once(shape, pairs, work / f"trl_{micro_batch}", micro_batch)
        except RuntimeError as error:
            # Of torch: memory that ran out is one, and the next may fit.
            taken[micro_batch] = f"{type(error).__name__}: {error}".replace("\n", " ")[:200]
        _forget()
    return taken


def _trl_once(shape: Shape, pairs: Tokens, out: Path, micro_batch: int) -> Trained:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from gpu_kit.models import tokenizer_of

    clock = Clock()

    class Watch(TrainerCallback):
        def on_train_begin(self, *arguments: Any, **named: Any) -> None:
            clock.start()

        def on_step_end(self, *arguments: Any, **named: Any) -> None:
            clock.lap()

    class Ready(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *rest: Any) -> Any:  # rows are token ids already
            return dataset

    rows = []
    for prompt, chosen, rejected in pairs:
        rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    arguments = DPOConfig(
        output_dir=str(out),
        per_device_train_batch_size=micro_batch,
        # As ours: a step for each epoch.
        gradient_accumulation_steps=len(pairs) // micro_batch,
        num_train_epochs=STEPS,
        precompute_ref_log_probs=True,
        max_length=None,
        bf16=on_gpu(),
        use_cpu=not on_gpu(),
        gradient_checkpointing=True,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )
    trainer = Ready(
        model=random_model(shape.config(), model_dtype()),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer_of(shape.vocabulary),
        callbacks=[Watch()],
    )
    clock.laps.clear()
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return Trained(clock.laps, losses[0], _peak(), reserved_bytes=_reserved())


def plain(shape: Shape, pairs: Tokens, work: Path) -> Trained:
    """Our batches and loss under torch's AdamW: no DeepSpeed, no TRL, no fp32 copies of the weights."""
    import torch

    from rlhf.config.training import DpoConfig
    from rlhf.training.losses import dpo_loss
    from rlhf.training.response_batches import batch_logprobs, batching_of

    model = random_model(shape.config(), model_dtype())
    batching, slower = batching_of(model, None, on_gpu())
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    lengths = [(len(prompt), (len(chosen), len(rejected))) for prompt, chosen, rejected in pairs]
    batches = []
    for members in batching.bins(lengths):
        prompts = [pairs[member][0] for member in members]
        responses = [pairs[member][1:] for member in members]
        batches.append((batching.batch(prompts, responses).to(torch.device(device_name())), responses))
    clock = Clock()
    references = []
    with torch.no_grad():
        for batch, _ in batches:
            references.append(batch_logprobs(model, batch).view(-1, 2))
    clock.lap()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    first_loss = 0.0
    clock.start()
    for step in range(STEPS):
        for (batch, responses), reference in zip(batches, references, strict=True):
            logprobs = batch_logprobs(model, batch).view(-1, 2)
            sizes = torch.tensor([[len(each) for each in both] for both in responses], device=logprobs.device)
            no_scores = torch.zeros_like(logprobs[:, 0])
            losses, *_ = dpo_loss(
                logprobs[:, 0],
                logprobs[:, 1],
                reference[:, 0],
                reference[:, 1],
                sizes[:, 0],
                sizes[:, 1],
                no_scores,
                DpoConfig(),
            )
            loss = losses.sum() / len(pairs)
            loss.backward()
            if step == 0:
                first_loss += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        clock.lap()
    note = "plain loop without DeepSpeed and TRL"
    if slower:
        note += f", {slower}"
    return Trained(clock.laps[1:], first_loss, _peak(), _reserved(), clock.laps[0], note)


def with_layers(shape: Shape, layers: int) -> Shape:
    """The same with another depth."""
    return replace(shape, layers=layers)
