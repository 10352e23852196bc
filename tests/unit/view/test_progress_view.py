"""The picture of how far a run is."""

from __future__ import annotations

import pytest

from rlhf.run.progress import State, here
from rlhf.view.progress_view import view_lines

NOW = 1000.0
KINDS = ("generate", "score", "pair", "reference", "dpo", "held_out/generate", "held_out/score")


def progress(num_iterations=3, num_done=4):
    names = ["world", "prompts", "iteration_000/held_out/generate", "iteration_000/held_out/score"]
    for number in range(1, num_iterations + 1):
        names += [f"iteration_{number:03d}/{kind}" for kind in KINDS]
    made = here(names, dict.fromkeys(names[:num_done], 2.0), NOW - 60)
    stage = made.stages[num_done]
    stage.state, stage.began_at = State.running, NOW - 30
    stage.count(NOW - 29, 0, 8, "shards")
    stage.count(NOW - 10, 2, 8, "shards")
    return made


def test_it_says_what_is_done_what_goes_on_and_what_is_to_do():
    assert view_lines(progress(), NOW, 100) == [
        "4 of 25 stages · 60.0 s so far · ~62.0 s left, and 14 stages of which nothing is known yet",
        "▶ iteration_001/generate  2/8 shards, 30.0 s, 50.0 s left",
        "✓ 2 stages before the iterations, 4.0 s",
        "                   π0         π1         π2         π3",
        "generate                      ▶ 25 %     ·          ·",
        "score                         ·          ·          ·",
        "pair                          ·          ·          ·",
        "reference                     ·          ·          ·",
        "dpo                           ·          ·          ·",
        "held_out/generate  ✓ 2.0 s    ~ 2.0 s    ~ 2.0 s    ~ 2.0 s",
        "held_out/score     ✓ 2.0 s    ~ 2.0 s    ~ 2.0 s    ~ 2.0 s",
    ]


def test_stages_before_the_iterations_are_seen_one_by_one_while_they_are_made():
    made = progress(num_done=1)
    assert "✓ world 2.0 s  ▶ prompts 25 %" in view_lines(made, NOW, 100)


@pytest.mark.parametrize("columns", [1, 12, 25, 40, 60, 80, 200])
def test_no_line_is_too_long(columns):
    made = progress(num_iterations=12, num_done=30)
    made.figures = ["π3: score +1.000, " + "gold 0.464, " * 20]
    made.warn("! gates.x: " + "long " * 50)
    lines = view_lines(made, NOW, columns)
    assert max(map(len, lines)) < max(columns, 11)
    if columns >= 40:
        # What goes on is among the columns that there is room for.
        assert any("▶ 25 %" in line for line in lines)


@pytest.mark.parametrize("lines", [1, 2, 3, 8, 100])
def test_no_picture_is_too_high_and_what_goes_on_is_the_last_to_go(lines):
    made = progress()
    shown = view_lines(made, NOW, 100, lines)
    assert len(shown) <= lines
    assert shown[0].startswith("4 of 25") and (lines < 3 or shown[1].startswith("▶"))


def test_what_a_name_holds_is_text():
    made = progress()
    made.stages[0].name = "\x1b]0;y\x07[bold]hep[/bold]:smile:\n✓ forged\u202e"
    made.stages[0].state = State.to_do
    made.figures = ["\x1b[2J"]
    made.warn("a\nb\x1b[2J[link=x]")
    text = "\n".join(view_lines(made, NOW, 200))
    assert "\x1b" not in text and "\u202e" not in text and "[bold]hep[/bold]:smile:" in text
    drawn = "\n".join(view_lines(made, NOW, 200, drawn=True))
    assert "\x1b[2J" not in drawn and "\x1b]" not in drawn


def test_no_time_is_made_of_nothing():
    made = here(["world", "iteration_001/pair"], {}, NOW)
    made.stages[0].state, made.stages[0].began_at = State.running, NOW
    text = "\n".join(view_lines(made, NOW + 5, 80))
    assert "left" not in text and "~" not in text
