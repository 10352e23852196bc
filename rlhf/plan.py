"""What a run will cost: `python -m rlhf.plan experiment=… [hardware=8xH100] [price=2.5] key=value …`.

Takes what `python -m rlhf.iterate` takes, loads no model and asks nothing of the network. What a run folder
has of it counts as it was measured. docs/performance.md says how to read it.
"""

from __future__ import annotations

from rlhf.command.line import main
from rlhf.config.limits import check_config
from rlhf.config.tools import PlanConfig
from rlhf.data.files import resolved
from rlhf.errors import StorageError
from rlhf.preflight.devices import planned_machine
from rlhf.preflight.forecast import forecast_of, spent_in, up_to, with_spent
from rlhf.preflight.forecast_table import forecast_text
from rlhf.run.output import output_error, show
from rlhf.run.until import last_stage


def plan(cfg: PlanConfig) -> None:
    """Print the plan of a run as a table."""
    check_config(cfg)
    assert cfg.run_dir is not None, "set on the command line or from the experiment's name"
    folder = resolved(cfg.run_dir, "run_dir")
    machine = planned_machine(cfg.hardware, cfg.compute)
    forecast = forecast_of(cfg, machine, folder, cfg.prompt_tokens, cfg.response_tokens)
    if cfg.until is not None:
        forecast = up_to(forecast, last_stage(cfg.until, [stage.name for stage in forecast.stages]))
    if cfg.hardware is None:
        # What was spent on this machine says nothing of another one.
        forecast = with_spent(forecast, spent_in(folder))
    show(forecast_text(forecast, cfg.price, cfg.run_dir))
    lost = output_error()
    if lost is not None:
        raise StorageError(f"The plan cannot be written to standard output: {lost.strerror}. Make room.")


if __name__ == "__main__":
    main(plan, "iterate", PlanConfig)
