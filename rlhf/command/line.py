"""From a command line to a checked `Config` or another schema, and from an exception to an exit code.

Exit codes: 0 done, 2 the user's input or request is wrong, 129, 130 or 143 stopped by a signal, 1 anything
else.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from rlhf.command.lists import with_lists
from rlhf.command.saved import going_on, merged, says, typed_settings
from rlhf.command.settings import (
    check_written,
    explained,
    named_experiment,
    to_config,
    typed_values,
    typed_words,
)
from rlhf.command.sweep import is_sweep, job_name, join_sweep, no_traces, swept_keys
from rlhf.command.temporary import prepare_temporary_folder
from rlhf.config.choices import Launcher
from rlhf.config.overrides import override, pasted
from rlhf.config.recipe_limits import unused_training
from rlhf.config.schema import Config
from rlhf.errors import ConfigError, RlhfError, Stopped, UserError, writing
from rlhf.launch.machine import lower_to_gpus
from rlhf.run.output import prepare_output, show

_PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = _PACKAGE.parent / "configs"
if not (CONFIGS / "iterate.yaml").is_file():
    # Installed from the wheel, which has no top level of the project: there they travel inside the package.
    CONFIGS = _PACKAGE / "configs"

# SIGHUP: the terminal is gone.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# At the import, so that whoever composes `configs/` without `main` has the schema it names.
ConfigStore.instance().store(name="schema", node=Config)


@dataclass
class _CommandLine:
    """A tool that is being run, and what became of it.

    `swept` are the keys that take several values, none without a sweep. `errors` holds what each job
    raised, by the job's name, in order; without a sweep the one job has no name.
    """

    command: Callable[[Any], None]
    config_name: str
    schema: type[Any]
    swept: set[str] = field(default_factory=set)
    errors: dict[str, BaseException] = field(default_factory=dict)


def main(
    command: Callable[[Any], None],
    config_name: str = "iterate",
    schema: type[Any] = Config,
) -> NoReturn:
    """Run a command line tool, whose root config is of the given schema, to its exit code."""
    ConfigStore.instance().store(name="schema", node=schema)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then lets exceptions through, and we choose the exit code
    line = _CommandLine(command, config_name, schema)
    guarded(partial(_run_all_jobs, line))


def _run_all_jobs(line: _CommandLine) -> None:
    """Compose the config of every job and run it; raises the first job's error when all have been tried."""
    sys.argv[1:] = with_lists(with_launcher(sys.argv[1:]), line.schema)
    if is_sweep(sys.argv):
        # A sweep in which nothing takes several values has one job, named by its run folder.
        line.swept = swept_keys(sys.argv[1:]) or {"run_dir"}

    # No partial object: Hydra names the application after the module that the function is defined in.
    def run_job(composed: DictConfig) -> None:
        _run_job(line, composed)

    decorate = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=line.config_name)
    with no_traces():
        decorate(run_job)()
    if not line.errors:
        return
    first = next(iter(line.errors.values()))
    if line.swept and isinstance(first, RlhfError):
        names = " ".join(line.errors)
        _exit(f"error: these jobs of the sweep failed: {names}", first.exit_code)
    raise first


def with_launcher(words: list[str]) -> list[str]:
    """Words of a command line in which `compute=ray` stands for `compute.launcher=ray`."""
    names = {f"compute={launcher.value}": f"compute.launcher={launcher.value}" for launcher in Launcher}
    return [names.get(word, word) for word in words]


def _run_job(line: _CommandLine, composed: DictConfig) -> None:
    """Run one job; what it raises is kept for later, so that the sweep's other jobs have their turn."""
    if any(isinstance(error, Stopped) for error in line.errors.values()):
        return  # Hydra would go on with the sweep's next job
    name = ""
    if line.swept:
        name = job_name(HydraConfig.get().overrides.task, line.swept)
    try:
        line.command(_config_of_job(line, composed, name))
    except BaseException as error:  # Hydra would print the whole command line before it lets one through
        line.errors[name] = error
        if composed.get("debug"):
            show(traceback.format_exc(), error=True)
        if line.swept and isinstance(error, RlhfError):
            show(f"error in {name}: {error}", error=True)


def _config_of_job(line: _CommandLine, composed: DictConfig, name: str) -> Any:
    """The checked config of one job, with a run folder where it is that of a run."""
    words = typed_words()
    check_written(line.config_name, words, line.schema)
    config = _composed(line, composed, name, words)
    if isinstance(config, Config):
        unused = list(unused_training(config, typed_values(words)))
        if unused and not line.swept:
            raise ConfigError("\n".join(unused))
        for each in unused:  # a sweep over methods has settings for each
            show(f"{name}: {each}", error=True)
    return config


