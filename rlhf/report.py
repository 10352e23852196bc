"""What a run has so far, as one page: `python -m rlhf.report run_dir=RUN [output=FILE.html] [records=300]`.

Of a finished, unfinished or failed run, and of a copy of one. It needs no network, neither now nor when the
page is opened. docs/report.md says how to read it.
"""

from __future__ import annotations

from rlhf.command.line import main
from rlhf.config.limits import check_numbers
from rlhf.config.view_tools import ReportTool
from rlhf.data.files import resolved
from rlhf.errors import ConfigError
from rlhf.run.output import show
from rlhf.view.build_report import write_report
from rlhf.view.run_folder import REPORT, open_run


def report(tool: ReportTool) -> None:
    """Write the page and say where it is."""
    check_numbers(tool)
    run = open_run(tool.run_dir)
    target = run.path / REPORT
    if tool.output is not None:
        target = resolved(tool.output, "output")
        if target.suffix.lower() not in (".html", ".htm"):
            raise ConfigError(f"output={tool.output}: a report is a page; give a name that ends in .html.")
        if not target.parent.is_dir():
            raise ConfigError(
                f"output={tool.output}: there is no folder {target.parent}. Make it, or name another."
            )
    write_report(run, target, tool.records, tool.seed)
    show(f"report  {target} ({target.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main(report, "tool", ReportTool)
