"""What every kind of training does once its Trainer is made: train, measure, export, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, Trainer

from rlhf.config.step_count import StepCount
from rlhf.data.json_text import json_text
from rlhf.data.reading_notes import reading_notes
from rlhf.data.shards import write_atomic
from rlhf.run.job import Job, Outcome, Worker
from rlhf.training.checkpoints import train_resumable
from rlhf.training.stage_trainer import StageTrainer, Watch, bad_step_path
from rlhf.training.tokens import remove_token_files


def fit(
    trainer: StageTrainer,
    source: Path,
    job: Job[Any],
    worker: Worker,
    counts: Mapping[str, int],
    step_count: StepCount,
    export: Callable[[], None],
    measure: Callable[[], dict[str, Any]] | None = None,
) -> Outcome:
    """Train to the end, or go on where an interrupted attempt stopped. Every rank calls it.

    Three parts of a training are its own: a Trainer with model and data, how the model is exported,
    and what is measured on held-out data. The rest of it is here. Writes what `export` writes, then
    `metrics.jsonl`, in the job's folder.

    Args:
        trainer: with model, data and arguments.
        source: folder that the model's weights were loaded from.
        job: the stage's.
        worker: the driver hears of each step through it.
        counts: what became of the data; `steps` and `warmup_steps` are added to them.
        step_count: of the training; it is said before the first step, and its warm-up is what the
            Trainer gets.
        export: writes the trained model; ends with all ranks at the same point.
        measure: gives the metrics of held-out data, before the model is exported; None where there
            are none.

    Returns:
        The counts, and as metrics those of `measure`, `first_loss` and `last_loss`.
    """
    trainer.source = source
    trainer.remove_callback(PrinterCallback)  # it would print every row of the log to the console
    trainer.add_callback(Watch(trainer, worker))
    if worker.rank == 0:
        worker.say(_announcement(job.name, step_count))
    # Whole steps in place of the share: transformers takes a share of 1 for one step.
    trainer.args.warmup_steps = step_count.warmup
    worker.progress(0, 0, "the first step")
    train_resumable(trainer, job.out_path, job.compute.num_checkpoints)
    metrics: dict[str, Any] = {}
    if measure is not None:
        worker.progress(0, 0, "measuring on held-out data")
        metrics |= measure()
    worker.progress(0, 0, "exporting the model, with its adapters merged where it has some")
    export()
    rows = step_rows(trainer)
    # After the export, so that no rank reads the token files any more.
    if worker.rank == 0:
        write_rows(job.out_path, rows)
        remove_token_files(job.out_path)
    metrics["first_loss"] = rows[0]["loss"]
    metrics["last_loss"] = rows[-1]["loss"]
    metrics |= reading_notes(counts, job.stage)
    steps = {"steps": len(rows), "warmup_steps": step_count.warmup}
    return Outcome({**counts, **steps}, metrics)


def add_warning(outcome: Outcome, text: str) -> None:
    """Say something under the stage's line, beside what is said there already; "" is nothing."""
    warnings = [outcome.metrics.get("warning"), text]
    if text:
        outcome.metrics["warning"] = "; ".join(filter(None, warnings))


def _announcement(name: str, step_count: StepCount) -> str:
    lines = [f"  · {name}: {step_count}"]
    for warning in step_count.warnings():
        lines.append(f"  ⚠ {warning}")
    return "\n".join(lines)


def step_rows(trainer: Trainer) -> list[dict[str, Any]]:
    """One row per optimizer step.

    They come from the state that checkpoints carry, so a resume neither doubles nor loses any.

    Example:
        {"epoch": 0.5, "grad_norm": 1.32, "learning_rate": 5e-07, "loss": 0.6931, "step": 1}
    """
    rows = []
    for entry in trainer.state.log_history:
        # The last entry sums up the whole training and has no loss of a step.
        if "loss" in entry:
            row = dict(entry)
            # TRL counts them from the last start of the process: a resume would give other bytes.
            row.pop("num_tokens", None)
            rows.append(row)
    return rows


def write_rows(out: Path, rows: list[dict[str, Any]]) -> None:
    """Write `metrics.jsonl`, a line for each of `step_rows`.

    Reports of a bad step, which an earlier attempt left behind, are deleted.
    """
    lines = []
    for row in rows:
        lines.append(json_text(row, sort_keys=True) + "\n")
    write_atomic(out / "metrics.jsonl", "".join(lines).encode())
    reports = bad_step_path(out, "*")
    for report in reports.parent.glob(reports.name):
        report.unlink()
