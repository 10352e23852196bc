"""A composed config against its schema: what is unknown, missing, of a wrong type or impossible."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from rlhf.config.limits import check_config
from rlhf.config.overrides import literal
from rlhf.config.schema import Config
from rlhf.errors import ConfigError


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
