"""How far a run is, and whether anybody works on it: `python -m rlhf.status run_dir=RUN`.

Takes no lock and writes nothing: it may be called while the run goes on, after it has died, and on a copy.
docs/watching.md says how to read it.
"""

from __future__ import annotations

import os
import sys

from rlhf.command.line import main
from rlhf.config.view_tools import StatusTool
from rlhf.errors import StorageError
from rlhf.run.output import can_draw, output_error, show, show_drawn
from rlhf.view.progress_view import view_lines
from rlhf.view.run_folder import open_run
from rlhf.view.standing import standing_of

_COLUMNS = 120
"""Of the view where it goes into a file."""


def status(tool: StatusTool) -> None:
    """Print how a run stands, the view that its terminal has, and what is damaged or unfinished in it."""
    run = open_run(tool.run_dir)
    standing = standing_of(run)
    show("\n".join(standing.lines))
    drawn = can_draw()
    columns = os.get_terminal_size(sys.stdout.fileno()).columns if drawn else 0
    for line in view_lines(standing.progress, standing.at, columns or _COLUMNS, drawn=drawn):
        if drawn:
            show_drawn(f"{line}\n")
        else:
            show(line)
    if standing.notes:
        show("\n".join(standing.notes))
    lost = output_error()
    if lost is not None:
        raise StorageError(f"The view cannot be written to standard output: {lost.strerror}. Make room.")


if __name__ == "__main__":
    main(status, "tool", StatusTool)
