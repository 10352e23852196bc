"""The library that draws a report's plots: Vega, Vega-Lite and Vega-Embed, as `vl-convert-python` has them.

It makes one script of them in a JavaScript engine of its own. That takes a second and 100 MB, which a process
of its own has and gives back: a run's driver goes on meanwhile.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rlhf.errors import ConfigError

_PACKAGE = "vl-convert-python"
_PROGRAM = Path(__file__).with_name("plot_script.py")
_SECONDS = 120
"""What the slowest machine may take."""


class Library:
    """The script, once for a process: begun when it is first asked for, or earlier by `begin`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._script = ""

    def begin(self) -> None:
        """Start making the script, and return at once."""
        if self._process is None and not self._script:
            # Its errors come by the pipe too: a terminal shows a run, and nothing else.
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_PROGRAM)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the run
            )

    def script(self) -> str:
        """The script; waits for it.

        Raises:
            ConfigError: the package is not installed, or does not run here.
        """
        if not self._script:
            self.begin()
            assert self._process is not None, "begun just now"
            process, self._process = self._process, None
            try:
                output, errors = process.communicate(timeout=_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                output, errors = process.communicate()
            if process.returncode != 0 or not output:
                raise ConfigError(_why(errors.decode(errors="replace")))
            # No script may hold what ends it in a page.
            script = output.decode().replace("</script", "<\\/script").replace("<!--", "<\\!--")
            self._script = script
        return self._script


LIBRARY = Library()


def library_version() -> str:
    """The version of the package that the script comes from; empty where it is not installed."""
    try:
        return version(_PACKAGE)
    except PackageNotFoundError:
        return ""


def _why(errors: str) -> str:
    if not library_version():
        return f"No report without {_PACKAGE}, which draws its plots. Install it: pip install {_PACKAGE}"
    last = errors.strip().splitlines()[-1:] or ["it said nothing"]
    return (
        f"No report: {_PACKAGE} {library_version()}, which draws its plots, does not run here ({last[0]}). "
        f"Install it again: pip install --force-reinstall {_PACKAGE}"
    )
