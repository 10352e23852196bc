"""Hold runs against each other: `python -m rlhf.compare runs=[A,B,…]`, or `python -m rlhf.compare A B`.

Reads what is finished in their folders, and writes nothing but `output=….html`. docs/comparing.md says what
each table means.
"""

from __future__ import annotations

from pathlib import Path

from rlhf.command.line import main
from rlhf.config.overrides import pasted
from rlhf.config.view_tools import CompareTool
from rlhf.data.files import resolved
from rlhf.data.shards import make_folders, write_atomic
from rlhf.errors import ConfigError, StorageError, UserError
from rlhf.run.output import output_error, show
from rlhf.view.comparison_page import GENERATOR, page_of
from rlhf.view.section import as_text
from rlhf.view.several_runs import runs_of
from rlhf.view.side_by_side import compared_runs

_HEAD = 1000
"""Bytes of a file in which it says what it is."""


def compare(tool: CompareTool) -> None:
    """Print the tables, and write them as a page where one is asked for."""
    output = None if tool.output is None else _output(tool.output)
    runs, notes = runs_of(tool.runs)
    comparison = compared_runs(runs, notes, tool.iteration, tool.sort)
    show(as_text(comparison.sections))
    if output is not None:
        make_folders(output.parent)
        write_atomic(output, page_of(comparison).encode())
        show(f"\nwritten to {output}")
    lost = output_error()
    if lost is not None:
        raise StorageError(f"The tables cannot be written to standard output: {lost.strerror}. Make room.")


def _output(path: str) -> Path:
    """Where the page goes.

    Raises:
        ConfigError: it has another suffix.
        UserError: something lies there that is no earlier comparison.
    """
    output = resolved(path, "output")
    if output.suffix != ".html":
        raise ConfigError(f"output={path}: this tool writes .html; name the file so.")
    if not output.exists():
        return output
    if output.is_file():
        with open(output, "rb") as file:
            if GENERATOR.encode() in file.read(_HEAD):
                return output
    raise UserError(
        f"output={path}: {output} exists and is no comparison of this tool, and nothing is written over it. "
        f"Ways out: name another output, or remove it first: {pasted('rm', str(output))}"
    )


if __name__ == "__main__":
    main(compare, "tool", CompareTool)
