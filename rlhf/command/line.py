"""From a command line to a checked `Config` or another schema, and from an exception to an exit code.

Exit codes: 0 done, 2 the user's input or request is wrong, 130 or 143 stopped by a signal, 1 anything else.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)
from yaml import YAMLError  # type: ignore[import-untyped]

from rlhf.command.sweep import is_sweep, job_name, join_sweep, no_traces, swept_keys
from rlhf.config.limits import check_config
from rlhf.config.schema import Config
from rlhf.errors import ConfigError, RlhfError, Stopped, UserError, printable, writing
from rlhf.launch.machine import lower_to_gpus

_PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = _PACKAGE.parent / "configs"
if not (CONFIGS / "iterate.yaml").is_file():
    # Installed from the wheel, which has no top level of the project: there they travel inside the package.
    CONFIGS = _PACKAGE / "configs"

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# At the import, so that whoever composes `configs/` without `main` has the schema it names.
ConfigStore.instance().store(name="schema", node=Config)


def to_config(composed: DictConfig, schema: type[Any] = Config) -> Any:
    """A composed config as the dataclass tree of a schema, checked against it.

    Raises:
        ConfigError: an unknown key (also one added with `+`), a wrong type, a missing or impossible value.
    """
    try:
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
        # Merged into the schema anew: Hydra takes any key that was added with `+`, the schema does not.
        merged = OmegaConf.merge(OmegaConf.structured(schema), plain)
        config: Any = OmegaConf.to_object(merged)
    except MissingMandatoryValue as error:
        raise ConfigError(
            f"{error.full_key}=… is missing, and has no default. Add it to the command."
        ) from error
    except OmegaConfBaseException as error:
        raise ConfigError(_explained(error)) from error
    if type(config) is Config:  # rlhf.check shows what is wrong in its own way
        check_config(config)
    return config


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
            print(printable(traceback.format_exc()), file=sys.stderr)
        if line.swept and isinstance(error, RlhfError):
            print(printable(f"error in {name}: {error}"), file=sys.stderr, flush=True)


def _config_of_job(line: _CommandLine, composed: DictConfig, name: str) -> Any:
    """The checked config of one job, with a run folder where it is that of a run."""
    config = to_config(composed, line.schema)
    fit_to_machine(config, HydraConfig.get().overrides.task)
    if isinstance(config, Config) and config.run_dir is None:
        experiment = HydraConfig.get().runtime.choices.get("experiment")
        config.run_dir = f"runs/{experiment or line.config_name}"
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
    sizes = [1]
    for section in ("generate", "score"):
        if hasattr(config, section):
            sizes.append(getattr(config, section).tensor_parallel_size)
    said = {argument.partition("=")[0].lstrip("+") for argument in arguments}
    for note in lower_to_gpus(config.compute, max(sizes), said):
        # Not on stdout, which may be a document.
        print(note, file=sys.stderr, flush=True)


def guarded(command: Callable[[], Any]) -> NoReturn:
    """Run something to an exit code: errors become messages, signals a clean stop."""
    _raise_on_signals()
    try:
        with writing():
            command()
    except (RlhfError, HydraException, OmegaConfBaseException, YAMLError) as error:
        # What Hydra and YAML raise is about the command line or a config file: the user's input.
        _exit(f"error: {_message(error)}", getattr(error, "exit_code", UserError.exit_code))
    _ignore_signals()  # what is done is done: Python's own end would turn a late one into a death by signal
    sys.exit(0)


def _message(error: BaseException) -> str:
    """What to say of an error; Hydra's own messages leave out the setting or the reason."""
    if isinstance(error, OverrideParseException):
        return f"{error.override}: {error}"
    if isinstance(error, OmegaConfBaseException):
        return _explained(error)
    if not isinstance(error, HydraException):
        return str(error)
    cause = error.__cause__ or error.__context__  # Hydra leaves out the `from` in places
    if isinstance(cause, OmegaConfBaseException):
        return _explained_in_place(cause, str(error))
    if error.__cause__:
        return f"{error}\n{error.__cause__}"
    return str(error)


def _explained_in_place(cause: OmegaConfBaseException, message: str) -> str:
    """As `_explained`, with the config file and the override that Hydra's message names.

    Its first line reads "In 'iterate': ValidationError raised while composing config: …" for a file, and
    "Error merging override KEY=VALUE" for an override.
    """
    first_line = message.splitlines()[0]
    where, _, override = first_line.partition("Error merging override ")
    explained = _explained(cause, override)
    if not where.startswith("In "):
        return explained
    file, _, _ = where.partition(":")
    return f"{file}: {explained}"


def _explained(error: OmegaConfBaseException, override: str = "") -> str:
    """Which setting is wrong and why; for one that does not exist, which may have been meant."""
    key = error.full_key or "config"
    first_line = str(error).splitlines()[0]
    reason = first_line.rstrip(".") + "."
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        reason = _no_such_setting(key)
    # The override shows the value too, where it is the one that the error is about.
    setting = override if override.startswith(key) else key
    return f"{setting}: {reason} docs/configuration.md lists every setting and what it takes."


def _no_such_setting(key: str) -> str:
    """Why a key is refused, with the settings that may have been meant."""
    node = ConfigStore.instance().load("schema.yaml").node
    tree = OmegaConf.to_container(OmegaConf.structured(node))
    settings = dict(_settings(tree))
    section, _, _ = key.rpartition(".")
    if settings.get(section) == {}:
        return f"not there yet; what is new in this mapping has a + in front: +{key}=…"
    # The same name in another section is a better guess than a similar name.
    meant = [name for name in settings if name.endswith(f".{key}")]
    if not meant:
        meant = get_close_matches(key, settings)
    if meant:
        return f"no such setting; did you mean {' or '.join(meant)}?"
    return "no such setting."


def _settings(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a nested config with its value, sections too.

    Example:
        {"dpo": {"beta": 0.1}} gives ("dpo", {"beta": 0.1}) and ("dpo.beta", 0.1)
    """
    if not isinstance(tree, dict):
        return
    for name, value in tree.items():
        key = f"{prefix}{name}"
        yield key, value
        yield from _settings(value, f"{key}.")


def _exit(message: str, code: int) -> NoReturn:
    _ignore_signals()
    sys.stdout.flush()
    print(printable(message), file=sys.stderr, flush=True)
    sys.exit(code)


def _raise_on_signals() -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        _ignore_signals()  # once is enough: the rest of the time belongs to the clean-up
        raise Stopped(number)

    for number in _SIGNALS:
        signal.signal(number, stop)


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
