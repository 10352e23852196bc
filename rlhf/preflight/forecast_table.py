"""A forecast as the text that a person reads."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlhf.preflight.forecast import Forecast
from rlhf.preflight.stage_costs import StageForecast
from rlhf.run.stopwatch import duration

_TOO_LONG = 7 * 86400.0
"""Seconds: a run on a CPU that hardly anybody means."""
_HEADS = ["", "tokens in", "tokens out", "memory", "floor", "time", "GPU hours", "disk", "money"]


def forecast_text(forecast: Forecast, price: float | None, title: str) -> str:
    """The stages before the first iteration, those of one iteration, the sums, and what they rest on.

    Args:
        forecast: of a run.
        price: of a GPU hour (of a CPU, of the machine's hour); None shows no money.
        title: of the run.
    """
    first = [stage for stage in forecast.stages if _iteration_of(stage) in (None, 0)]
    last_iteration = max((_iteration_of(stage) or 0 for stage in forecast.stages), default=0)
    # The export is made once, of the best policy.
    iteration = []
    for stage in forecast.stages:
        if _iteration_of(stage) == last_iteration and stage.label != "export":
            iteration.append(stage)
    table = [_HEADS]
    for stage in first:
        table.append(_cells(forecast, price, stage.name, [stage]))
    if last_iteration:
        table.append(_cells(forecast, price, "= before iteration 1", first))
        for stage in iteration:
            table.append(_cells(forecast, price, f"  {stage.label}", [stage]))
        table.append(_cells(forecast, price, f"= iteration {last_iteration}", iteration))
    whole = "= the whole run" if forecast.until is None else f"= up to {forecast.until}"
    table.append(_cells(forecast, price, whole, forecast.stages))
    left = [stage for stage in forecast.stages if not stage.spent]
    if len(left) < len(forecast.stages):
        table.append(_cells(forecast, price, "= of it left to do", left))
    if price is None:
        table = [row[:-1] for row in table]
    lines = [f"{title} on {forecast.machine}", "", *_aligned(table), ""]
    lines += _remarks(forecast)
    return "\n".join(lines)


def _iteration_of(stage: StageForecast) -> int | None:
    """0 for the evaluation of π0; None for what comes before."""
    first, _, rest = stage.name.partition("/")
    return int(first.removeprefix("iteration_")) if rest and first.startswith("iteration_") else None


def _cells(forecast: Forecast, price: float | None, name: str, stages: Sequence[StageForecast]) -> list[str]:
    """A row of the table: one stage, or the sum of several."""
    machine = forecast.machine
    seconds = sum(stage.time.planned for stage in stages)
    # All GPUs are paid for, also by a stage that uses fewer.
    hours = seconds / 3600 * machine.num_devices
    memory = max((stage.memory for stage in stages), default=0)
    disk = sum(stage.disk for stage in stages) + max((stage.checkpoints for stage in stages), default=0)
    return [
        name,
        _count(sum(stage.tokens_in for stage in stages)),
        _count(sum(stage.tokens_out for stage in stages)),
        _memory(memory, machine.memory),
        duration(sum(stage.time.floor for stage in stages)),
        duration(seconds) + (" spent" if len(stages) == 1 and stages[0].spent else ""),
        "–" if machine.is_cpu else f"{hours:.2f}",
        _bytes(disk),
        f"{hours * (price or 0):.2f}",
    ]


def _remarks(forecast: Forecast) -> list[str]:
    """What the figures rest on, what is not in them, and what does not fit."""
    lines = []
    for title, sentences in (("measured", forecast.lengths.measured), ("assumed", forecast.lengths.assumed)):
        # Equal ones once, in their order.
        lines += [f"{title}: {sentence}" for sentence in dict.fromkeys(sentences)]
    kind = "" if not forecast.machine.is_cpu else " (its figures are an assumption too: about so much)"
    lines.append(
        f"assumed: shares of the peaks, starts and disk as in rlhf/preflight/costs.py{kind}; "
        "docs/performance.md"
    )
    notes: dict[str, list[str]] = {}
    for stage in forecast.stages:
        if stage.note:
            notes.setdefault(stage.note, []).append(stage.label)
    for note, labels in notes.items():
        lines.append(f"{', '.join(dict.fromkeys(labels))}: {note}")
    if forecast.machine.is_cpu and forecast.seconds > _TOO_LONG:
        lines.append("This is without a GPU; hardware=8xH100 plans for a machine that has some.")
    lines.append("disk: what stays, and the checkpoints of one training while it goes on")
    for label in dict.fromkeys(stage.label for stage in forecast.stages if _too_large(forecast, stage)):
        lines.append(
            f"! {label}: does not fit in the memory. docs/configuration.md: compute.zero_stage=3, "
            "compute.offload_optimizer=true, dpo.lora.rank=32, generate.tensor_parallel_size, or more GPUs"
        )
    return lines


def _too_large(forecast: Forecast, stage: StageForecast) -> bool:
    return stage.memory > forecast.machine.memory


def _count(number: float) -> str:
    if not number:
        return "–"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def _bytes(num_bytes: float) -> str:
    if not num_bytes:
        return "–"
    return f"{num_bytes / 1e9:.3g} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.2g} MB"


def _memory(num_bytes: float, there_is: float) -> str:
    if not num_bytes:
        return "–"
    text = f"{num_bytes / 1e9:.3g}"
    if math.isfinite(there_is):
        text += f" / {there_is / 1e9:.3g}"
    return text + (" GB !" if num_bytes > there_is else " GB")


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        name, *figures = row
        cells = [name.ljust(widths[0])]
        for figure, width in zip(figures, widths[1:], strict=True):
            cells.append(figure.rjust(width))
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "─" * max(map(len, lines)))
    return lines
