"""A composed config against its schema: what is unknown, missing, of a wrong type or impossible."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any, Optional, get_type_hints

from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from rlhf.config.limits import check_config
from rlhf.config.overrides import literal, pasted
from rlhf.config.schema import Config
from rlhf.errors import ConfigError

_QUOTED = '"…"'
_TEXTS = (str, Optional[str], list[str], dict[str, str])
"""Types of settings that are text."""


def to_config(composed: DictConfig, schema: type[Any] = Config) -> Any:
    """A composed config as the dataclass tree of a schema, checked against it.

    Raises:
        ConfigError: an unknown key (also one added with `+`), a wrong type, a missing or impossible value.
    """
    config = as_schema(composed, schema)
    if type(config) is Config:  # rlhf.check shows what is wrong in its own way
        check_config(config)
    return config


def as_schema(composed: DictConfig, schema: type[Any]) -> Any:
    """As `to_config`, but values may be impossible.

    Raises:
        ConfigError: an unknown key, a wrong type, or a missing value.
    """
    try:
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
        # Merged into the schema anew: Hydra takes any key that was added with `+`, the schema does not.
        # What a resolved text still has of `${` is text, and is not resolved a second time.
        merged = OmegaConf.merge(OmegaConf.structured(schema), literal(plain))
        return OmegaConf.to_object(merged)
    except MissingMandatoryValue as error:
        raise ConfigError(
            f"{error.full_key}=… is missing, and has no default. Add it to the command."
        ) from error
    except OmegaConfBaseException as error:
        raise ConfigError(explained(error)) from error


def misread(values: Any, section: Any, prefix: str = "") -> Iterator[str]:
    """What OmegaConf would turn into another value without a word, one line each.

    It takes every number for a boolean, and writes down numbers and booleans as text of its own: `2` is true,
    and the revision `1e5` is "100000.0". Among texts it lets lists and mappings pass. What is wrong in a way
    that it notices is left to it.

    Args:
        values: as they were written, nested; unknown keys are passed over.
        section: dataclasses of the schema, for the types.
        prefix: of the keys in the lines.
    """
    hints = get_type_hints(type(section))
    for name, value in values.items():
        if name not in hints:
            continue
        key = f"{prefix}{name}"
        default = getattr(section, name)
        if dataclasses.is_dataclass(default) and isinstance(value, dict):
            yield from misread(value, default, f"{key}.")
        elif hints[name] is bool and _is_number(value) and str(value) not in ("0", "1"):
            yield f"{key}={value}: must be true or false."
        elif hints[name] in _TEXTS:
            for text in _items(value):
                if isinstance(text, dict | list):
                    yield f"{key}={value}: {text} is no text, and text is wanted here."
                elif isinstance(text, bool | float):
                    yield (
                        f"{key}={value}: text is wanted here, and this reads as {text!r}, which may not be "
                        f"what you wrote. Put it in quotes: {pasted(key + '=' + _QUOTED)} (in YAML "
                        f"{name}: {_QUOTED})."
                    )


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value) is not None)


def _items(value: Any) -> list[Any]:
    """A value, or what is in a list or mapping of them."""
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else [value]


def check_written(config_name: str, words: Sequence[str], schema: type[Any]) -> None:
    """Refuse what a command line and the files that it names say, and OmegaConf would misread.

    Raises:
        ConfigError: a line for each value.
    """
    wrong = list(misread(typed_values(words), schema()))
    loader = GlobalHydra.instance().config_loader()
    defaults = loader.compute_defaults_list(config_name, list(words), RunMode.RUN).defaults
    for default in defaults:
        found = loader.repository.load_config(default.config_path)
        # The others are the schema itself, and Hydra's own.
        if found is not None and found.path.startswith("file:") and default.package == "":
            values = OmegaConf.to_container(found.config, resolve=False)
            wrong += [f"{default.config_path}: {line}" for line in misread(values, schema())]
    if wrong:
        raise ConfigError("\n".join(wrong))


def typed_words() -> list[str]:
    r"""The overrides of this command as they were typed; of a sweep, those of this job.

    Hydra keeps them in a config, which resolves what is read of it: `\${` would come out as `${`, the name of
    another folder.
    """
    words = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    assert isinstance(words, list), "Hydra keeps a list"
    return [str(word) for word in words]


def named_experiment() -> str | None:
    """The experiment that this command names; of several, `experiment=[one,other]`, all: `one+other`."""
    if not HydraConfig.initialized():
        return None
    name: str | None = HydraConfig.get().runtime.choices.get("experiment")
    # Of a list Hydra keeps no choice.
    names = typed_values(typed_words()).get("experiment") if name is None else None
    return "+".join(map(str, names)) if isinstance(names, list) else name


def typed_values(words: Sequence[str]) -> dict[str, Any]:
    """The values of overrides, nested; a number that comes out as it was typed as text."""
    values: dict[str, Any] = {}
    for found in OverridesParser.create().parse_overrides(list(words)):
        if found.is_delete():
            continue
        value = found.value()
        _, _, text = found.input_line.partition("=")
        value = text if str(value) == text else value
        section = values
        *sections, name = found.key_or_group.split(".")
        for each in sections:
            section = section.setdefault(each, {})
            if not isinstance(section, dict):
                break
        else:
            section[name] = value
    return values


def explained(error: OmegaConfBaseException, override: str = "") -> str:
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
