"""The report that the loop keeps: made anew after every iteration, and never in the run's way."""

from __future__ import annotations

from rlhf.config.overrides import override, pasted
from rlhf.errors import one_line
from rlhf.run.commit import MANIFEST
from rlhf.run.plan import Run
from rlhf.view.report_library import LIBRARY
from rlhf.view.run_folder import REPORT, open_run


def update_report(run: Run) -> None:
    """Make the report of a run that goes on; a run never fails for want of one.

    Nothing is done where nothing is new since it was made, as when a finished run is started again.
    """
    if run.planning or run.only is not None:
        return
    if not run.has_worked and _is_newer(run):
        return
    # Here, for it brings Arrow and NumPy, for which a wrong config need not wait.
    from rlhf.view.build_report import is_of_now, write_report

    try:
        folder = open_run(str(run.folder))
        target = run.folder / REPORT
        if not is_of_now(target, folder):
            write_report(folder, target)
    except Exception as error:  # whatever it is: the run is worth more than its picture
        again = pasted("python", "-m", "rlhf.report", override("run_dir", str(run.folder)))
        run.say(f"  ! no {REPORT}: {one_line(str(error) or type(error).__name__)}. To make it: {again}")


def begin_report(run: Run) -> None:
    """Get ready what every report needs, in a process of its own, so that the first one waits for nothing."""
    if run.has_worked and run.only is None:
        LIBRARY.begin()


def _is_newer(run: Run) -> bool:
    """Whether a report is there that is younger than every finished stage: then nobody need read the run."""
    try:
        made_at = (run.folder / REPORT).stat().st_mtime
        for artifact in run.made.values():
            if artifact.root is not None and (artifact.root / MANIFEST).stat().st_mtime > made_at:
                return False
    except OSError:
        return False
    return True
