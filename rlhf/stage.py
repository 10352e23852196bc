"""One stage of a run, alone: `python -m rlhf.stages.dpo run_dir=RUN iteration=2 key=value …`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlhf.command.line import guarded, to_config
from rlhf.errors import ConfigError
from rlhf.iterate import execute

_USAGE = (
    "usage: python -m rlhf.stages.{stage} run_dir=RUN [iteration=T] [artifact=FOLDER/{stage}] [key=value …]\n"
    "Runs one stage of a run folder whose earlier stages are finished, with the run's own config (RUN/config.yaml) and "
    "the given changes. iteration=T names RUN/iteration_00T/{stage}; artifact= names any other folder of the run, such "
    "as iteration_002/held_out/{stage}."
)


def main(stage: str) -> NoReturn:
    """Run one stage from the command line."""
    guarded(lambda: _run(stage, sys.argv[1:]))


def _run(stage: str, arguments: list[str]) -> None:
    usage = _USAGE.format(stage=stage)
    if not arguments or any(argument in ("-h", "--help") for argument in arguments):
        print(usage)
        return
    if any("=" not in argument for argument in arguments):
        raise ConfigError(f"{arguments}: every argument reads key=value.\n{usage}")
    given: dict[str, str] = dict(argument.split("=", 1) for argument in arguments)
    run_dir = given.get("run_dir")
    if run_dir is None or not (Path(run_dir) / "config.yaml").is_file():
        raise ConfigError(
            f"run_dir={run_dir}: no config.yaml there; begin the run with python -m rlhf.iterate.\n{usage}"
        )
    iteration, artifact = given.pop("iteration", None), given.pop("artifact", None)
    if iteration is not None and not iteration.isdecimal():
        raise ConfigError(f"iteration={iteration}: must be a whole number, 0 for what π0 is evaluated on.\n{usage}")
    name = artifact or (f"iteration_{int(iteration):03d}/{stage}" if iteration is not None else stage)
    try:
        changes: Any = OmegaConf.from_dotlist([f"{key}={value}" for key, value in given.items()])
        merged: Any = OmegaConf.merge(OmegaConf.load(Path(run_dir) / "config.yaml"), changes)
    except (OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{arguments}: {error}") from error
    execute(to_config(merged), only=name)
