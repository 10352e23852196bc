"""What the Trainers of DPO, SFT and judges share: lean checkpoints, and a stop at the first bad step."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlhf.data.json_text import json_text
from rlhf.data.shards import write_atomic
from rlhf.errors import UserError
from rlhf.run.attempt_folder import stage_folder
from rlhf.run.job import Worker
from rlhf.training.packed_conversations import unpacked
from rlhf.training.weights import init_master_weights


class StageTrainer(Trainer):
    """The part every Trainer of ours overrides; mixed in before TRL's classes."""

    source: Path
    """Folder the weights were loaded from."""
    _batches_of_step: tuple[int, list[Any]] = (-1, [])
    """Number of the step under way, and this rank's batches in it: token ids, and how they are packed."""

    def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Tensor:
        """The library's; `step_contents` can tell afterwards what was in it."""
        # Called for each micro-batch; the step's number changes with the first of the next step.
        step, batches = self._batches_of_step
        if step != self.state.global_step:
            batches = []
            self._batches_of_step = (self.state.global_step, batches)
        batches.append((inputs["input_ids"], inputs.get("prompt_groups")))
        return super().training_step(model, inputs, *rest, **named)

    def step_contents(self, step: int) -> dict[str, Any]:
        """What a step was trained on: the rows of this rank as text."""
        assert self.processing_class is not None
        _, batches = self._batches_of_step
        texts: list[str] = []
        for input_ids, prompt_groups in batches:
            rows = input_ids
            if prompt_groups is not None:
                rows = list(unpacked(input_ids[0], prompt_groups))
            texts += self.processing_class.batch_decode(rows)
        return {"rows": texts}

    def bad_step(self, what: str, step: int, where: str = "") -> UserError:
        """The error for a step whose loss or gradient is not finite; what was in it is saved first."""
        path = bad_step_path(Path(self.args.output_dir or ""), self.args.process_index)
        report = {"not_finite": what, "step": step, **self.step_contents(step)}
        text = json_text(report, indent=1, ascii_only=False)
        write_atomic(path, text.encode())
        return UserError(
            f"the {what} of step {step}{where} is not a finite number, so training stopped. Lower the "
            "learning rate, look at those rows of the data, or compute in float32. What the step was made "
            f"of: {path}"
        )

    def _prepare_for_training(
        self,
        max_steps: int,
        train_dataloader: Any,
        resume_from_checkpoint: str | None,
    ) -> Any:
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        # Only now has DeepSpeed wrapped the model; a checkpoint brings fp32 weights of its own.
        if resume_from_checkpoint is None:
            init_master_weights(self.model, self.source)
        return prepared

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Nothing: checkpoints hold DeepSpeed's weights, and `export_model` writes the result."""
        # The Trainer writes its state into this folder next, and expects it to be there.
        if output_dir is not None and self.args.should_save:
            os.makedirs(output_dir, exist_ok=True)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: checkpoints are ours alone."""

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: it would walk all parameters in every step."""
        return 0


class Watch(TrainerCallback):
    """Tells the driver how far the training is, and stops at a loss or gradient that is not finite."""

    def __init__(self, trainer: StageTrainer, worker: Worker) -> None:
        self.trainer = trainer
        self.worker = worker

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Called on every rank after a step."""
        values = logs or {}
        for name in ("loss", "grad_norm"):
            if not math.isfinite(values.get(name, 0.0)):
                raise self.trainer.bad_step(name, state.global_step)
        # The summary at the end of a training has no loss of a step.
        if "loss" in values:
            self.worker.progress(state.global_step, state.max_steps, f"loss {values['loss']:.4f}")


def bad_step_path(out: Path, rank: int | str) -> Path:
    """Where a rank says what it failed on."""
    # Beside the stage's folder, which the next attempt may empty. A stage under way works in
    # `.NAME.partial`; its report bears the name that users know.
    folder = stage_folder(out)
    stage = folder.name.removeprefix(".").removesuffix(".partial")
    return folder.with_name(f"{stage}.bad_step.rank{rank}.json")
