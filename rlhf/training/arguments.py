"""The arguments of a Trainer: those of every kind of training, and what users add."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from rlhf.errors import ConfigError
from rlhf.models.weight_files import num_parameters
from rlhf.run.job import Job
from rlhf.training.deepspeed import deepspeed_config, init_process_group, on_gpu
from rlhf.training.weights import resolve_dtype


def stage_arguments(
    arguments_class: type[TrainingArguments],
    section: str,
    job: Job[Any],
    source: Path,
    own: dict[str, Any],
) -> Any:
    """The Trainer's arguments of a stage. Joins the process group.

    Args:
        arguments_class: the Trainer's, such as `trl.SFTConfig`.
        section: of the config, for errors.
        job: the stage's; its config has the fields that all trainings have.
        source: folder of the model to train.
        own: what this kind of training sets besides.

    Raises:
        ConfigError: `trainer_args` has a wrong key or value.
    """
    ours = _common(job, source)
    ours |= own
    return build_arguments(arguments_class, section, ours, job.config.trainer_args)


def micro_batches(section: str, config: Any, num_ranks: int) -> dict[str, Any]:
    """How TRL's data loaders cut data into steps: `num_epochs` passes, with a cosine over all steps.

    Raises:
        ConfigError: the step cannot be cut evenly.
    """
    accumulation = gradient_accumulation(
        section,
        config.batch_size,
        config.micro_batch_size,
        num_ranks,
    )
    return {
        "num_train_epochs": config.num_epochs,
        "per_device_train_batch_size": config.micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "lr_scheduler_type": "cosine",
    }


def gradient_accumulation(
    section: str,
    batch_size: int,
    micro_batch_size: int,
    num_ranks: int,
) -> int:
    """Micro-batches of one rank in one step.

    Raises:
        ConfigError: the step cannot be cut evenly.
    """
    # Rounded, a step would have another size than the config says, and another one on more ranks.
    if batch_size % (micro_batch_size * num_ranks):
        raise ConfigError(
            f"{section}.batch_size={batch_size} is no multiple of "
            f"{section}.micro_batch_size={micro_batch_size} times {num_ranks} training ranks: change one "
            "of them, or compute.num_training_ranks"
        )
    return batch_size // (micro_batch_size * num_ranks)


def _common(job: Job[Any], model: Path) -> dict[str, Any]:
    config = job.config
    # Before the arguments are made: they would start a process group in accelerate's own way.
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
        "warmup_steps": 0,  # `fit` sets it, once it is known how many steps there are
        "gradient_checkpointing": config.gradient_checkpointing,
        "save_strategy": "steps",
        "save_steps": config.save_steps,
        "save_total_limit": None,  # `checkpoints` removes old ones, once the new one is sealed
        "logging_strategy": "steps",
        "logging_steps": 1,
        # The Trainer would log another value in place of a loss that is not finite; here it stops
        # the training.
        "logging_nan_inf_filter": False,
        "report_to": "none",  # `rlhf.view.trackers` tells them what is finished: a resume would say it twice
        "disable_tqdm": True,
        "eval_strategy": "no",
        "push_to_hub": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": on_gpu(job.compute),
    }


def build_arguments(
    arguments_class: type[TrainingArguments],
    section: str,
    own: dict[str, Any],
    extra: dict[str, Any],
) -> Any:
    """Arguments of the Trainer: ours, and the user's `trainer_args` untouched.

    Raises:
        ConfigError: a key of `trainer_args` is unknown to the Trainer or is set by this package
            already.
    """
    known = {field.name for field in dataclasses.fields(arguments_class) if field.init}
    unknown = sorted(set(extra) - known)
    if unknown:
        class_name = f"{arguments_class.__module__}.{arguments_class.__name__}"
        raise ConfigError(f"{section}.trainer_args: {', '.join(unknown)} is no field of {class_name}")
    set_twice = sorted(set(extra) & set(own))
    if set_twice:
        raise ConfigError(
            f"{section}.trainer_args: {', '.join(set_twice)} is set from the fields of `{section}` and "
            "`compute` (or is fixed); use those and take it out of trainer_args"
        )
    try:
        return arguments_class(**own, **extra)
    # The classes check values when they are made, and raise one or the other.
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{section}.trainer_args={extra}: {error}") from error
