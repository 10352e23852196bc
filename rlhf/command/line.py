"""From a command line to a checked `Config` or another schema, and from an exception to an exit code.

Exit codes: 0 done, 2 the user's input or request is wrong, 130 or 143 stopped by a signal, 1 anything else.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from rlhf.command.sweep import is_sweep, job_name, join_sweep, no_traces, swept_keys
from rlhf.config.limits import check_config
from rlhf.config.schema import Config
from rlhf.errors import ConfigError, RlhfError, Stopped, UserError, printable, writing

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

ConfigStore.instance().store(name="schema", node=Config)


def to_config(composed: DictConfig, schema: type[Any] = Config) -> Any:
    """A composed config as the dataclass tree of a schema, checked against it.

    Raises:
        ConfigError: an unknown key (also one added with `+`), a wrong type, a missing or impossible value.
    """
    try:
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
        merged = OmegaConf.merge(OmegaConf.structured(schema), plain)
        config: Any = OmegaConf.to_object(merged)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}=… is missing, and has no default. Add it to the command.") from error
    except OmegaConfBaseException as error:
        raise ConfigError(_explained(error)) from error
    if type(config) is Config:  # rlhf.check shows what is wrong in its own way
        check_config(config)
    return config


def main(command: Callable[[Any], None], config_name: str = "iterate", schema: type[Any] = Config) -> NoReturn:
    """Run a command line tool, whose root config is of the given schema, to its exit code."""
    ConfigStore.instance().store(name="schema", node=schema)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then lets exceptions through, and we choose the exit code

    raised: dict[str, BaseException] = {}
    swept: set[str] = set()

    def task(composed: DictConfig) -> None:
        if any(isinstance(error, Stopped) for error in raised.values()):
            return  # Hydra would go on with the sweep's next job
        job = job_name(HydraConfig.get().overrides.task, swept) if swept else ""
        try:
            config = to_config(composed, schema)
            if isinstance(config, Config) and config.run_dir is None:
                config.run_dir = f"runs/{HydraConfig.get().runtime.choices.get('experiment') or config_name}"
            if swept and not isinstance(config, Config):
                raise ConfigError("sweeps (-m) are for python -m rlhf.iterate; call this tool once per output file.")
            if swept:
                join_sweep(config, config.run_dir, job)
            command(config)
        except BaseException as error:  # Hydra would print the whole command line before it lets one through
            raised[job] = error
            if composed.get("debug"):
                print(printable(traceback.format_exc()), file=sys.stderr)
            if swept and isinstance(error, RlhfError):
                print(printable(f"error in {job}: {error}"), file=sys.stderr, flush=True)

    def whole() -> None:
        if is_sweep(sys.argv):
            swept.update(swept_keys(sys.argv[1:]) or {"run_dir"})
        with no_traces():
            hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(task)()
        for error in raised.values():
            if swept and isinstance(error, RlhfError):
                _exit(f"error: these jobs of the sweep failed: {' '.join(raised)}", error.exit_code)
            raise error

    guarded(whole)


def guarded(command: Callable[[], Any]) -> NoReturn:
    """Run something to an exit code: errors become messages, signals a clean stop."""
    _raise_on_signals()
    try:
        with writing():
            command()
    except (RlhfError, HydraException, OmegaConfBaseException, YAMLError) as error:
        _exit(f"error: {_message(error)}", getattr(error, "exit_code", UserError.exit_code))
    _ignore_signals()  # what is done is done: Python's own end would turn a late one into a death by signal
    sys.exit(0)


def _message(error: BaseException) -> str:
    if isinstance(error, OverrideParseException):
        return f"{error.override}: {error}"
    if isinstance(error, OmegaConfBaseException):
        return _explained(error)
    cause = error.__cause__ or error.__context__  # Hydra leaves out the `from` in places
    if isinstance(error, HydraException) and isinstance(cause, OmegaConfBaseException):
        where, _, override = str(error).splitlines()[0].partition("Error merging override ")
        file = where.partition(":")[0] + ": " if where.startswith("In ") else ""
        return file + _explained(cause, override)
    return f"{error}\n{error.__cause__}" if isinstance(error, HydraException) and error.__cause__ else str(error)


def _explained(error: OmegaConfBaseException, override: str = "") -> str:
    """Which setting is wrong and why; for one that does not exist, which may have been meant."""
    key, reason = error.full_key or "config", str(error).splitlines()[0].rstrip(".") + "."
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        schema = OmegaConf.to_container(OmegaConf.structured(ConfigStore.instance().load("schema.yaml").node))
        known = dict(_settings(schema))
        near = [each for each in known if each.endswith(f".{key}")] or get_close_matches(key, known)
        reason = f"no such setting{'; did you mean ' if near else ''}{' or '.join(near)}{'?' if near else '.'}"
        if known.get(key.rpartition(".")[0]) == {}:
            reason = f"not there yet; what is new in this mapping has a + in front: +{key}=…"
    what = override if override.startswith(key) else key
    return f"{what}: {reason} docs/configuration.md lists every setting and what it takes."


def _settings(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items() if isinstance(tree, dict) else ():
        yield f"{prefix}{name}", value
        yield from _settings(value, f"{prefix}{name}.")


def _exit(message: str, code: int) -> NoReturn:
    _ignore_signals()
    sys.stdout.flush()
    print(printable(message), file=sys.stderr, flush=True)
    sys.exit(code)


def _raise_on_signals() -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        _ignore_signals()  # once is enough: the rest of the time belongs to the clean-up
        raise Stopped(number)

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, stop)


def _ignore_signals() -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
