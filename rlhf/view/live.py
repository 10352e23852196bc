"""The view of a run that goes on, for the console; what draws it is imported with the first picture.

A run with nothing to do, and one whose output is no terminal, need not wait for that.
"""

from __future__ import annotations

import time

from rlhf.run.progress import Progress


def drawn_lines(progress: Progress, columns: int, lines: int) -> list[str]:
    """The view for a terminal, with its commands for colours; one line of it is left to the cursor."""
    from rlhf.view.progress_view import view_lines

    return view_lines(progress, time.time(), columns, lines - 1, drawn=True)
