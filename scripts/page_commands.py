"""The commands that README, docs and the files that docs give to clusters tell people to type
(`check_docs.py` holds them against the code).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ("python", ".venv/bin/python")
_FOREIGN = ("hf", "pip", "git", "vllm", "lm_eval", "alpaca_eval", "rm", "source", "cd")
_FOREIGN_CLUSTER = ("ray", ".venv/bin/ray", "kubectl", "sky", "scancel")
_YAML_COMMANDS = ("entrypoint", "setup", "run")
"""Keys of a RayJob and of a SkyPilot task under which commands stand."""
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`]+)`")
_EXPERIMENT_FILE = re.compile(r"# configs/experiment/([\w-]+)\.yaml\n")


@dataclass(frozen=True)
class Command:
    """A command of a page, in words as a shell makes them; `is_whole` is False of one in the middle of a
    sentence, which may be a tool's mere name.

    Example:
        Command("README.md", 74, (".venv/bin/python", "-m", "rlhf.iterate"), True)
    """

    page: str
    line: int
    words: tuple[str, ...]
    is_whole: bool

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """README, the rules of the house, docs, and the files that docs give to clusters."""
    docs = ROOT / "docs"
    texts = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(docs.glob("*.md"))]
    return [*texts, *sorted((docs / "cluster").glob("*.yaml"))]


def commands_of(page: Path) -> list[Command]:
    """The commands of a page: lines of its fenced blocks, and spans of code in its sentences; of a YAML file
    its commands' lines.
    """
    text = page.read_text(encoding="utf-8")
    name = page.relative_to(ROOT).as_posix() if page.is_relative_to(ROOT) else page.name
    if page.suffix == ".yaml":
        return list(_of_yaml(name, text))
    found: list[Command] = []
    for block in _FENCE.finditer(text):
        if block[1] in ("", "sh", "bash"):
            first_line = text.count("\n", 0, block.start()) + 2
            found += _of_block(name, first_line, block[2])
    # Blocks become empty lines, so that numbers of lines stay.
    prose = _FENCE.sub(lambda block: "\n" * block[0].count("\n"), text)
    for span in _SPAN.finditer(prose):
        words = _words(span[1].replace("\n", " "))
        if _is_command(words):
            place = prose.count("\n", 0, span.start()) + 1
            found.append(Command(name, place, words, is_whole=False))
    return sorted(found, key=lambda command: command.line)


def _of_yaml(page: str, text: str) -> Iterator[Command]:
    """The commands of a file for a cluster, each at the line where its text begins."""
    for node in _values_of(yaml.compose(text, Loader=yaml.SafeLoader)):
        yield from _of_block(page, node.start_mark.line + 1, str(node.value))


def _values_of(node: yaml.Node) -> Iterator[yaml.ScalarNode]:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        if key.value in _YAML_COMMANDS and isinstance(value, yaml.ScalarNode):
            yield value
        yield from _values_of(value)


def _of_block(page: str, first_line: int, block: str) -> Iterator[Command]:
    begun = ""
    began_at = first_line
    for number, text in enumerate(block.splitlines(), first_line):
        if not begun:
            began_at = number
        begun += text
        if begun.endswith("\\"):
            begun = begun.removesuffix("\\")
            continue
        words = _words(begun)
        begun = ""
        if _is_command(words):
            yield Command(page, began_at, words, is_whole=True)


def _words(text: str) -> tuple[str, ...]:
    """A line as a shell reads it; () of what is no line of a shell, such as printed text."""
    text = re.sub(r"\s#\s.*", "", text)
    try:
        words = shlex.split(text)
    except ValueError:
        return ()
    if words and words[0] == "exec":
        del words[0]
    return tuple(words)


def _is_command(words: Sequence[str]) -> bool:
    if len(words) < 2:
        return False
    if words[0] == "make":
        return re.fullmatch(r"[a-z-]+", words[1]) is not None
    return words[0] in (*PYTHON, "sbatch", *_FOREIGN, *_FOREIGN_CLUSTER)


def experiments_of(page: Path) -> dict[str, str]:
    """The experiments that a page has its reader write, by name."""
    found = {}
    for block in _FENCE.finditer(page.read_text(encoding="utf-8")):
        begins = _EXPERIMENT_FILE.match(block[2])
        if begins:
            found[begins[1]] = block[2][begins.end() :]
    return found
