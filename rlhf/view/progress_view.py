"""How far a run is, as a picture of text: what goes on, stages × iterations, figures and warnings."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlhf.errors import one_line
from rlhf.run.progress import (
    Progress,
    StageProgress,
    State,
    expected,
    kind_of_stage,
    left_of_run,
    left_of_stage,
)
from rlhf.run.progress_line import left_text, stage_parts
from rlhf.run.stopwatch import duration
from rlhf.view.run_folder import iteration_of

_SIGNS = {
    State.to_do: "·",
    State.running: "▶",
    State.done: "✓",
    State.unfinished: "…",
    State.damaged: "✗",
}
# Of a terminal's own sixteen colours, which suit light and dark ones; the signs say the same without them.
_STYLES = {
    State.to_do: "dim",
    State.running: "bold cyan",
    State.done: "green",
    State.unfinished: "yellow",
    State.damaged: "bold red",
}
_CELL = 9
"""Columns of a sign, a space and a duration."""
_GAP = 2
_SHOWN_WARNINGS = 3


def view_lines(
    progress: Progress, now: float, columns: int, lines: int | None = None, drawn: bool = False
) -> list[str]:
    """The view as lines of text.

    Args:
        progress: of a run.
        now: the time that it is shown for; of a run that has died, that of its last sign.
        columns: that a line may take.
        lines: at most so many; None is all. What goes on comes first, so that the last ones can go.
        drawn: with a terminal's commands for colours, as far as it wants them (TERM, NO_COLOR).
    """
    width = max(columns - 1, 10)  # in the last column some terminals begin the next line
    parts = [_head(progress, now), *_what_goes_on(progress, now), *_before_the_iterations(progress, now)]
    parts += _matrix(progress, now, width)
    parts += [Text(one_line(line), overflow="ellipsis", no_wrap=True) for line in progress.figures]
    parts += _warnings(progress)
    output = io.StringIO()
    console = Console(
        file=output,
        width=width,
        force_terminal=drawn,
        color_system="auto" if drawn else None,
        legacy_windows=False,
        highlight=False,
        markup=False,
        emoji=False,
    )
    console.print(Group(*parts))
    made = [line.rstrip() for line in output.getvalue().rstrip("\n").split("\n")]
    if lines is not None and len(made) > lines:
        made = [*made[: max(lines - 1, 1)], "…"][: max(lines, 1)]
    return made


def _head(progress: Progress, now: float) -> RenderableType:
    parts = [f"{progress.num_done} of {len(progress.stages)} stages"]
    if progress.ended:
        # Of all commands that went on with it, not of the last one.
        parts.append(f"{duration(sum(stage.seconds for stage in progress.stages))} of work on its stages")
    elif progress.began_at:
        parts.append(f"{duration(max(0.0, now - progress.began_at))} so far")
    left = left_of_run(progress, now)
    if left is not None:
        parts.append(left_text(left))
    return Text(" · ".join(parts), style="bold")


def _what_goes_on(progress: Progress, now: float) -> list[RenderableType]:
    """The stage that is made, or what the driver does between two of them."""
    stage = progress.running
    if stage is None:
        return [Text(f"▶ {one_line(progress.phase)}", style="cyan")] if progress.phase else []
    parts = stage_parts(progress, stage, now)
    left = left_of_stage(progress, stage, now)
    if left is not None:
        parts.append(left_text(left))
    text = Text(f"▶ {one_line(stage.name)}", style=_STYLES[State.running])
    text.append(f"  {one_line(', '.join(parts))}", style="not bold")
    return [text]


def _before_the_iterations(progress: Progress, now: float) -> list[RenderableType]:
    """The stages that are made once: one by one, or as their sum when they are finished."""
    stages = [stage for stage in progress.stages if iteration_of(stage.name) is None]
    if not stages:
        return []
    if all(stage.state is State.done for stage in stages):
        seconds = duration(sum(stage.seconds for stage in stages))
        counted = "1 stage" if len(stages) == 1 else f"{len(stages)} stages"
        return [Text(f"✓ {counted} before the iterations, {seconds}", style=_STYLES[State.done])]
    cells = []
    for stage in stages:
        sign, _, rest = _cell(progress, stage, now).partition(" ")
        text = f"{sign} {one_line(stage.name)} {rest}".rstrip()
        cells.append(Text(text, style=_STYLES[stage.state], no_wrap=True, overflow="ellipsis"))
    return [Columns(cells, padding=(0, _GAP, 0, 0))]


def _matrix(progress: Progress, now: float, width: int) -> list[RenderableType]:
    """A row for each stage of an iteration, a column for each iteration there is room for."""
    stages = [stage for stage in progress.stages if iteration_of(stage.name) is not None]
    if not stages:
        return []
    kinds = _kinds(stages)
    iterations = sorted({iteration_of(stage.name) or 0 for stage in stages})
    room = (width - max(map(len, kinds))) // (_CELL + _GAP)
    shown = _window(iterations, _iteration_under_way(stages), room)
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False)
    table.add_column(Text(_left_out(iterations, shown)), no_wrap=True, overflow="ellipsis")
    for number in shown:
        table.add_column(Text(f"π{number}"), no_wrap=True, min_width=_CELL)
    by_name = {stage.name: stage for stage in stages}
    for kind in kinds:
        cells = [Text(one_line(kind))]
        for number in shown:
            stage = by_name.get(f"iteration_{number:03d}/{kind}")
            if stage is None:
                cells.append(Text(""))
            else:
                cells.append(Text(_cell(progress, stage, now), style=_STYLES[stage.state]))
        table.add_row(*cells)
    return [table]


def _kinds(stages: Sequence[StageProgress]) -> list[str]:
    """The rows: in the order of the iteration that has most of them, for π0 is only evaluated."""
    by_iteration: dict[int | None, list[str]] = {}
    for stage in stages:
        by_iteration.setdefault(iteration_of(stage.name), []).append(kind_of_stage(stage.name))
    longest_first = sorted(by_iteration.values(), key=len, reverse=True)
    return list(dict.fromkeys(kind for kinds in longest_first for kind in kinds))


def _iteration_under_way(stages: Sequence[StageProgress]) -> int:
    """The one to be seen in any case: the first with something to do, else the last."""
    for stage in stages:
        if stage.state is not State.done:
            return iteration_of(stage.name) or 0
    return iteration_of(stages[-1].name) or 0


def _window(iterations: Sequence[int], wanted: int, room: int) -> Sequence[int]:
    """As many iterations as there is room for, at least one, the wanted one and the one before among them."""
    room = max(room, 1)
    place = iterations.index(wanted)
    first = max(0, min(place - 1 if room > 1 else place, len(iterations) - room))
    return iterations[first : first + room]


def _left_out(iterations: Sequence[int], shown: Sequence[int]) -> str:
    if len(shown) == len(iterations):
        return ""
    return f"{len(shown)} of {len(iterations)}"


def _cell(progress: Progress, stage: StageProgress, now: float) -> str:
    """A stage in a sign and a word: its time, how far it is, or ~ the time that its like took."""
    sign = _SIGNS[stage.state]
    if stage.state is State.done:
        return f"{sign} {duration(stage.seconds)}"
    if stage.state is State.running:
        if stage.total and stage.last is not None:
            return f"{sign} {100 * min(stage.last.done / stage.total, 1.0):.0f} %"
        return f"{sign} {duration(max(0.0, now - stage.began_at))}"
    if stage.state is State.to_do:
        like = expected(progress, stage.name)
        return sign if like is None else f"~ {duration(like)}"
    return sign


def _warnings(progress: Progress) -> list[RenderableType]:
    """The last ones, shortened, and how many there are."""
    shown = progress.warnings[-_SHOWN_WARNINGS:]
    lines: list[RenderableType] = []
    if progress.num_warnings > len(shown):
        lines.append(Text(f"{progress.num_warnings} warnings, the last ones:", style="yellow"))
    for warning in shown:
        lines.append(Text(one_line(warning), style="yellow", overflow="ellipsis", no_wrap=True))
    return lines
