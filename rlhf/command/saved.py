"""The settings that a run folder holds (`RUN/config.yaml`), for `iterate run_dir=RUN` and `stage` to go on.

What stands there was composed and checked by an earlier command; nothing in it is an interpolation. It may be
anybody's file all the same: `rlhf.command.foreign` says what of it is obeyed.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from rlhf.command.foreign import Names, code_in, named, require_named
from rlhf.command.settings import as_schema, misread, typed_values
from rlhf.config.fields import plain
from rlhf.config.limits import value_at
from rlhf.config.overrides import iterate_command, literal
from rlhf.config.schema import Config
from rlhf.data.files import resolved
from rlhf.data.shards import write_atomic
from rlhf.errors import ConfigError, UserError
from rlhf.run.owner import not_own

FILE = "config.yaml"
_OF_NO_ARTIFACT = ("run_dir", "until", "take_over", "num_iterations", "reuse", "report_to", "debug", "json")
"""Settings that say how far a run goes and what is shown of it, and nothing of what is made."""
_COSTS = ("gates", "compute")
"""Sections that no artifact depends on."""
_EXPERIMENT = re.compile(r"# experiment: ([\w./+-]+)\n")
_INTERPOLATION = re.compile(r"(?<!\\)(\\\\)*\$\{")
_WHOLE = (
    "Ways out: put the file back, or type the whole command that the run was begun with (model.path=…, or "
    "experiment=…, and the rest)."
)


@dataclass(frozen=True)
class Saved:
    """The settings of a run folder as they stand there; `not_own` says why they are not this user's alone."""

    file: Path
    values: DictConfig
    experiment: str | None
    not_own: str | None


def write_saved(folder: Path, cfg: Config, experiment: str | None) -> None:
    """Keep a run's settings in its folder; none of them is where to stop this time, or whose place was taken.

    Args:
        folder: the run.
        cfg: its settings.
        experiment: the name that the command gives; None keeps one that stands there of the same run.
    """
    if experiment is None and not other_run(folder, cfg):
        experiment = _experiment_of(folder)
    text = OmegaConf.to_yaml(OmegaConf.create(literal(plain(cfg) | {"until": None, "take_over": None})))
    if experiment is not None:
        text = f"# experiment: {experiment}\n{text}"
    write_atomic(folder / FILE, text.encode())


def read_saved(folder: Path) -> Saved | None:
    """The settings of a run folder; None where it has none.

    Raises:
        ConfigError: the file is damaged, or of a version that today's code cannot go on from.
    """
    file = folder / FILE
    try:
        text, reason = _read(folder)
        values = OmegaConf.load(io.StringIO(text))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise _unusable(file, str(error)) from error
    if not isinstance(values, DictConfig):
        raise _unusable(file, "it holds a list")
    raw = OmegaConf.to_container(values, resolve=False)
    if _interpolates(raw):
        raise _unusable(file, "it holds an interpolation, ${…}, and what a run writes is resolved")
    try:
        as_schema(values, Config)
    except ConfigError as error:
        raise _unusable(file, str(error)) from error
    wrong = list(misread(raw, Config()))
    if wrong:
        raise _unusable(file, "\n".join(wrong))
    missing = list(_missing(raw, Config()))
    if missing:
        raise _unusable(file, f"cut short, or of an older version: it lacks {', '.join(missing)}")
    found = _EXPERIMENT.match(text)
    return Saved(file, values, found[1] if found else None, reason)


def _experiment_of(folder: Path) -> str | None:
    try:
        saved = read_saved(folder)
    except ConfigError:
        return None
    return saved.experiment if saved else None


def _read(folder: Path) -> tuple[str, str | None]:
    """The file's text, and why it or its folder is not this user's alone.

    By handles: what is looked at must be what is read, also in a folder that somebody changes meanwhile.
    """
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # A pipe of that name would keep us waiting.
        handle = os.open(FILE, os.O_RDONLY | os.O_NONBLOCK, dir_fd=directory)
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            os.close(handle)
            raise OSError("it is no plain file")
        with os.fdopen(handle, "rb") as file:
            places = {folder: os.fstat(directory), folder / FILE: status}
            reasons = [f"{place} {not_own(its)}" for place, its in places.items() if not_own(its)]
            return file.read().decode(), reasons[0] if reasons else None
    finally:
        os.close(directory)


