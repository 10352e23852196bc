"""What is said when a run folder holds work of other settings: every difference, and every way out."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlhf.config.overrides import pasted
from rlhf.errors import RunChanged, one_line

UNKNOWN = "unknown until earlier stages have run"
"""A config value that a plan cannot know yet."""


def changes_of(recorded: Any, wanted: Any) -> list[str]:
    """Where the identities of a stage differ, one line each; what a person cannot read is explained."""
    lines = differences(recorded, wanted)
    if any(line.startswith("config.rule:") for line in lines):
        return lines  # another rule, which needs no explanation
    explained = []
    for line in lines:
        if line.startswith("config.rule_source:"):
            rule = wanted["config"]["rule"]
            line += f": the file of {rule} has changed, {rule_file(rule)}"
        explained.append(line)
    return explained


_ABOUT_RULES = (
    "The whole source of a rule's module is part of what its scores are, since nobody can tell which of its "
    "lines the rule uses (what it imports does not count). To edit the other lines freely, put the rule in a "
    "module of its own, which changes only when the rule does."
)


def rule_file(rule: str) -> Path | None:
    """The Python file in which `module:function` is defined; None where there is none.

    A package that the module lies in is imported to find it, the module itself is not.
    """
    module, _, function = rule.partition(":")
    try:
        spec = find_spec(module) if module and function else None
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return None
    return Path(spec.origin)


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
        elsewhere: the command that begins anew in another place, or what to change in it, such as
            `output=<another file>`.
    """
    lines = [f"{folder} holds work made with other settings; nothing was run and nothing was touched."]
    for name, lines_of_stage in changes:
        lines.append(f"  {name}:")
        lines += [f"    {line}" for line in lines_of_stage]
    stale_paths = pasted("rm", "-r", *(str(folder / name) for name in stale))
    cheaply = " (what is the same is taken from here and not computed again)" if "reuse=" in elsewhere else ""
    if any("rule_source:" in line for _, of_stage in changes for line in of_stage):
        lines.append(_ABOUT_RULES)
    lines += [
        "Ways out:",
        "  put the old values back, and the run goes on;",
        f"  keep this work as it is and begin anew elsewhere{cheaply}:",
        f"    {elsewhere}",
        "  redo what the change touches, losing it:",
        f"    {stale_paths}",
    ]
    return RunChanged("\n".join(lines))


def known_differences(recorded: dict[str, Any], identity: dict[str, Any]) -> list[str]:
    """Where two identities differ, leaving out what a plan cannot know before earlier stages have run."""
    hidden = {
        "inputs": {key for key, digest in identity["inputs"].items() if digest is None},
        "config": {key for key, value in identity["config"].items() if value == UNKNOWN},
    }

    def shown(full: dict[str, Any]) -> dict[str, Any]:
        parts = {}
        for part, keys in hidden.items():
            parts[part] = {key: value for key, value in full[part].items() if key not in keys}
        return full | parts

    return changes_of(shown(recorded), shown(identity))
