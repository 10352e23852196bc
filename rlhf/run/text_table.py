"""Figures as a table of text, for a terminal and for files."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size

from rlhf.errors import one_line


def text_table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> str:
    """A line of heads, a rule, and a line for each row; columns are as wide as what stands in them.

    Signs that take two places in a terminal (Chinese) are counted so. What a cell holds of a terminal's
    commands is escaped. Lines are never wrapped or cut: a file and a copied table keep them whole.

    Args:
        heads: the columns' names.
        rows: as many cells each.
        right: names of columns that are aligned on the right.

    Example:
        `text_table(["policy", "score"], [["π0", "-0.27"], ["π1", "+0.62"]])` gives

        policy  score
        ──────  ─────
        π0      -0.27
        π1      +0.62
    """
    # The model card of a run holds such a table: written otherwise, it would be exported anew.
    lines = []
    for line in (heads, *rows):
        lines.append([one_line(cell) for cell in line])
    widths = []
    for column in zip(*lines, strict=True):
        widths.append(max(map(cell_len, column)))
    text = []
    for line in lines:
        text.append(_aligned(line, heads, widths, right))
    rule = "  ".join("─" * width for width in widths)
    text.insert(1, rule)
    return "\n".join(text)


def _aligned(cells: Sequence[str], heads: Sequence[str], widths: Sequence[int], right: Sequence[str]) -> str:
    padded = []
    for cell, head, width in zip(cells, heads, widths, strict=True):
        if head in right:
            padded.append(" " * (width - cell_len(cell)) + cell)
        else:
            padded.append(set_cell_size(cell, width))
    # The last cell's padding would only make copies of the table wrap.
    return "  ".join(padded).rstrip()
