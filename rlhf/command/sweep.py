"""Sweeps: `python -m rlhf.iterate -m experiment=… dpo.beta=0.05,0.1` runs each job in a folder of its own.

The folders lie side by side in the run folder that one job would have, and each job takes what a sibling has finished
with the same fingerprint.
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
    return any(argument in ("-m", "--multirun") for argument in arguments)


def _is_override(argument: str) -> bool:
    return "=" in argument and not argument.startswith("-")


def swept_keys(arguments: Sequence[str]) -> set[str]:
    """The keys that take several values."""
    parsed = OverridesParser.create().parse_overrides([a for a in arguments if _is_override(a)])
    return {override.get_key_element() for override in parsed if override.is_sweep_override()}


def job_name(overrides: Sequence[str], keys: set[str]) -> str:
    """The name of one job: what is special about it, such as `dpo.beta=0.05,seed=1`."""
    special = sorted(override for override in overrides if override.split("=", 1)[0] in keys)
    return quote(",".join(special), safe="=,.+-_[]@") or "job"


def join_sweep(config: Config, base: str, name: str) -> None:
    """Give a job its own folder in `base`, and its siblings to reuse."""
    folder = Path(base).expanduser()
    config.run_dir = str(folder / name)
    siblings = sorted(path.parent for path in folder.glob("*/config.yaml") if path.parent.name != name)
    config.reuse = [*config.reuse, *map(str, siblings)]


@contextmanager
def no_traces() -> Iterator[None]:
    """Let Hydra write what it writes about a sweep where it is deleted: the run folders hold all that matters.

    Flags go in front of the overrides meanwhile: Hydra refuses a flag among them.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = list(sys.argv)
        overrides = [argument for argument in arguments[1:] if _is_override(argument)]
        flags = [argument for argument in arguments[1:] if not _is_override(argument)]
        sweep_folder = [f"hydra.sweep.dir={folder}"] if is_sweep(flags) else []
        sys.argv[1:] = [*flags, *overrides, *sweep_folder]
        try:
            yield
        finally:
            sys.argv[:] = arguments
