"""What a run folder's settings may not do by themselves: have code run that nobody at this machine named.

A config says which Python runs: rules, a model's own code, arguments that libraries turn into imports. Where
the folder is another user's, each of these must be on the command line too. Whatever goes on with saved
settings (`rlhf.command.saved`) passes `require_named` before anything else looks at them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rlhf.config.fields import plain
from rlhf.config.overrides import override, pasted
from rlhf.errors import ConfigError

Names = tuple[str, ...]
"""The place of a setting: its sections from the top down, then its own name. A judge's name may hold dots."""

_JUDGES = ("reward_model", "others")
_OWN_RULES = "rlhf.world.tasks:"
"""Rules that come with this package."""


def code_in(section: Any, above: Names = ()) -> Iterator[tuple[Names, Any]]:
    """Place and value of every setting in a config that has code run, or that a key of this user is sent to.

    Fields of the schema say so of themselves (`rlhf.config.fields.setting`).

    Example:
        ("reward_model", "rule"), "my_rules:exact"
    """
    for item in dataclasses.fields(section):
        value = getattr(section, item.name)
        names = (*above, item.name)
        if dataclasses.is_dataclass(value):
            yield from code_in(value, names)
        elif item.metadata.get("code") and value and not _is_own_rule(value):
            yield names, plain(value)
        elif isinstance(value, dict):
            for name, entry in value.items():
                if dataclasses.is_dataclass(entry):
                    yield from code_in(entry, (*names, name))


def _is_own_rule(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(_OWN_RULES)


def named(names: Names, value: Any, typed: DictConfig) -> bool:
    """Whether a person typed this setting, with this value."""
    found: Any = OmegaConf.to_container(typed, resolve=True)
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return bool(found == value)


def require_named(config: Any, typed: DictConfig, file: Path, not_own: str | None) -> None:
    """Let pass what this user wrote or has typed.

    Args:
        config: what a run folder holds, as the schema's dataclasses.
        typed: the settings on the command line.
        file: where `config` was read.
        not_own: whose folder and file they are, where they are not this user's alone.

    Raises:
        ConfigError: another user's settings have code run that the command line does not name.
    """
    if not_own is None:
        return
    unnamed = {names: value for names, value in code_in(config) if not named(names, value, typed)}
    if not unnamed:
        return
    words = _as_typed(unnamed)
    settings = "\n".join(f"  {word}" for word in words)
    folder = pasted(str(file.parent))
    raise ConfigError(
        f"{not_own}. By settings that are not on your command line, {file.name} there would have code run, "
        f"or a key of yours sent away; nothing of it was used and nothing imported:\n{settings}\n"
        "Ways out, once you have read that code:\n"
        f"  name it yourself: add to the command  {pasted(*words)}\n"
        "  make the run yours, if nobody else needs it, and then the same command: "
        f"chown -R $(id -u) {folder} && chmod -R go-w {folder}\n"
        f"  work on a copy of your own: cp -r {folder} NEW, then run_dir=NEW"
    )


def _as_typed(settings: dict[Names, Any]) -> list[str]:
    """Settings as overrides; what is new in a mapping has a + in front."""
    words = []
    judges: dict[str, dict[str, Any]] = {}
    for names, value in settings.items():
        key = ".".join(names)
        if names[:2] == _JUDGES:
            # Together: Hydra knows no judge whose settings it could add to one by one.
            _, _, judge, setting = names
            judges.setdefault(judge, {})[setting] = value
        elif isinstance(value, dict):
            words.append(override(f"+{key}", value))
        else:
            words.append(override(key, value))
    if judges:
        words.append(override(f"+{'.'.join(_JUDGES)}", judges))
    return words
