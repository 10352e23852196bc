"""What is said when a run folder holds work of other settings: every difference, and every way out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rlhf.errors import RunChanged, one_line


def differences(recorded: Any, wanted: Any, name: str = "") -> list[str]:
    """Lines that say where two JSON values differ; a key that is missing is as good as null.

    Example:
        `differences({"config": {"beta": 0.1}}, {"config": {"beta": 0.2}})` gives `["config.beta: 0.1 there,
        0.2 now"]`
    """
    if isinstance(recorded, dict) and isinstance(wanted, dict):
        lines = []
        for key in sorted(recorded.keys() | wanted.keys()):
            full_name = f"{name}.{one_line(key)}" if name else one_line(key)
            lines += differences(recorded.get(key), wanted.get(key), full_name)
        return lines
    if recorded == wanted:
        return []
    return [f"{name}: {_shown(recorded)} there, {_shown(wanted)} now"]


def _shown(value: Any) -> str:
    """A value as text; of a digest its beginning."""
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return f"{value[:12]}…"
    return repr(value)


def refusal(
    folder: Path, changes: list[tuple[str, list[str]]], stale: list[str], elsewhere: str
) -> RunChanged:
    """The error about a changed run.

    Args:
        folder: the run.
        changes: the name of each changed stage, with a line for each difference.
        stale: folders in the run that redoing them would cost, what was made of them included.
        elsewhere: how the command begins anew in another place, such as `run_dir=<a new folder>`.
    """
    lines = [f"{folder} holds work made with other settings; nothing was run and nothing was touched."]
    for name, lines_of_stage in changes:
        lines.append(f"  {name}:")
        lines += [f"    {line}" for line in lines_of_stage]
    stale_paths = " ".join(str(folder / name) for name in stale)
    lines += [
        "Ways out:",
        "  put the old values back, and the run goes on;",
        f"  keep this work as it is and begin anew elsewhere: {elsewhere};",
        f"  redo what the change touches, losing it: rm -r {stale_paths}",
    ]
    return RunChanged("\n".join(lines))
