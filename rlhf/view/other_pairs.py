"""The settings of `pair` that are tried: every value that is typed, with every value of the others."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from rlhf.config.fields import filled
from rlhf.config.limits import check_stages
from rlhf.config.schema import Config, PairConfig, PairSettings
from rlhf.config.view_tools import OtherPairs
from rlhf.errors import ConfigError

OWN = "own"
"""What the run's own settings are called."""


@dataclass(frozen=True)
class Tried:
    """A choice of settings: `changes` are what differs from the run's own, and `name` says it.

    Example:
        Tried("strategy=best_random length_penalty=0.001", {"strategy": Strategy.best_random, …})
    """

    name: str
    changes: Mapping[str, Any]


def tried_settings(
    others: OtherPairs, own: PairSettings, num_candidates: int
) -> tuple[list[Tried], list[str]]:
    """The run's own settings and all others that are typed; and which of their combinations are left out.

    Args:
        others: as typed.
        own: the run's.
        num_candidates: responses of one prompt in the run.

    Raises:
        ConfigError: a value cannot work, whatever it is combined with.
    """
    typed = {name: values for name, values in vars(others).items() if values}
    tried = [Tried(OWN, {})]
    notes = []
    reasons: dict[tuple[str, Any], str] = {}
    working: set[tuple[str, Any]] = set()
    for values in itertools.product(*typed.values()) if typed else ():
        changes = dict(zip(typed, values, strict=True))
        name = " ".join(f"{key}={written(value)}" for key, value in changes.items())
        reason = _fault(replace(own, **changes), num_candidates)
        if reason is not None:
            notes.append(f"{name} is left out: {reason}")
            for item in changes.items():
                reasons.setdefault(item, reason)
            continue
        working.update(changes.items())
        if replace(own, **changes) == own:
            tried[0] = Tried(f"{OWN} ({name})", {})
        elif all(changes != each.changes for each in tried):
            tried.append(Tried(name, changes))
    for item, reason in reasons.items():
        if item not in working:
            raise ConfigError(reason)
    return tried, notes


def _fault(settings: PairSettings, num_candidates: int) -> str | None:
    """Why settings cannot work in this run."""
    cfg = Config()
    cfg.pair = filled(PairConfig, settings)
    try:
        check_stages(cfg)
    except ConfigError as error:
        return str(error)
    if settings.num_candidates is not None and settings.num_candidates > num_candidates:
        return (
            f"pair.num_candidates={settings.num_candidates}: the run has {num_candidates} responses of a "
            "prompt; null uses all."
        )
    return None


def written(value: Any) -> str:
    """A value as it is typed."""
    if value is None:
        return "null"
    return str(value.value) if isinstance(value, Enum) else f"{value}"