def _composed(line: _CommandLine, composed: DictConfig, name: str, words: list[str]) -> Any:
    saved = None
    if issubclass(line.schema, Config) and not line.swept:
        saved = going_on(sys.argv[1:], composed.run_dir, line.schema)
    if saved is not None:
        config = to_config(merged(saved, typed_settings(words)), line.schema)
        fit_to_machine(config, words)
        # Of rlhf.check, standard output may be one JSON document.
        show(says(saved, words), error=line.schema is not Config)
        return config
    config = to_config(composed, line.schema)
    fit_to_machine(config, words)
    if isinstance(config, Config) and config.run_dir is None:
        config.run_dir = f"runs/{named_experiment() or line.config_name}"
    if line.swept:
        if not isinstance(config, Config):
            raise ConfigError(
                "sweeps (-m) are for python -m rlhf.iterate; call this tool once per output file."
            )
        assert config.run_dir is not None, "set just now"
        join_sweep(config, config.run_dir, name)
    return config


def fit_to_machine(config: Any, arguments: Collection[str]) -> None:
    """Lower what configs prefer and the GPUs here have no room for, and say so.

    Args:
        config: of a run or a tool; its section `compute` is changed in place.
        arguments: what a person typed, such as `compute.num_gpus=2`. That is never lowered.
    """
    if getattr(config, "hardware", None) is not None:
        return  # planned for another machine (`rlhf.plan`)
    if not hasattr(config, "compute"):
        return  # a tool that only reads
    sizes = [1]
    for section in ("generate", "score"):
        if hasattr(config, section):
            sizes.append(getattr(config, section).tensor_parallel_size)
    said = {argument.partition("=")[0].lstrip("+") for argument in arguments}
    for note in lower_to_gpus(config.compute, max(sizes), said):
        # Not on stdout, which may be a document.
        show(note, error=True)


def guarded(command: Callable[[], Any]) -> NoReturn:
    """Run something to an exit code: errors become messages, signals a clean stop."""
    prepare_output()
    _raise_on_signals()
    try:
        prepare_temporary_folder()
        with writing():
            command()
    except (RlhfError, HydraException, OmegaConfBaseException, YAMLError) as error:
        # What Hydra and YAML raise is about the command line or a config file: the user's input.
        _exit(f"error: {_message(error)}", getattr(error, "exit_code", UserError.exit_code))
    except Exception:
        # As Python would, but that the error's text may hold anything.
        _exit(traceback.format_exc(), RlhfError.exit_code)
    _ignore_signals()  # what is done is done: Python's own end would turn a late one into a death by signal
    sys.exit(0)


def _message(error: BaseException) -> str:
    """What to say of an error; Hydra's own messages leave out the setting or the reason."""
    if isinstance(error, OverrideParseException):
        key, equals, value = str(error.override).partition("=")
        if not equals:
            return f"{error.override}: no setting. Settings are given as key=value."
        return (
            f"{error.override}: {error}\nIn quotes every text is taken as it stands: "
            f"{pasted(override(key, value))}"
        )
    if isinstance(error, OmegaConfBaseException):
        return explained(error)
    if not isinstance(error, HydraException):
        return str(error)
    cause = error.__cause__ or error.__context__  # Hydra leaves out the `from` in places
    if isinstance(cause, OmegaConfBaseException):
        return _explained_in_place(cause, str(error))
    if error.__cause__:
        return f"{error}\n{error.__cause__}"
    return str(error)


def _explained_in_place(cause: OmegaConfBaseException, message: str) -> str:
    """As `explained`, with the config file and the override that Hydra's message names.

    Its first line reads "In 'iterate': ValidationError raised while composing config: …" for a file, and
    "Error merging override KEY=VALUE" for an override.
    """
    first_line = message.splitlines()[0]
    where, _, override = first_line.partition("Error merging override ")
    text = explained(cause, override)
    if not where.startswith("In "):
        return text
    file, _, _ = where.partition(":")
    return f"{file}: {text}"


def _exit(message: str, code: int) -> NoReturn:
    _ignore_signals()
    sys.stdout.flush()
    show(message, error=True)
    sys.exit(code)


def _raise_on_signals() -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        _ignore_signals()  # once is enough: the rest of the time belongs to the clean-up
        raise Stopped(number)

    for number in _SIGNALS:
        # `nohup` has SIGHUP ignored: such a run is to go on without its terminal.
        if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
            continue
        signal.signal(number, stop)


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
