"""Direct preference optimisation on ready token ids and ready reference log-probabilities."""

from __future__ import annotations

import contextlib
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader
from trl import DPOConfig

from rlhf.config.stage_configs import DpoStage
from rlhf.config.step_count import steps_of
from rlhf.config.training import DpoConfig
from rlhf.run.job import Job, Outcome, Worker
from rlhf.training.arguments import stage_arguments
from rlhf.training.deepspeed import fit_buckets, on_gpu
from rlhf.training.fit import add_warning, fit, step_rows
from rlhf.training.lora import add_adapter, export_adapter, num_trained
from rlhf.training.losses import dpo_loss
from rlhf.training.memory_forecast import dpo_memory
from rlhf.training.pair_file import Anchor, PairSource, TrainingPairs, write_pair_file
from rlhf.training.ranks import on_rank_zero
from rlhf.training.response_batches import batch_logprobs, batching_of
from rlhf.training.stage_trainer import StageTrainer
from rlhf.training.step_plan import Bin, StepShares, plan_steps
from rlhf.training.token_budget import TokenBudget, find_budget, forecast_of
from rlhf.training.tokens import PAIRS
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

    The loss of a step is the mean over its pairs, whatever the number of ranks and bins: each bin
    adds `weight` × Σ losses, gradients are summed over bins and ranks, and only the last bin makes
    DeepSpeed step.
    """

    def __init__(self, *args: Any, steps_per_epoch: int, settings: DpoConfig, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps_per_epoch = steps_per_epoch
        self.settings = settings
        self.budget: TokenBudget | None = None
        self._step_metrics: dict[str, float] = {}

    def get_train_dataloader(self) -> DataLoader[list[Bin]]:
        """Items in order; not prepared by accelerate, which would share them out again."""
        assert self.train_dataset is not None
        return DataLoader(self.train_dataset, batch_size=1, shuffle=False, collate_fn=_only_item)

    # An item is a list of bins: it has no labels to count and no tensors to move.
    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> None:
        return None

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of all bins, then DeepSpeed's optimizer step.

        Returns:
            The step's loss over all ranks.
        """
        where = f"in step {self.state.global_step + 1} on rank {self.args.process_index}"
        with self.budget.watched(where) if self.budget else contextlib.nullcontext():
            return self._all_bins(model, inputs)

    def _all_bins(self, model: Any, inputs: Any) -> Tensor:
        model.train()
        bins: list[Bin] = inputs
        # Before the optimizer's step, after which the scheduler has the next step's.
        learning_rate = self._get_learning_rate()
        sums = torch.zeros(len(_METRICS), dtype=torch.float64, device=self.args.device)
        for number, batch in enumerate(bins, start=1):
            loss, metrics = self._bin_loss(model, batch)
            sums += metrics
            is_last = number == len(bins)
            self.accelerator.gradient_state._set_sync_gradients(is_last)
            # DeepSpeed averages gradients over ranks; the step's loss is a sum over them.
            self.accelerator.backward(loss * self.args.world_size, scale_wrt_gas=False)
        if dist.is_initialized():
            dist.all_reduce(sums)
        self._step_metrics = dict(zip(_METRICS, sums.tolist(), strict=True))
        self._step_metrics["learning_rate"] = learning_rate
        return sums[0].float()

    def _bin_loss(self, model: Any, batch: Bin) -> tuple[Tensor, Tensor]:
        """What a bin adds to the step's loss, with gradient, and to each of `_METRICS`."""
        device = self.args.device
        # Of each pair the chosen response, then the rejected one.
        logprobs_B_2 = batch_logprobs(model, batch.batch.to(device)).view(-1, 2)
        chosen_B, rejected_B = logprobs_B_2.unbind(dim=1)
        losses_B, chosen_rewards_B, rejected_rewards_B = dpo_loss(
            chosen_B,
            rejected_B,
            batch.ref_chosen_B.to(device),
            batch.ref_rejected_B.to(device),
            batch.chosen_length_B.to(device),
            batch.rejected_length_B.to(device),
            batch.score_margin_B.to(device),
            self.settings,
        )
        loss = losses_B.sum() * batch.weight
        # Checked before the backward pass, while it is known which pairs are to blame.
        if not math.isfinite(loss.item()):
            step = self.state.global_step + 1
            raise self.bad_step("loss", step, f", pairs {', '.join(batch.ids)}")
        with torch.no_grad():
            margins_B = chosen_rewards_B - rejected_rewards_B
            # In the order of `_METRICS`.
            values = [
                losses_B,
                chosen_rewards_B,
                rejected_rewards_B,
                margins_B > 0,
                margins_B,
                chosen_B,
                rejected_B,
            ]
            sums = torch.stack([value_B.double().sum() for value_B in values])
        return loss, sums * batch.weight

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the step's metrics under TRL's names; epochs count passes over the pairs."""
        if "loss" in logs:
            # Over the Trainer's loss too, which is the same one rounded to fp32.
            logs.update(self._step_metrics)
            self.state.epoch = self.state.global_step / self.steps_per_epoch
        super().log(logs, start_time)

    def step_contents(self, step: int) -> dict[str, Any]:
        """The ids of all pairs of a step, also those of other ranks."""
        indices = self.train_dataset.steps[step - 1]
        pairs = self.train_dataset.pairs
        return {"pairs": [pairs[index].id for index in indices]}


def _only_item(items: list[list[Bin]]) -> list[Bin]:
    return items[0]


def _arguments(job: Job[DpoStage], policy: Path) -> DPOConfig:
    config = job.config
    own = {
        # The three have no effect: the loss is ours, and is told by `config`.
        "beta": config.beta,
        "loss_type": ["sigmoid"],
        "label_smoothing": config.label_smoothing,
        "max_length": config.max_length,
        "num_train_epochs": 1,  # one pass over StepShares, which holds all epochs
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "lr_scheduler_type": config.lr_scheduler,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "optim": "adamw_torch_fused",
    }
    return stage_arguments(DPOConfig, "dpo", job, policy, own)


def _sources(job: Job[DpoStage]) -> list[PairSource]:
    """The iteration's own pairs, then those that are replayed."""
    # Own pairs come first and iterations in their order, so that equal work has equal steps.
    names = sorted(name for name in job.inputs if name == "pairs" or name.startswith("pairs."))
    sources = []
    for name in names:
        origin = name.removeprefix("pairs")
        found = {}
        for logprobs in ("reference", "reference_previous"):
            key = logprobs + origin
            found[logprobs] = job.input_path(key) if key in job.inputs else None
        anchor = Anchor(found["reference"], found["reference_previous"], job.config.initial_share)
        sources.append(PairSource(origin.removeprefix(".") or "own", job.input_path(name), anchor))
    return sources


