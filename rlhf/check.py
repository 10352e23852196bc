"""Look at a run before it begins: `python -m rlhf.check experiment=… key=value … [json=true]`.

Takes what `python -m rlhf.iterate` takes, loads no model and leaves run folders alone. Exit code 2: it
cannot run.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf.command.line import main
from rlhf.config.tools import CheckConfig
from rlhf.data.json_text import json_text
from rlhf.errors import StorageError
from rlhf.launch.local import LocalLauncher
from rlhf.preflight.findings import Level, table
from rlhf.preflight.look import look
from rlhf.run.lock import hold_run
from rlhf.run.output import output_error, show


def check(cfg: CheckConfig) -> None:
    """Print what is found, as a table or as one JSON document.

    Example:
        {"ok": true, "findings": [{"level": "ok", "text": "4 GPUs", "way_out": "", "subject": "machine"}, …]}
    """
    with tempfile.TemporaryDirectory() as name:
        # A run folder that is thrown away: a look leaves no trace, and can be taken while the run goes on.
        folder = Path(name)
        with hold_run(folder, show) as token:
            device = cfg.compute.device.value
            launcher = LocalLauncher(folder, token, cfg.compute.preload, device=device)
            # What calls rules is on its way while the rest is looked at. Nothing else is imported ahead: that
            # would take longer than the look.
            launcher.warm_up(engines=False, rows=False)
            findings = look(cfg, launcher, call_rules=True)
    fine = all(item.level is not Level.error for item in findings)
    if cfg.json:
        rows = [asdict(item) | {"level": item.level.name} for item in findings]
        document = {"ok": fine, "findings": rows}
        show(as_json(document))
    else:
        show(table(findings))
    lost = output_error()
    if lost is not None:
        raise StorageError(f"The findings cannot be written to standard output: {lost.strerror}. Make room.")
    if not fine:
        sys.exit(2)


def as_json(document: Any) -> str:
    """A document in JSON that any console takes: all but plain letters escaped as JSON does it."""
    text = json_text(document, indent=1)
    # The one control character that JSON lets stand.
    return text.replace("\x7f", "\\u007f")


if __name__ == "__main__":
    main(check, "iterate", CheckConfig)
