"""In which settings runs differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rlhf.config.fields import plain
from rlhf.config.schema import Config
from rlhf.data.json_text import json_text
from rlhf.view.section import Section
from rlhf.view.several_runs import NamedRun

_ABOUT_THE_FOLDER = ("run_dir", "reuse", "until", "take_over")
"""Where a run lies and what it was taken from, and nothing of what it is."""
_LONGEST = 200
"""Characters of a value that are shown."""


def settings_section(runs: Sequence[NamedRun]) -> Section:
    """A line for each setting that is not the same in all runs, a column for each run."""
    section = Section("Settings that differ", heads=["setting", *(run.letter for run in runs)])
    known = [run for run in runs if run.folder.config]
    for run in runs:
        if not run.folder.config:
            section.notes.append(f"{run.letter}: its settings are not known (no readable config.yaml).")
    defaults = dict(_flat(plain(Config())))
    settings = {run.letter: dict(_flat(run.folder.config)) for run in known}
    for key in _keys(settings.values()):
        # Where a setting is absent, the run is older than it, and did what is the default now.
        values = [settings[run.letter].get(key, defaults.get(key)) for run in known]
        if all(value == values[0] for value in values):
            continue
        cells = []
        for run in runs:
            cells.append(_cell(key, settings.get(run.letter), defaults))
        section.rows.append([key, *cells])
    if not section.rows and len(known) > 1:
        section.notes.insert(0, "None: the runs have the same settings.")
    return section


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting by its dotted key. An empty mapping is null: so it was written once.

    Example:
        {"dpo": {"beta": 0.1}} gives ("dpo.beta", 0.1)
    """
    if not isinstance(value, dict):
        yield prefix, value
        return
    if not value:
        yield prefix, None
    for name, item in value.items():
        yield from _flat(item, f"{prefix}.{name}" if prefix else str(name))


def _keys(settings: Any) -> list[str]:
    """The keys of all runs in the order of their files, those of the first run first."""
    keys: dict[str, None] = {}
    for of_run in settings:
        keys |= dict.fromkeys(of_run)
    return [key for key in keys if key not in _ABOUT_THE_FOLDER]


def _cell(key: str, settings: dict[str, Any] | None, defaults: dict[str, Any]) -> str:
    if settings is None:
        return "?"
    if key in settings:
        return _written(settings[key])
    if key in defaults:
        return f"default ({_written(defaults[key])})"
    return "default"


def _written(value: Any) -> str:
    """A value as it stands in a config, cut where it is very long."""
    text = value if isinstance(value, str) else json_text(value, ascii_only=False, default=str)
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_LONGEST]}… ({len(text)} characters)"
