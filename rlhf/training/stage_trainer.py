"""What DPO, SFT and reward-model training share: training arguments, and a Trainer with lean checkpoints."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlhf.data.shards import write_atomic
from rlhf.errors import ConfigError, UserError
from rlhf.models.folder import num_parameters
from rlhf.run.job import Job, Worker
from rlhf.training.deepspeed import deepspeed_config, init_process_group, on_gpu
from rlhf.training.weights import init_master_weights, resolve_dtype


def common_arguments(job: Job[Any], model: Path) -> dict[str, Any]:
    """Trainer arguments that follow from a job alike for every kind of training. Joins the process group."""
    config = job.config
    init_process_group(job.compute)
    dtype = resolve_dtype(config.dtype, model)
    return {
        "output_dir": job.out,
        "seed": job.seed,
        "data_seed": job.seed,
        "deepspeed": deepspeed_config(job.compute, dtype, num_parameters(model)),
        "use_cpu": not on_gpu(job.compute),
        "bf16": dtype == torch.bfloat16,
        "learning_rate": config.learning_rate,
        "warmup_steps": config.warmup_ratio,  # transformers 5: below 1 it is a share of the steps
        "gradient_checkpointing": config.gradient_checkpointing,
        "save_strategy": "steps",
        "save_steps": config.save_steps,
        "save_total_limit": None,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": list(job.compute.report_to) or "none",
        "disable_tqdm": True,
        "eval_strategy": "no",
        "push_to_hub": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": on_gpu(job.compute),
    }


def build_arguments(cls: type[TrainingArguments], section: str, own: dict[str, Any], extra: dict[str, Any]) -> Any:
    """Arguments of the Trainer: ours, and the user's `trainer_args` untouched.

    Raises:
        ConfigError: a key of `trainer_args` is unknown to the Trainer or is set by this package already.
    """
    known = {field.name for field in dataclasses.fields(cls) if field.init}
    if unknown := sorted(set(extra) - known):
        raise ConfigError(
            f"{section}.trainer_args: {', '.join(unknown)} is no field of {cls.__module__}.{cls.__name__}"
        )
    if twice := sorted(set(extra) & set(own)):
        raise ConfigError(
            f"{section}.trainer_args: {', '.join(twice)} is set from the fields of `{section}` and `compute` (or is "
            "fixed); use those and take it out of trainer_args"
        )
    try:
        return cls(**own, **extra)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{section}.trainer_args={extra}: {error}") from error


class StageTrainer(Trainer):
    """The part every Trainer of ours overrides; mixed in before TRL's classes."""

    source: Path
    """Folder the weights were loaded from."""
    _step: tuple[int, list[Any]] = (-1, [])
    """Number of the step under way, and this rank's batches in it."""

    def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Tensor:
        """The library's; `step_contents` can tell afterwards what was in it."""
        if self._step[0] != self.state.global_step:
            self._step = (self.state.global_step, [])
        self._step[1].append(inputs["input_ids"])
        return super().training_step(model, inputs, *rest, **named)

    def step_contents(self, step: int) -> dict[str, Any]:
        """What a step was trained on: the rows of this rank as text."""
        assert self.processing_class is not None
        return {"rows": [text for ids in self._step[1] for text in self.processing_class.batch_decode(ids)]}

    def bad_step(self, what: str, step: int, where: str = "") -> UserError:
        """The error for a step whose loss or gradient is NaN or infinite; what was in it is saved first."""
        path = bad_step_path(Path(self.args.output_dir or ""), self.args.process_index)
        found = {"not_finite": what, "step": step} | self.step_contents(step)
        write_atomic(path, json.dumps(found, indent=1, ensure_ascii=False).encode())
        return UserError(
            f"the {what} of step {step}{where} is not a finite number, so training stopped. Lower the learning rate, "
            f"look at those rows of the data, or compute in float32. What the step was made of: {path}"
        )

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if resume_from_checkpoint is None:
            init_master_weights(self.model, self.source)
        return prepared

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Nothing: DeepSpeed's part of a checkpoint holds the weights, and `export_model` writes the result."""
        if output_dir is not None and self.args.should_save:
            os.makedirs(output_dir, exist_ok=True)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: checkpoints are ours alone."""

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: it would walk all parameters in every step."""
        return 0


class Watch(TrainerCallback):
    """Tells the driver how far the training is, and stops it when its loss or gradient is no number."""

    def __init__(self, trainer: StageTrainer, worker: Worker) -> None:
        self.trainer, self.worker = trainer, worker

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Called on every rank after a step."""
        for name in ("loss", "grad_norm"):
            if name in (logs or {}) and not math.isfinite(logs[name]):
                raise self.trainer.bad_step(name, state.global_step)
        if logs and "loss" in logs:
            self.worker.progress(state.global_step, state.max_steps, f"loss {logs['loss']:.4f}")


def bad_step_path(out: Path, rank: int | str) -> Path:
    """Where a rank says what it failed on: beside the stage's folder, which the next attempt may empty."""
    return out.with_name(f"{out.name.removeprefix('.').removesuffix('.partial')}.bad_step.rank{rank}.json")


def attach(trainer: StageTrainer, source: Path, worker: Worker) -> None:
    """Tie a Trainer to its stage: where its weights come from, whom it reports to."""
    trainer.source = source
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Watch(trainer, worker))


@torch.no_grad()
def sum_over(
    trainer: Any, dataset: Any, micro_batch_size: int, measure: Callable[[Any, list[Any]], Tensor]
) -> list[float]:
    """The sum over a dataset of what `measure(model, rows)` gives for some of its rows. Every rank calls it.

    Under ZeRO-3 all ranks must go through the model equally often: one that has no row left repeats the first one and
    does not count it.
    """
    model, args = trainer.model_wrapped, trainer.args
    model.eval()
    size = micro_batch_size * args.world_size
    parts = []
    for start in range(0, len(dataset), size):
        mine = range(start + args.process_index, min(start + size, len(dataset)), args.world_size)
        found = measure(model, [dataset[i] for i in mine] or [dataset[0]])
        parts.append(found.double() * bool(len(mine)))
    total = torch.stack(parts).sum(0)
    if dist.is_initialized():
        dist.all_reduce(total)
    return [float(value) for value in total]


def step_rows(trainer: Trainer) -> list[dict[str, Any]]:
    """One row per optimizer step, from the state that checkpoints carry: a resume neither doubles nor loses any.

    TRL's `num_tokens` counts from the last start of the process, so it is left out.
    """
    rows = [row for row in trainer.state.log_history if "loss" in row]
    return [{key: value for key, value in row.items() if key != "num_tokens"} for row in rows]


def write_rows(out: Path, rows: list[dict[str, Any]]) -> None:
    """Write `metrics.jsonl`; what an earlier attempt said of a bad step goes."""
    lines = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
    write_atomic(out / "metrics.jsonl", lines.encode())
    for failed in out.parent.glob(bad_step_path(out, "*").name):
        failed.unlink()
