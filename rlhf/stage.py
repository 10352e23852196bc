"""One stage of a run, by name: `python -m rlhf.stage dpo run_dir=RUN iteration=2 key=value …`."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from functools import partial
from typing import NoReturn

from rlhf.command.line import fit_to_machine, guarded
from rlhf.command.saved import merged, read_saved, typed_settings
from rlhf.command.settings import to_config
from rlhf.config.overrides import literal
from rlhf.data.files import resolved
from rlhf.errors import ConfigError
from rlhf.iterate import execute
from rlhf.run.output import show
from rlhf.run.stage_table import STAGES

_USAGE = (
    "usage: python -m rlhf.stage {stage} run_dir=RUN [iteration=T] [artifact=FOLDER/{stage}] "
    "[key=value …]\n"
    "Runs one stage of a run folder whose earlier stages are finished, with the run's own config "
    "(RUN/config.yaml) and the given changes. iteration=T names RUN/iteration_00T/{stage}; artifact= "
    "names any other folder of the run, such as iteration_002/held_out/{stage}."
)


def main(arguments: list[str]) -> NoReturn:
    """Run one stage from the command line; the argument without a = names it."""
    guarded(partial(_run, arguments))


def _run(arguments: list[str]) -> None:
    names = [argument for argument in arguments if "=" not in argument and not argument.startswith("-")]
    stage = names[0] if names else "STAGE"
    usage = _USAGE.format(stage=stage)
    settings = [argument for argument in arguments if argument != stage]
    if not settings or "-h" in arguments or "--help" in arguments:
        show(usage)
        return
    stages = [name for name in STAGES if name != "preflight"]  # which is no stage of a run
    if stage not in stages:
        meant = get_close_matches(stage, stages, n=1)
        did_you_mean = f" Did you mean {meant[0]}?" if meant else ""
        raise ConfigError(f"{stage}: no such stage.{did_you_mean} Name one of {', '.join(stages)}.\n{usage}")
    if any("=" not in setting for setting in settings):
        raise ConfigError(f"{settings}: every argument reads key=value.\n{usage}")
    # These three are text as it stands; everything else is a setting, in Hydra's grammar.
    values: dict[str, str] = dict(setting.split("=", 1) for setting in settings)
    run_dir = values.pop("run_dir", None)
    iteration = values.pop("iteration", None)
    artifact = values.pop("artifact", None)
    folder = resolved(run_dir, "run_dir") if run_dir else None
    if folder is None or not (folder / "config.yaml").exists():
        raise ConfigError(
            f"run_dir={run_dir}: no config.yaml there; begin the run with python -m rlhf.iterate.\n{usage}"
        )
    if iteration is not None and not iteration.isdecimal():
        raise ConfigError(
            f"iteration={iteration}: must be a whole number, 0 for what π0 is evaluated on.\n{usage}"
        )
    name = artifact
    if not name:
        # Stages that lie in no iteration's folder (`world`, `sft`, `prompts`) have their own name.
        name = stage if iteration is None else f"iteration_{int(iteration):03d}/{stage}"
    # Without Hydra: the run's config is resolved, and experiments have no say in it any more.
    words = [f"{key}={value}" for key, value in values.items()]
    changes = typed_settings(words)
    changes["run_dir"] = literal(str(folder))
    if "until" in changes:
        raise ConfigError(f"until={changes['until']}: one stage ends by itself. Leave it out.")
    saved = read_saved(folder)
    assert saved is not None, "its file is there"
    config = to_config(merged(saved, changes))
    fit_to_machine(config, words)
    execute(config, only=name)


if __name__ == "__main__":
    main(sys.argv[1:])
