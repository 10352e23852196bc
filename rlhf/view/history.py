"""What a tracker is told of a run: training curves, iteration figures, gates and settings.

All of it follows from finished stages and from `summary.json`, so that a run that was killed and resumed
gives the same points as one that was not.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from rlhf.data.digest import digest_of
from rlhf.data.json_text import json_text
from rlhf.errors import printable
from rlhf.loop.gates import METRICS, training_steps
from rlhf.run.artifact import Artifact
from rlhf.view.run_folder import RunFolder, iteration_of

Value = float | str
Point = tuple[int, dict[str, Value]]
"""A place on an axis, and values by name."""

BEFORE_THE_LOOP = ("sft", "reward_model")
"""Stages that train, each on an axis of its own; those of `dpo` follow each other on one."""
_NAMES = {
    "mean_score": "score",
    "gold_accuracy": "gold",
    "win_rate": "win_rate",
    "win_rate_low": "win_rate_low",
    "win_rate_high": "win_rate_high",
    "mean_response_tokens": "tokens",
    "kl": "kl",
    "log_ratio": "log_ratio",
    "truncated": "cut_share",
    "pairs": "pairs",
    "disagreement": "disagreement",
}
"""What figures of `summary.json` are called in a tracker."""
_OF_THE_COMMAND = ("run_dir", "until", "take_over", "reuse", "report_to", "debug")
"""Settings that say how a command was started, not what the run is."""


@dataclass(frozen=True)
class Unit:
    """Points that a tracker gets together, or not at all.

    Those of equal `name` and `digest` are the same. `axis` is what the places of `points` count: steps of
    `sft`, `reward_model`, `dpo` or `raft`, or `iteration`; the only point of `config` is at 0.

    Example:
        Unit("iteration_002/dpo", "f8e2…", "dpo", [(41, {"dpo/loss": 0.69, "dpo/iteration": 2, …}), …])
    """

    name: str
    digest: str
    axis: str
    points: list[Point]


def history(run: RunFolder) -> list[Unit]:
    """Everything that there is to tell of a run, in the loop's order.

    Raises:
        RunChanged: a training's `metrics.jsonl` is damaged.
    """
    units = [_settings(run)]
    for stage in BEFORE_THE_LOOP:
        if stage in run.artifacts:
            units.append(_curve(stage, run.artifacts[stage], stage))
    figures, gates = _summary(run)
    units += _gates(gates, 0)
    if 0 in figures:
        units.append(_figures(run, figures[0]))
    num_steps = 0
    iteration = 1
    # No iteration is left out: where the steps of one are unknown, so are the places of those after it.
    while (training := run.training(iteration)) is not None:
        stage = training.path.name
        curve = _curve(f"iteration_{iteration:03d}/{stage}", training, stage, num_steps, iteration)
        num_steps = curve.points[-1][0]
        units.append(curve)
        units += _gates(gates, iteration)
        if iteration in figures:
            units.append(_figures(run, figures[iteration]))
        iteration += 1
    # A gate may have stopped an iteration before it trained.
    units += _gates(gates, iteration)
    return units


def settings(run: RunFolder) -> dict[str, Any]:
    """The run's settings as trackers show them: no passwords in URLs, and no signs that nobody sees."""
    shown: dict[str, Any] = _shown(run.config)
    for name in _OF_THE_COMMAND:
        shown.pop(name, None)
    return shown


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _shown(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shown(item) for item in value]
    return printable(value) if isinstance(value, str) else value


def _settings(run: RunFolder) -> Unit:
    text = json_text(settings(run), indent=1, ascii_only=False)
    digest = digest_of(text)
    # Settings may change between two commands: each is another unit, and no change of an old one.
    return Unit(f"config {digest[:12]}", digest, "config", [(0, {"config": text})])


def _curve(name: str, training: Artifact, axis: str, num_before: int = 0, iteration: int = 0) -> Unit:
    """The optimizer steps of a training.

    Args:
        name: of the unit.
        training: the finished stage.
        axis: and the first part of all names of values.
        num_before: steps on that axis before the first of this training.
        iteration: that the training belongs to, 0 for none.
    """
    points = []
    for number, row in enumerate(training_steps(training.path / METRICS), start=1):
        values: dict[str, Value] = {}
        for key, value in row.items():
            # An epoch begins anew in each iteration, and the step is the place itself.
            if key not in ("step", "epoch") and _is_number(value):
                values[f"{axis}/{key}"] = value
        if iteration:
            values[f"{axis}/iteration"] = iteration
        points.append((num_before + number, values))
    return Unit(name, training.digest or "", axis, points)


def _summary(run: RunFolder) -> tuple[dict[int, dict[str, Any]], list[dict[str, Any]]]:
    """Figures by iteration, and gates, as the loop has written them so far."""
    try:
        summary = json.loads((run.path / "summary.json").read_bytes())
        figures = {int(row["iteration"]): row for row in summary["iterations"]}
        gates = [gate for gate in summary["gates"] if isinstance(gate["iteration"], int)]
    except (OSError, ValueError, KeyError, TypeError):
        return {}, []  # none yet, or torn by hand: the loop makes it anew
    return figures, gates


def _figures(run: RunFolder, row: dict[str, Any]) -> Unit:
    """What is known of an iteration when it is evaluated."""
    iteration = int(row["iteration"])
    values: dict[str, Value] = {}
    for key, name in _NAMES.items():
        if _is_number(row.get(key)):
            values[f"iteration/{name}"] = row[key]
    for kind in ("dropped", "left_out"):
        for reason, count in (row.get(kind) or {}).items():
            values[f"iteration/{kind}/{reason}"] = count
    for judge, verdict in (row.get("judges") or {}).items():
        for key, value in verdict.items():
            if _is_number(value):
                values[f"iteration/judges/{judge}/{_NAMES[key]}"] = value
    # Without the seconds: a stage that is made again and comes out the same has not changed.
    digest = digest_of(values)
    values |= _seconds(run, iteration)
    return Unit(f"iteration_{iteration:03d}/figures", digest, "iteration", [(iteration, values)])


def _seconds(run: RunFolder, iteration: int) -> dict[str, Value]:
    """Seconds by stage of an iteration; what came before the loop counts to iteration 0."""
    seconds: dict[str, Value] = {}
    for name, artifact in run.artifacts.items():
        # The export is made when the figures are told already.
        if (iteration_of(name) or 0) == iteration and not name.endswith("/export"):
            stage = name.removeprefix(f"iteration_{iteration:03d}/")
            seconds[f"iteration/seconds/{stage}"] = artifact.record["seconds"]
    return seconds


def _gates(gates: list[dict[str, Any]], iteration: int) -> list[Unit]:
    """What gates have found in an iteration, as texts."""
    units = []
    for gate in gates:
        if gate["iteration"] != iteration:
            continue
        text = printable(f"{gate['text']} ({gate['where']})")
        digest = digest_of([gate["gate"], iteration, text])
        # The same gate may find several things in an iteration.
        name = f"iteration_{iteration:03d}/gate {gate['gate']} {digest[:12]}"
        units.append(Unit(name, digest, "iteration", [(iteration, {f"gates/{gate['gate']}": text})]))
    return units


def _is_number(value: Any) -> bool:
    """Whether a tracker can draw it; null stands for a number that was not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)
