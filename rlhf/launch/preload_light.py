"""Imported once by the process that stages without an engine are forked from: what reads and writes rows.

No torch: it is there for those who do not wait for that. What cannot be imported is left for the stage that
needs it to complain about.
"""

from __future__ import annotations

import contextlib
import importlib

from rlhf.launch.server import become_server
from rlhf.run.job import Kind
from rlhf.run.stage_table import STAGES

MODULES = [stage.function.partition(":")[0] for stage in STAGES.values() if stage.kind is Kind.single]
MODULES += [
    "rlhf.stages.score",
    "rlhf.scoring.choose_judge",
    # Arrow imports it with the first rows that become a table.
    "pandas",
    "pyarrow.compute",
]

become_server()

for name in MODULES:
    with contextlib.suppress(Exception):
        importlib.import_module(name)
