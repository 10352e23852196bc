"""What a run folder's settings may not do by themselves: have code run that nobody at this machine named.

A config says which Python runs: rules, a model's own code, arguments that libraries turn into imports. Where
the folder is another user's, each of these must be on the command line too. Whatever goes on with saved
settings (`rlhf.command.saved`) passes `require_named` before anything else looks at them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rlhf.config.fields import plain
from rlhf.config.overrides import override, pasted
from rlhf.errors import ConfigError

_OWN_RULES = "rlhf.world.tasks:"
"""Rules that come with this package."""


def code_in(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Key and value of every setting in a config that has code run, or that a key of this user is sent to.

    Fields of the schema say so of themselves (`rlhf.config.fields.setting`).

    Example:
        ("reward_model.rule", "my_rules:exact")
    """
    for item in dataclasses.fields(section):
        value = getattr(section, item.name)
        key = f"{prefix}{item.name}"
        if dataclasses.is_dataclass(value):
            yield from code_in(value, f"{key}.")
        elif item.metadata.get("code") and value and not _is_own_rule(value):
            yield key, plain(value)
        elif isinstance(value, dict):
            for name, entry in value.items():
                if dataclasses.is_dataclass(entry):
                    yield from code_in(entry, f"{key}.{name}.")


def _is_own_rule(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(_OWN_RULES)


def named(key: str, value: Any, typed: DictConfig) -> bool:
    """Whether a person typed this setting, with this value."""
    found = OmegaConf.select(typed, key)
    if OmegaConf.is_config(found):
        found = OmegaConf.to_container(found, resolve=True)
    return bool(found == value)


def require_named(config: Any, typed: DictConfig, file: Any, not_own: str | None) -> None:
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
    unnamed = [(key, value) for key, value in code_in(config) if not named(key, value, typed)]
    if not unnamed:
        return
    words = [override(_added(key), value) for key, value in unnamed]
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


def _added(key: str) -> str:
    """A key as it is typed: what is new in a mapping has a + in front."""
    in_a_mapping = key.startswith("reward_model.others.") or key.endswith("_args")
    return f"+{key}" if in_a_mapping else key
