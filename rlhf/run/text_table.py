"""Figures as a table of text, for a terminal and for files."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf.errors import one_line

_WIDE_ENOUGH = 100_000
"""Columns; a terminal that has fewer wraps the lines, but a file and a copied table keep them whole."""


def text_table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> str:
    """A line of heads, a rule, and a line for each row; columns are as wide as what stands in them.

    Signs that take two places in a terminal (Chinese) are counted so. What a cell holds of a terminal's
    commands is escaped.

    Args:
        heads: the columns' names.
        rows: as many cells each.
        right: names of columns that are aligned on the right.

    Example:
        `text_table(["policy", "score"], [["π0", "-0.27"], ["π1", "+0.62"]])` gives

        policy   score
        ──────────────
        π0       -0.27
        π1       +0.62
    """
    # SIMPLE_HEAD has a rule below the heads and nothing else.
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for head in heads:
        table.add_column(Text(one_line(head)), justify="right" if head in right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*[Text(one_line(cell)) for cell in row])
    output = io.StringIO()
    console = Console(file=output, width=_WIDE_ENOUGH, color_system=None, legacy_windows=False)
    console.print(table)
    # The last column's padding would only make copies of the table wrap.
    lines = [line.rstrip() for line in output.getvalue().rstrip("\n").split("\n")]
    return "\n".join(lines)
