"""Lists as people type them: `key=a,b`, `key=a key=b`, or, of folders, `a b` as a shell makes of `*`.

Hydra takes the first for a sweep and of the second only the last. Fields of a schema say which of them may be
typed so (`rlhf.config.fields.setting`): what is typed of those becomes one `key=[a,b]`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString, Transformer
from hydra.errors import OverrideParseException

from rlhf.config.overrides import override


def with_lists(words: Sequence[str], schema: type[Any]) -> list[str]:
    """The words of a command line, with one override for each list that is typed.

    Args:
        words: as they were typed, flags too.
        schema: of the tool.

    Raises:
        OverrideParseException: a value of such a list is beyond Hydra's grammar.

    Example:
        ["runs=runs/a", "runs/b", "sort=gold"] gives ["sort=gold", "runs=[runs/a,runs/b]"]
    """
    of_folders = dict(_lists(schema()))
    words_of: dict[str, list[str]] = {}
    others = []
    folder = _folder_key(schema)
    for word in words:
        key, equals, text = word.partition("=")
        if word.startswith("-"):
            others.append(word)
        elif folder is not None and (not equals or os.path.exists(word)):
            others.append(f"{folder}={_written(word)}")
        elif folder is not None and key == folder and os.path.exists(os.path.expanduser(text)):
            # As it stands: Hydra's grammar has no equals signs, blanks or ~ in a text without quotes.
            others.append(f"{folder}={_written(text)}")
        elif equals and key in of_folders:
            words_of.setdefault(key, []).extend(_values(key, text, of_folders[key]))
        # What is no setting is a folder, there or not; Hydra names those of a sweep `dpo.beta=0.1`.
        elif True in of_folders.values() and (not equals or os.path.exists(word)):
            key = next(name for name, holds_folders in of_folders.items() if holds_folders)
            words_of.setdefault(key, []).append(_written(word))
        else:
            others.append(word)
    return others + [f"{key}=[{','.join(values)}]" for key, values in words_of.items()]


def _folder_key(schema: type[Any]) -> str | None:
    """The one setting of a tool that a word without a key is: the folder that it looks at."""
    for item in dataclasses.fields(schema):
        if item.metadata.get("folders") and not item.metadata.get("several"):
            return item.name
    return None


def _lists(section: Any, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Dotted key of every field that takes several values, and whether they are folders."""
    for item in dataclasses.fields(section):
        value = getattr(section, item.name)
        if dataclasses.is_dataclass(value):
            yield from _lists(value, f"{prefix}{item.name}.")
        elif item.metadata.get("several"):
            yield f"{prefix}{item.name}", bool(item.metadata.get("folders"))


def _values(key: str, text: str, are_folders: bool) -> list[str]:
    """The values of one word, each as Hydra reads it."""
    paths = _paths(text) if are_folders else []
    if paths and all(map(os.path.exists, paths)):
        return [_written(path) for path in paths]
    try:
        (found,) = OverridesParser.create().parse_overrides([f"{key}={text}"])
    except OverrideParseException:
        # The folders of a sweep have an equals sign in their names, and others letters that Hydra has not.
        if not are_folders:
            raise
        return [_written(path) for path in paths]
    if found.is_sweep_override():
        return [_written(_plain(value)) for value in found.sweep_iterator(Transformer.identity)]
    value = found.value()
    return [_written(item) for item in (value if isinstance(value, list) else [value])]


def _plain(value: Any) -> Any:
    """An element of a sweep; Hydra keeps the quotes that it was typed with."""
    return value.text if isinstance(value, QuotedString) else value


def _paths(text: str) -> list[str]:
    """The paths in a list, taken as they stand; a comma may be a part of a name.

    Example:
        "[s/beta=0.1,seed=1,s/beta=0.2,seed=1]" gives ["s/beta=0.1,seed=1", "s/beta=0.2,seed=1"] where there
        are two such folders
    """
    if os.path.exists(text):
        return [text]
    pieces = text.removeprefix("[").removesuffix("]").split(",")
    paths = []
    while pieces:
        # As many pieces as make the name of something; one, if none do.
        length = next((n for n in range(len(pieces), 0, -1) if os.path.exists(",".join(pieces[:n]))), 1)
        paths.append(",".join(pieces[:length]).strip())
        pieces = pieces[length:]
    return paths


def _written(value: Any) -> str:
    _, _, text = override("", value).partition("=")
    return text
