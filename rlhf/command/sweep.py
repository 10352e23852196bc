"""Sweeps: `python -m rlhf.iterate -m experiment=… dpo.beta=0.05,0.1` runs each job in a folder of its own.

The folders lie side by side in the run folder that one job would have, and each job takes what a sibling has
finished with the same fingerprint.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from hydra.core.override_parser.overrides_parser import OverridesParser

from rlhf.config.schema import Config


def is_sweep(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for a sweep."""
    return "-m" in arguments or "--multirun" in arguments


def _is_override(argument: str) -> bool:
    # Flags may have an equals sign too: `--config-name=mine`.
    if argument.startswith("-"):
        return False
    return "=" in argument


def swept_keys(arguments: Sequence[str]) -> set[str]:
    """The keys that take several values."""
    overrides = list(filter(_is_override, arguments))
    # Hydra's own parser knows what is a sweep: `a=1,2` and `a=range(3)` are, `a=[1,2]` is not.
    parser = OverridesParser.create()
    keys = set()
    for override in parser.parse_overrides(overrides):
        if override.is_sweep_override():
            keys.add(override.get_key_element())
    return keys


def job_name(overrides: Sequence[str], keys: set[str]) -> str:
    """The name of one job: what is special about it, such as `dpo.beta=0.05,seed=1`."""
    special = []
    for override in overrides:
        key, _, _ = override.partition("=")
        if key in keys:
            special.append(override)
    # It is the name of a folder, so that a slash in a value must go.
    return quote(",".join(sorted(special)), safe="=,.+-_[]@") or "job"


def join_sweep(config: Config, base: str, name: str) -> None:
    """Give a job its own folder in `base`, and its siblings to reuse."""
    folder = Path(base).expanduser()
    config.run_dir = str(folder / name)
    siblings = []
    for config_file in folder.glob("*/config.yaml"):
        sibling = config_file.parent
        if sibling.name != name:
            siblings.append(str(sibling))
    # After what the user named, which is looked at first.
    config.reuse = [*config.reuse, *sorted(siblings)]


@contextmanager
def no_traces() -> Iterator[None]:
    """Let Hydra write its notes on a sweep where they are deleted: the run folders hold all that matters.

    Flags go in front of the overrides meanwhile: Hydra refuses a flag among them.
    """
    with tempfile.TemporaryDirectory() as folder:
        # A copy, for the list itself is changed in place.
        original = list(sys.argv)
        flags = []
        overrides = []
        for argument in original[1:]:
            if _is_override(argument):
                overrides.append(argument)
            else:
                flags.append(argument)
        if is_sweep(flags):
            overrides.append(f"hydra.sweep.dir={folder}")
        sys.argv[1:] = flags + overrides
        try:
            yield
        finally:
            sys.argv[:] = original