def train_dpo(job: Job[DpoStage], worker: Worker) -> Outcome:
    """Train `policy` on `pairs` against `reference`. Every rank calls this.

    Pairs of other origins, `pairs.NAME`, have log-probabilities of their own, `reference.NAME`. Without a
    reference the loss has none; with `reference_previous` it is held against both.

    Writes `model/` and `metrics.jsonl`. With adapters (`lora`), `model/` is the policy with the
    adapter merged, and `adapter/` the adapter alone.
    """
    worker.progress(0, 0, "reading the data and loading the model")
    config = job.config
    policy = job.input_path("policy")
    # The arguments before the model: with them transformers knows of ZeRO-3 when it loads weights. And before
    # the data: with them the process group begins, whose other ranks wait for what rank 0 writes.
    args = _arguments(job, policy)
    path = job.out_path / PAIRS
    counts = on_rank_zero(partial(write_pair_file, path, _sources(job), config.max_length))
    pairs = TrainingPairs(path)
    steps = plan_steps(len(pairs), config.batch_size, config.num_epochs, job.seed)
    longest = pairs.longest()
    budget = find_budget(job, worker, forecast_of(dpo_memory, job, worker, policy, longest), longest)
    model = load_model(policy, resolve_dtype(config.dtype, policy), config.trust_remote_code)
    batching, slower = batching_of(model, budget.batch_tokens, on_gpu(job.compute))
    export = partial(export_model, model, policy, job.out_path / "model")
    if config.lora.rank:
        model = add_adapter(model, policy, config.lora, job.seed)
        fit_buckets(args.hf_deepspeed_config.config, num_trained(model))
        export = partial(export_adapter, model, policy, job.out_path)
    trainer = DpoTrainer(
        model=model,
        args=args,
        train_dataset=StepShares(pairs, steps, batching, worker.rank, worker.world_size),
        steps_per_epoch=len(steps) // config.num_epochs,
        settings=config,
    )
    trainer.budget = budget
    counts["pairs"] = len(pairs)
    step_count = steps_of("dpo", config, len(pairs), "pairs")
    outcome = fit(trainer, policy, job, worker, counts, step_count, export)
    rows = step_rows(trainer)
    for name in ("rewards/accuracies", "rewards/margins"):
        outcome.metrics[f"mean_{name}"] = sum(row[name] for row in rows) / len(rows)
    outcome.metrics["budget"] = budget.record()
    add_warning(outcome, slower)
    return outcome
