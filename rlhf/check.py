"""Look at a run before it begins: `python -m rlhf.check experiment=… key=value … [json=true]`.

Takes what `python -m rlhf.iterate` takes, loads no model and leaves run folders alone. Exit code 2: it cannot run.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from rlhf.command.line import main
from rlhf.config.tools import CheckConfig
from rlhf.launch.local import LocalLauncher
from rlhf.preflight.findings import Level, table
from rlhf.preflight.look import look
from rlhf.run.lock import hold_run


def check(told: CheckConfig) -> None:
    """Print what is found, as a table or as one JSON document."""
    with tempfile.TemporaryDirectory() as folder, hold_run(Path(folder), print) as token:
        found = look(told, LocalLauncher(Path(folder), token, preload=False, device=told.compute.device.value))
    rows = [asdict(each) | {"level": each.level.name} for each in found]
    fine = Level.error not in {each.level for each in found}
    print(json.dumps({"ok": fine, "findings": rows}, indent=1, ensure_ascii=False) if told.json else table(found))
    if not fine:
        sys.exit(2)


if __name__ == "__main__":
    main(check, "iterate", CheckConfig)
