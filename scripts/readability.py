"""How easy the package is to read, in figures: `python scripts/readability.py [FOLDER …] [--worst N]
[--check]`.

For each folder (by default `rlhf`) it prints:

- syntax nodes a code line of the median and of the densest function; docstrings, comments and blank lines are
  no code;
- comments, comprehensions, conditional expressions and lines over 100 characters, per 1,000 lines;
- examples in docstrings, reads of `config["…"]`, and base names that several files share.

`--worst N` lists the N densest functions; `--check` exits with 1 where a limit of CONTRIBUTING.md is broken.
The densest is looked for among functions of four lines and more: below, one long call says nothing about how
it reads.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
LEAST_LINES = 4
LONG_LINE = 100
EXAMPLE = re.compile(r"(^\s*>>> |^\s*Examples?:\s*$|\be\.g\. `|^\s*\{\")", re.MULTILINE)

Function = ast.FunctionDef | ast.AsyncFunctionDef

LIMITS = {
    "nodes a line, median": (0, 10.5),
    "nodes a line, worst": (0, 18),
    "comments per 1,000 lines": (36, 80),
    'reads of config["…"]': (0, 10),
    "base names that several files share": (0, 4),
}
"""Smallest and largest value that `--check` accepts."""


@dataclass
class Figures:
    """What was counted over all files of a folder."""

    files: int = 0
    lines: int = 0
    comments: int = 0
    comprehensions: int = 0
    conditionals: int = 0
    long_lines: int = 0
    examples: int = 0
    config_reads: int = 0
    densities: list[tuple[float, int, str]] = field(default_factory=list)
    """Of each function: nodes a line, its lines, where it is."""
    names: Counter[str] = field(default_factory=Counter)

    def table(self) -> dict[str, float]:
        """The figures by name, in the order they are printed."""
        thousands = max(self.lines, 1) / 1000
        nodes = [density for density, _, _ in self.densities] or [0.0]
        longer = [density for density, num_lines, _ in self.densities if num_lines >= LEAST_LINES] or [0.0]
        shared = [name for name, count in self.names.items() if count > 1 and name != "__init__.py"]
        return {
            "files": self.files,
            "non-blank lines": self.lines,
            "nodes a line, median": median(nodes),
            "nodes a line, worst": max(longer),
            "comments per 1,000 lines": self.comments / thousands,
            "comprehensions per 1,000 lines": self.comprehensions / thousands,
            "conditional expressions per 1,000 lines": self.conditionals / thousands,
            "lines over 100 characters per 1,000": self.long_lines / thousands,
            "examples in docstrings": self.examples,
            'reads of config["…"]': self.config_reads,
            "base names that several files share": len(shared),
        }


def without_docstring(function: Function) -> list[ast.stmt]:
    """The statements of a function's body."""
    first = function.body[0]
    if (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    ):
        return function.body[1:]
    return function.body


def density(function: Function, code_lines: set[int]) -> tuple[float, int]:
    """Syntax nodes per code line of a function's body, and how many such lines it has."""
    body = without_docstring(function)
    if not body:
        return 0.0, 0
    num_lines = len(code_lines & set(range(body[0].lineno, (body[-1].end_lineno or 0) + 1)))
    num_nodes = sum(1 for statement in body for _ in ast.walk(statement))
    return num_nodes / num_lines, num_lines


def is_config_read(node: ast.AST) -> bool:
    """Whether a node is `config["…"]`, under whatever the config hangs (`job.config["…"]` too)."""
    if not isinstance(node, ast.Subscript) or not isinstance(node.slice, ast.Constant):
        return False
    owner = node.value
    name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
    return name == "config" and isinstance(node.slice.value, str)


def count_comments(text: str) -> int:
    """Comments of a file; those that speak to a tool alone are left out."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    return sum(1 for comment in comments if not re.match(r"#\s*(noqa|type:|!)", comment))


def measure(path: Path, figures: Figures) -> None:
    """Add one file to the figures."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    lines = [line for line in text.splitlines() if line.strip()]
    code_lines = {
        number
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.strip().startswith("#")
    }
    figures.files += 1
    figures.names[path.name] += 1
    figures.lines += len(lines)
    figures.long_lines += sum(1 for line in lines if len(line) > LONG_LINE)
    figures.comments += count_comments(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            figures.comprehensions += 1
        elif isinstance(node, ast.IfExp):
            figures.conditionals += 1
        elif is_config_read(node):
            figures.config_reads += 1
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            figures.examples += len(EXAMPLE.findall(ast.get_docstring(node) or ""))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            nodes, num_lines = density(node, code_lines)
            if num_lines:
                figures.densities.append((nodes, num_lines, f"{path}:{node.lineno} {node.name}"))


def python_files(folder: Path) -> Iterator[Path]:
    """All Python files below a folder, or the file itself."""
    if folder.is_file():
        yield folder
    else:
        yield from sorted(folder.rglob("*.py"))


def broken_limits(table: dict[str, float]) -> list[str]:
    """A line for each figure that is beyond its limit."""
    lines = []
    for name, (least, most) in LIMITS.items():
        if not least <= table[name] <= most:
            lines.append(f"{name}: {table[name]:.1f} is not within {least} to {most}")
    return lines


def main() -> int:
    """Print the figures of each folder; 1 where `--check` finds a limit broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, default=[ROOT / "rlhf"])
    parser.add_argument("--worst", type=int, default=0, help="list so many of the densest functions")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a limit is broken")
    arguments = parser.parse_args()
    broken: list[str] = []
    for folder in arguments.folders:
        figures = Figures()
        for path in python_files(folder):
            measure(path, figures)
        table = figures.table()
        print(f"{folder}")
        for name, value in table.items():
            print(f"  {name:<42}{value:10.1f}")
        for nodes, num_lines, where in sorted(figures.densities, reverse=True)[: arguments.worst]:
            print(f"  {nodes:5.1f} nodes a line over {num_lines:2} lines  {where}")
        broken += broken_limits(table)
    if arguments.check and broken:
        print("\n".join(["broken limits:", *broken]), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
