"""Direct preference optimisation on ready token ids and ready reference log-probabilities."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader
from trl import DPOConfig

from rlhf.config.stage_configs import DpoStage
from rlhf.run.job import Job, Outcome, Worker
from rlhf.training.checkpoints import train_resumable
from rlhf.training.logprobs import response_logprobs
from rlhf.training.lora import add_adapter, export_adapter
from rlhf.training.losses import dpo_loss
from rlhf.training.stage_trainer import (
    StageTrainer,
    attach,
    build_arguments,
    common_arguments,
    step_rows,
    write_rows,
)
from rlhf.training.step_plan import Bin, StepShares, load_pairs, plan_steps
from rlhf.training.weights import export_model, load_model, resolve_dtype

_METRICS = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
)


class DpoTrainer(StageTrainer):
    """One training step = one item = this rank's bins of one optimizer step.

    The loss of a step is the mean over its pairs, whatever the number of ranks and bins: each bin adds
    `weight` × Σ losses, gradients are summed over bins and ranks, and only the last bin makes DeepSpeed step.
    """

    def __init__(self, *args: Any, steps_per_epoch: int, rpo_alpha: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps_per_epoch = steps_per_epoch
        self.rpo_alpha = rpo_alpha
        self._step_metrics: dict[str, float] = {}

    def get_train_dataloader(self) -> DataLoader[list[Bin]]:
        """Items in order; they are this rank's own already, so accelerate must not share them out again."""
        assert self.train_dataset is not None
        return DataLoader(self.train_dataset, batch_size=1, shuffle=False, collate_fn=lambda items: items[0])

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> None:
        return None

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of all bins, then DeepSpeed's optimizer step.

        Returns:
            The step's loss over all ranks.
        """
        model.train()
        bins: list[Bin] = inputs
        learning_rate = self._get_learning_rate()
        sums = torch.zeros(len(_METRICS), dtype=torch.float64, device=self.args.device)
        for number, a_bin in enumerate(bins):
            loss, metrics = self._bin_loss(model, a_bin)
            sums += metrics
            # DeepSpeed averages gradients over ranks; the step's loss is a sum over them.
            self.accelerator.gradient_state._set_sync_gradients(number == len(bins) - 1)
            self.accelerator.backward(loss * self.args.world_size, scale_wrt_gas=False)
        if dist.is_initialized():
            dist.all_reduce(sums)
        self._step_metrics = dict(zip(_METRICS, sums.tolist(), strict=True)) | {"learning_rate": learning_rate}
        return sums[0].float()

    def _bin_loss(self, model: Any, a_bin: Bin) -> tuple[Tensor, Tensor]:
        sequences = a_bin.sequences.to(self.args.device)
        chosen, rejected = response_logprobs(model, sequences).chunk(2)
        chosen_length, rejected_length = sequences.response_mask_B_S.sum(dim=1).chunk(2)
        losses, chosen_rewards, rejected_rewards = dpo_loss(
            chosen,
            rejected,
            a_bin.ref_chosen_B.to(self.args.device),
            a_bin.ref_rejected_B.to(self.args.device),
            chosen_length,
            rejected_length,
            beta=self.args.beta,
            loss=self.args.loss_type[0],
            label_smoothing=self.args.label_smoothing,
            rpo_alpha=self.rpo_alpha,
        )
        loss = losses.sum() * a_bin.weight
        if not math.isfinite(loss.item()):
            raise self.bad_step("loss", self.state.global_step + 1, f", pairs {', '.join(a_bin.ids)}")
        with torch.no_grad():
            margins = chosen_rewards - rejected_rewards
            rows = [losses, chosen_rewards, rejected_rewards, margins > 0, margins, chosen, rejected]
            metrics = torch.stack([row.double().sum() for row in rows]) * a_bin.weight
        return loss, metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the step's metrics under TRL's names; epochs count passes over the pairs."""
        if "loss" in logs:
            logs.update(self._step_metrics)
            self.state.epoch = self.state.global_step / self.steps_per_epoch
        super().log(logs, start_time)

    def step_contents(self, step: int) -> dict[str, Any]:
        """The ids of all pairs of a step, also those of other ranks."""
        return {"pairs": [self.train_dataset.pairs[i].id for i in self.train_dataset.steps[step - 1]]}


def _arguments(job: Job[DpoStage], policy: Path) -> DPOConfig:
    config = job.config
    own = common_arguments(job, policy) | {
        "beta": config.beta,
        "loss_type": [config.loss.value],
        "label_smoothing": config.label_smoothing,
        "max_length": config.max_length,
        "num_train_epochs": 1,  # one pass over StepShares, which holds all epochs
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "lr_scheduler_type": config.lr_scheduler,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "optim": "adamw_torch",
    }
    return build_arguments(DPOConfig, "dpo", own, config.trainer_args)


def train_dpo(job: Job[DpoStage], worker: Worker) -> Outcome:
    """Train `policy` on `pairs` against `reference`; write `model/` and `metrics.jsonl`. Every rank calls this.

    With adapters (`lora`), `model/` is the policy with the adapter merged, and `adapter/` the adapter alone.
    """
    config, policy = job.config, job.input_path("policy")
    lora = config.lora if config.lora.rank else None
    pairs, counts = load_pairs(job.input_path("pairs"), job.input_path("reference"), config.max_length)
    steps = plan_steps(len(pairs), config.batch_size, config.num_epochs, job.seed)
    args = _arguments(job, policy)
    model = load_model(policy, resolve_dtype(config.dtype, policy), config.trust_remote_code)
    if lora is not None:
        model = add_adapter(model, policy, lora, job.seed)
    trainer = DpoTrainer(
        model=model,
        args=args,
        train_dataset=StepShares(pairs, steps, config.batch_tokens, worker.rank, worker.world_size),
        steps_per_epoch=len(steps) // config.num_epochs,
        rpo_alpha=config.rpo_alpha,
    )
    attach(trainer, policy, worker)
    train_resumable(trainer, job.out_path)
    if lora is None:
        export_model(model, policy, job.out_path / "model")
    else:
        export_adapter(model, policy, job.out_path)
    rows = step_rows(trainer)
    if worker.rank == 0:
        write_rows(job.out_path, rows)
    return Outcome(
        counts | {"pairs": len(pairs), "steps": len(steps)},
        {
            "first_loss": rows[0]["loss"],
            "last_loss": rows[-1]["loss"],
            **{f"mean_{n}": sum(row[n] for row in rows) / len(rows) for n in ("rewards/accuracies", "rewards/margins")},
        },
    )
