"""Imported once by the process that stages without an engine are forked from: what reads and writes rows.

No torch: it is there for those who do not wait for that. What cannot be imported is left for the stage that
needs it to complain about.
"""

from __future__ import annotations

import contextlib
import importlib

from rlhf.launch.server import become_server
from rlhf.run.job import Kind
from rlhf.run.stage_table import STAGES, stage_function

become_server()

for name, stage in STAGES.items():
    if stage.kind is Kind.single:
        with contextlib.suppress(Exception):
            stage_function(name)
# Of `score` with a rule.
for name in ("rlhf.stages.score", "rlhf.scoring.choose_judge"):
    with contextlib.suppress(Exception):
        importlib.import_module(name)
