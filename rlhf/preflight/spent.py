"""After a run: the time that was planned for its stages, beside what was spent on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from rlhf.config.overrides import plan_command
from rlhf.config.schema import Config
from rlhf.errors import UserError
from rlhf.loop.figures import add_seconds
from rlhf.preflight.devices import machine_here
from rlhf.preflight.forecast import Forecast, forecast_of
from rlhf.run.stopwatch import duration


def tell_planned_and_spent(
    cfg: Config, folder: Path, seconds: Mapping[str, float], say: Callable[[str], None]
) -> None:
    """Say both, and write them into the run's summary.

    The plan is the one before the run, for this machine: it knows nothing of what the run has measured. A run
    whose plan cannot be made says why.

    Args:
        cfg: of a finished run.
        folder: of the run.
        seconds: of its stages, by name, over all their attempts.
        say: tells the person who watches.
    """
    spent = by_kind(seconds)
    try:
        forecast = forecast_of(cfg, machine_here(cfg.compute))
    except UserError as error:
        reason, _, _ = str(error).partition("\n")
        say(f"time          {duration(sum(spent.values()))} spent on its stages; not planned: {reason}")
        add_seconds(folder, {}, spent)
        return
    planned = by_kind({stage.name: stage.time.planned for stage in forecast.stages})
    say(_text(planned, spent))
    say(_rests_on(forecast, folder))
    add_seconds(folder, planned, spent)


def by_kind(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds by kind of stage, summed over iterations; what stands in a folder of its own is one kind.

    Example:
        {"iteration_001/dpo": 3.0, "iteration_002/dpo": 2.0, "iteration_001/held_out/score": 1.0} gives
        {"dpo": 5.0, "held_out": 1.0}
    """
    sums: dict[str, float] = {}
    for name, value in seconds.items():
        first, _, rest = name.partition("/")
        kind = rest.partition("/")[0] if first.startswith("iteration_") else first
        sums[kind] = round(sums.get(kind, 0.0) + value, 3)
    return sums


def _text(planned: Mapping[str, float], spent: Mapping[str, float]) -> str:
    """Both sums, and both of every kind that takes a twentieth of either."""
    all_planned, all_spent = sum(planned.values()), sum(spent.values())
    parts = []
    for kind in dict.fromkeys([*planned, *spent]):
        pair = planned.get(kind, 0.0), spent.get(kind, 0.0)
        if pair[0] > all_planned / 20 or pair[1] > all_spent / 20:
            parts.append(f"{kind} {duration(pair[0])} / {duration(pair[1])}")
    return (
        f"time          about {duration(all_planned)} planned / {duration(all_spent)} spent on its stages: "
        f"{', '.join(parts)}"
    )


def _rests_on(forecast: Forecast, folder: Path) -> str:
    """What the plan was made with."""
    lengths = forecast.lengths
    return (
        f"              planned for {forecast.machine}, {lengths.prompt_tokens:.0f} tokens a prompt and "
        f"{lengths.response_tokens:.0f} a response; {plan_command(folder)}"
    )