def _interpolates(value: Any) -> bool:
    """Whether any text in a value is an interpolation, and not one that is escaped."""
    if isinstance(value, dict):
        return any(map(_interpolates, value.values()))
    if isinstance(value, list):
        return any(map(_interpolates, value))
    return isinstance(value, str) and _INTERPOLATION.search(value) is not None


def _unusable(file: Path, why: str) -> ConfigError:
    return ConfigError(f"{file}: the settings of this run cannot be read: {why}\n{_WHOLE}")


def _missing(values: Any, default: Any, prefix: str = "") -> Iterator[str]:
    """Settings that every version has written and this file lacks."""
    for item in dataclasses.fields(default):
        key = f"{prefix}{item.name}"
        usual = getattr(default, item.name)
        if item.name not in values:
            if not item.metadata.get("later"):
                yield key
        elif dataclasses.is_dataclass(usual):
            yield from _missing(values[item.name], usual, f"{key}.")


def typed_settings(words: Sequence[str]) -> DictConfig:
    """`key=value` words of a command line, in Hydra's grammar, as a config of their own.

    Raises:
        OverrideParseException: a word is no such override.
        ConfigError: it takes several values, takes a setting away, or would be misread.
    """
    wrong = list(misread(typed_values(words), Config()))
    if wrong:
        raise ConfigError("\n".join(wrong))
    typed = OmegaConf.create({})
    for found in OverridesParser.create().parse_overrides(list(words)):
        if found.is_sweep_override() or found.is_delete():
            raise ConfigError(f"{found.input_line}: one value is wanted here, as in key=value.")
        OmegaConf.update(typed, found.key_or_group, found.value(), force_add=True)
    return typed


def merged(saved: Saved, typed: DictConfig) -> DictConfig:
    """A run's own settings with those of the command line over them.

    The one way from a run folder's settings to a config that something is done with.

    Raises:
        ConfigError: another user's settings have code run that the command line does not name.
    """
    require_named(as_schema(saved.values, Config), typed, saved.file, saved.not_own)
    together = OmegaConf.merge(saved.values, typed)
    assert isinstance(together, DictConfig), "two mappings make one"
    return together


def going_on(words: Sequence[str], run_dir: str | None, schema: type[Any]) -> Saved | None:
    """The settings of the run that a command goes on with; None where it says itself what is made.

    A command goes on where it names a run folder that has settings, and besides that nothing but what no
    artifact depends on (how far, on which machines, in which batches, past which gates), or code that the run
    has anyway. Everything else is composed as if the folder were empty: a command that says what is made
    means the same wherever it is typed.

    Args:
        words: the command line, flags and all.
        run_dir: the run folder that it names.
        schema: of the tool, a kind of `Config`.

    Raises:
        ConfigError: there are finished stages and no settings; or as `read_saved`.
    """
    if run_dir is None or any("=" not in word or word.startswith(("-", "~")) for word in words):
        return None
    typed = typed_settings(words)
    others = [names for names in _places(typed) if not _is_of_no_artifact(names, schema)]
    if not all(_may_be_code(names, schema) for names in others):
        return None
    folder = resolved(run_dir, "run_dir")
    saved = read_saved(folder) if folder.is_dir() else None
    if saved is None:
        if not others:
            _require_nothing_finished(folder)
        return None
    for names in others:
        if not _repeats(names, typed, saved):
            return None
    return saved


def _places(typed: Any, above: Names = ()) -> Iterator[Names]:
    """Where the values of a config stand, from the top down."""
    for name, value in typed.items_ex(resolve=False):
        names = (*above, str(name))
        if isinstance(value, DictConfig) and value:
            yield from _places(value, names)
        else:
            yield names


def _repeats(names: Names, typed: DictConfig, saved: Saved) -> bool:
    """Whether a typed setting is code that the run has, such as a rule that is named once more."""
    for place, value in code_in(as_schema(saved.values, Config)):
        if names[: len(place)] == place:
            return named(place, value, typed)
    return False


def _require_nothing_finished(folder: Path) -> None:
    """Refuse a folder of finished stages whose settings are gone: it was hardly made of the defaults.

    Raises:
        ConfigError: there is such a stage.
    """
    finished = next(iter(folder.glob("**/artifact.json")), None)
    if finished is not None:
        raise ConfigError(
            f"run_dir={folder}: holds finished stages ({finished.parent.relative_to(folder)}, …) but no "
            f"{FILE}, so its settings are not known.\n{_WHOLE}"
        )


