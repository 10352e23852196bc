"""Settings as a person types them: quoted for Hydra, and then for the shell.

A command that we print must mean, pasted into a shell, what we say it means, whatever stands in a path.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from rlhf.config.fields import plain

# Such text needs no quotes: it is no number, no true, false or null, and no letter of it means something to
# Hydra.
_BARE = re.compile(r"[A-Za-z_/.][A-Za-z0-9_/.:-]*")
_WORDS = re.compile(r"true|false|null|none|nan|inf|infinity|\.?[0-9].*", re.IGNORECASE)
_BEFORE_INTERPOLATION = re.compile(r"(\\*)\$\{")
_BEFORE_QUOTE = re.compile(r'(\\*)("|\Z)')


def literal(value: Any) -> Any:
    r"""A plain value in which OmegaConf finds no interpolation, at any depth.

    Example:
        "a${b}" becomes "a\${b}", which OmegaConf resolves to "a${b}"
    """
    if isinstance(value, dict):
        return {key: literal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [literal(item) for item in value]
    if isinstance(value, str):
        # Backslashes in front of it would escape each other.
        return _BEFORE_INTERPOLATION.sub(lambda found: found[1] * 2 + r"\${", value)
    return value


def override(key: str, value: Any) -> str:
    """`key=value` as Hydra reads it: what comes out of composing it is this very value.

    Example:
        override("run_dir", "my run") is `run_dir="my run"`, with the double quotes
    """
    return f"{key}={_value(plain(value))}"


def pasted(*words: str) -> str:
    """Words of a command as a person pastes them into a shell."""
    return shlex.join(words)


def iterate_command(folder: Path) -> str:
    """The command that goes on with a run, by the settings that it holds."""
    return pasted("python", "-m", "rlhf.iterate", override("run_dir", str(folder)))


def plan_command(folder: Path) -> str:
    """The command that plans a run, or the rest of it, by the settings that it holds."""
    return pasted("python", "-m", "rlhf.plan", override("run_dir", str(folder)))


def _value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list):
        return f"[{','.join(map(_value, value))}]"
    if isinstance(value, dict):
        pairs = [f"{key}:{_value(item)}" for key, item in value.items()]
        return "{" + ",".join(pairs) + "}"
    return repr(value)


def _text(text: str) -> str:
    if _BARE.fullmatch(text) and not _WORDS.fullmatch(text):
        return text
    # Within quotes a backslash is a letter like any other, but in front of a quote, the closing one too.
    escaped = _BEFORE_QUOTE.sub(
        lambda found: found[1] * 2 + (r"\"" if found[2] else ""),
        literal(text),
    )
    return f'"{escaped}"'


def overrides_of(section: Any, leaving_out: Iterable[str] = ()) -> list[str]:
    """A whole config as overrides of the schema's defaults.

    Args:
        section: a config.
        leaving_out: keys of its top level that are not to be among them.

    Example:
        ["num_iterations=2", "model.path=/models/mine", "+evaluate.judges={second:/models/other}"]
    """
    left_out = set(leaving_out)
    default = type(section)()
    return [text for name, text in _changes(section, default, "") if name not in left_out]


def _changes(section: Any, default: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """Top-level name and override of every value that is not the default."""
    for item in dataclasses.fields(section):
        value = getattr(section, item.name)
        usual = getattr(default, item.name)
        key = f"{prefix}{item.name}"
        name = key.split(".")[0]
        if dataclasses.is_dataclass(value) and not isinstance(value, Enum):
            yield from _changes(value, usual, f"{key}.")
        elif isinstance(usual, dict) and value != usual:
            yield name, override(f"+{key}", value)  # what is new in a mapping has a + in front
        elif value != usual:
            yield name, override(key, value)
