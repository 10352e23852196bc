"""Tables of text."""

from __future__ import annotations

from rich.cells import cell_len

from rlhf.run.text_table import text_table


def test_columns_stand_below_their_heads_whatever_is_in_them():
    text = text_table(
        ["policy", "n", "note"],
        [["π0", "3", "short"], ["日本の方策", "12", "[bold]no markup[/bold]"], ["e\u0301", "4", ""]],
        right=["n"],
    )
    heads, rule, first, second, third = text.split("\n")
    column = cell_len(heads[: heads.index("note")])
    assert rule.split("  ") == ["─" * len("日本の方策") * 2, "──", "─" * len("[bold]no markup[/bold]")]
    assert cell_len(first[: first.index("short")]) == column
    assert cell_len(second[: second.index("[bold]")]) == column
    assert second.endswith("[bold]no markup[/bold]")
    assert third == third.rstrip()
    # On the right: the ends of the numbers stand below each other.
    ends = {cell_len(first[: first.index("3") + 1]), cell_len(second[: second.index("12") + 2])}
    assert ends == {cell_len(heads[: heads.index("n  ") + 1])}


def test_a_cell_can_neither_command_the_terminal_nor_make_a_line():
    text = text_table(["a"], [["x\x1b[2Jy\nz\u202e"]])
    assert len(text.split("\n")) == 3
    assert "\x1b" not in text and "\u202e" not in text


def test_a_wide_table_is_not_wrapped_or_cut():
    heads = [f"column {number}" for number in range(60)]
    text = text_table(heads, [[f"value {number} {'x' * 40}" for number in range(60)]])
    assert len(text.split("\n")) == 3
    assert f"value 59 {'x' * 40}" in text


def test_no_row():
    assert text_table(["a", "b"], []).split("\n")[0].split() == ["a", "b"]