def _fields_of(names: Names, schema: type[Any]) -> list[Any]:
    """The fields of the schema on the way to a setting, from the top down; they end at a mapping."""
    fields: list[Any] = []
    section = schema()
    for name in names:
        if not dataclasses.is_dataclass(section):
            break
        known = {item.name: item for item in dataclasses.fields(section)}
        if name not in known:
            return []
        fields.append(known[name])
        section = getattr(section, name)
    return fields


def _is_of_no_artifact(names: Names, schema: type[Any]) -> bool:
    """Whether a setting may change while a run goes on, and all that is finished stays what it is."""
    if names[0] in (*_OF_NO_ARTIFACT, *_COSTS):
        return True
    fields = _fields_of(names, schema)
    return bool(fields) and not fields[-1].metadata.get("compared", True)


def _may_be_code(names: Names, schema: type[Any]) -> bool:
    """Whether a setting may be one that `code_in` finds; in a mapping only what is there would tell."""
    fields = _fields_of(names, schema)
    return bool(fields) and (fields[-1].metadata.get("code", False) or fields[-1].name == "others")


def says(saved: Saved, words: Sequence[str]) -> str:
    """The line that tells a person whose settings a command goes on with."""
    experiment = f", experiment {saved.experiment}" if saved.experiment else ""
    changes = [word for word in words if not word.startswith("run_dir=")]
    over_them = f" and {' '.join(changes)}" if changes else ""
    return f"{saved.file.parent}: goes on with the run's own settings ({FILE}{experiment}){over_them}"


_TOLD = ("model.path", "model.revision", "reward_model.path", "reward_model.rule", "prompts.path")
"""What tells one run from another at a glance."""


@contextmanager
def also_saying(note: Callable[[], str], kind: type[UserError] = UserError) -> Iterator[None]:
    """Put a note behind such errors that come up meanwhile; it is asked for then, and may be empty."""
    try:
        yield
    except kind as error:
        text = note()
        if not text:
            raise
        raise type(error)(f"{error}\n{text}") from error


def other_run(folder: Path, cfg: Config) -> str:
    """Which model, judge and prompts a run folder holds, where a command asks for others; else empty.

    Only for people to read: nothing is done with what stands there.
    """
    try:
        saved = read_saved(folder)
    except ConfigError:
        return ""
    if saved is None:
        return ""
    lines = []
    for key in _TOLD:
        there = OmegaConf.select(saved.values, key)
        there = OmegaConf.to_container(there) if OmegaConf.is_config(there) else there
        now = value_at(cfg, key)
        if there != now:
            lines.append(f"  {key}={_written(there)} there, {_written(now)} in this command")
    if not lines:
        return ""
    experiment = f" of experiment={saved.experiment}" if saved.experiment else ""
    return "\n".join(
        [
            f"{folder} holds another run{experiment}:",
            *lines,
            "To change a setting of that one, give its whole command with the change.",
            f"To go on with that one, with its own settings: {iterate_command(folder)}",
        ]
    )


def changed_settings(folder: Path, cfg: Config) -> str:
    r"""Which settings a command gives another value than the run folder's have; empty for another run's.

    A refusal names what stages are told, which is not what a person types: `evaluate.greedy=20` is the
    `slice` of a stage. Settings that no artifact depends on are left out.

    Example:
        "RUN/config.yaml differs from this command:\n  evaluate.greedy=30 there, 20 in this command"
    """
    try:
        saved = read_saved(folder)
    except ConfigError:
        return ""
    if saved is None or other_run(folder, cfg):
        return ""
    there = OmegaConf.to_container(saved.values, resolve=False)
    lines = []
    for names, before, now in _differing(there, literal(plain(cfg))):
        if not _is_of_no_artifact(names, Config):
            lines.append(f"  {'.'.join(names)}={_written(before)} there, {_written(now)} in this command")
    if not lines:
        return ""
    return "\n".join([f"{saved.file} differs from this command:", *lines])


def _differing(there: Any, now: Any, names: Names = ()) -> Iterator[tuple[Names, Any, Any]]:
    """Values that differ, by where they stand; those of a setting that either side lacks are none of them."""
    if isinstance(there, dict) and isinstance(now, dict):
        for key, value in there.items():
            if key in now:
                yield from _differing(value, now[key], (*names, key))
    elif there != now:
        yield names, there, now


def _written(value: Any) -> Any:
    """A value as a person writes it: what is not set is `null` in YAML and on a command line."""
    return "null" if value is None else value
