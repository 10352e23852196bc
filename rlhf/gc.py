"""Make room in a run: `python -m rlhf.gc run_dir=RUN [keep=best_and_last] [dry_run=false]`.

Says what could go, how large it is and what could not be done then; `dry_run=false` removes it. Nothing goes
that a resume, another iteration, RUN/best or a run beside this one needs. docs/retention.md has the rules.
"""

from __future__ import annotations

from rlhf.command.line import main
from rlhf.config.view_tools import GcTool
from rlhf.errors import StorageError, one_line
from rlhf.run.lock import driver_of, hold_run
from rlhf.run.output import output_error, show
from rlhf.run.removal import remove, size_text
from rlhf.view.removable import gc_command, lines_of, removable
from rlhf.view.run_folder import open_run


def gc(tool: GcTool) -> None:
    """Say what could go of a run, or remove it."""
    # Before the lock, which would make the folder of a name that is misspelt.
    run = open_run(tool.run_dir)
    if tool.dry_run:
        found = removable(run, tool.keep)
        show("\n".join(lines_of(found)))
        driver = driver_of(run.path)
        if driver is not None and driver.is_alive:
            show(f"Process {driver.pid} works on this run: while it does, nothing can be removed.")
        elif found.leaving:
            keep = tool.keep.value
            show(f"Nothing was removed. To remove it: {gc_command(run.path, keep=keep, dry_run=False)}")
        lost = output_error()
        if lost is not None:
            raise StorageError(f"The list cannot be written to standard output: {lost.strerror}. Make room.")
        return
    with hold_run(run.path, show, elsewhere="run_dir=<another run>"):
        # Anew: until it was held, a driver may have worked in it.
        found = removable(open_run(tool.run_dir), tool.keep)
        for leaving, size in zip(found.leaving, found.sizes, strict=True):
            remove(leaving, f"keep={tool.keep.value}")
            show(f"removed  {one_line(leaving.name)}: {leaving.what}, {size_text(size.freed)} free")
        for line in found.staying:
            show(f"stays    {one_line(line)}")
        show(f"{one_line(run.path)}: {len(found.leaving)} things removed, {size_text(found.freed)} free")


if __name__ == "__main__":
    main(gc, "tool", GcTool)
